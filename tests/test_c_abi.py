"""The C ABI, called from Python by cffi, which reads the header itself, on NumPy's memory; and from a C program."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
import native
from cases import DTYPE_CODES
from checks import assert_same, difference
from fusedstep import _core
from registry import CASES, FULLEST_OF_RULE, STORAGES, Case, Storage, loss

cffi: Any = pytest.importorskip("cffi")
ffi = cffi.FFI()
NULL = ffi.NULL

Array = np.ndarray[Any, Any]

OK, INVALID_ARGUMENT, NONFINITE, OUT_OF_MEMORY = range(4)
FLOAT32, FLOAT64, INT8, BFLOAT16 = list(DTYPE_CODES.values())[:4]
NONFINITE_POLICIES = ("propagate", "skip", "raise")
RULES = _core.rules()
CLASSES = {case.rule: case.cls for case in CASES}
DIALECTS = fs.dialects()

KEPT: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""What must live as long as a struct that points to it."""


def borrow(*arrays: Array | None) -> Any:
    """Return arrays of the C ABI in NumPy's memory; None becomes one without data."""
    row = ffi.new("fusedstep_array[]", len(arrays))
    KEPT[row] = arrays, [_point(slot, array) for slot, array in zip(row, arrays, strict=True) if array is not None]
    return row


def _point(slot: Any, array: Array) -> Any:
    shape, strides = (ffi.new("int64_t[]", list(numbers)) for numbers in (array.shape, array.strides))
    slot.data, slot.shape, slot.strides = ffi.cast("void *", array.ctypes.data), shape, strides
    slot.dtype, slot.dimensions = DTYPE_CODES[array.dtype.name], array.ndim
    return shape, strides


def changed(row: Any, **fields: Any) -> Any:
    """Return a copy of the first array with some fields changed; a list becomes extents or strides."""
    made = ffi.new("fusedstep_array *", row[0])
    fields = {name: ffi.new("int64_t[]", x) if isinstance(x, list) else x for name, x in fields.items()}
    KEPT[made] = row, fields
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def as_numpy(array: Any) -> Array:
    dtype = np.dtype(list(DTYPE_CODES)[array.dtype])
    shape, strides = ([numbers[k] for k in range(array.dimensions)] for numbers in (array.shape, array.strides))
    first = np.frombuffer(ffi.buffer(array.data, dtype.itemsize), dtype)
    return np.lib.stride_tricks.as_strided(first, shape, strides)


