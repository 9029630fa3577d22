"""README does what it says: every Python block runs, every command and name in it exists."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import fusedstep as fs
from fusedstep.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [line for language, text in BLOCKS if language in ("sh", "bash", "shell") for line in text.splitlines()]

SET_UP = '.venv/bin/pip install ".[demo]" && .venv/bin/python -m fusedstep demo'
TEST = '.venv/bin/pip install ".[test]" && .venv/bin/python -m pytest'


@pytest.mark.parametrize("source", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})


def test_there_are_two_examples() -> None:
    assert len(PYTHON) >= 2


def test_set_up_commands_are_there() -> None:
    assert f"python -m venv .venv && {SET_UP}" in SHELL
    assert TEST in SHELL


def test_subcommands_exist() -> None:
    named = set(re.findall(r"python -m fusedstep (\w+)", README))
    assert {"demo", "verify", "info"} <= named <= set(COMMANDS)


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for names in re.findall(r'"(?:\.|fusedstep)\[([\w,]+)\]"', README) for extra in names.split(",")}
    assert named <= set(project["optional-dependencies"])


def test_names_exist() -> None:
    for name in re.findall(r"\bfs\.(\w+)", README):
        assert hasattr(fs, name), name


def test_files_exist() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_ci_runs_both_commands() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("no .ci/run here: this is not a checkout")
    text = script.read_text(encoding="utf-8")
    assert SET_UP in text
    assert TEST in text


def test_presets_exist() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    named = set(re.findall(r"--preset (\w+)", README))
    assert named <= {preset["name"] for preset in presets if not preset.get("hidden")}
