"""Checkpoints: a resumed run is bit-for-bit identical to an uninterrupted one, and no damaged file and no kill harms
anything."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import hashlib
import itertools
import json
import math
import mmap
import os
import pickle
import random
import re
import signal
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
import native
from checks import Unchanged, assert_same, bits, interrupted, memory_of, python
from data import make_version_1 as version_1
from registry import CASES, FULLEST_OF_RULE, KEEPING, LAYOUT, LAYOUTS, STORAGES, Array, C, Case, Layout, loss

ENDINGS = (".npz", ".safetensors")
has_modes = pytest.mark.skipif(not hasattr(os, "fchmod"), reason="files have no owners and modes here")
STEPS = 12


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save thousands of files without syncing them. ``test_synced_...`` checks the syncs."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=ENDINGS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each format, in a folder of its own."""
    return tmp_path / f"x{request.param}"


# ------------------------------------------------------------------------------------------------------------- the runs

SHAPES = {"w": (3, 4), "b": (5,), "deep.0.w": (2, 3, 2), "scale": (), "none": (0, 3)}
OWN_LR = 0.25
"""The hyperparameters of the second group."""


def new_params(layout: Layout, dtype: Any = np.float32, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in SHAPES.items():
        params[name] = layout.make(lambda shape: np.zeros(shape, dtype), shape)
        params[name][...] = rng.standard_normal(shape)
    return params


def in_groups(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return two groups, the second with a step size of its own and nested."""
    nested = {"deep": [{"w": params["deep.0.w"]}], "scale": params["scale"], "none": params["none"]}
    return [{"params": {"w": params["w"], "b": params["b"]}}, {"params": nested, "lr": OWN_LR}]


def new_optimizer(case: Case, params: Mapping[str, Array], added: bool = False, **options: Any) -> Any:
    """Make an optimizer of two groups, of which the second may be added later."""
    groups = in_groups(params)
    opt = case.cls(groups[:1] if added else groups, **{**case.class_options, **options})
    for group in groups[1:] if added else ():
        opt.add_param_group(group)
    return opt


def take_step(case: Case, opt: Any, params: Mapping[str, Array], t: int) -> None:
    """Make a step of a run in which everything changes: gradients depend on the parameters, step sizes on t, and some
    parameters are left out of some steps."""
    rng = np.random.default_rng(1000 + t)
    grads: dict[str, Array | None] = {
        name: np.asarray(rng.standard_normal(p.shape) + 0.1 * np.asarray(p, order="C"), p.dtype)
        for name, p in params.items()
    }
    if t % 3 == 0:
        grads["b"] = None
    for group in opt.param_groups:
        if case.rule != "rprop":  # Rprop only starts with lr
            group["lr"] *= 0.9
    nested = [group["params"] for group in in_groups(grads)]
    opt.step(nested, loss=loss(t) if case.needs_loss or t % 2 else None, clip_norm=10.0)


def all_bits(arrays: Mapping[str, Array]) -> dict[str, bytes]:
    return {name: bits(array).tobytes() for name, array in arrays.items()}


def everything(opt: Any, params: Mapping[str, Array]) -> dict[str, Any]:
    """Return all bits of a run."""
    return {
        "params": all_bits(params),
        "state": {name: all_bits(states) for name, states in opt.state.items()},
        "groups": [{key: repr(value) for key, value in g.items() if key != "params"} for g in opt.param_groups],
        "step": opt.steps,
        **{key: repr(opt.state_dict()[key]) for key in ("times", "last_loss", "seed")},
    }


@contextlib.contextmanager
def refused(opt: Any, params: Mapping[str, Array], *says: str, error: type[Exception] = ValueError) -> Iterator[Any]:
    """Expect an error with these words, and that no bit of the run changes."""
    before = everything(opt, params)
    with pytest.raises(error) as raised:
        yield raised
    assert all(part in str(raised.value) for part in says), raised.value
    assert everything(opt, params) == before


_CASE = {case.name: case for case in CASES}
RESUMED = [_CASE[x] for x in ("rmsprop-everything", "rmsprop-graves", "adagrad-lr decay", "rprop-irprop+")]


def some_run(case: Case = RESUMED[0], steps: int = 5, seed: int = 1, layout: Layout = C) -> tuple[Any, Any]:
    """Return an optimizer after some steps, and its parameters by name. Its second group was added."""
    params = new_params(layout, seed=seed)
    opt = new_optimizer(case, params, added=True)
    for t in range(1, steps + 1):
        take_step(case, opt, params, t)
    return opt, params


def another_dict() -> dict[str, Any]:
    """Return the state dict of another run, at another point."""
    return some_run(steps=7, seed=2)[0].state_dict()


# --------------------------------------------------------------------------------------------------------------- resume


Transport = Callable[[Any, int, str], Callable[[Any], None]]
"""Keeps an optimizer, at a step, by a way; returns what brings another one there."""


def resume(
    case: Case, layout: Layout, other_layout: Layout, dtype: Any, cuts: range, transports: Mapping[str, Transport]
) -> None:
    """Cut a run at each of ``cuts`` and go on in fresh arrays of another layout: the end is that of the uninterrupted
    run."""
    params = new_params(layout, dtype)
    opt = new_optimizer(case, params, seed=9)
    whole = []
    saved: dict[tuple[int, str], Callable[[Any], None]] = {}
    for t in range(STEPS + 1):
        if t > 0:
            take_step(case, opt, params, t)
        whole.append(everything(opt, params))
        if t in cuts:
            for how, transport in transports.items():
                saved[t, how] = transport(opt, t, how)
        assert everything(opt, params) == whole[-1], "a save changed something"
    for (cut, how), bring_back in saved.items():
        where = f"{case}, {layout}, then {other_layout}, {np.dtype(dtype)}, cut at {cut}, by {how}"
        fresh = new_params(other_layout, dtype, seed=99)
        other = new_optimizer(case, fresh, added=True, lr=0.5)
        if cut % 2:  # also from another point of another run
            take_step(case, other, fresh, 1)
        places = [(id(array), array.ctypes.data, array.strides) for array in memory_of(other)]
        bring_back(other)
        assert everything(other, fresh) == whole[cut], where
        for t in range(cut + 1, STEPS + 1):
            take_step(case, other, fresh, t)
            assert everything(other, fresh) == whole[t], f"{where}, after step {t}"
        moved = [(id(array), array.ctypes.data, array.strides) for array in memory_of(other)]
        assert moved == places, f"{where}: arrays moved"


def by_file(tmp_path: Path) -> Transport:
    def transport(opt: Any, t: int, ending: str) -> Callable[[Any], None]:
        path = tmp_path / f"{t}{ending}"
        opt.save(path)
        return lambda other: other.load(path)

    return transport


def by_dict(opt: Any, t: int, how: str) -> Callable[[Any], None]:
    saved = opt.state_dict()
    return lambda other: other.load_state_dict(saved)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_resumed_at_every_cut(case: Case, layout: Layout, tmp_path: Path) -> None:
    """13 cuts, both formats and the dict, from all layouts into all; from fresh arrays and from another run."""
    transports = {**dict.fromkeys(ENDINGS, by_file(tmp_path)), "dict": by_dict}
    other = LAYOUTS[LAYOUTS.index(layout) - 5]
    resume(case, layout, other, np.float32, range(STEPS + 1), transports)


STORED = [case.as_stored(storage) for case in FULLEST_OF_RULE for storage in STORAGES if storage.stochastic]


@pytest.mark.parametrize("case", [*KEEPING, *STORED[::5]], ids=str)
def test_every_rule_resumes(case: Case, tmp_path: Path) -> None:
    """Stochastic rounding goes on, too."""
    dtype = np.float64 if case.storage is None else case.storage.param
    for layout, ending in (("F", ".npz"), ("every 2nd, backwards", ".safetensors")):
        resume(case, LAYOUT[layout], LAYOUTS[5], dtype, range(5, 7), {ending: by_file(tmp_path)})


def test_names_decide_and_not_the_order(path: Path) -> None:
    opt, params = some_run()
    opt.save(path)
    fresh = new_params(C, seed=3)
    backwards = [{**group, "params": dict(reversed(group["params"].items()))} for group in in_groups(fresh)[::-1]]
    other = fs.RMSprop(backwards, **RESUMED[0].class_options)
    assert list(other.state) != list(opt.state)
    other.load(path)
    found, expected = everything(other, fresh), everything(opt, params)
    assert (found["params"], found["state"]) == (expected["params"], expected["state"])
    assert found["groups"] == expected["groups"][::-1]
    assert other.state_dict()["times"] == opt.state_dict()["times"]
    assert len(set(opt.state_dict()["times"].values())) > 1


def test_difficult_names(path: Path) -> None:
    """Names with dots, slashes, quotes, control characters, of any script; names that look like the file's own."""
    names = [
        ".", "a.b", "a/b", "/a", "../a", "a\0b", "a\0c", "a\nb", "a\\x00b", "é", "名", "\U0001f600", "file",
        "metadata", "params.x", "state.x.square_avg", "x.square_avg", "x", "__metadata__", 'a"b', "x" * 5000,
        '"__metadata__":{"fusedstep":"{\\"sha256\\":\\"' + "0" * 64, "allow_pickle", "0" * 64,
    ]  # fmt: skip
    params = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    opt = fs.RMSprop(params)
    opt.step({name: np.full(2, i, np.float32) for i, name in enumerate(names)})
    opt.save(path)
    fresh = {name: np.zeros(2, np.float32) for name in reversed(names)}
    other = fs.RMSprop(fresh)
    other.load(path)
    for key in ("params", "state"):
        assert everything(other, fresh)[key] == everything(opt, params)[key]
    assert other.state_dict()["groups"][0]["params"] == names[::-1]


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    """NaN with payloads, signalling NaN, infinities, subnormals and zeros of both signs, in parameters and states."""
    rng = np.random.default_rng(0)
    for dtype, unsigned in ((np.float32, np.uint32), (np.float64, np.uint64)):
        patterns = rng.integers(0, 2**64, 4000, np.uint64).astype(unsigned)
        signalling = bits(np.array([math.inf, -math.inf], dtype)) + 1
        patterns = np.concatenate([patterns, signalling, bits(np.array([0.0, -0.0, 5e-324], dtype))])
        params = {"w": patterns.view(dtype)[::-1]}
        opt = fs.Rprop(params, variant="irprop+")
        opt.state["w"]["step_size"][...] = patterns.view(dtype)
        opt.step({"w": None}, loss=math.nan)
        for ending in ENDINGS:
            opt.save(tmp_path / f"x{ending}")
            fresh = {"w": np.zeros(patterns.size, dtype)}
            other = fs.Rprop(fresh)
            other.load(tmp_path / f"x{ending}")
            assert bits(fresh["w"]).tobytes() == patterns[::-1].tobytes()
            assert bits(other.state["w"]["step_size"]).tobytes() == patterns.tobytes()
            assert math.isnan(other.state_dict()["last_loss"])


def test_hyperparameters_are_exact(path: Path) -> None:
    """Floats of all magnitudes come back exactly. So do other numbers, as the double that kernels use."""
    rng = np.random.default_rng(0)
    values: list[Any] = [0.1, 1 / 3, 5e-324, sys.float_info.max, 0, 3, np.float32(0.1), np.float64(1 / 7), np.int64(2)]
    values += [float(x) for x in 10.0 ** rng.uniform(-300, 300, 100)]
    opt, other = (fs.RMSprop(np.zeros(3)) for _ in range(2))
    for value in values:
        opt.param_groups[0].update(lr=value, eps_inside_sqrt=np.True_)
        opt.save(path)
        other.load(path)
        assert (repr(other.lr), other.eps_inside_sqrt) == (repr(float(value)), True)
        assert type(other.param_groups[0]["eps_inside_sqrt"]) is bool
        other.step(np.ones(3))
    pairs = fs.Rprop(np.zeros(3), etas=(1 / 3, 1.1), step_sizes=(1e-9, 7), variant="rprop+")
    fresh = fs.Rprop(np.zeros(3))
    pairs.save(path)
    fresh.load(path)
    assert repr((fresh.etas, fresh.step_sizes, fresh.variant)) == repr(((1 / 3, 1.1), (1e-9, 7.0), "rprop+"))


# ------------------------------------------------------------------------------------------------------------- the dict


def test_state_dict_is_plain_and_independent() -> None:
    opt, params = some_run(RESUMED[0], layout=LAYOUT["F, first axis reversed"])
    before = everything(opt, params)
    saved = opt.state_dict()
    assert list(saved) == ["format_version", "class", "groups", "step", "times", "last_loss", "seed", "params", "state"]
    assert saved["format_version"] == 2
    assert saved["class"] == "RMSprop"
    assert saved["step"] == 5
    assert saved["times"] == {"w": 5, "b": 4, "deep.0.w": 5, "scale": 5, "none": 5}
    assert saved["last_loss"] == loss(5)
    assert [group["params"] for group in saved["groups"]] == [["w", "b"], ["deep.0.w", "scale", "none"]]
    expected = {key: value for key, value in opt.param_groups[1].items() if key != "params"}
    assert {key: value for key, value in saved["groups"][1].items() if key != "params"} == expected
    json.dumps({key: value for key, value in saved.items() if key not in ("params", "state")}, allow_nan=False)
    for name, array in saved["params"].items():
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous
        assert (array.shape, array.dtype) == (params[name].shape, params[name].dtype)
        array[...] = 0
    for states in saved["state"].values():
        for array in states.values():
            assert array.flags.c_contiguous
            array[...] = 0
    saved["groups"][0]["lr"] = 7.0
    assert everything(opt, params) == before


def test_arrays_of_the_dict_may_be_the_live_ones() -> None:
    """Swap two parameters by a dict of the live arrays."""
    a, b = np.arange(3.0), np.arange(3.0) + 10
    opt = fs.Adagrad({"a": a, "b": b})
    saved = opt.state_dict()
    saved["params"] = {"a": b, "b": a}
    opt.load_state_dict(saved)
    assert a.tolist() == [10, 11, 12]
    assert b.tolist() == [0, 1, 2]


def changed(saved: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a state dict with another value at ``path``; ``...`` removes the entry."""
    saved = copy.deepcopy(saved)
    at = saved
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return saved


HUGE = 10**400
f32 = np.float32
BAD: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format_version",), 3, "format_version: expected 1 or 2, got 3"),
    (("format_version",), True, "format_version: expected 1 or 2, got True"),
    (("format_version",), ..., "format_version: expected 1 or 2, got None"),
    (("class",), "Adagrad", "class: expected RMSprop, as this optimizer is, got 'Adagrad'"),
    (("step",), ..., "state dict: 'step' missing"),
    (("more",), 1, "state dict: 'more' unknown"),
    (("step",), -1, "step: expected a whole number"),
    (("step",), 2**63, "step: expected a whole number"),
    (("step",), True, "step: expected a whole number"),
    (("times",), [1, 2, 3, 4, 5], "times: expected a mapping"),
    (("times", "w"), ..., "times: 'w' missing"),
    (("times", "w"), -1, "times of 'w': expected a whole number"),
    (("times", "v"), 5, "times: 'v' unknown"),
    (("last_loss",), "0.5", "last_loss: expected a real number or None"),
    (("last_loss",), True, "last_loss: expected a real number or None"),
    (("last_loss",), HUGE, "last_loss: "),
    (("groups",), {}, "groups: expected a list"),
    (("groups",), [], "groups: 'w', 'b', 'deep.0.w', 'scale', 'none' missing"),
    (("groups", 1), ..., "groups: 'deep.0.w', 'scale', 'none' missing"),
    (("groups", 1), [], "group 1: expected a mapping"),
    (("groups", 1, "params"), ..., "group 1: expected a mapping with a list of names"),
    (("groups", 1, "params"), "scale", "group 1: expected a mapping with a list of names"),
    (("groups", 1, "params"), [["scale"]], "group 1: expected a mapping with a list of names"),
    (("groups", 1, "params"), ["deep.0.w", "scale", "other"], "groups: 'none' missing, 'other' unknown"),
    (("groups", 1, "params"), ["w", "deep.0.w", "scale", "none"], "groups: expected one of 'deep.0.w', 'scale'"),
    (("groups", 0, "lr"), ..., "group 0: 'lr' missing"),
    (("groups", 0, "nu"), 0.5, "group 0: 'nu' unknown"),
    (("groups", 0, "lr"), -1.0, "group 0: lr: "),
    (("groups", 1, "lr"), "0.1", "group 1: lr: "),
    (("groups", 1, "lr"), HUGE, "group 1: "),
    (("groups", 0, "momentum_form"), [], "group 0: momentum_form: "),
    (("groups", 0, "momentum"), 0.0, "nesterov"),
    (("params",), [], "params: expected a mapping"),
    (("params", "w"), ..., "params: 'w' missing"),
    (("params", "v"), np.zeros((3, 4), f32), "params: 'v' unknown"),
    (("params", "w"), np.zeros((3, 4), f32).tolist(), "params: 'w': expected a numpy.ndarray, got list"),
    (("params", "w"), np.zeros((4, 3), f32), "params: 'w': expected float32 of shape (3, 4), as in this optimizer"),
    (("params", "w"), np.zeros((3, 4)), "params: 'w': expected float32 of shape (3, 4)"),
    (("params", "w"), np.zeros((3, 4), ">f4"), "params: 'w': expected float32 of shape (3, 4)"),
    (("params", "none"), np.zeros((3, 0), f32), "params: 'none': expected float32 of shape (0, 3)"),
    (("params", "scale"), np.zeros(1, f32), "params: 'scale': expected float32 of shape ()"),
    (("state",), None, "state: expected a mapping"),
    (("state", "w"), ..., "state: 'w' missing"),
    (("state", "w"), [], "state of 'w': expected a mapping"),
    (("state", "none", "grad_avg"), ..., "state of 'none': 'grad_avg' missing"),
    (("state", "w", "other"), np.zeros((3, 4), f32), "state of 'w': 'other' unknown"),
    (("state", "w", "grad_avg"), np.zeros((3, 4)), "state of 'w': 'grad_avg': expected float32"),
    (("state", "none", "grad_avg"), np.zeros((0, 4), f32), "state of 'none': 'grad_avg': expected float32"),
]  # fmt: skip


def bad_name(bad: Any) -> str:
    path, value, _ = bad
    return f"{'.'.join(map(str, path))}={'removed' if value is ... else str(value)[:12]}"


each_bad = pytest.mark.parametrize("bad", BAD, ids=bad_name)


@each_bad
def test_bad_dicts_change_nothing(bad: Any) -> None:
    """Refuse a dict with one thing wrong, the last one included, by ValueError with its name, and change no bit. So
    are those of version 1, after conversion. Partial loads leave out what does not match."""
    place, value, message = bad
    saved = another_dict()
    opt, params = some_run()
    with refused(opt, params, message):
        opt.load_state_dict(changed(saved, place, value))
    if place != ("format_version",):
        old = copy.deepcopy(saved) | {"format_version": 1}
        for states in old["state"].values():
            states["square_avg"] = states.pop("variance")
        with refused(opt, params, ""):
            opt.load_state_dict(changed(old, place, value))
        opt.load_state_dict(old)
        opt, params = some_run()
    before = everything(opt, params)
    wrong = changed(saved, place, value)
    try:
        report = opt.load_state_dict(wrong, strict=False)
    except ValueError:
        assert everything(opt, params) == before
        assert place[0] not in ("params", "state") or not isinstance(value, np.ndarray)
    else:
        assert {*report.loaded, *report.fresh} == set(params)
        assert {*report.loaded, *report.unused} == set(wrong["params"])
        opt.step(NOTHING, loss=1.0)
    opt.load_state_dict(saved)
    assert everything(opt, params) != before, "the dict itself was good"


def test_other_dicts_change_nothing() -> None:
    """Refuse a group that comes twice or has a parameter of another group; other objects; read-only live arrays,
    which are found before the first one is written."""
    opt, params = some_run()
    saved = another_dict()
    group = saved["groups"][0]
    for other in (group, {**group, "params": ["w"]}, {**group, "params": []}):
        with refused(opt, params, "groups: expected 2, as in this optimizer, got 3"):
            opt.load_state_dict({**saved, "groups": [*saved["groups"], other]})
    for no_dict in (None, [], "x", 1):
        with refused(opt, params, "expected a mapping, as state_dict", error=TypeError):
            opt.load_state_dict(no_dict)
    for is_state in (False, True):
        opt, params = some_run()
        unchanged = Unchanged(memory_of(opt))
        last = [*opt.state["none"].values()][-1] if is_state else params["none"]
        last.flags.writeable = False
        with pytest.raises(ValueError, match=r"'none'.* read-only"):
            opt.load_state_dict(saved)
        unchanged.check()
        assert opt.steps == 5


def test_groups_without_parameters() -> None:
    """They have no names, so their order decides."""
    x = np.ones(3)
    opt = fs.RMSprop([{"params": [], "lr": 0.5}, {"params": {"x": x}}, {"params": {}, "lr": 0.25}])
    other = fs.RMSprop([{"params": {"x": x.copy()}}, {"params": []}, {"params": []}])
    other.load_state_dict(opt.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.01, 0.5, 0.25]


def test_states_must_be_there_for_the_hyperparameters() -> None:
    """A plain RMSprop does not become one with momentum, because it has no buffer. Momentum may be switched off
    during the run: its state is kept and returns with it."""
    moving = fs.RMSprop({"w": np.ones(3)}, momentum=0.5)
    plain = fs.RMSprop({"w": np.ones(3)})
    lacks = "group 0: parameter 'w' has no 'momentum_buffer', which these hyperparameters need"
    with pytest.raises(ValueError, match=lacks):
        plain.load_state_dict(moving.state_dict())
    with pytest.raises(ValueError, match="state of 'w': 'momentum_buffer' unknown"):
        plain.load_state_dict(changed(moving.state_dict(), ("groups", 0, "momentum"), 0.0))
    with pytest.raises(ValueError, match="state of 'w': 'momentum_buffer' missing"):
        moving.load_state_dict(plain.state_dict())
    moving.step({"w": np.ones(3)})
    moving.param_groups[0]["momentum"] = 0.0
    other = fs.RMSprop({"w": np.ones(3)}, momentum=0.5)
    other.load_state_dict(moving.state_dict())
    assert other.param_groups[0]["momentum"] == 0.0
    buffer = moving.state["w"]["momentum_buffer"].tolist()
    assert other.state["w"]["momentum_buffer"].tolist() == buffer != [0, 0, 0]


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    some_run()[0].save(tmp_path / "x.npz")
    good = (tmp_path / "x.npz").read_bytes()
    for value in ("0.1", -1.0, math.nan, ..., HUGE):
        opt, _ = some_run()
        opt.param_groups[1]["lr"] = value
        if value is ...:
            del opt.param_groups[1]["lr"]
        for call in (opt.state_dict, lambda opt=opt: opt.save(tmp_path / "x.npz")):
            with pytest.raises(ValueError, match="group 1: "):
                call()
    del opt.param_groups[1:]
    with pytest.raises(ValueError, match="param_groups: expected the list of 2 groups"):
        opt.state_dict()
    assert (tmp_path / "x.npz").read_bytes() == good
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("partial", [False, True])
def test_interrupted_between_any_two_instructions(partial: bool) -> None:
    """Interrupt at the k-th line or return of Python, for each k: all is old up to some k, and all is new after it."""
    saved = another_dict()
    if partial:  # a fresh state beside loaded ones
        saved = RESUMED[0].new([{"params": {"w": np.ones(2, np.float32)}}]).state_dict()
    opt, params = some_run()
    old = everything(opt, params)
    opt.load_state_dict(saved, strict=not partial)
    new = everything(opt, params)
    assert new != old
    ends, reached = [], True
    while reached:
        opt, params = some_run()
        load = functools.partial(opt.load_state_dict, saved, strict=not partial)
        reached = interrupted(len(ends), load)
        found = everything(opt, params)
        assert found in (old, new), f"torn by an interrupt at event {len(ends)}"
        ends.append(found == new)
    assert len(ends) > 100
    assert ends == sorted(ends)
    assert ends.count(True) > 1, "no interrupt came after the writes"


# ---------------------------------------------------------------------------------------------------------------- files


def test_other_endings(tmp_path: Path) -> None:
    opt, _ = some_run()
    for name in ("x", "x.pt", "x.npy", "x.npz.gz", "x.NPZ", ".npz"):
        for call in (opt.save, opt.load):
            with pytest.raises(ValueError, match=r"expected a name that ends in .safetensors or .npz") as raised:
                call(tmp_path / name)
            assert str(tmp_path / name) in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt, params = some_run()
    opt.save(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    before = everything(opt, params)
    for module in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        opt.save(tmp_path / "x.safetensors")
    opt.load(tmp_path / "x.safetensors")  # reading needs no package
    opt.save(tmp_path / "x.npz")
    opt.load(tmp_path / "x.npz")
    assert everything(opt, params) == before
    assert (tmp_path / "x.safetensors").read_bytes() == content


def test_missing_files_and_directories(path: Path) -> None:
    opt, _ = some_run()
    with pytest.raises(FileNotFoundError):
        opt.load(path)
    with pytest.raises(FileNotFoundError) as raised:
        opt.save(path.parent / "nowhere" / path.name)
    assert raised.value.filename == os.fspath(path.parent / "nowhere" / path.name)
    assert os.listdir(path.parent) == []
    path.mkdir()
    for call in (opt.save, opt.load):
        with pytest.raises(IsADirectoryError):
            call(path)
    assert os.listdir(path.parent) == [path.name]


@has_modes
def test_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept str, path-like, bytes and relative paths. A symbolic link stays one; the mode is that of new files."""
    opt, params = some_run()
    before = everything(opt, params)
    monkeypatch.chdir(path.parent)
    os.mkdir("sub")
    link, other, target = path.with_stem("link"), path.with_stem("y"), path.parent / "sub" / path.name
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        for name in (path.name, path, os.fsencode(other.name), link.name):
            opt.save(name)
            opt.load(name)
    finally:
        os.umask(old)
    assert everything(opt, params) == before
    assert sorted(os.listdir()) == sorted([path.name, other.name, link.name, "sub"])
    assert link.is_symlink()
    assert os.listdir("sub") == [target.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_other_readers_open_the_files(tmp_path: Path) -> None:
    """NumPy and safetensors read the arrays by name, also transposed ones, and the rest as JSON."""
    safetensors = pytest.importorskip("safetensors")
    opt, params = some_run(layout=LAYOUT["F"])
    for ending in ENDINGS:
        opt.save(tmp_path / f"x{ending}")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        arrays = dict(file)
    found = [(arrays.pop("metadata").tobytes().decode(), arrays)]
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        found.append((file.metadata()["fusedstep"], {key: file.get_tensor(key) for key in file.keys()}))  # noqa: SIM118
    expected = {f"params.{name}": p for name, p in params.items()} | {
        f"state.{name}.{key}": array for name, states in opt.state.items() for key, array in states.items()
    }
    for text, arrays in found:
        assert all_bits(dict(sorted(arrays.items()))) == all_bits(dict(sorted(expected.items())))
        about = json.loads(text)
        assert (about["class"], about["step"], about["groups"][1]["lr"]) == ("RMSprop", 5, opt.param_groups[1]["lr"])


# --------------------------------------------------------------------------------------- files that were cut or altered


class Damage:
    """A good file, an optimizer at another point, and a check that a bad file changes nothing in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.ending = path, path.suffix
        source, source_params = some_run(steps=7, seed=2)
        source.save(path)
        self.good = path.read_bytes()
        self.saved = source.state_dict()
        self.after = everything(source, source_params)
        self.begin_again()
        assert self.before != self.after

    def begin_again(self) -> None:
        self.opt, self.params = some_run()
        self.before = everything(self.opt, self.params)

    def refused(self, content: bytes, what: str) -> str:
        """Return the message. Fail if the file is not refused or anything was changed."""
        message = self.tried(content, what)
        assert message, f"{what}: was loaded"
        return message

    def tried(self, content: bytes, what: str) -> str:
        """Return the message, which is empty if the file was loaded."""
        self.path.unlink()  # file systems sync a file that replaces another at once
        self.path.write_bytes(content)
        try:
            self.opt.load(self.path)
        except ValueError as error:
            message = str(error)
        else:
            return ""
        assert message.startswith(f"{self.path}: "), f"{what}: {message}"
        assert everything(self.opt, self.params) == self.before, f"{what}: something was changed"
        return message

    def was_good(self, content: bytes | None = None) -> None:
        """Load a good file, made in a way of one's own or as it was saved, and begin again."""
        assert not self.tried(content or self.good, "the good file")
        assert everything(self.opt, self.params) == self.after
        self.begin_again()


def test_every_byte_and_every_length(path: Path) -> None:
    """Each byte altered, each bit of 60 bytes, each length; pieces moved, lost, zeroed and added."""
    damage = Damage(path)
    good = damage.good
    rng = random.Random(0)

    def altered(at: int, mask: int) -> bytes:
        return good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :]

    for at in range(len(good)):
        message = damage.refused(altered(at, rng.randrange(1, 256)), f"byte {at}")
        assert "checksum" in message or "not a checkpoint" in message
    for at, bit in itertools.product(rng.sample(range(len(good)), 60), range(8)):
        damage.refused(altered(at, 1 << bit), f"bit {bit} of byte {at}")
    for length in range(len(good)):
        damage.refused(good[:length], f"cut to {length}")
    for extra in (b"\0", b"x", b"0" * 64, good):
        damage.refused(good + extra, "appended")
        damage.refused(extra + good, "prepended")
    for _ in range(150):
        a, b, c = sorted(rng.sample(range(len(good)), 3))
        mixed = good[:a] + good[b:c] + good[a:b] + good[c:]
        for pieces in (mixed, good[:a] + good[b:], good[:b] + good[a:], good[:a] + bytes(b - a) + good[b:]):
            if pieces != good:
                damage.refused(pieces, f"pieces at {a}, {b}, {c}")
    damage.was_good()


def sealed(ending: str, content: bytes) -> bytes | None:
    """The content with its right checksum, so that the reader behind it is met.

    It is the SHA-256 of all other bytes: the comment of an archive, or the first entry in the JSON of the header.
    """
    before = b'"__metadata__":{"fusedstep":"{\\"sha256\\":\\"'
    if ending == ".npz":
        place = len(content) - 64
    else:
        place = content.find(before, 8, 8 + int.from_bytes(content[:8], "little")) + len(before)
    if place < len(before):
        return None
    digest = hashlib.sha256(content[:place] + content[place + 64 :]).hexdigest()
    return content[:place] + digest.encode() + content[place + 64 :]


def test_altered_files_with_a_right_checksum() -> None:
    """Run ``fuzz/checkpoint.py`` for some seconds: a file is refused and changes nothing, or is loaded completely."""
    program = Path(__file__).parent / "fuzz" / "checkpoint.py"
    done = native.run(sys.executable, program, "--plain", "--seconds", "4")
    refused, loaded = map(int, re.findall(r"(\d+) (?:refused|loaded)", done))
    assert refused
    assert loaded


NOTHING = [dict.fromkeys(("w", "b")), {"deep": [{"w": None}], "scale": None, "none": None}]
"""Gradients that leave all parameters out."""


def written(ending: str, saved: Mapping[str, Any], path: Path, arrays: Mapping[str, Array] | None = None) -> bytes:
    """A file of any dict, good or bad, with the right checksum."""
    flat = {f"params.{name}": array for name, array in saved["params"].items()}
    for name, states in saved["state"].items():
        flat |= {f"state.{name}.{key}": array for key, array in states.items()}
    description = {key: value for key, value in saved.items() if key not in ("params", "state")}
    return with_description(ending, flat | dict(arrays or {}), json.dumps(description, separators=(",", ":")), path)


def with_description(ending: str, arrays: Mapping[str, Array], text: str, path: Path) -> bytes:
    """A well-made file whose JSON is ``text``."""
    if ending == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = b"0" * 64
            for key, array in {"metadata": np.frombuffer(text.encode(), np.uint8), **arrays}.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, array, (1, 0))
    else:
        numpy = pytest.importorskip("safetensors.numpy")
        rest = f",{text.lstrip()[1:]}" if text[:1] == "{" and text != "{}" else text.lstrip("{")
        numpy.save_file(arrays, path, {"fusedstep": '{"sha256":"' + "0" * 64 + f'"{rest}'})
    content = sealed(ending, path.read_bytes())
    assert content is not None
    return content


def fits_a_file(bad: Any) -> bool:
    """Whether it can be written at all: its arrays are arrays, and the rest is JSON."""
    place, value, _ = bad
    if place[0] not in ("params", "state"):
        return True
    return isinstance(value, np.ndarray) or (value is ... and place != ("state", "w"))


def test_bad_files_that_are_well_made(path: Path) -> None:
    """What a dict can have wrong, in a file; arrays that have no place, and of types that no array has."""
    damage = Damage(path)
    made = path.with_stem("bad")
    for bad in filter(fits_a_file, BAD):
        place, value, message = bad
        content = written(damage.ending, changed(damage.saved, place, value), made)
        if getattr(value, "dtype", None) == np.dtype(">f4") and path.suffix == ".safetensors":
            assert not damage.tried(content, "bytes in another order, which this format puts right")
            damage.begin_again()
        else:
            assert message in damage.refused(content, bad_name(bad)), bad_name(bad)
    for key in ("other", "params", "params.", "state.", "state.w", "state..", "params.\\x", "params.\\N{DIGIT}", "x.w"):
        damage.refused(written(damage.ending, damage.saved, made, {key: np.zeros(2, f32)}), key)
    for alias in ("\\167", "\\N{LATIN SMALL LETTER W}", "\\w"):  # Python's other escapes for a name
        params = {alias if name == "w" else name: array for name, array in damage.saved["params"].items()}
        content = written(damage.ending, damage.saved | {"params": params}, made)
        assert "is no name's key" in damage.refused(content, alias)
    for dtype in (bool, np.float16, np.int32, np.int64):
        content = written(damage.ending, damage.saved, made, {"params.w": np.zeros((3, 4), dtype)})
        damage.refused(content, str(dtype))
    damage.was_good()


def test_hostile_json(path: Path) -> None:
    damage = Damage(path)
    arrays = {f"params.{name}": array for name, array in damage.saved["params"].items()}
    deep = 200_000
    for text in (
        "", "{", "[]", "null", "1", '"x"', "{}", '{"format_version":1}', "[" * deep, '{"a":' * deep,
        '{"a":' + "[" * deep, '{"step":' + "9" * 10_000 + "}", '{"format_version":' + "9" * 10_000 + "}", "{'a':1}",
        "\x00", '{"format_version":1,"params":{},"state":{}}',
    ):  # fmt: skip
        damage.refused(with_description(damage.ending, arrays, text, path.with_stem("bad")), text[:30])
    damage.was_good()


def test_hostile_npz(tmp_path: Path) -> None:
    """Pickles, compressed members, claims of huge arrays, lies about sizes, members that are no arrays."""
    damage = Damage(tmp_path / "x.npz")
    with zipfile.ZipFile(damage.path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def npz(changed: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        path = tmp_path / "bad"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.comment = b"0" * 64
            for name, member in {**members, **changed}.items():
                archive.writestr(name, member)
        content = sealed(".npz", path.read_bytes())
        assert content is not None
        return content

    def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
        text = header.encode("latin1")
        length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
        return b"\x93NUMPY" + version + length + text + data

    def header(descr: str = "'<f4'", fortran: str = "False", shape: str = "(3, 4)") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"

    data = bytes(48)
    damage.was_good(npz({"params.w.npy": npy(header(), damage.saved["params"]["w"].tobytes())}))

    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (os.fspath(tmp_path / "trapped"),)

    hostile = {
        "pickle as a member": pickle.dumps(Trap()),
        "object array": npy(header("'|O'"), pickle.dumps([Trap()] * 12)),
        "addresses as objects": npy(header("'|O'"), bytes(range(96))),
        "exabytes": npy(header(shape=f"({2**60},)"), data),
        "beyond 64 bit": npy(header(shape=f"({10**30}, 0)"), b""),
        "negative": npy(header(shape="(-3, -4)"), data),
        "too short": npy(header(), data[:-1]),
        "too long": npy(header(), data + b"\0"),
        "float shape": npy(header(shape="(3.0, 4)"), data),
        "code in the header": npy(f"__import__('os').mkdir({os.fspath(tmp_path / 'trapped')!r})\n"),
        "long header": npy(header() + " " * 60_000, data),
        "Fortran order": npy(header(fortran="True"), data),
        "dates": npy(header("'<M8[s]'"), data),
        "version 2": npy(header(), data, b"\x02\x00"),
        "empty": b"",
        "many dimensions": npy(header(shape=f"({'1, ' * 70})"), data),
    }
    for what, content in hostile.items():
        damage.refused(npz({"params.w.npy": content}), what)
    bomb = npy(header(shape=f"({50_000_000 // 4},)"), bytes(50_000_000))
    assert "compressed" in damage.refused(npz({"params.bomb.npy": bomb}, zipfile.ZIP_DEFLATED), "a bomb")
    damage.refused(npz({"other.txt": b"hello"}), "a text")
    damage.refused(npz({"metadata.npy": npy(header("'<f8'", shape="(1,)"), bytes(8))}), "no JSON")
    assert not (tmp_path / "trapped").exists()
    damage.was_good()


def test_hostile_safetensors(tmp_path: Path) -> None:
    """Headers that lie about lengths, offsets, types and shapes."""
    pytest.importorskip("safetensors")
    damage = Damage(tmp_path / "x.safetensors")
    length = int.from_bytes(damage.good[:8], "little")
    header = json.loads(damage.good[8 : 8 + length])
    data = damage.good[8 + length :]

    def file(changes: Mapping[str, Any], length: int | None = None) -> bytes:
        text = json.dumps({**header, **changes}, separators=(",", ":")).encode()
        made = (len(text) if length is None else length).to_bytes(8, "little") + text + data
        return sealed(".safetensors", made) or made

    entry = header["params.w"]
    damage.was_good(file({}))
    begin, end = entry["data_offsets"]
    lies: list[dict[str, Any]] = [
        {"data_offsets": [begin, end - 4]}, {"data_offsets": [end, begin]}, {"data_offsets": [begin, 2**63]},
        {"data_offsets": [-1, end]}, {"data_offsets": [begin + 4, end + 4]}, {"data_offsets": [0, 48]},
        {"data_offsets": []}, {"shape": [4, 3]}, {"shape": [2**63, 4]}, {"shape": [-3, -4]}, {"shape": [12]},
        {"shape": "34"}, {"shape": [2**33, 2**33]}, {"dtype": "F64"}, {"dtype": "I32"}, {"dtype": "BF16"},
        {"dtype": "X"}, {"dtype": None},
    ]  # fmt: skip
    for lie in lies:
        damage.refused(file({"params.w": {**entry, **lie}}), str(lie))
    for length in (0, 1, 7, 2**31, 2**62, 2**64 - 1):
        damage.refused(file({}, length), f"a header of {length}")
    others: list[dict[str, Any]] = [
        {"__metadata__": None}, {"__metadata__": {"fusedstep": 1}}, {"__metadata__": {}}, {"params.w": []},
    ]  # fmt: skip
    for other in others:
        damage.refused(file(other), str(other))
    damage.was_good()


def test_files_of_others(tmp_path: Path) -> None:
    """A model's .npz and .safetensors, a text, the one format under the other's name."""
    opt, params = some_run()
    numpy = pytest.importorskip("safetensors.numpy")
    for mine, other in (ENDINGS, ENDINGS[::-1]):
        opt.save(tmp_path / f"y{mine}")
        (tmp_path / f"y{mine}").rename(tmp_path / f"z{other}")
        (tmp_path / f"empty{mine}").write_bytes(b"")
        (tmp_path / f"text{mine}").write_text("hello" * 100)
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    numpy.save_file({"w": np.ones(3)}, tmp_path / "x.safetensors", {"fusedstep": "{}"})
    for path in tmp_path.iterdir():
        with refused(opt, params, f"{path}: ") as raised:
            opt.load(path)
        raised.match("checksum|not a checkpoint")


# --------------------------------------------------------------------------------------- saves that fail or are killed


@pytest.mark.parametrize("fails", ["write", "checksum", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file(fails: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk, an I/O error or Ctrl-C at each stage, the old file is complete and nothing else is left."""
    opt, params = some_run()
    opt.save(path)
    old = path.read_bytes()
    take_step(RESUMED[0], opt, params, 6)
    write = "zipfile.ZipFile.writestr" if path.suffix == ".npz" else "safetensors.numpy.save"
    stage = {"write": write, "checksum": "hashlib.sha256"}.get(fails, f"os.{fails}")
    for error in (OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(stage, fail)
            with pytest.raises(type(error)):
                opt.save(path)
        assert path.read_bytes() == old
        assert os.listdir(path.parent) == [path.name]
    opt.save(path)
    assert path.read_bytes() != old


def test_synced_before_and_after_the_replacement(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete file is on the disk before it gets its name, and the name after: the calls come in this order."""
    opt, _ = some_run()
    done: list[Any] = []
    replace = os.replace

    def noted_fsync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append(("fsync", target, Path(target).read_bytes() if os.path.isfile(target) else None))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append(("replace", *names)), replace(*names)))
    opt.save(path)
    (_, temporary, content), second, third = done
    assert os.path.dirname(temporary) == os.fspath(path.parent)
    assert content == path.read_bytes()
    assert second == ("replace", temporary, os.fspath(path))
    assert third == ("fsync", os.fspath(path.parent), None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it forks a process with threads on purpose
def test_killed_while_saving(path: Path) -> None:
    """Kill 30 processes (SIGKILL) at random moments of a save. The last file or the one before loads, every time."""
    opt = fs.RMSprop({f"p{i}": np.zeros(size) for i, size in enumerate((40_000, 3, 20_000))}, momentum=0.5)
    opt.save(path)
    rng = random.Random(path.suffix)
    done = np.frombuffer(mmap.mmap(-1, 8), np.int64)  # the number in the last file that was saved, shared with children

    def save_without_end() -> None:
        for k in itertools.count(int(done[0]) + 1):
            for array in memory_of(opt):
                array.fill(k)
            opt.save(path)
            done[0] = k

    unfinished = 0
    took = 0.01
    for kill in range(30):
        before, start = int(done[0]), time.perf_counter()
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                save_without_end()
            os._exit(1)
        time.sleep(rng.uniform(0, 3 * took))
        os.kill(child, signal.SIGKILL)
        waited = time.perf_counter() - start
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        opt.load(path)
        found = {float(x) for array in memory_of(opt) for x in (array.min(), array.max())}
        assert found in ({done[0]}, {done[0] + 1}), f"kill {kill}"
        (done[0],) = found
        took = max(0.001, min(0.1, waited / max(1, done[0] - before)))
        left = [name for name in os.listdir(path.parent) if name != path.name]
        assert all(name.startswith(".fusedstep-") and name.endswith(".tmp") for name in left)
        unfinished += bool(left)
        for name in left:
            path.with_name(name).unlink()
    assert unfinished >= 6, "too few kills came in the middle of a save to show anything"


def test_many_threads_save_to_one_path(path: Path) -> None:
    """Each save is complete: a reader finds one file or another, never a mixture."""
    opts = [fs.Adagrad({"w": np.full(2000, float(k))}, initial_accumulator_value=k) for k in range(4)]
    opts[0].save(path)
    param = np.zeros(2000)
    reader = fs.Adagrad({"w": param})
    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(lambda opt=opt: [opt.save(path) for _ in range(10)]) for opt in opts]
        while not all(save.done() for save in saves):
            reader.load(path)
            assert param[0] in (0.0, 1.0, 2.0, 3.0)
            assert all((array == param[0]).all() for array in memory_of(reader))
        assert [save.exception() for save in saves] == [None] * 4
    assert os.listdir(path.parent) == [path.name]


# ------------------------------------------------------------------------------------------ files of format version 1

OLD = Path(__file__).parent / "data"
OLD_FILES = sorted(path.name for path in OLD.iterdir() if path.suffix in ENDINGS and ".after" not in path.name)


def old_arrays(name: str) -> tuple[dict[str, Array], Any]:
    """Return the arrays of an old .npz by their keys, and its JSON, as NumPy reads them."""
    with np.load(OLD / f"{Path(name).stem}.npz") as file:
        arrays = dict(file)
    return arrays, json.loads(arrays.pop("metadata").tobytes())


@pytest.mark.parametrize("name", OLD_FILES)
def test_files_of_version_1(name: str) -> None:
    """For each rule and each container: the arrays of the file, and the parameters that the old code reached next."""
    case = Path(name).stem
    opt, w, b = version_1.made(case)
    assert opt.load(OLD / name) is None
    arrays, about = old_arrays(name)
    assert about["format_version"] == 1
    assert opt.steps == about["step"] == 5
    saved = opt.state_dict()
    assert saved["format_version"] == 2
    assert list(saved["times"].values()) == list(about["times"].values())
    assert saved["last_loss"] == about["last_loss"]
    for key, group in enumerate(about["groups"]):
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in group.items()}
        later = {"per": "array", "mean": False} if case == "adagrad_norm" else {}
        assert {**saved["groups"][key], "params": None} == {**values, **later, "params": None}
    for new, old in zip(opt.state, about["times"], strict=True):
        assert bits(saved["params"][new]).tobytes() == bits(arrays[f"params.{old}"]).tobytes()
        for state, array in opt.state[new].items():
            if not saved["groups"][0].get("centered") or state == "momentum_buffer":
                assert bits(array).tobytes() == bits(arrays[f"state.{old}.{state}"]).tobytes()
    version_1.stepped(case, opt, 6, 8)
    with np.load(OLD / f"{case}.after.npz") as after:
        for ours, theirs in ((w, after["w"]), (b, after["b"])):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("correct", [False, True])
def test_variance_of_version_1(correct: bool) -> None:
    """v / bc - (m / bc)^2, never negative, by each parameter's own count; 0 updates leave the averages as they are."""
    case = f"rmsprop-centered{'-corrected' if correct else ''}"
    arrays, about = old_arrays(case)
    opt, _, _ = version_1.made(case)
    opt.load(OLD / f"{case}.npz")
    assert about["times"] == {"w": 5, "b": 4}
    for name, count in about["times"].items():
        correction = 1 - 0.75**count if correct else 1.0
        v, m = (arrays[f"state.{name}.{key}"] / correction for key in ("square_avg", "grad_avg"))
        np.testing.assert_allclose(opt.state[name]["variance"], np.maximum(v - m**2, 0), rtol=1e-14)
        np.testing.assert_allclose(opt.state[name]["grad_avg"], m, rtol=1e-14)
        assert (opt.state[name]["variance"] > 0).all()
    saved = opt.state_dict() | {"format_version": 1, "times": {"w": 0, "b": 1}}
    for name, states in saved["state"].items():
        p = saved["params"][name]
        del states["variance"]
        states |= {"square_avg": np.full_like(p, 0.25), "grad_avg": np.full_like(p, 0.75)}
    opt.load_state_dict(saved)
    assert (opt.state["w"]["grad_avg"] == 0.75).all()
    assert (opt.state["w"]["variance"] == 0).all(), "a negative difference"
    assert (opt.state["b"]["grad_avg"] == (3.0 if correct else 0.75)).all()


def test_a_run_of_version_1_that_was_centered_before() -> None:
    """Centring could be switched off: states that a plain step never reads are left out."""
    arrays, about = old_arrays("rmsprop-centered")
    about["groups"][0]["centered"] = False
    saved = {
        **about,
        "params": {name: arrays[f"params.{name}"] for name in "wb"},
        "state": {name: {key: arrays[f"state.{name}.{key}"] for key in ("square_avg", "grad_avg")} for name in "wb"},
    }
    opt = fs.RMSprop({"w": version_1.W.copy(), "b": version_1.B.copy()})
    opt.load_state_dict(saved)
    assert list(opt.state["w"]) == ["square_avg"]
    assert np.array_equal(opt.state["w"]["square_avg"], arrays["state.w.square_avg"])


def test_named_tuples_of_version_1_by_field() -> None:
    """Use names by field if the file has them, also for an old dict or list and a new NamedTuple."""
    for container in ("dict", "list", "tuple"):
        opt, w, _ = version_1.made("container-named_tuple")
        opt.load(OLD / f"container-{container}.npz")
        assert np.array_equal(
            w, old_arrays(f"container-{container}")[0]["params.w" if container == "dict" else "params.0"]
        )
    opt, _, _ = version_1.made("container-groups_of_named_tuples")
    assert list(opt.state) == ["w", "b", "0"]
    opt.load(OLD / "container-groups_of_named_tuples.npz")
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.5]
    with pytest.raises(ValueError, match=r"'w', 'b', '0' missing|unknown"):
        opt.load_state_dict({**opt.state_dict(), "groups": [{"params": ["0", "1", "2"]}]})


# -------------------------------------------------------------------------------------------------- the user's own data

EXTRAS: list[Any] = [
    None, 0, -(2**127), 1.5, math.inf, True, "", "\ud800\0\u540d", [], {}, [None, [], {}], {"": {"": None}},
    np.arange(6.0).reshape(2, 3), np.array(2, np.int8), np.zeros((0, 3), np.float16),
    [np.arange(3), None, np.array(True)],
    {"rng": np.random.default_rng(1).bit_generator.state, "epoch": 3, "seen": np.arange(5)[::-2]},
    {"a/b": {"~1": np.ones(2), "~": [np.zeros(1)]}, "a": {"b": {"~1": np.full(2, 3)}}, "\ud800": np.ones(1),
     ".": np.ones(2)},
    {"0": np.ones(1), "é\n": [{"0": np.ones(2)}], "extra": np.ones(3), "sha256": "0" * 64},
    np.random.MT19937(3).state, *(np.ones(2, code) for code in "?bhiqBHIQefd"),
    '"__metadata__":{"fusedstep":"{\\"sha256\\":\\"' + "0" * 64,
]  # fmt: skip


def plain(extra: Any) -> Any:
    """Return it with all bits, types and the order of keys in what ``==`` compares."""
    if isinstance(extra, np.ndarray):
        return "array", str(extra.dtype), extra.shape, bits(extra).tobytes()
    if isinstance(extra, dict):
        return "dict", [(key, plain(value)) for key, value in extra.items()]
    return [*map(plain, extra)] if isinstance(extra, list) else (type(extra), extra)


def test_extra_comes_back(path: Path) -> None:
    opt, params = some_run()
    before = everything(opt, params)
    for extra in EXTRAS:
        opt.save(path, extra=extra)
        assert everything(opt, params) == before
        report, again = opt.load(path, strict=False)
        assert report == (tuple(params), (), ())
        for found in (opt.load(path), again):
            assert plain(found) == plain(extra)
            if isinstance(found, np.ndarray):
                assert found.flags.writeable
        assert everything(opt, params) == before
    opt.save(path, {"shape": (1, (2, 3)), "loss": np.float64(0.1)})
    assert opt.load(path) == {"shape": [1, [2, 3]], "loss": 0.1}
    opt.save(path)
    assert opt.load(path) is None


def itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


BAD_EXTRAS: list[tuple[Any, type[Exception], str]] = [
    ({1, 2}, TypeError, "extra: expected None, a bool, int, float or str, a NumPy array, or dicts and lists of these, "
     "got set"),
    ({"a": [0, object()]}, TypeError, "extra['a'][1]: expected None"),
    ({1: 2}, TypeError, "extra: expected keys that are strings, got 1 (int)"),
    ({"a": b"x"}, TypeError, "extra['a']: "),
    (1j, TypeError, "got complex"),
    ([np.float32(1)], TypeError, "extra[0]: expected None, a bool, int, float or str, a NumPy array, or dicts and "
     "lists of these, got float32; pass .item() of it"),
    (np.array([None]), TypeError, "got object"),
    (np.array(["x"]), TypeError, "got <U1"),
    (np.ones(2, complex), TypeError, "got complex128"),
    (np.ones(2, ">f8"), TypeError, "got >f8"),
    (np.zeros(2, "M8[s]"), TypeError, "got datetime64[s]"),
    ({"m": np.ma.array([1.0], mask=[True])}, TypeError, "extra['m']: expected an array without a mask"),
    (itself(), ValueError, "nested more than 100 deep, or inside itself"),
    (10**5000, ValueError, "extra: an integer of more than"),
]  # fmt: skip


def test_bad_extra_is_refused_before_anything_is_written(path: Path) -> None:
    opt, _ = some_run()
    opt.save(path, "good")
    old = path.stat().st_ino
    for extra, error, message in BAD_EXTRAS:
        with pytest.raises(error) as raised:
            opt.save(path, extra)
        assert message in str(raised.value)
        assert os.listdir(path.parent) == [path.name]
        assert path.stat().st_ino == old
    assert opt.load(path) == "good"


def test_hostile_extra(path: Path) -> None:
    """Refuse arrays without a place, or in one that is taken, before anything is written."""
    damage = Damage(path)
    for extra, pointers in (
        (None, ["/a"]), ({}, ["/a"]), ([], ["/0"]), ([None], ["/1"]), ([None], ["/x"]), ([None], ["/-1/0"]),
        ({"a": 1}, ["/a"]), ({"a": None}, ["/a", "/a/b"]), ("x", ["/0"]), ([1], [""]), (3, ["/0"]),
    ):  # fmt: skip
        arrays = {f"extra.{pointer}": np.ones(2) for pointer in pointers}
        content = written(damage.ending, {**damage.saved, "extra": extra}, path.with_stem("bad"), arrays)
        assert "extra" in damage.refused(content, f"{extra}, {pointers}")
    damage.was_good()


# -------------------------------------------------------------------------------------------------------- partial loads


@pytest.mark.parametrize("case", KEEPING, ids=str)
def test_partial_loads(case: Case, tmp_path: Path) -> None:
    """Load names and shapes that match. Others start as in a new optimizer and keep their parameters."""

    def made(shapes: Mapping[str, Any], seed: int) -> tuple[Any, dict[str, Array]]:
        rng = np.random.default_rng(seed)
        params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        opt = case.new(params)
        for t in (1, 2):
            opt.step({name: rng.standard_normal(shape) for name, shape in shapes.items()}, loss=loss(t))
        return opt, params

    for how in (*ENDINGS, "dict"):
        source, _ = made({"a": (3, 2), "b": 4, "gone": 2}, 1)
        opt, params = made({"new": 3, "b": 5, "a": (3, 2)}, 2)
        new = case.new({name: p.copy() for name, p in params.items()})
        if how == "dict":
            report = opt.load_state_dict(source.state_dict(), strict=False)
        else:
            source.save(tmp_path / f"x{how}", extra=7)
            report, extra = opt.load(tmp_path / f"x{how}", strict=False)
            assert extra == 7
        assert type(report) is fs.LoadReport
        assert report == fs.LoadReport(loaded=("a",), fresh=("new", "b"), unused=("b", "gone"))
        for name in params:
            expected = source if name in report.loaded else new
            assert_same(opt.state[name], expected.state[name], name)
            assert_same({name: params[name]}, {name: expected.parameters[name]}, name)
        assert opt.steps == 2
        assert opt.state_dict()["times"] == {"new": 0, "b": 0, "a": 2}
        opt.step({"new": np.ones(3), "b": None, "a": np.ones((3, 2))}, loss=1.0)


def test_hyperparameters_of_partial_loads() -> None:
    """Load them for groups of the same names, whatever the shapes. If states differ, groups keep their own."""

    def made(lr: float, shape: int, momentum: float = 0.0, x: str = "x") -> Any:
        groups = [{"params": {"w": np.ones(shape)}, "momentum": momentum}, {"params": {x: np.ones(2)}}]
        return fs.RMSprop(groups, lr=lr)

    source = made(0.5, 3)
    for opt, lrs, loaded in (
        (made(0.1, 3), [0.5, 0.5], ("w", "x")),
        (made(0.1, 4), [0.5, 0.5], ("x",)),
        (made(0.1, 3, momentum=0.9), [0.1, 0.5], ("x",)),
        (made(0.1, 3, x="y"), [0.5, 0.1], ("w",)),
    ):
        report = opt.load_state_dict(source.state_dict(), strict=False)
        assert report.loaded == loaded
        assert [group["lr"] for group in opt.param_groups] == lrs
    assert opt.load_state_dict(opt.state_dict()) is None


def test_where_fresh_states_start() -> None:
    """They start where this optimizer's group started, or would start with the loaded hyperparameters (Rprop)."""
    groups = [{"params": {"a": np.ones(2)}, "initial_square_avg": 3.0}, {"params": {"b": np.ones(2)}}]
    opt = fs.RMSprop(groups, initial_square_avg=2.0)
    for new in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        new.step([{"a": np.ones(2)}, {"b": np.ones(2)}])
        new.load_state_dict(fs.RMSprop(np.ones(5)).state_dict(), strict=False)
        assert new.state["a"]["square_avg"].tolist() == [3, 3]
        assert new.state["b"]["square_avg"].tolist() == [2, 2]
    rprop = fs.Rprop({"a": np.ones(2), "b": np.ones(3)}, lr=0.1)
    other = fs.Rprop({"a": np.ones(2), "b": np.ones(4)}, lr=0.2)
    rprop.load_state_dict(other.state_dict(), strict=False)
    assert rprop.lr == 0.2
    assert rprop.state["b"]["step_size"].tolist() == [0.2] * 3
    rprop.step({"a": np.ones(2), "b": np.ones(3)})


def test_partial_loads_of_another_class_or_of_read_only_arrays() -> None:
    opt, params = some_run()
    with refused(opt, params, "class: expected RMSprop"):
        opt.load_state_dict(fs.Adagrad(np.ones(3)).state_dict(), strict=False)
    opt.state["w"]["variance"].flags.writeable = False
    for source in (fs.RMSprop(np.ones(3)), opt):
        with refused(opt, params, "variance of parameter 'w' ", " got a read-only one"):
            opt.load_state_dict(source.state_dict(), strict=False)


# ----------------------------------------------------------------------------------------------------- subclasses


def test_subclasses_and_their_class_load_each_other(path: Path) -> None:
    class Mine(fs.RMSprop):
        pass

    class More(Mine):
        pass

    made = [cls({"w": np.arange(3.0)}) for cls in (fs.RMSprop, Mine, More)]
    for k, source in enumerate(made):
        source.step({"w": np.full(3, k + 1.0)})
        source.save(path)
        assert source.state_dict()["class"] == "RMSprop"
        for other in made:
            other.load(path)
            assert np.array_equal(other.state["w"]["square_avg"], source.state["w"]["square_avg"])
    made[1].load_state_dict({**made[1].state_dict(), "format_version": 1, "class": "Mine"})  # as 0.1.0 wrote it
    with pytest.raises(ValueError, match="class: expected RMSprop"):
        made[0].load_state_dict({**made[0].state_dict(), "format_version": 1, "class": "Mine"})


# ------------------------------------------------------------------------------------------- groups that were tampered


def test_loads_into_tampered_groups_change_nothing(tmp_path: Path) -> None:
    """Find it before the first array is written."""
    source, _ = some_run(steps=7, seed=2)
    for ending in ENDINGS:
        source.save(tmp_path / f"x{ending}")

    class Frozen(dict[str, Any]):
        def update(self, *args: Any, **kwargs: Any) -> None:
            raise TypeError("read-only")

    for tamper in (
        lambda groups: groups.append({"params": (), "lr": 0.1}),
        lambda groups: groups.clear(),
        lambda groups: groups.reverse(),
        lambda groups: groups.__setitem__(0, MappingProxyType(groups[0])),
        lambda groups: groups.__setitem__(1, []),
        lambda groups: groups[0].update(params=()),
        lambda groups: groups[0].pop("params"),
    ):
        opt, params = some_run()
        unchanged = Unchanged(memory_of(opt))
        tamper(opt.param_groups)
        loads = [functools.partial(opt.load, tmp_path / f"x{ending}") for ending in ENDINGS]
        for load in (*loads, functools.partial(opt.load_state_dict, source.state_dict())):
            for strict in (True, False):
                with pytest.raises(ValueError, match="param_groups"):
                    load(strict=strict)
        unchanged.check()
    opt, params = some_run()
    opt.param_groups[0] = Frozen(opt.param_groups[0])  # a strange dict, but it is loaded completely
    opt.load_state_dict(source.state_dict())
    assert everything(opt, params) == everything(*some_run(steps=7, seed=2))


@pytest.mark.parametrize("how", ["load", "partial load", "reset"])
def test_groups_that_a_step_would_refuse(how: str) -> None:
    """What a load does not replace is looked at before anything is written, and so it is by a reset."""
    for change in ({"typo": 1.0}, {"alpha": -1.0}, {"alpha": "x"}, {"alpha": ...}):
        opt, _ = some_run()
        saved = opt.state_dict()
        opt.step(NOTHING, loss=1.0)
        if how == "partial load":
            saved["groups"] = saved["groups"][:1]  # the second group keeps its own
            saved["state"]["none"] = {}
        opt.param_groups[1].update(change)
        if ... in change.values():
            del opt.param_groups[1]["alpha"]
        if how == "load" and "alpha" in change:  # a value that it replaces
            opt.load_state_dict(saved)
            assert opt.steps == saved["step"]
            continue
        unchanged = Unchanged(memory_of(opt))
        with pytest.raises((TypeError, ValueError), match="group 1"):
            opt.reset() if how == "reset" else opt.load_state_dict(saved, strict=how == "load")
        unchanged.check()
        assert opt.steps == saved["step"] + 1


# --------------------------------------------------------------------------------------- what may be found on a disk


MEASURED = """
    import resource, sys
    import numpy as np
    import fusedstep as fs

    opt = fs.RMSprop({"w": np.zeros(3)})
    opt.step({"w": np.ones(3)})
    opt.save(sys.argv[1] + ".warm.npz")
    opt.load(sys.argv[1] + ".warm.npz")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        opt.load(sys.argv[1])
    except ValueError as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def refused_within(path: Path, megabytes: int) -> str:
    """Return the message of a process that needs no more than this to refuse a file."""
    *message, taken = python(MEASURED, path).splitlines()
    assert message, f"{path.name} was loaded"
    assert int(taken) < megabytes, f"{path.name}: {taken} MB"
    return "\n".join(message)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Compressed members that declare little, endless devices, sparse files, archives with huge claims."""
    good = tmp_path / "good.npz"
    fs.RMSprop({"w": np.zeros(3)}).save(good)
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["params.w.npy"] = members["params.w.npy"][:-24] + bytes(100_000_000)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = b"0" * 64
            for name, member in members.items():
                archive.writestr(name, member, method if name == "params.w.npy" else None)
            size = archive.getinfo("params.w.npy").file_size.to_bytes(4, "little")
        content = path.read_bytes()
        assert content.count(size) == 2
        path.write_bytes(sealed(".npz", content.replace(size, (100).to_bytes(4, "little"))) or b"")  # "100 bytes"
        assert "compressed" in refused_within(path, 64)
    for ending in ENDINGS:
        device, pipe, sparse = (tmp_path / f"{name}{ending}" for name in ("zero", "pipe", "sparse"))
        device.symlink_to("/dev/zero")
        os.mkfifo(pipe)
        with sparse.open("wb") as file:
            file.truncate(2**33)
        assert "not a regular file" in refused_within(device, 64)
        assert "not a regular file" in refused_within(pipe, 64)
        assert re.search("checksum|not a checkpoint", refused_within(sparse, 64))
    with (tmp_path / "lying.safetensors").open("wb") as file:
        file.write((2**33).to_bytes(8, "little"))
        file.truncate(2**34)
    assert "not a checkpoint" in refused_within(tmp_path / "lying.safetensors", 64)


def test_memory_is_bounded_in_files_with_a_right_checksum(path: Path) -> None:
    """Never read large arrays that this optimizer has no place for."""
    large = np.zeros(10_000_000)
    fs.RMSprop({"w": large}).save(path)
    assert "expected float64 of shape (3,)" in refused_within(path, 64)
    fs.RMSprop({"w": np.zeros(3), "other": large}).save(path)
    assert "unknown" in refused_within(path, 64)


def test_a_huge_directory_of_an_archive(tmp_path: Path) -> None:
    """A sparse archive that claims gigabytes of directory, with a right checksum by its reader's rules."""
    size = 2**29
    end = b"PK\5\6" + bytes(4) + (1).to_bytes(2, "little") * 2 + (size).to_bytes(4, "little") + bytes(4)
    tail = end + (64).to_bytes(2, "little")
    digest = hashlib.sha256()
    for _ in range(size // 2**20):
        digest.update(bytes(2**20))
    digest.update(tail)
    with (tmp_path / "x.npz").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(tail + digest.hexdigest().encode())
    assert "huge directory" in refused_within(tmp_path / "x.npz", 400)


def test_a_file_that_changes_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a change between the checksum and the arrays."""
    damage = Damage(path)
    loads = json.loads

    def and_changed(*args: Any) -> Any:
        path.write_bytes(damage.good)
        os.utime(path, ns=(1, 1))
        return loads(*args)

    monkeypatch.setattr("json.loads", and_changed)
    assert "changed while it was read" in damage.refused(damage.good, "changed")


@has_modes
def test_mode_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the mode of a replaced file, also behind a link. It is never wider while it is written."""
    opt, _ = some_run()
    link = path.with_stem("link")
    link.symlink_to(path)
    seen: list[int] = []
    replace, fchmod = os.replace, os.fchmod
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(stat.S_IMODE(os.stat(a).st_mode)), replace(a, b)))
    for mode in (0o600, 0o640, 0o666, 0o400, 0o2755):
        opt.save(path)
        path.chmod(mode)
        before = path.stat()
        opt.save(link)
        after = path.stat()
        assert after.st_ino != before.st_ino
        assert stat.S_IMODE(after.st_mode) == seen[-1] == mode
        opt.load(path)
    path.chmod(0o600)
    seen.clear()
    monkeypatch.setattr(
        os, "fchmod", lambda fd, mode: (seen.append(stat.S_IMODE(os.fstat(fd).st_mode)), fchmod(fd, mode))
    )
    opt.save(path)
    assert seen == [0o600, 0o600]


@has_modes
def test_owner_is_kept_where_permitted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opt, _ = some_run()
    opt.save(path)
    asked: list[tuple[int, int]] = []
    own = path.stat()
    status = os.stat_result((0o100640, own.st_ino, own.st_dev, 1, own.st_uid + 7, own.st_gid + 9, 0, 0, 0, 0))
    plain = os.stat
    monkeypatch.setattr(os, "stat", lambda p, **kwargs: status if p == os.fspath(path) else plain(p, **kwargs))
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: asked.append((uid, gid)))
    opt.save(path)
    assert asked == [(own.st_uid + 7, -1), (-1, own.st_gid + 9)]

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    opt.step(NOTHING, loss=1.0)
    opt.save(path)
    monkeypatch.undo()
    opt.load(path)
    assert opt.steps == 6
    if os.getuid() == 0:
        os.chown(path, 12345, 23456)
        opt.save(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM])
