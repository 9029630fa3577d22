"""The C ABI: called from a C program, and from Python's ctypes and cffi on NumPy's memory."""

from __future__ import annotations

import ctypes
import inspect
import math
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
import native
from c_structs import (
    CHOICES,
    DTYPE_CODES,
    FIELDS,
    FLOAT32,
    FLOAT64,
    INT8,
    RULES,
    STRUCTS,
    at_step,
    fill,
    make_struct,
    of_struct,
)
from checks import assert_same, difference
from registry import CASES, DTYPES, Case, rose

Array = np.ndarray[Any, Any]

OK, INVALID_ARGUMENT, NONFINITE, OUT_OF_MEMORY = range(4)
CLASSES = {"rmsprop": fs.RMSprop, "adagrad": fs.Adagrad, "rprop": fs.Rprop, "proximal_adagrad": fs.ProximalAdagrad,
           "adagrad_da": fs.AdagradDA, "adagrad_norm": fs.AdagradNorm}  # fmt: skip
DIALECTS = fs.dialects()
NONFINITE_POLICIES = ("propagate", "skip", "raise")

# --------------------------------------------------------------------------------------------------------- from ctypes

_d, _b = ctypes.c_double, ctypes.c_uint8
CArray = make_struct("CArray", [("data", ctypes.c_void_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                            ("dtype", ctypes.c_int32), ("dimensions", ctypes.c_int32)])  # fmt: skip
CParameter = make_struct("CParameter", [("name", ctypes.c_char_p), ("array", CArray), ("group", ctypes.c_int64)])
CStepOptions = make_struct(
    "CStepOptions",
    [("size", ctypes.c_uint64), ("grad_scale", _d), ("clip_norm", _d), ("clip_value", _d), ("loss", _d),
     ("zero_grads", _b), ("nonfinite", _b)],
)  # fmt: skip
CStepReport = make_struct("CStepReport", [("size", ctypes.c_uint64), ("step", ctypes.c_int64), ("grad_norm", _d),
                                      ("skipped", _b)])  # fmt: skip

pointer, i32, i64, u64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
ARGUMENTS: dict[str, tuple[Any, list[Any]]] = {
    **{f"fusedstep_{rule}_init": (i32, [pointer, u64]) for rule in RULES},
    **{f"fusedstep_{rule}_like": (i32, [pointer, u64, ctypes.c_char_p]) for rule in DIALECTS},
    **{f"fusedstep_{rule}_step": (i32, [pointer, i64, pointer, pointer, pointer, i32]) for rule in RULES},
    "fusedstep_norm": (i32, [pointer, i64, pointer]),
    "fusedstep_optimizer_create": (i32, [ctypes.c_char_p, pointer, i64, pointer, i64, pointer]),
    "fusedstep_optimizer_destroy": (None, [pointer]),
    "fusedstep_step_options_init": (i32, [pointer, u64]),
    "fusedstep_optimizer_step": (i32, [pointer, pointer, i64, pointer, pointer]),
    "fusedstep_optimizer_set": (i32, [pointer, i64, pointer]),
    "fusedstep_optimizer_state": (i32, [pointer, i64, ctypes.c_char_p, pointer]),
    "fusedstep_num_threads": (i32, []),
    "fusedstep_set_num_threads": (i32, [i32]),
    "fusedstep_isa": (ctypes.c_char_p, []),
    "fusedstep_force_isa": (i32, [ctypes.c_char_p]),
    "fusedstep_last_error": (ctypes.c_char_p, []),
    "fusedstep_abi_version": (i32, []),
    "fusedstep_version": (ctypes.c_char_p, []),
}


class Library:
    """The shared library, its functions without their prefix."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in ARGUMENTS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("fusedstep_"), function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def error(self) -> str:
        return str(self.last_error().decode())

    def options(self, rule: str, values: Mapping[str, Any] | None = None, like: str | None = None) -> Any:
        """Return a rule's struct, initialised, with some values as Python writes them."""
        made = STRUCTS[rule]()
        if like is None:
            assert getattr(self, f"{rule}_init")(ctypes.byref(made), ctypes.sizeof(made)) == OK
        else:
            code = getattr(self, f"{rule}_like")(ctypes.byref(made), ctypes.sizeof(made), like.encode())
            assert code == OK, self.error()
        assert made.size == ctypes.sizeof(made)
        return fill(made, values or {})


def c_array(array: Array) -> Any:
    """Borrow: the struct lives as long as the array and no longer; its geometry hangs on it."""
    dimensions = array.ndim
    shape = (ctypes.c_int64 * max(dimensions, 1))(*array.shape)
    strides = (ctypes.c_int64 * max(dimensions, 1))(*array.strides)
    dtype = DTYPE_CODES[array.dtype.char]
    made = CArray(array.ctypes.data, ctypes.addressof(shape), ctypes.addressof(strides), dtype, dimensions)
    made.kept = array, shape, strides
    return made


def c_arrays(arrays: list[Array]) -> Any:
    made = [c_array(array) for array in arrays]
    row = (CArray * max(len(made), 1))(*made)
    row.kept = made
    return row


@pytest.fixture(scope="session")
def lib() -> Library:
    return Library(native.shared_library())


@pytest.fixture(autouse=True)
def one_thread_is_left(lib: Library) -> Iterator[None]:
    before = lib.num_threads(), lib.isa()
    yield
    assert lib.set_num_threads(before[0]) == OK
    assert lib.force_isa(before[1]) == OK


# Those that choose another kernel or another state; the kernels themselves are tested in Python.
CALLED = [case for case in CASES if case.has_function]


@pytest.mark.parametrize("case", CALLED, ids=repr)
def test_steps_have_the_bits_of_python(lib: Library, case: Case) -> None:
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        for transposed in (False, True):
            shape = (13, 17)
            param = rng.standard_normal(shape).astype(dtype)
            # In C the parameter may run otherwise than its states.
            mine = param.T.copy().T if transposed else param.copy()
            states = {s.name: np.full(s.shape(shape), s.start, s.dtype(dtype)) for s in case.states}
            of_c = {name: state.copy() for name, state in states.items()}
            options = of_struct(case)
            for t in range(1, 4):
                grad = rng.standard_normal(shape).astype(dtype)
                case.call({"param": param, "grad": grad, **states}, t)
                now = case.at_step(t, t > 1 and t % 2 == 0)
                struct = lib.options(case.rule, {**options, **at_step(case, now)})
                row = c_arrays(list(of_c.values()))
                code = getattr(lib, f"{case.rule}_step")(
                    ctypes.byref(struct), t, ctypes.byref(c_array(mine)), ctypes.byref(c_array(grad)), row, len(of_c)
                )
                assert code == OK, lib.error()
                assert_same({"param": mine, **of_c}, {"param": param, **states}, f"{dtype} after step {t}")


@pytest.mark.parametrize("t", [1, 2], ids=("the loss fell", "the loss rose"))
@pytest.mark.parametrize("case", [case for case in CALLED if case.rule == "rprop"], ids=repr)
def test_every_int8_as_the_last_sign(lib: Library, case: Case, t: int) -> None:
    """As in Python: of a ``prev_sign`` that is none of -1, 0 and 1 the sign counts."""
    prev_sign = np.arange(-128, 128).astype(np.int8).repeat(3)
    grad = np.resize(np.array([1.5, 0.0, -1e-40], np.float32), prev_sign.size)
    arrays = [np.ones(grad.shape, np.float32), np.full(grad.shape, 0.1, np.float32), prev_sign]
    expected = [arrays[0].copy(), arrays[1].copy(), np.sign(prev_sign)]
    case.call(dict(zip(("param", "step_size", "prev_sign"), expected, strict=True)) | {"grad": grad}, t)
    struct = lib.options("rprop", {**of_struct(case), **case.at_step(t, rose(t))})
    code = lib.rprop_step(
        ctypes.byref(struct), t, ctypes.byref(c_array(arrays[0])), ctypes.byref(c_array(grad)), c_arrays(arrays[1:]), 2
    )
    assert code == OK, lib.error()
    for found, wanted in zip(arrays, expected, strict=True):
        assert not difference(found, wanted)


def test_defaults_are_those_of_python(lib: Library) -> None:
    for rule in RULES:
        struct = lib.options(rule)
        for name in dict(FIELDS[rule]):
            found = getattr(struct, name)
            known = CHOICES.get(name)
            arguments = inspect.signature(CLASSES[rule]).parameters
            expected = arguments[name].default if name != "loss_increased" else False
            if known is not None:
                assert known[found] == expected
            else:
                assert (tuple(found) if name in ("etas", "step_sizes") else found) == expected, (rule, name)


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in DIALECTS for name in DIALECTS[rule]])
def test_dialects_are_those_of_python(lib: Library, rule: str, name: str) -> None:
    dialect = DIALECTS[rule][name]
    struct = lib.options(rule, like=name)
    for option in dialect["required"]:
        assert math.isnan(getattr(struct, option))
    for option, expected in {**dialect["defaults"], **dialect["fixed"]}.items():
        found = getattr(struct, option)
        known = CHOICES.get(option)
        assert (known[found] if known else list(found) if isinstance(expected, list) else found) == expected, option

    rng = np.random.default_rng(4)
    param = rng.standard_normal(100).astype(np.float32)
    theirs = param.copy()
    optimizer = CLASSES[rule].like(name, {"w": theirs}, lr=0.25)
    if dialect["required"]:
        with Optimizer(lib, rule, [lib.options(rule)], {"w": (param, 0)}) as made:
            assert lib.optimizer_set(made.handle, 0, ctypes.byref(struct)) == INVALID_ARGUMENT
        assert lib.error() == "lr: expected a finite number with lr >= 0, got nan"
    struct.lr = 0.25
    with Optimizer(lib, rule, [struct], {"w": (param, 0)}) as mine:
        for t in range(3):
            grad = rng.standard_normal(100).astype(np.float32)
            optimizer.step({"w": grad}, loss=float(t))
            assert mine.step([grad], loss=float(t))[0] == OK, lib.error()
            assert not difference(param, theirs)


