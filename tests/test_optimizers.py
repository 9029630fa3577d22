"""The classes step by step against the reference: containers, groups, options, reports, live state, verification."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import numbers
import os
import shelve
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fusedstep as fs
from checks import Guarded, Mirror, Unchanged, assert_same, difference, interrupted, memory_of, threads
from registry import (
    BAD_CONTAINERS,
    CASES,
    CONTAINERS,
    DTYPES,
    FIRST_OF_RULE,
    FULLEST_OF_RULE,
    ISAS,
    KEEPING,
    LAYOUT,
    LAYOUTS,
    ONE_OF_STORAGE,
    STEP_OPTIONS,
    Array,
    BadContainer,
    C,
    Case,
    Container,
    Fields,
    Layer,
    OwnMapping,
    loss,
)

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_keeping = pytest.mark.parametrize("case", KEEPING, ids=str)
each_rule = pytest.mark.parametrize("case", FIRST_OF_RULE, ids=str)
each_full_rule = pytest.mark.parametrize("case", FULLEST_OF_RULE, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def lr_may_change(case: Case) -> bool:
    """Whether ``lr`` has an effect after the start. For Rprop it has not, except with decoupled weight decay."""
    return case.rule != "rprop" or bool(case.options.get("decoupled_weight_decay"))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, layout: str = "C") -> Array:
    array = Guarded(shape, np.dtype(dtype), LAYOUT[layout]).array
    array[...] = rng.standard_normal(shape)
    return array


def step_both(optimizer: Any, mirror: Mirror, params: Any, grads: Any, where: str, **options: Any) -> tuple[Any, Any]:
    """Step both and compare every bit; return the report and the norm that it should have."""
    norm = mirror.step(grads, **options)
    report = optimizer.step(grads, **options)
    mirror.assert_like(optimizer, params, where)
    return report, norm


# ------------------------------------------------------------------------------------------- step by step, all at once


@each_case
def test_steps_equal_the_reference(case: Case) -> None:
    """Compare each bit of each array after each step, with nested containers, both types, several layouts, 0-d and
    empty arrays, a gradient of None, gradients in other layouts, a changing lr and all options at once. Nothing beside
    the arrays changes."""
    rng = np.random.default_rng(1)
    kinds = {
        "layers.0.w": ((7, 5), np.float32, "C"),
        "layers.0.b": ((5,), np.float64, "every 2nd of the last axis"),
        "layers.1.w": ((40, 33), np.float64, "F"),
        "layers.1.b": ((33,), np.float32, "reversed"),
        "scale": ((), np.float32, "C"),
        "empty": ((0, 3), np.float32, "C"),
        "last": ((3, 1, 700), np.float32, "rows cut out"),
    }
    guarded = {name: Guarded(shape, np.dtype(dtype), LAYOUT[layout]) for name, (shape, dtype, layout) in kinds.items()}
    params = {name: own.array for name, own in guarded.items()}
    for array in params.values():
        array[...] = rng.standard_normal(array.shape)

    def containers(x: Mapping[str, Any]) -> Any:
        layers = [{"w": x["layers.0.w"], "b": x["layers.0.b"]}, {"w": x["layers.1.w"], "b": x["layers.1.b"]}]
        return {"layers": layers, "scale": x["scale"], "empty": x["empty"], "last": x["last"]}

    def gradients(layout: str | None) -> dict[str, Any]:
        return {name: normal(rng, shape, dtype, layout or own) for name, (shape, dtype, own) in kinds.items()}

    with fs.use_isa(ISAS[CASES.index(case) % len(ISAS)]):
        optimizer = case.new(containers(params))
        mirror = Mirror(case, params)
        mirror.assert_like(optimizer, params, "at the start")
        for t in range(1, 8):
            grads = gradients("F" if t == 3 else None)
            options: dict[str, Any] = case.loss(t)
            if t == 2:
                grads["layers.1.w"] = grads["scale"] = None
            if t == 4 and lr_may_change(case):
                optimizer.param_groups[0]["lr"] = 0.5
                for own in mirror.options.values():
                    own["lr"] = 0.5
            if t == 5:
                options |= {"grad_scale": 3.0, "clip_value": 1.0, "clip_norm": 2.0, "nonfinite": "skip"}
            if t == 6:
                grads = dict.fromkeys(grads)
            untouched = Unchanged(grads.values())
            report = optimizer.step(containers(grads), **options)
            norm = mirror.step(grads, **options)
            where = f"{case} {fs.isa()}, step {t}"
            mirror.assert_like(optimizer, params, where)
            untouched.check(f"{where}: gradients")
            assert (report.step, report.grad_norm, report.skipped) == (t, norm, False), where
            assert report.nonfinite == (() if t == 5 else None), where
    for name, own in guarded.items():
        assert not own.damaged(), f"memory beside {name} changed"


@pytest.mark.parametrize("options", STEP_OPTIONS)
@each_full_rule
def test_step_options(case: Case, options: str) -> None:
    """Each option of a step, by itself and with others: parameters, states, norm, and gradients after it. Each type in
    each layout; the number of threads, and whether the steps are verified, differ from the neighbour's."""
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"a": (70, 31), "b": (3,), "none": (4,), "c": ()}
    chosen = STEP_OPTIONS[options]
    for k, (dtype, name) in enumerate(itertools.product(DTYPES, ("C", "F", "every 2nd of the last axis"))):
        count, verify = (1, 3)[k % 2], ("never", "every")[k // 2 % 2]
        params = {key: normal(rng, shape, dtype, name) for key, shape in shapes.items()}
        optimizer = case.new(params, verify=verify)
        mirror = Mirror(case, params)
        for t in (1, 2):
            grads: dict[str, Any] = {key: normal(rng, shape, dtype, name) for key, shape in shapes.items()}
            grads["none"] = None
            given = {key: grad for key, grad in grads.items() if grad is not None}
            before = {key: grad.copy() for key, grad in given.items()}
            norm = mirror.step(grads, **chosen, **case.loss(t))
            with threads(count):
                report = optimizer.step(grads, **chosen, **case.loss(t))
            where = f"{case} {dtype} {options}, {name}, {count} threads, verify={verify!r}, step {t}"
            mirror.assert_like(optimizer, params, where)
            assert report == (t, norm, False, None if norm is None else ()), where
            expected = {key: np.zeros_like(grad) for key, grad in before.items()} if "zero_grads" in chosen else before
            assert_same(given, expected, f"{where}: gradients")


# ----------------------------------------------------------------------------------------------------------- containers


def leaves(container: Container) -> list[Array]:
    return [np.full((k + 2,), 1.0 + k, np.float32) for k in range(len(container.names))]


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_containers(container: Container) -> None:
    """Name leaves by their paths, give each its own gradient, and copy no parameter."""
    params = leaves(container)
    optimizer = fs.Adagrad(container.params(params), lr=1.0)
    assert tuple(optimizer.state) == container.names
    held = [array for group in optimizer.param_groups for array in group["params"]]
    assert all(mine is theirs for mine, theirs in zip(held, params, strict=True))
    grads = [np.full(array.shape, 10.0 + k, np.float32) for k, array in enumerate(params)]
    assert optimizer.step(container.grads(grads)).step == 1
    for k, name in enumerate(container.names):
        assert (optimizer.state[name]["square_sum"] == (10.0 + k) ** 2).all(), name
    optimizer.step(container.grads([None, *grads[1:]]))
    assert (optimizer.state[container.names[0]]["square_sum"] == 100.0).all()


@pytest.mark.parametrize("bad", BAD_CONTAINERS, ids=lambda bad: bad.name)
def test_gradients_in_other_containers(bad: BadContainer) -> None:
    """Refuse gradients in other containers than the parameters', with the place, before anything is written."""
    w, b, s = (np.ones(n, np.float32) for n in (4, 3, 2))
    grads = [np.ones(n, np.float32) for n in (4, 3, 2)]
    optimizer = fs.RMSprop({"layers": [w, b], "scale": s})
    unchanged = Unchanged(memory_of(optimizer, *grads))
    with pytest.raises(bad.error) as caught:
        optimizer.step(bad.grads(*grads))
    for part in bad.says:
        assert part in str(caught.value)
    unchanged.check(bad.name)
    assert optimizer.step({"layers": grads[:2], "scale": grads[2]}).step == 1


def test_gradients_of_groups_in_other_containers() -> None:
    """Accept a list with an entry per group or per leaf, and refuse anything else."""
    a, b, c = (np.ones(3, np.float32) for _ in range(3))
    optimizer = fs.RMSprop([{"params": [a, b]}, {"params": [c]}])
    grads = [np.ones(3, np.float32) for _ in range(4)]
    unchanged = Unchanged([a, b, c])
    wrong: list[tuple[Any, type[Exception]]] = [
        (grads, ValueError), (grads[:1], ValueError), ([grads[:2]], ValueError), ({"0": grads[0]}, TypeError),
        (grads[0], TypeError), (None, TypeError), ([grads[:3], []], ValueError),
    ]  # fmt: skip
    for given, error in wrong:
        with pytest.raises(error, match="grads"):
            optimizer.step(given)
        unchanged.check()
    assert optimizer.step([grads[:2], grads[2:3]]).step == 1


class Swapped(NamedTuple):
    b: Any
    w: Any


def test_a_named_tuple_of_another_type_is_refused() -> None:
    """Its fields may be in another order, so matching by place would update the wrong arrays."""
    w, b = np.zeros(3), np.zeros(3)
    optimizer = fs.RMSprop({"layer": Layer(w, b)})
    unchanged = Unchanged(memory_of(optimizer))
    for other in (Swapped(np.ones(3), np.zeros(3)), (np.ones(3), np.zeros(3)), [np.ones(3)] * 2, Fields(w, b), w):
        with pytest.raises(TypeError, match="layer"):
            optimizer.step({"layer": other})
        unchanged.check()
    with pytest.raises((TypeError, ValueError), match=r"layer.*\bb\b"):
        fs.RMSprop({"layer": Fields(w, b)}).step({"layer": type("Other", (), {"w": np.ones(3)})()})
    unchanged.check()
    optimizer.step({"layer": Layer(np.ones(3), None)})
    assert w.all()
    assert not b.any()


class Fresh(OwnMapping):
    """A mapping that makes each array anew, as an open file does."""

    def __getitem__(self, key: str) -> Any:
        found = super().__getitem__(key)
        return found.copy() if isinstance(found, np.ndarray) else found


class FreshList(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index).copy()


class Viewing(OwnMapping):
    """A mapping that makes new views of the same memory."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)[...]


def test_containers_that_make_arrays_anew(tmp_path: Path) -> None:
    """Refuse them as parameters, because an update would be lost with the copy, and accept them as gradients. Views are
    accepted for both."""
    np.savez(tmp_path / "w.npz", w=np.ones(3))
    arrays = {"w": np.ones(3), "b": np.ones(2)}
    with shelve.open(os.fspath(tmp_path / "shelf")) as shelf, np.load(tmp_path / "w.npz") as file:
        shelf["w"] = np.ones(3)
        fields = type("Property", (Fields,), {"w": property(lambda self: np.ones(3), lambda self, value: None)})
        for anew in (
            Fresh(arrays), {"x": Fresh(arrays)}, OwnMapping({"x": Fresh(arrays)}), Fresh({"b": [np.ones(3)], **arrays}),
            FreshList([np.ones(3)]), shelf, file, fields(np.ones(3), np.ones(2)),
        ):  # fmt: skip
            for params in (anew, [{"params": anew}]):
                with pytest.raises(TypeError, match=r"another array each time.*assign to a dict"):
                    fs.RMSprop(params)
        optimizer = fs.Adagrad({"w": np.ones(3)}, lr=1.0)
        optimizer.step(file)
        optimizer.step(shelf)
        assert optimizer.steps == 2
    optimizer = fs.Adagrad(Viewing(arrays), lr=0.25, eps=1e-300)
    optimizer.step(Fresh(arrays))
    assert arrays["w"].tolist() == [0.75] * 3


def test_a_mapping_that_raises() -> None:
    """Its own error comes out, and nothing was written."""

    class Failing(OwnMapping):
        def __len__(self) -> int:
            raise ZeroDivisionError("of its own")

    w = np.ones(3)
    optimizer = fs.RMSprop({"w": w})
    with pytest.raises(ZeroDivisionError, match="of its own"):
        optimizer.step(Failing({"w": np.ones(3)}))
    assert (w == 1).all()
    assert optimizer.step({"w": np.ones(3)}).step == 1


W = np.ones(3)
NO_CONTAINER = r"params: expected a numpy\.ndarray, or containers.*pass a list or a dict"
BAD_PARAMS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: {"w": W}.values(), TypeError, NO_CONTAINER),
    (lambda: {"w": W}.items(), TypeError, NO_CONTAINER),
    (lambda: iter([W]), TypeError, NO_CONTAINER),
    (lambda: (a for a in [W]), TypeError, NO_CONTAINER),
    (lambda: {"\ud800": W}, ValueError, r"params: the name '\\ud800' has a lone surrogate"),
    (lambda: {"a": {"b": W}, "a.b": W.copy()}, ValueError, r"'a\.b'"),
    (lambda: [{"params": {"w": W}}, {"params": {"w": W.copy()}}], ValueError, "'w'"),
    *((lambda nothing=nothing: nothing, ValueError, "params") for nothing in ([], {}, (), {"a": []}, [{"params": []}])),
]  # fmt: skip


@pytest.mark.parametrize(("params", "error", "says"), BAD_PARAMS)
def test_what_are_no_parameters(params: Callable[[], Any], error: type[Exception], says: str) -> None:
    """Views and iterators, names that no file can hold, two leaves of one name, and nothing."""
    with pytest.raises(error, match=says):
        fs.RMSprop(params())


# ---------------------------------------------------------------------------------------------------------------- state


def is_dense(array: Array) -> bool:
    """Whether the elements are adjacent, in whichever order and direction of axes."""
    extent = sum((n - 1) * abs(stride) for n, stride in zip(array.shape, array.strides, strict=True)) + array.itemsize
    return extent == array.nbytes


@each_case
def test_states_names_types_and_layouts(case: Case) -> None:
    """States have their names, start where they should, have the parameter's shape and type (signs: int8), lie in the
    parameter's order and share no memory."""
    for dtype, layout in itertools.product(DTYPES, LAYOUTS if case in ONE_OF_STORAGE else (C,)):
        param = Guarded((4, 5, 6), dtype, layout).array
        param[...] = 1
        optimizer = case.new({"w": param})
        assert list(optimizer.state) == ["w"]
        states = optimizer.state["w"]
        assert list(states) == [state.held_as for state in case.states]
        for state in case.states:
            array = states[state.held_as]
            assert not difference(array, np.full(state.shape((4, 5, 6)), state.start, state.dtype(dtype)))
            if state.scalar:
                continue
            in_param, in_state = (np.array(x.strides) // x.itemsize for x in (param, array))
            assert (np.argsort(abs(in_param)) == np.argsort(abs(in_state))).all(), layout
            assert sorted(abs(in_state)) in ([1, 4, 20], [1, 4, 24], [1, 5, 20], [1, 5, 30], [1, 6, 24], [1, 6, 30])
            if is_dense(param):
                assert (in_param == in_state).all(), layout
            assert array.flags.writeable
            assert array.flags.aligned
        every = memory_of(optimizer)
        assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(every, 2))


@each_full_rule
def test_state_is_live(case: Case) -> None:
    """States are the same arrays before and after a step, and what is written into them counts in the next step."""
    rng = np.random.default_rng(6)
    params = {"w": normal(rng, (40,), "f4")}
    optimizer = case.new(params)
    mirror = Mirror(case, params)
    arrays = {name: optimizer.state["w"][name] for name in optimizer.state["w"]}
    for t in range(1, 4):
        grads = {"w": normal(rng, (40,), "f4")}
        optimizer.step(grads, **case.loss(t))
        mirror.step(grads, **case.loss(t))
        for state in case.states:
            assert optimizer.state["w"][state.held_as] is arrays[state.held_as]
            for live in (arrays[state.held_as], mirror.arrays["w"][state.name]):
                live[() if state.scalar else slice(3, 9)] = 1 if state.sign else 0.75
        mirror.assert_like(optimizer, params, f"{case}, step {t}")


# ----------------------------------------------------------------------------------------------- hyperparameters change


@each_full_rule
def test_parameters_and_bytes(case: Case) -> None:
    """``parameters`` has the user's own arrays, and ``nbytes`` counts the states."""
    given = {"w": np.ones((3, 4), np.float32)[:, ::2], "b": [np.ones(5)]}
    opt = case.new(given)
    assert list(opt.parameters) == list(opt.state) == ["w", "b.0"]
    assert opt.parameters["w"] is given["w"]
    assert opt.parameters["b.0"] is given["b"][0]
    with pytest.raises(TypeError):
        opt.parameters["w"] = np.zeros(3)
    assert opt.nbytes == sum(
        math.prod(state.shape(array.shape)) * state.dtype(array.dtype).itemsize
        for array in opt.parameters.values()
        for state in case.states
    )


@each_keeping
def test_a_reset_optimizer_is_like_a_new_one(case: Case) -> None:
    """Compare every bit, with groups that start at different values. Changed hyperparameters stay."""
    rng = np.random.default_rng(2)
    params = [rng.standard_normal((3, 5)), rng.standard_normal(4).astype(np.float32)]
    grads = [[rng.standard_normal(p.shape).astype(p.dtype) for p in params] for _ in range(6)]
    opt = case.new([{"params": params[0]}, {"params": params[1], "lr": 0.25}])
    live = {name: dict(states) for name, states in opt.state.items()}
    start = copy.deepcopy(live)
    for t in range(3):
        opt.step(grads[t], **case.loss(t))
    before = [p.copy() for p in params]
    opt.param_groups[0]["weight_decay"] = opt.param_groups[0]["weight_decay"] + 0.125
    opt.reset()
    assert (opt.steps, opt.param_groups[1]["lr"]) == (0, 0.25)
    for name, states in opt.state.items():
        assert all(states[key] is array for key, array in live[name].items())
        assert_same(states, start[name], name)
    assert all((p == b).all() for p, b in zip(params, before, strict=True))
    new = case.new([{"params": before[0], "weight_decay": opt.param_groups[0]["weight_decay"]},
                    {"params": before[1], "lr": 0.25}])  # fmt: skip
    for t in range(3, 6):
        for each in (opt, new):
            each.step(grads[t], **case.loss(t))
        for name in opt.state:
            assert_same(opt.state[name], new.state[name], f"{name}, step {t}")
            assert not difference(opt.parameters[name], new.parameters[name])
    assert opt.state_dict()["times"] == {"0": 3, "1": 3}


def test_the_low_halves_of_masters_are_part_of_the_parameter() -> None:
    """Low halves survive a reset, and a mask freezes them with the parameter."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w = np.ones(4, ml_dtypes.bfloat16)
    g = np.ones(4, np.float32)
    opt = fs.RMSprop(w, lr=1e-4, master=True)
    for _ in range(3):
        opt.step(g)
    before = {"param": w.copy(), "param_low": opt.state["0"]["param_low"].copy()}
    assert before["param_low"].any()
    opt.reset()
    opt.step(g, mask=np.zeros(4, bool))
    assert_same({"param": w, "param_low": opt.state["0"]["param_low"]}, before, "a reset, and a step of nothing")
    assert not opt.state["0"]["square_avg"].any()


def test_a_reset_forgets_the_last_loss_and_keeps_the_first_lr() -> None:
    """With decoupled weight decay Rprop's lr may change, but its step sizes start at the first one."""
    opt = fs.Rprop(np.zeros(1), variant="irprop+")
    opt.step(np.ones(1), loss=1.0)
    opt.reset()
    opt.step(np.ones(1), loss=5.0)
    assert opt.state_dict()["last_loss"] == 5.0
    opt.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="lr"):
        opt.reset()
    assert opt.steps == 1
    opt = fs.RMSprop(np.zeros(1))
    for given in ({"loss": 3.0}, {}):
        opt.step(np.ones(1), **given)
        assert opt.state_dict()["last_loss"] == 3.0
    opt = fs.Rprop(np.ones(2), lr=0.5, weight_decay=0.1, decoupled_weight_decay=True)
    opt.lr = 0.125
    opt.step(np.ones(2))
    opt.reset()
    assert (opt.state["0"]["step_size"] == 0.5).all()
    assert opt.lr == 0.125


