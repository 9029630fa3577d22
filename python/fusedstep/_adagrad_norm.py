"""Adagrad-Norm: its function, its class, and the types of its options."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer, Options
from .typing import Float, Gradient, Index, Parameter, Params, Per, PerElement, Rounding, StateDtype, Verify


class AdagradNormOptions(Options, total=False):
    """The hyperparameters of ``AdagradNorm``, except ``lr``."""

    eps: float
    per: Per
    mean: bool
    initial_accumulator_value: float


@fused("adagrad_norm")
def adagrad_norm_(
    param: Parameter[Float], grad: Gradient[Float], square_sum: NDArray[Float], *,
    lr: float, eps: float = 1e-10, per: Per = "array", mean: bool = False,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    rows: Index | None = None, key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by Adagrad-Norm: one step size for the whole array.

    ::

        s <- s + ||g||^2
        p <- p - lr g / (sqrt(s) + eps)

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
        With ``rows``, one row for each of them.
    square_sum : 0-d ndarray, or of shape ``(len(param),)`` with ``per="row"``
        ``s``, the sum of squared norms, dtype of ``param``; written. Starts at 0.
    lr, eps, per, mean, weight_decay, decoupled_weight_decay, maximize
        As in ``AdagradNorm``.
    rows, key, param_low
        As in ``rmsprop_``.

    Raises
    ------
    IndexError, TypeError, ValueError
        A row, an array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    AdagradNorm : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, square_sum = np.ones(2), np.array(0.0)
    >>> fs.adagrad_norm_(w, np.array([3.0, 4.0]), square_sum, lr=0.1)
    >>> w
    array([0.94, 0.92])
    """


class AdagradNorm(Optimizer, rule="adagrad_norm"):
    """Divide the step of each array by the root of the sum of all its squared gradient norms.

    ::

        s <- s + ||g||^2
        p <- p - lr g / (sqrt(s) + eps)

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        Step size, ``lr >= 0``; an array has one for each element, see ``Optimizer``.
    eps : float
        Added to the root, ``eps >= 0``.
    per : {"array", "row"}
        One ``s`` for the whole array, or one for each row ``p[i]``. The second needs 4 or 8 bytes a row, where Adagrad
        needs them for each element. Not for arrays of 16 bits. Fixed when the optimizer is made.
    mean : bool
        With ``per="row"``, the mean of the row's squares instead of their sum, as in the row-wise Adagrad of FBGEMM and
        TorchRec. Fixed when the optimizer is made.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. The paper's ``b_0^2``.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    adagrad_norm_ : The function for one array, with a state that you own.
    Adagrad : The sum of all squared gradients, for rare features.

    References
    ----------
    Ward, Wu & Bottou 2019, ICML.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(2)
    >>> opt = fs.AdagradNorm(w, lr=0.1)
    >>> opt.step(np.array([3.0, 4.0])).step
    1
    >>> w
    array([0.94, 0.92])
    """

    eps: float
    per: Per
    mean: bool

    def __init__(
        self, params: Params, lr: PerElement = 1e-2, *,
        eps: float = 1e-10, per: Per = "array", mean: bool = False, initial_accumulator_value: float = 0.0,
        weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
        state_dtype: StateDtype = None, rounding: Rounding | None = None, seed: int = 0, master: bool = False,
        verify: Verify = "never",
    ) -> None:  # fmt: skip
        self._begin(locals())
