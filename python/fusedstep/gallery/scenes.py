"""What the gallery shows, computed: each scene is a function that returns the paths and the numbers behind its claim.

Rprop, Adagrad and RMSprop are always the fused rules; everything else comes from ``comparison``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import demo
from ..optimizers import Adagrad, Optimizer, RMSprop, Rprop
from .comparison import SGD, Adadelta, Adam, Momentum, Nesterov
from .surfaces import BEALE, BEALE_MINIMUM, SADDLE, Surface, quadratic

__all__ = [
    "Condition",
    "Minibatches",
    "Saddle",
    "Training",
    "Valley",
    "Variant",
    "condition",
    "digits",
    "minibatches",
    "saddle",
    "valley",
    "variants",
]

Array = NDArray[Any]


class Steps(Protocol):
    """What updates a parameter in place from its gradient."""

    def step(self, grads: Array, /) -> object:
        """Update the parameter."""


OPTIMIZERS: dict[str, Callable[..., Steps]] = {
    "SGD": SGD,
    "Momentum": Momentum,
    "Nesterov": Nesterov,
    "Adagrad": Adagrad,
    "Adadelta": Adadelta,
    "RMSprop": RMSprop,
    "Rprop": Rprop,
    "Adam": Adam,
}


def descend(name: str, lr: float, surface: Surface, start: Sequence[float], steps: int) -> Array:
    """Return the points of an optimizer's path over a surface, the start included: ``(steps + 1, 2)``."""
    point = np.array(start, np.float64)
    optimizer = OPTIMIZERS[name](point, lr=lr)
    points = [point.copy()]
    for _ in range(steps):
        optimizer.step(surface.gradient(point))
        points.append(point.copy())
    return np.array(points)


def first(condition: Array) -> int | None:
    """Return the index of the first true element, if any is."""
    return int(condition.argmax()) if condition.any() else None


# a. Mini-batches: nine gradients of 0.1 and one of -0.9 cancel, and should leave the weight where it is.

BATCH_GRADIENTS = (0.1,) * 9 + (-0.9,)


class Minibatches(NamedTuple):
    """The weight after each mini-batch, by optimizer."""

    lr: float
    weights: dict[str, Array]

    def moved(self, name: str) -> float:
        """Return how far the weight is from its start at the end."""
        return abs(float(self.weights[name][-1]))

    def drift(self, name: str) -> float:
        """Return how far the last ten mini-batches moved the weight, in learning rates."""
        weights = self.weights[name]
        return abs(float(weights[-1] - weights[-11])) / self.lr


def minibatches(epochs: int = 30, lr: float = 0.01) -> Minibatches:
    """Repeat the ten gradients, the weight starting at 0."""
    makers: dict[str, Callable[[Array], Steps]] = {
        "Rprop": lambda w: Rprop(w, lr=lr),
        "RMSprop": lambda w: RMSprop(w, lr=lr),
        "RMSprop, alpha 0.99": lambda w: RMSprop(w, lr=lr, alpha=0.99),
        "Adagrad": lambda w: Adagrad(w, lr=lr),
        "SGD": lambda w: SGD(w, lr=lr),
    }
    weights: dict[str, Array] = {}
    for name, make in makers.items():
        weight = np.zeros(1)
        optimizer = make(weight)
        path = [0.0]
        for gradient in BATCH_GRADIENTS * epochs:
            optimizer.step(np.array([gradient]))
            path.append(float(weight[0]))
        weights[name] = np.array(path)
    return Minibatches(lr, weights)


# b. The saddle point: all optimizers start beside it, a hair off the ridge.

SADDLE_RATES = {name: 1.0 if name == "Adadelta" else 0.01 for name in OPTIMIZERS}
"""Adadelta's steps have the size of those before, not that of its learning rate."""

NEAR = 0.1
"""An optimizer has left the saddle when it is so far along the flat direction."""


