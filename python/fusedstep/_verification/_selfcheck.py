"""Compare the kernels with the NumPy reference on this machine, bit for bit."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._config import available_isas, get_num_threads, set_num_threads, use_isa
from .._run import Run, StepOptions
from .._schema import SCHEMAS, Schema
from .._terminal import add_rules, progress
from ._step import apply_reference, differing, first_difference, prologues_of, snapshots_of

HELP = "compare every kernel with the NumPy reference on this machine, bit for bit"

Array = NDArray[Any]
Options = dict[str, Any]
Arrays = dict[str, Array]
States = Mapping[str, Mapping[str, Array]]

SWITCHED_ON = 0.1
"""The value of a number that is 0 by default, where it is not to be 0."""

# What treats the gradient before every rule.
DECAYS: list[Options] = [
    {},
    {"weight_decay": SWITCHED_ON},
    {"weight_decay": SWITCHED_ON, "decoupled_weight_decay": True},
]
GRADIENTS: list[tuple[Options, Options]] = [  # hyperparameters, arguments of step()
    ({}, {}),
    ({"maximize": True}, {}),
    ({}, {"grad_scale": 3.0, "clip_value": 0.5, "clip_norm": 2.0, "zero_grads": True}),
]
SHARED = {key for options in (*DECAYS, *(options for options, _ in GRADIENTS)) for key in options}

DTYPES = ("float32", "float64")
THREADS = (1, 2, 3)
LOSSES = (2.0, 1.0, 3.0, 2.5)  # falls, rises, falls: one step each
SHOWN = 5


class Case(NamedTuple):
    """A rule with its hyperparameters and the arguments of ``step``; combined: more than one of them is in use."""

    schema: Schema
    options: Options
    step_options: Options
    combined: bool

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in {**self.options, **self.step_options}.items())
        return f"{self.schema.rule}({shown})"


def choices(schema: Schema) -> Iterator[list[Options]]:
    """Yield the choices for each flag, word, and number that is 0 by default; the first is its default, {}."""
    for name, default in schema.options.items():
        field = schema.fields[name]
        if name in SHARED:
            continue
        if field["kind"] == "flag":
            yield [{}, {name: not default}]
        elif field["kind"] == "choice":
            yield [{}, *({name: choice} for choice in field["choices"] if choice != default)]
        elif field["kind"] == "real" and default == 0.0:
            yield [{}, {name: SWITCHED_ON}]


def cases(quick: bool = False) -> Iterator[Case]:
    """Yield every combination of choices that a rule accepts; quick: without the combined ones."""
    for schema in SCHEMAS.values():
        states = {state["used_with"] for state in schema.states.values()}
        axes: list[Any] = [*choices(schema), DECAYS, GRADIENTS]
        for chosen in itertools.product(*(enumerate(axis) for axis in axes)):
            *own, (decay, decays), (gradient, (options, step_options)) = chosen
            merged = {key: value for _, part in own for key, value in part.items()}
            # A number that adds a state does not count: what goes with it needs it.
            count = sum(key not in states or merged[key] is True for key in merged) + (decay > 0) + (gradient > 0)
            if quick and count > 1:
                continue
            merged |= decays | options
            with contextlib.suppress(ValueError):  # of what does not go together
                _core.check_hyperparameters(schema.rule, merged)
                yield Case(schema, merged, step_options, count > 1)


class Layout(NamedTuple):
    """A parameter as a view of an array around it, which must not change elsewhere."""

    name: str
    around: tuple[int, ...]
    view: Callable[[Array], Array]


LENGTHS = (*range(10), *range(15, 19), *range(31, 35))
LAYOUTS = [
    *(Layout(f"length {n}, offset by one", (n + 2,), lambda a: a[1:-1]) for n in LENGTHS),
    Layout("C order", (8, 20), lambda a: a),
    Layout("Fortran order", (8, 20), lambda a: a.T),
    Layout("axes exchanged", (8, 4, 5), lambda a: a.transpose(1, 0, 2)),
    Layout("every other column", (8, 20), lambda a: a[:, ::2]),
    Layout("a block", (8, 20), lambda a: a[1:-1, 2:-2]),
    Layout("reversed", (8, 20), lambda a: a[::-1, ::-1]),
    # Enough for three threads to share.
    Layout("length 25,003", (25_003,), lambda a: a),
    Layout("every other of 300 columns", (75, 300), lambda a: a[:, ::2]),
]
SPECIAL = "special values"


class Inputs:
    """Parameters of every layout and their gradients for each step, from a fixed seed."""

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(0)
        special = self._special(dtype)
        self.view = {layout.name: layout.view for layout in LAYOUTS} | {SPECIAL: lambda a: a}
        self.around = self._arrays(rng, dtype) | {SPECIAL: np.repeat(special, special.size)}
        self.grads = [
            self._arrays(rng, dtype) | {SPECIAL: np.roll(np.tile(special, special.size), step)}
            for step in range(len(LOSSES))
        ]

    @staticmethod
    def _arrays(rng: np.random.Generator, dtype: str) -> Arrays:
        numbers = {
            layout.name: rng.standard_normal(layout.around) * 10.0 ** rng.integers(-6, 3, layout.around)
            for layout in LAYOUTS
        }
        return {name: array.astype(dtype) for name, array in numbers.items()}

    @staticmethod
    def _special(dtype: str) -> Array:
        kind = np.finfo(dtype)
        values = np.array([0.0, kind.smallest_subnormal, kind.smallest_normal, 1.0, kind.max, np.inf], dtype)
        return np.concatenate([values, -values, np.full(1, np.nan, dtype)])

    def parameters(self) -> tuple[Arrays, Arrays]:
        """Return new copies of the arrays and the views of them that are the parameters."""
        around = {name: array.copy() for name, array in self.around.items()}
        return around, {name: self.view[name](array) for name, array in around.items()}

    def gradients(self, case: Case, step: int) -> dict[str, Array | None]:
        """Return new copies of the gradients of a step: in C order, and in the parameter's layout by turns."""
        views = {name: self.view[name](array.copy()) for name, array in self.grads[step].items()}
        grads: dict[str, Array | None] = {
            name: view if step % 2 else np.ascontiguousarray(view) for name, view in views.items()
        }
        if "clip_norm" in case.step_options or "grprop" in case.options.get("variant", ""):
            grads[SPECIAL] = None  # a sum over all that is not finite would leave nothing to compare
        return grads


