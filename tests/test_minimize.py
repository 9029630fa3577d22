"""``minimize`` and ``scipy_method``: published minima, bounds, stops, and the contract of SciPy's ``minimize``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.typing import Method

ROSENBROCK = [-1.2, 1.0]


def rosenbrock(x: Any) -> tuple[Any, Any]:
    valley = x[1] - x[0] ** 2
    return 100 * valley**2 + (1 - x[0]) ** 2, np.array([-400 * valley * x[0] - 2 * (1 - x[0]), 200 * valley])


def beale(p: Any) -> tuple[Any, Any]:
    x, y = p
    r = [c - x + x * y**k for c, k in ((1.5, 1), (2.25, 2), (2.625, 3))]
    along_x = sum(2 * each * (y**k - 1) for k, each in enumerate(r, 1))
    along_y = sum(2 * each * x * k * y ** (k - 1) for k, each in enumerate(r, 1))
    return sum(each**2 for each in r), np.array([along_x, along_y])


def bowl(x: Any) -> tuple[Any, Any]:
    return (x * x).sum() / 2, x


def hs3(x: Any) -> tuple[Any, Any]:
    d = x[1] - x[0]
    return x[1] + 1e-5 * d * d, np.array([-2e-5 * d, 1 + 2e-5 * d])


def hs4(x: Any) -> tuple[Any, Any]:
    return (x[0] + 1) ** 3 / 3 + x[1], np.array([(x[0] + 1) ** 2, 1.0])


def hs5(x: Any) -> tuple[Any, Any]:
    c, d = np.cos(x[0] + x[1]), x[0] - x[1]
    return np.sin(x[0] + x[1]) + d * d - 1.5 * x[0] + 2.5 * x[1] + 1, np.array([c + 2 * d - 1.5, c - 2 * d + 2.5])


# ---------------------------------------------------------------------------------------------------- published minima

# Rosenbrock 1960; Beale 1958. HS: Hock & Schittkowski 1981, Test examples for nonlinear programming codes, problems 1
# to 5, with start, bounds, minimum and its place as printed there.
A = math.sqrt(598 / 1200)
PUBLISHED = {
    "rosenbrock": (rosenbrock, ROSENBROCK, None, (1, 1), 0),
    "beale": (beale, [1.0, 1.0], None, (3, 0.5), 0),
    "hs1": (rosenbrock, [-2.0, 1.0], [(None, None), (-1.5, None)], (1, 1), 0),
    "hs2": (rosenbrock, [-2.0, 1.0], [(None, None), (1.5, None)],
            (2 * A * math.cos(math.acos(1 / (400 * A**3)) / 3), 1.5), 0.0504261879),
    "hs3": (hs3, [10.0, 1.0], [(None, None), (0, None)], (0, 0), 0),
    "hs4": (hs4, [1.125, 0.125], [(1, None), (0, None)], (1, 0), 8 / 3),
    "hs5": (hs5, [0.0, 0.0], [(-1.5, 4), (-3, 3)], (-math.pi / 3 + 0.5, -math.pi / 3 - 0.5),
            -math.sqrt(3) / 2 - math.pi / 3),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("method", ["irprop+", pytest.param("irprop-", marks=pytest.mark.slow)])
def test_published_minima(name: str, method: Any) -> None:
    """Problem 2 has another local minimum, at which a run from the printed start may end, so it starts nearer."""
    fun, x0, bounds, place, minimum = PUBLISHED[name]
    res = fs.minimize(fun, [1.0, 2.0] if name == "hs2" else x0, method, bounds=bounds, gtol=1e-9)
    assert res.success, res.message
    assert res.fun == pytest.approx(minimum, abs=2e-6)
    np.testing.assert_allclose(res.x, place, atol=2e-3)


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method(method: Any) -> None:
    """Each reduces the loss of a plain bowl by a million and stops by itself.

    GRprop does not: if the sum of the others points uphill, the chosen element gets the smallest step, again and again.
    """
    res = fs.minimize(bowl, [3.0, -2.0], method, lr=0.5)
    assert res.success, res.message
    assert res.fun < (6.5 if method.startswith("grprop") else 6.5e-6)


def watched(fun: Any, points: list[Any]) -> Any:
    """Return the function; it also notes the points at which it is asked."""
    return lambda x: (points.append(x), fun(x))[1]


def at(*points: tuple[float, float]) -> Any:
    """Return a function of one element with these losses and gradients in turn; the last ones repeat."""
    rest = list(points)

    def fun(x: Any) -> tuple[float, Any]:
        loss, gradient = rest.pop(0) if len(rest) > 1 else rest[0]
        return loss, np.array([gradient])

    return fun


# ---------------------------------------------------------------------------------------------------------- iterations


@pytest.mark.parametrize("bounds", [None, [(-0.5, 2), (0.25, 0.75)]], ids=["free", "bounded"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", ["irprop+", "irprop-", "rprop+", "rprop-"])
def test_points_are_those_of_the_reference(variant: Any, dtype: Any, bounds: Any) -> None:
    """Compare bits: the projected gradient, the reference's step, the clip, and the size of a shortened step."""
    points: list[Any] = []
    x0 = np.array(ROSENBROCK, dtype)
    fs.minimize(watched(rosenbrock, points), x0, variant, bounds=bounds, maxiter=200)
    assert len(points) > 30
    lo, hi = np.array(bounds or [(-np.inf, np.inf)] * 2, dtype).T
    x = x0.clip(lo, hi)
    D, sign, last = np.full(2, 0.01, dtype), np.zeros(2, np.int8), np.inf
    for point in points:
        np.testing.assert_array_equal(x, point, strict=True)
        loss, g = rosenbrock(x)
        g = g.astype(dtype)
        g[((x <= lo) & (g > 0)) | ((x >= hi) & (g < 0))] = 0
        before = x.copy()
        fs.reference.rprop_(x, g, D, sign, variant=variant, loss_increased=bool(loss > last))
        last = loss
        cut = (x < lo) | (x > hi)
        x = x.clip(lo, hi)
        D[cut] = np.minimum(D, abs(x - before))[cut]