class Saddle(NamedTuple):
    """Paths from ``(1, offset)`` over ``x^2 - y^2``, and the steps to leave it from smaller and smaller offsets."""

    offset: float
    paths: dict[str, Array]
    offsets: Array
    steps_to_leave: dict[str, list[int | None]]

    def left(self, name: str, distance: float = NEAR) -> int | None:
        """Return the step after which the path was ``distance`` away along y."""
        return first(abs(self.paths[name][:, 1]) >= distance)


def saddle(offset: float = 1e-6, steps: int = 1500) -> Saddle:
    """Start at ``(1, offset)``, where the gradient along y is ``-2 offset``."""
    offsets = 10.0 ** np.arange(-2, -11, -1)
    paths = {name: descend(name, lr, SADDLE, (1.0, offset), steps) for name, lr in SADDLE_RATES.items()}
    steps_to_leave = {
        name: [first(abs(descend(name, lr, SADDLE, (1.0, y), steps)[:, 1]) >= NEAR) for y in offsets]
        for name, lr in SADDLE_RATES.items()
    }
    return Saddle(offset, paths, offsets, steps_to_leave)


# c. The long valley: Beale's function from a steep corner, with a huge first gradient.

VALLEY_START = (4.5, -1.25)
VALLEY_RATES = {
    "SGD": 0.001,
    "Momentum": 0.001,  # twice as much diverges
    "Adagrad": 0.5,
    "RMSprop": 0.01,
    "Rprop": 0.01,
}


class Valley(NamedTuple):
    """Paths over Beale's function."""

    start: tuple[float, float]
    paths: dict[str, Array]

    def distance(self, name: str) -> Array:
        """Return the distance from the minimum after each step."""
        return np.asarray(np.linalg.norm(self.paths[name] - BEALE_MINIMUM, axis=1))

    def arrived(self, name: str) -> int | None:
        """Return the step after which the path was within 0.1 of the minimum."""
        return first(self.distance(name) < 0.1)

    def step_lengths(self, name: str) -> Array:
        """Return the length of each step."""
        return np.asarray(np.linalg.norm(np.diff(self.paths[name], axis=0), axis=1))

    def detour(self, name: str) -> float:
        """Return the length of the path until it arrived over the straight distance; 1 is straight."""
        end = self.arrived(name)
        points = self.paths[name][: None if end is None else end + 1]
        walked = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
        return float(walked / np.linalg.norm(points[-1] - points[0]))

    def overshoot(self, name: str) -> float:
        """Return how far the path went beyond the minimum, along x or y."""
        beyond = (np.array(BEALE_MINIMUM) - self.paths[name]) * np.sign(np.subtract(self.start, BEALE_MINIMUM))
        return float(beyond.max())


def valley(steps: int = 2000) -> Valley:
    """Start where the gradient is 644 long."""
    paths = {name: descend(name, lr, BEALE, VALLEY_START, steps) for name, lr in VALLEY_RATES.items()}
    return Valley(VALLEY_START, paths)


# d. High condition number: the same distance to go along a steep and a flat direction.

CONDITION_RATES = {"SGD": 0.0019, "Adagrad": 0.1, "RMSprop": 0.01}  # SGD diverges from 2 / 1,000 on


class Condition(NamedTuple):
    """A quadratic, steep along x and flat along y: paths, and effective steps in a long run on noisy gradients."""

    number: float
    paths: dict[str, Array]
    effective_steps: dict[str, Array]

    def ratio(self, name: str) -> float:
        """Return the effective step along the flat direction over that along the steep one: median of the run."""
        steep, flat = self.effective_steps[name].T
        return float(np.median(flat / steep))

    def kept(self, name: str) -> float:
        """Return what is left of the effective steps 100 to 1,000 in steps 10,000 to 100,000: a ratio of medians."""
        taken = self.effective_steps[name]
        return float(np.median(taken[10_000:100_000] / np.median(taken[100:1_000], axis=0)))

    def steps_to(self, name: str, coordinate: int, share: float = 0.05) -> int | None:
        """Return the step after which a share of the distance along x (0) or y (1) was left."""
        path = abs(self.paths[name][:, coordinate])
        return first(path <= share * path[0])


