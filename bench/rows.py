"""The rows: which cases, sizes, types, threads and ways of calling are timed, and the measured rates beside them."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import _bench
from fusedstep._bench import Case, Contender, Timing, alternate, divider, kernel, repeated, streaming

from .cases import (
    CASES,
    LAYOUTS,
    Arrays,
    by_name,
    cpp_function,
    cpp_optimizer,
    error,
    error_of_optimizers,
    lists,
    optimizer,
)
from .lists import MODELS, PEERS_OF_LISTS, verdict_of_list, verdict_of_whole_step, whole_step
from .peers import PEERS, verdict

MAIN = ("RMSprop", "Adagrad", "Rprop", "Rprop, irprop-")
"""The cases that peers have too; the last is torch's Rprop."""

SLOW_AT = (1_000, 1_000_000, 16_000_000)
"""Sizes at which peers that take seconds to be made are timed."""

OURS = "fusedstep"
STREAMING, DIVIDER = "streaming rate", "divider rate"


@dataclass(frozen=True)
class Setting:
    """What to measure, and how long a group of contenders may take."""

    sizes: tuple[int, ...]
    sizes_of_variants: tuple[int, ...] = ()
    """Sizes of the cases that peers do not have."""
    sizes_in_parallel: tuple[int, ...] | None = None
    """Sizes that are measured on more than one thread, where not all of them are."""
    cases: tuple[str, ...] = MAIN
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    isas: bool = False
    peers: bool = True
    slow_peers: bool = True
    layouts: bool = False
    models: tuple[str, ...] = ()
    whole_step: bool = False
    seconds: float = 0.5


QUICK = Setting(
    sizes=(1_000, 30_000, 1_000_000), slow_peers=False, models=("1 x 16", "100 x 10,000"), whole_step=True, seconds=0.6
)


def table() -> Setting:
    """Return the setting for README's table."""
    return Setting(
        sizes=(16, 1_000, 30_000, 1_000_000, 16_000_000, 64_000_000),
        sizes_in_parallel=(16_000_000, 64_000_000),
        threads=_one_and_all(),
        models=tuple(MODELS),
        whole_step=True,
        seconds=1.0,
    )


def full() -> Setting:
    """Return the setting that measures everything on this machine."""
    return Setting(
        sizes=(16, 256, 1_000, 4_000, 30_000, 100_000, 1_000_000, 16_000_000, 64_000_000),
        sizes_of_variants=(16, 1_000, 30_000, 1_000_000, 16_000_000),
        cases=tuple(case.name for case in CASES),
        dtypes=("float32", "float64"),
        threads=_one_and_all(),
        isas=True,
        layouts=True,
        models=tuple(MODELS),
        whole_step=True,
        seconds=0.8,
    )


def _one_and_all() -> tuple[int, ...]:
    return tuple(sorted({1, fs.get_num_threads()}))


@dataclass(frozen=True)
class Row:
    """One timing, with the slower of the measured rates of its group; ``n`` elements in all."""

    case: str
    what: str
    """The layout of an array, the model whose parameters are updated, or what is done beside the update."""
    way: str
    n: int
    dtype: str
    threads: int
    isa: str
    error: str
    ns_per_element: float | None
    lower: float | None
    upper: float | None
    rounds: int
    gigabytes_per_second: float | None
    share_of_rate: float | None
    bound_by: str

    @property
    def group(self) -> tuple[str, str, int, str, int]:
        return self.case, self.what, self.n, self.dtype, self.threads

    @property
    def is_ours(self) -> bool:
        return self.way.startswith(OURS)

    @property
    def is_rate(self) -> bool:
        return is_rate(self.way)


def is_rate(way: str) -> bool:
    return way.startswith((STREAMING, DIVIDER))


@dataclass(frozen=True)
class Group:
    """Contenders that are timed in turn; ``rows`` times them."""

    name: str
    threads: int
    rows: Callable[[], Iterator[Row]]


