"""Instructions of kernels and of the call path, counted by valgrind's callgrind: numbers that noise cannot change.

`python tests/instruction_counts.py` counts and stores them, in tests/instructions/stored.json: to be done, and the
difference looked at, where a change of the code is meant to change them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fusedstep import _core
from native import cxx, installed, run, scratch, tool

HERE = Path(__file__).parent / "instructions"
STORED = HERE / "stored.json"
ISAS = ("baseline", "avx2")
"""Valgrind does not know AVX-512."""

CALLS = 100
"""How often tests/instructions/calls.py calls what it counts."""


def conditions() -> dict[str, str]:
    """Return what other numbers are no news for: another compiler, another interpreter."""
    return {
        "machine": platform.machine(),
        "compiler": _core.compiler,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": ".".join(np.__version__.split(".")[:2]),
    }


def count() -> dict[str, int]:
    """Return the instructions of each call: what is counted, on which instruction set."""
    counts: dict[str, int] = {}
    program = _driver()
    for isa in ISAS:
        counts |= {f"{name} ({isa})": total for name, total in _callgrind(program, isa)}
    counts |= {name: total // CALLS for name, total in _callgrind(sys.executable, HERE / "calls.py", "avx2")}
    return counts


def _driver() -> Path:
    prefix = installed()
    program = scratch("instructions") / "driver"
    run(cxx(), "-std=c++20", "-O2", f"-I{prefix / 'include'}", HERE / "driver.cpp", "-o", program,
        f"-L{prefix / 'lib'}", "-lfusedstep", "-lpthread")  # fmt: skip
    return program


def _callgrind(*command: str | Path) -> Iterator[tuple[str, int]]:
    """Run a program under callgrind; yield the names that it printed, and what was counted between two markers."""
    out = scratch("callgrind") / "parts"
    options = ["--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={out}"]
    printed = run("env", "PYTHONHASHSEED=0", "OPENBLAS_NUM_THREADS=1", tool("valgrind"), *options, *command)
    parts = sorted(out.parent.glob("parts.*"), key=lambda part: int(part.suffix[1:]))
    totals = [int(re.search(r"^(?:totals|summary): (\d+)", part.read_text(), re.MULTILINE)[1]) for part in parts]
    # The first part comes before the first marker, the second between that marker and the next, and so on.
    yield from zip(printed.splitlines(), totals[1::2], strict=True)


def main() -> None:
    stored = {"conditions": conditions(), "counts": count()}
    before = json.loads(STORED.read_text())["counts"] if STORED.exists() else {}
    for name, now in stored["counts"].items():
        was = before.get(name)
        print(f"{name:<50} {now:>9,}" + (f"  {now / was - 1:+.1%}" if was and was != now else ""))
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"stored in {os.path.relpath(STORED)}")


if __name__ == "__main__":
    main()
