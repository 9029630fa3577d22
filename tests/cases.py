"""Write down updates with what the reference makes of them, for tests/cpp/replay.cpp to run where Python is not.

``python tests/cases.py FILE``: every case and every combination of options of the registry, in both types; short
lengths, special values, lengths around which work is cut, and hyperparameters drawn at random.
"""

from __future__ import annotations

import dataclasses
import inspect
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

import fusedstep as fs
from c_structs import DTYPE_CODES, rule_struct
from checks import Problem, make_problem, solve
from registry import CASES, COMBINATIONS, DRAWN, DTYPES, FIRST_OF_RULE, SPECIAL_LENGTH, SWITCHES, Case, ordinary, rose

SHORT = (0, 1, 7, 37)
CUT = ((1, 1025), (33, 65))
LARGE = (307, 131)
DRAWS = 20


def drawn(case: Case, rng: np.random.Generator) -> Case:
    """The case with all hyperparameters that it has drawn at random, and with the number of its steps."""
    takes = {*inspect.signature(getattr(fs.reference, case.function_name)).parameters} - SWITCHES | {*case.options}
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


def write(file: IO[bytes], problem: Problem) -> None:
    def numbers(*values: int) -> None:
        file.write(struct.pack(f"<{len(values)}q", *values))

    def text(value: str) -> None:
        numbers(len(value.encode()))
        file.write(value.encode())

    case = problem.case
    start = {"param": problem.values.param, **problem.values.states}
    text(f"{case} {problem.dtype} {problem.shape}")
    text(case.rule)
    numbers(*problem.shape)
    numbers(len(start))
    for array in start.values():
        numbers(DTYPE_CODES[array.dtype.char], array.ndim == 0)
        file.write(array.tobytes())
    numbers(len(problem.after))
    for t, (grad, after) in enumerate(zip(problem.values.grads, problem.after, strict=True), 1):
        now = case.at_step(t, rose(t))
        options = bytes(rule_struct(case, now))
        numbers(now.get("step", t), len(options))
        file.write(options)
        file.write(grad.tobytes())
        for name in start:
            file.write(after[name].tobytes())


def main(path: str) -> None:
    with Path(path).open("wb") as file:
        for problem in problems():
            write(file, problem)


if __name__ == "__main__":
    main(*sys.argv[1:])