def groups(setting: Setting) -> list[Group]:
    """Return the groups of a setting."""
    made: list[Group] = []
    for threads in setting.threads:
        for dtype in map(np.dtype, setting.dtypes):
            for name in setting.cases:
                case = by_name(name)
                for n in setting.sizes if name in MAIN else setting.sizes_of_variants:
                    if threads > 1 and setting.sizes_in_parallel and n not in setting.sizes_in_parallel:
                        continue
                    made.append(
                        Group(f"{name}, {n:,} of {dtype}", threads, partial(_array, case, n, dtype, threads, setting))
                    )
        main = [by_name(name) for name in setting.cases if name in MAIN]
        for case in main:
            for layout in LAYOUTS[2:] if setting.layouts else ():
                work = partial(_array, case, 1_000_000, np.dtype("float32"), threads, setting, layout)
                made.append(Group(f"{case.name}, {layout}", threads, work))
            for model in setting.models if threads == 1 or setting.sizes_in_parallel is None else ():
                made.append(
                    Group(
                        f"{case.name}, {model}",
                        threads,
                        partial(_model, case, model, threads, setting.seconds, setting.peers),
                    )
                )
        if setting.whole_step and (threads == 1 or setting.sizes_in_parallel is None):
            made.append(Group("whole step", threads, partial(_whole_step, threads, setting.seconds)))
    return made


def measure(made: list[Group], progress: Callable[[int, str], None] = lambda done, name: None) -> Iterator[Row]:
    """Measure the groups, and yield rows as they come."""
    before = fs.get_num_threads()
    try:
        for k, group in enumerate(made):
            progress(k, f"{group.name}, {group.threads} thread{'s' if group.threads > 1 else ''}")
            fs.set_num_threads(group.threads)
            yield from group.rows()
    finally:
        fs.set_num_threads(before)


def _array(
    case: Case, n: int, dtype: np.dtype[Any], threads: int, setting: Setting, layout: str = LAYOUTS[0]
) -> Iterator[Row]:
    data = Arrays(case, n, dtype, layout)
    contenders: dict[str, Contender] = {
        STREAMING: streaming(data),
        f"{OURS}, kernel": kernel(data),
        f"{OURS}, C++ function": cpp_function(data),
        f"{OURS}, Python function": repeated(data.call),
    }
    if layout == LAYOUTS[0]:
        aligned = Arrays(case, n, dtype, "aligned")
        contenders[f"{STREAMING}, aligned"] = streaming(aligned)
        contenders[f"{OURS}, kernel, aligned"] = kernel(aligned)
        contenders[f"{OURS}, C++ optimizer"] = cpp_optimizer(case, [data.param], [data.grad])
        contenders[f"{OURS}, Python optimizer"] = optimizer(case, [data.param], [data.grad])
        for isa in fs.available_isas() if setting.isas else ():
            if isa != fs.isa():
                contenders[f"{OURS}, kernel, {isa}"] = _forced(isa, data)
    if (in_registers := divider(data)) is not None:
        contenders[DIVIDER] = in_registers
    own = error(case, dtype, layout)
    of_optimizers = error_of_optimizers(case, dtype)
    says = {way: of_optimizers if "optimizer" in way else own for way in contenders if way.startswith(OURS)}
    for peer in PEERS if setting.peers else ():
        if peer.slow and not (setting.slow_peers and n in SLOW_AT and layout == LAYOUTS[0]):
            continue
        says[peer.name], contender = verdict(peer, case, data, threads)
        if contender is not None:
            contenders[peer.name] = contender
    timings = alternate(contenders, setting.seconds)
    make = partial(_row, case.name, layout, str(dtype), threads)
    yield from _rows(make, data.size, says, timings, case.bytes_per_element(dtype))


