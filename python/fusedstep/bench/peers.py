"""What people use today: each peer optional, and checked to give the right answer before it is timed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case, Data

__all__ = ["ACCEPTED", "PEERS", "Peer", "numba_loops", "ulps", "verdict"]

Step = Callable[[], object]
Made = tuple[Step, Callable[[], Any]] | None
"""A step, and a function that reads the parameter; None: the peer has no such rule."""


@dataclass(frozen=True)
class Peer:
    """A way to compute a case without us, with so many threads."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[Data, int], Made]
    slow: bool = False
    """Whether it takes seconds to be made."""


CHECKED = 4099
"""Elements of the check: blocks, a tail and odd ends."""

ACCEPTED = 4.0
"""Units of the last place by which a peer's parameter may differ from the reference after a step."""


def verdict(peer: Peer, case: Case, data: Data, threads: int) -> tuple[str, Step | None]:
    """Return what is to be said of a peer (its error in ulp, or what is wrong) and its step, if it may be timed."""
    with contextlib.redirect_stdout(sys.stderr):  # what peers have to say is no part of a table
        return _verdict(peer, case, data, threads)


def _verdict(peer: Peer, case: Case, data: Data, threads: int) -> tuple[str, Step | None]:
    try:
        for module in peer.needs:
            importlib.import_module(module)
    except ImportError as problem:
        return f"missing: {problem.name or peer.needs[0]} is not installed", None
    try:
        small = Data(case.to_check(), CHECKED, data.param.dtype, data.layout)
        expected = small.copy()
        before = small.param.copy()
        made = peer.make(small, threads)
        if made is None:
            return "has no such rule", None
        step, parameter = made
        step()
        expected.update_plain()
        ulp = ulps(np.asarray(parameter()), expected.param, before)
        if not ulp <= ACCEPTED:
            return f"wrong: {ulp:.3g} ulp from the reference after one step", None
        timed = peer.make(data, threads)
        return f"{ulp:.2g} ulp", None if timed is None else timed[0]
    except Exception as problem:  # whatever a peer raises is its row's answer
        lines = str(problem).splitlines() or [""]
        return f"failed: {type(problem).__name__}: {lines[0]}", None


def ulps(found: NDArray[Any], expected: NDArray[Any], before: NDArray[Any]) -> float:
    """Return the largest error in units of the last place of what was added: near 0 the sum's own would say nothing."""
    spacing = np.spacing(np.maximum(np.abs(expected), np.abs(before))).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)) / spacing))


def _numpy_naive(data: Data, threads: int) -> Made:
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    match data.case.name:
        case "RMSprop":
            v = data.states["square_avg"]

            def step() -> None:
                nonlocal p, v
                v = T(0.9) * v + T(1 - 0.9) * g * g
                p = p - T(o["lr"]) * g / (np.sqrt(v) + T(1e-8))
        case "Adagrad":
            s = data.states["square_sum"]

            def step() -> None:
                nonlocal p, s
                s = s + g * g
                p = p - T(o["lr"]) * g / (np.sqrt(s) + T(1e-10))
        case "Rprop":
            D, ps = data.states["step_size"], data.states["prev_sign"].astype(p.dtype)
            lo, hi = map(T, o["step_sizes"])

            def step() -> None:
                nonlocal p, D, ps
                sg = np.sign(g)
                agree = sg * ps
                D = np.clip(np.where(agree > 0, D * T(1.2), np.where(agree < 0, D * T(0.5), D)), lo, hi)
                p = p - sg * D
                ps = sg
        case _:
            return None
    return step, lambda: p


def _numpy_out(data: Data, threads: int) -> Made:
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    a, b = np.empty_like(p), np.empty_like(p)
    match data.case.name:
        case "RMSprop":
            v = data.states["square_avg"]
            alpha, rest, eps, lr = T(0.9), T(1 - 0.9), T(1e-8), T(o["lr"])

            def step() -> None:
                np.multiply(g, rest, out=a)
                np.multiply(a, g, out=a)
                np.multiply(v, alpha, out=v)
                np.add(v, a, out=v)
                np.sqrt(v, out=a)
                np.add(a, eps, out=a)
                np.multiply(g, lr, out=b)
                np.divide(b, a, out=b)
                np.subtract(p, b, out=p)
        case "Adagrad":
            s = data.states["square_sum"]
            eps, lr = T(1e-10), T(o["lr"])

            def step() -> None:
                np.multiply(g, g, out=a)
                np.add(s, a, out=s)
                np.sqrt(s, out=a)
                np.add(a, eps, out=a)
                np.multiply(g, lr, out=b)
                np.divide(b, a, out=b)
                np.subtract(p, b, out=p)
        case "Rprop":
            D, ps = data.states["step_size"], data.states["prev_sign"].astype(p.dtype)
            one, minus, plus = T(1), T(0.5), T(1.2)
            lo, hi = map(T, o["step_sizes"])

            # Without masks: `where=` costs 5 ns an element more where signs cannot be predicted. With e = 1, 0, -1 for
            # a sign that stayed, is new or flipped, max(plus e, 1) is plus, 1, 1, and e + 1 + minus, which is exact
            # for e = -1, is at least 1 otherwise and at least plus for e = 1: the smaller of the two is the factor.
            def step() -> None:
                nonlocal a, ps
                np.sign(g, out=a)
                np.multiply(a, ps, out=b)
                np.multiply(b, plus, out=ps)
                np.maximum(ps, one, out=ps)
                np.add(b, one, out=b)
                np.add(b, minus, out=b)
                np.minimum(ps, b, out=ps)
                np.multiply(D, ps, out=D)
                np.clip(D, lo, hi, out=D)
                np.multiply(a, D, out=b)
                np.subtract(p, b, out=p)
                a, ps = ps, a
        case _:
            return None
    return step, lambda: p


