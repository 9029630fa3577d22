"""The page on trust: each hazard has tests that exist. This file also tests one promise that no other file tests."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from checks import Unchanged

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "trust.md"
TESTS_PAGE = ROOT / "docs" / "trust-tests.md"


def rows(page: Path) -> list[list[str]]:
    """Return the section and the cells of each row in the tables of hazards."""
    section, found = "", []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section, in_table = line, False
        elif line.startswith("| hazard "):
            in_table = True
        elif in_table and line.startswith("| "):
            found.append([section, *line.strip("| ").split(" | ")])
    return found


HAZARDS = rows(PAGE)


def test_every_hazard_has_a_promise() -> None:
    assert HAZARDS
    assert all(len(row) == 3 for row in HAZARDS)
    assert len({hazard for _, hazard, _ in HAZARDS}) == len(HAZARDS)


def test_every_hazard_has_tests() -> None:
    """Both pages have the same rows, in the same order."""
    assert [row[:2] for row in rows(TESTS_PAGE)] == [row[:2] for row in HAZARDS]


@pytest.mark.parametrize("row", rows(TESTS_PAGE), ids=lambda row: row[1])
def test_each_promise_names_tests_that_exist(row: list[str]) -> None:
    _, _, tests, figure = row
    assert figure
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
    assert tests == "<br>".join(f"`{file}::{test}`" for file, test in named)
    for file, test in named:
        source = (TESTS / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def {test}\(|class {test}\b|{test} = )", source, re.MULTILINE), f"{file}::{test}"


def test_the_policy_leads_to_the_page() -> None:
    policy = ROOT / ".github" / "SECURITY.md"
    if not policy.exists():
        pytest.skip("no .github here: this is not a checkout")
    [link] = re.findall(r"\]\((.*?)\)", policy.read_text(encoding="utf-8"))
    assert (policy.parent / link).resolve() == PAGE


def test_masked_arrays_are_refused() -> None:
    """An update would ignore the mask. Nothing is written, also where only one array of many is masked."""
    masked: Any = np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])
    w, b, g, s = (np.ones(3) for _ in range(4))
    opt = fs.RMSprop([w, b])
    unchanged = Unchanged([masked.data, w, b, g, s])
    for refused in (
        partial(fs.RMSprop, masked),
        partial(fs.RMSprop, {"w": w, "b": masked}),
        partial(opt.add_param_group, {"params": {"c": masked}}),
        partial(opt.step, [g, masked]),
        partial(opt.step, [g, fs.Rows(np.arange(3), masked)]),
        partial(opt.step, [g, fs.Rows(np.ma.array([0, 1], mask=[False, True]), np.ones(2))]),
        partial(opt.step, [g, g], mask=[None, masked > 0]),
        partial(fs.RMSprop, [{"params": np.ones(3), "mask": masked > 0}]),
        partial(fs.minimize, lambda x: (0.0, masked), np.ones(3), jac=True),
        partial(fs.adagrad_, masked, g, s, lr=0.1),
        partial(fs.adagrad_, w, masked, s, lr=0.1),
        partial(fs.adagrad_, w, g, masked, lr=0.1),
    ):
        with pytest.raises(TypeError, match="mask"):
            refused()
        unchanged.check()
    assert opt.step([g, g]).step == 1
