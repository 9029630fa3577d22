"""Checkpoints of format version 1, which 0.1.0 wrote, as those of version 2.

Three things were different: fields of NamedTuples were named by their numbers; centred RMSprop kept the average of
squares instead of the variance, without bias correction in its averages; a plain RMSprop could keep ``grad_avg`` from
when it was centred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._run import Run
from .._tree import numbered_names

Array = NDArray[Any]


class Computed:
    """An array that is computed from others when it is read."""

    def __init__(self, like: Any, compute: Callable[[], Array]) -> None:
        self.dtype: np.dtype[Any] = like.dtype
        self.shape: tuple[int, ...] = like.shape
        self._compute = compute

    def read(self) -> Array:
        with np.errstate(all="ignore"):
            return self._compute().astype(self.dtype).reshape(self.shape)


def upgraded(run: Run, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state dict from version 1 to version 2. Invalid parts stay invalid, and are refused later."""
    made = {**saved, **_renamed(run, saved)}
    if run.schema.rule == "rmsprop":
        made["state"] = {**made["state"], **_with_variance(made)}
    return made


def _renamed(run: Run, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries under today's parameter names."""
    fields = {old: new for old, new in zip(numbered_names(run.trees), run.params, strict=True) if old != new}
    if any(new in saved["params"] for new in fields.values() if new not in fields):
        return {}  # named by field: saved from another container
    return {
        "groups": [
            {**group, "params": [fields.get(name, name) for name in group["params"]]} for group in saved["groups"]
        ],
        **{
            key: {fields.get(name, name): value for name, value in saved[key].items()}
            for key in ("params", "state", "times")
        },
    }


def _with_variance(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the states of parameters that have both averages: centred with the variance, else without ``grad_avg``."""
    made: dict[str, dict[str, Any]] = {}
    for group in saved["groups"]:
        for name in group["params"]:
            states = saved["state"].get(name)
            if not isinstance(states, Mapping) or not {"square_avg", "grad_avg"} <= set(states):
                continue
            made[name] = rest = {key: value for key, value in states.items() if key != "grad_avg"}
            if group.get("centered") is True:
                correction = _correction(group, saved["times"].get(name))
                average = states["grad_avg"]
                rest["variance"], rest["grad_avg"] = _averages(rest.pop("square_avg"), average, correction)
    return made


def _correction(group: Mapping[str, Any], count: Any) -> float:
    """Return the divisor of the averages."""
    alpha = group.get("alpha")
    if not isinstance(alpha, float) or not 0 <= alpha <= 1 or not isinstance(count, int) or count <= 0:
        return 1.0
    return 1 - float(alpha**count) if group.get("bias_correction") is True else 1.0


def _averages(square_avg: Any, grad_avg: Any, correction: float) -> tuple[Any, Any]:
    """Return the variance and the average gradient of two averages that start at 0."""
    if not all(hasattr(array, "dtype") and array.shape == square_avg.shape for array in (square_avg, grad_avg)):
        return square_avg, grad_avg

    def average() -> Array:
        return np.divide(_double(grad_avg), correction)

    def variance() -> Array:
        return np.maximum(_double(square_avg) / correction - np.square(average()), 0)

    return Computed(square_avg, variance), Computed(grad_avg, average)


def _double(array: Any) -> Array:
    return np.asarray(array if isinstance(array, np.ndarray) else array.read(), np.float64)
