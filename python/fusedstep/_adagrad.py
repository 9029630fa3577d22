"""Adagrad: its function, its class, and the types of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer, Options
from .typing import Float, Gradient, Index, Parameter, Params, PerElement, Rounding, StateDtype, Verify


class AdagradOptions(Options, total=False):
    """The hyperparameters of ``Adagrad``, except ``lr``."""

    eps: float
    eps_inside_sqrt: bool
    lr_decay: float
    initial_accumulator_value: float


@fused("adagrad")
def adagrad_(
    param: Parameter[Float], grad: Gradient[Float], square_sum: NDArray[Float], *,
    lr: float, eps: float = 1e-10, eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    rows: Index | None = None, key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by Adagrad.

    ::

        s <- s + g^2
        p <- p - lr g / (sqrt(s) + eps)          lr g / sqrt(s + eps) with eps_inside_sqrt

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
        With ``rows``, one row for each of them.
    square_sum : ndarray
        ``s``, the sum of squared gradients, shape and dtype of ``param``; written. Keras and TensorFlow start at 0.1.
    lr, eps, eps_inside_sqrt, weight_decay, decoupled_weight_decay, maximize
        As in ``Adagrad``.
    rows, key, param_low
        As in ``rmsprop_``.

    Raises
    ------
    IndexError, TypeError, ValueError
        A row, an array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    Adagrad : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, square_sum = np.ones(3), np.zeros(3)
    >>> fs.adagrad_(w, np.full(3, 0.5), square_sum, lr=0.1)
    >>> w.round(4)
    array([0.9, 0.9, 0.9])
    """


class Adagrad(Optimizer, rule="adagrad"):
    """Divide each step by the root of the sum of all squared gradients so far.

    ::

        s <- s + g^2
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        Step size, ``lr >= 0``; an array has one for each element, see ``Optimizer``.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Add ``eps`` under the root (Keras, optax) instead of to the root (PyTorch).
    lr_decay : float
        Decay of the step size with the number of updates of a parameter, ``lr_decay >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. Keras and TensorFlow start at 0.1.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    adagrad_ : The function for one array, with a state that you own.
    RMSprop : A moving average of squared gradients, for mini-batches.
    ProximalAdagrad : Adagrad with L1 and L2 penalties.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(3)
    >>> opt = fs.Adagrad(w, lr=0.1)
    >>> opt.step(2 * w).step
    1
    >>> w.round(4)
    array([0.9, 0.9, 0.9])
    """

    eps: float
    eps_inside_sqrt: bool
    lr_decay: float

    def __init__(
        self, params: Params, lr: PerElement = 1e-2, *,
        eps: float = 1e-10, eps_inside_sqrt: bool = False, lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
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
            verify: Verify = "never", **overrides: Unpack[AdagradOptions],
        ) -> Self: ...  # fmt: skip
