"""The updates as functions: one array of each kind, updated in place by the fused kernel.

Each ``def`` below is the signature and the documentation of a function of the extension, which takes its place: a
Python frame would cost more than the update of a small array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from . import _core

__all__ = ["adagrad_", "adagrad_da_", "adagrad_norm_", "proximal_adagrad_", "rmsprop_", "rprop_"]

F = TypeVar("F", bound=Callable[..., None])
Floats = NDArray[np.float32] | NDArray[np.float64]


def _fused(rule: str) -> Callable[[F], F]:
    """Replace a signature by the extension's function for ``rule``, with the same name, arguments and documentation."""

    def make(signature_of: F) -> F:
        parameters: list[tuple[str, Any, bool]] = []
        positional = 0
        shown: list[str] = ["$module"]
        for parameter in inspect.signature(signature_of).parameters.values():
            required = parameter.default is inspect.Parameter.empty
            parameters.append((parameter.name, None if required else parameter.default, required))
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                if positional == len(parameters) - 1:
                    shown.append("*")
            else:
                positional += 1
            shown.append(parameter.name if required else f"{parameter.name}={parameter.default!r}")
        name = signature_of.__name__
        documentation = f"{name}({', '.join(shown)})\n--\n\n{inspect.cleandoc(signature_of.__doc__ or '')}"
        return cast(F, _core.make_function(rule, name, documentation, parameters, positional))

    return make


@_fused("rmsprop")
def rmsprop_(
    param: Floats,
    grad: Floats,
    square_avg: Floats,
    *,
    lr: float,
    alpha: float = 0.9,
    eps: float = 1e-8,
    eps_inside_sqrt: bool = False,
    grad_avg: Floats | None = None,
    momentum_buffer: Floats | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    momentum_form: str = "torch",
    step: int | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by RMSprop.

    ::

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)                             plain
        p <- p - lr g / sqrt(v + eps)                               eps_inside_sqrt
        m <- alpha m + (1 - alpha) g,   v - m^2 in place of v       centred: grad_avg given
        b <- mu b + g / d,              p <- p - lr b               momentum_form "torch"
        b <- mu b + lr g / d,           p <- p - b                  momentum_form "tf"
        v / (1 - alpha^t), m / (1 - alpha^t)                        bias correction: step given

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    square_avg : ndarray
        ``v``, the moving average of squared gradients, shape and dtype of ``param``; written. 0 at the start.
    lr : float
        Step size, ``lr >= 0``.
    alpha : float
        Decay of the averages, ``0 <= alpha <= 1``. PyTorch's default is 0.99.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Whether ``eps`` stands under the root (Keras, TensorFlow) or outside (PyTorch).
    grad_avg : ndarray, optional
        ``m``, the moving average of gradients; given, the update is centred (Graves 2013). Written.
    momentum_buffer : ndarray, optional
        ``b``, needed where ``momentum > 0``. Written.
    momentum : float
        ``mu``, ``0 <= momentum <= 1``.
    nesterov : bool
        Whether the step looks ahead by Nesterov's rule; needs ``momentum > 0``.
    momentum_form : {"torch", "tf"}
        Whether ``lr`` stands outside the buffer or in it.
    step : int, optional
        ``t``, updates so far with this one, from 1; given, the averages are corrected for their start at 0.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Hinton, Neural Networks for Machine Learning, lecture 6e. Graves 2013, arXiv:1308.0850.
    """


@_fused("adagrad")
def adagrad_(
    param: Floats,
    grad: Floats,
    square_sum: Floats,
    *,
    lr: float,
    eps: float = 1e-10,
    eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by Adagrad.

    ::

        s <- s + g^2
        p <- p - lr g / (sqrt(s) + eps)             or  / sqrt(s + eps) with eps_inside_sqrt

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    square_sum : ndarray
        ``s``, the sum of squared gradients, shape and dtype of ``param``; written. Keras and TensorFlow start at 0.1.
    lr : float
        Step size, ``lr >= 0``.
    eps : float
        Added to the root, or under it, ``eps >= 0``.
    eps_inside_sqrt : bool
        Whether ``eps`` stands under the root (Keras, optax) or outside (PyTorch).
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.
    """


