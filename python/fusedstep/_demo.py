"""Train a small network on handwritten digits, once with the fused step and once with the NumPy reference."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import reference
from ._adagrad import Adagrad
from ._config import get_num_threads, isa
from ._optimizer import Optimizer
from ._rmsprop import RMSprop
from ._rprop import Rprop
from ._terminal import cannot_write, progress
from ._verification._step import differing

HELP = "train a small network on handwritten digits twice, with fusedstep and with the NumPy reference"

Array = NDArray[Any]
Arrays = dict[str, Array]
Step = Callable[[Arrays], object]

HIDDEN = 256
EPOCHS = 30
PICTURE = "fusedstep-demo.png"


class Digits(NamedTuple):
    """Images as rows of 64 grey values less their mean over the training images, and the digits that they show."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def load_digits() -> Digits:
    """Return scikit-learn's 1,797 images, split into training and test images, always the same way."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = np.asarray(x / 16.0, np.float32)
    split = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    train_x, test_x, train_y, test_y = map(np.asarray, split)
    mean = train_x.mean(axis=0)
    return Digits(train_x - mean, train_y, test_x - mean, test_y)


# The network: one hidden layer of rectified units, softmax, cross-entropy.


def new_network(rng: np.random.Generator, inputs: int, hidden: int, classes: int) -> Arrays:
    """Return random weights of variance 2 / inputs (He et al. 2015) and zero biases."""
    w1 = rng.standard_normal((inputs, hidden), np.float32) * np.float32(np.sqrt(2.0 / inputs))
    w2 = rng.standard_normal((hidden, classes), np.float32) * np.float32(np.sqrt(2.0 / hidden))
    return {"w1": w1, "b1": np.zeros(hidden, np.float32), "w2": w2, "b2": np.zeros(classes, np.float32)}


def forward(network: Arrays, x: Array) -> tuple[Array, Array]:
    """Return the hidden units and the logarithms of the probabilities of each class."""
    hidden = np.maximum(x @ network["w1"] + network["b1"], 0)
    z = hidden @ network["w2"] + network["b2"]
    z -= z.max(axis=1, keepdims=True)
    return hidden, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def gradients(network: Arrays, x: Array, y: Array) -> Arrays:
    """Return the gradient of the mean cross-entropy, by backpropagation."""
    hidden, log_p = forward(network, x)
    dz = np.exp(log_p)
    dz[np.arange(len(y)), y] -= 1
    dz /= len(y)
    dhidden = dz @ network["w2"].T * (hidden > 0)
    return {"w1": x.T @ dhidden, "b1": dhidden.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}


def mean_loss(network: Arrays, x: Array, y: Array) -> float:
    return -float(forward(network, x)[1][np.arange(len(y)), y].mean())


def accuracy(network: Arrays, x: Array, y: Array) -> float:
    """Return the share of images whose most probable class is right."""
    return float((forward(network, x)[1].argmax(axis=1) == y).mean())


# The rules: each as an optimizer, and as a loop over the function of the reference.


class Rule(NamedTuple):
    """A rule with the settings that it is trained with; batch: images per step, None for all."""

    name: str
    optimizer: Callable[..., Optimizer]
    lr: float
    batch: int | None

    def reference_step(self, network: Arrays) -> Step:
        """Return the step of the rule in NumPy, with the optimizer's initial states."""
        update = getattr(reference, f"{self.name.lower()}_")
        state = self.optimizer({name: p.copy() for name, p in network.items()}, lr=self.lr).state

        def step(grads: Arrays) -> None:
            for name, p in network.items():
                update(p, grads[name], **state[name], lr=self.lr)

        return step


RULES = (
    Rule("Rprop", Rprop, lr=0.001, batch=None),  # its signs need the gradient of all images
    Rule("Adagrad", Adagrad, lr=0.02, batch=32),
    Rule("RMSprop", RMSprop, lr=0.001, batch=32),
)


class Training(NamedTuple):
    """The result of a training: the weights, the training loss after each epoch, microseconds of each update."""

    network: Arrays
    losses: list[float]
    times: list[float]

    @property
    def time(self) -> float:
        """The median of the updates, in microseconds."""
        return statistics.median(self.times)


