"""The rows of the benchmark: which cases, sizes, types, threads and ways of calling are timed beside which limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _config, _core, optimizers
from .cases import CASES, Case, Data, divider, traffic, traffic_bytes
from .instrument import Timing, alternate
from .peers import PEERS, verdict

__all__ = ["Row", "Setting", "bound", "run"]


@dataclass(frozen=True)
class Setting:
    """What is to be measured, and how long a group of contenders may take."""

    sizes: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    threads: tuple[int, ...] = (1,)
    isas: tuple[str, ...] = ()
    cases: tuple[str, ...] = ("RMSprop", "Adagrad", "Rprop")
    peers: bool = True
    extras: bool = True
    seconds: float = 0.5


QUICK = Setting(sizes=(1_000, 30_000, 1_000_000), seconds=0.35)


def full() -> Setting:
    """Return everything, on this machine."""
    return Setting(
        sizes=(16, 256, 1_000, 4_000, 30_000, 100_000, 1_000_000, 16_000_000, 64_000_000),
        dtypes=("float32", "float64"),
        threads=tuple(sorted({1, _config.get_num_threads()})),
        isas=tuple(_config.available_isas()),
        cases=tuple(case.name for case in CASES),
        seconds=1.5,
    )


@dataclass(frozen=True)
class Row:
    """One timing, beside the limit of its size."""

    case: str
    way: str
    n: int
    dtype: str
    threads: int
    isa: str
    error: str
    ns_per_element: float | None
    lower: float | None
    upper: float | None
    gigabytes_per_second: float | None
    share_of_limit: float | None
    bound_by: str

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.case, self.n, self.dtype, self.threads


def run(setting: Setting, progress: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Measure, and yield the rows as they come."""
    cases = [case for case in CASES if case.name in setting.cases]
    threads_before = _config.get_num_threads()
    try:
        for threads in setting.threads:
            _config.set_num_threads(threads)
            for dtype in setting.dtypes:
                for n in setting.sizes:
                    for case in cases:
                        progress(f"{case.name}, {n:,} elements of {dtype}, {threads} threads")
                        yield from _sizes(case, n, np.dtype(dtype), threads, setting)
            if setting.extras:
                progress(f"lists, layouts and whole steps, {threads} threads")
                yield from _extras(threads, setting)
    finally:
        _config.set_num_threads(threads_before)


def _sizes(case: Case, n: int, dtype: np.dtype[Any], threads: int, setting: Setting) -> Iterator[Row]:
    data = Data(case, n, dtype)
    aligned = Data(case, n, dtype, aligned=True)
    plan = bound(case, n, dtype)
    says: dict[str, str] = {}
    contenders: dict[str, Callable[[], object]] = {
        "limit: traffic": traffic(case, data),
        "limit: traffic, aligned": traffic(case, aligned),
        "fusedstep": data.update,
        "fusedstep, aligned": aligned.update,
        "fusedstep, bound": plan,
    }
    if case.divides:
        contenders["limit: divider"] = divider(n, dtype)
    error = _error(case, dtype)
    for way in ("fusedstep", "fusedstep, aligned", "fusedstep, bound"):
        says[way] = error
    if setting.peers:
        for peer in PEERS:
            says[peer.name], step = verdict(peer, Data(case, n, dtype), threads)
            if step is not None:
                contenders[peer.name] = step
    for isa in setting.isas:
        if isa != _config.isa():
            contenders[f"fusedstep, {isa}"] = _forced(isa, data.update)
            says[f"fusedstep, {isa}"] = error

    timings = alternate(contenders, setting.seconds)
    yield from _rows(case, n, dtype, threads, says, timings)