@pytest.mark.parametrize("rule", DIALECTS)
def test_an_unknown_dialect_says_what_it_says_in_python(lib: Library, rule: str) -> None:
    struct = STRUCTS[rule]()
    like = getattr(lib, f"{rule}_like")
    with pytest.raises(ValueError, match="has no dialect 'keras2'") as caught:
        CLASSES[rule].like("keras2", np.zeros(1))
    assert like(ctypes.byref(struct), ctypes.sizeof(struct), b"keras2") == INVALID_ARGUMENT
    assert lib.error() == str(caught.value)
    assert like(ctypes.byref(struct), ctypes.sizeof(struct), None) == INVALID_ARGUMENT
    assert lib.error() == "dialect: expected a pointer, got NULL"
    assert like(None, ctypes.sizeof(struct), b"torch") == INVALID_ARGUMENT
    assert bytes(struct) == bytes(ctypes.sizeof(struct))  # nothing was written


def test_null_strides_are_those_of_rows_in_a_row(lib: Library) -> None:
    param, grad, square_avg = np.ones((3, 5)), np.arange(15.0).reshape(3, 5), np.zeros((3, 5))
    expected = param.copy(), square_avg.copy()
    fs.rmsprop_(expected[0], grad, expected[1], lr=0.01)
    row = c_arrays([param, grad, square_avg])
    for array in row:
        array.strides = None
    struct = lib.options("rmsprop")
    at = ctypes.addressof(row)
    size = ctypes.sizeof(CArray)
    assert lib.rmsprop_step(ctypes.byref(struct), 1, at, at + size, at + 2 * size, 1) == OK
    assert not difference(param, expected[0])
    assert not difference(square_avg, expected[1])


