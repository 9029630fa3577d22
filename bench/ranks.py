"""Time a step of one process with two threads beside 1 and 2 ranks of MPI: ``python -m bench.ranks [elements]``.

Also measures what the model of the guide is made of: the latency of a small message to all, and the rate at which large
ones arrive.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

import fusedstep as fs

ROUNDS = 15


def seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def one_process(n: int) -> None:
    """Time the ordinary optimizer."""
    params = {"w": np.ones(n, np.float32)}
    opt = fs.RMSprop(params)
    grads = {"w": np.ones(n, np.float32)}
    opt.step(grads)
    print(f"one process, {fs.get_num_threads()} threads: {1e3 * seconds(lambda: opt.step(grads)):.2f} ms")


def ranks(n: int) -> None:
    """Time a sharded step, a small message to all, and large ones."""
    from mpi4py import MPI

    from fusedstep.mpi import Sharded

    comm = MPI.COMM_WORLD
    params = {"w": np.ones(n, np.float32)}
    opt = Sharded(fs.RMSprop, params, comm=comm)
    grads = {"w": np.ones(n, np.float32)}
    opt.step(grads)
    whole = seconds(lambda: opt.step(grads))
    small, large = np.zeros(4), np.zeros(2**20 // comm.size)
    all_small, all_large = np.empty(4 * comm.size), np.empty(large.size * comm.size)
    latency = seconds(lambda: comm.Allgather(small, all_small))
    arriving = (all_large.nbytes - large.nbytes) / seconds(lambda: comm.Allgather(large, all_large))
    if comm.rank == 0:
        more = f"; a small message to all {1e6 * latency:.0f} us, large ones {arriving / 1e9:.2f} GB/s" * (
            comm.size > 1
        )
        print(f"{comm.size} ranks, {fs.get_num_threads()} thread each: {1e3 * whole:.2f} ms{more}")


def main() -> None:
    """Start each in processes of its own."""
    match sys.argv[1:]:
        case ["one", n]:
            fs.set_num_threads(2)
            one_process(int(n))
        case ["ranks", n]:
            fs.set_num_threads(1)
            ranks(int(n))
        case arguments:
            n = arguments[0] if arguments else str(2**22)
            again = [sys.executable, "-m", "bench.ranks"]
            subprocess.run([*again, "one", n], check=True)
            for count in (1, 2):
                subprocess.run(["mpiexec", "-n", str(count), *again, "ranks", n], check=True)


if __name__ == "__main__":
    main()
