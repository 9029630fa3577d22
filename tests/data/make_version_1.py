"""Make the files of format version 1 in this folder: run with the package of commit 0c5c211, which wrote that format.

``python make_version_1.py FOLDER``. Each ``<name>.npz`` is a checkpoint after 5 steps. The ``<name>.after.npz`` beside
it holds the parameters after 3 more steps by the same package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fusedstep as fs


class Layer(NamedTuple):
    w: Any
    b: Any


W = np.linspace(-1, 1, 6).reshape(2, 3)
B = np.linspace(0.5, 2, 4)
"""What the parameters start with."""

CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "array": lambda w, b: w,
    "list": lambda w, b: [w, b],
    "tuple": lambda w, b: (w, b),
    "named tuple": lambda w, b: Layer(w, b),
    "dict": lambda w, b: {"w": w, "b": b},
    "nested": lambda w, b: {"layers": [{"w": w}, (b,)]},
    "nested named tuples": lambda w, b: {"layers": [Layer(w, b)]},
    "groups": lambda w, b: [{"params": {"w": w}}, {"params": [b], "lr": 0.5}],
    "groups of named tuples": lambda w, b: [{"params": Layer(w, b)}, {"params": [w[0] + 1], "lr": 0.5}],
}
"""The parameters, or the gradients, in each container."""

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "rmsprop": ("RMSprop", {"momentum": 0.9, "bias_correction": True}, "dict"),
    "rmsprop-centered": ("RMSprop", {"centered": True, "alpha": 0.75}, "dict"),
    "rmsprop-centered-corrected": (
        "RMSprop",
        {"centered": True, "alpha": 0.75, "momentum": 0.9, "bias_correction": True},
        "dict",
    ),
    "adagrad": ("Adagrad", {"lr_decay": 0.25}, "dict"),
    "proximal_adagrad": ("ProximalAdagrad", {"lr": 0.1, "l1": 0.01}, "dict"),
    "adagrad_da": ("AdagradDA", {"lr": 0.1, "l1": 0.01}, "dict"),
    "adagrad_norm": ("AdagradNorm", {}, "dict"),
    "rprop": ("Rprop", {"variant": "irprop+"}, "dict"),
    **{f"container-{name.replace(' ', '_')}": ("Adagrad", {"lr": 0.25}, name) for name in CONTAINERS},
}
"""The class, its options and the container by the name of the file."""


def gradients(t: int) -> tuple[Any, Any]:
    """Return the gradients of W, and of B, which is left out of every third step."""
    return np.cos(W + t), (None if t % 3 == 0 else np.sin(3 * B + t))


def made(name: str) -> tuple[Any, Any, Any]:
    """Return the optimizer of a case, with its two parameters."""
    kind, options, container = CASES[name]
    w, b = W.copy(), B.copy()
    return getattr(fs, kind)(CONTAINERS[container](w, b), **options), w, b


def stepped(name: str, optimizer: Any, first: int, last: int) -> None:
    for t in range(first, last + 1):
        grads = CONTAINERS[CASES[name][2]](*gradients(t))
        if isinstance(grads, list) and isinstance(grads[0], dict) and "params" in grads[0]:
            grads = [group["params"] for group in grads]
        optimizer.step(grads, loss=float((-1) ** t * t))


def main(folder: str) -> None:
    for name in CASES:
        optimizer, w, b = made(name)
        stepped(name, optimizer, 1, 5)
        optimizer.save(os.path.join(folder, f"{name}.npz"))
        if name.startswith("rmsprop"):
            optimizer.save(os.path.join(folder, f"{name}.safetensors"))
        stepped(name, optimizer, 6, 8)
        np.savez(os.path.join(folder, f"{name}.after.npz"), w=w, b=b)


if __name__ == "__main__":
    main(sys.argv[1])
