"""A run as a plain dict, and back: check everything, and only then write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._run import Run

__all__ = ["Restore", "checked", "description", "load_state_dict", "state_dict", "write"]

Array = NDArray[Any]

FORMAT_VERSION = 1

_KEYS = ("format_version", "class", "groups", "step", "times", "last_loss", "params", "state")
_LARGEST_COUNT = 2**53
"""Doubles, and so the JSON of every language, count exactly up to here."""


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


def load_state_dict(run: Run, saved: Any) -> None:
    """Bring ``run`` to where ``saved`` was taken; see ``Optimizer.load_state_dict``."""
    with run.core:
        restore = checked(run, saved)
        # Copies, so that arrays of ``saved`` may share memory with the live ones.
        write(run, restore._replace(arrays=[(live, value.copy()) for live, value in restore.arrays]))


def description(run: Run) -> dict[str, Any]:
    """Return the entries of a checkpoint that are not arrays."""
    run.check_groups()
    run.check_starts()
    return {
        "format_version": FORMAT_VERSION,
        "class": run.name,
        "groups": [
            {"params": list(names), **_hyperparameters(run, index, group)}
            for index, (names, group) in enumerate(zip(run.names, run.groups, strict=True))
        ],
        "step": run.core.steps,
        "times": dict(zip(run.params, run.core.counts, strict=True)),
        "last_loss": run.core.last_loss,
    }


def _hyperparameters(run: Run, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return run.checked(index, group)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"group {index}: {error}") from error


class Restore(NamedTuple):
    """Everything that a checked checkpoint writes."""

    arrays: list[tuple[Array, Array]]
    """Live arrays with their new values."""
    groups: list[dict[str, Any]]
    step: int
    times: list[int]
    last_loss: float | None


def checked(run: Run, saved: Any) -> Restore:
    """Return what loading ``saved`` writes; ValueError if anything in it does not fit ``run``."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"state dict: expected a mapping, as state_dict() returns, got {type(saved).__name__}")
    version = saved.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {version!r}")
    _check_names("state dict", _KEYS, saved)
    if saved["class"] != run.name:
        raise ValueError(f"class: expected {run.name}, as this optimizer is, got {saved['class']!r}")
    run.check_groups()
    groups = _checked_groups(run, saved["groups"])
    arrays = _pairs("params", run.params, saved["params"])
    _check_names("state", run.params, saved["state"])
    for name, states in run.state.items():
        arrays += _pairs(f"state of {name!r}", states, saved["state"][name])
    _check_names("times", run.params, saved["times"])
    return Restore(
        arrays,
        groups,
        _count("step", saved["step"]),
        [_count(f"times of {name!r}", saved["times"][name]) for name in run.params],
        _loss(saved["last_loss"]),
    )


def _checked_groups(run: Run, saved: Any) -> list[dict[str, Any]]:
    """Return the hyperparameters for each group of ``run``: those of the saved group with the same parameters."""
    if not isinstance(saved, list | tuple):
        raise ValueError(f"groups: expected a list, got {type(saved).__name__}")
    by_names: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for index, group in enumerate(saved):
        names = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"group {index}: expected a mapping with a list of names 'params'")
        by_names.setdefault(frozenset(names), []).append(group)
    _check_names("groups", run.params, dict.fromkeys(name for names in by_names for name in names))
    found = []
    for index, own in enumerate(run.names):
        matches = by_names.get(frozenset(own))
        if not matches:
            raise ValueError(f"groups: expected one of {_listed(own)}, as group {index} of this optimizer is")
        group = matches.pop(0)
        _check_names(f"group {index}", ("params", *run.schema.options), group)
        found.append(_hyperparameters(run, index, group))
    if any(by_names.values()):
        raise ValueError(f"groups: expected {len(found)}, as in this optimizer, got {len(saved)}")
    return found


def _pairs(what: str, live: Mapping[str, Array], saved: Any) -> list[tuple[Array, Array]]:
    """Return live arrays with their saved values, of the same names, dtypes and shapes."""
    _check_names(what, live, saved)
    pairs = []
    for name, array in live.items():
        value = saved[name]
        if not isinstance(value, np.ndarray):
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
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: expected a mapping, got {type(found).__name__}")
    expected = dict.fromkeys(expected)
    wrong = []
    if missing := [name for name in expected if name not in found]:
        wrong.append(f"{_listed(missing)} missing")
    if unknown := [name for name in found if name not in expected]:
        wrong.append(f"{_listed(unknown)} unknown to this optimizer")
    if wrong:
        raise ValueError(f"{what}: {', '.join(wrong)}")


def _listed(names: list[Any]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"{what}: expected a whole number from 0 to 2^53, got {value!r}")
    return int(value)


def _loss(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"last_loss: expected a real number or None, got {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"last_loss: {error}") from error


def write(run: Run, restore: Restore) -> None:
    """Write all of ``restore``. If Ctrl-C interrupts this, do it once more from the start."""
    try:
        _write(run, restore)
    except BaseException:
        _write(run, restore)
        raise


def _write(run: Run, restore: Restore) -> None:
    for live, value in restore.arrays:
        np.copyto(live, value)
    for group, values in zip(run.groups, restore.groups, strict=True):
        group.update(values)
    run.core.own(run.groups)
    run.remember_starts()
    run.core.steps = restore.step
    run.core.counts = restore.times
    run.core.last_loss = restore.last_loss