# ------------------------------------------------------------------------------------------------------------ optimizer


class Optimizer:
    """An optimizer of the C ABI on arrays by name, each in a group."""

    def __init__(self, lib: Library, rule: str, groups: list[Any], params: dict[str, tuple[Array, int]]) -> None:
        self.lib, self.rule = lib, rule
        self.handle = ctypes.c_void_p()
        pointers = (ctypes.c_void_p * len(groups))(*(ctypes.addressof(group) for group in groups))
        arrays = [c_array(array) for array, _ in params.values()]
        row = (CParameter * max(len(params), 1))(
            *(CParameter(name.encode(), array, group)
              for (name, (_, group)), array in zip(params.items(), arrays, strict=True))
        )  # fmt: skip
        self.code = lib.optimizer_create(rule.encode(), pointers, len(groups), row, len(params),
                                         ctypes.byref(self.handle))  # fmt: skip

    def __enter__(self) -> Optimizer:
        assert self.code == OK, self.lib.error()
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.optimizer_destroy(self.handle)

    def step(self, grads: list[Array | None], **options: Any) -> tuple[int, Any]:
        struct = CStepOptions()
        assert self.lib.step_options_init(ctypes.byref(struct), ctypes.sizeof(struct)) == OK
        for name, value in options.items():
            setattr(struct, name, value if name != "nonfinite" else NONFINITE_POLICIES.index(value))
        report = CStepReport(size=ctypes.sizeof(CStepReport))
        made = [CArray() if grad is None else c_array(grad) for grad in grads]
        row = (CArray * max(len(made), 1))(*made)
        code = self.lib.optimizer_step(self.handle, row, len(made), ctypes.byref(struct), ctypes.byref(report))
        return code, report

    def state(self, parameter: int, name: str) -> tuple[int, Any]:
        found = CArray()
        return self.lib.optimizer_state(self.handle, parameter, name.encode(), ctypes.byref(found)), found


def as_numpy(array: Any) -> Array:
    n = array.dimensions
    dtype = (np.float32, np.float64, np.int8)[array.dtype]
    shape = tuple((ctypes.c_int64 * n).from_address(array.shape)) if n else ()
    strides = tuple((ctypes.c_int64 * n).from_address(array.strides)) if n else ()
    first = np.ctypeslib.as_array(ctypes.cast(array.data, ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype))), (1,))
    return np.lib.stride_tricks.as_strided(first, shape, strides)


STEP_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"clip_norm": 0.5}, {"grad_scale": 8.0, "clip_value": 0.1, "zero_grads": True},
    {"clip_norm": 2.0, "nonfinite": "skip", "loss": 1.5}, {"clip_norm": 1e-3, "zero_grads": True, "loss": 2.5},
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_an_optimizer_does_what_that_of_python_does(lib: Library, rule: str) -> None:
    rng = np.random.default_rng(2)
    more: dict[str, Any] = {
        "rmsprop": {"centered": True, "momentum": 0.9, "bias_correction": True, "initial_square_avg": 0.3},
        "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.3},
        "proximal_adagrad": {"l1": 0.01},
        "adagrad_da": {"l1": 0.01},
        "adagrad_norm": {"initial_accumulator_value": 0.3},
        "rprop": {"variant": "irprop+"},
    }[rule]
    arrays = {
        "w": rng.standard_normal((40, 30)), "t": rng.standard_normal((6, 5, 4)).transpose(2, 0, 1)[:, ::-1],
        "none": np.zeros((0, 3)), "b": rng.standard_normal(30).astype(np.float32), "scale": np.array(2.0),
    }  # fmt: skip
    group_of = {"w": 0, "b": 1, "scale": 1, "t": 0, "none": 0}
    expected = {name: array.copy(order="K") for name, array in arrays.items()}
    theirs = CLASSES[rule]([{"params": {n: a for n, a in expected.items() if group_of[n] == k}, "lr": lr}
                  for k, lr in enumerate((0.1, 0.02))], **more)  # fmt: skip
    groups = [lib.options(rule, {"lr": lr, **more}) for lr in (0.1, 0.02)]
    with Optimizer(lib, rule, groups, {n: (a, group_of[n]) for n, a in arrays.items()}) as mine:
        for t, options in enumerate(STEP_OPTIONS, 1):
            grads = {n: rng.standard_normal(a.shape).astype(a.dtype) for n, a in arrays.items()}
            copies: dict[str, Any] = {n: g.copy() for n, g in grads.items()}
            passed: dict[str, Any] = dict(grads)
            if t == 3:
                passed["b"] = copies["b"] = None
            if t == 4:
                groups[1].lr = theirs.param_groups[1]["lr"] = 0.3
                assert lib.optimizer_set(mine.handle, 1, ctypes.byref(groups[1])) == OK
            loss = {"loss": float(t)} if rule == "rprop" else {}
            code, report = mine.step(list(passed.values()), **{**loss, **options})
            assert code == OK, lib.error()
            told = theirs.step([{n: g for n, g in copies.items() if group_of[n] == k} for k in (0, 1)],
                               **{**loss, **options})  # fmt: skip
            assert (report.step, bool(report.skipped)) == (told.step, told.skipped)
            assert (None if math.isnan(report.grad_norm) else report.grad_norm) == told.grad_norm
            assert ("clip_norm" in options) == (told.grad_norm is not None)
            assert bool(options.get("zero_grads")) == (not grads["w"].any())
            assert_same(arrays, expected, f"after step {t}")
            for index, name in enumerate(arrays):
                for state, theirs_now in theirs.state[name].items():
                    code, found = mine.state(index, state)
                    assert code == OK, lib.error()
                    now = as_numpy(found)
                    assert (now.shape, now.dtype) == (theirs_now.shape, theirs_now.dtype)
                    assert not difference(now, theirs_now), (name, state, t)
                    again = mine.state(index, state)[1]  # asking costs no memory
                    assert (again.shape, again.strides) == (found.shape, found.strides)


