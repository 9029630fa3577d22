"""Adagrad with dual averaging: its function and its class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer
from .typing import Float, Gradient, Index, Parameter, Params, PerElement, Rounding, StateDtype, Verify


@fused("adagrad_da")
def adagrad_da_(
    param: Parameter[Float], grad: Gradient[Float], grad_sum: NDArray[Float], square_sum: NDArray[Float], *,
    lr: float, step: int, l1: float = 0.0, l2: float = 0.0,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    rows: Index | None = None, key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by dual averaging: from the sum of all gradients, not from its last value.

    ::

        G <- G + g,   s <- s + g^2
        p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))

    Where ``s`` is 0 the element does not move.

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
        With ``rows``, one row for each of them.
    grad_sum : ndarray
        ``G``, the sum of gradients, shape and dtype of ``param``; written. Starts at 0.
    square_sum : ndarray
        ``s``, the sum of squared gradients, shape and dtype of ``param``; written. TensorFlow starts at 0.1.
    step : int
        ``t``, the number of this update, counted from 1.
    lr, l1, l2, weight_decay, decoupled_weight_decay, maximize
        As in ``AdagradDA``.
    rows, key, param_low
        As in ``rmsprop_``.

    Raises
    ------
    IndexError, TypeError, ValueError
        A row, an array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    AdagradDA : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, grad_sum, square_sum = np.ones(2), np.zeros(2), np.full(2, 0.1)
    >>> fs.adagrad_da_(w, np.array([0.5, -0.5]), grad_sum, square_sum, lr=0.1, step=1)
    >>> w.round(4)
    array([-0.0845,  0.0845])
    """


class AdagradDA(Optimizer, rule="adagrad_da"):
    """Set parameters by dual averaging: from the sum of all gradients, not from their last values.

    ::

        G <- G + g,   s <- s + g^2
        p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        Step size, ``lr >= 0``; an array has one for each element, see ``Optimizer``.
    l1 : float
        L1 penalty, ``l1 >= 0``: elements with a small average gradient become 0.
    l2 : float
        L2 penalty, ``l2 >= 0``.
    initial_accumulator_value : float
        Where ``s`` starts, ``>= 0``. The default is TensorFlow's.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    adagrad_da_ : The function for one array, with a state that you own.
    Adagrad : The sum of all squared gradients, for rare features.
    ProximalAdagrad : Adagrad with L1 and L2 penalties.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(2)
    >>> opt = fs.AdagradDA(w, lr=0.1)
    >>> opt.step(np.array([0.5, -0.5])).step
    1
    >>> w.round(4)
    array([-0.0845,  0.0845])
    """

    l1: float
    l2: float

    def __init__(
        self, params: Params, lr: PerElement = 1e-2, *,
        l1: float = 0.0, l2: float = 0.0, initial_accumulator_value: float = 0.1,
        weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
        state_dtype: StateDtype = None, rounding: Rounding | None = None, seed: int = 0, master: bool = False,
        verify: Verify = "never",
    ) -> None:  # fmt: skip
        self._begin(locals())
