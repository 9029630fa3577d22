"""Write updates with the reference's results to a file, for tests/cpp/replay.cpp to replay without Python.

``python tests/cases.py FILE`` writes every case and every combination of options of the registry, in both types, with
short lengths, special values, lengths at which work is divided, and hyperparameters drawn at random; and of each rule
arrays of 16 bits and gradients of some rows.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from checks import Problem, make_problem, rows_problem, solve
from fusedstep import _core
from registry import (
    BY_ROWS,
    CASES,
    COMBINATIONS,
    DRAWN,
    DTYPES,
    FIRST_OF_RULE,
    FULLEST_OF_RULE,
    INDICES,
    PER_ROW,
    SPECIAL_LENGTH,
    STORAGES,
    SWITCHES,
    Case,
    ordinary,
    rose,
)

DTYPES_OF_C = ["float32", "float64", "int8", "bfloat16", "float16", "uint16", "int32", "int64", "uint32", "uint64"]
DTYPE_CODES = {name: code for code, name in enumerate(DTYPES_OF_C)}
"""FUSEDSTEP_FLOAT32 and those that follow, by NumPy's names."""

SHORT = (0, 1, 7, 37)
CUT = ((1, 1025), (33, 65))
LARGE = (307, 131)
TABLES = ((37, 3), (37, 20))
DRAWS = 20


def c_options(case: Case, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of C for the functional form at a step: a state or a step that is given turns a flag on."""
    rule = _core.rules()[case.rule]
    given = {**case.options, **now}
    switches = [rule["states"][state.name]["used_with"] for state in case.states]
    if given.pop("step", None) is not None:
        switches.append(rule["step"])
    flags = {name for name, field in rule["fields"].items() if field["kind"] == "flag"}
    return {**given, **dict.fromkeys(flags.intersection(switches), True)}


def as_text(value: Any) -> str:
    """Write an option's value as tests/cpp/replay.cpp reads it: a number, two numbers, or a name."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return value if isinstance(value, str) else repr(float(value))


def drawn(case: Case, rng: np.random.Generator) -> Case:
    """Return the case with its hyperparameters and its first step count drawn at random."""
    takes = case.reference_takes - SWITCHES | {*case.options}
    before = int(10 ** rng.uniform(0, 5))
    return dataclasses.replace(
        case,
        name=f"{case.name}, drawn, from step {before}",
        options={**case.options, **{key: draw(rng) for key, draw in DRAWN.items() if key in takes}},
        at_step=lambda t, rises: case.at_step(t + before, rises),
    )


def problems() -> Iterator[Problem]:
    rng = np.random.default_rng(11)
    cases = [case for case in CASES if case.has_function]
    for dtype in DTYPES:
        for case in cases:
            for n in SHORT:
                yield make_problem(case, dtype, (1, n))
            yield make_problem(case, dtype, (5, SPECIAL_LENGTH // 5), "special")
            yield make_problem(case, dtype, (5, SPECIAL_LENGTH // 5), "tiny")
            for _ in range(DRAWS):
                chosen = drawn(case, rng)
                yield solve(chosen, dtype, (1, 5), ordinary(chosen, dtype, (1, 5), rng))
        for case in COMBINATIONS:
            yield make_problem(case, dtype, (1, 53))
        for case in FIRST_OF_RULE:
            for shape in (*CUT, LARGE):
                yield make_problem(case, dtype, shape)
    by_rows = [*(case for case in FULLEST_OF_RULE if case in BY_ROWS), *PER_ROW]
    for j, storage in enumerate(STORAGES):
        for case in FULLEST_OF_RULE:
            yield make_problem(case.as_stored(storage), storage.compute, CUT[0])
        one = FULLEST_OF_RULE[j % len(FULLEST_OF_RULE)].as_stored(storage)
        yield make_problem(one, storage.compute, (5, SPECIAL_LENGTH // 5), "extremes")
        for k, case in enumerate(by_rows):
            yield rows_problem(case.as_stored(storage), storage.compute, TABLES[k % 2], "some, often twice")
    for dtype in DTYPES:
        for k, name in enumerate(INDICES):
            for case in by_rows:
                yield rows_problem(case, dtype, TABLES[k % 2], name)


def write(file: IO[bytes], problem: Problem) -> None:
    def numbers(*values: int) -> None:
        file.write(struct.pack(f"<{len(values)}q", *values))

    def text(value: str) -> None:
        numbers(len(value.encode()))
        file.write(value.encode())

    def values(array: Any) -> None:
        numbers(DTYPE_CODES[array.dtype.name], array.ndim)
        file.write(array.tobytes())

    case = problem.case
    start = {"param": problem.values.param, **problem.values.states}
    text(f"{case} {problem.dtype} {problem.shape}")
    text(case.rule)
    numbers(*problem.shape)
    numbers(len(start))
    held_as = {state.name: state.held_as for state in case.states}
    for name, array in start.items():
        text(held_as.get(name, name))
        values(array)
    numbers(len(problem.after))
    for t, (grad, after) in enumerate(zip(problem.values.grads, problem.after, strict=True), 1):
        now = case.at_step(t, rose(t))
        keys = [now.pop("key")] if "key" in now else []
        numbers(now.get("step", t))
        text("".join(f"{name}={as_text(value)}\n" for name, value in c_options(case, now).items()))
        numbers(len(keys))
        file.write(struct.pack(f"<{len(keys)}Q", *keys))
        numbers(problem.rows[t - 1].size if problem.rows else -1)
        if problem.rows:
            values(problem.rows[t - 1])
        values(grad)
        for name in start:
            file.write(after[name].tobytes())


def main(path: str) -> None:
    with Path(path).open("wb") as file:
        for problem in problems():
            written = io.BytesIO()
            write(written, problem)
            file.write(struct.pack("<q", written.tell()))  # so that it can be skipped
            file.write(written.getbuffer())


if __name__ == "__main__":
    main(*sys.argv[1:])