def test_norm(lib: Library) -> None:
    grads = [
        np.random.default_rng(k).standard_normal(10_000 * k).astype(d) for k, d in ((1, "f4"), (2, "f8"), (0, "f4"))
    ]
    found = ctypes.c_double()
    assert lib.norm(c_arrays(grads), 3, ctypes.byref(found)) == OK
    assert found.value == fs.reference.norm(grads)
    assert lib.norm(None, 0, ctypes.byref(found)) == OK
    assert found.value == 0.0


# --------------------------------------------------------------------------------------------------------------- errors


def test_bad_calls_of_a_step_say_what_is_wrong_and_write_nothing(lib: Library) -> None:
    param, grad, square_avg = np.ones(4), np.ones(4), np.zeros(4)
    good = lib.options("rmsprop")
    p, g, v = (c_array(array) for array in (param, grad, square_avg))

    def changed(array: Any, **fields: Any) -> Any:
        copy = CArray.from_buffer_copy(array)
        for name, value in fields.items():
            setattr(copy, name, value)
        return copy

    def step(options: Any = good, time: int = 1, param: Any = p, grad: Any = g, states: Any = v, count: int = 1) -> int:
        pointers = [None if x is None else ctypes.byref(x) for x in (options, param, grad, states)]
        return int(lib.rmsprop_step(pointers[0], time, pointers[1], pointers[2], pointers[3], count))

    def struct(**values: Any) -> Any:
        made = lib.options("rmsprop")
        for name, value in values.items():
            setattr(made, name, value)
        return made

    negative = (ctypes.c_int64 * 1)(-1)
    odd, huge, far = (ctypes.c_int64 * 1)(12), (ctypes.c_int64 * 1)(2**61), (ctypes.c_int64 * 1)(-(2**63))
    product = (ctypes.c_int64 * 3)(2**62, 0, 2**62)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"options": None}, "options: expected a pointer, got NULL"),
        ({"param": None}, "parameter: expected a pointer, got NULL"),
        ({"grad": None}, "gradient: expected a pointer, got NULL"),
        ({"states": None}, "arrays: expected a pointer, got NULL"),
        ({"param": changed(p, data=None)}, "param: expected data, got NULL"),
        ({"grad": changed(g, data=None)}, "grad: expected data, got NULL"),
        ({"states": changed(v, data=None)}, "square_avg: expected data, got NULL"),
        ({"param": changed(p, shape=None)}, "array.shape: expected a pointer, got NULL"),
        ({"param": changed(p, shape=ctypes.addressof(negative))}, "param: expected extents >= 0, got -1"),
        ({"param": changed(p, dtype=3)}, "no dtype 3"),
        ({"param": changed(p, dtype=-1)}, "no dtype -1"),
        ({"param": changed(p, dtype=INT8)}, "param: expected dtype float32 or float64, got int8"),
        ({"grad": changed(g, dtype=FLOAT32)}, "grad: expected dtype float64, got float32"),
        ({"param": changed(p, dimensions=9)}, "at most 8 dimensions, got 9"),
        ({"param": changed(p, dimensions=-1)}, "at most 8 dimensions, got -1"),
        ({"param": changed(p, data=param.ctypes.data + 1)}, "aligned to its dtype float64"),
        ({"param": changed(p, strides=ctypes.addressof(odd))}, "aligned to its dtype float64"),
        (
            {"param": changed(p, shape=ctypes.addressof(huge))},
            "shape (2305843009213693952,) with strides (8,) is larger",
        ),
        ({"grad": changed(g, strides=ctypes.addressof(far))}, "is larger than any memory"),
        (
            {"grad": changed(g, shape=ctypes.addressof(product), dimensions=3, strides=None)},
            "is larger than any memory",
        ),
        ({"grad": p}, "grad shares memory with param"),
        ({"count": 0}, "square_avg: needed by these hyperparameters"),
        ({"count": -1}, "count: expected >= 0, got -1"),
        ({"time": 0}, "time: expected a count from 1, got 0"),
        ({"options": struct(lr=-0.5)}, "lr: expected a finite number with lr >= 0, got -0.5"),
        ({"options": struct(eps=math.nan)}, "eps: expected a finite number"),
        ({"options": struct(initial_square_avg=-1.0)}, "initial_square_avg: expected a finite number"),
        ({"options": struct(centered=2)}, "centered: expected a value below 2, got 2"),
        ({"options": struct(momentum_form=2)}, "momentum_form: expected a value below 2, got 2"),
        ({"options": struct(nesterov=1)}, "nesterov=True needs momentum > 0"),
        ({"options": struct(momentum=0.9)}, "momentum_buffer: needed"),
        ({"options": struct(size=0)}, "expected a size of at most"),
        ({"options": struct(size=8)}, "call the _init function first"),
        ({"options": struct(size=ctypes.sizeof(good) + 8)}, f"got {ctypes.sizeof(good) + 8}"),
    ]
    for arguments, says in refused:
        assert step(**arguments) == INVALID_ARGUMENT, says
        assert says in lib.error()
    two = c_arrays([square_avg, np.zeros(4)])
    assert lib.rmsprop_step(ctypes.byref(good), 1, ctypes.byref(p), ctypes.byref(g), two, 2) == INVALID_ARGUMENT
    assert "use 1 of 2 arrays" in lib.error()
    rprop = lib.options("rprop")
    rprop.variant = 7
    assert lib.rprop_step(ctypes.byref(rprop), 1, ctypes.byref(p), ctypes.byref(g), two, 2) == INVALID_ARGUMENT
    assert "variant: expected a value below 7, got 7" in lib.error()
    for rule in RULES:
        assert getattr(lib, f"{rule}_init")(None, ctypes.sizeof(STRUCTS[rule])) == INVALID_ARGUMENT
        for size in (0, 8, ctypes.sizeof(STRUCTS[rule]) + 1):
            made = STRUCTS[rule]()
            assert getattr(lib, f"{rule}_init")(ctypes.byref(made), size) == INVALID_ARGUMENT
            assert f"got {size}; pass sizeof the struct" in lib.error()
            assert bytes(made) == bytes(ctypes.sizeof(made))  # nothing was written
    assert (param == 1).all()
    assert (grad == 1).all()
    assert not square_avg.any()
    last = lib.error()
    assert step() == OK
    assert lib.error() == last  # of the last call that failed
    assert square_avg.all()