def _rows(
    case: Case, n: int, dtype: np.dtype[Any], threads: int, says: dict[str, str], timings: dict[str, Timing]
) -> Iterator[Row]:
    per_byte = timings["limit: traffic"].median / traffic_bytes(case, dtype)
    limits = {"traffic": per_byte * case.bytes_per_element(dtype)}
    if "limit: divider" in timings:
        limits["divider"] = timings["limit: divider"].median / min(threads, max(1, n // 8192))
    bound_by = max(limits, key=lambda name: limits[name])
    for way in [*timings, *(name for name in says if name not in timings)]:
        timing = timings.get(way)
        is_limit = way.startswith("limit")
        moved = traffic_bytes(case, dtype) if is_limit else case.bytes_per_element(dtype)
        yield Row(
            case=case.name,
            way=way,
            n=n,
            dtype=str(dtype),
            threads=threads,
            isa=_config.isa(),
            error=says.get(way, ""),
            ns_per_element=None if timing is None else timing.median / n * 1e9,
            lower=None if timing is None else timing.lower / n * 1e9,
            upper=None if timing is None else timing.upper / n * 1e9,
            gigabytes_per_second=None if timing is None or way == "limit: divider" else moved * n / timing.median / 1e9,
            share_of_limit=None if timing is None or is_limit else limits[bound_by] / timing.median,
            bound_by="" if is_limit else bound_by,
        )


def _error(case: Case, dtype: np.dtype[Any]) -> str:
    ours = Data(case.to_check(), 4099, dtype)
    expected = ours.copy()
    ours.update()
    expected.update_plain()
    arrays = [(ours.param, expected.param), *((ours.states[name], expected.states[name]) for name in ours.states)]
    equal = all(found.tobytes() == wanted.tobytes() for found, wanted in arrays)
    return "0 ulp" if equal else "wrong: a bit differs from the reference"


def _forced(isa: str, update: Callable[[], None]) -> Callable[[], None]:
    def forced() -> None:
        with _config.use_isa(isa):
            update()

    return forced


def bound(case: Case, n: int, dtype: np.dtype[Any], count: int = 1) -> Callable[[], object]:
    """Return a step of an optimizer over ``count`` parameters of ``n`` elements."""
    classes = {"rmsprop": optimizers.RMSprop, "adagrad": optimizers.Adagrad, "rprop": optimizers.Rprop}
    options = dict(case.options)
    if case.rule == "rmsprop" and "grad_avg" in case.states:
        options["centered"] = True
    if case.rule == "rprop":
        options["lr"] = 1e-9
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(dtype) for _ in range(count)]
    grads = [rng.standard_normal(n).astype(dtype) for _ in range(count)]
    optimizer = classes[case.rule](params, **options)
    return lambda: optimizer.step(grads)


def _extras(threads: int, setting: Setting) -> Iterator[Row]:
    """Lists of tensors, the whole step, strided and subnormal arrays, and what a call costs."""
    case = CASES[0]
    dtype = np.dtype(np.float32)
    million = 1_000_000
    data = Data(case, million, dtype)
    strided = Data(case, 2 * million, dtype)
    transposed = Data(case, million, dtype)
    subnormal = Data(case, million, dtype)
    subnormal.grad[...] = 0
    subnormal.states["square_avg"][...] = 1e-39
    whole = optimizers.RMSprop([data.copy().param], lr=1e-9)
    grads = [data.grad.copy()]
    square = transposed.param.reshape(1000, 1000)
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "one array of 1,000,000": (million, bound(case, million, dtype)),
        "1,000 arrays of 1,000": (million, bound(case, 1_000, dtype, 1_000)),
        "10,000 arrays of 16": (160_000, bound(case, 16, dtype, 10_000)),
        "1 array of 16, bound": (16, bound(case, 16, dtype)),
        "1 array of 16, function": (16, Data(case, 16, dtype).update),
        "whole step: unscale, clip by norm, update": (
            million,
            lambda: whole.step(grads, grad_scale=1.0009765625, clip_norm=1e9),
        ),
        "every second element": (
            million,
            lambda: case.fused(
                strided.param[::2], strided.grad[::2], square_avg=strided.states["square_avg"][::2], **case.options
            ),
        ),
        "transposed gradient": (
            million,
            lambda: case.fused(
                square,
                transposed.grad.reshape(1000, 1000).T,
                square_avg=transposed.states["square_avg"].reshape(1000, 1000),
                **case.options,
            ),
        ),
        "subnormal averages": (million, _renewed(subnormal)),
    }
    timings = alternate({name: step for name, (_, step) in contenders.items()}, setting.seconds * 3)
    for name, (n, _) in contenders.items():
        timing = timings[name]
        yield Row(
            case="RMSprop",
            way=name,
            n=n,
            dtype="float32",
            threads=threads,
            isa=_config.isa(),
            error="",
            ns_per_element=timing.median / n * 1e9,
            lower=timing.lower / n * 1e9,
            upper=timing.upper / n * 1e9,
            gigabytes_per_second=case.bytes_per_element(dtype) * n / timing.median / 1e9,
            share_of_limit=None,
            bound_by="",
        )


def _renewed(data: Data) -> Callable[[], None]:
    """Return the update with alpha = 1, which keeps the average subnormal."""

    def step() -> None:
        data.case.fused(data.param, data.grad, **data.states, **{**data.case.options, "alpha": 1.0})

    return step


def machine() -> dict[str, Any]:
    """Return what a number is worth nothing without."""
    import platform

    model = ""
    try:
        with open("/proc/cpuinfo") as info:
            flags = next((line for line in info if line.startswith("model name")), "")
            model = flags.partition(":")[2].strip()
    except OSError:
        model = platform.processor()
    return {
        "processor": model,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fusedstep": _core.version,
        "compiler": _core.compiler,
        "instruction set": _config.isa(),
        "threads": _config.get_num_threads(),
    }
