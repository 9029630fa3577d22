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


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.99}, {"eps_inside_sqrt": True}, {"momentum": 0.9}, {"bias_correction": True},
     {"initial_square_avg": 1.0}],
    ids=str,
)  # fmt: skip
def test_centered_stays_finite_with_a_constant_gradient(options: dict[str, Any]) -> None:
    """2,000 steps in float32, in which the variance goes to 0 and must not become negative."""
    some = np.random.default_rng(0).uniform(0.1, 3, 400).astype(np.float32)
    g = np.concatenate([some, -some, 10.0 ** np.arange(-12.0, 13.0, dtype=np.float32)])
    p = np.zeros_like(g)
    opt = fs.RMSprop(p, 1e-4, centered=True, **options)
    for _ in range(2000):
        opt.step(g)
        assert np.isfinite(p).all()
    assert (np.sign(p) == -np.sign(g)).all()
    assert (opt.state["0"]["variance"] >= 0).all()
    np.testing.assert_allclose(opt.state["0"]["grad_avg"], g, rtol=2e-5)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 100.0, 1000.0, 3000.0])
def test_centered_with_a_mean_that_is_large_beside_the_deviation(mean: float) -> None:
    """2,000 steps in float32 with gradients of deviation 1 are within 1% of the published formula, v - m^2 of two
    averages, in float64: in float32 that difference would cancel."""
    p, exact, v, m = np.zeros(20, np.float32), np.zeros(20), np.zeros(20), np.zeros(20)
    opt = fs.RMSprop(p, 1e-3, alpha=0.99, centered=True)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        g = (mean + rng.standard_normal(20)).astype(np.float32)
        opt.step(g)
        x = g.astype(float)
        v, m = 0.99 * v + 0.01 * x * x, 0.99 * m + 0.01 * x
        exact -= 1e-3 * x / (np.sqrt(v - m * m) + 1e-8)
    np.testing.assert_allclose(p, exact, rtol=0.01, atol=1e-3)
