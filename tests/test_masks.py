"""Masks: a frozen element keeps every bit, and the others step as if it did not exist."""

from __future__ import annotations

import copy
import math
import numbers
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import fusedstep as fs
from checks import Unchanged, assert_same, difference, interrupted, memory_of, refused
from registry import CASES, DTYPES, FIRST_OF_RULE, Case

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
KEPT = 11
"""The first elements of 16 are updated. Zeros after them change no sum, so these are the bits of an array of 11."""


def is_per_element(case: Case) -> bool:
    return all(state.shape((3,)) == (3,) for state in case.states)


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rest_steps_as_if_it_were_alone(case: Case, dtype: np.dtype[Any]) -> None:
    """Every rule and option, also those that sum over all elements, with the norm, decay, and gradients set to 0.
    Neighbours differ in whether they verify."""
    rng = np.random.default_rng(5)
    start = [rng.standard_normal(16).astype(dtype), rng.standard_normal(5).astype(dtype)]
    start[0][KEPT:] = [np.nan, np.inf, -0.0, 1e-40, -3.0]
    params, alone = {"w": start[0].copy(), "b": start[1].copy()}, {"w": start[0][:KEPT].copy(), "b": start[1].copy()}
    verify = ("never", "every")[(CASES.index(case) + DTYPES.index(dtype)) % 2]
    masked, other = case.new(params, verify=verify), case.new(alone)
    for t in range(1, 5):
        grads = {name: rng.standard_normal(p.shape).astype(dtype) for name, p in params.items()}
        grads["w"][KEPT:] = [np.nan, np.inf, 5.0, 1e30, -1.0]
        mine = {"w": grads["w"][:KEPT].copy(), "b": grads["b"].copy()}
        options = case.loss(t)
        if t > 2:
            clip = "clip_norm" if t == 3 else "clip_norm_each"
            options |= {clip: 0.5, "clip_value": 1.0, "nonfinite": "raise", "zero_grads": True}
        report = masked.step(grads, mask={"w": np.arange(16) < KEPT, "b": None}, **options)
        assert report == other.step(mine, **options)
        assert not any(g.any() for g in grads.values()) or t <= 2
        for name in params:
            found = {"param": params[name], **masked.state[name]}
            expected = {"param": alone[name], **other.state[name]}
            assert_same({key: a[:KEPT] if a.shape == (16,) else a for key, a in found.items()}, expected, f"{t} {name}")
        assert not difference(params["w"][KEPT:], start[0][KEPT:])
    fresh = case.new({"w": start[0].copy()}).state["w"]
    for key, state in masked.state["w"].items():
        assert state.shape != (16,) or not difference(state[KEPT:], fresh[key][KEPT:]), key


@pytest.mark.parametrize("case", [case for case in FIRST_OF_RULE if is_per_element(case)], ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (4,), (3, 4), ()])
def test_scattered_and_broadcast_masks(case: Case, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    mask = np.array(rng.integers(0, 2, shape), bool)
    where = np.broadcast_to(mask, (3, 4))
    w = np.asfortranarray(rng.standard_normal((3, 4)))
    before, alone = w.copy(), w[where].copy()
    masked, other = case.new(w), case.new(alone)
    for t in range(1, 4):
        g = rng.standard_normal((3, 4))
        options = case.loss(t)
        untouched = Unchanged([g, mask])
        masked.step(g, mask=mask, **options)
        other.step(g[where], **options)
        untouched.check()
        assert not difference(w[where], alone)
        assert not difference(w[~where], before[~where])
        for key, state in masked.state["0"].items():
            assert not difference(state[where], other.state["0"][key])


@pytest.mark.parametrize("verify", ["never", "every"])
@pytest.mark.parametrize("rule", [fs.RMSprop, fs.Adagrad])
def test_masks_with_rows(rule: Any, verify: Any) -> None:
    """Update only the elements of the touched rows that are not frozen. Only these are in the norm."""
    rng = np.random.default_rng(8)
    mask = rng.integers(0, 2, (6, 3)).astype(bool)
    table, dense = (np.ones((6, 3)) for _ in range(2))
    opt, other = rule(table, lr=0.1, weight_decay=0.1, verify=verify), rule(dense, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        index, values = np.array([4, 1, 4, 0], np.uint64), rng.standard_normal((4, 3))
        kept = values * mask[index]
        report = opt.step(fs.Rows(index, values), mask=mask, clip_norm=0.5, zero_grads=True)
        assert report == other.step(fs.Rows(index, kept), clip_norm=0.5)
        assert not values.any()
        assert not difference(table[mask], dense[mask])
        assert (table[~mask] == 1).all()
        for key, state in opt.state["0"].items():
            assert not difference(state[mask], other.state["0"][key][mask])
            assert not state[~mask].any()
    for bad in (6, -1):
        with pytest.raises(IndexError):
            opt.step(fs.Rows(np.array([bad]), np.ones((1, 3))), mask=mask)


def test_masks_of_groups() -> None:
    """A group has one array for all of its parameters, and a mask of the step restricts it further. The array is live
    and is copied with the optimizer."""
    live = np.array([True, False, True])
    params = [np.zeros(3), np.zeros((2, 3)), np.zeros(3)]
    opt = fs.RMSprop([{"params": params[:2], "mask": live, "lr": 0.5}, {"params": params[2]}])
    grads = [np.ones(3), np.ones((2, 3)), np.ones(3)]
    opt.step(grads)
    assert [(p != 0).tolist() for p in params] == [[True, False, True], [[True, False, True]] * 2, [True] * 3]
    copied = copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))
    before = [p.copy() for p in params]
    live[0] = False
    opt.step(grads, mask=[[np.array([True, True, True]), np.array([[True], [False]])], np.array(False)])
    assert [(p != b).tolist() for p, b in zip(params, before, strict=True)] == [
        [False, False, True],
        [[False, False, True], [False] * 3],
        [False] * 3,
    ]
    for other in copied:
        other.step(grads)
        assert other.parameters["0"][1] == 0 != other.parameters["0"][0]
    opt.add_param_group({"params": {"late": np.zeros(2)}, "mask": np.array([False, True])})
    opt.step([*grads, np.ones(2)])
    assert (opt.parameters["late"] != 0).tolist() == [False, True]
    opt.load_state_dict(opt.state_dict())


