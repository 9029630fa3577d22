"""Make ``registry`` and ``checks`` importable, and see that no test leaves the settings of the package changed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("checks")

# No deadlines: machines are shared and examples differ in size. `--hypothesis-profile=long` is the long run.
_common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("short", _common, max_examples=200, derandomize=True)
settings.register_profile("long", _common, max_examples=10_000, print_blob=True)
settings.load_profile("short")


# With pytest-run-parallel, `--parallel-threads=4` runs the tests of these files in four threads at once. Other tests
# change or count what the whole process shares.
PARALLEL = {
    "test_border", "test_borrowing", "test_dialects", "test_exactness", "test_norm", "test_optimizers",
    "test_oracles", "test_registry", "test_torch",
}  # fmt: skip


# `-m "not slow"` leaves these out, and tests that are marked in their files: tests that build C or C++ programs, run
# other programs, train, or take more than a second.
SLOW = {
    "test_bench", "test_c_abi", "test_demo", "test_embedding", "test_examples", "test_gallery", "test_instructions",
    "test_mpi", "test_typing",
    "test_a_huge_directory_of_an_archive", "test_altered_files_with_a_right_checksum",
    "test_dense_gradients_row_by_row", "test_each_step_is_that_of_torch", "test_every_byte_and_every_length",
    "test_headers_that_are_too_large", "test_interrupted_between_any_two_instructions", "test_killed_while_saving",
    "test_memory_is_bounded", "test_memory_is_bounded_in_files_with_a_right_checksum", "test_resumed_at_every_cut",
    "test_schedulers", "test_scipy_is_told_what_is_ignored", "test_states_go_from_torch_to_us_and_back",
}  # fmt: skip


# What builds for minutes or has most to do. In several processes these files come first, so that none is left with one.
LONG = ("test_objects", "test_c_abi", "test_exactness", "test_embedding", "test_checkpoints", "test_docs", "test_torch")


def in_parallel(config: pytest.Config) -> bool:
    return str(config.getoption("parallel_threads", 1)) != "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if in_parallel(config) and item.path.stem not in PARALLEL:
            item.add_marker("thread_unsafe")
        if {item.path.stem, getattr(item, "originalname", "")} & SLOW:
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the garbage collector thousands of tests and imported modules, which stay until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def settings_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    import fusedstep as fs

    before = fs.isa(), fs.get_num_threads()
    fs.set_num_threads(before[1])  # which is otherwise asked of the system again, and may have changed there
    yield
    after = fs.isa(), fs.get_num_threads()
    fs.set_num_threads(before[1])
    if in_parallel(request.config):
        fs._core.force_isa(before[0])  # threads that set and reset it at the same time may leave another one's
    else:
        assert after == before