def test_empty_arrays_without_data_are_checked_too(lib: Library) -> None:
    """Null stands for a state that a rule does without; an empty array may be null as well, and is not one of those."""
    none, other, one = (ctypes.c_int64 * 1)(0), (ctypes.c_int64 * 2)(5, 0), np.ones(())
    empty, misfit = (
        CArray(None, ctypes.addressof(none), None, FLOAT64, 1),
        CArray(None, ctypes.addressof(other), None, FLOAT64, 2),
    )
    for rule, state, code in (
        ("rmsprop", empty, OK), ("rmsprop", misfit, INVALID_ARGUMENT), ("adagrad_norm", c_array(one), OK),
        ("adagrad_norm", empty, INVALID_ARGUMENT), ("adagrad_norm", misfit, INVALID_ARGUMENT),
    ):  # fmt: skip
        step = getattr(lib, f"{rule}_step")
        options = ctypes.byref(lib.options(rule))
        empties = ctypes.byref(empty), ctypes.byref(empty)
        assert step(options, 1, *empties, ctypes.byref(state), 1) == code, lib.error()
        assert code == OK or "differs from shape" in lib.error()


def test_strides_of_one_element_are_nobodys_business(lib: Library) -> None:
    """An axis of extent 1 may have any stride, which leads nowhere."""
    shape, strides = (ctypes.c_int64 * 2)(1, 3), (ctypes.c_int64 * 2)(2**62 + 1, 8)
    param, grad, square_sum = np.zeros((1, 3)), np.ones((1, 3)), np.zeros(())
    made = [
        CArray(a.ctypes.data, ctypes.addressof(shape), ctypes.addressof(strides), FLOAT64, 2) for a in (param, grad)
    ]
    options = ctypes.byref(lib.options("adagrad_norm", {"lr": 1.0, "eps": 0.0}))
    arrays = [ctypes.byref(array) for array in (*made, c_array(square_sum))]
    assert lib.adagrad_norm_step(options, 1, *arrays, 1) == OK, lib.error()
    assert square_sum == 3.0
    assert not difference(param, -grad / np.sqrt(3.0))


def test_what_seems_large_is_refused_before_memory_is_asked_for(lib: Library) -> None:
    """2^44 elements that are all one: it cannot be written, whatever memory there is for its states."""
    shape, strides = (ctypes.c_int64 * 1)(2**44), (ctypes.c_int64 * 1)(0)
    w = np.zeros(1)
    same = CArray(w.ctypes.data, ctypes.addressof(shape), ctypes.addressof(strides), FLOAT64, 1)
    options = lib.options("rprop")
    groups = (ctypes.c_void_p * 1)(ctypes.addressof(options))
    row = (CParameter * 1)(CParameter(b"w", same, 0))
    handle = ctypes.c_void_p()
    assert lib.optimizer_create(b"rprop", groups, 1, row, 1, ctypes.byref(handle)) == INVALID_ARGUMENT
    assert "parameter 'w': elements of shape (17592186044416,) with strides (0,) share memory" in lib.error()


def test_a_struct_from_before_its_last_members_has_their_defaults(lib: Library) -> None:
    param, grad, square_avg = np.ones(4), np.full(4, 0.5), np.zeros(4)
    expected = param.copy(), square_avg.copy()
    fs.rmsprop_(expected[0], grad, expected[1], lr=0.25, alpha=0.5)
    options = lib.options("rmsprop", {"lr": 0.25, "alpha": 0.5, "eps": 7.0, "weight_decay": 9.0})
    options.size = STRUCTS["rmsprop"].eps.offset
    arrays = [ctypes.byref(c_array(array)) for array in (param, grad, square_avg)]
    assert lib.rmsprop_step(ctypes.byref(options), 1, *arrays, 1) == OK, lib.error()
    assert not difference(param, expected[0])
    assert not difference(square_avg, expected[1])

    with Optimizer(lib, "rmsprop", [lib.options("rmsprop")], {"w": (param, 0)}) as optimizer:
        step_options = CStepOptions()
        lib.step_options_init(ctypes.byref(step_options), ctypes.sizeof(step_options))
        step_options.size = CStepOptions.clip_norm.offset
        step_options.clip_norm = -1.0  # beyond its size: not read
        report = CStepReport(size=CStepReport.grad_norm.offset, step=-1, grad_norm=-1.0, skipped=77)
        code = lib.optimizer_step(optimizer.handle, arrays[1], 1, ctypes.byref(step_options), ctypes.byref(report))
        assert code == OK, lib.error()
        assert (report.size, report.step) == (CStepReport.grad_norm.offset, 1)
        assert (report.grad_norm, report.skipped) == (-1.0, 77)  # beyond its size: not written