def test_options_that_switch_states_off_and_on() -> None:
    """Momentum may be switched off, and on again if its state is there; otherwise it is an error. Centring can't be
    switched off, because the variance is not an average of squares."""
    rng = np.random.default_rng(7)
    grads = [normal(rng, (20,), "f4") for _ in range(4)]
    param = normal(rng, (20,), "f4")
    plain = {"param": param.copy(), "square_avg": np.zeros_like(param)}
    optimizer = fs.RMSprop([param], momentum=0.9, verify="every")
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step(grads[:1])
    fs.reference.rmsprop_(plain["param"], grads[0], plain["square_avg"], lr=0.01)
    assert_same({"param": param, "square_avg": optimizer.state["0"]["square_avg"]}, plain, "momentum")
    assert not optimizer.state["0"]["momentum_buffer"].any()

    for key, other in (("centered", False), ("bias_correction", True)):
        optimizer = fs.RMSprop([param], centered=True)
        optimizer.param_groups[0][key] = other
        unchanged = Unchanged(memory_of(optimizer))
        with pytest.raises(ValueError, match=f"{key}: expected no change after the start"):
            optimizer.step(grads[:1])
        unchanged.check()

    for key, off, state in (("centered", False, "grad_avg"), ("momentum", 0.0, "momentum_buffer")):
        optimizer = fs.RMSprop([param])
        optimizer.param_groups[0][key] = 0.5 if key == "momentum" else True
        unchanged = Unchanged(memory_of(optimizer))
        with pytest.raises(ValueError, match=rf"'0'.*{state}"):
            optimizer.step(grads[:1])
        unchanged.check()
        optimizer.param_groups[0][key] = off
        optimizer.step(grads[:1])