def test_folders_that_cannot_be_synced(code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was replaced, so this is no error. An I/O error is one."""
    opt, _ = some_run()
    real = os.open
    failing = code

    def no_sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(failing, os.strerror(failing))

    def no_open(name: Any, flags: int, *mode: int) -> int:
        if name == os.fspath(path.parent):
            raise OSError(failing, os.strerror(failing))
        return real(name, flags, *mode)

    for patched, replacement in (("fsync", no_sync), ("open", no_open)):
        path.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, patched, replacement)
            failing = code
            opt.save(path)
            failing = errno.EIO
            with pytest.raises(OSError, match="Input/output"):
                opt.save(path)
        opt.load(path)
        assert os.listdir(path.parent) == [path.name]


def test_without_shared_mappings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FUSE with direct_io, which refuses mmap with ENODEV."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("mmap.mmap", refuse)
    opt, params = some_run()
    before = everything(opt, params)
    opt.save(path)
    take_step(RESUMED[0], opt, params, 6)
    opt.load(path)
    assert everything(opt, params) == before


def test_long_names(tmp_path: Path) -> None:
    """Refuse a name by name, when saving, that the format can't hold. The other format holds it."""
    longest = 65_535 - len("state..square_avg.npy")
    fits, too_long = (fs.RMSprop({"x" * length: np.ones(3)}) for length in (longest, longest + 1))
    for opt, path in ((fits, "x.npz"), (fits, "x.safetensors"), (too_long, "y.safetensors")):
        opt.save(tmp_path / path)
        opt.load(tmp_path / path)
    assert "state." + "x" * longest + ".square_avg" in np.load(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"y\.npz: the name 'state\.x+'\.\.\. has 65,532 bytes, more than an .npz"):
        too_long.save(tmp_path / "y.npz")
    assert sorted(os.listdir(tmp_path)) == ["x.npz", "x.safetensors", "y.safetensors"]


def test_headers_that_are_too_large(path: Path) -> None:
    """Refuse them when saving, not when loading."""
    opt = fs.RMSprop(np.ones(3))
    opt.save(path, "x" * 10)
    with pytest.raises(ValueError, match=r"x\..*: the (JSON|header) is too large: more than 100,000,000"):
        opt.save(path, "x" * 100_000_001)
    assert os.listdir(path.parent) == [path.name]
    assert opt.load(path) == "x" * 10


@pytest.mark.slow
@pytest.mark.parametrize("ending", [*ENDINGS, "dict"])
def test_very_many_tensors(ending: str, tmp_path: Path) -> None:
    """Save and load 30,000 in under 3 s of processor time each."""
    params = {f"layers.{i}.w": np.full(4, i, np.float32) for i in range(30_000)}
    opt = fs.RMSprop(params)
    begin = time.process_time()
    saved = opt.state_dict() if ending == "dict" else opt.save(tmp_path / f"x{ending}")
    assert time.process_time() - begin < 3
    for p in params.values():
        p.fill(-1)
    begin = time.process_time()
    opt.load_state_dict(saved) if saved else opt.load(tmp_path / f"x{ending}")
    assert time.process_time() - begin < 3
    assert all(p[3] == i for i, p in enumerate(params.values()))


# --------------------------------------------------------------------------------------------------------------- copies

Model = tuple[dict[str, Array], Any]


COPIES: dict[str, Callable[[Model], Model]] = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda model, protocol=protocol: pickle.loads(pickle.dumps(model, protocol))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("case", KEEPING, ids=str)
def test_copies_are_independent_and_go_on_alike(case: Case) -> None:
    """An optimizer that is copied with its model updates the copied model, with the same bits: every rule in every way,
    each in some layouts."""
    for k, layout in enumerate(LAYOUTS[KEEPING.index(case) % 3 :: 3]):
        how = [*COPIES][(k + KEEPING.index(case)) % len(COPIES)]
        opt, params = some_run(case, layout=layout)
        before = everything(opt, params)
        new_params, new = COPIES[how]((params, opt))
        assert type(new) is type(opt)
        assert everything(new, new_params) == before, (how, layout)
        for name, p in new_params.items():
            assert not np.shares_memory(p, params[name])
            (dense,) = fs.RMSprop(p).state.values()  # a state has the layout of its parameter, without gaps
            for key, array in new.state[name].items():
                assert not np.shares_memory(array, opt.state[name][key])
                strides = (s // p.itemsize * array.itemsize for s in dense["square_avg"].strides)
                assert array.ndim < p.ndim or array.strides == tuple(strides)
        for t in range(6, STEPS + 1):
            take_step(case, new, new_params, t)
        assert everything(opt, params) == before
        for t in range(6, STEPS + 1):
            take_step(case, opt, params, t)
        assert everything(new, new_params) == everything(opt, params) != before, (how, layout)
        opt.load_state_dict(new.state_dict())


@pytest.mark.parametrize("how", COPIES)
def test_copied_alone(how: str) -> None:
    """Without its model, an optimizer takes copies of its parameters along, which are in its groups."""
    param = np.arange(4.0)
    opt = Subclass(param, momentum=0.9)
    opt.note = {"kept": [1]}
    opt.step(np.ones(4))
    new = COPIES[how](({}, opt))[1]
    (own,) = new.param_groups[0]["params"]
    assert own.tolist() == param.tolist()
    assert new.note == {"kept": [1]}
    for _ in range(3):
        opt.step(np.ones(4))
    assert own.tolist() != param.tolist()
    for _ in range(3):
        new.step(np.ones(4))
    assert own.tolist() == param.tolist()


def test_a_copy_of_a_subclass_and_of_states_that_are_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = Subclass({"w": np.ones(3)}, momentum=0.5, verify="every")
    opt.step({"w": np.arange(3.0)})
    opt.param_groups[0]["momentum"] = 0.0
    for new in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert type(new) is Subclass
        buffer = opt.state["w"]["momentum_buffer"].tolist()
        assert new.state["w"]["momentum_buffer"].tolist() == buffer != [0, 0, 0]
        new.param_groups[0]["momentum"] = 0.5
        new.step({"w": np.arange(3.0)})
        assert new.steps == 2
        with monkeypatch.context() as patch:
            patch.setattr(fs.reference, "rmsprop_", functools.wraps(fs.reference.rmsprop_)(lambda *_, **__: None))
            with pytest.raises(fs.VerificationError):  # it is still verified
                new.step({"w": np.arange(3.0)})
    assert opt.steps == 1


class Subclass(fs.RMSprop):
    note: Any


def test_a_shallow_copy_is_a_second_handle() -> None:
    """``copy.copy`` shares everything, counters included: it is one run, whichever handle is stepped."""
    for case in RESUMED:
        opt, params = some_run(case, steps=0)
        handle = copy.copy(opt)
        assert handle is not opt
        assert type(handle) is type(opt)
        alone, alone_params = some_run(case, steps=0)
        for t in range(1, STEPS + 1):
            take_step(case, (opt, handle)[t % 2], params, t)
            take_step(case, alone, alone_params, t)
            for one in (opt, handle):
                assert everything(one, params) == everything(alone, alone_params), f"{case}, step {t}"
