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
    """Build the examples against the installed package, as the first line of their CMake file says."""
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


def test_the_program_in_c() -> None:
    refused = "refused: lr: expected a finite number with lr >= 0, got -1"
    assert native.run(built() / "program").splitlines() == [FITTED, refused]


def test_the_drop_in_for_pytorch() -> None:
    pytest.importorskip("torch")
    program = EXAMPLES / "pytorch_drop_in.py"
    if not program.is_file():
        pytest.skip("the example is not here")
    assert native.run(sys.executable, program).strip()
