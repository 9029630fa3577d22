"""A step that leaves elements out: those where a mask is False keep every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._core import StepReport
from ._run import Run, StepOptions
from ._tree import is_masked, parse

Array = NDArray[Any]


def masked_step(
    run: Run, grads: Any, mask: Any, options: StepOptions,
    step: Callable[[Run, Any, StepOptions, list[Array | None]], StepReport],
) -> StepReport:  # fmt: skip
    """Do ``step(run, grads, options, frozen)``, which leaves frozen elements as they are.

    In copies of the gradients a frozen element is 0, so that it adds nothing to a norm and is never the one that GRprop
    chooses.
    """
    own: list[tuple[Any, Any]] = [
        grad if isinstance(grad, tuple) else (grad, None) for grad in run.core.gradients(grads)
    ]
    frozen = _frozen(run, mask)
    if options.zero_grads is True:
        for name, (grad, _) in zip(run.params, own, strict=True):
            if grad is not None and not grad.flags.writeable:
                raise ValueError(f"gradient of parameter {name!r}: is read-only, so that it can't be set to 0")
    given = [_zeroed(grad, index, still) for (grad, index), still in zip(own, frozen, strict=True)]
    pairs = zip(own, given, strict=True)
    to_zero = [grad for (grad, _), (copied, _) in pairs if options.zero_grads and copied is not grad]
    contained = run.contained(grad if index is None else (grad, index) for grad, index in given)
    # Options of the step may be numbers that lock or resize an array when they are read.
    memory = [np.asarray(grad)[...] for grad in to_zero]
    report = step(run, contained, options, frozen)
    for grad, seen in zip(to_zero, memory, strict=True):
        if _place(grad) == _place(seen):
            seen[...] = 0
    return report


def _place(array: Array) -> tuple[Any, ...]:
    """Return shape and address, without a word of Python's: a subclass may have attributes of its own that raise."""
    return np.ndarray.shape.__get__(array), np.ndarray.__array_interface__.__get__(array)["data"][0]


def _zeroed(grad: Any, index: Any, frozen: Array | None) -> tuple[Any, Any]:
    """Return a gradient, or the values and the index of one of rows, with 0 where it is frozen."""
    if grad is None or frozen is None:
        return grad, index
    copied = np.array(grad, order="K")
    copied[frozen if index is None else np.take(frozen, index.astype(np.int64), axis=0, mode="clip")] = 0
    return copied, index


def _frozen(run: Run, mask: Any) -> list[Array | None]:
    """Return for each parameter where it stays as it is; None where it has no mask."""
    given: list[Any] = [None] * len(run.params)
    if mask is not None:
        if run.grouped and (not isinstance(mask, list | tuple) or len(mask) != len(run.trees)):
            raise TypeError(f"mask: expected a list with one entry for each of the {len(run.trees)} groups")
        leaves: dict[str, Any] = {}
        unnamed = 0
        for each in mask if run.grouped else [mask]:
            found = parse(each, leaves, len(leaves), unnamed)
            leaves.update(zip(found.names, found.arrays, strict=True))
            unnamed = found.unnamed
        if leaves.keys() != run.params.keys():
            raise ValueError(f"mask: expected one for each of {list(run.params)}, got those of {list(leaves)}")
        given = [leaves[name] for name in run.params]
    of_group = [own for own, names in zip(run.masks, run.names, strict=True) for _ in names]
    return [
        frozen_in(name, array, [each for each in both if each is not None])
        for (name, array), both in zip(run.params.items(), zip(given, of_group, strict=True), strict=True)
    ]


def frozen_in(name: str, array: Array, masks: list[Any]) -> Array | None:
    """Return where masks freeze a parameter; None without any. TypeError or ValueError for one that does not fit."""
    if not masks:
        return None
    moves = np.ones(array.shape, bool)
    for mask in masks:
        if is_masked(mask):
            raise TypeError(f"mask of parameter {name!r}: expected an array of bool, got a masked one; pass its data")
        if getattr(mask, "dtype", None) != np.bool_:
            raise TypeError(
                f"mask of parameter {name!r}: expected an array of bool, where True means update, got "
                f"{getattr(mask, 'dtype', type(mask).__name__)}"
            )
        try:
            moves &= np.broadcast_to(mask, array.shape)
        except ValueError:
            raise ValueError(
                f"mask of parameter {name!r}: expected a shape that broadcasts to {array.shape}, got {np.shape(mask)}"
            ) from None
    return np.logical_not(moves, out=moves)
