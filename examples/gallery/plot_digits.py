"""
Handwritten digits
==================

A small network learns scikit-learn's handwritten digits, with each rule at three learning rates. Rprop needs the
gradient of all images in each step. RMSprop and Adagrad learn from 32 images per step.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fusedstep as fs

x, y = load_digits(return_X_y=True)
x, test_x, y, test_y = train_test_split((x / 16).astype(np.float32), y, stratify=y, random_state=0)
mean = x.mean(axis=0)
x, test_x = x - mean, test_x - mean

# %%
# The network has one hidden layer of 128 rectified units. Its parameters and its gradients are dictionaries of arrays.


def new_network(rng):
    w1 = rng.standard_normal((64, 128), np.float32) * np.float32(np.sqrt(2 / 64))
    w2 = rng.standard_normal((128, 10), np.float32) * np.float32(np.sqrt(2 / 128))
    return {"w1": w1, "b1": np.zeros(128, np.float32), "w2": w2, "b2": np.zeros(10, np.float32)}


def forward(network, x):
    """Return the hidden units and the logarithms of the probabilities."""
    hidden = np.maximum(x @ network["w1"] + network["b1"], 0)
    z = hidden @ network["w2"] + network["b2"]
    z -= z.max(axis=1, keepdims=True)
    return hidden, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def gradients(network, x, y):
    """Return the gradients of the mean cross-entropy."""
    hidden, log_p = forward(network, x)
    dz = (np.exp(log_p) - np.eye(10, dtype=np.float32)[y]) / np.float32(len(y))
    dhidden = dz @ network["w2"].T * (hidden > 0)
    return {"w1": x.T @ dhidden, "b1": dhidden.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}


# %%
# Every run starts from the same weights. It prints its accuracy on the test images.


def train(rule, lr, batch, epochs=15):
    """Return the mean cross-entropy over all training images after each epoch."""
    rng = np.random.default_rng(0)
    network = new_network(rng)
    opt = rule(network, lr=lr)
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(y))
        for chosen in np.split(order, range(batch, len(y), batch)):
            opt.step(gradients(network, x[chosen], y[chosen]))
        losses.append(-forward(network, x)[1][np.arange(len(y)), y].mean())
    correct = np.mean(forward(network, test_x)[1].argmax(axis=1) == test_y)
    print(f"{rule.__name__:<8} lr {lr:<7g} {batch:4d} images per step: loss {losses[-1]:7.2g}, accuracy {correct:.1%}")
    return losses


runs = {
    (rule, lr, batch): train(rule, lr, batch)
    for rule, rates, batch in (
        (fs.Rprop, (1e-4, 1e-3, 1e-2), len(y)),
        (fs.Rprop, (1e-3,), 32),
        (fs.Adagrad, (1e-3, 1e-2, 1e-1), 32),
        (fs.RMSprop, (1e-4, 1e-3, 1e-2), 32),
    )
    for lr in rates
}

# %%
# Guessing gives a loss of log 10 = 2.3. On mini-batches Rprop ends above it.

guessing = np.log(10)
assert runs[fs.Rprop, 1e-3, 32][-1] > guessing, "Rprop should fail on mini-batches"
for run in ((fs.Rprop, 1e-2, len(y)), (fs.Adagrad, 1e-1, 32), (fs.RMSprop, 1e-3, 32)):
    assert runs[run][-1] < 0.1 * guessing, f"{run} should learn"

fig, panels = plt.subplots(1, 3, figsize=(9, 4.4), sharey=True, layout="constrained")
for rule, ax, color in zip((fs.Rprop, fs.Adagrad, fs.RMSprop), panels, ("#0072B2", "#D55E00", "#009E73"), strict=True):
    styles = iter((":", "--", "-", "-."))
    for (of, lr, batch), losses in runs.items():
        if of is rule:
            odd = rule is fs.Rprop and batch == 32
            label = f"lr {lr:g}" + (", 32 images per step" if odd else "")
            look = {"color": "black" if odd else color, "linestyle": next(styles)}
            ax.semilogy(range(1, len(losses) + 1), losses, linewidth=2, label=label, **look)
    images = "all" if rule is fs.Rprop else "32"
    ax.set(title=f"{rule.__name__}, {images} images per step", xlabel="epochs", ylim=(5e-7, 20))
    ax.legend(loc="lower left")
panels[0].set(ylabel="loss on the training images")
plt.show()