class Library:
    """The shared library. Its functions have no prefix here."""

    def __init__(self, path: Path) -> None:
        header = native.sources() / "cpp" / "include" / "fusedstep" / "fusedstep.h"
        told = native.run(native.cc(), "-E", "-P", "-std=c11", header)
        ffi.cdef(told[told.index("enum {") :])
        self._library = ffi.dlopen(str(path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, f"fusedstep_{name}")

    def error(self) -> str:
        return str(ffi.string(self.last_error()).decode())

    def rule(self, name: str, options: Mapping[str, Any] | None = None, dialect: str | None = None) -> Any:
        """Make a rule with some options as Python writes them."""
        made = ffi.new("fusedstep_rule **")
        code = self.rule_create(name.encode(), NULL if dialect is None else dialect.encode(), made)
        assert code == OK, self.error()
        rule = ffi.gc(made[0], self.rule_destroy)
        for option, value in (options or {}).items():
            assert self.set(rule, option, value) == OK, self.error()
        return rule

    def set(self, rule: Any, option: str, value: Any) -> int:
        if isinstance(value, str):
            return int(self.rule_set_choice(rule, option.encode(), value.encode()))
        if isinstance(value, tuple | list):
            return int(self.rule_set_pair(rule, option.encode(), *value))
        return int(self.rule_set(rule, option.encode(), value))

    def get(self, rule: Any, option: str, kind: str) -> Any:
        if kind == "pair":
            pair = ffi.new("double[2]")
            assert self.rule_get_pair(rule, option.encode(), pair, pair + 1) == OK, self.error()
            return tuple(pair)
        if kind == "choice":
            text = ffi.new("char **")
            assert self.rule_get_choice(rule, option.encode(), text) == OK, self.error()
            return ffi.string(text[0]).decode()
        number = ffi.new("double *")
        assert self.rule_get(rule, option.encode(), number) == OK, self.error()
        return number[0]

    def states(self, rule: Any) -> list[str]:
        names: list[str] = []
        while (name := self.rule_state(rule, len(names))) != NULL:
            names.append(ffi.string(name).decode())
        return names


@pytest.fixture(scope="session")
def lib() -> Library:
    return Library(native.shared_library())


@pytest.fixture(autouse=True)
def library_settings_stay(lib: Library) -> Iterator[None]:
    before = lib.num_threads(), lib.isa()
    yield
    assert lib.set_num_threads(before[0]) == OK
    assert lib.force_isa(before[1]) == OK


# ---------------------------------------------------------------------------------------------------------------- steps


def test_strides(lib: Library) -> None:
    """NULL means C order, and that of an axis of one element does not matter."""
    param, grad, square_avg = np.ones((3, 5)), np.arange(15.0).reshape(3, 5), np.zeros((3, 5))
    expected = param.copy(), square_avg.copy()
    fs.rmsprop_(expected[0], grad, expected[1], lr=0.01)
    arrays = [changed(borrow(array), strides=NULL) for array in (param, grad, square_avg)]
    assert lib.step(lib.rule("rmsprop"), 1, *arrays, 1) == OK
    assert not difference(param, expected[0])
    assert not difference(square_avg, expected[1])
    param, grad, square_sum = np.zeros((1, 3)), np.ones((1, 3)), np.zeros(())
    made = [changed(borrow(array), strides=[2**62 + 1, 8]) for array in (param, grad)]
    assert lib.step(lib.rule("adagrad_norm", {"lr": 1.0, "eps": 0.0}), 1, *made, borrow(square_sum), 1) == OK
    assert square_sum == 3.0
    assert not difference(param, -grad / np.sqrt(3.0))


# -------------------------------------------------------------------------------------------------------------- options

OPTIONS = [(rule, name) for rule, about in RULES.items() for name in about["fields"]]
SETTERS = {"real": "rule_set", "flag": "rule_set", "pair": "rule_set_pair", "choice": "rule_set_choice"}
GETTERS = {kind: setter.replace("_set", "_get") for kind, setter in SETTERS.items()}


def good_and_bad_values(field: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    default = field["default"]
    if field["kind"] == "choice":
        return [*field["choices"]], ["x", ""]
    if field["kind"] == "flag":
        return [True, False, not default], [2.0, 0.5, -1.0, math.nan]
    if field["kind"] == "pair":
        first, second = default
        return [tuple(math.nextafter(x, 0.5) for x in default)], [(math.nan, second), (first, math.inf)]
    return [math.nextafter(default, 0.5)], [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(("rule", "name"), OPTIONS)
def test_an_option_is_set_and_read_by_its_name(lib: Library, rule: str, name: str) -> None:
    field = RULES[rule]["fields"][name]
    kind = field["kind"]
    made, untouched = lib.rule(rule), lib.rule(rule)
    good, bad = good_and_bad_values(field)
    assert lib.get(made, name, kind) == field["default"]
    for value in good:
        assert lib.set(made, name, value) == OK, lib.error()
        assert lib.get(made, name, kind) == value
    for value in bad:
        assert lib.set(made, name, value) == INVALID_ARGUMENT
        assert lib.error().startswith(f"{name}: expected ")
        for choice in field["choices"]:
            assert f"'{choice}'" in lib.error()
    out = ffi.new("double[2]"), ffi.new("char **")
    for setter, arguments in (("rule_set", [1.0]), ("rule_set_pair", [0.5, 1.5]), ("rule_set_choice", [b"x"])):
        getter = setter.replace("_set", "_get")
        places = {"rule_get": [out[0]], "rule_get_pair": [out[0], out[0] + 1], "rule_get_choice": [out[1]]}[getter]
        if setter != SETTERS[kind]:
            assert getattr(lib, setter)(made, name.encode(), *arguments) == INVALID_ARGUMENT
            assert lib.error().startswith(f"{name}: expected a ")
            assert lib.error().endswith(f"use fusedstep_{SETTERS[kind]}")
            assert getattr(lib, getter)(made, name.encode(), *places) == INVALID_ARGUMENT
            assert lib.error().endswith(f"use fusedstep_{GETTERS[kind]}")
        unknown = f"option of {rule}: expected one of "
        for function, more in ((setter, arguments), (getter, places)):
            assert getattr(lib, function)(made, f"{name}x".encode(), *more) == INVALID_ARGUMENT
            assert lib.error().startswith(unknown)
            assert lib.error().endswith(f", got '{name}x'")
            assert set(RULES[rule]["fields"]) <= set(lib.error().split("'"))
    assert lib.get(made, name, kind) == good[-1]
    assert lib.get(untouched, name, kind) == field["default"]


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in DIALECTS for name in DIALECTS[rule]])
def test_dialects_are_those_of_python(lib: Library, rule: str, name: str) -> None:
    dialect = DIALECTS[rule][name]
    made = lib.rule(rule, dialect=name)
    fields = RULES[rule]["fields"]
    for option in dialect["required"]:
        assert math.isnan(lib.get(made, option, "real"))
    for option, expected in {**dialect["defaults"], **dialect["fixed"]}.items():
        found = lib.get(made, option, fields[option]["kind"])
        assert (list(found) if isinstance(expected, list) else found) == expected, option


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_not_there(lib: Library, rule: str) -> None:
    made = ffi.new("fusedstep_rule **", ffi.cast("fusedstep_rule *", 8))
    for name, dialect, says in (
        (b"x", NULL, ["rule: expected one of ", ", got 'x'", *(f"'{name}'" for name in RULES)]),
        (NULL, NULL, ["expected a pointer, got NULL"]),
        (rule.encode(), b"keras2", ["'keras2'", *DIALECTS.get(rule, ())]),
    ):
        assert lib.rule_create(name, dialect, made) == INVALID_ARGUMENT
        assert made[0] == NULL
        for text in says:
            assert text in lib.error()
    assert lib.rule_create(rule.encode(), NULL, NULL) == INVALID_ARGUMENT
    lib.rule_destroy(NULL)


def test_null_pointers_of_an_option(lib: Library) -> None:
    rule = lib.rule("rprop")
    number, text = ffi.new("double *"), ffi.new("char **")
    for call, *arguments in (
        (lib.rule_set, rule, b"lr", 1.0), (lib.rule_set_pair, rule, b"etas", 0.5, 1.5),
        (lib.rule_set_choice, rule, b"variant", b"rprop+"), (lib.rule_get, rule, b"lr", number),
        (lib.rule_get_pair, rule, b"etas", number, number), (lib.rule_get_choice, rule, b"variant", text),
    ):  # fmt: skip
        assert call(*arguments) == OK
        for k, argument in enumerate(arguments):
            if not isinstance(argument, float):
                assert call(*arguments[:k], NULL, *arguments[k + 1 :]) == INVALID_ARGUMENT
                assert lib.error().endswith(": expected a pointer, got NULL")
    assert [lib.rule_state(*arguments) for arguments in ((NULL, 0), (rule, -1), (rule, 2**31 - 1))] == [NULL] * 3


# ------------------------------------------------------------------------------------------------------------ optimizer


def make_parameters(params: Mapping[str | None, tuple[Any, int]]) -> Any:
    """Return parameters: each name with its arrays, of which the first is used, and its group."""
    row = ffi.new("fusedstep_parameter[]", len(params))
    names = [NULL if name is None else ffi.new("char[]", name.encode()) for name in params]
    for slot, name, (array, group) in zip(row, names, params.values(), strict=True):
        slot.name, slot.array, slot.group = name, array[0], group
    KEPT[row] = names, params
    return row


class Optimizer:
    """An optimizer of the C ABI on arrays by name, each in a group."""

    def __init__(
        self,
        lib: Library,
        rules: list[Any],
        params: Mapping[str, tuple[Array, int]],
        storage: Any = None,
        seed: int = 0,
    ) -> None:
        self._lib = lib
        made = ffi.new("fusedstep_optimizer **")
        row = make_parameters({name: (borrow(array), group) for name, (array, group) in params.items()})
        of_groups = ffi.new("fusedstep_rule *[]", rules)
        if storage is None:
            self.code = lib.optimizer_create(of_groups, len(rules), row, len(params), made)
        else:
            self.code = lib.optimizer_create_narrow(of_groups, storage, len(rules), row, len(params), seed, made)
        self.handle = ffi.gc(made[0], lib.optimizer_destroy)

    def step(self, grads: Sequence[Array | None], index: Array | None = None, **options: Any) -> tuple[int, Any]:
        """Do a step; ``index`` has the rows of the first gradient."""
        passed = ffi.new("fusedstep_step_options *")
        assert self._lib.step_options_init(passed, ffi.sizeof(passed[0])) == OK
        for name, value in options.items():
            setattr(passed, name, NONFINITE_POLICIES.index(value) if isinstance(value, str) else value)
        report = ffi.new("fusedstep_step_report *")
        report.size = ffi.sizeof(report[0])
        if index is None:
            return self._lib.optimizer_step(self.handle, borrow(*grads), len(grads), passed, report), report
        indices = borrow(index, *(None for _ in grads[1:]))
        return self._lib.optimizer_step_rows(self.handle, indices, borrow(*grads), len(grads), passed, report), report

    def state(self, parameter: int, name: str) -> tuple[int, Any]:
        found = ffi.new("fusedstep_array *")
        return self._lib.optimizer_state(self.handle, parameter, name.encode(), found), found


STEP_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"clip_norm": 0.5}, {"grad_scale": 8.0, "clip_value": 0.1, "zero_grads": True},
    {"clip_norm": 2.0, "nonfinite": "skip"}, {"clip_norm": 1e-3, "zero_grads": True},
)  # fmt: skip


