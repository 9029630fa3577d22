"""The rows of the benchmark: which cases, sizes, types, threads and ways of calling are timed beside which limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import _config, _core
from .cases import (
    CASES,
    LAYOUTS,
    Case,
    Data,
    bound,
    bound_cpp,
    by_name,
    divider,
    error,
    error_of_optimizers,
    lists,
    traffic,
    traffic_bytes,
)
from .instrument import Contender, Native, Timing, alternate
from .models import MODELS, PEERS_OF_LISTS, verdict_of_list, verdict_of_whole_step, whole_step
from .peers import PEERS, verdict

__all__ = ["OURS", "QUICK", "Row", "Setting", "full", "groups", "machine", "measure", "table"]

MAIN = ("RMSprop", "Adagrad", "Rprop", "Rprop, irprop-")
"""The cases that peers have too; the last is torch's Rprop."""

SLOW_AT = (1_000, 1_000_000, 16_000_000)
"""Sizes at which peers that take seconds to be made are timed."""

OURS = "fusedstep"


@dataclass(frozen=True)
class Setting:
    """What is to be measured, and how long a group of contenders may take."""

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
    """Return what README shows."""
    return Setting(
        sizes=(16, 1_000, 30_000, 1_000_000, 16_000_000, 64_000_000),
        sizes_in_parallel=(16_000_000, 64_000_000),
        threads=_one_and_all(),
        models=tuple(MODELS),
        whole_step=True,
        seconds=1.0,
    )


def full() -> Setting:
    """Return everything, on this machine."""
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
    return tuple(sorted({1, _config.get_num_threads()}))


@dataclass(frozen=True)
class Row:
    """One timing, beside the limit of its group; ``n`` elements in all."""

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
    share_of_limit: float | None
    bound_by: str

    @property
    def group(self) -> tuple[str, str, int, str, int]:
        return self.case, self.what, self.n, self.dtype, self.threads

    @property
    def is_ours(self) -> bool:
        return self.way.startswith(OURS)

    @property
    def is_limit(self) -> bool:
        return self.way.startswith("limit")


@dataclass(frozen=True)
class Group:
    """Contenders that are timed in turn; ``rows`` does it."""

    name: str
    threads: int
    rows: Callable[[], Iterator[Row]]


def groups(setting: Setting) -> list[Group]:
    """Return what a setting asks for."""
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
    """Measure the groups, and yield the rows as they come."""
    before = _config.get_num_threads()
    try:
        for k, group in enumerate(made):
            progress(k, f"{group.name}, {group.threads} thread{'s' if group.threads > 1 else ''}")
            _config.set_num_threads(group.threads)
            yield from group.rows()
    finally:
        _config.set_num_threads(before)


def _array(
    case: Case, n: int, dtype: np.dtype[Any], threads: int, setting: Setting, layout: str = LAYOUTS[0]
) -> Iterator[Row]:
    data = Data(case, n, dtype, layout)
    contenders: dict[str, Contender] = {
        "limit: traffic": traffic(data),
        f"{OURS}, kernel": data.kernel(),
        f"{OURS}, C++ function": data.step_cpp(),
        f"{OURS}, Python function": data.update,
    }
    if layout == LAYOUTS[0]:
        aligned = Data(case, n, dtype, "aligned")
        contenders["limit: traffic, aligned"] = traffic(aligned)
        contenders[f"{OURS}, kernel, aligned"] = aligned.kernel()
        contenders[f"{OURS}, C++ optimizer"] = bound_cpp(case, [data.param], [data.grad])
        contenders[f"{OURS}, Python optimizer"] = bound(case, [data.param], [data.grad])
        for isa in _config.available_isas() if setting.isas else ():
            if isa != _config.isa():
                contenders[f"{OURS}, kernel, {isa}"] = _forced(isa, data)
    in_registers = divider(case, n, dtype)
    if in_registers is not None:
        contenders["limit: divider"] = in_registers
    own = error(case, dtype, layout)
    of_optimizers = error_of_optimizers(case, dtype)
    says = {way: of_optimizers if "optimizer" in way else own for way in contenders if way.startswith(OURS)}
    for peer in PEERS if setting.peers else ():
        if peer.slow and not (setting.slow_peers and n in SLOW_AT and layout == LAYOUTS[0]):
            continue
        says[peer.name], step = verdict(peer, case, data, threads)
        if step is not None:
            contenders[peer.name] = step

    timings = alternate(contenders, setting.seconds)
    moved = case.bytes_per_element(dtype)
    make = partial(_row, case.name, layout, str(dtype), threads)
    yield from _rows(make, n, says, timings, moved, moved / traffic_bytes(case, dtype))