# ---------------------------------------------------------------------------------------- hyperparameters as attributes


@each_rule
def test_every_hyperparameter_is_an_attribute(case: Case) -> None:
    """It reads the value that all groups share and sets all groups. Each group may then have its own again."""
    a, b = np.ones(3), np.ones(2)
    optimizer = case.new([{"params": [a]}, {"params": {"b": b}}])
    first, second = optimizer.param_groups
    assert first["params"][0] is a
    assert second["params"][0] is b
    assert (
        {"lr", "weight_decay", "decoupled_weight_decay", "maximize", *case.class_options} <= set(first) == set(second)
    )
    for key in [key for key in first if key != "params"]:
        value = first[key]
        assert getattr(optimizer, key) == value
        if (case.rule, key) == ("rprop", "lr") or key in ("centered", "momentum", "nesterov", "per", "mean"):
            continue  # these need a state that is not there, or another one
        changed = {bool: not value, float: 0.25, tuple: (0.25, 1.25), str: {"torch": "tf"}.get(value, "irprop-")}
        setattr(optimizer, key, changed[type(value)])
        assert first[key] == second[key] == getattr(optimizer, key) == changed[type(value)]
        second[key] = value
        with pytest.raises(ValueError, match=rf"{key}: the groups differ.*param_groups"):
            getattr(optimizer, key)
        setattr(optimizer, key, value)
        assert first[key] == second[key] == value
    assert optimizer.steps == 0


REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("alpha", 1.5, ValueError, "alpha"),
    ("alpha", "x", TypeError, "alpha"),
    ("centered", True, ValueError, "'0' has no 'grad_avg'"),
    ("momentum", 0.25, ValueError, "'1' has no 'momentum_buffer'"),  # the first group has one
    ("momentum_form", "keras", ValueError, "'torch', 'tf'"),
    ("nesterov", True, ValueError, "momentum"),
    *((name, ..., AttributeError, name) for name in ("param_groups", "state", "steps")),
]


@pytest.mark.parametrize(("key", "value", "error", "says"), REFUSED)
def test_a_refused_assignment_changes_no_group(key: str, value: Any, error: type[Exception], says: str) -> None:
    """Ask all groups before changing one. What is no hyperparameter can't be assigned, not even its own value."""
    optimizer = fs.RMSprop([{"params": np.ones(3), "momentum": 0.5}, {"params": np.ones(2), "lr": 0.5}])
    before = [list(group.items()) for group in optimizer.param_groups]
    with pytest.raises(error, match=says):
        setattr(optimizer, key, getattr(optimizer, key) if value is ... else value)
    assert [list(group.items()) for group in optimizer.param_groups] == before
    optimizer.step([np.ones(3), np.ones(2)])


UNKNOWN = [
    (fs.RMSprop, "learning_rate", "lr"), (fs.RMSprop, "rho", "alpha"), (fs.RMSprop, "decay", "alpha"),
    (fs.Adagrad, "epsilon", "eps"), (fs.Adagrad, "decay", "lr_decay"), (fs.Rprop, "max_step", "step_sizes"),
    (fs.RMSprop, "momentun", "momentum"), (fs.RMSprop, "LR", "lr"), (fs.RMSprop, "foo", ""),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "meant"), UNKNOWN)
def test_unknown_names(cls: Any, name: str, meant: str) -> None:
    """Refuse names that would have no effect, and suggest what was meant: as attributes, as arguments of the
    constructor, in groups, and in a group between two steps."""
    param = np.ones(3)
    optimizer, later = cls(param), cls(param)
    later.param_groups[0][name] = 0.5
    attempts: list[tuple[type[Exception], Callable[[], Any]]] = [
        (AttributeError, lambda: setattr(optimizer, name, 0.5)),
        (TypeError, lambda: cls(param, **{name: 0.5})),
        (TypeError, lambda: cls([{"params": param, name: 0.5}])),
        (TypeError, lambda: optimizer.add_param_group({"params": np.ones(2), name: 0.5})),
        (TypeError, lambda: later.step(np.ones(3))),
    ]
    for error, attempt in attempts:
        with pytest.raises(error, match=rf"'{name}'") as caught:
            attempt()
        assert "param_groups" in str(caught.value) or error is TypeError
        assert (f"did you mean '{meant}'" in str(caught.value)) == bool(meant)
        assert ("did you mean" in str(caught.value)) == bool(meant)
    assert not hasattr(optimizer, name)
    assert param.all()


