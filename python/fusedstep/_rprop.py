"""Rprop: its function, its class, and the types of its options."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ._functional import fused
from ._optimizer import Optimizer, Options
from .typing import Float, Gradient, Parameter, Params, PerElement, Rounding, StateDtype, Variant, Verify


class RpropOptions(Options, total=False):
    """The hyperparameters of ``Rprop``, except ``lr``."""

    etas: tuple[float, float]
    step_sizes: tuple[PerElement, PerElement]
    variant: Variant


@fused("rprop")
def rprop_(
    param: Parameter[Float], grad: Gradient[Float], step_size: NDArray[Float], prev_sign: NDArray[np.int8], *,
    etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float, float] = (1e-6, 50.0), variant: Variant = "rprop-",
    loss_increased: bool = False, lr: float | None = None,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    key: int | None = None, param_low: NDArray[np.uint16] | None = None,
) -> None:  # fmt: skip
    """Update a parameter in place by Rprop: each element moves by its own step size and the sign of its gradient.

    ::

        D <- clip(D eta+, lo, hi)  where the sign of g is that of the step before
        D <- clip(D eta-, lo, hi)  where it flipped
        p <- p - sign(g) D

    Where the sign flipped, the variants differ: ``rprop-`` still moves; ``rprop+`` takes the last move back;
    ``irprop-`` stays; ``irprop-move`` moves; ``irprop+`` takes the last move back if the loss rose and stays if not.
    All except ``rprop-`` then forget the sign, so that the next step keeps its size.

    ``grprop-slr`` and ``grprop-sag`` are ``rprop-``, but the element ``k`` with the smallest step size, or the smallest
    gradient, takes the step that makes the whole a direction of descent:
    ``D_k <- clip(-(sum of D_i g_i, i != k, + 1e-6) / g_k, lo, hi)``.

    Parameters
    ----------
    param : ndarray of float32, float64, bfloat16 or float16
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape of ``param``, a floating-point type that its computation holds exactly; only read.
    step_size : ndarray
        ``D``, shape and dtype of ``param``; written. Starts at the first step size.
    prev_sign : ndarray of int8
        Sign of the gradient before, shape of ``param``; written. Starts at 0. Only the sign of its numbers counts.
    variant : {"rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"}
        ``irprop-`` is PyTorch's. ``rprop+``, ``grprop-slr`` and ``grprop-sag`` are those of R's neuralnet.
    loss_increased : bool
        Whether the loss rose since the step before. Only ``irprop+`` asks for it.
    lr : float, optional
        Only needed by decoupled weight decay. Where it is 0, there is no lower limit, except for ``grprop``.
    etas, step_sizes, weight_decay, decoupled_weight_decay, maximize
        As in ``Rprop``.
    key, param_low
        As in ``rmsprop_``.

    Raises
    ------
    TypeError, ValueError
        An array or a hyperparameter that does not fit, see ``Optimizer``. Nothing was written.

    See Also
    --------
    Rprop : The optimizer of many parameters, which makes the states.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w, step_size, prev_sign = np.ones(2), np.full(2, 0.1), np.zeros(2, np.int8)
    >>> fs.rprop_(w, np.array([3.0, -4.0]), step_size, prev_sign)
    >>> w
    array([0.9, 1.1])
    """


class StepSizeStats(NamedTuple):
    """The smallest, the largest and the mean step size of a parameter."""

    min: float
    max: float
    mean: float


class Rprop(Optimizer, rule="rprop"):
    """Move each element by a step size of its own, by the sign of its gradient only: for full batches.

    ::

        D <- clip(D eta+, lo, hi)  where the sign of g is that of the step before
        D <- clip(D eta-, lo, hi)  where it flipped
        p <- p - sign(g) D

    Parameters
    ----------
    params
        What to update, see ``Optimizer``.
    lr : float or ndarray
        First step size, ``lr >= 0``; an array has that of each element, see ``Optimizer``. Where it is 0, the step
        size stays 0 (except for ``grprop``): there is no lower limit. Decoupled weight decay also uses ``lr``. Without
        that, a later change would be without effect and is refused: change ``opt.state[name]["step_size"]`` instead.
    etas : pair of float
        ``(eta-, eta+)``, ``0 < eta- < 1 < eta+``.
    step_sizes : pair of float or ndarray
        ``(lo, hi)``, ``0 <= lo <= hi``; an array has those of each element.
    variant : {"rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"}
        What happens where the sign flipped, see ``rprop_``. PyTorch's is ``irprop-``. ``irprop+`` needs
        ``step(grads, loss=...)``.
    weight_decay, decoupled_weight_decay, maximize, state_dtype, rounding, seed, master, verify
        What all rules have, see ``Optimizer``.

    See Also
    --------
    rprop_ : The function for one array, with a state that you own.
    RMSprop : A moving average of squared gradients, for mini-batches.

    References
    ----------
    Riedmiller & Braun 1993. Igel & Hüsken 2000, 2003.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> w = np.ones(2)
    >>> opt = fs.Rprop(w, lr=0.1)
    >>> opt.step(np.array([3.0, -4.0])).step
    1
    >>> w
    array([0.9, 1.1])
    """

    etas: tuple[float, float]
    step_sizes: tuple[PerElement, PerElement]
    variant: Variant

    def __init__(
        self, params: Params, lr: PerElement = 1e-2, *,
        etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[PerElement, PerElement] = (1e-6, 50.0),
        variant: Variant = "rprop-",
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
            verify: Verify = "never", **overrides: Unpack[RpropOptions],
        ) -> Self: ...  # fmt: skip

    def step_size_stats(self) -> dict[str, StepSizeStats]:
        """Return the smallest, largest and mean step size of each parameter: training is done when all are small.

        The step sizes of an empty parameter are NaN.

        Examples
        --------
        >>> import numpy as np, fusedstep as fs
        >>> fs.Rprop(np.zeros(3), lr=0.25).step_size_stats()["0"].mean
        0.25
        """
        return {name: _step_size_stats(state["step_size"]) for name, state in self.state.items()}


def _step_size_stats(D: NDArray[Any]) -> StepSizeStats:
    if D.size == 0:
        return StepSizeStats(math.nan, math.nan, math.nan)
    return StepSizeStats(float(D.min()), float(D.max()), float(D.mean(dtype=np.float64)))