def test_a_struct_from_before_its_last_members_is_not_written_beyond(lib: Library) -> None:
    """A program that was compiled before a struct grew has no room for what came later."""
    untouched = 0xA5
    for rule, struct in (*STRUCTS.items(), ("step_options", CStepOptions)):
        members = [getattr(struct, name) for name, _ in struct._fields_[1:]]
        whole = struct()
        assert getattr(lib, f"{rule}_init")(ctypes.byref(whole), ctypes.sizeof(whole)) == OK
        for k, size in enumerate(member.offset for member in members[1:]):
            room = (ctypes.c_uint8 * ctypes.sizeof(struct))(*[untouched] * ctypes.sizeof(struct))
            assert getattr(lib, f"{rule}_init")(ctypes.byref(room), size) == OK, lib.error()
            assert struct.from_buffer(room).size == size
            assert set(bytes(room)[size:]) == {untouched}
            for member in members[: k + 1]:
                there = slice(member.offset, member.offset + member.size)
                assert bytes(room)[there] == bytes(whole)[there]

    # As they were before they had initial_accumulator_value: an optimizer takes its default.
    options = STRUCTS["proximal_adagrad"]()
    assert (
        lib.proximal_adagrad_init(ctypes.byref(options), STRUCTS["proximal_adagrad"].initial_accumulator_value.offset)
        == OK
    )
    options.initial_accumulator_value = math.nan
    with Optimizer(lib, "proximal_adagrad", [options], {"w": (np.ones(4), 0)}) as optimizer:
        assert (as_numpy(optimizer.state(0, "square_sum")[1]) == 0.1).all()


def test_bad_calls_of_an_optimizer(lib: Library) -> None:
    w, g = np.ones(4), np.ones(4)
    good = lib.options("rmsprop")
    handle = ctypes.c_void_p(1)
    row = (CParameter * 1)(CParameter(b"w", c_array(w), 0))
    groups = (ctypes.c_void_p * 1)(ctypes.addressof(good))

    def create(*, rule: Any = b"rmsprop", groups: Any = groups, n: int = 1, row: Any = row, count: int = 1) -> int:
        return int(lib.optimizer_create(rule, groups, n, row, count, ctypes.byref(handle)))

    no_options = (ctypes.c_void_p * 1)(None)
    for arguments, says in (
        ({"rule": None}, "rule: expected a pointer"),
        ({"rule": b"adam"}, "no rule is called 'adam'"),
        ({"groups": None}, "options: expected a pointer"),
        ({"groups": no_options}, "options: expected a pointer"),
        ({"n": 0}, "groups: expected at least 1, got 0"),
        ({"row": None}, "parameters: expected a pointer"),
        ({"count": -1}, "count: expected >= 0, got -1"),
        ({"row": (CParameter * 1)(CParameter(None, c_array(w), 0))}, "name: expected a pointer"),
        ({"row": (CParameter * 1)(CParameter(b"w", c_array(w), 1))}, "parameter 'w': there is no group 1"),
        ({"row": (CParameter * 1)(CParameter(b"w", c_array(w), -1))}, "groups from 0"),
        (
            {"row": (CParameter * 1)(CParameter(b"w", CArray(dtype=FLOAT64), 0))},
            "parameter 'w': expected data, got NULL",
        ),
    ):
        assert create(**arguments) == INVALID_ARGUMENT, says
        assert says in lib.error()
        assert handle.value is None
    assert lib.optimizer_create(b"rmsprop", groups, 1, row, 1, None) == INVALID_ARGUMENT
    lib.optimizer_destroy(None)

    huge = (ctypes.c_int64 * 1)(2**46)
    too_large = CArray(w.ctypes.data, ctypes.addressof(huge), None, FLOAT64, 1)
    assert create(row=(CParameter * 1)(CParameter(b"w", too_large, 0))) == OUT_OF_MEMORY
    assert lib.error() == "out of memory"

    with Optimizer(lib, "rmsprop", [good], {"w": (w, 0)}) as optimizer:
        step = optimizer.step
        for options, says in (
            ({"grad_scale": 0.0}, "grad_scale: expected a finite number with grad_scale > 0, got 0"),
            ({"clip_norm": -0.5}, "clip_norm: expected a finite number with clip_norm > 0, got -0.5"),
            ({"clip_value": math.inf}, "clip_value: expected a finite number"),
            ({"zero_grads": 2}, "zero_grads: expected a value below 2, got 2"),
            ({"size": 0}, "step options: expected a size of at most"),
            ({"size": ctypes.sizeof(CStepOptions) + 1}, "step options: expected a size of at most"),
        ):
            assert step([g], **options)[0] == INVALID_ARGUMENT, says
            assert says in lib.error()
        assert step([])[0] == INVALID_ARGUMENT
        assert "expected one for each of 1 parameters, got 0" in lib.error()
        assert step([w])[0] == INVALID_ARGUMENT
        assert "gradient of parameter 'w' shares memory with parameter 'w'" in lib.error()
        unknown = CStepOptions()
        lib.step_options_init(ctypes.byref(unknown), ctypes.sizeof(unknown))
        unknown.nonfinite = 3
        call = lib.optimizer_step
        assert call(optimizer.handle, c_arrays([g]), 1, ctypes.byref(unknown), None) == INVALID_ARGUMENT
        assert "nonfinite: expected a value below 3, got 3" in lib.error()
        assert call(None, c_arrays([g]), 1, None, None) == INVALID_ARGUMENT
        assert call(optimizer.handle, None, 1, None, None) == INVALID_ARGUMENT
        for size in (0, 8, ctypes.sizeof(CStepReport) + 8):
            report = CStepReport(size=size)
            assert call(optimizer.handle, c_arrays([g]), 1, None, ctypes.byref(report)) == INVALID_ARGUMENT
            assert "report: expected a size" in lib.error()

        bad = np.array([1, math.nan, 1, 1])
        assert step([bad], nonfinite="raise", zero_grads=1)[0] == NONFINITE
        assert lib.error() == "inf or NaN in the gradient of 'w'; nothing was changed"
        code, report = step([bad], nonfinite="skip", zero_grads=1)
        assert (code, report.skipped, report.step) == (OK, 1, 0)
        assert np.isnan(bad[1])

        assert lib.optimizer_state(optimizer.handle, 0, None, ctypes.byref(CArray())) == INVALID_ARGUMENT
        assert lib.optimizer_state(optimizer.handle, 0, b"square_avg", None) == INVALID_ARGUMENT
        for index, name, says in (
            (0, "momentum_buffer", "there is no 'momentum_buffer'"),
            (1, "square_avg", "there is no parameter 1"),
            (-1, "square_avg", "got -1"),
        ):
            assert optimizer.state(index, name)[0] == INVALID_ARGUMENT
            assert says in lib.error()
        with_momentum = lib.options("rmsprop", {"momentum": 0.9})
        set_group = lib.optimizer_set
        for group, options, says in ((0, with_momentum, "parameter 'w' has no momentum_buffer"),
                                     (1, good, "there is no group 1"), (-1, good, "group: expected >= 0")):  # fmt: skip
            assert set_group(optimizer.handle, group, ctypes.byref(options)) == INVALID_ARGUMENT
            assert says in lib.error()
        assert set_group(optimizer.handle, 0, None) == INVALID_ARGUMENT
        assert set_group(None, 0, ctypes.byref(good)) == INVALID_ARGUMENT
        assert (w == 1).all()
        assert not as_numpy(optimizer.state(0, "square_avg")[1]).any()
        assert step([g])[1].step == 1  # after all that, the first
    found = ctypes.c_double()
    assert lib.norm(c_arrays([g]), 1, None) == INVALID_ARGUMENT
    assert lib.norm(None, 1, ctypes.byref(found)) == INVALID_ARGUMENT
    assert lib.norm(c_arrays([np.zeros(3, np.int8)]), 1, ctypes.byref(found)) == INVALID_ARGUMENT


