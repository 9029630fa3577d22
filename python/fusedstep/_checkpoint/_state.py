"""A run as a plain dict, and back. Everything is checked before anything is written."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._mask import frozen_in
from .._run import Call, LoadReport, Run, in_one_call
from .._storage import checked_seed, whole
from .._tree import is_masked
from . import _version1
from ._containers import Stored

Array = NDArray[Any]

FORMAT_VERSION = 2

_KEYS = ("format_version", "class", "groups", "step", "times", "last_loss", "seed", "params", "state")
_LATER = {"per": "array", "mean": False}
"""Hyperparameters that older checkpoints do not have, as these did without."""


def state_dict(run: Run) -> dict[str, Any]:
    """Return everything that ``run`` needs to go on, in copies; see ``Optimizer.state_dict``."""
    with run.core:
        return {
            **description(run),
            "params": {name: np.array(array, order="C") for name, array in run.params.items()},
            "state": {
                name: {state: np.array(array, order="C") for state, array in states.items()}
                for name, states in run.state.items()
            },
        }


def load_state_dict(run: Run, saved: Any, strict: bool = True) -> LoadReport:
    """Restore ``run`` from ``saved``; see ``Optimizer.load_state_dict``."""
    with run.core:
        restore = checked(run, saved, strict).read()
        write(run, restore)
    return restore.report


def reset(run: Run) -> None:
    """Reset the states of ``run`` to their start; see ``Optimizer.reset``."""
    with run.core:
        run.check_groups()
        run.check_starts()
        run.core.check_states(written=True)
        arrays: list[tuple[Array, Any]] = []
        for index, (group, members) in enumerate(zip(run.groups, run.members, strict=True)):
            options = {**group, **{key: value for each, key, value in run.starts if each is group}}
            for name in members.names:
                states = {key: array for key, array in run.state[name].items() if key != "param_low"}  # the parameter's
                arrays += [(array, _start(run, index, key, options)) for key, array in states.items()]
        nothing = LoadReport((), tuple(run.params), ())
        counts = [0] * len(run.params)
        restore = Restore(arrays, [None] * len(run.groups), 0, counts, None, run.core.seed, nothing)
        _check_groups_with(run, restore.groups)
        write(run, restore.read())


def description(run: Run) -> dict[str, Any]:
    """Return the entries of a checkpoint that are not arrays."""
    run.check_groups()
    run.check_starts()
    run.core.check_states(written=False)
    return {
        "format_version": FORMAT_VERSION,
        "class": run.schema.class_name,
        "groups": [
            {
                "params": list(members.names),
                **_hyperparameters(run, index, group),
                **({} if members.mask is None else {"mask": np.array(members.mask)}),
            }
            for index, (group, members) in enumerate(zip(run.groups, run.members, strict=True))
        ],
        "step": run.core.steps,
        "times": dict(zip(run.params, run.core.counts, strict=True)),
        "last_loss": run.core.last_loss,
        "seed": run.core.seed,
    }


def _hyperparameters(run: Run, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    with value_errors(f"group {index}: "):
        return run.checked(index, group)


def _restored(run: Run, index: int, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a saved group, and its mask if it has one, for the group ``index``."""
    options = {key: value for key, value in saved.items() if key != "mask"}
    _check_names(f"group {index}", ("params", *run.schema.options), options)
    values, mask = _hyperparameters(run, index, options), saved.get("mask")
    if mask is None:
        return values
    with value_errors(f"group {index}: "):
        for name in run.members[index].names:
            frozen_in(name, run.params[name], [mask])
    return {**values, "mask": np.array(mask)}