def test_a_step_back_is_the_move_that_was_made() -> None:
    """The move to the bound is 0.2 long, not 0.5, so iRprop+ reverts 0.2."""
    points: list[Any] = []
    fs.minimize(watched(at((1.0, -1.0), (2.0, 1.0)), points), [0.8], bounds=[(None, 1)], lr=0.5, maxiter=2)
    assert np.concatenate(points) == pytest.approx([0.8, 1.0, 0.8], abs=1e-15)


def test_a_bound_costs_no_iterations() -> None:
    """If all elements are held at their bounds, the projected gradient is 0, and nothing shrinks step by step."""
    res = fs.minimize(lambda x: (x.sum(), np.ones(3)), [5.0, 3.0, 1.0], bounds=[(0, None)] * 3, lr=10.0)
    assert (res.nit, res.status, res.step_size) == (1, 0, 0.0)
    np.testing.assert_array_equal(res.x, 0)


def test_elements_at_a_bound_do_not_keep_the_run_alive() -> None:
    """The step size of a held element stays large, but no step uses it."""
    target = np.array([-5.0, 0.3])
    res = fs.minimize(lambda x: (((x - target) ** 2).sum(), 2 * (x - target)), [4.0, 1.0], bounds=[(0, 9)] * 2,
                      lr=1.0, gtol=0, ftol=0, patience=1000)  # fmt: skip
    assert "xtol" in res.message
    np.testing.assert_allclose(res.x, [0, 0.3], atol=1e-6)


# -------------------------------------------------------------------------------------------------------- what is given


@dataclasses.dataclass
class Model:
    w: Any
    layers: list[Any]


def test_containers() -> None:
    """The function gets the containers of x0 and returns gradients in them. x0 is only read."""
    x0 = {"model": Model(np.ones((2, 2), np.float32), [np.full(3, 2.0)]), "bias": np.full((), 4)}

    def fun(x: Any) -> tuple[Any, Any]:
        assert isinstance(x["model"], Model)
        assert x["bias"].shape == ()
        w, layer, bias = x["model"].w, x["model"].layers[0], x["bias"]
        loss = (w**2).sum() + (layer**2).sum() + (bias - 3) ** 2
        grads = {"bias": 2 * (bias - 3), "model": Model(2 * w.astype(np.float64), [2 * layer])}
        w[...], layer[...], bias[...] = np.nan, np.nan, np.nan  # copies
        return loss, grads

    res = fs.minimize(fun, x0, bounds={"model.w": (0.5, None), "model.layers.0": [(None, None), (-1, 0), (1, 2)]})
    assert res.success
    assert (res.x["model"].w == np.full((2, 2), 0.5)).all()
    assert res.x["model"].w.dtype == res.jac["model"].w.dtype == np.float32
    np.testing.assert_allclose(res.x["model"].layers[0], [0, 0, 1], atol=1e-5)
    assert res.x["bias"].dtype == np.float64
    assert abs(res.x["bias"] - 3) < 1e-5
    assert (x0["model"].w == 1).all()
    assert x0["bias"] == 4


