"""The surfaces that the optimizers descend: functions of two coordinates, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BEALE", "BEALE_MINIMUM", "SADDLE", "Surface", "quadratic"]

Array = NDArray[Any]


class Surface(NamedTuple):
    """A function of x and y, its gradient at a point, and where it is least, if anywhere."""

    value: Callable[[Any, Any], Any]
    gradient: Callable[[Array], Array]
    minimum: tuple[float, float] | None = None


def _saddle(x: Any, y: Any) -> Any:
    return x**2 - y**2


def _saddle_gradient(point: Array) -> Array:
    x, y = point
    return np.array([2 * x, -2 * y])


SADDLE = Surface(_saddle, _saddle_gradient)
"""``x^2 - y^2``: level at (0, 0), down along y on both sides."""


def _beale(x: Any, y: Any) -> Any:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _beale_gradient(point: Array) -> Array:
    x, y = point
    r1, r2, r3 = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return 2 * np.array([r1 * (y - 1) + r2 * (y**2 - 1) + r3 * (y**3 - 1), r1 * x + r2 * 2 * x * y + r3 * 3 * x * y**2])


BEALE_MINIMUM = (3.0, 0.5)
BEALE = Surface(_beale, _beale_gradient, BEALE_MINIMUM)
"""A long flat valley between steep walls (Beale 1958, "On an iterative method for finding a local minimum")."""


def quadratic(steep: float, flat: float, degrees: float = 0.0) -> Surface:
    """Return ``(steep x^2 + flat y^2) / 2``, turned: its condition number is ``steep / flat``."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    xx = steep * cos**2 + flat * sin**2
    xy = (steep - flat) * cos * sin
    yy = steep * sin**2 + flat * cos**2

    def value(x: Any, y: Any) -> Any:
        return (xx * x**2 + 2 * xy * x * y + yy * y**2) / 2

    def gradient(point: Array) -> Array:
        x, y = point
        return np.array([xx * x + xy * y, xy * x + yy * y])

    return Surface(value, gradient, (0.0, 0.0))