@pytest.mark.parametrize(
    ("attempt", "meant"),
    [
        (lambda p: fs.Rprop(p, variant="iprop-"), "irprop-"),
        (lambda p: fs.RMSprop(p, momentum_form="pytorch"), "torch"),
        (lambda p: fs.RMSprop(p, verify="evary"), "every"),
        (lambda p: fs.RMSprop(p).step(np.ones(3), nonfinite="skp"), "skip"),
        (lambda p: fs.RMSprop(p).step(np.ones(3), grad_scal=2.0), "grad_scale"),  # type: ignore[call-arg]
        (lambda p: fs.RMSprop(p).step(np.ones(3), max_norm=1.0), "clip_norm"),  # type: ignore[call-arg]
        (lambda p: fs.RMSprop([{"param": p, "lr": 0.1}]), "params"),
        (lambda p: fs.RMSprop(p).add_param_group({"paramz": np.ones(2)}), "params"),
        (lambda p: fs.RMSprop.like("karas", p), "keras"),
        (lambda p: fs.RMSprop.like("keras", p, learning_rate=0.5), "lr"),
        (lambda p: fs.adagrad_(p, np.ones(3), np.zeros(3), learning_rate=0.1), "lr"),
        (lambda p: fs.adagrad_(p, np.ones(3), np.zeros(3), lr=0.1, maximise=True), "maximize"),
        (lambda p: fs.minimize(lambda x: (x @ x, 2 * x), p, methop="rprop-"), "method"),
    ],
)
def test_misspelt_words(attempt: Callable[[Any], Any], meant: str) -> None:
    param = np.ones(3)
    with pytest.raises((TypeError, ValueError), match=f"did you mean '{meant}'"):
        attempt(param)
    assert param.all()


def test_subclasses_set_what_they_like() -> None:
    """Subclasses may set other attributes, except names that other frameworks use for a hyperparameter, unless they
    declare them. Their arguments are theirs."""

    class Mine(fs.RMSprop):
        def __init__(self, params: Any, rate: float) -> None:
            self.rate = rate
            super().__init__(params, lr=rate)

        @property
        def epsilon(self) -> float:
            return self.eps

        @epsilon.setter
        def epsilon(self, value: float) -> None:
            self.eps = value

    optimizer = Mine(np.ones(3), rate=0.25)
    optimizer.note = optimizer.learning = "kept"  # type: ignore[attr-defined]
    optimizer.epsilon = 0.5
    assert (optimizer.lr, optimizer.eps, optimizer.rate, optimizer.note) == (0.25, 0.5, 0.25, "kept")  # type: ignore[attr-defined]
    for name, meant in (("learning_rate", "lr"), ("rho", "alpha")):
        with pytest.raises(AttributeError, match=f"did you mean '{meant}'"):
            setattr(optimizer, name, 1.0)
    with pytest.raises(TypeError, match="learning_rate"):
        Mine(np.ones(3), learning_rate=0.5)  # type: ignore[call-arg]


def test_a_class_without_a_rule() -> None:
    for cls in (fs.Optimizer, type("Own", (fs.Optimizer,), {})):
        with pytest.raises(TypeError, match=rf"^{cls.__name__} has no update rule; derive it from RMSprop"):
            cls(np.ones(3))


# ------------------------------------------------------------------------------------------ Rprop only starts with lr


def test_rprops_lr_is_a_start() -> None:
    """Refuse a later change without effect, as an attribute and in a step, and say what to change instead."""
    told = r'opt\.state\[name\]\["step_size"\]'
    optimizer = fs.Rprop([{"params": np.ones(3)}, {"params": np.ones(2), "lr": 0.5}])
    for lr in (0.25, 0.01):  # the latter is right for the first group
        with pytest.raises(AttributeError, match=rf"^lr: .*{told}"):
            optimizer.lr = lr
    optimizer.step([np.ones(3), np.ones(2)])
    unchanged = Unchanged(memory_of(optimizer))
    optimizer.param_groups[1]["lr"] = 0.25
    with pytest.raises(ValueError, match=rf"param_groups\[1\].*0\.5 to 0\.25.*{told}"):
        optimizer.step([np.ones(3), np.ones(2)])
    with pytest.raises(ValueError, match=told):
        optimizer.state_dict()
    unchanged.check()
    optimizer.add_param_group({"params": np.ones(1), "lr": 0.75})
    grads = [np.ones(3), np.ones(2), np.ones(1)]
    for again in (optimizer, copy.deepcopy(optimizer)):
        for k, start in ((1, 0.5), (2, 0.75)):
            again.param_groups[1]["lr"], again.param_groups[2]["lr"] = np.float64(0.5), 0.75
            again.step(grads)
            again.param_groups[k]["lr"] = 0.25
            with pytest.raises(ValueError, match=rf"param_groups\[{k}\].*{start} to 0\.25"):
                again.step(grads)


@each_dtype
@pytest.mark.parametrize("variant", ["rprop-", "rprop+", "irprop-", "irprop-move", "irprop+"])
def test_an_lr_of_0_moves_nothing(variant: Any, dtype: np.dtype[Any]) -> None:
    """The lower limit of step sizes does not apply: they stay 0."""
    param = np.ones(5, dtype)
    optimizer = fs.Rprop(param, lr=0.0, variant=variant, verify="every")
    for t in range(6):
        optimizer.step(np.array([1, -1, (-1) ** t, 0, math.nan], dtype), loss=loss(t))
    assert (param[:4] == 1).all()
    assert not optimizer.state["0"]["step_size"].any()


def test_rprops_lr_scales_decoupled_decay() -> None:
    """With decoupled decay it may change; without it, only back to its start."""
    param = np.ones(3)
    optimizer = fs.Rprop(param, lr=0.125, weight_decay=0.5, decoupled_weight_decay=True, verify="every")
    optimizer.lr = 0.25
    optimizer.step(np.zeros(3))
    assert param.tolist() == [1 - 0.25 * 0.5] * 3
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step(np.zeros(3))
    optimizer.weight_decay = 0.0
    with pytest.raises(ValueError, match="step_size"):
        optimizer.step(np.zeros(3))
    optimizer.param_groups[0]["lr"] = 0.125
    optimizer.step(np.zeros(3))


def test_a_loaded_rprop_started_with_the_saved_lr() -> None:
    other = fs.Rprop(np.ones(3), lr=0.5)
    other.load_state_dict(fs.Rprop(np.ones(3), lr=0.125).state_dict())
    assert other.lr == 0.125
    other.step(np.ones(3))
    other.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"0\.125 to 0\.5"):
        other.step(np.ones(3))


# -------------------------------------------------------------------------------------------------------- added groups