def effective_step(optimizer: Optimizer) -> Array:
    """Return what Adagrad or RMSprop multiplies each element of the gradient with: ``lr / (sqrt(v) + eps)``."""
    (squares,) = optimizer.state["0"].values()
    group = optimizer.param_groups[0]
    return np.asarray(group["lr"] / (np.sqrt(squares) + group["eps"]))


def condition(number: float = 1000.0, steps: int = 2000, noisy_steps: int = 100_000, seed: int = 0) -> Condition:
    """Descend without noise from (1, 1), then run on the gradients of quadratics whose minima lie around (0, 0)."""
    surface = quadratic(number, 1.0)
    paths = {name: descend(name, lr, surface, (1.0, 1.0), steps) for name, lr in CONDITION_RATES.items()}
    effective_steps: dict[str, Array] = {}
    rules: dict[str, Callable[..., Optimizer]] = {"Adagrad": Adagrad, "RMSprop": RMSprop}
    for name, rule in rules.items():
        rng = np.random.default_rng(seed)
        point = np.ones(2)
        optimizer = rule(point, lr=CONDITION_RATES[name])
        taken = []
        for _ in range(noisy_steps):
            optimizer.step(surface.gradient(point - rng.standard_normal(2)))
            taken.append(effective_step(optimizer))
        effective_steps[name] = np.array(taken)
    return Condition(number, paths, effective_steps)


# e. The variants of Rprop: a narrow valley that lies across the coordinates.

VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop-move", "irprop+")
NARROW = quadratic(50.0, 1.0, degrees=-60.0)
NARROW_START = (-4.0, 1.5)


class Variant(NamedTuple):
    """A variant's path, and the step sizes and the loss after each step."""

    path: Array
    step_sizes: Array
    losses: Array

    def steps_to(self, loss: float) -> int | None:
        """Return the step after which the loss was first below ``loss``."""
        return first(self.losses < loss)


def variants(steps: int = 400, lr: float = 0.1) -> dict[str, Variant]:
    """Descend the narrow valley with each variant."""
    return {variant: _variant(variant, steps, lr) for variant in VARIANTS}


def _variant(variant: str, steps: int, lr: float) -> Variant:
    point = np.array(NARROW_START)
    optimizer = Rprop(point, lr=lr, variant=variant)
    path, step_sizes, losses = [point.copy()], [optimizer.state["0"]["step_size"].copy()], [NARROW.value(*point)]
    for _ in range(steps):
        optimizer.step(NARROW.gradient(point), loss=float(losses[-1]))
        path.append(point.copy())
        step_sizes.append(optimizer.state["0"]["step_size"].copy())
        losses.append(NARROW.value(*point))
    return Variant(np.array(path), np.array(step_sizes), np.array(losses))


# f. Real data: the network of the demo.

DIGITS_RATES = {"Rprop": (1e-4, 1e-3, 1e-2), "Adagrad": (1e-3, 1e-2, 1e-1), "RMSprop": (1e-4, 1e-3, 1e-2)}


class Training(NamedTuple):
    """A rule with a learning rate, how many images a step saw (None: all), and the loss after each epoch."""

    rule: str
    lr: float
    batch: int | None
    losses: list[float]
    test_accuracy: float


def digits(epochs: int = demo.EPOCHS, seed: int = 0) -> list[Training]:
    """Train with each rule at three learning rates, and once with Rprop on mini-batches."""
    data = demo.load_digits()
    trainings: list[Training] = []
    for rule in demo.RULES:
        runs = [(lr, rule.batch) for lr in DIGITS_RATES[rule.name]]
        if rule.name == "Rprop":
            runs.append((1e-3, 32))
        for lr, batch in runs:
            network = demo.new_network(np.random.default_rng(seed), data.train_x.shape[1], demo.HIDDEN, 10)
            losses = demo.train(network, rule.optimizer(network, lr=lr).step, data, batch, epochs, seed).losses
            trainings.append(Training(rule.name, lr, batch, losses, demo.accuracy(network, data.test_x, data.test_y)))
    return trainings
