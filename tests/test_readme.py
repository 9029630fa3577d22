"""What README must have; test_docs.py runs its code and the guide's."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import fusedstep as fs
from test_docs import ROOT, blocks

README = ROOT / "README.md"
SHELL = [line for block in blocks(README) if block.language == "sh" for line in block.text.splitlines()]

SET_UP = '.venv/bin/pip install ".[demo]" && .venv/bin/python -m fusedstep demo'
TEST = '.venv/bin/pip install "fusedstep[test]" && .venv/bin/python -m pytest'  # compiles nothing again
QUICK = f'{TEST} -m "not slow" -n 2'


def test_set_up_commands_are_there() -> None:
    assert f"python -m venv .venv && {SET_UP}" in SHELL
    assert SHELL.index(QUICK) < SHELL.index(".venv/bin/python -m pytest")  # the quick check comes before the whole one


def test_it_names_the_main_commands() -> None:
    named = set(re.findall(r"python -m fusedstep (\w+)", README.read_text(encoding="utf-8")))
    assert {"demo", "verify", "info"} <= named


def test_a_package_index_gets_links_that_work_there() -> None:
    beside = str(Path(fs.__file__).parents[1])  # the package under test, whatever else is on the path
    installed = [*importlib.metadata.distributions(name="fusedstep", path=[beside])]
    if not installed:
        pytest.skip("fusedstep is not installed here, so it has no metadata")
    shown = installed[0].read_text("METADATA") or ""
    links = re.findall(r"\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    addresses = re.findall(r"\]\(([^)]+)\)", shown)
    assert len(addresses) == len(links)
    for link, address in zip(links, addresses, strict=True):
        assert address == link if link.startswith(("https:", "#")) else address.endswith(f"/HEAD/{link}")
        assert address.startswith(("https://", "#"))


def test_ci_runs_the_commands() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("no .ci/run here: this is not a checkout")
    text = script.read_text(encoding="utf-8")
    assert SET_UP in text
    assert TEST in text