def _rows(
    make: Callable[..., Row], n: int, says: dict[str, str], timings: dict[str, Timing], moved: int, passes: float = 1.0
) -> Iterator[Row]:
    """Make rows of timings; ``passes`` is how often the rule moves what the traffic's limit moves once."""
    traffic_ways = [way for way in timings if way.startswith("limit: traffic")]
    limits: dict[str, float] = {}
    if traffic_ways:
        limits["traffic"] = min(timings[way].median for way in traffic_ways) * passes
    if "limit: divider" in timings:
        limits["divider"] = timings["limit: divider"].median
    bound_by = max(limits, key=lambda name: limits[name], default="")

    def limit_in(k: int) -> float:
        if bound_by == "divider":
            return timings["limit: divider"].by_round[k]
        return min(timings[way].by_round[k] for way in traffic_ways) * passes

    for way in [*timings, *(name for name in says if name not in timings)]:
        timing = timings.get(way)
        limit = way.startswith("limit")
        share = None
        if timing and bound_by and not limit:
            # Within a round, for on several threads the memory changes its speed from one second to the next.
            shared = [
                k for k in timing.by_round if all(k in timings[each].by_round for each in timings if "limit" in each)
            ]
            share = statistics.median(limit_in(k) / timing.by_round[k] for k in shared)
        yield make(way, n, says.get(way, ""), timing, moved=moved, share=share, bound_by="" if limit else bound_by)


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
    return Row(
        case=case,
        what=what,
        way=way,
        n=n,
        dtype=dtype,
        threads=threads,
        isa=_config.isa(),
        error=said,
        ns_per_element=None if timing is None else timing.median / n * 1e9,
        lower=None if timing is None else timing.lower / n * 1e9,
        upper=None if timing is None else timing.upper / n * 1e9,
        rounds=0 if timing is None else len(timing.by_round),
        gigabytes_per_second=None if timing is None or way == "limit: divider" else moved * n / timing.median / 1e9,
        share_of_limit=share,
        bound_by=bound_by,
    )


def _forced(isa: str, data: Data) -> Native:
    """Return the kernel of another instruction set: a prepared update keeps the one it was prepared with."""
    with _config.use_isa(isa):
        return data.kernel()


def _model(case: Case, model: str, threads: int, seconds: float, peers: bool) -> Iterator[Row]:
    """Lists of arrays: our optimizers, the adaptor for PyTorch, and what others do with a list."""
    sizes = MODELS[model]
    dtype = np.dtype("float32")
    params, grads = lists(case, sizes, dtype)
    own = error_of_optimizers(case, dtype)
    contenders: dict[str, Contender] = {
        f"{OURS}, C++ optimizer": bound_cpp(case, params, grads),
        f"{OURS}, Python optimizer": bound(case, params, grads),
    }
    says = dict.fromkeys(contenders, own)
    for peer in PEERS_OF_LISTS if peers else ():
        says[peer.name], step = verdict_of_list(peer, case, params, grads, threads)
        if step is not None:
            contenders[peer.name] = step
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
    says["torch foreach"], step = verdict_of_whole_step(params, grads, threads)
    if step is not None:
        contenders["torch foreach"] = step
    timings = alternate(contenders, seconds)
    make = partial(_row, case.name, "whole step: unscale, norm, clip, update, zero", "float32", threads)
    # The norm reads g once more, and zeroing writes it.
    yield from _rows(make, n, says, timings, case.bytes_per_element(dtype) + 2 * dtype.itemsize)


def machine() -> dict[str, Any]:
    """Return what a number is worth nothing without."""
    import importlib.metadata
    import platform

    model = ""
    try:
        with open("/proc/cpuinfo") as info:
            flags = next((line for line in info if line.startswith("model name")), "")
            model = flags.partition(":")[2].strip()
    except OSError:
        model = platform.processor()
    versions = {"python": platform.python_version(), "fusedstep": _core.version}
    for package in ("numpy", "numexpr", "numba", "torch", "jax", "optax", "deepspeed"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "processor": model,
        "system": platform.platform(),
        "compiler": _core.compiler,
        "instruction set": _config.isa(),
        "threads": _config.get_num_threads(),
        "versions": versions,
    }