class Comparison(NamedTuple):
    """A rule trained by the fused step and by the reference."""

    rule: Rule
    fused: Training
    reference: Training
    test_accuracy: float

    @property
    def differing_weights(self) -> int:
        """How many final weights differ in a bit."""
        pairs = ((self.fused.network[name], expected) for name, expected in self.reference.network.items())
        return sum(int(differing(found, expected).sum()) for found, expected in pairs)


def train(
    network: Arrays, step: Step, digits: Digits, batch: int | None, epochs: int, seed: int,
    after_epoch: Callable[[], object],
) -> Training:  # fmt: skip
    """Train a network in place, and time only the update step."""
    rng = np.random.default_rng(seed)
    images = len(digits.train_y)
    losses: list[float] = []
    times: list[float] = []
    for _ in range(epochs):
        order = rng.permutation(images) if batch else np.arange(images)
        for start in range(0, images, batch or images):
            chosen = order[start : start + (batch or images)]
            grads = gradients(network, digits.train_x[chosen], digits.train_y[chosen])
            before = time.perf_counter_ns()
            step(grads)
            times.append((time.perf_counter_ns() - before) / 1e3)
        losses.append(mean_loss(network, digits.train_x, digits.train_y))
        after_epoch()
    return Training(network, losses, times)


def compare(
    rule: Rule, digits: Digits, *,
    epochs: int = EPOCHS, hidden: int = HIDDEN, seed: int = 0, after_epoch: Callable[[], object] = lambda: None,
) -> Comparison:  # fmt: skip
    """Train two equal networks, one by the fused step and one by the reference."""
    trainings: list[Training] = []
    for fused in (True, False):
        network = new_network(np.random.default_rng(seed), digits.train_x.shape[1], hidden, 10)
        step = rule.optimizer(network, lr=rule.lr).step if fused else rule.reference_step(network)
        trainings.append(train(network, step, digits, rule.batch, epochs, seed, after_epoch))
    fused_training, reference_training = trainings
    right = accuracy(fused_training.network, digits.test_x, digits.test_y)
    return Comparison(rule, fused_training, reference_training, right)


# What the user sees.

COLUMNS: tuple[tuple[str, str, int, Callable[[Comparison], str]], ...] = (
    ("rule", "", 9, lambda c: c.rule.name),
    ("images", "per step", 9, lambda c: str(c.rule.batch or "all")),
    ("test", "accuracy", 10, lambda c: f"{c.test_accuracy:.1%}"),
    ("final", "loss", 9, lambda c: f"{c.fused.losses[-1]:.1e}"),
    ("us per step", "fused", 13, lambda c: f"{c.fused.time:.1f}"),
    ("us per step", "reference", 13, lambda c: f"{c.reference.time:.1f}"),
    ("speed-up", "", 10, lambda c: f"{c.reference.time / c.fused.time:.1f}x"),
    ("final weights", "equal bit for bit", 0,
     lambda c: f"no: {c.differing_weights:,} differ" if c.differing_weights else "yes"),
)  # fmt: skip
"""Two lines of a heading, the width, and what a training has there."""


def show_table(comparisons: list[Comparison]) -> None:
    for line in (0, 1):
        print("".join(f"{column[line]:<{column[2]}}" for column in COLUMNS).rstrip())
    for c in comparisons:
        print("".join(f"{text(c):<{width}}" for *_, width, text in COLUMNS))


# Colours that the colour-blind tell apart (Okabe & Ito 2008), and dashes for those who see none.
COLOURS = ("#0072B2", "#D55E00", "#009E73")
DASHES = ("-", "--", "-.")


