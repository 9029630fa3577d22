"""The instructions of kernels and calls, compared with stored counts, which noise cannot change."""

from __future__ import annotations

import json

import pytest

import instruction_counts
from native import sources, tool

MARGIN = 0.03
"""How many more instructions there may be than were stored. The numbers of two runs differ by less than 0.1%."""

RENEW = "python tests/instruction_counts.py"


def test_no_kernel_and_no_call_takes_more_instructions_than_before():
    sources()
    tool("valgrind")
    stored = json.loads(instruction_counts.STORED.read_text())
    here = instruction_counts.conditions()
    if here != stored["conditions"]:
        pytest.skip(f"counts are stored for {stored['conditions']}, this is {here}; `{RENEW}` stores those of here")
    counts = instruction_counts.count()
    assert counts.keys() == stored["counts"].keys(), f"`{RENEW}` stores what is counted now"
    worse = {
        name: f"{stored['counts'][name]:,} -> {now:,} ({now / stored['counts'][name] - 1:+.1%})"
        for name, now in counts.items()
        if now > stored["counts"][name] * (1 + MARGIN)
    }
    assert not worse, f"more instructions than stored; where that is meant, `{RENEW}` stores them anew"
