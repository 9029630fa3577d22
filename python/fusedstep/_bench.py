"""``python -m fusedstep bench``: every rule, compared with NumPy and with the measured rates of this machine.

Two rates are measured in the same rounds as the rules. The *streaming rate* is that of the same loads and stores with
one addition. The *divider rate* is that of the square roots and divisions of each element, in registers. What a rule
moves and divides comes from the extension's schema and from the reference: a new rule needs no line here.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import itertools
import json
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core, get_num_threads, reference, set_num_threads, show_config
from ._schema import SCHEMAS, Schema
from ._terminal import add_rules, cannot_write, progress

HELP = "measure every rule, and compare it with NumPy and with what the machine can do"
PACKAGE = sys.modules[__name__.rpartition(".")[0]]

Array = NDArray[Any]
Contender = Callable[[int], float]  # the seconds that a number of calls takes
Timing = dict[int, float]  # seconds per call, by round
Make = Callable[["Data"], Contender | None]


def repeated(call: Callable[[], object]) -> Contender:
    def seconds(calls: int) -> float:
        repeats = range(calls)
        start = time.perf_counter()
        for _ in repeats:
            call()
        return time.perf_counter() - start

    return seconds


def alternate(contenders: Mapping[str, Contender], seconds: float, rounds: int = 9) -> dict[str, Timing]:
    """Time contenders in turn for about ``seconds``, in random order; slow ones only in every fourth round."""
    share = seconds / rounds / len(contenders)
    plan: list[tuple[str, int, int]] = []  # name, calls, which rounds
    for name, contender in contenders.items():
        contender(1)  # touches pages, and compiles what is compiled late
        once = contender(1)
        more = min(100, int(share / max(once, 1e-7) / 4))
        once = contender(more) / more if more > 1 else once
        plan.append((name, max(1, int(share / max(once, 1e-9))), 4 if once > max(share, 0.05) else 1))
    times: dict[str, Timing] = {name: {} for name in contenders}
    chance = random.Random(0)
    for k in range(rounds):
        chance.shuffle(plan)  # one leaves the caches to the next
        for name, calls, every in plan:
            if k % every == 0:
                times[name][k] = contenders[name](calls) / calls
    return times


@dataclass(frozen=True)
class Case:
    """A rule with some options set and the others at their defaults."""

    rule: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.class_.__name__}, {self.label}".rstrip(", ")

    @property
    def schema(self) -> Schema:
        return SCHEMAS[self.rule]

    @cached_property
    def values(self) -> dict[str, Any]:
        """All options by name."""
        return self.schema.arguments | dict(self.options)

    @cached_property
    def storage(self) -> dict[str, str]:
        """The states in use: "parameter", "int8" or "scalar", by the names that the function has for them."""
        used = _core.used_states(self.rule, dict(self.options))
        states = self.schema.states.items()
        return {name: state["storage"] for name, state in states if name in used or state["renamed"] in used}

    @property
    def function(self) -> Callable[..., None]:
        return getattr(PACKAGE, f"{self.rule}_")  # type: ignore[no-any-return]

    @property
    def class_(self) -> Any:
        return getattr(PACKAGE, self.schema.class_name)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The keywords of the function: the options, arguments without a default, and the step count if it is used."""
        takes = inspect.signature(self.function).parameters
        needed = {name for name in takes if takes[name].default is inspect.Parameter.empty} | {*self.options}
        step = {"step": 1} if "step" in takes and self.schema.uses_step(self.values) else {}
        return {name: self.values[name] for name in takes if name in self.values and name in needed} | step

    def bytes_per_element(self, dtype: np.dtype[Any]) -> int:
        """Return what the rule must read and write; for a norm, g is read once more."""
        return bytes_of(dtype, *self.storage.values()) + dtype.itemsize * ("scalar" in self.storage.values())

    @cached_property
    def roots_and_divisions(self) -> tuple[int, int]:
        """Count the square roots and divisions of each element, in a run of the reference."""
        data = Data(self, 32, np.float32)
        data.param, data.grad = data.param.view(_Counting), data.grad.view(_Counting)
        data.states = {name: array.view(_Counting) for name, array in data.states.items()}
        _Counting.counted.clear()
        data.reference()
        return _Counting.counted.count(np.sqrt), _Counting.counted.count(np.divide)


def bytes_of(dtype: np.dtype[Any], *states: str) -> int:
    return 3 * dtype.itemsize + 2 * sum({"int8": 1, "scalar": 0}.get(state, dtype.itemsize) for state in states)


