"""Which arrays and options are refused, with which message, and that nothing is written; and what is accepted."""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import fusedstep as fs
from checks import Mirror, Unchanged, assert_same, difference, memory_of, reference_step, refused, shows
from registry import (
    BAD_ARRAYS,
    BAD_CLASS_OPTIONS,
    BAD_FUNCTION_OPTIONS,
    BAD_STEP_OPTIONS,
    BYTE_PAIRS,
    CASES,
    CONFLICTS,
    DTYPES,
    ENTRIES,
    FIRST_OF_RULE,
    FULLEST_OF_RULE,
    GOOD_NUMBERS,
    ONE_OF_STORAGE,
    PAIRS,
    SCALAR_PAIRS,
    Array,
    Bad,
    BadArray,
    Case,
    Pair,
    loss,
)

each_rule = pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=lambda case: case.rule)
each_storage = pytest.mark.parametrize("case", ONE_OF_STORAGE, ids=lambda case: case.rule)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
of_rule = {case.rule: case for case in FIRST_OF_RULE}


def good_arrays(case: Case, dtype: np.dtype[Any], shape: tuple[int, ...] = (3, 4)) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    arrays = {name: np.array(rng.standard_normal(shape), dtype) for name in ("param", "grad")}
    for state in case.states:
        own = state.shape(shape)
        start = rng.integers(-1, 2, own) if state.sign else np.abs(rng.standard_normal(own))
        arrays[state.name] = np.array(start, state.dtype(dtype))
    return arrays


# ----------------------------------------------------------------------------------------------------------- bad arrays


def role_of(name: str) -> str:
    return name if name in ("param", "grad") else "state"


@pytest.mark.parametrize("bad", BAD_ARRAYS, ids=lambda bad: bad.name)
@each_storage
def test_functions_refuse_bad_arrays(case: Case, bad: BadArray) -> None:
    """Each bad array in each role that it is bad in: the error names the argument and shows both values."""
    for dtype, name in itertools.product(DTYPES, good_arrays(case, DTYPES[0])):
        arrays = good_arrays(case, dtype)
        good = arrays[name]
        if role_of(name) not in bad.roles or not bad.fits(good):
            continue
        arrays[name] = bad.make(good)
        memory = [good, *arrays.values()]
        with refused(bad.error, [name, *bad.says(good, arrays[name])], memory, f"{bad.name} as {name}, {dtype}"):
            case.call(arrays)


def class_arrays(dtype: np.dtype[Any], last: bool) -> dict[str, Array]:
    """Good parameters, among them ``bad``, the first or the last."""
    rng = np.random.default_rng(2)
    names = ("a", "b", "bad") if last else ("bad", "a", "b")
    return {name: rng.standard_normal((3, 4)).astype(dtype) for name in names}


def in_two(first: dict[str, Any], second: dict[str, Any]) -> Any:
    return [first, second] if first else second


def as_groups(first: dict[str, Any], second: dict[str, Any]) -> Any:
    return [{"params": first}, {"params": second}] if first else second


@pytest.mark.parametrize("bad", BAD_ARRAYS, ids=lambda bad: bad.name)
@each_storage
def test_classes_refuse_bad_arrays(case: Case, bad: BadArray) -> None:
    """Refuse a bad parameter in the constructor and a bad gradient in a step, first or last, in a list or a group. The
    error names it and nothing is written. A following good step has the result that it would have had."""
    for dtype, grouped, last in itertools.product(DTYPES, (True, False), (True, False)):
        where = f"{bad.name}, {dtype}, {grouped=}, {last=}"
        name = "parameter 'bad'" + (" (group 1)" if grouped else "")
        c = {"c": np.ones(5, dtype)} if grouped else {}
        grad_c = {"c": np.ones(5, dtype)} if grouped else {}

        params = class_arrays(dtype, last)
        good = params["bad"]
        broken = {**params, "bad": bad.make(good)} if "param" in bad.roles and bad.fits(good) else params
        if broken is not params and not isinstance(broken["bad"], list):  # a list is a container
            memory = [good, *c.values(), *broken.values()]
            with refused(bad.error, [name, *bad.says(good, broken["bad"])], memory, where):
                case.new(as_groups(c, broken))

        for role, zero in (("grad", False), ("zeroed", True)):
            params = class_arrays(dtype, last)
            if role not in bad.roles or not bad.fits(params["bad"]):
                continue
            optimizer, mirror = case.new(as_groups(c, params)), Mirror(case, {**c, **params})
            grads = class_arrays(dtype, last)
            good = grads["bad"].copy()
            broken = {**grads, "bad": bad.make(grads["bad"])}
            memory = memory_of(optimizer, *grad_c.values(), *grads.values(), *broken.values())
            with refused(bad.error, [f"gradient of {name}", *bad.says(good, broken["bad"])], memory, where):
                optimizer.step(in_two(grad_c, broken), zero_grads=zero, **case.loss())
            grads["bad"] = good
            assert optimizer.step(in_two(grad_c, grads), **case.loss()).step == 1
            mirror.step({**grad_c, **grads}, **case.loss())
            mirror.assert_like(optimizer, {**c, **params}, where)
            if grouped:
                c["c"][...] = 1


