"""Make ``registry`` and ``checks`` importable, and see that no test leaves the settings of the package changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("checks")

# Machines are shared and examples differ in size: time is no criterion. `--hypothesis-profile=long` for the long run.
_common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("short", _common, max_examples=300, derandomize=True)
settings.register_profile("long", _common, max_examples=10_000, print_blob=True)
settings.load_profile("short")


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    import fusedstep as fs

    before = fs.isa(), fs.get_num_threads()
    yield
    after = fs.isa(), fs.get_num_threads()
    fs.set_num_threads(before[1])
    assert after == before
