"""What people use today. Each peer is optional, and is checked against the reference before it is timed."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._bench import CHECKED, Case, Contender, numpy_out, repeated

from .cases import Arrays

Made = tuple[Contender, Callable[[], Any]] | None
"""What is timed, and a function that reads the parameter; None: the peer has no such rule."""


@dataclass(frozen=True)
class Peer:
    """A way to compute a case without fusedstep, with this many threads."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[Arrays, int], Made]
    slow: bool = False
    """Whether it takes seconds to be made."""


ACCEPTED = 4.0
"""Units of the last place by which a peer's parameter may differ from the reference after a step."""


def verdict(peer: Peer, case: Case, data: Arrays, threads: int) -> tuple[str, Contender | None]:
    """Return a peer's error in ulp, or what is wrong with it; and the contender if it may be timed."""
    with contextlib.redirect_stdout(sys.stderr):  # keeps what peers print out of the table
        return _verdict(peer, case, data, threads)


def _verdict(peer: Peer, case: Case, data: Arrays, threads: int) -> tuple[str, Contender | None]:
    try:
        for module in peer.needs:
            importlib.import_module(module)
    except ImportError as problem:
        return f"missing: {problem.name or peer.needs[0]} is not installed", None
    try:
        small, expected = (Arrays(case, CHECKED, data.dtype, data.layout) for _ in range(2))
        before = small.param.copy()
        made = peer.make(small, threads)
        if made is None:
            return "has no such rule", None
        contender, parameter = made
        contender(1)
        expected.reference()
        ulp = ulps(np.asarray(parameter()), expected.param, before)
        if not ulp <= ACCEPTED:
            return f"wrong: {ulp:.3g} ulp from the reference after one step", None
        timed = peer.make(data, threads)
        return f"{ulp:.2g} ulp", None if timed is None else timed[0]
    except Exception as problem:  # any error of a peer is shown in its row
        lines = str(problem).splitlines() or [""]
        return f"failed: {type(problem).__name__}: {lines[0]}", None


def ulps(found: NDArray[Any], expected: NDArray[Any], before: NDArray[Any]) -> float:
    """Return the largest error, in units in the last place of the larger of the parameter before and after."""
    spacing = np.spacing(np.maximum(np.abs(expected), np.abs(before))).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64)) / spacing))


def _numpy(data: Arrays, threads: int) -> Made:
    p, g, o = data.param, data.grad, data.case.values
    T = p.dtype.type
    match data.case.name:
        case "RMSprop":
            v = data.states["square_avg"]

            def step() -> None:
                nonlocal p, v
                v = T(o["alpha"]) * v + T(1 - o["alpha"]) * g * g
                p = p - T(o["lr"]) * g / (np.sqrt(v) + T(o["eps"]))
        case "Adagrad":
            s = data.states["square_sum"]

            def step() -> None:
                nonlocal p, s
                s = s + g * g
                p = p - T(o["lr"]) * g / (np.sqrt(s) + T(o["eps"]))
        case "Rprop":
            D, ps = data.states["step_size"], data.states["prev_sign"].astype(p.dtype)
            minus, plus, lo, hi = map(T, (*o["etas"], *o["step_sizes"]))

            def step() -> None:
                nonlocal p, D, ps
                sg = np.sign(g)
                agree = sg * ps
                D = np.clip(np.where(agree > 0, D * plus, np.where(agree < 0, D * minus, D)), lo, hi)
                p = p - sg * D
                ps = sg
        case _:
            return None
    return repeated(step), lambda: p


def _numpy_out(data: Arrays, threads: int) -> Made:
    contender = numpy_out(copy.copy(data))
    return None if contender is None else (contender, lambda: data.param)


def _numexpr(data: Arrays, threads: int) -> Made:
    import numexpr

    numexpr.set_num_threads(threads)
    p, g, o = data.param, data.grad, data.case.values
    T = p.dtype.type
    names: dict[str, Any] = {"p": p, "g": g, "lr": T(o["lr"])}
    match data.case.name:
        case "RMSprop":
            names |= {"v": data.states["square_avg"], "alpha": T(o["alpha"])}
            names |= {"rest": T(1 - o["alpha"]), "eps": T(o["eps"])}
            lines = [("v", "alpha * v + rest * g * g"), ("p", "p - lr * g / (sqrt(v) + eps)")]
        case "Adagrad":
            names |= {"s": data.states["square_sum"], "eps": T(o["eps"])}
            lines = [("s", "s + g * g"), ("p", "p - lr * g / (sqrt(s) + eps)")]
        case "Rprop":
            names |= {"D": data.states["step_size"], "ps": data.states["prev_sign"].astype(T)}
            names |= zip(("minus", "plus", "lo", "hi"), map(T, (*o["etas"], *o["step_sizes"])), strict=True)
            names |= {"zero": T(0), "one": T(1)}
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

    return repeated(step), lambda: p


