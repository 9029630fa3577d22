"""Type checkers find mistakes, and only mistakes: mypy and basedpyright, on the programs in tests/typing."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import fusedstep as fs
import fusedstep.typing
from fusedstep import _core
from fusedstep.typing import PerElement
from registry import OF_CLASS

PROGRAMS = Path(__file__).parent / "typing"
PACKAGE = Path(fs.__file__).parent


def wrong_lines() -> set[int]:
    """Return the lines of wrong.py that are wrong: those after the definitions."""
    lines = (PROGRAMS / "wrong.py").read_text(encoding="utf-8").splitlines()
    start = lines.index("fs.RMSprop({single})")
    return set(range(start + 1, len(lines) + 1))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with only the package, because not every checker finds an editable install."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "fusedstep").symlink_to(PACKAGE)
    return folder


def mypy(package: Path, folder: Path) -> dict[str, set[int]]:
    """Return the lines that mypy flags, by program."""
    command = [
        sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--config-file", "",
        "--cache-dir", folder / "cache", *PROGRAMS.glob("*.py"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={"MYPYPATH": str(package)}, cwd=folder
    )
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, set[int]] = {path.name: set() for path in PROGRAMS.glob("*.py")}
    for line in done.stdout.splitlines():
        if error := re.match(r"(.*):(\d+): error: ", line):
            assert Path(error[1]).name in found, line
            found[Path(error[1]).name].add(int(error[2]))
    return found


def basedpyright(package: Path, folder: Path) -> dict[str, set[int]]:
    """Return the lines that basedpyright flags, with the rules of pyright."""
    config = {"include": [str(PROGRAMS)], "extraPaths": [str(package)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, set[int]] = {path.name: set() for path in PROGRAMS.glob("*.py")}
    for told in json.loads(done.stdout)["generalDiagnostics"]:
        if told["severity"] == "error":
            found[Path(told["file"]).name].add(told["range"]["start"]["line"] + 1)
    return found


CHECKERS = {"mypy": mypy, "basedpyright": basedpyright}


@pytest.mark.parametrize("name", CHECKERS)
def test_type_checkers(name: str, package: Path, tmp_path: Path) -> None:
    """Every wrong line is flagged, and no right one."""
    if importlib.util.find_spec(name) is None or importlib.util.find_spec("attrs") is None:
        pytest.skip(f"{name} or attrs is not installed")
    found = CHECKERS[name](package, tmp_path)
    assert found["right.py"] == set()
    assert found["wrong.py"] == wrong_lines()
    assert len(wrong_lines()) >= 12


@functools.cache
def choices() -> dict[str, tuple[str, ...]]:
    return {
        name: field["choices"]
        for rule in _core.rules().values()
        for name, field in rule["fields"].items()
        if field["kind"] == "choice"
    }


def test_words_are_those_of_the_rules() -> None:
    """The types of choices list what the rules accept."""
    names = {"momentum_form": "MomentumForm", "variant": "Variant", "per": "Per"}
    types = {name: getattr(fusedstep.typing, alias) for name, alias in names.items()}
    assert {name: get_args(alias) for name, alias in types.items()} == choices()


CLASSES = [getattr(fs, name) for name in fs.__all__ if name[0].isupper() and hasattr(getattr(fs, name), "like")]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not fs.Optimizer])
def test_options_are_written_alike(cls: Any) -> None:
    """The constructor, the attributes and the options of ``like`` have the names and types of the rule."""
    module = sys.modules[cls.__module__]
    hints = get_type_hints(cls.__init__)
    own = {name: hint for name, hint in hints.items() if name not in ("params", "return", *OF_CLASS)}
    options = getattr(module, f"{cls.__name__}Options", None)
    assert options is None or {"lr": PerElement, **get_type_hints(options)} == own
    attributes = {name: get_type_hints(cls)[name] for name in own if not name.startswith("initial_")}
    assert attributes == {name: own[name] for name in attributes}
    assert all(isinstance(vars(cls)[name].__doc__, str) for name in attributes)
    rule = next(rule for rule in _core.rules() if rule.replace("_", "") == cls.__name__.lower())
    assert options is not None or rule not in fs.dialects(), "what its ``like`` takes has no type"
    fields = _core.rules()[rule]["fields"]
    assert set(attributes) == {name for name, field in fields.items() if field["purpose"] == "option"}
    for name, hint in own.items():
        number = PerElement if fields[name]["per_element"] else float
        kinds = {"real": number, "flag": bool, "pair": tuple[number, number], "choice": hint}
        assert hint == kinds[fields[name]["kind"]], name


def test_hints_can_be_read_at_run_time() -> None:
    for cls in CLASSES:
        assert get_type_hints(cls.step)["return"] is fs.StepReport