def storage_of(storage: Storage, **changed: int) -> Any:
    """Return the storage of two groups as the C ABI has it."""
    made = ffi.new("fusedstep_storage[]", 2)
    for each in made:
        each.size, each.master = ffi.sizeof(each), storage.master
        each.state_dtype = BFLOAT16 if storage.class_options["state_dtype"] else -1
        each.rounding = ("nearest", "stochastic").index(storage.class_options["rounding"])
        for name, value in changed.items():
            setattr(each, name, value)
    return made


STORED = [case.as_stored(storage) for case in FULLEST_OF_RULE for storage in STORAGES]


@pytest.mark.parametrize("case", [*CASES, *STORED], ids=repr)
def test_an_optimizer_does_what_that_of_python_does(lib: Library, case: Case) -> None:
    """Two groups in several layouts, also of 16 bits with a seed, with options of a step; a gradient of rows where the
    rule takes them, and low halves that are dropped."""
    rng = np.random.default_rng(2)
    storage, fields = case.storage, RULES[case.rule]["fields"]
    arrays: dict[str, Array] = {
        "w": rng.standard_normal((40, 30)), "t": rng.standard_normal((6, 5, 4)).transpose(2, 0, 1)[:, ::-1],
        "none": np.zeros((0, 3)), "b": rng.standard_normal(30).astype(np.float32), "scale": np.array(2.0),
    }  # fmt: skip
    if storage is not None:
        arrays = {n: a.astype(np.float32).astype(storage.param) for n, a in arrays.items()}
    group_of = {"w": 0, "b": 1, "scale": 1, "t": 0, "none": 0}
    expected = {name: array.copy(order="K") for name, array in arrays.items()}
    groups = [{**case.class_options, "lr": lr} for lr in (0.1, 0.02)]
    theirs = case.cls([{"params": {n: a for n, a in expected.items() if group_of[n] == k}, **options}
                       for k, options in enumerate(groups)], seed=2**64 - 3)  # fmt: skip

    def rule(group: int, **more: Any) -> Any:
        return lib.rule(case.rule, {name: value for name, value in groups[group].items() if name in fields} | more)

    named = {n: (a, group_of[n]) for n, a in arrays.items()}
    mine = Optimizer(lib, [rule(0), rule(1)], named, storage and storage_of(storage), 2**64 - 3)
    assert mine.code == OK, lib.error()
    for t, options in enumerate(STEP_OPTIONS, 1):
        grads = {n: np.asarray(rng.standard_normal(a.shape)).astype(storage.grad if storage else a.dtype)
                 for n, a in arrays.items()}  # fmt: skip
        index = rng.integers(0, 40, 8).astype(np.int32) if t == 5 and RULES[case.rule]["rows"] else None
        if index is not None:
            grads["w"] = grads["w"][:8].copy()
        copies: dict[str, Any] = {n: g.copy() for n, g in grads.items()}
        passed: dict[str, Any] = dict(grads)
        if index is not None:
            copies["w"] = fs.Rows(index, copies["w"])
        if t == 3:
            passed["b"] = copies["b"] = None
        if t == 4:
            theirs.param_groups[1]["weight_decay"] = 0.3
            assert lib.optimizer_set(mine.handle, 1, rule(1, weight_decay=0.3)) == OK, lib.error()
        options = {"loss": loss(t), **options}
        code, report = mine.step(list(passed.values()), index, **options)
        assert code == OK, lib.error()
        told = theirs.step([{n: g for n, g in copies.items() if group_of[n] == k} for k in (0, 1)], **options)
        assert (report.step, bool(report.skipped)) == (told.step, told.skipped)
        assert (None if math.isnan(report.grad_norm) else report.grad_norm) == told.grad_norm
        assert ("clip_norm" in options) == (told.grad_norm is not None)
        assert bool(options.get("zero_grads")) == (not grads["w"].any())
        assert_same(arrays, expected, f"after step {t}")
        for number, name in enumerate(arrays):
            for state, theirs_now in theirs.state[name].items():
                code, found = mine.state(number, state)
                assert code == OK, lib.error()
                assert not difference(as_numpy(found), theirs_now), (name, state, t)
                again = mine.state(number, state)[1]  # asking costs no memory
                assert (again.shape, again.strides) == (found.shape, found.strides)
        if storage and storage.master and t == 2:
            assert lib.optimizer_sync_master(mine.handle, 0) == OK
            theirs.sync_master("w")