class _Counting(np.ndarray[Any, Any]):
    """An array that counts the operations on all of its elements."""

    counted: list[np.ufunc] = []  # noqa: RUF012 - one account for all arrays

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = (each.view(np.ndarray) if isinstance(each, _Counting) else each for each in inputs)
        result = np.asarray(getattr(ufunc, method)(*plain, **options))
        if result.size > 1:
            self.counted.append(ufunc)
        return result.view(_Counting)

    def __array_function__(self, *call: Any) -> Any:
        result = super().__array_function__(*call)
        return result.view(_Counting) if isinstance(result, np.ndarray) else result


class Data:
    """Arrays of a case, with the same values whenever they are made."""

    def __init__(self, case: Case, n: int, dtype: DTypeLike, seed: int = 0) -> None:
        self.case, self.size, self.dtype = case, n, np.dtype(dtype)
        self.param, self.grad = self.zeros(self.dtype), self.zeros(self.dtype, of_gradient=True)
        self.states = {
            name: np.zeros((), dtype) if kind == "scalar" else self.zeros(np.dtype("int8" if kind == "int8" else dtype))
            for name, kind in case.storage.items()
        }
        rng = np.random.default_rng(seed)
        for k, array in enumerate(self.arrays):
            # A million numbers are made and repeated, because making them takes longest.
            values = np.resize(rng.standard_normal(min(array.size, 1_000_003), np.float32), array.shape)
            array[...] = values if k < 2 else np.sign(values) if array.dtype == np.int8 else np.abs(values) / 8 + 0.01

    def zeros(self, dtype: np.dtype[Any], of_gradient: bool = False) -> Array:
        return np.zeros(self.size, dtype)

    @property
    def arrays(self) -> list[Array]:
        return [self.param, self.grad, *self.states.values()]

    @cached_property
    def call(self) -> Callable[[], None]:
        """A call of the function as a user writes it, with keywords."""
        given = {**self.states, **self.case.arguments}
        names = {"function": self.case.function, "param": self.param, "grad": self.grad, **given}
        return eval(f"lambda: function(param, grad, {', '.join(f'{name}={name}' for name in given)})", names)  # type: ignore[no-any-return]

    def reference(self) -> None:
        plain = getattr(reference, f"{self.case.rule}_")
        plain(self.param, self.grad, **self.states, **self.case.arguments)


def streaming(data: Data) -> Contender:
    """Return a pass over as many bytes by the rules' own loops: it adds a gradient of zeros, and flips a sign."""
    streams = [state for name, state in data.states.items() if data.case.storage[name] == "parameter"][:3]
    rule, options = "traffic", {"states": ("none", "one", "two", "three")[len(streams)]}
    if signs := [state for state in data.states.values() if state.dtype == np.int8]:
        rule, options, streams = "sign_traffic", {}, [*streams[:1], *signs[:1]]
    arrays = [data.param, data.zeros(data.dtype, of_gradient=True), *streams]
    one = _core.repeated_kernel(rule, options, arrays)
    passes = data.case.bytes_per_element(data.dtype) / bytes_of(data.dtype, *(each.dtype.name for each in streams))
    return lambda calls: one.seconds(calls) * passes