NUMBA_SCALARS: dict[str, Callable[[dict[str, Any]], tuple[float, ...]]] = {
    "RMSprop": lambda o: (o["lr"], o["alpha"], 1 - o["alpha"], o["eps"]),
    "Adagrad": lambda o: (o["lr"], o["eps"]),
    "Rprop": lambda o: (*o["etas"], *o["step_sizes"], 0, 1),
}
"""What the loops take beside the arrays, from the options of a rule."""


@functools.cache
def numba_loops(parallel: bool) -> dict[str, Any]:
    """Return the loops, each compiled once per type."""
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
    """Return a loop over two dimensions with any strides."""
    import numba

    jit: Any = numba.njit(error_model="numpy")

    @jit  # type: ignore[untyped-decorator]
    def by_rows(p: Any, g: Any, state: Any, scalars: Any) -> None:
        for k in range(p.shape[0]):
            loop(p[k], g[k], state[k], *scalars)

    return by_rows


def _numba(parallel: bool) -> Callable[[Arrays, int], Made]:
    def make(data: Arrays, threads: int) -> Made:
        import numba

        numba.set_num_threads(threads if parallel else 1)
        p, g, o = data.param, data.grad, data.case.values
        states = list(data.states.values())
        if data.case.name not in NUMBA_SCALARS or (p.ndim > 1 and (parallel or len(states) > 1)):
            return None
        if len(states) > 1:
            states[1] = states[1].astype(p.dtype)
        scalars = tuple(map(p.dtype.type, NUMBA_SCALARS[data.case.name](o)))
        loop = numba_loops(parallel)[data.case.name]
        if p.ndim == 1:
            return repeated(lambda: loop(p, g, *states, *scalars)), lambda: p
        by_rows = _numba_by_rows(loop)
        return repeated(lambda: by_rows(p, g, states[0], scalars)), lambda: p

    return make


def _torch(way: str) -> Callable[[Arrays, int], Made]:
    def make(data: Arrays, threads: int) -> Made:
        import torch

        torch.set_num_threads(threads)
        p = torch.from_numpy(data.param).requires_grad_()
        p.grad = torch.from_numpy(data.grad)
        states = data.states
        keys: dict[str, Any] = {"fused": True} if way == "fused" else {"foreach": way == "foreach"}
        match data.case.name:
            case "RMSprop" | "RMSprop, centered" | "RMSprop, momentum" | "RMSprop, centered, momentum" if (
                way != "fused"
            ):
                optimizer: Any = torch.optim.RMSprop([p], **torch_options(data.case), **keys)
                state = {name: torch.from_numpy(array) for name, array in states.items()}
            case "Adagrad":
                optimizer = torch.optim.Adagrad([p], **torch_options(data.case), **keys)
                state = {"sum": torch.from_numpy(states["square_sum"])}
            case "Rprop, irprop-" if way != "fused":  # its one variant
                optimizer = torch.optim.Rprop([p], **torch_options(data.case), **keys)
                prev = torch.from_numpy(states["prev_sign"].astype(data.param.dtype))
                state = {"step_size": torch.from_numpy(states["step_size"]), "prev": prev}
            case _:
                return None
        optimizer.state[p] = {"step": torch.tensor(0.0), **state}
        if way != "compiled":
            return repeated(optimizer.step), lambda: p.detach().numpy()
        torch._dynamo.reset()  # after eight compilations torch would silently run uncompiled code
        step = torch.compile(optimizer.step)
        return repeated(step), lambda: p.detach().numpy()

    return make


def torch_options(case: Case) -> dict[str, Any]:
    """Return the arguments of PyTorch's optimizer for a rule."""
    names = {"rmsprop": "lr alpha eps momentum centered", "adagrad": "lr eps", "rprop": "lr etas step_sizes"}
    return {name: case.values[name] for name in names[case.rule].split()}


def _optax(data: Arrays, threads: int) -> Made:
    """XLA chooses the number of threads and can't be told once it runs."""
    import jax
    import jax.numpy as jnp
    import optax

    config: Any = jax.config
    config.update("jax_enable_x64", True)
    o, states = data.case.values, data.states
    match data.case.name:
        case "RMSprop":
            optimizer = optax.rmsprop(o["lr"], decay=o["alpha"], eps=o["eps"], eps_in_sqrt=False)
            field = "nu"
        case "Adagrad":
            if data.param.dtype != np.float32:
                return None  # its eps is under the root, which shows in double
            optimizer = optax.adagrad(o["lr"], eps=o["eps"])
            field = "sum_of_squares"
        case "Rprop, irprop-":
            optimizer = optax.rprop(o["lr"], *o["etas"], *o["step_sizes"])
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

    return repeated(step), lambda: p


def _deepspeed(data: Arrays, threads: int) -> Made:
    if data.case.name != "Adagrad":
        return None
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad

    torch.set_num_threads(threads)
    p = torch.nn.Parameter(torch.from_numpy(data.param))
    p.grad = torch.from_numpy(data.grad)
    optimizer = DeepSpeedCPUAdagrad([p], **torch_options(data.case))
    optimizer.state[p] = {"step": 0, "exp_avg_sq": torch.from_numpy(data.states["square_sum"])}
    return repeated(optimizer.step), lambda: p.detach().numpy()


PEERS = [
    Peer("NumPy", (), _numpy),
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