def test_bad_storage_says_what_is_wrong(lib: Library) -> None:
    """Refuse a bad struct, and storage that a parameter can't have."""
    rule, w = [lib.rule("adagrad")], {"w": (np.ones(3, np.float32), 0)}
    plain = Storage(np.float32, np.float32, np.float32)
    for changed, says in (
        ({"size": 0}, "storage: "),
        ({"state_dtype": 6}, "state_dtype: expected a dtype from 0 to 5, or -1, got 6"),
        ({"state_dtype": -2}, "state_dtype: expected a dtype from 0 to 5, or -1, got -2"),
        ({"state_dtype": FLOAT64}, "state_dtype: expected none or bfloat16 for parameter 'w' of dtype float32, got "),
        ({"rounding": 2}, "rounding: expected a value below 2, got 2"),
        ({"master": 2}, "master: expected a value below 2, got 2"),
        ({"master": 1}, "master: expected a parameter of dtype bfloat16, which has low halves, got parameter 'w' of "
                        "dtype float32"),
    ):  # fmt: skip
        assert Optimizer(lib, rule, w, storage_of(plain, **changed)).code == INVALID_ARGUMENT
        assert lib.error().startswith(says)
    assert lib.noise_key(0, 0, b"w", ffi.new("uint64_t *")) == INVALID_ARGUMENT
    assert lib.error() == "step: expected a count from 1, got 0"
    for name, key in ((NULL, ffi.new("uint64_t *")), (b"w", NULL)):
        assert lib.noise_key(0, 1, name, key) == INVALID_ARGUMENT
        assert lib.error().endswith(": expected a pointer, got NULL")


