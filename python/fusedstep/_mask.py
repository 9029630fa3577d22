"""Masks: the elements of a parameter where one is False are frozen, so that a step leaves them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._tree import is_masked

Array = NDArray[Any]


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


def without_frozen(grad: Any, frozen: Array | None) -> Any:
    """Return a gradient, or the values and the index of one of rows: where elements are frozen, a copy with 0 there."""
    if grad is None or frozen is None:
        return grad
    if isinstance(grad, tuple):
        values, index = grad
        return without_frozen(values, np.take(frozen, index.astype(np.int64), axis=0, mode="clip")), index
    copied = np.array(grad, order="K")
    copied[frozen] = 0
    return copied
