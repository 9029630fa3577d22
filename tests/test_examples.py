"""The programs in ``examples/`` do what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fusedstep as fs
import native

EXAMPLES = native.ROOT / "examples"
FITTED = "slope 3.0000, offset -2.0000 after 300 steps"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")


def test_numpy_loop() -> None:
    assert native.run(sys.executable, EXAMPLES / "numpy_loop.py").splitlines() == [FITTED]


@native.once
def built() -> Path:
    """Build the examples against the installed package with the command in their CMake file."""
    native.cc()
    build = native.scratch("examples")
    native.cmake_build(EXAMPLES, build, f"-Dfusedstep_DIR={fs.get_cmake_dir()}")
    return build


def test_the_trainer_in_cpp() -> None:
    refused = (
        "refused: grad shares memory with param; "
        "an update in place needs arrays that do not overlap: pass a copy of one"
    )
    assert native.run(built() / "trainer").splitlines() == [FITTED, refused]


PRINTED_BY_C = [FITTED, "refused: lr: expected a finite number with lr >= 0, got -1"]


def test_the_program_in_c() -> None:
    assert native.run(built() / "program").splitlines() == PRINTED_BY_C


def test_the_program_in_c_with_the_shared_library(tmp_path: Path) -> None:
    """The header is C11 without a warning."""
    library = native.shared_library()
    native.run(native.cc(), "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I",
               native.sources() / "cpp" / "include", EXAMPLES / "program.c", "-o", tmp_path / "program", library, "-lm",
               f"-Wl,-rpath,{library.parent}")  # fmt: skip
    assert native.run(tmp_path / "program").splitlines() == PRINTED_BY_C


def test_the_drop_in_for_pytorch() -> None:
    pytest.importorskip("torch")
    program = EXAMPLES / "pytorch_drop_in.py"
    if not program.is_file():
        pytest.skip("the example is not here")
    assert native.run(sys.executable, program).strip()
