"""Adadelta: its function, its class, and the types of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer, Options
from .typing import Float, Gradient, Index, Parameter, Params, PerElement, Rounding, StateDtype, Verify


class AdadeltaOptions(Options, total=False):
    """The hyperparameters of ``Adadelta``, except ``lr``."""

    rho: float
    eps: float


@fused("adadelta")
def adadelta_(
    param: Parameter[Float], grad: Gradient[Float], square_avg: NDArray[Float], acc_delta: NDArray[Float], *,
    lr: float, rho: float = 0.9, eps: float = 1e-6,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    rows: Index | None = None, key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by Adadelta.

    ::

        s <- rho s + (1 - rho) g^2,   d <- sqrt(a + eps) / sqrt(s + eps) g
        a <- rho a + (1 - rho) d^2,   p <- p - lr d

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
        With ``rows``, one row for each of them.
    square_avg : ndarray
        ``s``, the moving average of squared gradients, shape and dtype of ``param``; written. Starts at 0.
    acc_delta : ndarray
        ``a``, the moving average of squared moves, shape and dtype of ``param``; written. Starts at 0.
    lr, rho, eps, weight_decay, decoupled_weight_decay, maximize
        As in ``Adadelta``.
    rows, key, param_low
        As in ``rmsprop_``.

    Raises
    ------
    IndexError, TypeError, ValueError
        A row, an array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    Adadelta : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, square_avg, acc_delta = np.ones(3), np.zeros(3), np.zeros(3)
    >>> fs.adadelta_(w, np.full(3, 0.5), square_avg, acc_delta, lr=1.0)
    >>> w.round(4)
    array([0.9968, 0.9968, 0.9968])
    """


class Adadelta(Optimizer, rule="adadelta"):
    """Scale each step by the magnitude of earlier steps over that of the gradient: no step size needs tuning.

    ::

        s <- rho s + (1 - rho) g^2,   d <- sqrt(a + eps) / sqrt(s + eps) g
        a <- rho a + (1 - rho) d^2,   p <- p - lr d

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        Factor of the step, ``lr >= 0``; the paper's formula is 1. An array has one for each element, see ``Optimizer``.
    rho : float
        Decay of both averages, ``0 <= rho <= 1``.
    eps : float
        Added under both roots, ``eps >= 0``. The first steps are about ``sqrt(eps)`` long.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    adadelta_ : The function for one array, with a state that you own.
    RMSprop : A moving average of squared gradients, for mini-batches.

    References
    ----------
    Zeiler 2012, arXiv:1212.5701.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(3)
    >>> opt = fs.Adadelta(w)
    >>> opt.step(2 * w).step
    1
    >>> w.round(4)
    array([0.9968, 0.9968, 0.9968])
    """

    rho: float
    eps: float

    def __init__(
        self, params: Params, lr: PerElement = 1.0, *,
        rho: float = 0.9, eps: float = 1e-6,
        weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
        state_dtype: StateDtype = None, rounding: Rounding | None = None, seed: int = 0, master: bool = False,
        verify: Verify = "never",
    ) -> None:  # fmt: skip
        self._begin(locals())

    if TYPE_CHECKING:

        @classmethod
        def like(  # type: ignore[override]
            cls, name: str, params: Params, lr: PerElement | None = None, *,
            state_dtype: StateDtype = None, rounding: Rounding | None = None, seed: int = 0, master: bool = False,
            verify: Verify = "never", **overrides: Unpack[AdadeltaOptions],
        ) -> Self: ...  # fmt: skip
