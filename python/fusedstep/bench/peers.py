"""What people use today: each peer optional, and checked to give the right answer before it is timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Data

__all__ = ["PEERS", "Peer", "verdict"]

Step = Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """A way to compute a case without us; ``make`` returns its step and a function that reads the parameter."""

    name: str
    needs: str
    make: Callable[[Data, int], tuple[Step, Callable[[], Any]] | None]


CHECKED = 4099
"""Elements of the check: blocks, a tail and odd ends."""


def verdict(peer: Peer, data: Data, threads: int) -> tuple[str, Step | None]:
    """Return what is to be said of a peer (its error in ulp, or what is wrong) and its step, if it may be timed."""
    try:
        if peer.needs:
            importlib.import_module(peer.needs)
        small = Data(data.case.to_check(), CHECKED, data.param.dtype)
        expected = small.copy()
        before = small.param.copy()
        made = peer.make(small, threads)
        if made is None:
            return "has no such rule", None
        step, parameter = made
        step()
        expected.update_plain()
        ulp = _ulp(np.asarray(parameter()), expected.param, before)
        if not ulp <= 4.0:
            return f"wrong: {ulp:.3g} ulp from the reference after one step", None
        timed = peer.make(data, threads)
        return f"{ulp:.2g} ulp", None if timed is None else timed[0]
    except ImportError:
        return f"missing: {peer.needs} is not installed", None
    except Exception as error:  # whatever a peer raises is its row's answer
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None


def _ulp(found: NDArray[Any], expected: NDArray[Any], before: NDArray[Any]) -> float:
    """Return the largest error in units of the last place of what was added: near 0 the sum's own would say nothing."""
    spacing = np.spacing(np.maximum(np.abs(expected), np.abs(before))).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)) / spacing))