def test_the_last_error_is_a_threads_own(lib: Library) -> None:
    assert lib.set_num_threads(0) == INVALID_ARGUMENT
    mine = lib.error()
    assert mine == "num_threads: expected a whole number from 1 to 256, got 0"
    seen = []

    def elsewhere() -> None:
        seen.append(lib.error())
        assert lib.force_isa(b"sse9") == INVALID_ARGUMENT
        seen.append(lib.error())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[0] == ""
    assert "'sse9'" in seen[1]
    assert lib.error() == mine


def test_versions_threads_and_instruction_sets(lib: Library) -> None:
    assert lib.abi_version() == 1
    assert lib.version().decode() == fs.__version__
    for n in (1, 3):
        assert lib.set_num_threads(n) == OK
        assert lib.num_threads() == n
    for name in fs.available_isas():
        assert lib.force_isa(name.encode()) == OK
        assert lib.isa().decode() == name
    assert lib.force_isa(b"") == OK
    assert lib.isa().decode() == fs.available_isas()[-1]
    assert lib.force_isa(None) == INVALID_ARGUMENT


# ----------------------------------------------------------------------------------------------------------- from cffi


def header() -> str:
    return (native.sources() / "cpp" / "include" / "fusedstep" / "fusedstep.h").read_text()


def test_from_cffi_by_the_header_itself() -> None:
    """cffi reads the declarations: what ctypes was told above by hand is what the header says."""
    cffi = pytest.importorskip("cffi")
    compiler = native.cc()
    told = subprocess.run([compiler, "-E", "-P", "-std=c11", "-x", "c", "-"], input=header(), capture_output=True,
                          text=True, check=True).stdout  # fmt: skip
    declarations = told[told.index("enum {") :]
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    for rule in RULES:
        assert ffi.sizeof(f"fusedstep_{rule}") == ctypes.sizeof(STRUCTS[rule])
        for name, _ in FIELDS[rule]:
            assert ffi.offsetof(f"fusedstep_{rule}", name) == getattr(STRUCTS[rule], name).offset
    for name, ours in (("array", CArray), ("parameter", CParameter), ("step_options", CStepOptions),
                       ("step_report", CStepReport)):  # fmt: skip
        assert ffi.sizeof(f"fusedstep_{name}") == ctypes.sizeof(ours)

    lib = ffi.dlopen(str(native.shared_library()))
    rng = np.random.default_rng(3)
    param, grad = (rng.standard_normal((5, 7)).astype(np.float32) for _ in range(2))
    step_size, prev_sign = np.full((5, 7), 0.1, np.float32), np.zeros((5, 7), np.int8)
    expected = [array.copy() for array in (param, step_size, prev_sign)]
    shape = ffi.new("int64_t[2]", (5, 7))

    def borrowed(array: Array) -> dict[str, Any]:
        dtype = lib.FUSEDSTEP_INT8 if array.dtype == np.int8 else lib.FUSEDSTEP_FLOAT32
        data = ffi.cast("void *", array.ctypes.data)
        return {"data": data, "shape": shape, "strides": ffi.NULL, "dtype": dtype, "dimensions": 2}

    options = ffi.new("fusedstep_rprop *")
    assert lib.fusedstep_rprop_init(options, ffi.sizeof("fusedstep_rprop")) == lib.FUSEDSTEP_OK
    options.variant = lib.FUSEDSTEP_IRPROP_MINUS
    states = ffi.new("fusedstep_array[2]", [borrowed(step_size), borrowed(prev_sign)])
    one = [ffi.new("fusedstep_array *", borrowed(array)) for array in (param, grad)]
    for t in (1, 2):
        assert lib.fusedstep_rprop_step(options, t, *one, states, 2) == lib.FUSEDSTEP_OK
        fs.rprop_(expected[0], grad, expected[1], expected[2], variant="irprop-")
    for found, wanted in zip((param, step_size, prev_sign), expected, strict=True):
        assert not difference(found, wanted)
    options.etas = (1.5, 1.2)
    assert lib.fusedstep_rprop_step(options, 3, *one, states, 2) == lib.FUSEDSTEP_INVALID_ARGUMENT
    assert ffi.string(lib.fusedstep_last_error()).decode().startswith("etas: ")


