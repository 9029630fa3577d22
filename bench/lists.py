"""Lists of parameters, and what people use today to update them. Each peer is checked before it is timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep._bench import CHECKED, Case, Contender, repeated

from .cases import Arrays, by_name, first_states, lists, stepped
from .peers import ACCEPTED, NUMBA_SCALARS, PEERS, Peer, numba_loops, torch_options, ulps

Array = NDArray[Any]

MODELS = {
    "1 x 16": [16],
    "perceptron 64-256-10": [64 * 256, 256, 256 * 10, 10],
    "100 x 10,000": [10_000] * 100,
    "1,000 x 1,000": [1_000] * 1_000,
    "10,000 x 16": [16] * 10_000,
}
"""The sizes of the parameters."""


Made = tuple[Contender, Callable[[], list[Any]]] | None
"""What is timed, and a function that reads the parameters; None: the peer has no such rule."""

Make = Callable[[Case, list[Array], list[Array], int], Made]


@dataclass(frozen=True)
class PeerOfLists:
    """A way to update a list of arrays without our optimizers, with this many threads."""

    name: str
    needs: str
    make: Make


def verdict_of_list(
    peer: PeerOfLists, case: Case, params: list[Array], grads: list[Array], threads: int
) -> tuple[str, Contender | None]:
    """Return a peer's error or what is wrong with it, and the contender if it may be timed."""
    try:
        importlib.import_module(peer.needs)
    except ImportError:
        return f"missing: {peer.needs} is not installed", None
    try:
        small, small_grads = lists(case, [CHECKED, 16, 1], params[0].dtype)
        before = [p.copy() for p in small]
        made = peer.make(case, small, small_grads, threads)
        if made is None:
            return "has no such rule", None
        contender, parameters = made
        contender(1)
        expected = [stepped(case, p, g) for p, g in zip(before, small_grads, strict=True)]
        ulp = max(map(ulps, parameters(), expected, before))
        if not ulp <= ACCEPTED:
            return f"wrong: {ulp:.3g} ulp from the reference after one step", None
        timed = peer.make(case, params, grads, threads)
        return f"{ulp:.2g} ulp", None if timed is None else timed[0]
    except Exception as problem:  # any error of a peer is shown in its row
        lines = str(problem).splitlines() or [""]
        return f"failed: {type(problem).__name__}: {lines[0]}", None


def _each(peer: Peer) -> PeerOfLists:
    """Turn a peer of one array that only needs NumPy into one of lists, which updates one array after the other."""

    def make(case: Case, params: list[Array], grads: list[Array], threads: int) -> Made:
        made = []
        for p, g in zip(params, grads, strict=True):
            data = Arrays(case, p.size, p.dtype)
            data.param, data.grad, data.states = p, g, first_states(case, p)
            if (one := peer.make(data, threads)) is None:
                return None
            made.append(one)
        contenders = [contender for contender, _ in made]
        return lambda calls: sum(call(1) for _ in range(calls) for call in contenders), lambda: [p() for _, p in made]

    return PeerOfLists(peer.name, "numpy", make)


def _torch(way: str) -> Make:
    def make(case: Case, params: list[Array], grads: list[Array], threads: int) -> Made:
        import torch

        from fusedstep import torch as ours

        if case.name == "Rprop" or (way == "fused" and case.name != "Adagrad"):
            return None
        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(p).requires_grad_() for p in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        options = torch_options(case)
        if way != "adaptor":
            options |= {"fused": True} if way == "fused" else {"foreach": way == "foreach"}
        optimizer: Any = getattr(ours if way == "adaptor" else torch.optim, case.class_.__name__)(tensors, **options)
        return repeated(optimizer.step), lambda: params

    return make


def _numba(case: Case, params: list[Array], grads: list[Array], threads: int) -> Made:
    """Call the user's own compiled loop for each array."""
    if case.name not in NUMBA_SCALARS:
        return None
    T = params[0].dtype.type
    scalars = tuple(map(T, NUMBA_SCALARS[case.name](case.values)))
    loop = numba_loops(False)[case.name]
    states = [[state.astype(T) for state in first_states(case, p).values()] for p in params]

    def step() -> None:
        for p, g, own in zip(params, grads, states, strict=True):
            loop(p, g, *own, *scalars)

    return repeated(step), lambda: params


PEERS_OF_LISTS = [
    *(_each(peer) for peer in PEERS if peer.name.startswith("NumPy")),
    PeerOfLists("fusedstep.torch", "torch", _torch("adaptor")),
    PeerOfLists("torch loop", "torch", _torch("loop")),
    PeerOfLists("torch foreach", "torch", _torch("foreach")),
    PeerOfLists("torch fused", "torch", _torch("fused")),
    PeerOfLists("numba, a call per array", "numba", _numba),
]


SCALE, NORM = 1024.0, 1.0
"""What the loss was multiplied by, and the largest norm."""


def whole_step(params: list[Array], grads: list[Array], alpha: float) -> Contender:
    """Return a step of RMSprop that unscales and clips the gradients and sets them to 0."""
    optimizer = fs.RMSprop(params, lr=1e-3, alpha=alpha)
    return repeated(lambda: optimizer.step(grads, grad_scale=SCALE, clip_norm=NORM, zero_grads=True))


def _whole_step_of_torch(params: list[Array], grads: list[Array], alpha: float, threads: int) -> Contender:
    import torch

    torch.set_num_threads(threads)
    tensors: Any = [torch.from_numpy(p).requires_grad_() for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    optimizer = torch.optim.RMSprop(tensors, lr=1e-3, alpha=alpha, foreach=True)

    def step() -> None:
        torch._foreach_div_([tensor.grad for tensor in tensors], SCALE)
        torch.nn.utils.clip_grad_norm_(tensors, NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return repeated(step)


def verdict_of_whole_step(params: list[Array], grads: list[Array], threads: int) -> tuple[str, Contender | None]:
    """Return the error of torch's whole step against ours, and its contender if it may be timed."""
    try:
        importlib.import_module("torch")
    except ImportError:
        return "missing: torch is not installed", None
    small, small_grads = lists(by_name("RMSprop"), [CHECKED, 16, 1], params[0].dtype)
    small_grads = [grad * 100_000 for grad in small_grads]
    before = [p.copy() for p in small]
    expected = [p.copy() for p in small]
    whole_step(expected, [grad.copy() for grad in small_grads], 0.9)(1)
    _whole_step_of_torch(small, small_grads, 0.9, threads)(1)
    ulp = max(map(ulps, small, expected, before))
    if not ulp <= ACCEPTED or any(map(np.any, small_grads)):
        return f"wrong: {ulp:.3g} ulp from ours after one step", None
    return f"{ulp:.2g} ulp", _whole_step_of_torch(params, grads, 1.0, threads)
