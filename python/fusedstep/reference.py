"""The rules in plain NumPy: what every kernel is checked against, bit for bit.

Each function has the name and the arguments of the fused one, where they are explained, and updates the same arrays in
place. What comes before the rule (scaling, clipping, ascent, decay) is the same for all: the arguments of ``gradient``,
which each function takes, too. One expression per line, in the order of operations of the rule's definition; derived
constants are computed in double and rounded once to the arrays' type. Instead of ``lr``, and of either of Rprop's
``step_sizes``, there may be an array that broadcasts to the parameter: a number for each element. With ``rows``,
``grad`` holds a gradient for each of these rows. Those of the same row are summed, and the rule updates only these
rows. Nothing is checked here.

The rules compute in float32 or float64. ``stored`` lets them update arrays that are stored in 16 bits.

Examples
--------
>>> import numpy as np, fusedstep as fs
>>> w, square_sum = np.ones(3), np.zeros(3)
>>> fs.reference.adagrad_(w, np.full(3, 2.0), square_sum, lr=0.5)
>>> w, square_sum
(array([0.5, 0.5, 0.5]), array([4., 4., 4.]))
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "adadelta_", "adagrad_", "adagrad_da_", "adagrad_norm_", "gradient", "grprop_choice", "join_master", "noise",
    "noise_key", "norm", "proximal_adagrad_", "rmsprop_", "rprop_", "split_master", "stored", "summed", "to_bfloat16",
    "to_float16", "widened",
]  # fmt: skip

Array = NDArray[Any]

BLOCK = 1024
LANES = 16

_Rule = TypeVar("_Rule", bound=Callable[..., None])


def widened(array: Array, T: Any) -> Array:
    """Return the array as one of type ``T``, if it has another floating-point type."""
    return array if array.dtype.kind in "iu" or array.dtype == T else array.astype(T)


def compute_type(param: Array) -> Any:
    """Return the type that a parameter is updated in."""
    return np.float64 if param.dtype == np.float64 else np.float32


def stored(rule: _Rule) -> _Rule:
    """Let a rule update arrays of any storage: widen them, update once, round what was written.

    The rule computes in float64 for a parameter of float64, else in float32. One that declares ``rows`` gets copies of
    these rows, which are then written back, and the sums of their gradients. Two arguments are added: ``key``, for
    stochastic rounding with ``noise(key, i)``, where None rounds to nearest; and ``param_low``, the low halves of a
    bfloat16 parameter. The parameter is rounded by the lower 16 bits of the noise, the first state of floating point by
    the upper ones; a second and a third state by those of ``noise(mix64(key), i)``.
    """
    signature = inspect.signature(rule)

    @functools.wraps(rule)
    def update(*args: Any, key: int | None = None, param_low: Array | None = None, **options: Any) -> None:
        given = signature.bind(*args, **options).arguments
        given |= given.pop("prologue", {})
        rows = given.pop("rows", None)
        given = {name: _number(each) for name, each in given.items()} | {"grad": np.asarray(given["grad"])}
        param, T = given["param"], compute_type(given["param"])
        given |= {name: _of_elements(given[name], param, rows) for name in PER_ELEMENT if name in given}
        arrays = {
            name: each for name, each in given.items() if isinstance(each, np.ndarray) and name not in PER_ELEMENT
        }
        with np.errstate(all="ignore"):
            wide = {name: widened(array, T) for name, array in arrays.items()}
            if param_low is not None:
                wide["param"] = join_master(param, param_low)
            if rows is None:
                rule(**given | wide)
            else:
                distinct, sums = summed(param, wide.pop("grad"), rows)
                parts = {name: array[distinct] for name, array in wide.items() if array.ndim > 0}
                rule(**given | wide | parts | {"grad": sums})
                for name, part in parts.items():
                    wide[name][distinct] = part
            if param_low is not None:
                param[...], param_low[...] = split_master(wide["param"])
            index = np.arange(param.size, dtype=np.uint64).reshape(param.shape)
            written = [name for name in signature.parameters if name in wide and name != "grad"]
            floats = [name for name in written if arrays[name].dtype.kind not in "iu"]
            for place, name in enumerate(floats):
                if arrays[name].dtype == T or (name == "param" and param_low is not None):
                    continue
                draw = None if key is None else noise(_mix64(key) if place > 1 else key, index)
                half = None if draw is None else draw >> 16 if place % 2 else draw & 0xFFFF
                round_to = to_float16 if arrays[name].dtype == np.float16 else to_bfloat16
                arrays[name][...] = round_to(wide[name], half)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in (("key", "int | None"), ("param_low", "Array | None"))
    ]
    *own, prologue = signature.parameters.values()
    update.__signature__ = signature.replace(parameters=[*own, *more, prologue])  # type: ignore[attr-defined]
    return cast(_Rule, update)


def _number(value: Any) -> Any:
    """Return a number of NumPy, or each of a pair, as one of Python: constants are derived in double from any."""
    if isinstance(value, tuple | list):
        return tuple(map(_number, value))
    return float(value) if isinstance(value, np.floating) else value


PER_ELEMENT = ("lr", "step_sizes")


def _of_elements(value: Any, param: Array, rows: Array | None) -> Any:
    """Return an option, or a pair, with arrays in float64 and in the shape of what is updated."""
    if isinstance(value, tuple | list):
        return tuple(_of_elements(each, param, rows) for each in value)
    if not isinstance(value, np.ndarray):
        return value
    whole = np.broadcast_to(value.astype(np.float64), param.shape)
    return whole if rows is None else whole[np.unique(rows)]


def _mix64(z: int) -> int:
    """Return the hash of splitmix64 (Steele, Lea & Flood 2014)."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def noise_key(seed: int, step: int, name: str) -> int:
    """Return the key of an optimizer's update number ``step``, counted from 1, of the parameter ``name``."""
    h = 0xCBF29CE484222325  # FNV-1a
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return _mix64(_mix64(_mix64(seed) ^ step) ^ h)