@pytest.mark.parametrize("ending", ["dict", "npz", "safetensors"])
def test_checkpoints_hold_the_masks_of_groups(ending: str, tmp_path: Path) -> None:
    """A run that resumes without the mask trains no frozen element. A checkpoint without a mask leaves the group's."""
    if ending == "safetensors":
        pytest.importorskip("safetensors")

    def made(**mask: Any) -> fs.RMSprop:
        return fs.RMSprop([{"params": {"w": np.zeros((2, 3))}, **mask}, {"params": {"b": np.zeros(2)}}])

    def train(opt: fs.RMSprop) -> list[list[bool]]:
        before = {name: array.copy() for name, array in opt.parameters.items()}
        opt.step([{"w": np.ones((2, 3))}, {"b": np.ones(2)}])
        return [(array != before[name]).tolist() for name, array in opt.parameters.items()]

    def load(opt: fs.RMSprop, saved: fs.RMSprop, strict: Literal[True, False]) -> None:
        if ending == "dict":
            opt.load_state_dict(saved.state_dict(), strict)
        else:
            saved.save(tmp_path / f"run.{ending}")
            opt.load(tmp_path / f"run.{ending}", strict=strict)

    masks = np.array([True, False, True]), np.array([[False], [True]])
    moves = [[[True, False, True]] * 2, [True, True]]
    opt = made(mask=masks[0])
    assert train(opt) == moves
    for resumed in (made(), made(mask=masks[1])):
        load(resumed, opt, strict=resumed.steps == 0)
        assert train(resumed) == moves
        load(resumed, made(), True)
        assert train(resumed) == moves
    assert masks[1].tolist() == [[False], [True]]
    for bad in (np.ones(4, bool), np.ones(3), "all"):
        saved = opt.state_dict()
        saved["groups"][0]["mask"] = bad
        before = Unchanged(memory_of(opt))
        with pytest.raises(ValueError, match=r"mask of parameter 'w': expected"):
            opt.load_state_dict(saved)
        before.check()


def test_a_dialect_with_a_mask() -> None:
    w = np.zeros(2)
    fs.RMSprop.like("keras", [{"params": w, "mask": np.array([True, False])}]).step([np.ones(2)])
    assert (w != 0).tolist() == [True, False]


def test_nothing_is_lost_where_a_step_fails() -> None:
    w, g = np.ones(3), np.array([1.0, np.nan, 2.0])
    opt = fs.RMSprop(w, lr=0.1)
    for arguments, error in (({"nonfinite": "raise"}, FloatingPointError), ({"clip_norm": -1.0}, ValueError)):
        with pytest.raises(error):
            opt.step(g, mask=np.array([False, True, True]), **arguments)
        assert (w == 1).all()
        assert not opt.state["0"]["square_avg"].any()
    assert opt.steps == 0
    assert opt.step(g, mask=np.array([False, True, True]), nonfinite="skip", zero_grads=True).skipped
    assert (w == 1).all()
    assert not g.any()
    report = opt.step(np.array([np.inf, 3.0, 4.0]), mask=np.array([False, True, True]), clip_norm=math.inf)
    assert report.grad_norm == 5.0