def test_a_gradient_that_is_none_moves_nothing() -> None:
    res = fs.minimize(lambda x: ((x[0] ** 2).sum(), [2 * x[0], None]), [np.ones(2), np.ones(3)])
    assert res.fun < 1e-9
    assert (res.x[1] == 1).all()


@pytest.mark.parametrize(
    ("x0", "dtype", "shape"),
    [
        ([3, 2], np.float64, (2,)),
        ((3.0, 2.0), np.float64, (2,)),
        ([[1.0], [2.0]], np.float64, (2, 1)),
        (np.ones(2, np.float32), np.float32, (2,)),
        (np.ones((2, 3), np.int8), np.float64, (2, 3)),
        (np.ones((4, 3))[::2, ::-1], np.float64, (2, 3)),
        (2.5, np.float64, ()),
    ],
)
def test_types_and_shapes_of_x0(x0: Any, dtype: Any, shape: Any) -> None:
    """float32 stays float32, gradients of another float type are cast, and lists are accepted."""
    seen = set()

    def fun(x: Any) -> tuple[float, Any]:
        seen.add((x.dtype.type, x.shape))
        return float((x.astype(np.float64) ** 2).sum()), (2.0 * x.astype(np.float64)).tolist()

    res = fs.minimize(fun, x0)
    assert seen == {(dtype, shape)}
    assert {each.dtype.type for each in (res.x, res.jac, res.x_last)} == {dtype}
    assert {each.shape for each in (res.x, res.jac, res.x_last)} == {shape}
    assert res.success


class Bounds(SimpleNamespace):
    """Like SciPy's class: ``lb`` and ``ub``."""


FORMS = {
    "pairs": [(0, 0.9), (None, None), (-1.5, None)],
    "array": np.array([(0, 0.9), (-np.inf, np.inf), (-1.5, np.inf)]),
    "object": Bounds(lb=[0, -np.inf, -1.5], ub=[0.9, np.inf, np.inf]),
    "mapping": {"0": [(0, 0.9), (None, None), (-1.5, None)]},
}
FOR_ALL = {"a pair": (-1, 0.9), "object": Bounds(lb=-1, ub=[0.9]), "pairs": [(-1, 0.9)] * 3}


