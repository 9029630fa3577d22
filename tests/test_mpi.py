"""``fusedstep.mpi``: an optimizer over several processes has the bits, the files and the errors of one process.

What the ranks do stands in ``ranks.py``. Here each scenario is started on 1 to 4 ranks, with a time limit: a rank that
waits for ever is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

RANKS = (1, 2, 3, 4)
LIMIT = 300
"""Seconds, on a machine that others use as well; a hang takes for ever."""

pytest.importorskip("mpi4py", reason="mpi4py is missing: pip install mpi4py mpich")

SCRIPTS = sysconfig.get_path("scripts")
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join((SCRIPTS, os.environ.get("PATH", ""))))
if MPIEXEC is None:
    pytest.skip("mpiexec is missing: pip install mpich", allow_module_level=True)


def start(ranks: int, *command: object, limit: float = LIMIT) -> tuple[int, str]:
    """Return the status and the output of a program on some ranks; fail, and leave no process, if it does not end."""
    assert MPIEXEC is not None
    with subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "FUSEDSTEP_NUM_THREADS": "1"},
    ) as program:
        try:
            output, _ = program.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            pytest.fail(f"{ranks} ranks: no end after {limit} s: {command}")
    return program.returncode, output


def run(ranks: int, scenario: str, folder: Path) -> None:
    status, output = start(ranks, Path(__file__).with_name("ranks.py"), scenario, folder)
    assert status == 0, output


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "scenario",
    [
        "lanes_give_the_bits_of_one_process", "gradients_are_added_in_a_tree", "containers", "nonfinite_gradients",
        "norms_out_of_range", "hyperparameters_may_change", "refused", "costs",
    ],
)  # fmt: skip
def test_on_any_number_of_ranks(ranks: int, scenario: str, tmp_path: Path) -> None:
    run(ranks, scenario, tmp_path)


@pytest.mark.parametrize("ranks", [2, 3])
def test_arrays_of_16_bits(ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    run(ranks, "narrow_storage", tmp_path)


def test_buckets(tmp_path: Path) -> None:
    run(2, "buckets_only_bound_memory", tmp_path)


def test_docstrings(tmp_path: Path) -> None:
    pytest.importorskip("numpydoc.validate")
    run(1, "docstrings", tmp_path)


def test_the_example() -> None:
    """It fits, and prints the same bits for any number of ranks."""
    program = Path(__file__).parents[1] / "examples" / "mpi_trainer.py"
    if not program.is_file():
        pytest.skip("the example is not here")
    [(status, said), *others] = [start(ranks, program) for ranks in (1, 2, 3)]
    assert status == 0, said
    before, after = map(float, re.findall(r"\d\.\d+", said))
    assert after < before / 4
    assert others == [(status, said)] * len(others)


def test_no_communicator(tmp_path: Path) -> None:
    run(1, "no_communicator", tmp_path)


def test_a_disk_that_fails_in_the_middle_of_a_save(tmp_path: Path) -> None:
    run(3, "a_disk_that_fails", tmp_path)


def test_checkpoints_go_from_any_number_of_ranks_to_any(tmp_path: Path) -> None:
    """Saved by 3, 1 and 4 ranks, in the same bytes as by one process; loaded by 2, by 3 and by one process."""
    one, three, four = (tmp_path / name for name in ("one", "three", "four"))
    for ranks, folder in ((1, one), (3, three), (4, four)):
        folder.mkdir()
        run(ranks, "save", folder)
    files = sorted(path.name for path in one.iterdir())
    assert files
    for name in files:
        content = (one / name).read_bytes()
        assert (three / name).read_bytes() == content, name
        assert (four / name).read_bytes() == content, name
    for ranks in (2, 3):
        run(ranks, "load_and_go_on", one)
    run(2, "load_what_fits", three)
    run(3, "load_version_1", three)
    run(1, "one_process", three)


def test_a_rank_is_killed_in_a_step(tmp_path: Path) -> None:
    """MPI ends all others."""
    begun = time.monotonic()
    status, output = start(3, Path(__file__).with_name("ranks.py"), "killed", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3, output
    assert status != 0
    assert time.monotonic() - begun < LIMIT
