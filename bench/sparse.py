"""``python -m bench --sparse``: gradients of some rows, compared with NumPy, numba, PyTorch, and a dense step.

Batches rotate, 64 of them if they are small, because a branch predictor learns a few by heart.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs

Array = NDArray[Any]
Update = Callable[[Array, Array], None]

LR, EPS = np.float32(0.1), np.float32(1e-10)


@dataclass(frozen=True)
class Job:
    """A table, and batches of indices of its rows."""

    name: str
    shape: tuple[int, ...]
    entries: int
    draw: Callable[[np.random.Generator, int, int], Array]
    """By the number of rows and of entries, an index."""
    batches: int = 64

    def made(self) -> list[tuple[Array, Array]]:
        rng = np.random.default_rng(0)
        indices = [self.draw(rng, self.shape[0], self.entries) for _ in range(self.batches)]
        return [(i, rng.standard_normal((i.size, *self.shape[1:]), dtype=np.float32)) for i in indices]


def zipf(rng: np.random.Generator, rows: int, entries: int) -> Array:
    """Return words of a text: a few of them are most of it."""
    found = rng.zipf(1.3, 4 * entries) - 1
    return found[found < rows][:entries] * 7919 % rows


def uniform(rng: np.random.Generator, rows: int, entries: int) -> Array:
    return rng.integers(0, rows, entries)


def distinct(rng: np.random.Generator, rows: int, entries: int) -> Array:
    return rng.permutation(rows)[:entries]


def multiples(rng: np.random.Generator, rows: int, entries: int) -> Array:
    """Return rows that a hash by multiplication or by low bits sends to the same place."""
    return np.arange(entries) * (rows // entries) // 64 * 64 % rows


JOBS = (
    Job("2,048 words of 200,000 x 64", (200_000, 64), 2_048, zipf),
    Job("2,048 rows of 200,000 x 64 that collide", (200_000, 64), 2_048, multiples),
    Job("10,000 rows of 200,000 x 64", (200_000, 64), 10_000, distinct, 16),
    Job("20,000 rows of 200,000 x 64", (200_000, 64), 20_000, distinct, 8),
    Job("100,000 elements of 10,000,000", (10_000_000,), 100_000, uniform),
    Job("1,000,000 elements of 10,000,000", (10_000_000,), 1_000_000, uniform, 16),
)


def unique_add_at(table: Array, total: Array) -> Update:
    def update(index: Array, values: Array) -> None:
        rows, place = np.unique(index, return_inverse=True)
        sums = np.zeros((rows.size, *table.shape[1:]), table.dtype)
        np.add.at(sums, place, values)
        total[rows] += sums * sums
        table[rows] -= LR * sums / (np.sqrt(total[rows]) + EPS)

    return update


def argsort_reduceat(table: Array, total: Array) -> Update:
    def update(index: Array, values: Array) -> None:
        order = np.argsort(index, kind="stable")
        of_rows = index[order]
        first = np.flatnonzero(np.r_[True, of_rows[1:] != of_rows[:-1]])
        rows, sums = of_rows[first], np.add.reduceat(values[order], first)
        total[rows] += sums * sums
        table[rows] -= LR * sums / (np.sqrt(total[rows]) + EPS)

    return update


def numba_argsort(table: Array, total: Array) -> Update:
    import numba

    jit: Any = numba.njit(error_model="numpy")

    @jit  # type: ignore[untyped-decorator]
    def loop(table: Array, total: Array, order: Array, index: Array, values: Array, lr: Any, eps: Any) -> None:
        n, d = values.shape
        row = np.empty(d, np.float32)
        k = 0
        while k < n:
            r = index[order[k]]
            row[:] = np.float32(0)
            while k < n and index[order[k]] == r:
                for j in range(d):
                    row[j] += values[order[k], j]
                k += 1
            for j in range(d):
                g = row[j]
                s = total[r, j] + g * g
                total[r, j] = s
                table[r, j] -= lr * g / (np.sqrt(s) + eps)

    two = table.reshape(table.shape[0], -1), total.reshape(table.shape[0], -1)
    return lambda index, values: loop(
        *two, np.argsort(index, kind="stable"), index, values.reshape(index.size, -1), LR, EPS
    )


def torch_sparse(table: Array, total: Array) -> Update:
    import torch

    param = torch.nn.Parameter(torch.from_numpy(table))
    optimizer = torch.optim.Adagrad([param], lr=float(LR), eps=float(EPS))

    def update(index: Array, values: Array) -> None:
        param.grad = torch.sparse_coo_tensor(
            torch.from_numpy(index)[None], torch.from_numpy(values), table.shape, check_invariants=False
        )
        optimizer.step()

    return update


COLUMNS, WORDS = 1_000_000, 100
"""Of a logistic regression: its weights, and how many of them a document touches."""

PEERS = {
    "numba over argsort": numba_argsort,
    "unique + add.at": unique_add_at,
    "argsort + reduceat": argsort_reduceat,
    "torch, sparse": torch_sparse,
}


def contenders(job: Job, threads: int) -> Iterator[tuple[str, Update]]:
    """Make each with its own table, so that memory is as in real use."""
    table = np.ones(job.shape, np.float32)
    optimizer = fs.Adagrad(table, lr=float(LR))
    yield "fusedstep", lambda index, values: void(optimizer.step(fs.Rows(index, values)))
    if threads > 1:
        return
    grad = np.ones(job.shape, np.float32)
    yield "fusedstep, dense", lambda index, values: void(optimizer.step(grad))
    for name, make in PEERS.items():
        try:
            yield name, make(np.ones(job.shape, np.float32), np.zeros(job.shape, np.float32))
        except ImportError:
            continue


def void(value: object) -> None:
    """Drop a result."""


def seconds_of(update: Update, batches: list[tuple[Array, Array]], seconds: float) -> float:
    """Return the median time of a call, over rotating batches."""
    for index, values in batches[:2]:
        update(index, values)
    times = []
    end = time.perf_counter() + seconds
    for index, values in itertools.cycle(batches):
        before = time.perf_counter()
        update(index, values)
        times.append(time.perf_counter() - before)
        if (times[-1] + before > end and len(times) >= 5) or len(times) >= 20_000:
            break
    return statistics.median(times)


def logistic_regression(weights: Array, documents: int) -> tuple[float, dict[str, Update], Any]:
    """Return the share of columns that a batch touches, two ways from its errors to a step, and batches."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    batches = []
    for _ in range(8):
        index = rng.integers(0, weights.size, documents * WORDS)
        counts = rng.standard_normal(index.size, dtype=np.float32)
        batches.append((csr_array((counts, index, np.arange(documents + 1) * WORDS), (documents, weights.size)), None))
    optimizer = fs.Adagrad(weights, lr=float(LR))
    error = rng.standard_normal(documents, dtype=np.float32)

    def by_rows(batch: Any, _: object) -> None:
        optimizer.step(fs.Rows(batch.indices, batch.data * np.repeat(error, np.diff(batch.indptr))))

    def dense(batch: Any, _: object) -> None:
        optimizer.step(batch.T @ error)

    touched = np.mean([np.unique(batch.indices).size for batch, _ in batches]) / weights.size
    return float(touched), {"rows": by_rows, "dense": dense}, batches