def divider(data: Data) -> Contender | None:
    """Return the square roots and divisions of a rule in registers, or None if it has none."""
    roots, divisions = data.case.roots_and_divisions
    n, measured, double = data.size, max(data.size, 16_384), data.dtype == np.float64
    counts = {0: divisions - roots, 1: roots}  # of loops with a division, and of those with a root too
    loops = [(k, _core.repeated_division(measured, n, double, root, 1)) for root, k in counts.items() if k]

    def seconds(calls: int) -> float:
        repeats = max(1, calls * n // measured)  # few elements are timed as a part of more
        return sum(k * loop.seconds(repeats) for k, loop in loops) * calls * n / measured / repeats

    return seconds if loops else None


def kernel(data: Data) -> Contender:
    """Return the update only, prepared once and called from C++."""
    return _core.repeated_kernel(data.case.rule, dict(data.case.options), data.arrays).seconds


def optimizer(data: Data) -> Contender:
    """Return the step of an optimizer, whose states become those of the data."""
    made = data.case.class_([data.param], **data.case.options)
    (states,) = made.state.values()
    data.states = dict(zip(data.case.storage, states.values(), strict=True))
    return repeated(partial(made.step, [data.grad]))


# The function, what it takes, where it puts the result; a, b and last are scratch, and last keeps the sign.
# Rprop without masks: where= costs 5 ns more per element if signs cannot be predicted. With e = 1, 0, -1 for a sign
# that stayed, is new or flipped, max(plus e, 1) is plus, 1, 1, and e + 1 + minus is minus for e = -1, at least 1 for
# e = 0 and at least plus for e = 1: the smaller of the two is the factor.
NUMPY_OUT = {
    "rmsprop": "multiply g rest a, multiply a g a, multiply s alpha s, add s a s, sqrt s a, add a eps a, "
    "multiply g lr b, divide b a b, subtract p b p",
    "adagrad": "multiply g g a, add s a s, sqrt s a, add a eps a, multiply g lr b, divide b a b, subtract p b p",
    "rprop": "sign g a, multiply a last b, multiply b plus last, maximum last one last, add b one b, add b minus b, "
    "minimum last b last, multiply s last s, clip s lo hi s, multiply a s b, subtract p b p",
}


def numpy_out(data: Data) -> Contender | None:
    """Return NumPy with ``out=`` everywhere, or None for other rules than these three."""
    if data.case.options or data.case.rule not in NUMPY_OUT:
        return None
    T, (p, g, s, *signs) = data.dtype.type, data.arrays
    a, b, last = np.empty_like(p), np.empty_like(p), np.array(signs or p, data.dtype).reshape(p.shape)
    if signs:
        data.states = {name: state for name, state in data.states.items() if state is s}  # the sign stays in `last`
    o: dict[str, Any] = {"alpha": 0.0, "etas": (0, 0), "step_sizes": (0, 0), **data.case.values}
    numbers = {"lr": o["lr"], "eps": o.get("eps", 0), "alpha": o["alpha"], "rest": 1 - o["alpha"], "one": 1}
    numbers |= zip(("minus", "plus", "lo", "hi"), (*o["etas"], *o["step_sizes"]), strict=True)
    names = {name: T(number) for name, number in numbers.items()} | {"p": p, "g": g, "s": s, "b": b}
    swapped = [names | {"a": a, "last": last}, names | {"a": last, "last": a}]
    calls = [call.split() for call in NUMPY_OUT[data.case.rule].split(",")]
    programs = itertools.cycle(
        [[(getattr(np, f), [each[x] for x in xs], each[out]) for f, *xs, out in calls] for each in swapped]
    )

    def step() -> None:
        for function, arguments, out in next(programs):
            function(*arguments, out=out)

    return repeated(step)


OURS: dict[str, Make] = {"kernel": kernel, "function": lambda data: repeated(data.call), "optimizer": optimizer}
NUMPY: dict[str, Make] = {"NumPy out=": numpy_out, "NumPy": lambda data: repeated(data.reference)}
RATES: dict[str, Make] = {"streaming": streaming, "divider": divider}
CHECKED = 4_099
"""Elements of a check: blocks, a tail and odd ends."""


def is_right(make: Make, case: Case, dtype: DTypeLike, arrays: Callable[[Case, int, DTypeLike], Data] = Data) -> bool:
    """Return whether everything that one call writes has the bits of the reference."""
    ours, expected = (arrays(case, CHECKED, dtype) for _ in range(2))
    call = make(ours)
    if call is None:
        return True
    expected.states |= {name: state.copy() for name, state in ours.states.items()}
    call(1)
    expected.reference()
    pairs = [(ours.param, expected.param), *((state, expected.states[name]) for name, state in ours.states.items())]
    return all(found.tobytes() == right.tobytes() for found, right in pairs)


class Row(NamedTuple):
    """A contender's nanoseconds per element, and the time at the slower of the measured rates over its own."""

    dtype: str
    threads: int
    rule: str
    elements: int
    contender: str
    ns: float
    share: float


def measure(data: Data, contenders: Mapping[str, Make], seconds: float) -> list[Row]:
    made = {name: make(copy.copy(data)) for name, make in (RATES | dict(contenders)).items()}
    times = alternate({name: contender for name, contender in made.items() if contender}, seconds)
    rate = max((times[name] for name in RATES if name in times), key=median)
    about = (str(data.dtype), get_num_threads(), data.case.name, data.size)
    return [Row(*about, name, median(taken) / data.size * 1e9, share(rate, taken)) for name, taken in times.items()]


def median(taken: Timing) -> float:
    return statistics.median(taken.values())


def digits(x: float) -> str:
    """Return three digits, or a whole number if that has more."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def share(rate: Timing, taken: Timing) -> float:
    """Return the share of a rate. Within rounds, because memory changes its speed from one second to the next."""
    return statistics.median(rate[k] / seconds for k, seconds in taken.items() if k in rate)


def grouped(rows: Iterable[Row]) -> dict[tuple[str, int], dict[tuple[str, int], dict[str, Row]]]:
    """Return rows by type and threads, by rule and elements, by contender."""
    groups: dict[tuple[str, int], dict[tuple[str, int], dict[str, Row]]] = {}
    for row in rows:
        groups.setdefault((row.dtype, row.threads), {}).setdefault((row.rule, row.elements), {})[row.contender] = row
    return groups


def tables(rows: list[Row]) -> Iterator[str]:
    """Yield a table for each type and number of threads."""
    widths = dict.fromkeys(RATES, 11) | dict.fromkeys(OURS, 17) | dict.fromkeys(NUMPY, 12)
    for (dtype, threads), lines in grouped(rows).items():
        yield f"\n{dtype}, {threads} thread{'s' * (threads > 1)}: ns per element (share of the slower measured rate)"
        yield " " * 28 + "".join(f"{name:<{width}}" for name, width in widths.items()).rstrip()
        for (rule, n), found in lines.items():
            text = {name: digits(row.ns) + f" ({row.share:.2f})" * (name in OURS) for name, row in found.items()}
            cells = (f"{text.get(name, '-'):<{width}}" for name, width in widths.items())
            yield f"{rule:<16}{n:>10,}  {''.join(cells)}".rstrip()


def conclusion(rows: list[Row], wrong: list[str]) -> Iterator[str]:
    """Yield five lines: exactness, the measured rates, NumPy, the cost of a call, and where we lose."""
    groups = [(key, found) for lines in grouped(rows).values() for key, found in lines.items()]
    first = [row for row in rows if row[:2] == rows[0][:2]]
    small, large = (pick(row.elements for row in first) for pick in (min, max))

    def spread(n: int, of: Callable[[dict[str, Row]], float]) -> str:
        found = next(iter(grouped(row for row in first if row.elements == n).values()))
        values = {rule: of(row) for (rule, _), row in found.items() if OURS.keys() <= row.keys()}
        ends = [pick(values, key=values.__getitem__) for pick in (min, max) if values]
        return " to ".join(f"{digits(values[rule])} ({rule})" for rule in ends) or "nothing"

    def slower(row: dict[str, Row]) -> float:
        return min(row[name].ns for name in NUMPY if name in row) / row["function"].ns

    lost = [f"{rule} {n:,}" for (rule, n), row in groups if "function" in row and slower(row) < 1]
    yield f"WRONG, and not timed: {', '.join(wrong)}." if wrong else "Every result had the bits of fs.reference."
    shares = spread(large, lambda row: row["kernel"].share)
    yield f"{large:,} elements: the kernels reach {shares} of the slower measured rate."
    yield f"{large:,} elements: NumPy (the faster of both) takes {spread(large, slower)} times as long as the function."
    added = spread(small, lambda row: (row["function"].ns - row["kernel"].ns) * small)
    yield f"{small:,} elements: a call of the function adds {added} ns to its kernel."
    yield f"NumPy is faster than the function: {', '.join(dict.fromkeys(lost)) or 'nowhere'}."


QUICK = {("float32", 1): (1_000, 30_000, 1_000_000)}
"""Numbers of elements, by type and number of threads (0: all that fusedstep uses)."""
FULL = {
    ("float32", 1): (16, 1_000, 30_000, 1_000_000, 16_000_000),
    ("float64", 1): (1_000, 30_000, 1_000_000),
    ("float32", 0): (16_000_000,),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    quick = "only three sizes of float32 on one thread; takes ten seconds instead of minutes"
    parser.add_argument("--quick", action="store_true", help=quick)
    add_rules(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all rows to a JSON file")


def run(options: argparse.Namespace) -> int:
    """Check, measure and print. Return 1 if a result was wrong, 2 if the file cannot be written."""
    if options.json and cannot_write("bench", options.json):
        return 2
    facts, threads_before, say = machine(), get_num_threads(), progress()
    print("{processor}; fusedstep {version}, {instruction set in use}, {compiler}; numpy {numpy}".format(**facts))
    plan = dict.fromkeys(
        (rule, dtype, threads or threads_before, n)
        for (dtype, threads), sizes in (QUICK if options.quick else FULL).items()
        for rule in _core.rules()
        if not options.rules or rule in options.rules
        for n in sizes
    )
    right = {
        (rule, dtype): {name: make for name, make in (OURS | NUMPY).items() if is_right(make, Case(rule), dtype)}
        for rule, dtype, *_ in plan
    }
    wrong = [" ".join((*key, name)) for key, made in right.items() for name in OURS | NUMPY if name not in made]
    rows: list[Row] = []
    try:
        for done, (rule, dtype, threads, n) in enumerate(plan):
            say(done / len(plan), f"{rule}, {n:,} elements of {dtype}")
            set_num_threads(threads)
            rows += measure(Data(Case(rule), n, dtype), right[rule, dtype], 0.2 if options.quick else 0.6)
    finally:
        set_num_threads(threads_before)
        say(1, "")
    print(*tables(rows), "", *conclusion(rows, wrong), sep="\n")
    if options.json:
        found = {"machine": facts, "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 1 if wrong else 0


def machine() -> dict[str, Any]:
    """Return the machine and the versions, without which a number means nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    versions = {"system": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
    return {"processor": (*models, platform.processor())[0], **versions, **show_config()}