class Piece(NamedTuple):
    """A state of which this process has only some elements, and others the rest."""

    array: Array
    """The elements, in one dimension."""
    begin: int
    """The first one's place in the C order of all."""
    shape: tuple[int, ...]
    """That of all."""
    gather: Callable[[], Array]
    """Return all of them."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def flags(self) -> Any:
        return self.array.flags

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, *args: Any, **options: Any) -> Array:
        return self.gather()


class Restore(NamedTuple):
    """Everything that a checked checkpoint writes."""

    arrays: list[tuple[Any, Any]]
    """Live arrays, or pieces, with their new values: arrays, stored ones, or where a state starts."""
    groups: list[dict[str, Any] | None]
    """Hyperparameters, and a mask where one was saved; None for a group that keeps its own."""
    step: int
    times: list[int]
    last_loss: float | None
    seed: int
    report: LoadReport

    def read(self) -> Restore:
        """Return a copy whose values have their own memory."""
        return self._replace(arrays=[_read(live, value) for live, value in self.arrays])


def _read(live: Array | Piece, value: Any) -> tuple[Array, Array]:
    """Return the array that is written, and its new values."""
    if not isinstance(live, Piece):
        stored = isinstance(value, Stored | _version1.Computed)
        return live, value.read() if stored else np.array(value, live.dtype)
    end = live.begin + live.array.size
    if isinstance(value, Stored):
        return live.array, value.read_part(live.begin, end)
    whole = value.read() if isinstance(value, _version1.Computed) else np.asarray(value, live.dtype)
    return live.array, np.array(whole.reshape(-1)[live.begin : end] if whole.ndim else whole)


def checked(run: Run, saved: Any, strict: bool = True) -> Restore:
    """Return what loading ``saved`` writes; ValueError if it does not fit, in names and shapes only where strict."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state dict: expected a mapping, as state_dict() returns, got {type(saved).__name__}")
    version = saved.get("format_version")
    if isinstance(version, bool) or version not in (1, FORMAT_VERSION):
        raise ValueError(f"format_version: expected 1 or {FORMAT_VERSION}, got {version!r}")
    saved = {"seed": run.core.seed, **saved}  # older ones have none
    _check_names("state dict", _KEYS, saved)
    own = (run.schema.class_name, run.name) if version == 1 else (run.schema.class_name,)
    if saved["class"] not in own:
        raise ValueError(f"class: expected {own[0]}, as this optimizer is, got {saved['class']!r}")
    run.check_groups()
    run.core.check_states(written=True)
    for key in ("params", "state", "times"):
        _check_mapping(key, saved[key])
    if not isinstance(saved["groups"], list | tuple):
        raise ValueError(f"groups: expected a list, got {type(saved['groups']).__name__}")
    for index, group in enumerate(saved["groups"]):
        names = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"group {index}: expected a mapping with a list of names 'params'")
    if version == 1:
        saved = _version1.upgraded(run, saved)
    restore = _matched(run, saved, strict)
    _check_groups_with(run, restore.groups)
    return restore


def _check_groups_with(run: Run, groups: list[dict[str, Any] | None]) -> None:
    """Check the groups as they will be: a restored one keeps keys that nobody saved, another one all of its own."""
    for index, (group, values) in enumerate(zip(run.groups, groups, strict=True)):
        restored = {key: value for key, value in (values or {}).items() if key != "mask"}
        _hyperparameters(run, index, {**group, **restored})


def _matched(run: Run, saved: Mapping[str, Any], strict: bool) -> Restore:
    """Return what goes where; not strict, the states of a parameter that does not fit start anew."""
    groups = _groups(run, saved, strict)
    for key in ("params", "state", "times") if strict else ():
        _check_names(key, run.params, saved[key])
    arrays: list[tuple[Array, Any]] = []
    times, loaded, fresh = [], [], []
    for index, members in enumerate(run.members):
        options = {**run.groups[index], **(groups[index] or {})}
        for name in members.names:
            states = run.state[name]
            try:
                found = _pairs("params", {name: run.params[name]}, {name: saved["params"].get(name)})
                found += _pairs(f"state of {name!r}", states, saved["state"].get(name))
            except ValueError:
                if strict:
                    raise
                arrays += [(array, _start(run, index, state, options)) for state, array in states.items()]
                times.append(0)
                fresh.append(name)
            else:
                arrays += found
                times.append(_count(f"times of {name!r}", saved["times"].get(name)))
                loaded.append(name)
    used = set(loaded)
    unused = tuple(name for name in saved["params"] if name not in used)
    step, last_loss = _count("step", saved["step"]), _loss(saved["last_loss"])
    with value_errors():
        seed = checked_seed(saved["seed"])
    report = LoadReport(tuple(loaded), tuple(fresh), unused)
    return Restore(arrays, groups, step, times, last_loss, seed, report)


def _start(run: Run, index: int, state: str, options: Mapping[str, Any]) -> Any:
    """Return where a state of the group ``index`` starts."""
    schema = run.schema
    if state == "param_low":
        return 0
    at = schema.states[schema.argument.get(state, state)]["starts_at"]
    return 0 if at is None else {**run.members[index].begun, **options}[at]


