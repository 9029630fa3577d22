"""``like("torch")`` against torch.optim itself: 50 steps in float64, compared after every step.

The options are every combination of the values in PyTorch's own tests (torch/testing/_internal/common_optimizers.py, as
of PyTorch 2.13) with some more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from registry import ENTRIES, Entry

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, np.dtype[np.float64]]
Options = dict[str, Any]

STEPS = 50
SIZE = 67  # whole vectors and a tail, in both libraries

# PyTorch rounds some products and sums once (fused multiply-add), and its square root is exact to one unit, not to half
# of one. So its float64 results differ from ours in the last bits. Over all options below, 50 steps add up to 12 units
# of 2^-52 in a parameter, relative to the larger of 1 (the size of parameters) and the element. States differ by up to
# 65 units of the element's largest value so far: if weight decay nearly cancels a gradient, the last bits of the
# parameter are the leading bits of what is left.
PARAM_ULPS = 16
STATE_ULPS = 128

SWITCH = (False, True)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "RMSprop": {"lr": (0.01, 0.1), "alpha": (0.99, 0.9), "weight_decay": (0.0, 0.1), "centered": SWITCH,
                "momentum": (0.0, 0.1, 0.9), "maximize": SWITCH},
    "Adagrad": {"lr": (0.01, 0.1), "lr_decay": (0.0, 0.5), "weight_decay": (0.0, 0.1),
                "initial_accumulator_value": (0.0, 0.1), "eps": (1e-10, 1e-3), "maximize": SWITCH},
    "Rprop": {"lr": (2e-4, 0.01, 0.1), "etas": ((0.5, 1.2), (0.5, 1.5), (0.25, 2.5)),
              "step_sizes": ((1e-6, 50), (2e-6, 100), (0.05, 0.2)), "maximize": SWITCH},
    "others": {"lr": (0.1, 1.0), "weight_decay": (0.0, 0.1), "maximize": SWITCH},
}  # fmt: skip


def named(options: Options) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "default"


def each_combination(grid: str, *more: Options) -> pytest.MarkDecorator:
    """Run a test with torch's defaults, and with every combination of a grid."""
    values = GRIDS[grid]
    found = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    return pytest.mark.parametrize("options", [{}, *more, *found], ids=named)


def start() -> Array:
    return np.random.default_rng(1).standard_normal(SIZE)


def gradients() -> Iterator[Array]:
    """Yield gradients whose signs stay, alternate or are random, with zeros and many magnitudes."""
    rng = np.random.default_rng(2)
    magnitude = 10.0 ** rng.uniform(-3, 2, SIZE)
    for t in range(STEPS):
        g = rng.standard_normal(SIZE)
        g[:8] = np.abs(g[:8])
        g[8:16] = np.abs(g[8:16]) * (-1) ** t
        g[16:40] *= rng.integers(0, 2, 24)
        g[16:20] = 0.0 if t < 10 else g[16:20]
        yield magnitude * g


class Pair:
    """Our optimizer and PyTorch's, on equal parameters."""

    def __init__(self, cls: Any, options: Options) -> None:
        self.param = start()
        self.ours = cls.like("torch", self.param, **options)
        self.tensor = torch.tensor(start(), requires_grad=True)
        self.theirs = getattr(torch.optim, cls.__name__)([self.tensor], foreach=False, **options)

    def step(self, grad: Array) -> None:
        self.ours.step(grad)
        self.tensor.grad = torch.tensor(grad)
        self.theirs.step()

    def arrays(self, **states: str) -> Iterator[tuple[str, Array, Array]]:
        """Yield the parameter and states: name, ours, theirs; ``states`` has PyTorch's names where they differ."""
        yield "param", self.param, self.tensor.detach().numpy()
        theirs = self.theirs.state[self.tensor]
        own = self.ours.state["0"]
        for name, array in own.items():
            if name == "variance":  # torch has the square average instead
                yield name, array + own["grad_avg"] ** 2, theirs["square_avg"].numpy()
            else:
                yield name, array, theirs[states.get(name, name)].numpy()


def assert_close_all_the_way(cls: Any, options: Options, **states: str) -> None:
    pair = Pair(cls, options)
    largest: dict[str, Array] = {"param": np.ones(SIZE)}
    for t, grad in enumerate(gradients(), 1):
        pair.step(grad)
        for name, ours, theirs in pair.arrays(**states):
            assert np.isfinite(theirs).all()
            largest[name] = np.maximum(np.abs(theirs), largest.get(name, 0.0))
            ulps = PARAM_ULPS if name == "param" else STATE_ULPS * (2 if name == "variance" else 1)  # made of two
            assert (np.abs(ours - theirs) <= ulps * np.spacing(largest[name])).all(), f"{name} after step {t}"
    assert not np.allclose(pair.param, start(), atol=1e-3)


@each_combination("RMSprop", {"lr": 1e-3})
def test_rmsprop(options: Options) -> None:
    assert_close_all_the_way(fs.RMSprop, options)


@each_combination("Adagrad")
def test_adagrad(options: Options) -> None:
    assert_close_all_the_way(fs.Adagrad, options, square_sum="sum")


OTHERS = [entry for entry in ENTRIES if entry.class_name not in GRIDS and "torch" in fs.dialects().get(entry.rule, {})]


@each_combination("others")
@pytest.mark.parametrize("entry", OTHERS, ids=lambda entry: entry.rule)
def test_other_rules(entry: Entry, options: Options) -> None:
    assert_close_all_the_way(getattr(fs, entry.class_name), options)


@each_combination("Rprop")
def test_rprop_has_the_same_bits(options: Options) -> None:
    """Rprop has no sum of a product, which torch rounds once and we round twice. So parameters and step sizes are
    equal.

    No product of two gradients underflows here. If one does, PyTorch takes the signs for different.
    """
    pair = Pair(fs.Rprop, options)
    lo, hi = options.get("step_sizes", (1e-6, 50))
    before = pair.ours.state["0"]["prev_sign"].copy()
    flips = zeros = at_lo = at_hi = 0
    for t, grad in enumerate(gradients(), 1):
        sign = np.sign(-grad if options.get("maximize") else grad)
        flips += int((sign * before < 0).sum())
        pair.step(grad)
        (_, ours, theirs), (_, step_size, their_size), (_, before, prev) = pair.arrays(prev_sign="prev")
        before = before.copy()
        assert ours.tobytes() == theirs.tobytes(), t
        assert step_size.tobytes() == their_size.tobytes(), t
        assert (before == np.sign(prev)).all(), t
        zeros += int((sign == 0).sum())
        at_lo += int((step_size == lo).sum())
        at_hi += int((step_size == hi).sum())
    assert flips > 300
    assert zeros > 300
    if {"lr", "etas", "step_sizes"}.isdisjoint(options):
        assert at_lo > 50
        assert at_hi > 10