def _numpy_naive(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    match data.case.name:
        case "RMSprop":
            v = data.states["square_avg"]

            def step() -> None:
                nonlocal p, v
                v = T(0.9) * v + T(0.1) * g * g
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


def _numpy_out(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    a, b = np.empty_like(p), np.empty_like(p)
    match data.case.name:
        case "RMSprop":
            v = data.states["square_avg"]
            alpha, rest, eps, lr = T(0.9), T(0.1), T(1e-8), T(o["lr"])

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
            eta_minus, eta_plus = T(0.5), T(1.2)
            lo, hi = map(T, o["step_sizes"])
            mask = np.empty(p.shape, bool)

            def step() -> None:
                np.sign(g, out=a)
                np.multiply(a, ps, out=b)
                np.greater(b, 0, out=mask)
                np.multiply(D, eta_plus, out=D, where=mask)
                np.less(b, 0, out=mask)
                np.multiply(D, eta_minus, out=D, where=mask)
                np.maximum(D, lo, out=D)
                np.minimum(D, hi, out=D)
                np.multiply(a, D, out=b)
                np.subtract(p, b, out=p)
                np.copyto(ps, a)
        case _:
            return None
    return step, lambda: p


def _numexpr(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
    import numexpr

    numexpr.set_num_threads(threads)
    p, g, o = data.param, data.grad, data.case.options
    T = p.dtype.type
    names: dict[str, Any] = {"p": p, "g": g, "lr": T(o.get("lr", 0.0))}
    match data.case.name:
        case "RMSprop":
            names |= {"v": data.states["square_avg"], "alpha": T(0.9), "rest": T(0.1), "eps": T(1e-8)}
            lines = [("v", "alpha * v + rest * g * g"), ("p", "p - lr * g / (sqrt(v) + eps)")]
        case "Adagrad":
            names |= {"s": data.states["square_sum"], "eps": T(1e-10)}
            lines = [("s", "s + g * g"), ("p", "p - lr * g / (sqrt(s) + eps)")]
        case _:
            return None

    def step() -> None:
        for name, expression in lines:
            numexpr.evaluate(expression, local_dict=names, out=names[name], casting="same_kind")

    return step, lambda: p


def _numba(parallel: bool) -> Callable[[Data, int], tuple[Step, Callable[[], Any]] | None]:
    def make(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
        import numba

        numba.set_num_threads(threads if parallel else 1)
        jit: Any = numba.njit(error_model="numpy", parallel=parallel)
        span = numba.prange if parallel else range
        p, g, o = data.param, data.grad, data.case.options
        T = p.dtype.type
        zero, one = T(0), T(1)
        match data.case.name:
            case "RMSprop":

                @jit  # type: ignore[untyped-decorator]
                def rmsprop(p: Any, g: Any, v: Any, lr: Any, alpha: Any, rest: Any, eps: Any) -> None:
                    for i in span(p.size):
                        v[i] = alpha * v[i] + rest * g[i] * g[i]
                        p[i] = p[i] - lr * g[i] / (np.sqrt(v[i]) + eps)

                v = data.states["square_avg"]
                arguments = (p, g, v, T(o["lr"]), T(0.9), T(0.1), T(1e-8))
                return (lambda: rmsprop(*arguments)), lambda: p
            case "Adagrad":

                @jit  # type: ignore[untyped-decorator]
                def adagrad(p: Any, g: Any, s: Any, lr: Any, eps: Any) -> None:
                    for i in span(p.size):
                        s[i] = s[i] + g[i] * g[i]
                        p[i] = p[i] - lr * g[i] / (np.sqrt(s[i]) + eps)

                s = data.states["square_sum"]
                return (lambda: adagrad(p, g, s, T(o["lr"]), T(1e-10))), lambda: p
            case "Rprop":

                @jit  # type: ignore[untyped-decorator]
                def rprop(p: Any, g: Any, D: Any, ps: Any, minus: Any, plus: Any, lo: Any, hi: Any) -> None:
                    for i in span(p.size):
                        sg = one if g[i] > zero else (-one if g[i] < zero else zero)
                        agree = sg * ps[i]
                        d = D[i] * (plus if agree > zero else (minus if agree < zero else one))
                        d = lo if d < lo else (hi if d > hi else d)
                        p[i] = p[i] - sg * d
                        D[i] = d
                        ps[i] = sg

                D, ps = data.states["step_size"], data.states["prev_sign"].astype(p.dtype)
                lo, hi = map(T, o["step_sizes"])
                return (lambda: rprop(p, g, D, ps, T(0.5), T(1.2), lo, hi)), lambda: p
        return None

    return make


def _torch(way: str) -> Callable[[Data, int], tuple[Step, Callable[[], Any]] | None]:
    def make(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
        import torch

        torch.set_num_threads(threads)
        p = torch.from_numpy(data.param).requires_grad_()
        p.grad = torch.from_numpy(data.grad)
        o = data.case.options
        keys = {"foreach": way == "foreach"}
        match data.case.name:
            case "RMSprop" if way != "fused":
                optimizer: Any = torch.optim.RMSprop([p], lr=o["lr"], alpha=0.9, eps=1e-8, **keys)
                state = {"square_avg": torch.from_numpy(data.states["square_avg"])}
            case "Adagrad":
                chosen: dict[str, Any] = {"fused": True} if way == "fused" else keys
                optimizer = torch.optim.Adagrad([p], lr=o["lr"], eps=1e-10, **chosen)
                state = {"sum": torch.from_numpy(data.states["square_sum"])}
            case _:
                return None  # its Rprop stays where a sign flipped: another rule
        optimizer.state[p] = {"step": torch.tensor(0.0), **state}
        step = torch.compile(optimizer.step) if way == "compiled" else optimizer.step
        return step, lambda: p.detach().numpy()

    return make


def _optax(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
    import jax
    import jax.numpy as jnp

    o = data.case.options
    lr = o.get("lr", 0.0)

    match data.case.name:
        case "RMSprop":

            def rule(p: Any, g: Any, s: Any) -> Any:
                s = 0.9 * s + 0.1 * g * g
                return p - lr * g / (jnp.sqrt(s) + 1e-8), s

            state = data.states["square_avg"]
        case "Adagrad":

            def rule(p: Any, g: Any, s: Any) -> Any:
                s = s + g * g
                return p - lr * g / (jnp.sqrt(s) + 1e-10), s

            state = data.states["square_sum"]
        case _:
            return None
    if data.param.dtype != np.float32:
        return None
    jitted = jax.jit(rule, donate_argnums=(0, 2))
    p, g, s = jnp.array(data.param), jnp.array(data.grad), jnp.array(state)

    def step() -> None:
        nonlocal p, s
        p, s = jitted(p, g, s)
        p.block_until_ready()

    return step, lambda: p


def _deepspeed(data: Data, threads: int) -> tuple[Step, Callable[[], Any]] | None:
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
    Peer("NumPy", "", _numpy_naive),
    Peer("NumPy out=", "", _numpy_out),
    Peer("numexpr", "numexpr", _numexpr),
    Peer("numba", "numba", _numba(False)),
    Peer("numba parallel", "numba", _numba(True)),
    Peer("torch loop", "torch", _torch("loop")),
    Peer("torch foreach", "torch", _torch("foreach")),
    Peer("torch fused", "torch", _torch("fused")),
    Peer("torch compiled", "torch", _torch("compiled")),
    Peer("jax jit, donated", "jax", _optax),
    Peer("DeepSpeed", "deepspeed", _deepspeed),
]
