"""The page on trust names tests that there are, and every hazard has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "trust.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!hazard|what|-)", line)]
PROMISES = [row for row in ROWS if "`cmake " not in row]


def names_in(row: str) -> list[str]:
    return re.findall(r"`(test_\w+\.py::\w+)`", row)


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split(" | ")[0][2:])
def test_each_promise_names_tests_that_exist(row: str) -> None:
    assert len(row.strip("| ").split(" | ")) == 4
    named = names_in(row)
    assert named
    for name in named:
        file, test = name.split("::")
        assert re.search(
            rf"^(def {test}\(|class {test}\b|{test} = )", (TESTS / file).read_text(encoding="utf-8"), re.M
        ), name


def test_there_are_promises() -> None:
    assert len(PROMISES) >= 25


def test_the_policy_leads_to_the_page() -> None:
    policy = ROOT / ".github" / "SECURITY.md"
    if not policy.exists():
        pytest.skip("no .github here: this is not a checkout")
    [link] = re.findall(r"\]\((.*?)\)", policy.read_text(encoding="utf-8"))
    assert (policy.parent / link).resolve() == PAGE