def _numexpr(data: Data, threads: int) -> Made:
    import numexpr

    numexpr.set_num_threads(threads)
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    names: dict[str, Any] = {"p": p, "g": g, "lr": T(o.get("lr", 0.0))}
    match data.case.name:
        case "RMSprop":
            names |= {"v": data.states["square_avg"], "alpha": T(0.9), "rest": T(1 - 0.9), "eps": T(1e-8)}
            lines = [("v", "alpha * v + rest * g * g"), ("p", "p - lr * g / (sqrt(v) + eps)")]
        case "Adagrad":
            names |= {"s": data.states["square_sum"], "eps": T(1e-10)}
            lines = [("s", "s + g * g"), ("p", "p - lr * g / (sqrt(s) + eps)")]
        case "Rprop":
            lo, hi = map(T, o["step_sizes"])
            names |= {"D": data.states["step_size"], "ps": data.states["prev_sign"].astype(T), "lo": lo, "hi": hi}
            names |= {"plus": T(1.2), "minus": T(0.5), "zero": T(0), "one": T(1)}
            lines = [
                ("D", "D * where(g * ps > zero, plus, where(g * ps < zero, minus, one))"),
                ("D", "where(D < lo, lo, where(D > hi, hi, D))"),
                ("ps", "where(g > zero, one, where(g < zero, -one, zero))"),
                ("p", "p - ps * D"),
            ]
        case _:
            return None

    def step() -> None:
        for name, expression in lines:
            numexpr.evaluate(expression, local_dict=names, out=names[name], casting="same_kind")

    return step, lambda: p


@functools.cache
def numba_loops(parallel: bool) -> dict[str, Any]:
    """Return the loops, each compiled once for a type."""
    import numba

    jit: Any = numba.njit(error_model="numpy", parallel=parallel)
    span = numba.prange if parallel else range

    @jit  # type: ignore[untyped-decorator]
    def rmsprop(p: Any, g: Any, v: Any, lr: Any, alpha: Any, rest: Any, eps: Any) -> None:
        for i in span(p.size):
            v[i] = alpha * v[i] + rest * g[i] * g[i]
            p[i] = p[i] - lr * g[i] / (np.sqrt(v[i]) + eps)

    @jit  # type: ignore[untyped-decorator]
    def adagrad(p: Any, g: Any, s: Any, lr: Any, eps: Any) -> None:
        for i in span(p.size):
            s[i] = s[i] + g[i] * g[i]
            p[i] = p[i] - lr * g[i] / (np.sqrt(s[i]) + eps)

    @jit  # type: ignore[untyped-decorator]
    def rprop(p: Any, g: Any, D: Any, ps: Any, minus: Any, plus: Any, lo: Any, hi: Any, zero: Any, one: Any) -> None:
        for i in span(p.size):
            sg = one if g[i] > zero else (-one if g[i] < zero else zero)
            agree = sg * ps[i]
            d = D[i] * (plus if agree > zero else (minus if agree < zero else one))
            d = lo if d < lo else (hi if d > hi else d)
            p[i] = p[i] - sg * d
            D[i] = d
            ps[i] = sg

    return {"RMSprop": rmsprop, "Adagrad": adagrad, "Rprop": rprop}


@functools.cache
def _numba_by_rows(loop: Any) -> Any:
    """Return a loop over two dimensions, of any strides."""
    import numba

    jit: Any = numba.njit(error_model="numpy")

    @jit  # type: ignore[untyped-decorator]
    def by_rows(p: Any, g: Any, state: Any, scalars: Any) -> None:
        for k in range(p.shape[0]):
            loop(p[k], g[k], state[k], *scalars)

    return by_rows


def _numba(parallel: bool) -> Callable[[Data, int], Made]:
    def make(data: Data, threads: int) -> Made:
        import numba

        numba.set_num_threads(threads if parallel else 1)
        p, g, o = data.param, data.grad, data.case.options
        states = list(data.states.values())
        T = p.dtype.type
        scalars: tuple[Any, ...]
        match data.case.name:
            case "RMSprop":
                scalars = (T(o["lr"]), T(0.9), T(1 - 0.9), T(1e-8))
            case "Adagrad":
                scalars = (T(o["lr"]), T(1e-10))
            case "Rprop" if p.ndim == 1:
                states[1] = states[1].astype(p.dtype)
                scalars = (T(0.5), T(1.2), *map(T, o["step_sizes"]), T(0), T(1))
            case _:
                return None
        loop = numba_loops(parallel)[data.case.name]
        if p.ndim == 1:
            return (lambda: loop(p, g, *states, *scalars)), lambda: p
        if parallel:
            return None
        by_rows = _numba_by_rows(loop)
        return (lambda: by_rows(p, g, states[0], scalars)), lambda: p

    return make


