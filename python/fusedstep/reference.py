"""The rules in plain NumPy: what every kernel is checked against, bit for bit.

Each function has the name and the arguments of the fused one and updates the same arrays in place. One expression a
line, in the order of operations of the rule's definition; derived constants are computed in double and rounded once to
the arrays' type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["adagrad_", "gradient", "norm", "rmsprop_", "rprop_"]

Array = NDArray[Any]

BLOCK = 1024
LANES = 16


def gradient(
    param: Array,
    grad: Array,
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float | None = None,
    clip_value: float | None = None,
    clip_coef: float = 1.0,
) -> Array:
    """Return the gradient as the rule sees it; decoupled decay shrinks ``param`` in place."""
    T = param.dtype.type
    g = grad
    if grad_scale is not None:
        g = g * T(1.0 / grad_scale)
    if clip_value is not None:
        g = np.where(g > T(clip_value), T(clip_value), np.where(g < -T(clip_value), -T(clip_value), g))
    if clip_coef != 1.0:
        g = g * T(clip_coef)
    if maximize:
        g = -g
    if weight_decay != 0.0 and not decoupled_weight_decay:
        g = g + T(weight_decay) * param
    if weight_decay != 0.0 and decoupled_weight_decay:
        assert lr is not None
        param[...] = param * T(1.0 - lr * weight_decay)
    return g


def rmsprop_(
    param: Array,
    grad: Array,
    square_avg: Array,
    *,
    lr: float,
    alpha: float = 0.9,
    eps: float = 1e-8,
    eps_inside_sqrt: bool = False,
    grad_avg: Array | None = None,
    momentum_buffer: Array | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    momentum_form: str = "torch",
    step: int | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    **prologue: Any,
) -> None:
    """Update in place by RMSprop (Hinton, lecture 6e; centred: Graves 2013)."""
    T = param.dtype.type
    with np.errstate(all="ignore"):
        g = gradient(
            param,
            grad,
            lr=lr,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **prologue,
        )
        v = T(alpha) * square_avg + T(1.0 - alpha) * g * g
        square_avg[...] = v
        r = v
        if step is not None:
            r = r / T(1.0 - alpha**step)
        if grad_avg is not None:
            m = T(alpha) * grad_avg + T(1.0 - alpha) * g
            grad_avg[...] = m
            if step is not None:
                m = m / T(1.0 - alpha**step)
            r = r - m * m
            r = np.where(r < T(0), T(0), r)
        d = np.sqrt(r + T(eps)) if eps_inside_sqrt else np.sqrt(r) + T(eps)
        if momentum == 0.0:
            param[...] = param - T(lr) * g / d
            return
        assert momentum_buffer is not None
        u = g / d if momentum_form == "torch" else T(lr) * g / d
        b = T(momentum) * momentum_buffer + u
        momentum_buffer[...] = b
        move = T(momentum) * b + u if nesterov else b
        param[...] = param - T(lr) * move if momentum_form == "torch" else param - move


def adagrad_(
    param: Array,
    grad: Array,
    square_sum: Array,
    *,
    lr: float,
    eps: float = 1e-10,
    eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    lr_decay: float = 0.0,
    step: int = 1,
    **prologue: Any,
) -> None:
    """Update in place by Adagrad (Duchi, Hazan & Singer 2011)."""
    T = param.dtype.type
    with np.errstate(all="ignore"):
        g = gradient(
            param,
            grad,
            lr=lr,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **prologue,
        )
        s = square_sum + g * g
        square_sum[...] = s
        clr = lr / (1.0 + (step - 1) * lr_decay)
        d = np.sqrt(s + T(eps)) if eps_inside_sqrt else np.sqrt(s) + T(eps)
        param[...] = param - T(clr) * g / d


def rprop_(
    param: Array,
    grad: Array,
    step_size: Array,
    prev_sign: Array,
    *,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    variant: str = "rprop-",
    loss_increased: bool = False,
    lr: float | None = None,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    **prologue: Any,
) -> None:
    """Update in place by Rprop (Riedmiller & Braun 1993) or a variant of it (Igel & Hüsken 2000, 2003)."""
    T = param.dtype.type
    largest = float(np.finfo(param.dtype).max)
    eta_minus, eta_plus = map(T, etas)
    lo, hi = (T(min(limit, largest)) for limit in step_sizes)
    with np.errstate(all="ignore"):
        g = gradient(
            param,
            grad,
            lr=lr,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
            **prologue,
        )
        sg = np.where(g > T(0), T(1), np.where(g < T(0), T(-1), g))
        ps = prev_sign.astype(T)
        same = sg * ps > T(0)
        flip = sg * ps < T(0)
        D = step_size
        Dn = np.where(same, D * eta_plus, np.where(flip, D * eta_minus, D))
        Dn = np.where(Dn < lo, lo, Dn)
        Dn = np.where(Dn > hi, hi, Dn)
        moved = param - sg * Dn
        undone = param + ps * D
        sign = np.where(np.isnan(sg), T(0), sg).astype(np.int8)
        if variant == "rprop-":
            p, ps = moved, sign
        elif variant == "irprop-move":
            p, ps = moved, np.where(flip, np.int8(0), sign)
        elif variant == "rprop+" or (variant == "irprop+" and loss_increased):
            p, ps = np.where(flip, undone, moved), np.where(flip, np.int8(0), sign)
        elif variant in ("irprop-", "irprop+"):
            p, ps = np.where(flip, param, moved), np.where(flip, np.int8(0), sign)
        else:
            raise ValueError(f"variant: {variant!r} is not known")
        param[...] = p
        step_size[...] = Dn
        prev_sign[...] = ps


def norm(grads: Iterable[Array], *, grad_scale: float | None = None, clip_value: float | None = None) -> float:
    """Return the norm of all gradients, in the kernels' order of additions.

    Squares and sums in double; each gradient in the order of its memory, in blocks of 1,024 of 16 lanes; lanes, then
    blocks, are added in pairs of neighbours.
    """
    blocks: list[float] = []
    with np.errstate(all="ignore"):
        for grad in grads:
            g = gradient(grad, grad, grad_scale=grad_scale, clip_value=clip_value)
            x = g.ravel(order="K").astype(np.float64)
            x = np.concatenate([x, np.zeros(-x.size % BLOCK)]).reshape(-1, BLOCK // LANES, LANES)
            sums = np.zeros((x.shape[0], LANES))
            for row in range(BLOCK // LANES):
                sums = sums + x[:, row] * x[:, row]
            while sums.shape[1] > 1:
                half = sums.shape[1] // 2
                sums = sums[:, :half] + sums[:, half:]
            blocks.extend(sums[:, 0].tolist())
    while len(blocks) > 1:
        odd = blocks[-1:] if len(blocks) % 2 else []
        blocks = [a + b for a, b in zip(blocks[::2], blocks[1::2], strict=False)] + odd
    return math.sqrt(blocks[0]) if blocks else 0.0