@each_dtype
@each_storage
def test_arrays_that_seem_larger_than_memory(case: Case, dtype: np.dtype[Any]) -> None:
    """Refuse 2^44 elements at one place for what is wrong with them, before so much memory is allocated. Also refuse
    elements whose distance in bytes does not fit 64 bits."""
    endless = np.ones(1, dtype)
    shape = (2**22, 2**22)
    many = as_strided(endless, shape, (0, 0))
    for name in good_arrays(case, dtype):
        arrays = good_arrays(case, dtype)
        memory = [endless, *arrays.values()]
        sign = arrays[name].dtype == np.int8
        arrays[name] = as_strided(np.zeros(1, np.int8), shape, (0, 0)) if sign else many
        with refused(ValueError, [name, str(shape), "share memory" if name == "param" else "shape"], memory, name):
            case.call(arrays)
        arrays = good_arrays(case, dtype, (3,))
        arrays[name] = as_strided(np.zeros(1, arrays[name].dtype), (3,), (2**62,))
        with refused(ValueError, [name, "fits into memory"], memory, name):
            case.call(arrays)
    for verify in ("never", "first", "every"):
        good = np.ones(3, dtype)
        with refused(ValueError, ["parameter 'many'", str(shape), "share memory"], [good, endless], verify):
            case.new({"good": good, "many": many}, verify=verify)
        for zero, grad in ((True, many), (False, many), (False, np.broadcast_to(endless, shape))):
            optimizer = case.new({"a": good, "b": np.ones(2, dtype)}, verify=verify)
            memory = memory_of(optimizer, endless)
            with refused(
                ValueError, ["gradient of parameter 'b'", str(shape), "that of the parameter"], memory, verify
            ):
                optimizer.step({"a": np.ones(3, dtype), "b": grad}, zero_grads=zero, **case.loss())


# ------------------------------------------------------------------------------------------------------------- overlaps


def fill(memory: Array, seed: int = 3) -> Array:
    memory[...] = np.abs(np.random.default_rng(seed).standard_normal(memory.shape)) + 0.5
    return memory


def overlaps() -> Iterator[Any]:
    """Each pair of views with each pair of a function's arrays that can lie so."""
    for case in ONE_OF_STORAGE:
        floats = ["param", "grad", *(state.name for state in case.states if not state.sign and not state.scalar)]
        signs = [state.name for state in case.states if state.sign]
        numbers = [state.name for state in case.states if state.scalar]
        for pairs, second in ((PAIRS, floats), (BYTE_PAIRS, signs), (SCALAR_PAIRS, numbers)):
            roles = [each for each in itertools.product(floats, second) if len({*each}) == 2]
            for pair in pairs if roles else ():
                yield pytest.param(case, pair, roles, id=f"{case.rule}, {pair.name}")


@pytest.mark.parametrize(("case", "pair", "roles"), list(overlaps()))
def test_functions_and_overlaps(case: Case, pair: Pair, roles: list[tuple[str, str]]) -> None:
    """Refuse arrays that share an element, by both names. Otherwise the result has the reference's bits, and the memory
    beside the views does not change."""
    for dtype, (first, second) in itertools.product(DTYPES, roles):
        runs = []
        for _ in range(2):
            memory = fill(np.zeros(64, dtype))
            a, b = pair.make(memory)
            if b.dtype == np.int8:
                b[...] = 1
            runs.append((memory, {**good_arrays(case, dtype, a.shape), first: a, second: b}))
        (memory, arrays), (wanted, expected) = runs
        assert np.shares_memory(a, b) == pair.overlap
        where = f"{first} and {second}, {pair.name}"
        if pair.overlap:
            with refused(ValueError, [first, second, "shares memory"], arrays.values(), where):
                case.call(arrays)
            continue
        reference_step(case, {k: v for k, v in expected.items() if k != "grad"}, expected["grad"], 1, False)
        case.call(arrays)
        assert_same(arrays, expected, where)
        assert not difference(memory, wanted), where


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@each_storage
def test_a_gradient_and_a_parameter_of_an_optimizer(case: Case, pair: Pair) -> None:
    """Refuse a gradient that overlaps its own parameter, another parameter or a state. Two gradients may overlap,
    unless they are set to 0."""
    dtype = DTYPES[1]
    for whose in ("own", "other"):
        a, b = pair.make(fill(np.zeros(64, dtype)))
        params = {"other": a, "own": np.ones(a.shape, dtype)}
        if whose == "own":
            params = {"other": np.ones(3, dtype), "own": a}
        optimizer, mirror = case.new(params), Mirror(case, params)
        grads = {"other": np.ones(params["other"].shape, dtype), "own": b}
        if pair.overlap:
            says = ["gradient of parameter 'own'", f"parameter '{whose}'", "shares memory"]
            with refused(ValueError, says, memory_of(optimizer, *grads.values()), f"{whose}, {pair.name}"):
                optimizer.step(grads, **case.loss())
        else:
            mirror.step({name: grad.copy() for name, grad in grads.items()}, **case.loss())
            optimizer.step(grads, **case.loss())
            mirror.assert_like(optimizer, params, f"{whose}, {pair.name}")

    memory = fill(np.zeros(64, dtype))
    a, b = pair.make(memory)
    params = {"first": np.ones(a.shape, dtype), "second": np.ones(b.shape, dtype)}
    optimizer, mirror = case.new(params), Mirror(case, params)
    grads = {"first": a, "second": b}
    mirror.step(grads, **case.loss())
    optimizer.step(grads, **case.loss())
    mirror.assert_like(optimizer, params, pair.name)
    if pair.overlap:
        with refused(ValueError, ["'first'", "'second'", "shares memory"], memory_of(optimizer, memory), pair.name):
            optimizer.step(grads, zero_grads=True, **case.loss())
    else:
        optimizer.step(grads, zero_grads=True, **case.loss())
        assert not a.any()
        assert not b.any()