BAD = "mask of parameter '0': expected "
BAD_MASKS: list[tuple[Any, type[Exception], list[str]]] = [
    (np.ones(3, np.int8), TypeError, [f"{BAD}an array of bool, where True ", ", got int8"]),
    (True, TypeError, [f"{BAD}an array of bool, where True ", ", got bool"]),
    (np.ma.ones(3, bool), TypeError, [f"{BAD}an array of bool, got a masked one"]),
    (np.ones(4, bool), ValueError, [f"{BAD}a shape that broadcasts to (3,), got (4,)"]),
    (np.ones((2, 3), bool), ValueError, [f"{BAD}a shape"]),
    ({"w": np.ones(3, bool)}, ValueError, ["mask: expected one for each of ['0'], got those of ['w']"]),
]


def test_bad_masks() -> None:
    w = np.ones(3)
    opt = fs.RMSprop(w)
    for mask, error, says in BAD_MASKS:
        with refused(error, says, memory_of(opt)):
            opt.step(np.ones(3), mask=mask)
        if isinstance(mask, dict):
            continue
        with refused(error, says, [w]):
            fs.RMSprop([{"params": w, "mask": mask}])
        says = [each.replace("'0'", "'w'") for each in says]
        with refused(error, says, memory_of(opt)):
            opt.add_param_group({"params": {"w": np.ones(3)}, "mask": mask})
        assert list(opt.parameters) == ["0"]
    live = np.ones(3, bool)
    grouped = fs.RMSprop([{"params": w, "mask": live}])
    live.resize((4,), refcheck=False)
    with refused(ValueError, [f"{BAD}a shape"], memory_of(grouped)):
        grouped.step([np.ones(3)])
    read_only = np.ones(3)
    read_only.flags.writeable = False
    with refused(ValueError, ["read-only"], memory_of(opt)):
        opt.step(read_only, mask=np.zeros(3, bool), zero_grads=True)


class Number:
    """A number that does something when it is read."""

    def __init__(self, value: float, deed: Callable[[], Any]) -> None:
        self.value, self.deed = value, deed

    def __float__(self) -> float:
        self.deed()
        return self.value


numbers.Real.register(Number)


def test_arrays_that_change_while_the_options_are_read() -> None:
    """Refuse a parameter that is then locked or resized, or a gradient that is locked but to be set to 0, and leave the
    others as before."""
    first, second, g = np.full(3, 1.0), np.full(3, 2.0), np.ones(3)
    some = np.array([True, False, True])
    opt = fs.RMSprop([first, second])
    step = {"grads": [g, g.copy()], "mask": [some, some]}
    kept = Unchanged([first, second])
    with pytest.raises(ValueError, match="parameter '1': expected a writeable array"):
        opt.step(**step, grad_scale=Number(2.0, lambda: second.setflags(write=False)))
    kept.check()
    second.setflags(write=True)
    with pytest.raises(ValueError, match="gradient of parameter '0': expected a writeable array"):
        opt.step(**step, zero_grads=True, grad_scale=Number(2.0, lambda: g.setflags(write=False)))
    kept.check()
    kept = Unchanged([second])
    with pytest.raises(ValueError, match="parameter '0': was resized"):
        opt.step(**step, grad_scale=Number(2.0, lambda: first.resize((7,), refcheck=False)))
    kept.check()
    assert opt.steps == 0


@pytest.mark.parametrize("verify", ["never", "every"])
def test_ctrl_c_while_gradients_are_set_to_0(verify: Any) -> None:
    """At the k-th line of a step, for each k, or for each eighth beside the long reference: it was made and the
    gradients are 0, or nothing was written."""
    done: list[bool] = []
    reached = True
    while reached:
        w, g = np.ones(3), np.ones(3)
        opt = fs.Rprop(w, lr=0.5, verify=verify)
        step = partial(opt.step, g, mask=np.array([True, False, True]), zero_grads=True)
        reached = interrupted(len(done) * (1 if verify == "never" else 8), step)
        done.append(opt.steps == 1)
        assert w.tolist() == ([0.5, 1.0, 0.5] if done[-1] else [1.0, 1.0, 1.0])
        assert g.tolist() == [float(not done[-1])] * 3
    assert {*done[:-1]} == {False, True}, "no interrupt came after the writes"