def _groups(run: Run, saved: Mapping[str, Any], strict: bool) -> list[dict[str, Any] | None]:
    """Return the hyperparameters of the saved group with the same parameters, for each; not strict, perhaps None."""
    older = {key: value for key, value in _LATER.items() if key in run.schema.options}
    by_names: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for group in saved["groups"]:
        by_names.setdefault(frozenset(group["params"]), []).append({**older, **group})
    if strict:
        _check_names("groups", run.params, dict.fromkeys(name for names in by_names for name in names))
    found: list[dict[str, Any] | None] = []
    for index, members in enumerate(run.members):
        own = members.names
        matches = by_names.get(frozenset(own))
        if strict and not matches:
            raise ValueError(f"groups: expected one of {_listed(own)}, as group {index} of this optimizer is")
        fits = matches and (strict or all(_has_states(saved["state"].get(name), run.state[name]) for name in own))
        found.append(_restored(run, index, matches.pop(0)) if matches and fits else None)
    if strict and any(by_names.values()):
        raise ValueError(f"groups: expected {len(found)}, as in this optimizer, got {len(saved['groups'])}")
    return found


def _has_states(saved: Any, states: Mapping[str, Array]) -> bool:
    return isinstance(saved, Mapping) and set(saved) == set(states)


def _pairs(what: str, live: Mapping[str, Array], saved: Any) -> list[tuple[Array, Any]]:
    """Return live arrays with their saved values, of the same names, dtypes and shapes."""
    _check_names(what, live, saved)
    pairs = []
    for name, array in live.items():
        value = saved[name]
        if not isinstance(value, np.ndarray | Stored | _version1.Computed) or is_masked(value):
            raise ValueError(f"{what}: {name!r}: expected a numpy.ndarray, got {type(value).__name__}")
        if value.dtype != array.dtype or value.shape != array.shape:
            raise ValueError(
                f"{what}: {name!r}: expected {array.dtype} of shape {array.shape}, as in this optimizer, "
                f"got {value.dtype} of shape {value.shape}"
            )
        if not array.flags.writeable:
            raise ValueError(f"{what}: {name!r}: the array of this optimizer is read-only")
        pairs.append((array, value))
    return pairs


def _check_names(what: str, expected: Iterable[str], found: Any) -> None:
    _check_mapping(what, found)
    expected = dict.fromkeys(expected)
    wrong = []
    if missing := [name for name in expected if name not in found]:
        wrong.append(f"{_listed(missing)} missing")
    if unknown := [name for name in found if name not in expected]:
        wrong.append(f"{_listed(unknown)} unknown to this optimizer")
    if wrong:
        raise ValueError(f"{what}: {', '.join(wrong)}")


def _check_mapping(what: str, found: Any) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: expected a mapping, got {type(found).__name__}")


def _listed(names: list[Any]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _count(what: str, value: Any) -> int:
    """Return a count up to which doubles, and so the JSON of every language, hold all whole numbers."""
    with value_errors():
        return whole(what, value, 0, 2**53, "2^53")


def _loss(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"last_loss: expected a real number or None, got {value!r}")
    with value_errors("last_loss: "):
        return float(value)


@contextlib.contextmanager
def value_errors(
    place: str = "", kinds: tuple[type[Exception], ...] = (TypeError, ValueError, OverflowError)
) -> Iterator[None]:
    """Raise ValueError for what is wrong with something that was saved, and say where."""
    try:
        yield
    except kinds as error:
        raise ValueError(f"{place}{error}") from error


def write(run: Run, restore: Restore) -> None:
    """Write all of ``restore``, which has been read; none of it runs Python code, not even of an array's subclass."""
    writes: list[Call] = [partial(np.ndarray.__setitem__, live, ..., value) for live, value in restore.arrays]
    starts = {(id(group), key): value for group, key, value in run.starts}
    members = list(run.members)
    for index, (group, restored) in enumerate(zip(run.groups, restore.groups, strict=True)):
        if restored is not None:
            values = dict(restored)
            members[index] = members[index]._replace(mask=values.pop("mask", members[index].mask))
            writes.append(partial(dict.update, group, values))
            starts |= {(id(group), key): values[key] for key in run.schema.starting}
    writes += [
        partial(run.core.own, run.groups, False),
        partial(setattr, run, "members", members),
        partial(setattr, run, "masked", any(each.mask is not None for each in members)),
        partial(setattr, run, "starts", [(group, key, starts[id(group), key]) for group, key, _ in run.starts]),
        partial(setattr, run.core, "steps", restore.step),
        partial(setattr, run.core, "counts", restore.times),
        partial(setattr, run.core, "last_loss", restore.last_loss),
        partial(setattr, run.core, "seed", restore.seed),
    ]
    in_one_call(writes)()
