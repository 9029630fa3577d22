"""What is timed: the rules with their streams, our ways of calling them, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _core, functional, optimizers, reference
from .instrument import Native

__all__ = [
    "CASES",
    "LAYOUTS",
    "Case",
    "Data",
    "bound",
    "bound_cpp",
    "by_name",
    "divider",
    "error",
    "error_of_optimizers",
    "lists",
    "optimizer_options",
    "traffic",
    "traffic_bytes",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A rule with hyperparameters, the states that it streams, and what it asks of the divider."""

    name: str
    rule: str
    options: dict[str, Any]
    """Steps so small that values stay what they are over the many thousand calls of a timing."""
    showing: dict[str, Any]
    """What differs in a check, whose one step must show."""
    states: dict[str, str]
    """State names, in the rule's order; of the type of the parameter ("same"), "int8" or one number ("scalar")."""
    roots: int = 1
    divisions: int = 1
    functional: dict[str, Any] = field(default_factory=dict)
    """What the function takes and the class does not."""
    flags: dict[str, Any] = field(default_factory=dict)
    """What the class takes and the function does not."""

    def to_check(self) -> Case:
        return replace(self, options=self.options | self.showing)

    @property
    def fused(self) -> Callable[..., None]:
        return getattr(functional, f"{self.rule}_")  # type: ignore[no-any-return]

    @property
    def plain(self) -> Callable[..., None]:
        return getattr(reference, f"{self.rule}_")  # type: ignore[no-any-return]

    @property
    def class_(self) -> type[optimizers.Optimizer]:
        words = {"rmsprop": "RMSprop", "adagrad": "Adagrad", "rprop": "Rprop"}
        name = words.get(self.rule) or "".join(map(str.title, self.rule.split("_"))).replace("Da", "DA")
        return getattr(optimizers, name)  # type: ignore[no-any-return]

    def first_states(self, param: Array) -> dict[str, Array]:
        """Return the states that an optimizer starts with."""
        states: dict[str, Array] = {}
        for name, kind in self.states.items():
            shape = () if kind == "scalar" else param.shape
            states[name] = np.zeros(shape, np.int8 if kind == "int8" else param.dtype)
        if "step_size" in states:
            states["step_size"][...] = optimizer_options(self)["lr"]
        return states

    @property
    def streamed(self) -> list[str]:
        return [kind for kind in self.states.values() if kind != "scalar"]

    def bytes_per_element(self, dtype: np.dtype[Any]) -> int:
        """Return what the rule must read and write: p and g, p again, and each state twice."""
        again = dtype.itemsize if "scalar" in self.states.values() else 0  # g is read before, for its norm
        return traffic_bytes(self, dtype) + again


LAYOUTS = ("as NumPy allocates", "aligned", "every second", "transposed gradient", "subnormal")