@pytest.mark.parametrize("forms", [FORMS, FOR_ALL])
def test_forms_of_bounds(forms: dict[str, Any]) -> None:
    """All forms give the same run."""
    target = np.array([2.0, 0.5, -3.0])
    found = [
        fs.minimize(lambda x: (((x - target) ** 2).sum(), 2 * (x - target)), np.zeros(3), bounds=bounds)
        for bounds in forms.values()
    ]
    assert all(res.nit == found[0].nit and (res.x == found[0].x).all() for res in found)
    np.testing.assert_allclose(found[0].x, [0.9, 0.5, -1.5 if forms is FORMS else -1], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- stops


def test_results_are_those_of_the_best_point() -> None:
    """The loss rises again: x, fun and jac are those of the lowest point, x_last is the last point."""
    seen: list[Any] = []
    fun = at((5.0, 1.0), (3.0, 2.0), (4.0, 3.0), (6.0, 4.0))
    res = fs.minimize(watched(fun, seen), [1.0], maxiter=3)
    assert (res.fun, res.nit, res.nfev, res.njev, res.status, res.success) == (3.0, 3, 4, 4, 1, False)
    assert (res.x, res.jac, res.x_last) == (seen[1], [2.0], seen[3])


def stop(*_: Any) -> None:
    raise StopIteration


@pytest.mark.parametrize(
    ("points", "arguments", "expected"),
    [
        ([(math.nan, 1.0)], {}, (3, 0, "NaN")),
        ([(1.0, math.nan)], {}, (3, 0, "NaN")),
        ([(1.0, -math.inf)], {}, (3, 0, "NaN")),
        ([(1.0, 1.0), (math.nan, 1.0)], {"callback": stop}, (3, 1, "NaN")),
        ([(1.0, 1e300)], {}, (3, 0, "NaN")),  # in float32
        ([(math.inf, 1.0), (1.0, 0.0)], {}, (0, 1, "gtol")),
        ([(0.5, 0.0)], {"target": 0.5}, (0, 0, "target")),
        ([(1.0, 1.0), (0.4, 0.0)], {"target": 0.5, "callback": stop}, (0, 1, "target")),
        ([(1.0, 1e-5)], {"gtol": 1e-5, "maxiter": 0}, (0, 0, "gtol")),
        ([(1.0, 1.0), (0.5, 1e-6)], {"callback": stop}, (0, 1, "gtol")),
        ([(1.0, 1.0)], {"lr": 0.25, "xtol": 0.25, "callback": stop}, (0, 1, "xtol")),
        ([(1.0, 1.0)], {"patience": 3, "gtol": 0, "xtol": 0}, (0, 3, "ftol")),
        ([(1.0, 1.0)], {"patience": 1, "callback": stop}, (0, 1, "ftol")),
        ([(2.0, 1.0), (1.0, 1.0)], {"patience": 3}, (0, 4, "ftol")),
        ([(2.0, 1.0), (1.0, 1.0)], {"patience": 3, "ftol": 1.0}, (0, 3, "ftol")),
        ([(1.0, 1.0)], {"callback": stop, "maxiter": 1}, (99, 1, "StopIteration")),
        ([(1.0, 1.0)], {"maxiter": 7}, (1, 7, "maxiter")),
        ([(1.0, 1.0)], {"maxiter": 0, "callback": stop}, (1, 0, "maxiter")),
    ],
)
def test_stops_in_their_order(points: Any, arguments: dict[str, Any], expected: tuple[int, int, str]) -> None:
    res = fs.minimize(at(*points), np.array([1.0], np.float32), **arguments)
    assert (res.status, res.nit) == expected[:2]
    assert expected[2] in res.message
    assert res.success is (res.status == 0)


@pytest.mark.parametrize("xtol", [1e-3, 1e-5, 3e-7])
def test_xtol_is_reached_in_float32(xtol: float) -> None:
    """The smallest step size, rounded to float32, may be larger than xtol."""
    res = fs.minimize(rosenbrock, np.array(ROSENBROCK, np.float32), xtol=xtol, gtol=0, ftol=0, patience=10_000)
    assert "xtol" in res.message
    assert res.step_size <= 1.000001 * xtol * max(1, abs(res.x_last).max())


@pytest.mark.parametrize("method", ["rmsprop", "adagrad"])
def test_rules_without_step_sizes_are_judged_by_their_moves(method: Any) -> None:
    seen: list[Any] = []
    res = fs.minimize(watched(bowl, seen), [2.0, -1.0], method, gtol=0, xtol=0.05, lr=0.25)
    moves = [abs(new - old).max() for old, new in itertools.pairwise(seen)]
    assert "xtol" in res.message
    assert res.step_size == moves[-1]
    early = [move <= 0.05 * max(1, abs(x).max()) for move, x in zip(moves[:-1], seen[1:-1], strict=True)]
    assert not any(early), "it should have stopped before"


@pytest.mark.parametrize("through_scipy", [False, True])
def test_both_forms_of_callbacks(through_scipy: bool) -> None:
    """They are called after each iteration with copies, and not at x0."""
    points: list[Any] = []
    results: list[Any] = []

    def with_point(x: Any) -> None:
        points.append(x.copy())
        x[...] = np.nan

    def with_result(intermediate_result: Any) -> None:
        results.append(intermediate_result)
        intermediate_result.jac[...] = np.nan
        if len(results) == 3:
            raise StopIteration

    def run(**arguments: Any) -> Any:
        if through_scipy:
            optimize = pytest.importorskip("scipy.optimize")
            maxiter = arguments.pop("maxiter", 1000)
            return optimize.minimize(rosenbrock, ROSENBROCK, jac=True, method=fs.scipy_method(),
                                     options={"maxiter": maxiter}, **arguments)  # fmt: skip
        return fs.minimize(rosenbrock, ROSENBROCK, **arguments)

    assert run(callback=with_point, maxiter=5).nit == len(points) == 5
    assert run(callback=points.append, maxiter=2).nit == 2
    res = run(callback=with_result)
    assert (res.nit, res.status) == (3, 99)
    assert [each.nit for each in results] == [1, 2, 3]
    for each, point in zip(results, points, strict=False):
        np.testing.assert_array_equal(each.x, point)
        assert each.fun == rosenbrock(point)[0]


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "irprop"}, ValueError, r"method: expected one of .*, got 'irprop' \(did you mean 'irprop"),
        ({"jac": None}, ValueError, "jac: expected True .* or a function that returns the gradient, got None"),
        ({"fun": lambda x: 1.0}, TypeError, r"fun: expected a pair \(loss, gradient\), got float"),
        ({"fun": lambda x: (x, x)}, ValueError, r"fun: expected the loss, one number, got an array of shape \(2,\)"),
        ({"fun": lambda x: (1.0, x[:1])}, ValueError, r"gradient of parameter '0': expected shape \(2,\), got \(1,\)"),
        ({"fun": lambda x: (1.0, 1j * x)}, TypeError, "complex128"),
        ({"x0": {"a": np.ones(1)}, "fun": lambda x: (1.0, {"b": x["a"]})}, ValueError, r"gradient: .*\['a'\].*\['b'\]"),
        ({"x0": {"a": 1.0}}, TypeError, "x0: 'a': expected an array of its own, got 1.0"),
        ({"x0": [ONE := np.ones(2), ONE]}, TypeError, "x0: '0': expected an array of its own"),
        ({"x0": np.ones(2, complex)}, TypeError, "complex128"),
        ({"x0": np.ma.ones(2)}, TypeError, "masked array"),
        ({"x0": {}}, ValueError, "expected at least one array"),
        ({"learning_rate": 0.1}, TypeError, r"unexpected keyword argument 'learning_rate' \(did you mean 'lr'\?\)"),
        ({"variant": "rprop-"}, TypeError, "unexpected keyword argument 'variant'"),
        ({"alpha": 0.5}, TypeError, "the options of 'irprop\\+' are lr, etas, step_sizes"),
        ({"lr": -1.0}, ValueError, "lr: expected"),
        ({"maxiter": -1}, ValueError, "maxiter: expected a number >= 0, got -1"),
        ({"xtol": math.nan}, ValueError, "xtol: expected a number >= 0, got nan"),
        ({"patience": 0}, ValueError, "patience: expected a number >= 1, got 0"),
        ({"bounds": [(0, 1)]}, ValueError, r"bounds of parameter '0': expected a pair \(lo, hi\), or one for each of"),
        ({"bounds": [(0, 1), (2, 1)]}, ValueError, r"expected lo <= hi, got 2.0 and 1.0 at \(1,\)"),
        ({"bounds": Bounds(lb=[0, 0, 0], ub=1)}, ValueError, r"shapes that broadcast to \(2,\), got \(3,\) and \(\)"),
        ({"bounds": {"1": (0, 1)}}, ValueError, "bounds: no parameter is called '1'"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"fun": rosenbrock, "x0": np.array(ROSENBROCK), **arguments}
    with pytest.raises(error, match=message):
        fs.minimize(**given)


