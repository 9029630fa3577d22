"""Train a network on handwritten digits: mini-batches, a schedule, early stopping, and checkpoints that resume exactly.

Run it, stop it with Ctrl-C whenever you like, and run it again: it ends with the same bits as if it had never stopped.
"""

import argparse
import copy
import itertools
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import fusedstep as fs

BATCH, PATIENCE = 64, 6


def load(rng):
    """Return (images, labels) to train on, and others to judge by."""
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    return (images[:1300], labels[:1300]), (images[1300:], labels[1300:])


def network(rng, sizes=(64, 48, 10)):
    return [
        {"w": (rng.standard_normal((n, m)) / np.sqrt(n)).astype(np.float32), "b": np.zeros(m, np.float32)}
        for n, m in itertools.pairwise(sizes)
    ]


def probabilities(layers, x):
    """Return the hidden values and the probability of each digit."""
    hidden = np.maximum(x @ layers[0]["w"] + layers[0]["b"], 0)
    scores = hidden @ layers[1]["w"] + layers[1]["b"]
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, e / e.sum(axis=1, keepdims=True)


def loss_and_gradients(layers, x, labels):
    hidden, p = probabilities(layers, x)
    rows = np.arange(len(x))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    d_out = p / np.float32(len(x))
    d_hidden = d_out @ layers[1]["w"].T * (hidden > 0)
    return loss, [{"w": x.T @ d_hidden, "b": d_hidden.sum(axis=0)}, {"w": hidden.T @ d_out, "b": d_out.sum(axis=0)}]


def train(checkpoint, epochs):
    rng = np.random.default_rng(0)
    (x, labels), (others, other_labels) = load(rng)
    layers = network(rng)
    opt = fs.RMSprop(layers, lr=3e-3, weight_decay=1e-4)
    run = {"epoch": 0, "best": np.inf, "since": 0, "rng": rng.bit_generator.state}
    best = copy.deepcopy(layers)
    if checkpoint.exists():
        run, best = opt.load(checkpoint)  # and the parameters, their states and the step count
        rng.bit_generator.state = run["rng"]
        print(f"goes on after epoch {run['epoch']}")

    while run["epoch"] < epochs and run["since"] < PATIENCE:
        opt.lr = 3e-3 * 0.5 * (1 + np.cos(np.pi * run["epoch"] / epochs))  # a cosine
        total = 0.0
        order = rng.permutation(len(x))
        for batch in np.split(order, range(BATCH, len(x), BATCH)):
            loss, grads = loss_and_gradients(layers, x[batch], labels[batch])
            opt.step(grads, clip_norm=5.0)
            total += float(loss) * len(batch) / len(x)

        judged, _ = loss_and_gradients(layers, others, other_labels)
        improved = judged < run["best"]
        if improved:
            best = copy.deepcopy(layers)
        run = {
            "epoch": run["epoch"] + 1,
            "best": float(min(judged, run["best"])),
            "since": 0 if improved else run["since"] + 1,
            "rng": rng.bit_generator.state,
        }
        opt.save(checkpoint, extra=[run, best])
        bar = "#" * (20 * run["epoch"] // epochs)
        print(f"epoch {run['epoch']:3d} [{bar:<20}] loss {total:.4f}, of the others {judged:.4f}")

    _, p = probabilities(best, others)
    print(f"best: {(p.argmax(axis=1) == other_labels).mean():.1%} of {len(others)} other digits are read correctly")
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("digits.npz"))
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    train(arguments.checkpoint, arguments.epochs)