def alternated(ways: dict[str, Update], batches: Any, seconds: float) -> dict[str, float]:
    """Return the median time of each way, of three rounds in which they take turns."""
    rounds = [[seconds_of(update, batches, seconds / 3) for update in ways.values()] for _ in range(3)]
    return dict(zip(ways, map(statistics.median, zip(*rounds, strict=True)), strict=True))


def report(seconds: float) -> Iterator[str]:
    """Time all in turn and compare them: the ratio of fusedstep's time to theirs."""
    most = fs.get_num_threads()
    for job in JOBS:
        batches = job.made()
        yield f"\n{job.name}, {np.mean([np.unique(index).size for index, _ in batches]):,.0f} distinct"
        fs.set_num_threads(1)
        found = alternated(dict(contenders(job, 1)), batches, seconds)
        ours = found["fusedstep"]
        for name, time_of in found.items():
            yield f"  {name:<20} {1e6 * time_of:>10,.0f} us   {ours / time_of:.3f}"
        fs.set_num_threads(most)
        if most > 1:
            shared = alternated(dict(contenders(job, most)), batches, seconds)["fusedstep"]
            yield f"  {f'{most} threads':<20} {1e6 * shared:>10,.0f} us   {ours / shared:.2f} times as fast as one"
    yield f"\nlogistic regression on documents of {WORDS} of {COLUMNS:,} words (CSR), one thread: gradient and step"
    fs.set_num_threads(1)
    for documents in (10, 100, 300, 1_000, 3_000, 10_000):
        touched, ways, batches = logistic_regression(np.zeros(COLUMNS, np.float32), documents)
        rows, dense = alternated(ways, batches, seconds).values()
        yield f"  {touched:>6.1%} touched {1e6 * rows:>12,.0f} us   dense {1e6 * dense:>10,.0f} us   {rows / dense:.2f}"
    fs.set_num_threads(most)
