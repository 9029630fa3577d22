"""The user's own data beside a checkpoint: JSON, and arrays that are taken out of it.

An array leaves null in its place and is stored under the JSON pointer (RFC 6901) of that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._tree import is_masked

Array = NDArray[Any]

_DTYPES = tuple(map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")))
_DEEPEST = 100
_MOST_BITS = 10_000
"""Of an integer: Python reads none of more than 4,300 digits."""


def packed(extra: Any) -> tuple[Any, dict[str, Array]]:
    """Return ``extra`` as JSON-able values, and its arrays by pointer; TypeError for anything else."""
    arrays: dict[str, Array] = {}
    return _pack(extra, "", "extra", arrays, 0), arrays


def _pack(value: Any, pointer: str, where: str, arrays: dict[str, Array], depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"{where[:80]}...: nested more than {_DEEPEST} deep, or inside itself")
    if isinstance(value, np.ndarray):
        if is_masked(value):
            raise TypeError(f"{where}: expected an array without a mask, got {type(value).__name__}")
        if value.dtype not in _DTYPES:
            raise TypeError(f"{where}: expected an array of bool, integers or float16 to float64, got {value.dtype}")
        arrays[pointer] = value
        return None
    if isinstance(value, dict):
        packed = {}
        for key, child in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: expected keys that are strings, got {key!r} ({type(key).__name__})")
            escaped = key.replace("~", "~0").replace("/", "~1")
            packed[key] = _pack(child, f"{pointer}/{escaped}", f"{where}[{key!r}]", arrays, depth + 1)
        return packed
    if isinstance(value, list | tuple):
        return [_pack(child, f"{pointer}/{i}", f"{where}[{i}]", arrays, depth + 1) for i, child in enumerate(value)]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(f"{where}: an integer of more than {_MOST_BITS} bits")
    if value is None or isinstance(value, str | int | float):
        return value
    hint = "; pass .item() of it" if isinstance(value, np.generic) else ""
    raise TypeError(
        f"{where}: expected None, a bool, int, float or str, a NumPy array, or dicts and lists of these, "
        f"got {type(value).__name__}{hint}"
    )


def unpacked(value: Any, arrays: Mapping[str, Array]) -> Any:
    """Invert ``packed``; ValueError if an array is left over."""
    root = [value]
    for pointer, array in arrays.items():
        at: Any = root
        key: Any = 0
        for part in pointer.split("/")[1:] if pointer else ():
            at = at[key]
            key = int(part) if isinstance(at, list) else part.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, dict | list) or at[key] is not None:
            raise ValueError(f"no place for the array {pointer!r}")
        at[key] = array
    return root[0]