class Written:
    """Everything that a run has written, by name."""

    def __init__(self, around: Arrays, states: States, grads: dict[str, Array | None], norm: float | None) -> None:
        self.arrays = {f"parameter {name!r}": array for name, array in around.items()}
        for name, state in states.items():
            self.arrays.update({f"{key} of parameter {name!r}": array for key, array in state.items()})
        self.arrays.update({f"gradient of parameter {name!r}": g for name, g in grads.items() if g is not None})
        if norm is not None:
            self.arrays["the norm of the gradients"] = np.array([norm])
        self.elements = sum(array.size for array in self.arrays.values())

    @cached_property
    def joined(self) -> dict[np.dtype[Any], Array]:
        """All elements, by type, because comparing small arrays one by one is slow."""
        by_dtype: dict[np.dtype[Any], list[Array]] = defaultdict(list)
        for array in self.arrays.values():
            by_dtype[array.dtype].append(array.ravel())
        return {dtype: np.concatenate(arrays) for dtype, arrays in by_dtype.items()}


def run_fused(case: Case, inputs: Inputs) -> Written:
    """Return what the kernels write in some steps."""
    around, params = inputs.parameters()
    run = Run(case.schema, params, case.options, case.schema.rule)
    grads, norm = {}, None
    for step, loss in enumerate(LOSSES):
        grads = inputs.gradients(case, step)
        norm = run.step(grads, StepOptions(loss, **case.step_options)).grad_norm
    return Written(around, run.state, grads, norm)