def test_norm(lib: Library) -> None:
    rng = np.random.default_rng(1)
    grads = [rng.standard_normal(n).astype(dtype) for n, dtype in ((10_000, "f4"), (20_000, "f8"), (0, "f4"))]
    found = ffi.new("double *")
    for some in (grads, []):
        assert lib.norm(borrow(*some) if some else NULL, len(some), found) == OK
        assert found[0] == fs.reference.norm(some)


# --------------------------------------------------------------------------------------------------------------- errors


def test_bad_calls_of_a_step_say_what_is_wrong_and_write_nothing(lib: Library) -> None:
    param, grad, square_avg = np.ones(4), np.ones(4), np.zeros(4)
    p, g, v = borrow(param), borrow(grad), borrow(square_avg, np.zeros(4))
    good = lib.rule("rmsprop")

    def step(rule: Any = good, t: int = 1, param: Any = p, grad: Any = g, states: Any = v, count: int = 1) -> int:
        return int(lib.step(rule, t, param, grad, states, count))

    def rule(**options: Any) -> Any:
        return lib.rule("rmsprop", options)

    refused: list[tuple[dict[str, Any], str]] = [
        ({"rule": NULL}, "rule: expected a pointer, got NULL"),
        ({"param": NULL}, "parameter: expected a pointer, got NULL"),
        ({"grad": NULL}, "gradient: expected a pointer, got NULL"),
        ({"states": NULL}, "expected a pointer, got NULL"),
        ({"param": changed(p, data=NULL)}, "param: expected data, got NULL"),
        ({"grad": changed(g, data=NULL)}, "grad: expected data, got NULL"),
        ({"states": changed(v, data=NULL)}, "square_avg: expected data, got NULL"),
        ({"param": changed(p, shape=NULL)}, "shape: expected a pointer, got NULL"),
        ({"param": changed(p, shape=[-1])}, "param: expected extents >= 0, got -1"),
        ({"param": changed(p, dtype=10)}, "expected a dtype from 0 to 9, got 10"),
        ({"param": changed(p, dtype=INT8)}, "param: expected dtype float32, float64, bfloat16 or float16, got int8"),
        ({"param": changed(p, dimensions=9)}, "at most 8 dimensions, got 9"),
        ({"param": changed(p, dimensions=-1)}, "at most 8 dimensions, got -1"),
        ({"param": changed(p, data=p[0].data + 1)}, "aligned to its dtype float64"),
        ({"param": changed(p, shape=[2**61])}, "fits into memory, got shape (2305843009213693952,) with strides (8,)"),
        ({"grad": changed(g, strides=[-(2**63)])}, "grad: expected an array that fits into memory, got "),
        ({"param": changed(p, strides=[0])}, "share memory"),
        ({"states": p}, "square_avg shares memory with param"),
        ({"grad": changed(g, shape=[3])}, "grad: expected shape (4,), that of the parameter, got (3,)"),
        ({"count": 0}, "square_avg: needed by these hyperparameters"),
        ({"count": -1}, "count: expected >= 0, got -1"),
        ({"count": 2}, "states: expected the 1 that these hyperparameters use, got 2"),
        ({"t": 0}, "step: expected a count from 1, got 0"),
        ({"rule": rule(nesterov=True)}, "nesterov: expected momentum > 0, got momentum 0"),
        ({"rule": lib.rule("rmsprop", dialect="tf1")}, "lr: expected a finite number with lr >= 0, got nan"),
    ]
    for arguments, says in refused:
        assert step(**arguments) == INVALID_ARGUMENT, says
        assert says in lib.error()
        assert not {"None", "True", "False"} & set(lib.error().replace("=", " ").split())
    assert (param == 1).all()
    assert (grad == 1).all()
    assert not square_avg.any()
    last = lib.error()
    assert step() == OK
    assert lib.error() == last  # the error of the last call that failed
    assert square_avg.all()


