"""The programs in ``examples/`` do what they say."""

from __future__ import annotations

import re
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import fusedstep as fs
import native

EXAMPLES = native.ROOT / "examples"
FITTED = "slope 3.0000, offset -2.0000 after 300 steps"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")


def test_numpy_loop() -> None:
    assert native.run(sys.executable, EXAMPLES / "numpy_loop.py").splitlines() == [FITTED]


def test_digits_resume_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped twice and run again, the program of the tutorial ends with the bits of a run that was never stopped."""
    pytest.importorskip("sklearn")
    train = runpy.run_path(str(EXAMPLES / "digits.py"))["train"]
    whole = train(tmp_path / "whole.npz", 8)
    save, saves = fs.RMSprop.save, []

    def stopped_twice(self: fs.RMSprop, path: Path, extra: Any = None) -> None:
        save(self, path, extra)
        saves.append(path)
        if len(saves) in (2, 5):
            raise KeyboardInterrupt

    monkeypatch.setattr(fs.RMSprop, "save", stopped_twice)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts.npz", 8)
    parts = train(tmp_path / "parts.npz", 8)
    assert "goes on after epoch 5" in capsys.readouterr().out
    for mine, other in zip(whole, parts, strict=True):
        assert all((mine[name] == other[name]).all() for name in ("w", "b"))


def test_digits_are_learned() -> None:
    pytest.importorskip("sklearn")
    with tempfile.TemporaryDirectory() as folder:
        printed = native.run(sys.executable, EXAMPLES / "digits.py", "--checkpoint", Path(folder) / "x.npz")
    [share] = re.findall(r"best: ([\d.]+)% of 497 other digits", printed)
    assert float(share) > 95


def test_the_program_in_c_with_the_shared_library(tmp_path: Path) -> None:
    """The header is C11 without a warning."""
    library = native.shared_library()
    native.run(native.cc(), "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I",
               native.sources() / "cpp" / "include", EXAMPLES / "program.c", "-o", tmp_path / "program", library, "-lm",
               f"-Wl,-rpath,{library.parent}")  # fmt: skip
    refused = "refused: lr: expected a finite number with lr >= 0, got -1"
    assert native.run(tmp_path / "program").splitlines() == [FITTED, refused]


def test_the_drop_in_for_pytorch() -> None:
    pytest.importorskip("torch")
    program = EXAMPLES / "pytorch_drop_in.py"
    if not program.is_file():
        pytest.skip("the example is not here")
    assert float(native.run(sys.executable, program).removeprefix("accuracy ")) > 0.95