@pytest.mark.parametrize("order", [*itertools.permutations(("long", "between", "bad"))], ids=str)
def test_an_overlap_behind_other_arrays(order: tuple[str, ...]) -> None:
    """Find an overlap behind arrays that lie in the gaps of a long one: of two parameters, and of a gradient."""
    memory = fill(np.zeros(64, np.float32))
    arrays = {"long": memory[0:60:2], "between": memory[1:9:2], "bad": memory[30:32]}
    with refused(ValueError, ["'long'", "'bad'", "shares memory"], [memory]):
        fs.Adagrad({name: arrays[name] for name in order})
    params = {**arrays, "bad": np.ones(2, np.float32)}
    optimizer = fs.Adagrad({name: params[name] for name in order})
    grads = {name: arrays["bad"] if name == "bad" else np.ones(param.shape, np.float32)
             for name, param in params.items()}  # fmt: skip
    with refused(ValueError, ["gradient of parameter 'bad'", "'long'", "shares memory"], memory_of(optimizer)):
        optimizer.step(grads)


@each_dtype
@each_storage
def test_a_gradient_and_a_state_of_an_optimizer(case: Case, dtype: np.dtype[Any]) -> None:
    """A gradient in the memory of a state, of its own or of another parameter, is refused."""
    params = {"a": np.ones((8, 8), dtype), "b": np.ones(2, dtype), "c": np.ones((), dtype)}
    optimizer = case.new(params)
    grads = {name: np.ones_like(param) for name, param in params.items()}
    for name, owner, state in itertools.product(params, params, case.states):
        memory = optimizer.state[owner][state.held_as].reshape(-1).view(np.uint8)
        if memory.nbytes < grads[name].nbytes:
            continue
        grad = memory[: grads[name].nbytes].view(dtype).reshape(grads[name].shape)
        for own in (grad, grad[::-1] if grad.ndim else grad):
            given = {**grads, name: own}
            says = [f"gradient of parameter '{name}'", f"{state.held_as} of parameter '{owner}'", "shares memory"]
            with refused(ValueError, says, memory_of(optimizer, *given.values()), f"{name}, {owner}, {state.name}"):
                optimizer.step(given, **case.loss())


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """A shape and, twice, an offset and strides (in elements) within a memory of 60 elements."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    both = []
    for _ in range(2):
        strides = tuple(draw(st.integers(-9, 9)) for _ in shape)
        if draw(st.booleans()):  # strides as slices of a 4 x 4 x 4 array have them
            strides = tuple(
                s * draw(st.sampled_from((1, -1, 2))) for s in draw(st.permutations((16, 4, 1)))[: len(shape)]
            )
        low = sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
        high = sum(max(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
        if 0 in shape:
            low = high = 0
        room = 120 - (high - low)
        both.append((draw(st.integers(0, min(room, 20))) - low, strides))
    return shape, both


def view(memory: Array, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]) -> Array:
    return as_strided(memory[offset:], shape, tuple(s * memory.itemsize for s in strides))


each_pair_of_views = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@each_pair_of_views
@given(views(), st.booleans())
def test_optimizers_see_overlaps_as_numpy_does(drawn: Any, gradients: bool) -> None:
    """Draw pairs of views, as two parameters among others, or as a gradient and another parameter. They are refused if
    and only if elements are shared, as NumPy says; otherwise they have the reference's bits."""
    shape, both = drawn
    memory = fill(np.zeros(128, np.float32))
    others = [np.ones(2, np.float32), np.ones((3, 3), np.float32)]
    a, b = (view(memory, shape, *place) for place in both)
    places = [view(np.arange(128), shape, *place).reshape(-1).tolist() for place in both]
    overlap = bool(set(places[0]) & set(places[1]))
    written = places[:1] if gradients else places
    itself = any(len(set(p)) < len(p) for p in written)
    params = {"x": others[0], "a": a, "y": others[1], "b": np.ones(shape, np.float32) if gradients else b}
    if itself or (overlap and not gradients):
        with refused(ValueError, ["share"] if itself else ["parameter 'a'", "parameter 'b'"], [memory, *others]):
            fs.Adagrad(params)
        return
    optimizer = fs.Adagrad(params)
    mirror = Mirror(of_rule["adagrad"], params)
    grads = {name: np.ones(param.shape, np.float32) for name, param in params.items()}
    if gradients:
        grads["b"] = b
    if overlap:
        with refused(ValueError, ["gradient of parameter 'b'", "'a'", "shares memory"], memory_of(optimizer, b)):
            optimizer.step(grads)
        return
    mirror.step(grads)
    optimizer.step(grads)
    mirror.assert_like(optimizer, params, "random views")