class Data:
    """Arrays of one case in one layout."""

    def __init__(self, case: Case, n: int, dtype: DTypeLike, layout: str = LAYOUTS[0], *, seed: int = 0) -> None:
        self.case = case
        self.layout = layout
        dtype = np.dtype(dtype)
        rng = np.random.default_rng(seed)
        self.param = self._make(n, dtype)
        self.grad = self._make(n, dtype)
        if layout == "transposed gradient":
            self.grad = self.grad.reshape(self.param.shape[::-1]).T
        shape = self.param.shape
        self.param[...] = _normal(rng, shape)
        self.grad[...] = _normal(rng, shape)
        if case.rule == "rprop":
            # The sign of a gradient that is timed again and again never flips. Zeros, as behind a ReLU, keep a
            # processor from predicting branches all the same.
            self.grad *= _normal(rng, shape) > 0
        if layout == "subnormal":
            self.grad[...] = 0
        self.states: dict[str, Array] = {}
        for name, kind in case.states.items():
            state = (
                np.ones((), dtype) if kind == "scalar" else self._make(n, np.dtype("int8") if kind == "int8" else dtype)
            )
            if kind == "int8":
                state[...] = np.sign(_normal(rng, shape))
            elif layout == "subnormal":
                state[...] = np.finfo(dtype).smallest_normal / 8
            elif name in ("grad_avg", "momentum_buffer", "grad_sum"):
                state[...] = _normal(rng, shape) * 1e-2
            elif kind == "same":
                state[...] = np.abs(_normal(rng, shape)) * 1e-2 + 1e-3
            self.states[name] = state

    def _make(self, n: int, dtype: np.dtype[Any]) -> Array:
        if self.layout == "aligned":
            return _core.allocate(n * dtype.itemsize).view(dtype)
        if self.layout == "every second":
            return np.zeros(2 * n, dtype)[::2]
        if self.layout == "transposed gradient":
            rows = int(n**0.5)
            return np.zeros((rows, n // rows), dtype)
        return np.zeros(n, dtype)

    def zeros(self) -> Array:
        """Return a gradient of zeros in the layout of this one's."""
        zeros = self._make(self.size, self.param.dtype)
        if self.layout == "transposed gradient":
            zeros = zeros.reshape(self.param.shape[::-1]).T
        zeros[...] = 0
        return zeros

    @property
    def arrays(self) -> list[Array]:
        return [self.param, self.grad, *self.states.values()]

    @property
    def size(self) -> int:
        return self.param.size

    def copy(self) -> Data:
        """Return the same values in the same layout, elsewhere."""
        twin = object.__new__(Data)
        twin.case, twin.layout = self.case, self.layout
        twin.param, twin.grad = self._make(self.size, self.param.dtype), self.grad.copy("K")
        twin.param[...] = self.param
        twin.states = {name: state.copy("K") for name, state in self.states.items()}
        return twin

    @cached_property
    def update(self) -> Callable[[], None]:
        """The update as a user writes it out: a call by keywords, nothing unpacked."""
        given = {**self.states, **self.case.options, **self.case.functional}
        names = {"fused": self.case.fused, "param": self.param, "grad": self.grad, **given}
        return eval(f"lambda: fused(param, grad, {', '.join(f'{name}={name}' for name in given)})", names)  # type: ignore[no-any-return]

    def update_plain(self) -> None:
        self.case.plain(self.param, self.grad, **self.states, **self.case.options, **self.case.functional)

    def kernel(self) -> Native:
        """Return the update alone, prepared once and called from C++."""
        return Native(_core.repeated_kernel(self.case.rule, self.case.options | self.case.flags, self.arrays).seconds)

    def step_cpp(self) -> Native:
        """Return the C++ API's ``step()``, called from C++."""
        return Native(_core.repeated_step(self.case.rule, self.case.options | self.case.flags, self.arrays).seconds)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return random numbers, the same million again and again where there are more: making them takes longest."""
    return np.resize(rng.standard_normal(min(int(np.prod(shape)), 1_000_003), np.float32), shape)


WRONG = "wrong: a bit differs from the reference"


def error(case: Case, dtype: DTypeLike, layout: str = LAYOUTS[0]) -> str:
    """Return what is to be said of our own results, called from Python and from C++."""
    start = Data(case.to_check(), 4099, dtype, layout)
    expected = start.copy()
    expected.update_plain()
    calls: list[Callable[[Data], object]] = [
        lambda data: data.update(),
        lambda data: data.kernel().seconds(1),
        lambda data: data.step_cpp().seconds(1),
    ]
    for call in calls:
        ours = start.copy()
        call(ours)
        if any(a.tobytes() != b.tobytes() for a, b in zip(ours.arrays, expected.arrays, strict=True)):
            return WRONG
    return "0 ulp"


def error_of_optimizers(case: Case, dtype: DTypeLike) -> str:
    """Return what is to be said of a step of our optimizers, called from Python and from C++."""
    shown = case.to_check()
    params, grads = lists(shown, [4099, 16, 1], dtype)
    for make in (bound, bound_cpp):
        ours = [p.copy() for p in params]
        step = make(shown, ours, grads)
        if isinstance(step, Native):
            step.seconds(1)
        else:
            step()
        for p, g, found in zip(params, grads, ours, strict=True):
            expected = p.copy()
            shown.plain(expected, g, **shown.first_states(expected), **shown.options, **shown.functional)
            if expected.tobytes() != found.tobytes():
                return WRONG
    return "0 ulp"


def lists(case: Case, sizes: Sequence[int], dtype: DTypeLike) -> tuple[list[Array], list[Array]]:
    """Return parameters of these sizes and their gradients."""
    made = [Data(case, n, dtype, seed=k % 100) for k, n in enumerate(sizes)]
    return [data.param for data in made], [data.grad for data in made]


def optimizer_options(case: Case) -> dict[str, Any]:
    """Return what the class takes, in Python as in C++: all sums start at 0."""
    start: dict[str, Any] = {}
    if case.rule == "rprop":
        start["lr"] = case.options["step_sizes"][0]
    elif "adagrad" in case.rule:
        start["initial_accumulator_value"] = 0.0
    return case.options | case.flags | start


def bound(case: Case, params: list[Array], grads: list[Array]) -> Callable[[], _core.StepReport]:
    """Return a step of an optimizer over these parameters."""
    optimizer = case.class_(params, **optimizer_options(case))
    return lambda: optimizer.step(grads)


def bound_cpp(case: Case, params: list[Array], grads: list[Array]) -> Native:
    """Return a step of the C++ API's ``Optimizer`` over these parameters, called from C++."""
    return Native(_core.repeated_optimizer(case.rule, optimizer_options(case), params, grads).seconds)


# ------------------------------------------------------------------------------------------------------------- limits


def traffic_bytes(case: Case, dtype: np.dtype[Any]) -> int:
    """Return what ``traffic`` of a case reads and writes an element."""
    states = sum(1 if kind == "int8" else dtype.itemsize for kind in case.streamed)
    return 3 * dtype.itemsize + 2 * states


def traffic(data: Data) -> Native:
    """Return a pass over the arrays of a case by the rules' own loops: same loads, same stores, one add a store.

    The gradient is 0 in another place, so that adding it changes nothing; a sign is turned, which the next update of
    the rule puts right.
    """
    case = data.case
    rule, options = "sign_traffic", {}
    streams = [
        array for array, kind in zip(data.states.values(), case.states.values(), strict=True) if kind != "scalar"
    ]
    if "int8" not in case.streamed:
        rule, options = "traffic", {"states": ("none", "one", "two", "three")[len(streams)]}
    return Native(_core.repeated_kernel(rule, options, [data.param, data.zeros(), *streams]).seconds)


def divider(case: Case, n: int, dtype: DTypeLike) -> Native | None:
    """Return the roots and divisions of ``n`` elements, in registers; None where the rule has none.

    Few elements are measured on more, by which the time is divided.
    """
    if not case.divisions:
        return None
    measured = max(n, 16_384)
    is_double = np.dtype(dtype) == np.float64
    repeated = _core.repeated_division(measured, n, is_double, case.roots, case.divisions)
    return Native(lambda calls: repeated.seconds(calls) * n / measured)


# -------------------------------------------------------------------------------------------------------------- cases

_RMSPROP: dict[str, Any] = {"rule": "rmsprop", "options": {"lr": 1e-9}, "showing": {"lr": 1e-2}}
_RPROP: dict[str, Any] = {
    "rule": "rprop",
    "showing": {"step_sizes": (1e-6, 50.0)},
    "states": {"step_size": "same", "prev_sign": "int8"},
    "roots": 0,
    "divisions": 0,
}

CASES = [
    Case("RMSprop", **_RMSPROP, states={"square_avg": "same"}),
    Case("Adagrad", "adagrad", {"lr": 1e-9}, {"lr": 1e-2}, {"square_sum": "same"}),
    Case("Rprop", options={"step_sizes": (1e-9, 1e-8)}, **_RPROP),
    Case("Rprop, irprop-", options={"step_sizes": (1e-9, 1e-8), "variant": "irprop-"}, **_RPROP),
    Case("Rprop, rprop+", options={"step_sizes": (1e-9, 1e-8), "variant": "rprop+"}, **_RPROP),
    Case(
        "RMSprop, centered",
        **_RMSPROP,
        states={"square_avg": "same", "grad_avg": "same"},
        flags={"centered": True},
    ),
    Case(
        "RMSprop, momentum",
        **(_RMSPROP | {"options": {"lr": 1e-9, "momentum": 0.9}}),
        states={"square_avg": "same", "momentum_buffer": "same"},
    ),
    Case(
        "RMSprop, centered, momentum",
        **(_RMSPROP | {"options": {"lr": 1e-9, "momentum": 0.9}}),
        states={"square_avg": "same", "grad_avg": "same", "momentum_buffer": "same"},
        flags={"centered": True},
    ),
    Case(
        "RMSprop, bias correction",
        **_RMSPROP,
        states={"square_avg": "same"},
        divisions=2,
        functional={"step": 1},
        flags={"bias_correction": True},
    ),
    Case(
        "RMSprop, weight decay",
        **(_RMSPROP | {"options": {"lr": 1e-9, "weight_decay": 1e-2}}),
        states={"square_avg": "same"},
    ),
    Case(
        "ProximalAdagrad",
        "proximal_adagrad",
        {"lr": 1e-9, "l1": 1e-3, "l2": 1e-3},
        {"lr": 1e-2},
        {"square_sum": "same"},
        divisions=2,
    ),
    Case(
        "AdagradDA",
        "adagrad_da",
        {"lr": 1e-9, "l1": 1e-3, "l2": 1e-3},
        {"lr": 1e-2},
        {"grad_sum": "same", "square_sum": "same"},
        functional={"step": 1},
    ),
    Case("AdagradNorm", "adagrad_norm", {"lr": 1e-9}, {"lr": 1e-2}, {"square_sum": "scalar"}, roots=0),
]


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