def noise(key: int, index: Any) -> NDArray[np.uint32]:
    """Return 32 random bits for each element: a function of a key and of its index in the C order of the parameter.

    Parameters
    ----------
    key : int
        As ``noise_key`` returns it, ``0 <= key < 2**64``.
    index : array_like of uint64
        The indices of the elements.

    Returns
    -------
    ndarray of uint32
        In the shape of ``index``.

    Examples
    --------
    >>> from fusedstep import reference
    >>> reference.noise(reference.noise_key(0, 1, "w"), [0, 1]).dtype
    dtype('uint32')
    """
    i = np.asarray(index, np.uint64)
    words, place = np.unique(i >> np.uint64(32), return_inverse=True)
    k = np.array([_mix64(key ^ int(word)) for word in words], np.uint64)[place].reshape(i.shape)
    with np.errstate(over="ignore"):
        x: Any = i.astype(np.uint32) * np.uint32(0x9E3779B9) + k.astype(np.uint32)
        x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
        x = x ^ (k >> np.uint64(32)).astype(np.uint32)
        x = (x ^ x >> 15) * np.uint32(0x846CA68B)
        return np.asarray(x ^ x >> 16)


def _bfloat16() -> Any:
    return np.dtype(sys.modules["ml_dtypes"].bfloat16)  # who has such an array has imported its type


def to_bfloat16(x: Array, bits: Array | None = None) -> Array:
    """Round float32 to bfloat16: to nearest, ties to even; or up if the fraction and 16 random bits carry.

    ``bits`` round a finite number to a finite one.
    """
    if bits is None:
        return np.asarray(x, np.float32).astype(_bfloat16())
    b = np.asarray(x, np.float32).view(np.uint32)
    rounded = (b + bits) >> 16
    rounded = np.where(rounded & 0x7FFF == 0x7F80, rounded - 1, rounded).astype(np.uint16)
    return np.where(np.isfinite(x), rounded, to_bfloat16(x).view(np.uint16)).view(_bfloat16())