def _torch(way: str) -> Callable[[Data, int], Made]:
    def make(data: Data, threads: int) -> Made:
        import torch

        torch.set_num_threads(threads)
        p = torch.from_numpy(data.param).requires_grad_()
        p.grad = torch.from_numpy(data.grad)
        o, states = data.case.options, data.states
        keys: dict[str, Any] = {"fused": True} if way == "fused" else {"foreach": way == "foreach"}
        match data.case.name:
            case "RMSprop" | "RMSprop, centered" | "RMSprop, momentum" | "RMSprop, centered, momentum" if (
                way != "fused"
            ):
                centered = "grad_avg" in states
                optimizer: Any = torch.optim.RMSprop([p], alpha=0.9, eps=1e-8, centered=centered, **o, **keys)
                state = {name: torch.from_numpy(array) for name, array in states.items()}
            case "Adagrad":
                optimizer = torch.optim.Adagrad([p], lr=o["lr"], eps=1e-10, **keys)
                state = {"sum": torch.from_numpy(states["square_sum"])}
            case "Rprop, irprop-" if way != "fused":  # its one variant
                optimizer = torch.optim.Rprop([p], lr=1e-9, etas=(0.5, 1.2), step_sizes=o["step_sizes"], **keys)
                prev = torch.from_numpy(states["prev_sign"].astype(data.param.dtype))
                state = {"step_size": torch.from_numpy(states["step_size"]), "prev": prev}
            case _:
                return None
        optimizer.state[p] = {"step": torch.tensor(0.0), **state}
        if way != "compiled":
            return optimizer.step, lambda: p.detach().numpy()
        torch._dynamo.reset()  # after eight compilations it would quietly run what is not compiled
        step = torch.compile(optimizer.step)
        return step, lambda: p.detach().numpy()

    return make


def _optax(data: Data, threads: int) -> Made:
    """With as many threads as XLA likes: it cannot be told once it runs."""
    import jax
    import jax.numpy as jnp
    import optax

    config: Any = jax.config
    config.update("jax_enable_x64", True)
    o, states = data.case.options, data.states
    match data.case.name:
        case "RMSprop":
            optimizer = optax.rmsprop(o["lr"], decay=0.9, eps=1e-8, eps_in_sqrt=False)
            field = "nu"
        case "Adagrad":
            if data.param.dtype != np.float32:
                return None  # its eps stands under the root: that shows in double
            optimizer = optax.adagrad(o["lr"], eps=1e-10)
            field = "sum_of_squares"
        case "Rprop, irprop-":
            lo, hi = o["step_sizes"]
            optimizer = optax.rprop(1e-9, 0.5, 1.2, lo, hi)
            field = "step_sizes"
        case _:
            return None

    def rule(p: Any, g: Any, state: Any) -> Any:
        updates, state = optimizer.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p, g = jnp.array(data.param), jnp.array(data.grad)
    start = {field: jnp.array(next(iter(states.values())))}
    if field == "step_sizes":
        start["prev_updates"] = jnp.array(states["prev_sign"] * states["step_size"])

    def filled(part: Any) -> Any:
        fields = getattr(part, "_fields", ())
        return part._replace(**start) if field in fields else part

    state = jax.tree.map(filled, optimizer.init(p), is_leaf=lambda part: field in getattr(part, "_fields", ()))
    jitted = jax.jit(rule, donate_argnums=(0, 2))

    def step() -> None:
        nonlocal p, state
        p, state = jitted(p, g, state)
        p.block_until_ready()

    return step, lambda: p


def _deepspeed(data: Data, threads: int) -> Made:
    if data.case.name != "Adagrad":
        return None
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad

    torch.set_num_threads(threads)
    p = torch.nn.Parameter(torch.from_numpy(data.param))
    p.grad = torch.from_numpy(data.grad)
    optimizer = DeepSpeedCPUAdagrad([p], lr=data.case.options["lr"], eps=1e-10)
    optimizer.state[p] = {"step": 0, "exp_avg_sq": torch.from_numpy(data.states["square_sum"])}
    return optimizer.step, lambda: p.detach().numpy()


PEERS = [
    Peer("NumPy", (), _numpy_naive),
    Peer("NumPy out=", (), _numpy_out),
    Peer("numexpr", ("numexpr",), _numexpr),
    Peer("numba", ("numba",), _numba(False)),
    Peer("numba parallel", ("numba",), _numba(True)),
    Peer("torch loop", ("torch",), _torch("loop")),
    Peer("torch foreach", ("torch",), _torch("foreach")),
    Peer("torch fused", ("torch",), _torch("fused")),
    Peer("torch compiled", ("torch",), _torch("compiled"), slow=True),
    Peer("optax jit, donated", ("jax", "optax"), _optax),
    Peer("DeepSpeed", ("deepspeed",), _deepspeed),
]