@each_keeping
def test_added_groups(case: Case) -> None:
    """A group that is added during a run starts its states and goes on like the reference."""
    rng = np.random.default_rng(13)
    params = {name: normal(rng, (n,), dtype) for name, n, dtype in (("w", 5, "f4"), ("0", 3, "f8"), ("1.b", 4, "f4"))}
    optimizer = case.new({"w": params["w"]})
    mirror = Mirror(case, {"w": params["w"]})
    for t in range(1, 6):
        if t == 3:
            optimizer.add_param_group({"params": [params["0"], {"b": params["1.b"]}], "weight_decay": 0.25})
            added = Mirror(case, {name: params[name] for name in ("0", "1.b")})
            for part in ("options", "arrays", "times"):
                getattr(mirror, part).update(getattr(added, part))
            mirror.options["0"] = mirror.options["1.b"] = {"weight_decay": 0.25}
        grads = {name: normal(rng, params[name].shape, params[name].dtype) for name in mirror.arrays}
        given: Any = grads if t < 3 else [{"w": grads["w"]}, [grads["0"], {"b": grads["1.b"]}]]
        optimizer.step(list(grads.values()) if t == 4 else given, **case.loss(t))
        mirror.step(grads, **case.loss(t))
        mirror.assert_like(optimizer, {name: params[name] for name in grads}, f"{case}, step {t}")
    assert optimizer.steps == 5