def test_empty_arrays_without_data_are_checked_too(lib: Library) -> None:
    """Accept NULL for a state that the rule does not use, and for an empty array, which is used."""
    like = borrow(np.zeros(1))
    empty = changed(like, data=NULL, shape=[0])
    misfit = changed(like, data=NULL, shape=[5, 0], strides=NULL, dimensions=2)
    for rule, state, code in (
        ("rmsprop", empty, OK), ("rmsprop", misfit, INVALID_ARGUMENT), ("adagrad_norm", borrow(np.ones(())), OK),
        ("adagrad_norm", empty, INVALID_ARGUMENT), ("adagrad_norm", misfit, INVALID_ARGUMENT),
    ):  # fmt: skip
        assert lib.step(lib.rule(rule), 1, empty, empty, state, 1) == code, lib.error()
        assert code == OK or ": expected shape " in lib.error()


def test_an_old_struct_is_not_read_or_written_beyond_its_size(lib: Library) -> None:
    """Use defaults for members that a struct lacks because the program was compiled before it grew."""
    untouched = 0xA5
    whole = ffi.new("fusedstep_step_options *")
    known = ffi.sizeof(whole[0])
    assert lib.step_options_init(whole, known) == OK
    offsets = [field.offset for _, field in ffi.typeof(whole[0]).fields]
    for size in (*offsets[1:], known):
        room = ffi.new("uint8_t[]", [untouched] * known)
        made = ffi.cast("fusedstep_step_options *", room)
        if size > offsets[1]:
            assert lib.step_options_init(made, size) == OK, lib.error()
            assert made.size == size
            assert bytes(room)[offsets[1] : size] == bytes(ffi.buffer(whole))[offsets[1] : size]
            assert set(bytes(room)[size:]) <= {untouched}
    for size in (0, 8, known + 1):
        room = ffi.new("uint8_t[]", known)
        assert lib.step_options_init(ffi.cast("fusedstep_step_options *", room), size) == INVALID_ARGUMENT
        assert f"got {size}; pass sizeof the struct" in lib.error()
        assert not any(room)
    assert lib.step_options_init(NULL, known) == INVALID_ARGUMENT

    w = np.ones(4)
    optimizer = Optimizer(lib, [lib.rule("rmsprop")], {"w": (w, 0)})
    whole.size = ffi.offsetof("fusedstep_step_options", "clip_norm")
    whole.clip_norm = -1.0  # beyond its size, so not read
    size = ffi.offsetof("fusedstep_step_report", "grad_norm")
    report = ffi.new("fusedstep_step_report *", {"size": size, "step": -1, "grad_norm": -1.0, "skipped": 77})
    assert lib.optimizer_step(optimizer.handle, borrow(np.ones(4)), 1, whole, report) == OK, lib.error()
    assert (report.size, report.step) == (size, 1)
    assert (report.grad_norm, report.skipped) == (-1.0, 77)  # beyond its size, so not written