# ------------------------------------------------------------------------------------------------------ hyperparameters


def named(value: Any) -> str:
    return f"{value!r:.40}"


def choices(table: dict[str, dict[str, tuple[Bad, ...]]]) -> list[tuple[str, str]]:
    return [(rule, key) for rule in table for key in table[rule]]


def judged(attempt: Callable[[], Any], name: str, bad: Bad) -> str:
    """Return what is wrong with the error that a bad value of ``name`` raises; empty if nothing is."""
    told = f"{name}={named(bad.value)}: "
    try:
        attempt()
    except Exception as error:
        message = str(error)
        if type(error) is not bad.error:
            return f"{told}{type(error).__name__} instead of {bad.error.__name__}: {message}"
        if name not in message or not any(word in message for word in ("expected", "must be", "needed")):
            return f"{told}the message lacks the name or what was expected: {message}"
        return "" if shows(message, bad.value) else f"{told}the message lacks the value: {message}"
    return f"{told}accepted"


@pytest.mark.parametrize(("rule", "name"), choices(BAD_FUNCTION_OPTIONS))
def test_functions_refuse_bad_hyperparameters(rule: str, name: str) -> None:
    """Refuse NaN, inf, values out of range, bool, str and others. The error has the name, what was expected and the
    value, and nothing is written."""
    case = of_rule[rule]
    wrong = []
    for dtype, bad in itertools.product(DTYPES, BAD_FUNCTION_OPTIONS[rule][name]):
        arrays = good_arrays(case, dtype)
        unchanged = Unchanged(arrays.values())
        wrong.append(judged(partial(case.call, arrays, **{name: bad.value}), name, bad))
        unchanged.check(named(bad.value))
    assert not any(wrong), "\n".join(filter(None, wrong))


def step_with(optimizer: Any, grads: Any, name: str, value: Any, more: dict[str, Any]) -> None:
    """Step with another value of a hyperparameter of the last group, and restore the value."""
    group = optimizer.param_groups[-1]
    before = group[name]
    group[name] = value
    try:
        optimizer.step(grads, **more)
    finally:
        group[name] = before


@pytest.mark.parametrize(("rule", "name"), choices(BAD_CLASS_OPTIONS))
def test_classes_refuse_bad_hyperparameters(rule: str, name: str) -> None:
    """Refuse them in the constructor, in one of its groups, and between two steps."""
    case = of_rule[rule]
    wrong = []
    for bad in BAD_CLASS_OPTIONS[rule][name]:
        params = [np.ones(3, np.float32), np.ones(4, np.float64)]
        grads = [np.ones(3, np.float32), np.ones(4, np.float64)]
        optimizer = case.new([{"params": params[:1]}, {"params": params[1:]}])

        unchanged = Unchanged(memory_of(optimizer, *grads))
        wrong.append(judged(partial(case.new, params, **{name: bad.value}), name, bad))
        in_group = [{"params": params[:1]}, {"params": params[1:], name: bad.value}]
        wrong.append(judged(partial(case.new, in_group), name, bad))
        if name not in {state.starts_at for state in case.states}:
            wrong.append(judged(partial(step_with, optimizer, grads, name, bad.value, case.loss()), name, bad))
        unchanged.check(named(bad.value))
        assert optimizer.step(grads, **case.loss()).step == 1, named(bad.value)
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize(("rule", "options", "says"), CONFLICTS, ids=str)
def test_hyperparameters_that_do_not_go_together(rule: str, options: dict[str, Any], says: tuple[str, ...]) -> None:
    """Refuse values that are valid by themselves and contradict each other, in functions and classes."""
    [entry] = [entry for entry in ENTRIES if entry.rule == rule]
    case = entry.case("conflict", options)
    arrays = good_arrays(case, DTYPES[0])
    with refused(ValueError, list(says), arrays.values()):
        case.call(arrays)
    with refused(ValueError, list(says), arrays.values()):
        case.new([arrays["param"]])
    optimizer = of_rule[rule].new([arrays["param"]])
    optimizer.param_groups[0].update(options)
    with refused(ValueError, list(says), memory_of(optimizer, *arrays.values())):
        optimizer.step([arrays["grad"]], **case.loss())