def _rows(
    make: Callable[..., Row], n: int, says: dict[str, str], timings: dict[str, Timing], moved: int
) -> Iterator[Row]:
    rates: dict[str, Timing] = {}
    if streams := [timings[way] for way in timings if way.startswith(STREAMING)]:
        shared = set.intersection(*(set(each) for each in streams))
        rates["streaming"] = {k: min(each[k] for each in streams) for k in shared}
    if DIVIDER in timings:
        rates["divider"] = timings[DIVIDER]
    bound_by = max(rates, key=lambda name: _bench.median(rates[name]), default="")
    for way in [*timings, *(name for name in says if name not in timings)]:
        timing, of_rate = timings.get(way), is_rate(way)
        share = _bench.share(rates[bound_by], timing) if timing and bound_by and not of_rate else None
        yield make(way, n, says.get(way, ""), timing, moved=moved, share=share, bound_by="" if of_rate else bound_by)


def _row(
    case: str,
    what: str,
    dtype: str,
    threads: int,
    way: str,
    n: int,
    said: str,
    timing: Timing | None,
    *,
    moved: int,
    share: float | None = None,
    bound_by: str = "",
) -> Row:
    lower, median, upper = statistics.quantiles(timing.values(), n=4, method="inclusive") if timing else (None,) * 3
    middle, low, high = (None if seconds is None else seconds / n * 1e9 for seconds in (median, lower, upper))
    rate = None if median is None or way == DIVIDER else moved * n / median / 1e9
    rounds = len(timing or ())
    return Row(case, what, way, n, dtype, threads, fs.isa(), said, middle, low, high, rounds, rate, share, bound_by)


def _forced(isa: str, data: Arrays) -> Contender:
    """Return the kernel of another instruction set. A prepared update keeps the one that it was prepared with."""
    with fs.use_isa(isa):
        return kernel(data)


def _model(case: Case, model: str, threads: int, seconds: float, peers: bool) -> Iterator[Row]:
    """Lists of arrays: our optimizers, the adaptor for PyTorch, and what others do with lists."""
    sizes = MODELS[model]
    dtype = np.dtype("float32")
    params, grads = lists(case, sizes, dtype)
    own = error_of_optimizers(case, dtype)
    contenders: dict[str, Contender] = {
        f"{OURS}, C++ optimizer": cpp_optimizer(case, params, grads),
        f"{OURS}, Python optimizer": optimizer(case, params, grads),
    }
    says = dict.fromkeys(contenders, own)
    for peer in PEERS_OF_LISTS if peers else ():
        says[peer.name], contender = verdict_of_list(peer, case, params, grads, threads)
        if contender is not None:
            contenders[peer.name] = contender
    timings = alternate(contenders, seconds)
    make = partial(_row, case.name, model, "float32", threads)
    yield from _rows(make, sum(sizes), says, timings, case.bytes_per_element(dtype))


def _whole_step(threads: int, seconds: float) -> Iterator[Row]:
    """Unscale, norm, clip, update and zero, of 1,000,000 elements of float32 in ten arrays.

    The gradient is 0 after the first step; alpha = 1 keeps averages from sinking into subnormal numbers for it.
    """
    case = by_name("RMSprop")
    n, dtype = 1_000_000, np.dtype("float32")
    params, grads = lists(case, [n // 10] * 10, dtype)
    way = f"{OURS}, Python optimizer"
    contenders: dict[str, Contender] = {way: whole_step(params, grads, alpha=1.0)}
    says = {way: error_of_optimizers(case, dtype)}
    says["torch foreach"], contender = verdict_of_whole_step(params, grads, threads)
    if contender is not None:
        contenders["torch foreach"] = contender
    timings = alternate(contenders, seconds)
    make = partial(_row, case.name, "whole step: unscale, norm, clip, update, zero", "float32", threads)
    # The norm reads g once more, and zero_grads writes it.
    yield from _rows(make, n, says, timings, case.bytes_per_element(dtype) + 2 * dtype.itemsize)


def machine() -> dict[str, Any]:
    """Return processor, system and versions, without which a number means nothing."""
    facts = _bench.machine()
    versions = {"python": facts["python"], "fusedstep": facts["version"]}
    for package in ("numpy", "numexpr", "numba", "torch", "jax", "optax", "deepspeed"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    named = {"instruction set": fs.isa(), "threads": fs.get_num_threads(), "versions": versions}
    return {name: facts[name] for name in ("processor", "system", "compiler")} | named