def test_an_optimizer_that_cannot_be_made(lib: Library) -> None:
    w = borrow(np.ones(4))
    good = lib.rule("rmsprop")
    handle = ffi.new("fusedstep_optimizer **")

    def of(array: Any, name: str | None = "w", group: int = 0) -> dict[str, Any]:
        return {"params": make_parameters({name: (array, group)})}

    huge = changed(w, shape=[2**46], strides=NULL)
    same = changed(w, shape=[2**44], strides=[0])  # 2^44 elements in one place
    one = {"rules": [good], "count": 1, **of(w)}
    twice = {"rules": [good, good], "params": make_parameters({"w": (w, 0), "v": (w, 1)}), "count": 2}
    for arguments, says in (
        ({"rules": NULL}, "rules: expected a pointer"),
        ({"rules": [NULL]}, "expected a pointer, got NULL"),
        ({"rules": []}, "groups: expected at least 1, got 0"),
        ({"rules": [good, lib.rule("adagrad")]}, "adagrad"),
        ({"params": NULL}, "parameters: expected a pointer"),
        ({"count": -1}, "count: expected >= 0, got -1"),
        (of(w, name=None), "name: expected a pointer"),
        (twice, "parameter 'v' (group 1) shares memory with parameter 'w' (group 0)"),
        (of(w, group=1), "parameter 'w': expected a group below 1, got 1"),
        (of(w, group=-1), "parameters: expected groups from 0, got -1"),
        (of(changed(w, data=NULL)), "parameter 'w': expected data, got NULL"),
        (of(huge), "out of memory"),
        # This is refused before memory is allocated.
        (of(same), "'w': elements of shape (17592186044416,) with strides (0,) share memory"),
    ):
        given: dict[str, Any] = {**one, **arguments}
        rules = given["rules"]
        row = rules if rules == NULL else ffi.new("fusedstep_rule *[]", rules)
        handle[0] = ffi.cast("fusedstep_optimizer *", 8)
        code = lib.optimizer_create(row, 1 if rules == NULL else len(rules), given["params"], given["count"], handle)
        assert code == (OUT_OF_MEMORY if says == "out of memory" else INVALID_ARGUMENT), says
        assert says in lib.error()
        assert handle[0] == NULL
    assert lib.optimizer_create(ffi.new("fusedstep_rule *[]", [good]), 1, one["params"], 1, NULL) == INVALID_ARGUMENT
    lib.optimizer_destroy(NULL)


