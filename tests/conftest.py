"""Make ``registry`` and ``checks`` importable, and see that no test leaves the settings of the package changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("checks")


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    import fusedstep as fs

    before = fs.isa(), fs.get_num_threads()
    yield
    after = fs.isa(), fs.get_num_threads()
    fs.set_num_threads(before[1])
    assert after == before
