"""Numbers that others published, and tables worked out by hand: none of them made by this package.

Each rule's are in its entry of the registry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from registry import BY_HAND, BY_HAND_GRADS, BY_HAND_LOSSES, ENTRIES, Entry, Oracle

ROWS = [
    pytest.param(entry, oracle, id=f"{entry.rule}: {oracle.source}") for entry in ENTRIES for oracle in entry.oracles
]


@pytest.mark.parametrize(("entry", "oracle"), ROWS)
def test_published_numbers(entry: Entry, oracle: Oracle) -> None:
    cls = getattr(fs, entry.class_name)
    for dtype in oracle.dtypes:
        p = np.array(oracle.start, dtype)
        opt = cls.like(oracle.like, p, **oracle.options) if oracle.like else cls(p, **oracle.options)
        for t in range(1, max(oracle.published) + 1):
            opt.step(oracle.grads(t, p), **({"loss": oracle.losses[t - 1]} if oracle.losses else {}))
            published = oracle.published.get(t, {})
            for name, numbers in (published if isinstance(published, dict) else {"param": published}).items():
                found = p if name == "param" else opt.state["0"][name]
                np.testing.assert_allclose(
                    found, np.array(numbers), rtol=oracle.rtol, atol=oracle.atol, err_msg=f"{name} after step {t}"
                )


def test_the_tables_differ() -> None:
    """The variants of Rprop, and the place of eps, do show in the numbers above."""
    assert len({table[0] for table in BY_HAND.values()}) == len(BY_HAND)
    x, y = np.ones(3), np.ones(3)
    for cls, lr in ((fs.Adagrad, 0.1), (fs.RMSprop, 0.01)):
        inside, outside = cls.like("lasagne", x, lr), cls.like("torch", y, lr)
        inside.step(np.array([0.2, 0.4, 0.6]))
        outside.step(np.array([0.2, 0.4, 0.6]))
        assert np.abs(x - y).max() > 1e-7


@pytest.mark.parametrize(
    ("name", "variant"),
    [("default", "rprop-"), ("torch", "irprop-"), ("shark", "irprop+"), ("encog", "rprop+"),
     ("opencv", "irprop-move"), ("neuralnet", "rprop+")],
)  # fmt: skip
def test_rprop_dialects_follow_the_table_by_hand(name: str, variant: str) -> None:
    """The signs of the table in each dialect: which way it moves where the sign flipped is its formula."""
    p = np.array([8.0])
    opt = fs.Rprop.like(name, p, step_sizes=(0.0, 64.0))
    moves, sizes = [], []
    before = 8.0
    for g, loss in zip(BY_HAND_GRADS, BY_HAND_LOSSES, strict=True):
        opt.step(np.array([g]), loss=loss)
        moves.append(float(np.sign(p[0] - before)))
        sizes.append(float(opt.state["0"]["step_size"][0]))
        before = float(p[0])
    param, _, _ = BY_HAND[variant]
    assert moves == [float(np.sign(b - a)) for a, b in zip((8.0, *param), param, strict=False)]
    lr = fs.dialects()["rprop"][name]["defaults"]["lr"]
    growth = [1, 1.2, 1.44, 0.72] + ([0.36, 0.18, 0.18, 0.18] if variant == "rprop-" else [0.72, 0.36, 0.36, 0.36])
    np.testing.assert_allclose(sizes, lr * np.array(growth), rtol=1e-14)


CONSTANT = np.random.default_rng(0).uniform(0.1, 3, 400).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.99}, {"eps_inside_sqrt": True}, {"momentum": 0.9}, {"bias_correction": True},
     {"initial_square_avg": 1.0}],
    ids=str,
)  # fmt: skip
def test_centered_stays_finite_with_a_constant_gradient(options: dict[str, Any]) -> None:
    """10,000 steps in float32. Computed as ``v - m^2``, the variance would become negative within 140."""
    g = np.concatenate([CONSTANT, -CONSTANT, 10.0 ** np.arange(-12.0, 13.0, dtype=np.float32)])
    p = np.zeros_like(g)
    opt = fs.RMSprop(p, 1e-4, centered=True, **options)
    largest = np.zeros_like(g)
    for _ in range(10_000):
        opt.step(g)
        largest = np.maximum(largest, np.abs(p))  # NaN stays NaN
    for array in (p, largest, *opt.state["0"].values()):
        assert np.isfinite(array).all()
    assert (np.sign(p) == -np.sign(g)).all()
    variance, m = opt.state["0"]["variance"], opt.state["0"]["grad_avg"]
    np.testing.assert_allclose(m, g, rtol=2e-5)
    assert (variance >= 0).all()
    assert (variance <= 1e-9 * g.astype(np.float64) ** 2 + 1e-30).all()


@pytest.mark.parametrize("options", [{}, {"bias_correction": True}, {"momentum": 0.9}], ids=str)
@pytest.mark.parametrize("ratio", [10, 100, 1000, 3000])
def test_centered_in_float32_is_exact_where_the_mean_is_large(ratio: int, options: dict[str, Any]) -> None:
    """Gradients of deviation 1 around a large mean: 2,000 steps in float32 end within 1% of those in float64."""
    ends = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(ratio)
        p = np.zeros(8, dtype)
        opt = fs.RMSprop(p, 1e-3, alpha=0.99, centered=True, **options)
        for _ in range(2000):
            opt.step((ratio + rng.standard_normal(8)).astype(dtype))
        ends.append(p.astype(np.float64))
    np.testing.assert_allclose(ends[0], ends[1], rtol=0.01)


def test_without_the_clamp_it_would_not_stay_finite() -> None:
    """The same formula in NumPy: the root would be one of a negative number within 140 steps, for some of the above."""
    v, m, lowest = (np.zeros_like(CONSTANT) for _ in range(3))
    alpha, rest = np.float32(0.9), np.float32(0.1)
    for _ in range(140):
        v = alpha * v + rest * CONSTANT * CONSTANT
        m = alpha * m + rest * CONSTANT
        lowest = np.minimum(lowest, v - m * m)
    assert (lowest < 0).sum() > 10