def test_arguments_that_are_missing_or_unknown() -> None:
    """Name missing and unknown arguments, as Python functions do, and write nothing."""
    for case in FIRST_OF_RULE:
        arrays = good_arrays(case, DTYPES[0])
        memory = list(arrays.values())
        for name in arrays:
            with refused(TypeError, [case.function_name, "missing", name], memory):
                case.call({key: array for key, array in arrays.items() if key != name})
        with refused(TypeError, [case.function_name, "unexpected", "typo"], memory):
            case.call(arrays, typo=1.0)
        function = getattr(fs, case.function_name)
        with refused(TypeError, [case.function_name, "positional"], memory):
            function(*memory, 0.1)
        with refused(TypeError, [case.function_name, "multiple", "param"], memory):
            function(memory[0], **{**arrays, **case.options})
        with refused(TypeError, [case.class_name, "typo", "lr"], memory):
            case.new([{"params": memory[:1], "typo": 1.0}])
        with refused(TypeError, ["typo"], memory):
            case.new(memory[:1], typo=1.0)
    arrays = good_arrays(of_rule["rmsprop"], DTYPES[0])
    with refused(TypeError, ["rmsprop_", "missing", "lr"], arrays.values()):
        fs.rmsprop_(**arrays)


@pytest.mark.parametrize("good", GOOD_NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers_of_any_real_type(good: Any) -> None:
    """Accept integers and NumPy's numbers."""
    arrays, same = (good_arrays(of_rule["adagrad"], DTYPES[0]) for _ in range(2))
    fs.adagrad_(**arrays, lr=good, eps=good)
    fs.adagrad_(**same, lr=float(good), eps=float(good))
    assert_same(arrays, same, repr(good))
    optimizer = fs.Adagrad([np.ones(2)], lr=good)
    assert optimizer.step([np.ones(2)], grad_scale=good, clip_norm=good, clip_value=good, loss=good).step == 1


# ------------------------------------------------------------------------------------------------------ options of step


@pytest.mark.parametrize("name", BAD_STEP_OPTIONS)
@each_storage
def test_step_refuses_bad_options(case: Case, name: str) -> None:
    """Refuse bad options of a step in the same way."""
    params, grads = [np.ones(3, np.float32)], [np.ones(3, np.float32)]
    wrong = []
    for verify, bad in itertools.product(("never", "every"), BAD_STEP_OPTIONS[name]):
        optimizer = case.new(params, verify=verify)
        unchanged = Unchanged(memory_of(optimizer, *grads))
        wrong.append(judged(partial(optimizer.step, grads, **{**case.loss(), name: bad.value}), name, bad))
        unchanged.check(named(bad.value))
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert optimizer.step(grads, **case.loss()).step == 1


def test_functions_refuse_temporary_copies() -> None:
    """Refuse a copy that indexing by an array or a mask makes, because its update would be lost."""
    w, g, s = np.ones((6, 2)), np.ones((3, 2)), np.zeros((6, 2))
    rows, mask, part = [0, 2, 4], np.arange(6) % 2 == 0, np.zeros((3, 2))
    calls: tuple[Callable[[], None], ...] = (
        lambda: fs.adagrad_(w[rows], g, part, lr=0.1),
        lambda: fs.adagrad_(w[mask], g, part, lr=0.1),
        lambda: fs.adagrad_(w[:3], g, s[rows], lr=0.1),
        lambda: fs.adagrad_(w[:3], g, square_sum=np.zeros((3, 2)), lr=0.1),
        lambda: fs.adagrad_(w[:3].astype(np.float32), g.astype(np.float32), part, lr=0.1),
    )
    for call in calls:
        with refused(ValueError, ["temporary copy", "lost", "rows="], [w, g, s, part], "a temporary"):
            call()
    fs.adagrad_(w[::2], g, s[1:4], lr=0.1)  # views are no copies
    kept = w[rows]
    fs.adagrad_(kept, w[mask], part, lr=0.1)  # a gradient is only read
    assert (w[::2] == w[0]).all()
    assert (w[1::2] == 1.0).all()
    assert (kept != w[rows]).all()


P, G, V, B = (np.ones((2, 3), np.float32) for _ in range(4))
D, S = np.ones((2, 3), np.float32), np.ones((2, 3), np.int8)
MESSAGES: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (lambda: fs.rmsprop_(P, G.astype("f8"), V, lr=0.1), TypeError, ["grad: ", "float32", "float64", "pass"]),
    (lambda: fs.rmsprop_(P, G.T, V, lr=0.1), ValueError, ["grad: ", "(2, 3)", "parameter", "(3, 2)"]),
    (lambda: fs.rmsprop_(P, P, V, lr=0.1), ValueError, ["grad", "param", "pass a copy"]),
    (lambda: fs.rmsprop_(P, G, V, lr=-1.0), ValueError, ["lr: ", "lr >= 0", "-1"]),
    (lambda: fs.rmsprop_(P, G, V, lr=0.1, alpha=1.5), ValueError, ["alpha: ", "0 <= alpha <= 1", "1.5"]),
    (lambda: fs.rmsprop_(P, G, V, lr="0.1"), TypeError, ["lr: ", "'0.1' (str)"]),
    (lambda: fs.RMSprop({"a": [P, G.astype("i2")]}), TypeError, ["parameter 'a.1': ", "float32, float64", "int16"]),
    (lambda: fs.RMSprop([P]).step([G[0]]), ValueError, ["gradient of parameter '0'", "(2, 3)", "(3,)"]),
    (lambda: fs.RMSprop([P, P[:1]]), ValueError, ["'1'", "'0'", "copy"]),
    # Gradients that are no arrays of numbers that this optimizer takes.
    (lambda: fs.RMSprop([P]).step([[1.0, 2.0]]), TypeError, ["gradient of parameter '0'", "np.asarray"]),
    (lambda: fs.RMSprop([P]).step([P.astype("c8")]), TypeError, ["gradient of parameter '0'", "view"]),
    (lambda: fs.RMSprop([P]).step([np.ma.array(G)]), TypeError, ["gradient of parameter '0'", "mask"]),
    # Tied weights, even transposed or reshaped, are given once. One that overlaps is copied.
    *((lambda tied=tied: fs.RMSprop({"a": P, "b": tied}), ValueError,
       ["'b'", "shares memory", "'a'", "give the array once", "both gradients"])
      for tied in (P, P.T, P.reshape(-1), P[::-1])),
    (lambda: fs.RMSprop({"a": P, "b": P[1:]}), ValueError, ["'b'", "shares memory", "'a'", "copy"]),
    # States that the hyperparameters use, and those that they don't.
    (lambda: fs.rmsprop_(P, G, V, lr=0.1, momentum=0.9), ValueError, ["momentum_buffer", "None"]),
    (lambda: fs.rmsprop_(P, G, V, lr=0.1, momentum_buffer=B), ValueError,
     ["momentum_buffer", "expected None", "do not use it"]),
    (lambda: fs.rprop_(P, G, D, S, weight_decay=0.1, decoupled_weight_decay=True), ValueError,
     ["lr", "decoupled", "None"]),
    # One norm clips.
    *((lambda verify=verify: fs.RMSprop([P], verify=verify).step([G], clip_norm=0.5, clip_norm_each=2.5), ValueError,
       ["clip_norm, clip_norm_each", "0.5", "2.5"]) for verify in ("never", "every")),
    # Decay that dual averaging would forget along with the parameter; the start of an average that is corrected.
    (lambda: fs.AdagradDA(P, weight_decay=0.1, decoupled_weight_decay=True), ValueError,
     ["decoupled_weight_decay", "weight_decay"]),
    (lambda: fs.RMSprop(P, centered=True, bias_correction=True, initial_square_avg=0.5), ValueError,
     ["initial_square_avg", "bias_correction", "0.5"]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "says"), MESSAGES)
