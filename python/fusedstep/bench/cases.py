"""What is timed: the rules with their streams, our ways of calling them, and the limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _core, functional, reference

__all__ = ["CASES", "Case", "Data", "divider", "traffic"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A rule with hyperparameters, and the states that it streams."""

    name: str
    rule: str
    options: dict[str, Any]
    check_options: dict[str, Any]
    """The same rule with steps that show: what is timed stands still, so that it can be timed long."""
    states: dict[str, str]
    """State names; the type is that of the parameter ("same") or int8."""
    divides: bool = True
    """Whether an element costs a root and a division."""

    def to_check(self) -> Case:
        return replace(self, options=self.check_options)

    @property
    def fused(self) -> Callable[..., None]:
        return getattr(functional, f"{self.rule}_")  # type: ignore[no-any-return]

    @property
    def plain(self) -> Callable[..., None]:
        return getattr(reference, f"{self.rule}_")  # type: ignore[no-any-return]

    def bytes_per_element(self, dtype: np.dtype[Any]) -> int:
        """Return what the rule must read and write: p and g, p again, and each state twice."""
        states = sum(1 if kind == "int8" else dtype.itemsize for kind in self.states.values())
        return 3 * dtype.itemsize + 2 * states


class Data:
    """Arrays of one case: as NumPy allocates them, or aligned to cache lines."""

    def __init__(self, case: Case, n: int, dtype: DTypeLike, *, aligned: bool = False, seed: int = 0) -> None:
        dtype = np.dtype(dtype)
        rng = np.random.default_rng(seed)
        make = _aligned if aligned else np.empty
        self.case = case
        self.param = make(n, dtype)
        self.grad = make(n, dtype)
        self.param[...] = rng.standard_normal(n)
        self.grad[...] = rng.standard_normal(n)
        self.states: dict[str, Array] = {}
        for name, kind in case.states.items():
            state = make(n, np.dtype(np.int8) if kind == "int8" else dtype)
            state[...] = rng.integers(-1, 2, n) if kind == "int8" else np.abs(rng.standard_normal(n)) * 0.01 + 1e-3
            self.states[name] = state

    def copy(self) -> Data:
        twin = object.__new__(Data)
        twin.case = self.case
        twin.param, twin.grad = self.param.copy(), self.grad.copy()
        twin.states = {name: state.copy() for name, state in self.states.items()}
        return twin

    def update(self) -> None:
        self.case.fused(self.param, self.grad, **self.states, **self.case.options)

    def update_plain(self) -> None:
        self.case.plain(self.param, self.grad, **self.states, **self.case.options)


def _aligned(n: int, dtype: np.dtype[Any]) -> Array:
    return _core.allocate(n * np.dtype(dtype).itemsize).view(dtype)


# Step sizes so small that values stay what they are over the many thousand steps of a timing.
CASES = [
    Case("RMSprop", "rmsprop", {"lr": 1e-9}, {"lr": 1e-2}, {"square_avg": "same"}),
    Case("Adagrad", "adagrad", {"lr": 1e-9}, {"lr": 1e-2}, {"square_sum": "same"}),
    Case(
        "Rprop",
        "rprop",
        {"step_sizes": (1e-9, 1e-8)},
        {"step_sizes": (1e-6, 50.0)},
        {"step_size": "same", "prev_sign": "int8"},
        divides=False,
    ),
    Case(
        "RMSprop centered, momentum",
        "rmsprop",
        {"lr": 1e-9, "momentum": 0.9},
        {"lr": 1e-2, "momentum": 0.9},
        {"square_avg": "same", "grad_avg": "same", "momentum_buffer": "same"},
    ),
    Case(
        "RMSprop, weight decay",
        "rmsprop",
        {"lr": 1e-9, "weight_decay": 1e-9},
        {"lr": 1e-2, "weight_decay": 1e-2},
        {"square_avg": "same"},
    ),
]

_traffic = _core.make_function(
    "traffic",
    "traffic_",
    "traffic_(param, grad, state, sign=None)",
    [("param", None, True), ("grad", None, True), ("state", None, True), ("sign", None, False)],
    4,
)


def traffic(case: Case, data: Data) -> Callable[[], None]:
    """Return a pass over the streams of a case, or of its closest kin: same loads, same stores, one add a store."""
    param, grad = data.param, data.grad
    grad = np.zeros_like(grad)  # adding 0 keeps the values what they are
    arrays = [np.ones_like(param), grad, *(np.ones_like(state) for state in list(data.states.values())[:2])]
    if len(arrays) == 4 and arrays[3].dtype != np.int8:
        arrays = arrays[:3]
    return lambda: _traffic(*arrays)


def traffic_bytes(case: Case, dtype: np.dtype[Any]) -> int:
    """Return what ``traffic`` of a case reads and writes an element."""
    return 5 * dtype.itemsize + (2 if "int8" in case.states.values() else 0)


def divider(n: int, dtype: np.dtype[Any]) -> Callable[[], float]:
    """Return a loop of ``n`` roots and divisions in registers."""
    return lambda: _core.divide_and_root(n, dtype == np.float64)