def test_names_continue_in_added_groups() -> None:
    optimizer = fs.RMSprop([np.ones(2), np.ones(3)])
    optimizer.add_param_group({"params": np.ones(4)})
    optimizer.add_param_group({"params": {"w": np.ones(5)}})
    optimizer.add_param_group({"params": (np.ones(6), [np.ones(7)]), "lr": 0.5})
    assert list(optimizer.state) == ["0", "1", "2", "w", "3", "4.0"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 3 + [0.5]
    grads = [np.ones(n) for n in range(2, 8)]
    optimizer.step(grads)
    optimizer.step([grads[:2], grads[2], {"w": grads[3]}, (grads[4], [grads[5]])])


def test_an_added_group_that_is_refused() -> None:
    """Leave groups, states, names and the steps that follow as they were, whatever is wrong with the group."""
    param = np.ones(3)
    optimizer = fs.RMSprop({"w": param})
    bad: list[tuple[Any, type[Exception]]] = [
        ({"params": {"w": np.ones(2)}}, ValueError), ({"params": {"v": param[1:]}}, ValueError),
        ({"params": [np.ones(2, np.int16)]}, TypeError), ({"params": [np.ones(2)], "lr": -1.0}, ValueError),
        ({"params": [np.ones(2)], "learning_rate": 1.0}, TypeError), ({"params": []}, ValueError),
        ({"params": [np.ones(2), [1.0]]}, TypeError), ({"lr": 0.5}, TypeError), (np.ones(2), TypeError),
        (None, TypeError), ({"params": [np.ones(2)], "nesterov": True}, ValueError),
        ({"params": {"x": np.ones(2)}.values()}, TypeError),
    ]  # fmt: skip
    for group, error in bad:
        with pytest.raises(error):
            optimizer.add_param_group(group)
        assert list(optimizer.state) == ["w"]
        assert len(optimizer.param_groups) == 1
        optimizer.step({"w": np.ones(3)})
    assert optimizer.steps == len(bad)
    late = np.ones(2)
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.add_param_group({"params": {"a": late, "b": late[1:]}})
    optimizer.add_param_group({"params": {"a": late}})  # nothing of it is left that could overlap


@pytest.mark.parametrize("reads", range(4))
def test_a_group_is_added_whole_or_not_at_all(reads: int) -> None:
    """Do so even if a number of an old or the new group raises when it is read, at once or later."""

    class Fails:
        left = reads

        def __float__(self) -> float:
            Fails.left -= 1
            if Fails.left < 0:
                raise ZeroDivisionError
            return 0.5

    numbers.Real.register(Fails)
    for old, new in ((Fails(), 0.5), (0.5, Fails())):
        Fails.left = reads
        optimizer = fs.RMSprop({"w": np.ones(3)}, lr=0.5)
        optimizer.param_groups[0]["lr"] = old
        try:
            optimizer.add_param_group({"params": {"v": np.ones(2)}, "lr": new})
        except ZeroDivisionError:
            assert list(optimizer.state) == ["w"]
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        grads = [{"w": np.ones(3)}, {"v": np.ones(2)}]
        assert optimizer.step(grads if len(optimizer.state) == 2 else grads[0]).step == 1


def test_ctrl_c_while_a_group_is_added() -> None:
    """At the k-th line of it, for each k: the optimizer is as before, or has all of the group."""
    ends: list[bool] = []
    reached = True
    while reached:
        w, v = np.ones(2), np.ones(2)
        optimizer = fs.Rprop({"w": w}, lr=np.array([0.5, 0.25]))
        group = {"params": {"v": v}, "lr": np.array([0.25, 0.5]), "mask": np.array([True, False])}
        reached = interrupted(len(ends), functools.partial(optimizer.add_param_group, group))
        ends.append("v" in optimizer.state)
        grads: Any = [{"w": np.ones(2)}, {"v": np.ones(2)}] if ends[-1] else {"w": np.ones(2)}
        for each in (optimizer, copy.deepcopy(optimizer)):
            each.load_state_dict(each.state_dict())
            assert each.step(grads).step == 1
            assert len(each.param_groups) == len(each.parameters) == 1 + ends[-1]
        assert w.tolist() == [0.5, 0.75]
        assert v.tolist() == ([0.75, 1.0] if ends[-1] else [1.0, 1.0])
    assert {*ends[:-1]} == {False, True}, "no interrupt came after the writes"


# ------------------------------------------------------------------------------------------------- reports, NaN and inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_dtype
@each_full_rule
def test_nonfinite_gradients(case: Case, dtype: np.dtype[Any], value: float) -> None:
    """ "propagate" does what the reference does. "skip" and "raise" change no byte of parameters and states, nor the
    step count or the last loss, and name the parameters; "skip" sets the gradients to 0 if asked to. The run goes on as
    if the step had not been. Neighbours differ in whether they verify."""
    rng = np.random.default_rng(8)
    shapes = {"first": (5,), "large": (9000,), "wide": (30, 40), "last": (3,)}

    def drawn(layout: str = "C", bad: tuple[str, ...] = ()) -> dict[str, Array]:
        grads = {name: normal(rng, shape, dtype, layout) for name, shape in shapes.items()}
        for name in bad:
            grads[name][(-1,) * grads[name].ndim] = value
        return grads

    for k, (bad, more) in enumerate(itertools.product(
        (("last",), ("first", "wide"), ("large",)),
        ({}, {"zero_grads": True}, {"clip_value": 1.0}, {"clip_norm": 1.0, "grad_scale": 2.0}),
    )):  # fmt: skip
        params, where = drawn(), f"{case}, {bad}, {more}"
        optimizer, mirror = case.new(params, verify=("never", "every")[k % 2]), Mirror(case, params)
        with threads((1, 3)[(k + (value > 0)) % 2]):
            step_both(optimizer, mirror, params, drawn(), where, loss=loss(1))
            for policy in ("skip", "raise"):
                grads = drawn("every 2nd of the last axis", bad)
                zeroed = policy == "skip" and "zero_grads" in more
                unchanged = Unchanged(memory_of(optimizer, *([] if zeroed else grads.values())))
                if policy == "skip":
                    report = optimizer.step(grads, nonfinite="skip", loss=1e9, **more)
                    assert (report.step, report.skipped, report.nonfinite) == (1, True, bad), where
                    assert not math.isfinite(report.grad_norm) or "clip_value" in more, where
                else:
                    with pytest.raises(FloatingPointError) as caught:
                        optimizer.step(grads, nonfinite="raise", loss=1e9, **more)
                    assert [name for name in shapes if repr(name) in str(caught.value)] == [*bad], where
                unchanged.check(f"{where}, {policy}")
                assert not zeroed or not any(grad.any() for grad in grads.values()), where
            step_both(optimizer, mirror, params, drawn(), where, loss=loss(2))
            grads = drawn("every 2nd of the last axis", bad)
            report, norm = step_both(optimizer, mirror, params, grads, where, loss=loss(3), **more)
        assert (report.step, report.skipped, report.grad_norm is None) == (3, False, norm is None), where
        assert norm is None or report.grad_norm == norm or (math.isnan(norm) and math.isnan(report.grad_norm)), where


@each_dtype
def test_unscaling_that_overflows_is_nonfinite(dtype: np.dtype[Any]) -> None:
    """Skip a gradient that becomes infinite only when it is unscaled."""
    param, grad = np.ones(5, dtype), np.full(5, np.finfo(dtype).max, dtype)
    optimizer = fs.RMSprop([param])
    unchanged = Unchanged(memory_of(optimizer, grad))
    assert optimizer.step([grad], grad_scale=0.5, nonfinite="skip").skipped
    unchanged.check()
    assert not optimizer.step([grad], grad_scale=2.0, nonfinite="skip", clip_value=1.0).skipped


@each_dtype
@each_full_rule
def test_a_square_that_overflows_is_nonfinite(case: Case, dtype: np.dtype[Any]) -> None:
    """A sum of squares that is inf stays inf, and the weight would never move again. Rprop squares nothing."""
    large = float(np.sqrt(np.finfo(dtype).max)) * 2
    squares = not any(state.sign for state in case.states)
    for scale in ({}, {"grad_scale": 4.0}, {"clip_value": 1.0}, {"clip_norm": 1.0}):
        params, grads = ({"a": np.ones(5, dtype), "b": np.ones((40, 50), dtype)} for _ in range(2))
        grads["b"][17, 3] = large
        optimizer = case.new(params)
        unchanged = Unchanged(memory_of(optimizer, *grads.values()))
        report = optimizer.step(grads, loss=1.0, nonfinite="skip", **scale)
        skipped = squares and not scale
        assert (report.skipped, report.nonfinite) == (skipped, ("b",) if skipped else ())
        if skipped:
            with pytest.raises(FloatingPointError, match="'b'"):
                optimizer.step(grads, loss=1.0, nonfinite="raise", **scale)
            unchanged.check()


def test_options_that_vanish_in_float32() -> None:
    """Refuse options that round to 0 or inf. In float64 they are valid."""
    for cls, options, says in (
        (fs.RMSprop, {"eps": 1e-46}, "eps: .* round to 0 .*, got 1e-46"),
        (fs.RMSprop, {"lr": 1e39}, "lr: .* round to inf"),
        (fs.Adagrad, {"weight_decay": 1e39}, "weight_decay: .* round to inf"),
    ):
        with pytest.raises(ValueError, match=says):
            cls(np.ones(2, np.float32), **options)
        cls(np.ones(2), **options)
    optimizer = fs.RMSprop([np.ones(2), np.ones(2, np.float32)])
    optimizer.param_groups[0]["eps"] = 1e-46
    with pytest.raises(ValueError, match="round to 0 in float32, the type that parameter '1' is updated in, got 1e-46"):
        optimizer.step([np.ones(2), np.ones(2, np.float32)])


def test_an_eps_of_0_needs_a_start() -> None:
    """Refuse 0 / 0 for a gradient of 0 in the classes. Functions accept it, because the caller owns the state."""
    for cls in (fs.RMSprop, fs.Adagrad, fs.AdagradNorm):
        with pytest.raises(ValueError, match="eps: expected eps > 0"):
            cls(np.ones(2), eps=0.0)
    with pytest.raises(ValueError, match="eps: expected eps > 0"):
        fs.Adagrad.like("tf1", np.ones(2), lr=0.1, initial_accumulator_value=0.0)
    fs.Adagrad(np.ones(2), eps=0.0, initial_accumulator_value=0.1)
    w, square_sum = np.ones(2), np.ones(2)
    fs.adagrad_(w, np.ones(2), square_sum, lr=0.1, eps=0.0)


def test_an_accumulated_gradient_recovers_from_a_nan() -> None:
    """A skipped step sets the gradients to 0 if asked to, in any layout: or all later steps would be skipped."""
    w = np.ones((3, 4))
    optimizer = fs.RMSprop([w], verify="every")
    for layout in LAYOUTS:
        total = Guarded((3, 4), np.dtype(np.float64), layout)
        total.array[...] = 0
        skipped = []
        for g in (1.0, math.nan, 1.0, 1.0):
            total.array[...] += g
            skipped.append(optimizer.step([total.array], nonfinite="skip", zero_grads=True).skipped)
        assert skipped == [False, True, False, False], layout
        assert not total.array.any()
        assert not total.damaged()


@each_dtype
def test_irprop_plus_that_maximizes(dtype: np.dtype[Any]) -> None:
    """An objective that fell counts as a loss that rose: moves are those of minimising the negative objective."""
    rng = np.random.default_rng(9)
    start, grads = normal(rng, (50,), dtype), [normal(rng, (50,), dtype) for _ in range(8)]
    up, down = start.copy(), start.copy()
    maximizing = fs.Rprop([up], variant="irprop+", maximize=True, verify="every")
    minimizing = fs.Rprop([down], variant="irprop+")
    for t, grad in enumerate(grads):
        maximizing.step([grad], loss=-loss(t))
        minimizing.step([-grad], loss=loss(t))
        assert not difference(up, down), t


# --------------------------------------------------------------------------------------------------------- verification


def off_by_a_bit(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrong(param: Array, *args: Any, **kwargs: Any) -> None:
        function(param, *args, **kwargs)
        last = param[-1, -1]
        param[-1, -1] = np.nextafter(last, param.dtype.type(np.inf)) if np.isfinite(last) else 1

    return wrong


@each_case
def test_verification_notices_one_bit(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "every" raises at any step with a differing bit, "first" only at the first, "never" never. The message names
    parameter and place."""
    rng = np.random.default_rng(9)
    dtype = DTYPES[CASES.index(case) % len(DTYPES)]

    def new(verify: str) -> Callable[[int], Any]:
        optimizer = case.new({"layers": [{"w": normal(rng, (4, 3), dtype)}]}, verify=verify)
        return lambda t: optimizer.step(
            {"layers": [{"w": normal(rng, (4, 3), dtype)}]}, **case.loss(t), clip_norm=1.0, grad_scale=3.0
        )

    true = getattr(fs.reference, case.function_name)
    for verify, raises_at in (("first", (1,)), ("every", (1, 4)), ("never", ())):
        late, early = new(verify), new(verify)
        assert [late(t).step for t in (1, 2, 3)] == [1, 2, 3]  # no error with the true reference
        with monkeypatch.context() as patch:
            patch.setattr(fs.reference, case.function_name, off_by_a_bit(true))
            for t, step in ((1, early), (4, late)):
                if t in raises_at:
                    with pytest.raises(fs.VerificationError, match=r"parameter 'layers\.0\.w'.* 1 of 12 .*\(3, 2\)"):
                        step(t)
                else:
                    assert step(t).step == t


SPOILT: list[tuple[str, Callable[[Array, Array, Array], Any], dict[str, Any], str]] = [
    ("a state", lambda param, grad, state: state.__setitem__((0, 1), -1), {}, r"square_avg of parameter '0'.*\(0, 1\)"),
    ("a gradient", lambda param, grad, state: grad.__setitem__((1, 0), 7), {}, r"gradient of parameter '0'.*\(1, 0\)"),
    ("a gradient set to 0", lambda param, grad, state: grad.__setitem__((1, 0), 7), {"zero_grads": True},
     r"gradient of parameter '0'.*\(1, 0\)"),
    ("the sign of 0", lambda param, grad, state: param.__imul__(-1), {}, r"parameter '0'.*-0\.0"),
]  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT, ids=lambda spoilt: spoilt[0])
def test_verification_watches_everything(spoilt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a state, a gradient that changed or was not set to 0 as asked, and -0 instead of 0."""
    _, spoil, options, says = spoilt
    param, live, true = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), fs.reference.rmsprop_

    @functools.wraps(true)
    def wrong(param: Array, grad: Array, square_avg: Array, **kwargs: Any) -> None:
        true(param, grad, square_avg, **kwargs)
        spoil(param, live, square_avg)

    monkeypatch.setattr(fs.reference, "rmsprop_", wrong)
    with pytest.raises(fs.VerificationError, match=says):
        fs.RMSprop([param], verify="every").step([live], **options)


def test_verification_watches_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs.reference, "norm", lambda grads, **kwargs: 2.0000000000000004)
    with pytest.raises(AssertionError, match="norm") as raised:
        fs.RMSprop([np.ones(4)], verify="every").step([np.ones(4)], clip_norm=10.0)
    assert raised.type is fs.VerificationError


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@each_full_rule
def test_a_step_that_cannot_be_verified_is_taken_back(
    case: Case, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restore all bytes. The next step is that of an optimizer to which nothing happened."""
    rng = np.random.default_rng(4)
    values = normal(rng, (5, 3), np.dtype(np.float32))
    params, others = {"w": values, "b": values[0].copy()}, {"w": values.copy(), "b": values[0].copy()}
    optimizer, other = case.new(params, verify="every"), case.new(others)
    grads = [{name: normal(rng, p.shape, p.dtype) for name, p in params.items()} for _ in range(3)]

    def out_of_it(*args: Any, **kwargs: Any) -> None:
        raise error

    for t, grad in enumerate(grads, 1):
        with monkeypatch.context() as patch:
            patch.setattr(fs.reference, case.function_name, out_of_it)
            kept = Unchanged([*params.values(), *grad.values(), *memory_of(optimizer)])
            with pytest.raises(error):
                optimizer.step(grad, **case.loss(4 - t), clip_norm=1.0, zero_grads=True)
            kept.check()
            assert optimizer.steps == t - 1
        for each in (optimizer, other):
            each.step({name: g.copy() for name, g in grad.items()}, **case.loss(t), clip_norm=1.0)
    assert_same(params, others, case.name)
    for name, states in other.state.items():
        assert_same(optimizer.state[name], states, name)


@pytest.mark.parametrize("grouped", [False, True])
def test_verification_reads_gradients_once(grouped: bool) -> None:
    """Containers that make gradients anew, exporters and numbers, also zeroed, raise no false alarm."""
    arrays = {"w": np.ones(3), "b": np.ones(2)}
    tree: dict[str, Any] = {"own": OwnMapping(arrays), "fields": Fields(np.ones(4), np.array(1.0))}
    optimizer = fs.RMSprop([{"params": tree}] if grouped else tree, verify="every")
    for zero, last in ((True, np.array(2.0)), (False, 2.0)):
        grads = {"own": Fresh({"w": np.full(3, 2.0), "b": memoryview(np.ones(2))}), "fields": Fields(None, last)}
        optimizer.step([grads] if grouped else grads, zero_grads=zero, clip_norm=1.0)
    assert optimizer.steps == 2
    assert arrays["w"][0] < 1


def test_verify_takes_three_words() -> None:
    for verify in ("", "always", None, True, 1, "First"):
        with pytest.raises((TypeError, ValueError), match=r"verify.*'never', 'first', 'every'"):
            fs.RMSprop([np.ones(3)], verify=verify)


# ------------------------------------------------------------------------------------------------- that these can fail


@each_rule
def test_a_wrong_reference_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing an optimizer with its mirror fails for one wrong bit."""
    monkeypatch.setattr(fs.reference, case.function_name, off_by_a_bit(getattr(fs.reference, case.function_name)))
    params = {"w": np.ones((2, 2), np.float32)}
    grads = {"w": np.ones((2, 2), np.float32)}
    optimizer, mirror = case.new(params), Mirror(case, params)
    optimizer.step(grads, **case.loss(1))
    mirror.step(grads, **case.loss(1))
    with pytest.raises(AssertionError, match=r"param: 1 of 4 elements differ, the first at \(1, 1\)"):
        mirror.assert_like(optimizer, params, "here")