def test_messages_say_what_to_do(call: Callable[[], Any], error: type[Exception], says: list[str]) -> None:
    """Show the name, both values, and what to do, in this order, and write nothing."""
    with refused(error, [], [P, G, V, B, D, S]) as caught:
        call()
    assert re.search(".*".join(map(re.escape, says)), str(caught.value))


def test_what_only_says_how_is_accepted() -> None:
    """Where there is nothing to do: presets do that."""
    fs.AdagradDA(np.ones(2), decoupled_weight_decay=True)
    for options in ({"decoupled_weight_decay": True}, {"momentum_form": "tf"}, {"rounding": "nearest", "seed": 7}):
        w, plain, g = np.ones(2), np.ones(2), np.ones(2)
        fs.RMSprop(w, **options).step(g)
        fs.RMSprop(plain).step(g)
        assert not difference(w, plain)


def test_the_loss_where_it_is_needed() -> None:
    """Require the loss for ``irprop+``, before anything is written. The loss of a skipped step does not count, and an
    equal loss has not risen."""
    param, grad = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer = fs.Rprop([param], variant="irprop+")
    mirror = Mirror(next(case for case in CASES if case.name == "rprop-irprop+"), {"0": param})
    with refused(ValueError, ["loss", "needed", "None"], memory_of(optimizer, grad)):
        optimizer.step([grad])
    for t, now in enumerate((2.0, 2.0, 1.0, 1.5, 1.5, 1.0)):
        optimizer.step([np.full(3, np.inf, np.float32)], loss=now - 5 * (-1) ** t, nonfinite="skip")
        grad *= -1
        optimizer.step([grad], loss=now)
        mirror.step({"0": grad}, loss=now)
        mirror.assert_like(optimizer, {"0": param}, f"step {t + 1}")


def _without(key: str) -> Callable[[Any], None]:
    return lambda groups: groups[0].pop(key)


def _with(key: str) -> Callable[[Any], None]:
    return lambda groups: groups[0].__setitem__(key, 0.5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda groups: groups.clear(), ValueError, "param_groups"),
        (lambda groups: groups.append({**groups[0]}), ValueError, "param_groups"),
        *((_with(key), TypeError, key) for key in ("typo", "LR", "loss_increased", "step_size")),
        *((_without(key), ValueError, key) for key in ("lr", "variant", "maximize")),
    ],
)
def test_groups_that_were_changed(change: Callable[[Any], None], error: type[Exception], says: str) -> None:
    """Refuse groups that were added, removed or renamed a key of between two steps, before anything is written. The
    class itself knows whether the loss rose."""
    param, grad = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer = fs.Rprop([param])
    optimizer.step([grad])
    memory = memory_of(optimizer, grad)
    change(optimizer.param_groups)
    with refused(error, [says], memory):
        optimizer.step([grad])
    with refused(TypeError, ["Rprop", "loss_increased"], [param]):
        fs.Rprop([{"params": [param], "loss_increased": True}])


