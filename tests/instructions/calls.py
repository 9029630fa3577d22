"""Calls from Python for callgrind to count: 100 calls between two markers each. Prints their names in order.

The marker is os.getppid(), at which callgrind writes its counts so far. So the start of the interpreter does not count,
nor work that is done only once.
"""

import gc
import itertools
import os
import sys
from collections.abc import Callable

import numpy as np

import fusedstep as fs
from fusedstep import _core


def count(name: str, call: Callable[[], object]) -> None:
    calls = range(100)
    for _ in calls:
        call()
    print(name, flush=True)
    os.getppid()
    for _ in calls:
        call()
    os.getppid()


def arrays(count: int) -> list[np.ndarray]:
    return [np.full(16, 0.5, np.float32) for _ in range(count)]


gc.disable()
_core.force_isa(sys.argv[1])
fs.set_num_threads(1)
param, grad, state = arrays(3)
count("Python rmsprop_() of 16", lambda: fs.rmsprop_(param, grad, state, lr=1e-3))
for tensors in (1, 100):
    params, grads = arrays(tensors), arrays(tensors)
    optimizer = fs.RMSprop(params, lr=1e-3)
    count(f"Python optimizer of {tensors} x 16", lambda: optimizer.step(grads))  # noqa: B023
group, rates = optimizer.param_groups[0], itertools.cycle((1e-3, 2e-3))
places = itertools.cycle((grads, arrays(tensors)))


def with_another_lr() -> None:
    group["lr"] = next(rates)
    optimizer.step(grads)


count("Python optimizer of 100 x 16, another lr", with_another_lr)
count("Python optimizer of 100 x 16, other gradients", lambda: optimizer.step(next(places)))