def run_reference(case: Case, inputs: Inputs) -> Written:
    """Return what the NumPy reference writes in the same steps."""
    around, params = inputs.parameters()
    # For its hyperparameters and where its states start.
    run = Run(case.schema, params, case.options, case.schema.rule)
    grads, norm = {}, None
    for step, loss in enumerate(LOSSES):
        grads = inputs.gradients(case, step)
        options = StepOptions(loss, **case.step_options)
        run.core.counts = [step] * len(run.params)
        snapshots = [each for each in snapshots_of(run, list(grads.values()), loss) if each.grad is not None]
        run.core.last_loss = loss
        norm, prologues = prologues_of(snapshots, options)
        apply_reference(case.schema.rule, snapshots, prologues)
        for snapshot in snapshots:
            for key, array in snapshot.live.items():
                array[...] = snapshot.before[key]
            if options.zero_grads and snapshot.live_grad is not None:
                snapshot.live_grad.fill(0.0)
    return Written(around, run.state, grads, norm)


def compare(found: Written, expected: Written) -> tuple[int, list[str]]:
    """Return how many elements differ in a bit, and where the first of each array is."""
    count = sum(int(differing(found.joined[dtype], x).sum()) for dtype, x in expected.joined.items())
    if count == 0:
        return 0, []
    firsts = {name: first_difference(found.arrays[name], array) for name, array in expected.arrays.items()}
    return count, [f"{name}, element {first}" for name, first in firsts.items() if first]


def check(selected: Iterable[Case]) -> Iterator[tuple[str, str, Counter[str], list[str]]]:
    """Yield instruction set and rule of each run, how much was compared and differs, and where arrays first differ."""
    draw = random.Random(0)
    before = get_num_threads()
    shared = _core.share_all_work(True)  # threads share even these small arrays
    try:
        for dtype in DTYPES:
            inputs = Inputs(dtype)
            for case in selected:
                expected = run_reference(case, inputs)
                for isa in available_isas():
                    # One number for combined options, because all take a minute.
                    for threads in (draw.choice(THREADS),) if case.combined else THREADS:
                        set_num_threads(threads)
                        with use_isa(isa):
                            count, places = compare(run_fused(case, inputs), expected)
                        total = Counter(
                            runs=1, arrays=len(expected.arrays), elements=expected.elements, differing=count
                        )
                        where = [f"{isa}, threads: {threads}, {dtype}, {case}: {place}" for place in places]
                        yield isa, case.schema.rule, total, where
    finally:
        _core.share_all_work(shared)
        set_num_threads(before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    quick = "try one option at a time; takes seconds instead of minutes"
    parser.add_argument("--quick", action="store_true", help=quick)
    add_rules(parser)


def run(options: argparse.Namespace) -> int:
    """Check every kernel of this machine, print what was compared, and return 1 if a bit differs."""
    start = time.perf_counter()
    selected = [case for case in cases(options.quick) if not options.rules or case.schema.rule in options.rules]
    print(
        f"fusedstep {_core.version} against its NumPy reference: {len(selected)} variants of the rules; "
        f"{', '.join(DTYPES)}; threads {', '.join(map(str, THREADS))}; {len(LAYOUTS) + 1} lengths and layouts; "
        f"{len(LOSSES)} steps\n",
        flush=True,
    )
    totals: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    differences: list[str] = []
    per_isa = sum(1 if case.combined else len(THREADS) for case in selected)
    runs, say = len(DTYPES) * len(available_isas()) * per_isa, progress()
    for done, (isa, rule, total, where) in enumerate(check(selected)):
        say(done / runs, rule)
        totals[isa, rule].update(total)
        differences += where
    say(1, "")
    for isa in available_isas():
        print(f"{isa:<19}{'runs':>7}{'arrays':>11}{'elements':>16}{'differing':>11}")
        for (own, rule), total in totals.items():
            if own == isa:
                numbers = f"{total['runs']:>7,}{total['arrays']:>11,}{total['elements']:>16,}{total['differing']:>11,}"
                print(f"  {rule:<17}{numbers}")
        print()
    total = sum(totals.values(), Counter())
    seconds = time.perf_counter() - start
    compared = f"{total['arrays']:,} arrays of {total['elements']:,} elements compared in {seconds:.1f} s"
    if not differences:
        print(f"{compared}: equal bit for bit")
        return 0
    print(f"{compared}: {total['differing']:,} elements in {len(differences):,} arrays DIFFER")
    for line in differences[:SHOWN]:
        print(f"  {line}")
    if len(differences) > SHOWN:
        print(f"  and {len(differences) - SHOWN:,} more arrays")
    return 1