# -------------------------------------------------------------------------------------------------------------- from C

PROGRAM = r"""
#include <fusedstep/fusedstep.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MUST(call) do { if ((call) != FUSEDSTEP_OK) { puts(fusedstep_last_error()); return 1; } } while (0)

static void print(const char *name, const double *x, int n) {
  printf("%s", name);
  for (int i = 0; i < n; ++i) {
    uint64_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    printf(" %016llx", (unsigned long long)bits);
  }
  puts("");
}

int main(void) {
  if (fusedstep_abi_version() != FUSEDSTEP_ABI_VERSION) return 1;
  double w[6] = {1, -2, 3, -4, 5, -6}, g[6] = {0.5, 0.25, -0.125, 1, -2, 4};
  double square_avg[6] = {0}, grad_avg[6] = {0};
  const int64_t shape[2] = {2, 3};
  const fusedstep_array param = {w, shape, NULL, FUSEDSTEP_FLOAT64, 2}, grad = {g, shape, NULL, FUSEDSTEP_FLOAT64, 2};
  const fusedstep_array states[2] = {{square_avg, shape, NULL, FUSEDSTEP_FLOAT64, 2},
                                     {grad_avg, shape, NULL, FUSEDSTEP_FLOAT64, 2}};
  fusedstep_rmsprop rule;
  MUST(fusedstep_rmsprop_init(&rule, sizeof rule));
  rule.lr = 0.125;
  rule.centered = 1;
  for (int t = 1; t <= 3; ++t) MUST(fusedstep_rmsprop_step(&rule, t, &param, &grad, states, 2));
  print("w", w, 6);
  print("square_avg", square_avg, 6);
  print("grad_avg", grad_avg, 6);

  fusedstep_adagrad adagrad;
  MUST(fusedstep_adagrad_like(&adagrad, sizeof adagrad, "keras"));
  const void *groups[1] = {&adagrad};
  const fusedstep_parameter parameter = {"w", param, 0};
  fusedstep_optimizer *optimizer = NULL;
  MUST(fusedstep_optimizer_create("adagrad", groups, 1, &parameter, 1, &optimizer));
  fusedstep_step_options options;
  MUST(fusedstep_step_options_init(&options, sizeof options));
  options.clip_norm = 0.5;
  fusedstep_step_report report = {.size = sizeof report};
  MUST(fusedstep_optimizer_step(optimizer, &grad, 1, &options, &report));
  print("norm", &report.grad_norm, 1);
  fusedstep_array state;
  MUST(fusedstep_optimizer_state(optimizer, 0, "square_sum", &state));
  print("square_sum", state.data, 6);
  print("w", w, 6);

  g[2] = NAN;
  options.nonfinite = FUSEDSTEP_RAISE;
  if (fusedstep_optimizer_step(optimizer, &grad, 1, &options, NULL) != FUSEDSTEP_NONFINITE) return 1;
  puts(fusedstep_last_error());
  fusedstep_optimizer_destroy(optimizer);
  rule.lr = -1;
  if (fusedstep_rmsprop_step(&rule, 4, &param, &grad, states, 2) != FUSEDSTEP_INVALID_ARGUMENT) return 1;
  puts(fusedstep_last_error());
  return 0;
}
"""


def test_from_c(tmp_path: Path) -> None:
    library = native.shared_library()
    (tmp_path / "program.c").write_text(PROGRAM)
    native.run(native.cc(), "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I",
               native.sources() / "cpp" / "include", tmp_path / "program.c", "-o", tmp_path / "program", library,
               f"-Wl,-rpath,{library.parent}")  # fmt: skip
    found = native.run(tmp_path / "program").splitlines()

    w, g = np.array([[1.0, -2, 3], [-4, 5, -6]]), np.array([[0.5, 0.25, -0.125], [1, -2, 4]])
    square_avg, grad_avg = np.zeros_like(w), np.zeros_like(w)
    for _ in range(3):
        fs.rmsprop_(w, g, square_avg, grad_avg=grad_avg, lr=0.125)

    def bits(name: str, array: Array) -> str:
        return " ".join([name, *(f"{x:016x}" for x in np.asarray(array).reshape(-1).view(np.uint64).tolist())])

    expected = [bits("w", w), bits("square_avg", square_avg), bits("grad_avg", grad_avg)]
    optimizer = fs.Adagrad.like("keras", {"w": w})
    report = optimizer.step({"w": g}, clip_norm=0.5)
    expected += [bits("norm", np.array([report.grad_norm])), bits("square_sum", optimizer.state["w"]["square_sum"])]
    expected += [bits("w", w), "inf or NaN in the gradient of 'w'; nothing was changed"]
    expected += ["lr: expected a finite number with lr >= 0, got -1"]
    assert found == expected


def test_the_header_names_every_function_that_is_tested() -> None:
    text = re.sub(r"/\*.*?\*/", "", header(), flags=re.DOTALL)
    assert set(re.findall(r"\b(fusedstep_[a-z_]+)\(", text)) - {"fusedstep_"} <= set(ARGUMENTS)