def draw(comparisons: list[Comparison], path: Path) -> None:
    """Write the learning curves and the step times as one picture."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 13, "axes.labelsize": 14, "axes.titlesize": 16}):
        figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
        curves, times = figure.subplots(1, 2, width_ratios=(5, 4))
        draw_curves(curves, comparisons)
        draw_times(times, comparisons)
        figure.savefig(path)


def draw_curves(axes: Any, comparisons: list[Comparison]) -> None:
    """Draw the training losses: the fused ones as lines, the reference's as rings."""
    for c, colour, dash in zip(comparisons, COLOURS, DASHES, strict=True):
        epochs = np.arange(1, len(c.fused.losses) + 1)
        batch = f"{c.rule.batch} images" if c.rule.batch else "all images"
        axes.plot(epochs, c.fused.losses, dash, color=colour, linewidth=2.2, label=f"{c.rule.name}, {batch} per step")
        axes.plot(epochs[::4], c.reference.losses[::4], "o", color=colour, markersize=8, markerfacecolor="none")
    axes.plot([], [], "o", color="0.3", markersize=8, markerfacecolor="none", label="the same with the reference")
    axes.set_yscale("log")
    axes.set_xlabel("passes over the training images (epochs)")
    axes.set_ylabel("mean cross-entropy (nats)")
    axes.set_title("Training loss")
    axes.legend()
    axes.grid(alpha=0.3)


def draw_times(axes: Any, comparisons: list[Comparison]) -> None:
    """Draw the median time of an update, fused and by the reference."""
    for row, (c, colour) in enumerate(zip(comparisons, COLOURS, strict=True)):
        fused, slow = c.fused.time, c.reference.time
        axes.plot([fused, slow], [row, row], color=colour, linewidth=2.2)
        axes.plot(fused, row, "o", color=colour, markersize=12)
        axes.plot(slow, row, "o", color=colour, markersize=12, markerfacecolor="white", markeredgewidth=2.2)
        write(axes, f"{fused:.1f}", (fused, row), (-13, 0), ha="right", va="center")
        write(axes, f"{slow:.0f} ({slow / fused:.1f}x)", (slow, row), (13, 0), ha="left", va="center")
    write(axes, "fused", (comparisons[0].fused.time, 0), (0, 14), ha="center")
    write(axes, "NumPy reference", (comparisons[0].reference.time, 0), (0, 14), ha="center")
    times = [time for c in comparisons for time in (c.fused.time, c.reference.time)]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 4, max(times) * 14)  # room for the numbers
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(comparisons)), [c.rule.name for c in comparisons])
    axes.set_xlabel("microseconds per step (median)")
    weights = sum(array.size for array in comparisons[0].fused.network.values())
    axes.set_title(f"One update of {weights:,} weights")
    axes.grid(axis="x", alpha=0.3)


def write(axes: Any, text: str, point: tuple[float, float], offset: tuple[float, float], **alignment: str) -> None:
    """Write next to a point, at an offset in points."""
    axes.annotate(text, point, offset, textcoords="offset points", **alignment)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folder = "folder for the picture (default: this one)"
    seed = "seed of the first weights and the batches (default: 0)"
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help=folder)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed)


def run(options: argparse.Namespace) -> int:
    """Train with each rule, print the table, draw the picture; return 1 if a weight differs."""
    picture = options.out / PICTURE
    with contextlib.suppress(OSError):  # the next line says it
        options.out.mkdir(parents=True, exist_ok=True)
    if cannot_write("demo", picture):
        return 2
    digits = load_digits()
    print(
        f"{len(digits.train_y):,} training and {len(digits.test_y):,} test images, {EPOCHS} epochs, float32; "
        f"{isa()}, threads: {get_num_threads()}\n",
        flush=True,
    )
    say, epochs = progress(), itertools.count(1)

    def after_epoch() -> None:
        say(next(epochs) / (2 * EPOCHS * len(RULES)), "training")

    comparisons = [compare(rule, digits, seed=options.seed, after_epoch=after_epoch) for rule in RULES]
    show_table(comparisons)
    print(f"\n{describe_picture(comparisons, picture)}")
    return 1 if any(c.differing_weights for c in comparisons) else 0


def describe_picture(comparisons: list[Comparison], path: Path) -> str:
    """Draw the picture and return where it is, or why there is none."""
    try:
        draw(comparisons, path)
    except ModuleNotFoundError as error:
        return f"no picture: {error.name} is not installed (pip install matplotlib)"
    return f"picture: {path}"