@_fused("proximal_adagrad")
def proximal_adagrad_(
    param: Floats,
    grad: Floats,
    square_sum: Floats,
    *,
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by proximal Adagrad: a step, then the closest point under L1 and L2 penalties.

    ::

        s <- s + g^2,   a = lr / sqrt(s),   q = p - a g
        p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a)

    Where ``s`` is 0 the element does not move.

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    square_sum : ndarray
        ``s``, the sum of squared gradients, shape and dtype of ``param``; written. TensorFlow starts at 0.1.
    lr : float
        Step size, ``lr >= 0``.
    l1 : float
        L1 penalty, ``l1 >= 0``: small elements become 0.
    l2 : float
        L2 penalty, ``l2 >= 0``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Duchi & Singer 2009, JMLR 10:2899 (FOBOS).
    """


@_fused("adagrad_da")
def adagrad_da_(
    param: Floats,
    grad: Floats,
    grad_sum: Floats,
    square_sum: Floats,
    *,
    lr: float,
    step: int,
    l1: float = 0.0,
    l2: float = 0.0,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by Adagrad with dual averaging: from the sum of all gradients, not from where it is.

    ::

        G <- G + g,   s <- s + g^2
        p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s))

    Where ``s`` is 0 the element does not move.

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    grad_sum : ndarray
        ``G``, the sum of gradients, shape and dtype of ``param``; written. 0 at the start.
    square_sum : ndarray
        ``s``, the sum of squared gradients, shape and dtype of ``param``; written. TensorFlow starts at 0.1.
    lr : float
        Step size, ``lr >= 0``.
    step : int
        ``t``, updates so far with this one, from 1.
    l1 : float
        L1 penalty, ``l1 >= 0``: elements with a small average gradient become 0.
    l2 : float
        L2 penalty, ``l2 >= 0``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Duchi, Hazan & Singer 2011, JMLR 12:2121.
    """


@_fused("adagrad_norm")
def adagrad_norm_(
    param: Floats,
    grad: Floats,
    square_sum: Floats,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by Adagrad-Norm: one step size for the whole array.

    ::

        s <- s + ||g||^2
        p <- p - lr g / (sqrt(s) + eps)

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    square_sum : ndarray of no dimensions
        ``s``, the sum of squared norms, dtype of ``param``; written. 0 at the start.
    lr : float
        Step size, ``lr >= 0``.
    eps : float
        Added to the root, ``eps >= 0``.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Ward, Wu & Bottou 2019, ICML.
    """


@_fused("rprop")
def rprop_(
    param: Floats,
    grad: Floats,
    step_size: Floats,
    prev_sign: NDArray[np.int8],
    *,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    variant: str = "rprop-",
    loss_increased: bool = False,
    lr: float | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> None:
    """Update a parameter in place by Rprop: steps of a size of their own, by the sign of the gradient alone.

    ::

        D <- clip(D eta+, lo, hi)  where the sign of g is that of the step before
        D <- clip(D eta-, lo, hi)  where it flipped
        p <- p - sign(g) D

    Where the sign flipped, the variants differ: ``rprop-`` moves all the same; ``rprop+`` takes the last move back;
    ``irprop-`` stays; ``irprop-move`` moves; ``irprop+`` takes the last move back if the loss rose and stays if not.
    All but ``rprop-`` then forget the sign, so that the next step keeps its size.

    ``grprop-slr`` and ``grprop-sag`` are ``rprop-``, but the element ``k`` with the smallest step size, or the smallest
    gradient, takes the step that makes the whole a direction of descent:
    ``D_k <- clip(-(sum of D_i g_i, i != k, + 1e-6) / g_k, lo, hi)``.

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape and layout; written.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    step_size : ndarray
        ``D``, shape and dtype of ``param``; written. The first step size at the start.
    prev_sign : ndarray of int8
        Sign of the gradient before, shape of ``param``; written. 0 at the start. Of other numbers the sign counts.
    etas : pair of float
        ``(eta-, eta+)``, ``0 < eta- < 1 < eta+``.
    step_sizes : pair of float
        ``(lo, hi)``, ``0 <= lo <= hi``.
    variant : {"rprop-", "rprop+", "irprop-", "irprop-move", "irprop+", "grprop-slr", "grprop-sag"}
        ``irprop-`` is PyTorch's, ``rprop+``, ``grprop-slr`` and ``grprop-sag`` are those of R's neuralnet.
    loss_increased : bool
        Whether the loss rose since the step before; asked by ``irprop+`` alone.
    lr : float, optional
        Needed by decoupled weight decay alone.
    weight_decay : float
        L2 penalty, ``weight_decay >= 0``: ``g + wd p`` in place of ``g``.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead: ``p <- (1 - lr wd) p`` before the rule.
    maximize : bool
        Whether to ascend: ``-g`` in place of ``g``.

    Raises
    ------
    TypeError
        Not an array, wrong dtype or byte order, a hyperparameter of the wrong type.
    ValueError
        Shape, read-only, misaligned or overlapping arrays, a hyperparameter out of range. Nothing was written.

    References
    ----------
    Riedmiller & Braun 1993. Igel & Hüsken 2000, 2003. Anastasiadis, Magoulas & Vrahatis 2005.
    """
