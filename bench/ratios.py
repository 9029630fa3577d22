"""``python -m bench.ratios``: calls beside ``numpy.multiply(a, b, out=c)`` on 16 elements, layouts beside dense arrays.

Ratios of medians, over rounds in which all contenders alternate: they depend less on the machine than times do.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep._bench import Contender, alternate, kernel, machine, median, repeated

from .cases import Arrays, by_name

Array = NDArray[Any]

MANY = 10_000
SIDES = (1_000, 1_024, 4_000)


def full(value: float, count: int = MANY) -> list[Array]:
    return [np.full(16, value, np.float32) for _ in range(count)]


def in_turn(lists: list[list[Array]], step: Callable[[list[Array]], object]) -> Contender:
    """Return steps with gradients at other addresses each time."""
    cycle = itertools.cycle(lists)
    return repeated(lambda: step(next(cycle)))


def calls() -> tuple[dict[str, Contender], dict[str, int]]:
    """Return what is called, and how many parameters each call updates."""
    a, b, c = full(1.0, 3)
    param, grad, state, other = full(0.5, 4)
    grads = [grad]
    one, scheduled, fresh = (fs.RMSprop(full(0.5, 1)) for _ in range(3))
    group, rates = scheduled.param_groups[0], itertools.cycle([1e-3, 2e-3, 3e-3])

    def with_lr() -> None:
        group["lr"] = next(rates)
        scheduled.step(grads)

    chance = random.Random(0)
    shuffled, shuffled_grads = full(0.5), full(0.1)
    chance.shuffle(shuffled)
    chance.shuffle(shuffled_grads)
    heap_grads, moving = full(0.1), [full(0.1) for _ in range(3)]
    in_order, at_random, at_new = fs.RMSprop(full(0.5)), fs.RMSprop(shuffled), fs.RMSprop(full(0.5))
    made = {
        "numpy.multiply(a, b, out=c)": repeated(lambda: np.multiply(a, b, out=c)),
        "opt.step, one parameter": repeated(lambda: one.step(grads)),
        "opt.step, lr set before": repeated(with_lr),
        "opt.step, gradient at a new address": in_turn([[grad], [other]], fresh.step),
        "fs.rmsprop_, lr": repeated(lambda: fs.rmsprop_(param, grad, state, lr=1e-3)),
        "fs.rmsprop_, four keywords": repeated(
            lambda: fs.rmsprop_(param, grad, state, lr=1e-3, alpha=0.9, eps=1e-8, weight_decay=0.0)
        ),
        f"each of {MANY:,}, in heap order": repeated(lambda: in_order.step(heap_grads)),
        f"each of {MANY:,}, shuffled": repeated(lambda: at_random.step(shuffled_grads)),
        f"each of {MANY:,}, gradients at new addresses": in_turn(moving, at_new.step),
    }
    if importlib.util.find_spec("torch") is not None:
        made["adaptor for PyTorch, one parameter"] = torch_step(1)
        made["adaptor for PyTorch, each of 100"] = torch_step(100)
    return made, {name: MANY if f"of {MANY:,}" in name else 100 if "of 100" in name else 1 for name in made}


def torch_step(count: int) -> Contender:
    import torch

    from fusedstep import torch as ours

    params = [torch.full((16,), 0.5, requires_grad=True) for _ in range(count)]
    for param in params:
        param.grad = torch.full((16,), 0.1)
    return repeated(ours.RMSprop(params).step)


def show(title: str, timings: Mapping[str, Any], per: Mapping[str, int], base: str) -> None:
    print(f"\n{title}")
    unit = median(timings[base])
    for name, timing in timings.items():
        seconds = median(timing) / per.get(name, 1)
        print(f"  {name:<48} {seconds * 1e9:>12,.1f} ns  {seconds / unit:>7.3f}")


def layouts(rule: str, dtype: str, side: int) -> dict[str, Contender]:
    case = by_name(rule)
    names = ("as NumPy allocates", "transposed gradient", "every second")
    return {name: kernel(Arrays(case, side * side, dtype, name)) for name in names}


def norm_of(order: Any, dtype: str, side: int) -> Contender:
    """Return steps that read a gradient and then skip the update, because another gradient is NaN."""
    grads = [np.full((side, side), 0.5, dtype, order=order), np.full(1, np.nan, dtype)]
    optimizer = fs.RMSprop([np.zeros((side, side), dtype), np.zeros(1, dtype)])
    return repeated(lambda: optimizer.step(grads, nonfinite="skip"))


def main() -> None:
    """Measure and print."""
    before = fs.get_num_threads()
    fs.set_num_threads(1)
    print(machine()["processor"], fs.isa(), "one thread")
    made, per = calls()
    show("calls", alternate(made, 6.0, 21), per, "numpy.multiply(a, b, out=c)")
    for rule, dtype, side in itertools.product(("RMSprop", "Adagrad", "Rprop"), ("float32", "float64"), SIDES):
        show(
            f"{rule}, {dtype}, {side:,} x {side:,}",
            alternate(layouts(rule, dtype, side), 2.0),
            {},
            "as NumPy allocates",
        )
    for dtype, side in itertools.product(("float32", "float64"), SIDES):
        norms = {f"norm, {order} order": norm_of(order, dtype, side) for order in "CF"}
        show(f"norm, {dtype}, {side:,} x {side:,}", alternate(norms, 1.0), {}, "norm, C order")
    fs.set_num_threads(before)


if __name__ == "__main__":
    main()
