"""RMSprop: its function, its class, and the types of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer, Options
from .typing import Float, Gradient, Index, MomentumForm, Parameter, Params, PerElement, Rounding, StateDtype, Verify


class RMSpropOptions(Options, total=False):
    """The hyperparameters of ``RMSprop``, except ``lr``."""

    alpha: float
    eps: float
    eps_inside_sqrt: bool
    centered: bool
    momentum: float
    nesterov: bool
    momentum_form: MomentumForm
    bias_correction: bool
    initial_square_avg: float


@fused("rmsprop")
def rmsprop_(
    param: Parameter[Float], grad: Gradient[Float], square_avg: NDArray[Float], *,
    lr: float, alpha: float = 0.9, eps: float = 1e-8, eps_inside_sqrt: bool = False,
    grad_avg: NDArray[Float] | None = None, momentum_buffer: NDArray[Float] | None = None, momentum: float = 0.0,
    nesterov: bool = False, momentum_form: MomentumForm = "torch", step: int | None = None,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    rows: Index | None = None, key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by RMSprop.

    ::

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)                             plain
        p <- p - lr g / sqrt(v + eps)                               eps_inside_sqrt
        e <- g - m,  v <- alpha (v + (1 - alpha) e^2),  m <- m + (1 - alpha) e      centred: grad_avg given
        b <- mu b + g / d,              p <- p - lr b               momentum_form "torch"
        b <- mu b + lr g / d,           p <- p - b                  momentum_form "tf"
        v / (1 - alpha^t)                                           bias correction: step given

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
        With ``rows``, one row for each of them.
    square_avg : ndarray
        ``v``, the moving average of squared gradients, shape and dtype of ``param``; written. Starts at 0. If
        ``grad_avg`` is given, it holds the variance instead.
    grad_avg : ndarray, optional
        ``m``, the moving average of gradients; written. If given, the update is centred (Graves 2013).
    momentum_buffer : ndarray, optional
        ``b``, needed if ``momentum > 0``; written.
    step : int, optional
        ``t``, the number of this update, counted from 1. If given, the averages are corrected for their start at 0.
    lr, alpha, eps, eps_inside_sqrt, momentum, nesterov, momentum_form, weight_decay, decoupled_weight_decay, maximize
        As in ``RMSprop``.
    rows : 1-D ndarray of int32, int64, uint32 or uint64, optional
        The rows of ``param`` whose gradients these are; only they are updated, see ``Rows``.
    key : int, optional
        The key of the noise that rounds 16-bit arrays stochastically, see ``noise_key``. None rounds to nearest. Float
        states have the dtype of ``param`` (float32 if that has 16 bits). They may be bfloat16, unless ``param`` is
        float64.
    param_low : ndarray of uint16, optional
        The low halves of a bfloat16 parameter; written. Together the two are a float32 parameter.

    Raises
    ------
    IndexError, TypeError, ValueError
        A row, an array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    RMSprop : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, square_avg = np.ones(3), np.zeros(3)
    >>> fs.rmsprop_(w, np.full(3, 0.5), square_avg, lr=0.01)
    >>> w.round(4)
    array([0.9684, 0.9684, 0.9684])
    """


class RMSprop(Optimizer, rule="rmsprop"):
    """Divide each step by a moving average of the gradient's magnitude.

    ::

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        Step size, ``lr >= 0``; an array has one for each element, see ``Optimizer``.
    alpha : float
        Decay of the average, ``0 <= alpha <= 1``. PyTorch's default is 0.99.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Add ``eps`` under the root (Keras, TensorFlow) instead of to the root (PyTorch).
    centered : bool
        Divide by the standard deviation (Graves 2013). The state is the ``variance`` itself. PyTorch computes it as
        ``v - m^2``, which cancels: a constant gradient ends in NaN there.
    momentum : float
        ``mu``, ``0 <= momentum <= 1``.
    nesterov : bool
        Look ahead by Nesterov's rule; needs ``momentum > 0``.
    momentum_form : {"torch", "tf"}
        ``b <- mu b + g / d, p <- p - lr b`` or ``b <- mu b + lr g / d, p <- p - b``.
    bias_correction : bool
        Divide the averages by ``1 - alpha^t``, to correct for their start at 0. Centred, the variance is 0 at the first
        step, which is then ``lr g / eps`` long.
    initial_square_avg : float
        Where ``v`` starts, ``>= 0``. TensorFlow 1 starts at 1.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    rmsprop_ : The function for one array, with a state that you own.
    Adagrad : The sum of all squared gradients, for rare features.

    References
    ----------
    Hinton, Neural Networks for Machine Learning, lecture 6e. Graves 2013, arXiv:1308.0850.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(3)
    >>> opt = fs.RMSprop(w, lr=0.01)
    >>> opt.step(2 * w).step
    1
    >>> w.round(4)
    array([0.9684, 0.9684, 0.9684])
    """

    alpha: float
    eps: float
    eps_inside_sqrt: bool
    centered: bool
    momentum: float
    nesterov: bool
    momentum_form: MomentumForm
    bias_correction: bool

    def __init__(
        self, params: Params, lr: PerElement = 1e-2, *,
        alpha: float = 0.9, eps: float = 1e-8, eps_inside_sqrt: bool = False, centered: bool = False,
        momentum: float = 0.0, nesterov: bool = False, momentum_form: MomentumForm = "torch",
        bias_correction: bool = False, initial_square_avg: float = 0.0,
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
            verify: Verify = "never", **overrides: Unpack[RMSpropOptions],
        ) -> Self: ...  # fmt: skip