def to_float16(x: Array, bits: Array | None = None) -> Array:
    """Round float32 to float16, as ``to_bfloat16``: ``q`` is the unit in the last place."""
    if bits is None:
        return np.asarray(x, np.float32).astype(np.float16)
    m = np.abs(x).astype(np.float64)
    q = np.ldexp(1.0, np.maximum(np.frexp(m)[1] - 11, -24))
    n = (np.floor(np.where(np.isfinite(x), m / q, 0.0) * 2.0**16).astype(np.int64) + bits) >> 16
    rounded = np.copysign(np.minimum(n * q, 65504.0), x)
    return np.where(np.isfinite(x), rounded, x).astype(np.float16)


def join_master(param: Array, param_low: Array) -> Array:
    """Return the float32 numbers whose halves a bfloat16 parameter and its low halves are."""
    high, low = param.view(np.uint16).astype(np.uint32), param_low.astype(np.uint32)
    return np.asarray((high - (low >> 15)) << 16 | low).view(np.float32)


def split_master(x: Array) -> tuple[Array, Array]:
    """Return the halves of float32 numbers: the nearest bfloat16, ties away from 0, and the low 16 bits."""
    b = np.where(np.isnan(x), np.uint32(0x7FC00000), np.asarray(x).view(np.uint32))
    return np.asarray((b + 0x8000) >> 16).astype(np.uint16).view(_bfloat16()), np.asarray(b).astype(np.uint16)


def gradient(
    param: Array, grad: Array, *,
    lr: float | Array | None = None, weight_decay: float = 0.0, decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float | None = None, clip_value: float | None = None, clip_coef: float = 1.0,
) -> Array:  # fmt: skip
    """Return the gradient that the rule uses; decoupled decay shrinks ``param`` in place.

    ::

        g <- g / grad_scale,   g <- clip(g, -clip_value, clip_value),   g <- g clip_coef,   g <- -g
        g <- g + wd p                               or, decoupled,   p <- (1 - lr wd) p

    Parameters
    ----------
    param : ndarray of float32 or float64
        ``p``, any shape; written only by decoupled decay.
    grad : ndarray
        ``g``, shape and dtype of ``param``; only read.
    lr : float, optional
        Step size; needed only by decoupled decay.
    weight_decay : float
        ``wd >= 0``; 0 is not computed.
    decoupled_weight_decay : bool
        Whether decay shrinks the parameter instead.
    maximize : bool
        Whether to ascend.
    grad_scale : float, optional
        What the loss was multiplied by, ``> 0``.
    clip_value : float, optional
        Largest magnitude of an element, ``> 0``.
    clip_coef : float
        ``clip_norm / max(norm, clip_norm)``, from the norm of all gradients; 1 is not computed.

    Returns
    -------
    ndarray
        New, or ``grad`` itself where nothing was asked for.
    """
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


def summed(param: Array, values: Array, rows: Array) -> tuple[Array, Array]:
    """Return the distinct rows, ascending, and the sum of the values of each, added in the order of ``rows``.

    Parameters
    ----------
    param : ndarray
        The parameter. The sums have the type that it is updated in.
    values : ndarray of shape ``(len(rows), *param.shape[1:])``
        A gradient for each entry of ``rows``.
    rows : 1-D ndarray of integers
        Rows of ``param``, in any order; each may be there more than once.

    Returns
    -------
    tuple of ndarray
        The distinct rows, and their sums.
    """
    distinct, place = np.unique(rows, return_inverse=True)
    T = compute_type(param)
    sums = np.zeros((distinct.size, *param.shape[1:]), T)
    np.add.at(sums, place, widened(values, T))
    return distinct, sums


