"""What is timed: rules with options, layouts of arrays, our ways of calling them, and their checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fusedstep import _core, reference
from fusedstep._bench import CHECKED, Case, Contender, Data, Make, is_right, kernel, repeated

Array = NDArray[Any]

CASES = [
    *map(Case, _core.rules()),
    Case("rprop", {"variant": "irprop-"}, "irprop-"),
    Case("rprop", {"variant": "rprop+"}, "rprop+"),
    Case("rmsprop", {"centered": True}, "centered"),
    Case("rmsprop", {"momentum": 0.9}, "momentum"),
    Case("rmsprop", {"centered": True, "momentum": 0.9}, "centered, momentum"),
    Case("rmsprop", {"bias_correction": True}, "bias correction"),
    Case("rmsprop", {"weight_decay": 1e-2}, "weight decay"),
    Case("proximal_adagrad", {"l1": 1e-3, "l2": 1e-3}, "l1 and l2"),
    Case("adagrad_da", {"l1": 1e-3, "l2": 1e-3}, "l1 and l2"),
]


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


LAYOUTS = ("as NumPy allocates", "aligned", "every second", "transposed gradient", "subnormal")


class Arrays(Data):
    """Arrays of a case in a layout. Where a sign is kept, half of the gradient is 0, as behind a ReLU."""

    def __init__(self, case: Case, n: int, dtype: DTypeLike, layout: str = LAYOUTS[0], seed: int = 0) -> None:
        self.layout = layout
        super().__init__(case, n, dtype, seed)
        self.size = self.param.size
        if "int8" in case.storage.values():
            self.grad *= np.random.default_rng(seed).random(self.grad.shape, np.float32) < 0.5
        if layout == "subnormal":
            self.grad[...] = 0
            for state in self.states.values():
                if state.dtype == self.dtype:
                    state[...] = np.finfo(self.dtype).smallest_normal / 8

    def zeros(self, dtype: np.dtype[Any], of_gradient: bool = False) -> Array:
        if self.layout == "aligned":
            memory = np.zeros(self.size * dtype.itemsize + 64, np.uint8)
            start = -memory.ctypes.data % 64
            return memory[start : start + self.size * dtype.itemsize].view(dtype)
        if self.layout == "every second":
            return np.zeros(2 * self.size, dtype)[::2]
        if self.layout == "transposed gradient":
            rows = math.isqrt(self.size)
            shape = (rows, self.size // rows)
            return np.zeros(shape[::-1], dtype).T if of_gradient else np.zeros(shape, dtype)
        return super().zeros(dtype)


def cpp_function(data: Data) -> Contender:
    """Return the C++ API's ``step()``, called from C++."""
    return _core.repeated_step(data.case.rule, dict(data.case.options), data.arrays).seconds


def optimizer(case: Case, params: list[Array], grads: list[Array]) -> Contender:
    """Return a step of an optimizer over these parameters."""
    return repeated(partial(case.class_(params, **case.options).step, grads))


def cpp_optimizer(case: Case, params: list[Array], grads: list[Array]) -> Contender:
    """Return a step of the C++ API's ``Optimizer`` over these parameters, called from C++."""
    return _core.repeated_optimizer(case.rule, dict(case.options), params, grads).seconds


def lists(case: Case, sizes: Sequence[int], dtype: DTypeLike) -> tuple[list[Array], list[Array]]:
    """Return parameters of these sizes, and their gradients."""
    made = [Arrays(case, n, dtype, seed=k % 100) for k, n in enumerate(sizes)]
    return [data.param for data in made], [data.grad for data in made]


def first_states(case: Case, param: Array) -> dict[str, Array]:
    """Return the states that an optimizer of one parameter starts with, by the names that the function has for them."""
    (states,) = case.class_([param], **case.options).state.values()
    return {name: state.copy() for name, state in zip(case.storage, states.values(), strict=True)}


def stepped(case: Case, param: Array, grad: Array) -> Array:
    """Return a parameter after the first step of the reference."""
    expected = param.copy()
    getattr(reference, f"{case.rule}_")(expected, grad, **first_states(case, param), **case.arguments)
    return expected


RIGHT, WRONG = "0 ulp", "wrong: a bit differs from the reference"


def error(case: Case, dtype: DTypeLike, layout: str = LAYOUTS[0]) -> str:
    """Return whether the functions, called from Python and from C++, give the bits of the reference."""
    calls: tuple[Make, ...] = (kernel, cpp_function, lambda data: repeated(data.call))
    return RIGHT if all(is_right(call, case, dtype, partial(Arrays, layout=layout)) for call in calls) else WRONG


def error_of_optimizers(case: Case, dtype: DTypeLike) -> str:
    """Return whether a step of the optimizers, called from Python and from C++, gives the bits of the reference."""
    params, grads = lists(case, [CHECKED, 16, 1], dtype)
    expected = [stepped(case, p, g) for p, g in zip(params, grads, strict=True)]
    for make in (optimizer, cpp_optimizer):
        ours = [p.copy() for p in params]
        make(case, ours, grads)(1)
        if any(found.tobytes() != right.tobytes() for found, right in zip(ours, expected, strict=True)):
            return WRONG
    return RIGHT
