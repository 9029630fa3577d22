"""What a group says about how its arrays are stored, and the seed of stochastic rounding."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from . import _core
from .typing import Rounding

DEFAULTS: dict[str, Any] = {"state_dtype": None, "rounding": None, "master": False}


def bfloat16() -> np.dtype[Any]:
    """Return the dtype of bfloat16; ImportError without the package that has it."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 needs a package: pip install ml_dtypes", name="ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``state_dtype``, ``rounding`` and ``master`` as arguments of the core's ``add_group``."""
    rounding, master = options["rounding"], options["master"]
    if rounding is not None and rounding not in get_args(Rounding):
        raise ValueError(f"rounding: expected None, 'nearest' or 'stochastic', got {rounding!r}")
    if not isinstance(master, bool):
        raise TypeError(f"master: expected True or False, got {master!r} ({type(master).__name__})")
    state_dtype = _state_dtype(options["state_dtype"])
    if master:
        bfloat16()
    return {"state_dtype": state_dtype, "nearest": rounding == "nearest", "master": master}


def _state_dtype(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value == "bfloat16":
        return bfloat16().name
    try:
        dtype = np.dtype(value)
    except TypeError as error:
        raise TypeError(f"state_dtype: expected None or bfloat16 (its name or its dtype), got {value!r}") from error
    if "ml_dtypes" in sys.modules and dtype == bfloat16():
        return str(dtype.name)
    hint = "; the squares of small gradients are 0 in float16" if dtype == np.float16 else ""
    raise ValueError(f"state_dtype: expected None or bfloat16 (its name or its dtype), got {dtype}{hint}")


def checked_seed(value: Any) -> int:
    """Return a seed as an int; TypeError or ValueError if it is none."""
    return whole("seed", value, 0, 2**64 - 1, "2^64 - 1")


def whole(name: str, value: Any, least: int, most: int, shown: str = "") -> int:
    """Return a whole number in a range as an int; TypeError or ValueError if it is none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: expected a whole number, got {value!r} ({type(value).__name__})")
    if not least <= number <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {shown or most}, got {number}")
    return number


def noise_key(seed: int, step: int, name: str) -> int:
    """Return the key of the noise that rounds a parameter and its states stochastically in one update.

    An optimizer uses this key by itself. With it, the functions do the same: ``fs.rmsprop_(..., key=key)``.

    Parameters
    ----------
    seed : int
        The optimizer's, ``0 <= seed < 2**64``.
    step : int
        The number of this update of the parameter, counted from 1.
    name : str
        The parameter's name, as in ``opt.state``. A single array is ``"0"``.

    Returns
    -------
    int
        ``0 <= key < 2**64``. ``reference.noise(key, i)`` has the random bits of element ``i``.

    Raises
    ------
    TypeError, ValueError
        Not a whole number, or out of range; a name that is no str.

    Examples
    --------
    >>> import fusedstep as fs
    >>> fs.noise_key(0, 1, "w") == fs.reference.noise_key(0, 1, "w")
    True
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r} ({type(name).__name__})")
    return _core.noise_key(checked_seed(seed), whole("step", step, 1, 2**63 - 1, "2^63 - 1"), name)