@stored
def rmsprop_(
    param: Array, grad: Array, square_avg: Array, *,
    lr: float | Array, alpha: float = 0.9, eps: float = 1e-8, eps_inside_sqrt: bool = False,
    grad_avg: Array | None = None, momentum_buffer: Array | None = None, momentum: float = 0.0, nesterov: bool = False,
    momentum_form: str = "torch", step: int | None = None,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by RMSprop (Hinton, lecture 6e; centred: Graves 2013).

    Centred (``grad_avg`` given), ``square_avg`` holds the variance: the difference of two averages would cancel.
    """
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    correction = 1.0 if step is None else 1.0 - _power(alpha, step)
    if grad_avg is None:
        v = T(alpha) * square_avg + T(1.0 - alpha) * g * g
        r = v if step is None else v / T(correction)
    else:
        w = (1.0 - alpha) / correction
        e = g - grad_avg
        v = T(alpha if step is None else 1.0 - w) * (square_avg + T(w) * e * e)
        r = v
        grad_avg[...] = grad_avg + T(w) * e
    square_avg[...] = v
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


@stored
def adagrad_(
    param: Array, grad: Array, square_sum: Array, *,
    lr: float | Array, eps: float = 1e-10, eps_inside_sqrt: bool = False, lr_decay: float = 0.0, step: int = 1,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by Adagrad (Duchi, Hazan & Singer 2011)."""
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    s = square_sum + g * g
    square_sum[...] = s
    clr = lr / (1.0 + (step - 1) * lr_decay)
    d = np.sqrt(s + T(eps)) if eps_inside_sqrt else np.sqrt(s) + T(eps)
    param[...] = param - T(clr) * g / d


@stored
def proximal_adagrad_(
    param: Array, grad: Array, square_sum: Array, *,
    lr: float | Array, l1: float = 0.0, l2: float = 0.0,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by proximal Adagrad (FOBOS; Duchi & Singer 2009)."""
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    s = square_sum + g * g
    square_sum[...] = s
    a = T(lr) / np.sqrt(s)
    q = param - a * g
    moved = _sign(q) * _positive_part(_magnitude(q) - a * T(l1)) / (T(1) + T(l2) * a)
    param[...] = np.where(s == T(0), param, moved)


@stored
def adagrad_da_(
    param: Array, grad: Array, grad_sum: Array, square_sum: Array, *,
    lr: float | Array, step: int, l1: float = 0.0, l2: float = 0.0,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by Adagrad with dual averaging (Duchi, Hazan & Singer 2011)."""
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    G = grad_sum + g
    grad_sum[...] = G
    s = square_sum + g * g
    square_sum[...] = s
    moved = -_sign(G) * T(lr) * _positive_part(_magnitude(G) - T(l1 * step)) / (T(l2 * step * lr) + np.sqrt(s))
    param[...] = np.where(s == T(0), param, moved)


@stored
def adagrad_norm_(
    param: Array, grad: Array, square_sum: Array, *,
    lr: float | Array, eps: float = 1e-10, per: str = "array", mean: bool = False,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by Adagrad-Norm, one step size for the array or for each row (Ward, Wu & Bottou 2019)."""
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    x = g.astype(np.float64)
    parts = [x] if per == "array" else list(x)
    totals = np.array([_tree_sum(_block_sums(part * part)) for part in parts])
    totals = totals / max(x.size // max(len(parts), 1), 1) if mean else totals
    square_sum[...] = square_sum + totals.astype(T).reshape(square_sum.shape)
    d = np.sqrt(square_sum) + T(eps)
    d = d if per == "array" else d.reshape(-1, *(1,) * (x.ndim - 1))
    param[...] = param - T(lr) * g / d


@stored
def adadelta_(
    param: Array, grad: Array, square_avg: Array, acc_delta: Array, *,
    lr: float | Array, rho: float = 0.9, eps: float = 1e-6,
    rows: Array | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by Adadelta (Zeiler 2012)."""
    T = param.dtype.type
    g = gradient(param, grad, lr=lr, **prologue)
    s = T(rho) * square_avg + T(1.0 - rho) * g * g
    square_avg[...] = s
    d = np.sqrt(acc_delta + T(eps)) / np.sqrt(s + T(eps)) * g
    acc_delta[...] = T(rho) * acc_delta + T(1.0 - rho) * d * d
    param[...] = param - T(lr) * d


@stored
def rprop_(
    param: Array, grad: Array, step_size: Array, prev_sign: Array, *,
    etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float | Array, float | Array] = (1e-6, 50.0),
    variant: str = "rprop-", loss_increased: bool = False, lr: float | Array | None = None,
    chosen: tuple[float, int | None] | None = None, **prologue: Any,
) -> None:  # fmt: skip
    """Update in place by Rprop (Riedmiller & Braun 1993) or a variant of it (Igel & Hüsken 2000, 2003).

    GRprop's sum and chosen element are those of the whole list: ``chosen``, or of only this array if not given.
    Only the sign of ``prev_sign`` counts.
    """
    T = param.dtype.type
    lo, hi = _limits(T, step_sizes, None if variant.startswith("grprop") else lr)
    g = gradient(param, grad, lr=lr, **prologue)
    sg = _sign(g)
    ps = np.sign(prev_sign).astype(T)
    flip = sg * ps < T(0)
    D = step_size
    Dn = _resized(g, D, prev_sign, etas, (lo, hi))
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
    elif variant in ("grprop-slr", "grprop-sag"):
        total, k = chosen if chosen is not None else _grprop_total([(g, Dn)], variant)[0]
        if k is not None:
            at = np.unravel_index(k, param.shape)
            rest = total - float(Dn[at]) * float(g[at])
            Dk = T(-(rest + GRPROP_DELTA) / float(g[at]))
            Dk = lo if Dk < lo else Dk
            Dn[at] = hi if Dk > hi else Dk
            moved = param - sg * Dn
        p, ps = moved, sign
    else:
        raise ValueError(f"variant: {variant!r} is not known")
    param[...] = p
    step_size[...] = Dn
    prev_sign[...] = ps


GRPROP_DELTA = 1e-6


def grprop_choice(
    members: Sequence[tuple[Array, Array, Array, Array, dict[str, Any]]],
) -> list[tuple[float, int | None]]:
    """Return what ``rprop_`` needs as ``chosen``, for each of ``(param, grad, step_size, prev_sign, arguments)``.

    The sum of ``D g`` over all, and in the array that has it the place of the element that takes the odd step.
    """
    pairs = []
    variant = ""
    with np.errstate(all="ignore"):
        for param, grad, step_size, prev_sign, arguments in members:
            T = compute_type(param)
            low = arguments.get("param_low")
            p = widened(param, T) if low is None else join_master(param, low)
            rest = {key: value for key, value in arguments.items() if key not in ("key", "param_low")}
            variant = rest.pop("variant")
            etas, step_sizes = rest.pop("etas"), rest.pop("step_sizes")
            rest.pop("loss_increased", None)
            g = gradient(p.copy(), widened(grad, T), **rest)
            pairs.append((g, _resized(g, widened(step_size, T), prev_sign, etas, _limits(T, step_sizes))))
        return _grprop_total(pairs, variant)


def _grprop_total(pairs: Sequence[tuple[Array, Array]], variant: str) -> list[tuple[float, int | None]]:
    blocks: list[float] = []
    smallest, array, index = math.inf, -1, -1
    for i, (g, D) in enumerate(pairs):
        blocks.extend(_block_sums(D.astype(np.float64) * g.astype(np.float64)))
        key = np.where(g == 0, np.inf, np.abs(g) if variant == "grprop-sag" else D).ravel()
        key = np.where(np.isnan(key), np.inf, key).astype(np.float64)
        if key.size and key.min() < smallest:
            smallest, array, index = key.min(), i, int(key.argmin())
    total = _tree_sum(blocks)
    return [(total, index if i == array else None) for i in range(len(pairs))]


def _limits(T: Any, step_sizes: tuple[Any, Any], lr: float | Array | None = None) -> tuple[Any, Any]:
    """Return the limits, rounded; there is no lower one where ``lr`` is 0, so that what starts at 0 stays 0."""
    largest = float(np.finfo(T).max)
    lo, hi = step_sizes
    if lr is not None:
        lo = np.where(np.equal(lr, 0.0), 0.0, lo)
    return T(np.minimum(lo, largest)), T(np.minimum(hi, largest))


def _resized(g: Array, D: Array, prev_sign: Array, etas: tuple[float, float], limits: tuple[Any, Any]) -> Array:
    T = D.dtype.type
    eta_minus, eta_plus = map(T, etas)
    lo, hi = limits
    agreement = _sign(g) * prev_sign.astype(T)
    Dn = np.where(agreement > T(0), D * eta_plus, np.where(agreement < T(0), D * eta_minus, D))
    Dn = np.where(Dn < lo, lo, Dn)
    return np.where(Dn > hi, hi, Dn)


def _power(x: float, n: int) -> float:
    """Return ``x**n`` by repeated squaring: libm's ``pow`` differs between machines."""
    result = 1.0
    while n:
        if n & 1:
            result *= x
        x *= x
        n >>= 1
    return result


def _sign(x: Array) -> Array:
    T = x.dtype.type
    return np.where(x > T(0), T(1), np.where(x < T(0), T(-1), x))


def _magnitude(x: Array) -> Array:
    return np.where(x < x.dtype.type(0), -x, x)


def _positive_part(x: Array) -> Array:
    return np.where(x < x.dtype.type(0), x.dtype.type(0), x)


def norm(grads: Iterable[Array], *, grad_scale: float | None = None, clip_value: float | None = None) -> float:
    """Return the norm of all gradients, in the kernels' order of additions.

    Squares and sums in double; each gradient in its logical C order, in blocks of 1,024 of 16 lanes; lanes, then
    blocks, are added in pairs of neighbours. Where the squares leave the range of double and their root does not, the
    gradients are scaled by a power of 2.

    Parameters
    ----------
    grads : iterable of ndarray
        Gradients of any shapes, in the order of their parameters. Those of 16 bits count as float32; widen one that
        belongs to a parameter of float64 before.
    grad_scale, clip_value : float, optional
        What is done to each before, as in ``gradient``.

    Returns
    -------
    float
        The square root of the sum of all squares; inf or NaN where a gradient has one.
    """
    with np.errstate(all="ignore"):
        wide = [widened(grad, compute_type(grad)) for grad in grads]
        unscaled = [gradient(grad, grad, grad_scale=grad_scale) for grad in wide]
        doubles = [gradient(g, g, clip_value=clip_value).ravel().astype(np.float64) for g in unscaled]
        total = _tree_sum([each for x in doubles for each in _block_sums(x * x)])
        scale = 1.0
        if math.isinf(total) and all(np.isfinite(g).all() for g in unscaled):
            scale = 2.0**-600
        if total < 2.0**-900:
            scale = 2.0**600
        if scale != 1.0:
            total = _tree_sum([each for x in doubles for each in _block_sums(x * scale * (x * scale))])
        return math.sqrt(total) / scale


def _block_sums(terms: Array) -> list[float]:
    padded = np.concatenate([terms.ravel(), np.zeros(-terms.size % BLOCK)])
    x = padded.reshape(-1, BLOCK // LANES, LANES)
    sums = np.zeros((x.shape[0], LANES))
    for row in range(min(-(-terms.size // LANES), BLOCK // LANES)):  # the others would add 0
        sums = sums + x[:, row]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return [float(total) for total in sums[:, 0]]


def _tree_sum(x: list[float]) -> float:
    while len(x) > 1:
        odd = x[-1:] if len(x) % 2 else []
        x = [a + b for a, b in zip(x[::2], x[1::2], strict=False)] + odd
    return x[0] if x else 0.0
