"""``python -m bench.narrow``: steps over arrays of 16 bits as ratios to float32, beside numba loops of that storage.

Ratios of medians, over rounds in which all contenders alternate. Bytes are those that a step has to read and write.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep._bench import Contender, alternate, machine, median, repeated

from . import peers

Array = NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STATES: dict[str, Any] = {"state_dtype": "bfloat16"}
STORAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (np.float32, {}),
    "bfloat16 states, to nearest": (np.float32, {**STATES, "rounding": "nearest"}),
    "bfloat16 states, stochastic": (np.float32, STATES),
    "all bfloat16, to nearest": (BFLOAT16, {**STATES, "rounding": "nearest"}),
    "all bfloat16, stochastic": (BFLOAT16, STATES),
    "all bfloat16, with master": (BFLOAT16, {**STATES, "master": True}),
}
SIZES = (30_000, 16_000_000)
LR, ALPHA, EPS = 1e-3, 0.9, 1e-8


def made(n: int, dtype: Any) -> tuple[Array, Array]:
    """Return a parameter and a gradient."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(n, np.float32).astype(dtype), rng.standard_normal(n, np.float32).astype(dtype)


def ours(cls: Any, n: int, dtype: Any, options: dict[str, Any]) -> tuple[Contender, int]:
    """Return steps of an optimizer, and the bytes of each."""
    param, grad = made(n, dtype)
    optimizer = cls(param, lr=LR, **options)
    return repeated(partial(optimizer.step, grad)), 2 * (param.nbytes + optimizer.nbytes) + grad.nbytes


@functools.cache
def numba_loops(parallel: bool) -> dict[str, Any]:
    """Return RMSprop by the storage of its arrays, each rounded to nearest; bfloat16 as its bits."""
    import numba

    jit: Any = numba.njit(error_model="numpy", parallel=parallel)
    inline: Any = numba.njit(inline="always")
    span = numba.prange if parallel else range

    @inline  # type: ignore[untyped-decorator]
    def widened(bits: Any) -> Any:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)

    @inline  # type: ignore[untyped-decorator]
    def rounded(x: Any) -> Any:
        b = np.float32(x).view(np.uint32)
        up = np.uint32(b + np.uint32(0x7FFF) + (np.uint32(b >> np.uint32(16)) & np.uint32(1)))
        return np.uint16((np.uint32(0x7FC00000) if x != x else up) >> np.uint32(16))

    @jit  # type: ignore[untyped-decorator]
    def states(p: Any, g: Any, v: Any, lr: Any, alpha: Any, rest: Any, eps: Any) -> None:
        for i in span(p.size):
            s = alpha * widened(v[i]) + rest * g[i] * g[i]
            v[i] = rounded(s)
            p[i] = p[i] - lr * g[i] / (np.sqrt(s) + eps)

    @jit  # type: ignore[untyped-decorator]
    def everything(p: Any, g: Any, v: Any, lr: Any, alpha: Any, rest: Any, eps: Any) -> None:
        for i in span(p.size):
            d = widened(g[i])
            s = alpha * widened(v[i]) + rest * d * d
            v[i] = rounded(s)
            p[i] = rounded(widened(p[i]) - lr * d / (np.sqrt(s) + eps))

    return {
        "float32": peers.numba_loops(parallel)["RMSprop"],
        "bfloat16 states, to nearest": states,
        "all bfloat16, to nearest": everything,
    }


def numba(storage: str, loop: Any, n: int) -> tuple[Contender, int]:
    """Return a loop of numba, whose first step has the bits of ours, and the bytes of a step."""
    dtype, options = STORAGES[storage]
    state_dtype = BFLOAT16 if options else np.dtype(np.float32)
    scalars = [np.float32(x) for x in (LR, ALPHA, 1 - ALPHA, EPS)]

    def arrays(n: int) -> tuple[list[Array], list[Array]]:
        kept = [*made(n, dtype), np.zeros(n, state_dtype)]
        return kept, [x.view(np.uint16) if x.dtype == BFLOAT16 else x for x in kept]

    expected, _ = arrays(1_000)
    found, seen = arrays(1_000)
    loop(*seen, *scalars)
    fs.rmsprop_(*expected, lr=LR, alpha=ALPHA, eps=EPS)
    if any(a.tobytes() != b.tobytes() for a, b in zip(expected, found, strict=True)):
        print(f"  numba, {storage}: other bits than the reference")
    (param, grad, state), seen = arrays(n)
    return repeated(lambda: loop(*seen, *scalars)), 2 * (param.nbytes + state.nbytes) + grad.nbytes


def show(cls: Any, n: int, threads: int, seconds: float) -> None:
    made = {name: ours(cls, n, *storage) for name, storage in STORAGES.items()}
    if cls is fs.RMSprop and importlib.util.find_spec("numba") is not None:
        import numba as compiler

        compiler.set_num_threads(threads)
        made |= {f"numba, {name}": numba(name, loop, n) for name, loop in numba_loops(threads > 1).items()}
    timings = alternate({name: contender for name, (contender, _) in made.items()}, seconds, 15)
    print(f"\n{cls.__name__}, {n:,} elements, {threads} thread{'s' if threads > 1 else ''}")
    print(f"  {'':<34} {'ns per element':>15} {'times as fast as float32':>25} {'GB/s':>7}")
    for name, timing in timings.items():
        ratio = median(timings["float32"]) / median(timing)
        speed = made[name][1] / median(timing) / 1e9
        print(f"  {name:<34} {median(timing) / n * 1e9:>15.3f} {ratio:>25.2f} {speed:>7.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for one table")
    options = parser.parse_args()
    before = fs.get_num_threads()
    print(machine()["processor"], fs.isa())
    for cls in (fs.RMSprop, fs.Adagrad, fs.Rprop):
        for threads, n in [(1, n) for n in SIZES] + [(before, SIZES[-1])] * (before > 1):
            fs.set_num_threads(threads)
            show(cls, n, threads, options.seconds)
    fs.set_num_threads(before)


if __name__ == "__main__":
    main()