def test_many_arrays_are_looked_through_once() -> None:
    """The check of ``x0`` takes time in proportion to its arrays: no more than a few copies of them."""
    x0 = [*(np.ones(1) for _ in range(10_000)), 1.0]

    def seconds(call: Callable[..., object], *arguments: Any) -> float:
        begin = time.process_time()
        with contextlib.suppress(TypeError):
            call(*arguments)
        return time.process_time() - begin

    assert seconds(fs.minimize, rosenbrock, x0) < 20 * seconds(copy.deepcopy, x0)


def test_errors_of_the_function_pass() -> None:
    def fun(x: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fs.minimize(fun, [1.0])


# ---------------------------------------------------------------------------------------------------------------- SciPy

ATTRIBUTES = "x fun jac nit nfev njev status success message x_last step_size"


def test_the_result_is_the_same_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    res = fs.minimize(rosenbrock, ROSENBROCK, maxiter=3)
    assert type(res) is optimize.OptimizeResult
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    bare = fs.minimize(rosenbrock, ROSENBROCK, maxiter=3)
    assert type(bare) is SimpleNamespace
    assert list(vars(bare)) == list(res) == ATTRIBUTES.split()
    assert all(np.array_equal(getattr(bare, name), getattr(res, name)) for name in vars(bare))


@pytest.mark.parametrize("form", ["old", "new", "none"])
@pytest.mark.parametrize("jac", ["function", "pair"])
def test_through_scipy(form: str, jac: str) -> None:
    """The run equals ours, with each form of bounds and gradients, and with args."""
    optimize = pytest.importorskip("scipy.optimize")
    bounds = {"old": [(0, None), (None, 0.5)], "new": optimize.Bounds([0, -np.inf], [np.inf, 0.5]), "none": None}[form]
    calls = []

    def both(x: Any, a: float, b: float) -> tuple[Any, Any]:
        calls.append(x)
        value, gradient = rosenbrock(x)
        return a * value + b, a * gradient

    fun, der = (both, True) if jac == "pair" else (lambda x, *c: both(x, *c)[0], lambda x, *c: both(x, *c)[1])
    res = optimize.minimize(fun, ROSENBROCK, (2.0, 3.0), method=fs.scipy_method(), jac=der, bounds=bounds,
                            tol=1e-4, options={"lr": 0.1, "gtol": 1e-7})  # fmt: skip
    assert len(calls) == 2 * res.nfev if jac == "function" else res.nit < len(calls) + 10 <= res.nfev + 10
    ours = fs.minimize(both, ROSENBROCK, args=(2.0, 3.0), bounds=bounds, xtol=1e-4, ftol=1e-4, gtol=1e-7, lr=0.1)
    assert type(res) is optimize.OptimizeResult
    assert all(np.array_equal(res[name], getattr(ours, name)) for name in ATTRIBUTES.split())


def test_what_scipy_passes_on() -> None:
    """float32 stays, args need no tuple, and a gradient is needed."""
    optimize = pytest.importorskip("scipy.optimize")
    res = optimize.minimize(rosenbrock, np.array(ROSENBROCK, np.float32), jac=True, method=fs.scipy_method())
    assert res.x.dtype == res.jac.dtype == np.float32
    square = lambda x, c: (((x - c) ** 2).sum(), 2 * (x - c))  # noqa: E731
    for res in (
        optimize.minimize(square, [0.0], 2.5, jac=True, method=fs.scipy_method("irprop-")),
        fs.minimize(square, [0.0], args=2.5),
    ):
        assert res.x == pytest.approx([2.5], abs=1e-5)
    for jac in (None, False, "2-point"):
        with pytest.raises(ValueError, match=r"jac: expected True .* or a function"):
            optimize.minimize(lambda x: x @ x, [1.0], jac=jac, method=fs.scipy_method())


def test_scipy_is_told_what_is_ignored() -> None:
    """Warn once about constraints and second derivatives, once about unknown keywords, and otherwise never."""
    optimize = pytest.importorskip("scipy.optimize")

    def run(**arguments: Any) -> list[warnings.WarningMessage]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            res = optimize.minimize(rosenbrock, ROSENBROCK, jac=True, method=fs.scipy_method(), **arguments)
        assert res.success
        return caught

    constraint = {"type": "ineq", "fun": lambda x: x[0]}
    new = optimize.LinearConstraint(np.eye(2))
    for arguments in ({"constraints": constraint}, {"constraints": [constraint], "hess": np.eye}, {"hessp": np.dot},
                      {"constraints": new}):  # fmt: skip
        [warning] = run(**arguments)
        assert warning.category is RuntimeWarning
        assert all(name in str(warning.message) for name in arguments)
        assert warning.filename == __file__
    [warning] = run(options={"disp": True, "maxiters": 3})
    assert warning.category is optimize.OptimizeWarning
    assert str(warning.message) == "Unknown solver options: disp, maxiters (did you mean 'maxiter'?)"
    assert warning.filename == __file__
    assert run() == run(constraints=[]) == []


def test_scipy_method_is_refused_at_once_and_can_be_sent() -> None:
    with pytest.raises(ValueError, match="method: expected one of"):
        fs.scipy_method("newton")  # type: ignore[arg-type]
    optimize = pytest.importorskip("scipy.optimize")
    method = pickle.loads(pickle.dumps(fs.scipy_method("rprop-")))
    assert optimize.minimize(bowl, [1.0], jac=True, method=method).success