def test_bad_calls_of_an_optimizer(lib: Library) -> None:
    w, g = np.ones(4), np.ones(4)
    good = lib.rule("rmsprop")
    optimizer = Optimizer(lib, [good], {"w": (w, 0)})
    step, handle = optimizer.step, optimizer.handle
    size = ffi.sizeof("fusedstep_step_options")
    for grads, options, says in (
        ([g], {"grad_scale": 0.0}, "grad_scale: expected a finite number with grad_scale > 0, got 0"),
        ([g], {"zero_grads": 2}, "zero_grads: expected a value below 2, got 2"),
        ([g], {"nonfinite": 3}, "nonfinite: expected a value below 3, got 3"),
        ([g], {"size": 0}, "step options: expected a size of at most"),
        ([g], {"size": size + 1}, "step options: expected a size of at most"),
        ([], {}, "expected one for each of 1 parameters, got 0"),
        ([w], {}, "gradient of parameter 'w' shares memory with parameter 'w'"),
        ([np.ones(3)], {}, "gradient of parameter 'w': expected shape (4,), that of the parameter, got (3,)"),
    ):  # fmt: skip
        assert step(grads, **options)[0] == INVALID_ARGUMENT, says
        assert says in lib.error()
    call = lib.optimizer_step
    assert call(NULL, borrow(g), 1, NULL, NULL) == INVALID_ARGUMENT
    assert call(handle, NULL, 1, NULL, NULL) == INVALID_ARGUMENT
    for size in (0, 8, ffi.sizeof("fusedstep_step_report") + 8):
        report = ffi.new("fusedstep_step_report *", {"size": size})
        assert call(handle, borrow(g), 1, NULL, report) == INVALID_ARGUMENT
        assert "report: expected a size" in lib.error()

    bad = np.array([1, math.nan, 1, 1])
    assert step([bad], nonfinite="raise", zero_grads=1)[0] == NONFINITE
    assert lib.error() == "inf or NaN in the gradient of 'w'; nothing was changed"
    code, report = step([bad], nonfinite="skip", zero_grads=1)
    assert (code, report.skipped, report.step) == (OK, 1, 0)
    assert not bad.any()

    found = ffi.new("fusedstep_array *")
    for call, arguments, says in (
        (lib.optimizer_state, (handle, 0, NULL, found), "name: expected a pointer, got NULL"),
        (lib.optimizer_state, (handle, 0, b"square_avg", NULL), "state: expected a pointer, got NULL"),
        (lib.optimizer_state, (handle, 0, b"momentum_buffer", found), "there is no 'momentum_buffer'"),
        (lib.optimizer_state, (handle, 1, b"square_avg", found), "parameter: expected one below 1, got 1"),
        (lib.optimizer_set, (handle, 0, lib.rule("rmsprop", {"momentum": 0.9})), "'w' has no 'momentum_buffer'"),
        (lib.optimizer_set, (handle, 0, lib.rule("adagrad")), "adagrad"),
        (lib.optimizer_set, (handle, -1, good), "group: expected >= 0"),
        (lib.optimizer_set, (handle, 0, NULL), "rule: expected a pointer, got NULL"),
        (lib.optimizer_set, (NULL, 0, good), "optimizer: expected a pointer, got NULL"),
        (lib.norm, (borrow(g), 1, NULL), "norm: expected a pointer, got NULL"),
        (lib.norm, (NULL, 1, ffi.new("double *")), "expected a pointer, got NULL"),
        (lib.norm, (borrow(np.zeros(3, np.int8)), 1, ffi.new("double *")), "int8"),
    ):
        assert call(*arguments) == INVALID_ARGUMENT, says
        assert says in lib.error()
    assert (w == 1).all()
    assert not as_numpy(optimizer.state(0, "square_avg")[1]).any()
    assert step([g])[1].step == 1  # the first one after all that


def test_each_thread_has_its_own_last_error(lib: Library) -> None:
    assert lib.set_num_threads(0) == INVALID_ARGUMENT
    mine = lib.error()
    assert mine == "num_threads: expected a whole number from 1 to 256, got 0"
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lib.error).result() == ""
        assert other.submit(lib.force_isa, b"sse9").result() == INVALID_ARGUMENT
        assert "'sse9'" in other.submit(lib.error).result()
    assert lib.error() == mine


def test_versions_threads_and_instruction_sets(lib: Library) -> None:
    assert lib.abi_version() == 1
    assert ffi.string(lib.version()).decode() == fs.__version__
    for n in (1, 3):
        assert lib.set_num_threads(n) == OK
        assert lib.num_threads() == n
    for n in (0, -1, 257):
        assert lib.set_num_threads(n) == INVALID_ARGUMENT
        assert lib.num_threads() == 3
    for name in fs.available_isas():
        assert lib.force_isa(name.encode()) == OK
        assert ffi.string(lib.isa()).decode() == name
    assert lib.force_isa(b"") == OK
    assert ffi.string(lib.isa()).decode() == fs.available_isas()[-1]
    assert lib.force_isa(NULL) == INVALID_ARGUMENT
