"""The norm of all gradients: the same bits everywhere, and right to the last bit or the one before."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Guarded, difference, threads
from registry import (
    DTYPES,
    ISAS,
    LAYOUT,
    LAYOUTS,
    MIDDLE_LENGTHS,
    SMALL_SHAPES,
    THREADS,
    Array,
    Layout,
    short_lengths,
    specials,
)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_isa = pytest.mark.parametrize("isa", ISAS)


def norm(grads: list[Array | None], shapes: Any = None, **options: Any) -> float:
    """Return the norm that a step reports for ``clip_norm``."""
    params = [np.zeros(3, np.float32) if grad is None else np.zeros(grad.shape, grad.dtype) for grad in grads]
    report = fs.RMSprop(params).step(grads, clip_norm=1.0, **options)
    assert isinstance(report.grad_norm, float)
    return report.grad_norm


def laid_out(values: Array, layout: Layout) -> Array:
    array = Guarded(values.shape, values.dtype, layout).array
    array[...] = values
    return array


def same(a: float, b: float) -> bool:
    return not difference(np.float64(a)[...], np.float64(b)[...])


@each_isa
@each_dtype
def test_equals_the_reference(dtype: np.dtype[Any], isa: str) -> None:
    """Lengths, shapes and layouts, long ones with 1, 2 and 3 threads: the bits of ``reference.norm``."""
    rng = np.random.default_rng(1)
    with fs.use_isa(isa):
        for n in (*short_lengths(dtype), *MIDDLE_LENGTHS, 100_003):
            grad = rng.standard_normal(n).astype(dtype)
            wanted = fs.reference.norm([grad])
            for count, layout in itertools.product(
                THREADS if n > 1000 else (1 + n % 3,), LAYOUTS if n == 33_001 else LAYOUTS[:1]
            ):
                own = laid_out(grad, layout)
                with threads(count):
                    assert norm([own]) == wanted, f"{dtype} {isa} {n=} {layout}, {count} threads"
        for shape, layout in itertools.product((*SMALL_SHAPES, (3, 4, 5), (130, 150, 2)), LAYOUTS):
            own = laid_out(rng.standard_normal(shape).astype(dtype), layout)
            assert norm([own]) == fs.reference.norm([own]), f"{dtype} {isa} {shape} {layout}"
        # These are read in bands, which threads share and blocks cross. Rows have 2,048 bytes, or more than a band
        # holds.
        for k, shape in enumerate(((331, 307), (70, 512), (3, 45, 67), (6, 70_001))):
            for layout in (LAYOUT["F"], LAYOUT["F, first axis reversed"], LAYOUT["last axis outermost"]):
                own = laid_out(rng.standard_normal(shape).astype(dtype), layout)
                own = own if own.ndim < 3 else own.swapaxes(0, 1)
                with threads(THREADS[k % len(THREADS)]):
                    assert norm([own]) == fs.reference.norm([own]), f"{dtype} {isa} {shape} {layout}"


@each_dtype
def test_gradients_that_are_broadcast(dtype: np.dtype[Any]) -> None:
    """Strides of 0 count each element as often as it appears."""
    rng = np.random.default_rng(2)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((), (40, 50)), ((40, 1), (40, 50)), ((50,), (40, 50)), ((1, 1, 70), (30, 3, 70)), ((30, 1, 70), (30, 50, 70)),
    ]  # fmt: skip
    for small, shape in shapes:
        grad = np.broadcast_to(rng.standard_normal(small).astype(dtype), shape)
        for own, options in itertools.product(
            (grad, grad.T, grad[::-1]), ({}, {"grad_scale": 3.0}, {"clip_value": 0.5})
        ):
            found = norm([own], **options)
            assert found == fs.reference.norm([own], **options), (small, shape, options)


def test_lists_of_gradients() -> None:
    """Both types, many small and few large gradients, None and empty ones: the reference's bits for any number of
    threads and instruction set. The order of the list counts, None does not."""
    rng = np.random.default_rng(3)
    lists: list[list[Any]] = [
        [rng.standard_normal(n).astype(DTYPES[n % 2]) for n in range(300)],
        [rng.standard_normal((n, 10)).T for n in (1000, 1, 5000, 0, 37)],
        [None, rng.standard_normal(5), None, rng.standard_normal(100_000).astype(np.float32), None],
        [None, None],
        [np.zeros(0)],
    ]
    for grads in lists:
        expected = fs.reference.norm([grad for grad in grads if grad is not None])
        for isa, count in itertools.product(ISAS, THREADS):
            with fs.use_isa(isa), threads(count):
                assert norm(grads) == expected, (isa, count)
    assert norm([None, None]) == 0.0


@each_dtype
def test_close_to_the_exact_sum(dtype: np.dtype[Any]) -> None:
    """On ordinary data the result is within one unit in the last place of the exact root."""
    rng = np.random.default_rng(4)
    for n in (1, 2, 15, 17, 1000, 10_000, 100_003):
        for grad in (rng.standard_normal(n), rng.uniform(0, 1, n), np.exp(3 * rng.standard_normal(n))):
            own = grad.astype(dtype)
            exact = math.sqrt(math.fsum(float(x) ** 2 for x in own))
            assert abs(norm([own]) - exact) <= math.ulp(exact), n
    assert norm([np.array([3, 4], dtype)]) == 5.0


@each_isa
@each_dtype
def test_after_unscaling_and_clipping(dtype: np.dtype[Any], isa: str) -> None:
    """It is the norm of the gradients after ``grad_scale`` and ``clip_value``."""
    rng = np.random.default_rng(5)
    grads: list[Any] = [rng.standard_normal(shape).astype(dtype) for shape in ((1, 4), (3000,), (70, 30))]
    grads[2] = grads[2].T
    options: list[dict[str, float]] = [
        {"grad_scale": 3.0}, {"clip_value": 0.3}, {"grad_scale": 0.1, "clip_value": 0.3}, {"grad_scale": 1e30},
        {"clip_value": 1e300},
    ]  # fmt: skip
    with fs.use_isa(isa):
        for chosen in options:
            found = norm(grads, **chosen)
            assert found == fs.reference.norm(grads, **chosen), chosen
            scaled = [g.astype(np.float64) / chosen.get("grad_scale", 1) for g in grads]
            limit = chosen.get("clip_value", np.inf)
            plain = math.sqrt(sum(float((np.clip(g, -limit, limit) ** 2).sum()) for g in scaled))
            assert found == pytest.approx(plain, rel=1e-6)
            for layout in LAYOUTS:
                own = laid_out(rng.standard_normal((23, 29, 3)).astype(dtype), layout)
                assert norm([own], **chosen) == fs.reference.norm([own], **chosen), (chosen, layout)


@each_isa
@each_dtype
def test_special_values(dtype: np.dtype[Any], isa: str) -> None:
    """Each special value by itself, among others and in pairs: NaN and inf come through, and subnormals are not
    flushed."""
    with fs.use_isa(isa):
        for x, y in itertools.product(specials(dtype), repeat=2):
            own = np.array([x] * 40 + [y] if x != y else [1.0] * 1100 + [x]).astype(dtype)
            assert same(norm([own]), fs.reference.norm([own])), (x, y)
            assert same(norm([own], clip_value=2.0), fs.reference.norm([own], clip_value=2.0)), (x, y)
    with fs.use_isa(isa):
        assert norm([np.array([np.inf], dtype)]) == math.inf
        assert math.isnan(norm([np.array([1, np.nan], dtype)]))
        smallest = np.finfo(np.float32).smallest_subnormal
        assert norm([np.array([smallest], dtype)]) == float(smallest)
        assert norm([np.full(4, 1e30, dtype)]) == 2 * float(dtype.type(1e30))


@pytest.mark.parametrize("magnitude", [1e-200, 1e-170, 1e-160, 1e154, 1e160, 1e200, 1e300])
def test_squares_beyond_the_range_of_double(magnitude: float) -> None:
    """The norm overflows or vanishes only where the true norm does."""
    grads = [np.full(8, magnitude), np.full((3, 5), -2 * magnitude), np.zeros(3), np.ones(2, np.float32)]
    if magnitude < 1:
        grads[-1][...] = 0
    report = fs.RMSprop([np.ones_like(grad) for grad in grads], verify="every").step(grads, clip_norm=1.0)
    assert report.nonfinite == ()
    np.testing.assert_allclose(report.grad_norm, magnitude * math.sqrt(8 + 15 * 4), rtol=1e-14)


def test_a_norm_beyond_the_largest_double() -> None:
    """It is inf, and no parameter is reported."""
    report = fs.RMSprop([np.ones(3)]).step([np.full(3, 1.7e308)], clip_norm=1.0)
    assert report.grad_norm == math.inf
    assert report.nonfinite == ()


def test_an_infinite_clip_norm_only_reports() -> None:
    param, plain, grad = np.ones(3), np.ones(3), np.array([3.0, 0.0, 4.0])
    assert fs.RMSprop([param]).step([grad], clip_norm=math.inf).grad_norm == 5.0
    fs.RMSprop([plain]).step([grad])
    assert param.tobytes() == plain.tobytes()


def test_the_names_of_nonfinite_gradients() -> None:
    """Name the parameters whose gradient has an inf or a NaN, in any block, also if others have no gradient."""
    bad = np.ones(5000)
    bad[4321] = np.nan
    optimizer = fs.RMSprop([np.zeros(2), np.zeros(3), np.zeros(5000), np.zeros(1)])
    report = optimizer.step([None, np.ones(3), bad, None], nonfinite="skip")
    assert (report.skipped, report.nonfinite) == (True, ("2",))


def test_the_order_counts() -> None:
    """A sum in another order has other bits, so the comparisons above mean something."""
    grad = np.exp(5 * np.random.default_rng(6).standard_normal(5000))
    assert len({norm([np.roll(grad, k)]) for k in range(20)}) > 1