def test_a_pair_that_was_changed_in_place() -> None:
    """Use the values that a list has at the step."""
    param = np.ones(3, np.float32)
    optimizer = fs.Rprop([param], etas=[0.5, 1.2], step_sizes=[1e-6, 50.0])
    mirror = Mirror(of_rule["rprop"], {"0": param})
    for eta_plus in (1.2, 3.0, 1.5):
        optimizer.param_groups[0]["etas"][1] = eta_plus
        mirror.options["0"]["etas"] = (0.5, eta_plus)
        grad = np.ones(3, np.float32)
        optimizer.step([grad])
        mirror.step({"0": grad})
        mirror.assert_like(optimizer, {"0": param}, f"{eta_plus=}")


# --------------------------------------------------------------------------------------------- arrays that were changed


def _set(attribute: str, value: Any) -> Callable[[Array], None]:
    def change(array: Array) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            setattr(array, attribute, value)

    return change


CHANGES: dict[str, Callable[[Array], None]] = {
    "resized to less": lambda array: array.resize((2,), refcheck=False),
    "resized to more": lambda array: array.resize((4000, 5), refcheck=False),
    "resized to nothing": lambda array: array.resize((0,), refcheck=False),
    "reshaped": _set("shape", (4, 3)),
    "flattened": _set("shape", (12,)),
    "one axis more": _set("shape", (3, 4, 1)),
    "read-only": lambda array: array.setflags(write=False),
    "of another type": _set("dtype", np.dtype(np.int32)),
    "of another byte order": _set("dtype", np.dtype(np.float32).newbyteorder("S")),
    "of another type and shape": lambda array: (_set("shape", (3, 4))(array), _set("dtype", np.dtype("i2"))(array))[0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("last", [True, False], ids=("last", "first"))
@each_storage
def test_a_parameter_that_changed_since(case: Case, last: bool, change: str) -> None:
    """Refuse a parameter that was resized, reshaped, locked or given another type since the optimizer was made. The
    error names it, first or last, and nothing is written."""
    changed, other = np.ones((3, 4), np.float32), np.ones(5, np.float64)
    params = {"other": other, "w": changed} if last else {"w": changed, "other": other}
    optimizer = case.new(params)
    grads = {name: np.ones(param.shape, param.dtype) for name, param in params.items()}
    optimizer.step(grads, **case.loss())
    try:
        CHANGES[change](changed)
    except (AttributeError, TypeError, ValueError) as error:
        pytest.skip(f"this NumPy does not allow it: {error}")
    error = TypeError if "type" in change or "order" in change else ValueError
    memory = [changed, other, *(array for own in optimizer.state.values() for array in own.values())]
    for passed in (grads, {**grads, "w": np.ones(changed.shape, np.float32)}):
        with refused(error, ["parameter 'w'"], [*memory, *passed.values()], change):
            optimizer.step(passed, **case.loss())


@each_rule
def test_a_state_that_changed_since(case: Case, tmp_path: Path) -> None:
    """Refuse a state with another shape or type, or a read-only one, in steps and loads. Saves and copies also refuse
    it, except that they read a read-only one. Its memory can't be taken away."""
    params = {"other": np.ones(5), "w": np.ones((3, 4), np.float32)}
    grads = {name: np.ones(param.shape, param.dtype) for name, param in params.items()}
    saved = case.new({name: param.copy() for name, param in params.items()}).state_dict()
    uses: dict[str, Callable[[Any], Any]] = {
        "step": lambda optimizer: optimizer.step(grads, **case.loss()),
        "state_dict": lambda optimizer: optimizer.state_dict(),
        "save": lambda optimizer: optimizer.save(tmp_path / "x.npz"),
        "load_state_dict": lambda optimizer: optimizer.load_state_dict(saved),
        "reset": lambda optimizer: optimizer.reset(),
        "copy": copy.deepcopy,
    }
    for state in case.states:
        optimizer = case.new(params)
        live = optimizer.state["w"][state.held_as]
        with pytest.raises(ValueError, match=r"resize|own"):
            live.resize((4000, 5), refcheck=False)
        changes = {"of another type": _set("dtype", np.dtype(f"u{live.itemsize}"))}
        if not state.scalar:
            changes |= {name: CHANGES[name] for name in ("flattened", "reshaped", "one axis more")}
        changes["read-only"] = CHANGES["read-only"]  # stays so, because no array owns this memory
        for change, make in changes.items():
            shape, dtype = live.shape, live.dtype
            make(live)
            locked = change == "read-only"
            told = [f"{state.held_as} of parameter 'w'", f"got a {'read-only' if locked else 'writeable'}"]
            for use, run in uses.items():
                if locked and use in ("state_dict", "save", "copy"):
                    run(optimizer)
                    continue
                with refused(ValueError, told, [*params.values(), live], f"{change}, {use}"):
                    run(optimizer)
            if not locked:
                _set("dtype", dtype)(live)
                _set("shape", shape)(live)
                uses["step"](optimizer)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("zeroed", [False, True], ids=("read", "zeroed"))
@each_storage
def test_a_gradient_that_changed_since(case: Case, zeroed: bool, change: str) -> None:
    """Check a gradient again that was accepted before. One that changed in place is refused; a read-only one only if it
    must be set to 0."""
    params = {"other": np.ones(5, np.float64), "w": np.ones((3, 4), np.float32)}
    optimizer = case.new(params)
    grads = {"other": np.ones(5, np.float64), "w": np.ones((3, 4), np.float32)}
    optimizer.step(grads, zero_grads=zeroed, **case.loss())
    try:
        CHANGES[change](grads["w"])
    except (AttributeError, TypeError, ValueError) as error:
        pytest.skip(f"this NumPy does not allow it: {error}")
    if change == "read-only" and not zeroed:
        assert optimizer.step(grads, **case.loss()).step == 2
    error = TypeError if "type" in change or "order" in change else ValueError
    for more in ({"zero_grads": True}, {"zero_grads": change == "read-only", "clip_norm": 1.0}):
        with refused(error, ["gradient of parameter 'w'"], memory_of(optimizer, *grads.values()), change):
            optimizer.step(grads, **more, **case.loss())


@each_rule
def test_gradients_are_looked_at_anew(case: Case) -> None:
    """Check gradients again that now overlap, lie elsewhere, or must be set to 0."""
    rng = np.random.default_rng(5)
    params = {"a": np.ones(6, np.float32), "b": np.ones(6, np.float32)}
    optimizer, mirror = case.new(params), Mirror(case, params)
    memory = rng.standard_normal(40).astype(np.float32)
    t = 0

    def step(a: Any, b: Any, **options: Any) -> None:
        nonlocal t
        t += 1
        grads = {"a": a, "b": b}
        mirror.step(
            {name: None if grad is None else grad.copy() for name, grad in grads.items()}, loss=loss(t), **options
        )
        optimizer.step(grads, loss=loss(t), **options)
        mirror.assert_like(optimizer, params, f"{case}, step {t}")

    step(memory[:6], memory[3:9])  # two gradients may overlap
    with refused(ValueError, ["'a'", "'b'", "shares memory"], memory_of(optimizer, memory)):
        optimizer.step({"a": memory[:6], "b": memory[3:9]}, zero_grads=True, **case.loss())
    step(memory[:6], memory[6:12], zero_grads=True)
    with refused(ValueError, ["shares memory"], memory_of(optimizer, memory)):
        optimizer.step({"a": memory[:6], "b": memory[5:11]}, zero_grads=True, **case.loss())
    with refused(ValueError, ["gradient of parameter 'b'", "shape"], memory_of(optimizer, memory)):
        optimizer.step({"a": memory[4:10], "b": memory[:5]}, zero_grads=True, **case.loss())
    with refused(ValueError, ["shares memory"], memory_of(optimizer, memory)):  # 'b' as in the last step that was done
        optimizer.step({"a": memory[4:10], "b": memory[6:12]}, zero_grads=True, **case.loss())
    step(None, memory[5:11])
    with refused(ValueError, ["shares memory"], memory_of(optimizer, memory)):
        optimizer.step({"a": memory[:6], "b": memory[5:11]}, zero_grads=True, **case.loss())
    step(memory[:6], memory[6:12], zero_grads=True)
    step(memory[:12:2], memory[1:13:2], zero_grads=True)
    with refused(ValueError, ["gradient of parameter 'b'", "parameter 'a'"], memory_of(optimizer, memory)):
        optimizer.step({"a": memory[:6], "b": params["a"]}, **case.loss())
    step(memory[:6], memory[6:12])


# --------------------------------------------------------------------------------------------- work that would be lost


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_gradients_of_0d_parameters(dtype: np.dtype[Any]) -> None:
    """NumPy's arithmetic on 0-d arrays returns scalars."""
    w, same, step = np.array(1.0, dtype), np.array(1.0, dtype), np.array(0.3, dtype)
    optimizer, plain = fs.RMSprop({"w": w}, verify="every"), fs.RMSprop({"w": same})
    for grad in (2 * (w - 3), 0.1, -0.3, step[()]):
        optimizer.step({"w": grad})
        plain.step({"w": np.array(grad, dtype)})
    assert not difference(w, same)
    with refused(TypeError, ["gradient of parameter 'w'", "0-d array", "zero_grads"], memory_of(optimizer)):
        optimizer.step({"w": w - 3}, zero_grads=True)
    other = np.int32(1) if dtype == np.float64 else np.float64(1.0)
    with refused(TypeError, ["gradient of parameter 'w'", "expected dtype"], memory_of(optimizer)):
        optimizer.step({"w": other})
    with refused(TypeError, ["gradient of parameter '0'", "numpy.ndarray"], []):
        fs.RMSprop(np.ones(2, dtype)).step(1.0)
