"""README and the guide are right: every Python block runs, and every command, name and file in them exists."""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import inspect
import json
import os
import pickle
import pydoc
import re
import shlex
import sys
import sysconfig
import tomllib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import excerpts
import fusedstep as fs
import native
from fusedstep import typing as types
from fusedstep._cli import COMMANDS, make_parser
from registry import DECLARED, ENTRIES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]

# Blocks that compare with these packages are skipped if they are not installed.
PEERS = {"autograd", "dask", "equinox", "flax", "jax", "joblib", "keras", "numba", "optax", "pennylane", "pints",
         "scipy", "sklearn", "tensorflow", "thinc", "torch"}  # fmt: skip
DIRECTIVES = {"{eval-rst}", "{include}", "{toctree}"}
EXCERPTS = {"c", "cmake", "cpp", "python"}
COMPILED = {"cpp": {"c", "cpp"}}


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    text: str
    line: int
    follows: bool
    """Whether nothing stands between it and the block before."""
    excerpt: bool
    """Whether it is a part of a source file."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    end = 0
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        between = text[end : match.start()]
        follows, excerpt = end > 0 and not between.strip(), bool(re.search(r"<!-- excerpt: [^\n]* -->\n$", between))
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start(2)), follows, excerpt))
        end = match.end()
    return found


def of_language(language: str) -> list[Any]:
    """Return the pages that have blocks of a language, as parameters of a test."""
    return [
        pytest.param(page, id=page.stem) for page in PAGES if any(block.language == language for block in blocks(page))
    ]


def imported(source: str) -> set[str]:
    """Return the packages that a source imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("page", of_language("python"))
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the blocks of a page in order, as a reader would. A ``text`` block right after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    missing: set[str] = set()
    printed: str | None = None
    for block in blocks(page):
        if block.language == "text" and block.follows and printed is not None:
            assert printed == block.text, f"{page.name}, line {block.line}"
        printed = None
        if block.language != "python" or block.excerpt:
            continue
        peers = imported(block.text) & PEERS
        if lacking := {name for name in peers if importlib.util.find_spec(name) is None}:
            missing |= lacking
            continue
        with warnings.catch_warnings():
            if peers:
                warnings.simplefilter("ignore")  # theirs
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
    if missing:
        pytest.skip(f"{page.name}: all ran but the blocks that need {', '.join(sorted(missing))}")


def test_jax_reads_parameters_later() -> None:
    """Check the page on common mistakes: a loss that JAX has only started may see a later step. One that was waited for
    does not, nor one that came with its gradient."""
    jax = pytest.importorskip("jax")

    @jax.jit
    def loss(params: dict[str, Any]) -> Any:
        return ((params["w"] @ params["w"]) ** 2).sum()

    def started(params: dict[str, Any]) -> tuple[Any, Any]:
        return loss(params), grad

    def waited_for(params: dict[str, Any]) -> tuple[Any, Any]:
        return jax.block_until_ready(loss(params)), grad

    both = jax.jit(jax.value_and_grad(loss))
    start = np.random.default_rng(0).standard_normal((400, 400), dtype=np.float32)
    true, grad = (np.asarray(found) for found in (loss({"w": start}), jax.grad(loss)({"w": start})["w"]))
    late = 0
    for way in (started, waited_for, both):
        for _ in range(20):
            params = {"w": start.copy()}
            opt = fs.RMSprop(params, lr=10.0)
            value, gradient = way(params)
            opt.step({"w": grad if way is not both else gradient["w"]})
            is_late = abs(float(value) / float(true) - 1) > 0.1
            assert way is started or not is_late, way
            late += is_late
    if not late:
        pytest.skip("no step overtook JAX on this machine")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_of_a_kind_that_is_tested(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*(?:```|~~~|:::)", text, re.MULTILINE)) == 2 * len(blocks(page)), "a stray fence"
    for block in blocks(page):
        kind = block.language.partition(" ")[0]
        allowed = EXCERPTS if block.excerpt else {"python", "sh", "text"} | COMPILED.get(page.stem, set())
        assert kind in allowed | DIRECTIVES, f"{page.name}, line {block.line}: {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_excerpts_are_what_the_files_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- excerpt: ") == len(excerpts.EXCERPT.findall(text))
    assert text == excerpts.renewed(text), f"run `python tests/excerpts.py` to renew {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_that_readme_links_read_well_on_a_code_host(page: Path) -> None:
    linked = f"(docs/{page.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert not linked or not {block.language.partition(" ")[0] for block in blocks(page)} & DIRECTIVES


# ------------------------------------------------------------------------------------------------------- shell commands


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's shell blocks, as words."""
    return [
        shlex.split(command)
        for block in blocks(page)
        if block.language == "sh"
        for line in block.text.splitlines()
        for command in line.split(" && ")
    ]


def bench_parser() -> argparse.ArgumentParser:
    """Return the parser of the benchmark, which is in a checkout and not in the package."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("bench.__main__").parser()
    finally:
        sys.path.remove(str(ROOT))


def check_command(words: list[str]) -> None:
    """Fail unless the command is one of ours and its arguments exist."""
    program = words[0].removeprefix(".venv/bin/")
    if (program, words[1:3]) == ("python", ["-m", "fusedstep"]):
        make_parser().parse_args(words[3:])
    elif (program, words[1:3]) == ("python", ["-m", "bench"]):
        bench_parser().parse_args(words[3:])
    elif (program, words[1:3]) == ("python", ["-m", "pytest"]):
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))
    elif program == "mpiexec":
        check_command(words[3:])
    elif program == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words
    elif (program, words[1:2]) == ("pip", ["install"]):
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(EXTRAS)
    elif program == "cmake":
        check_cmake(words[1:])
    elif program == "sphinx-build":
        assert (ROOT / words[-2] / "conf.py").is_file()
    else:
        assert words in (["python", "-m", "venv", ".venv"], ["bash", ".ci/run"]) or program == "c++", words


def check_cmake(words: list[str]) -> None:
    file = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
    listed = "buildPresets" if words[0] == "--build" else "configurePresets"
    if "--preset" in words:
        presets = {preset["name"] for preset in file[listed] if not preset.get("hidden")}
        assert words[words.index("--preset") + 1] in presets
    options = set(re.findall(r"^option\((\w+)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), re.MULTILINE))
    defined = {word[2:].partition("=")[0] for word in words if word.startswith("-D")}
    assert defined <= options | {"BUILD_SHARED_LIBS", "CMAKE_INSTALL_PREFIX", "fusedstep_DIR"}


@pytest.mark.parametrize("page", of_language("sh"))
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        check_command(words)


def test_commands_of_embedding_run(tmp_path: Path) -> None:
    """Run the commands that build programs, in a folder with the examples. The library itself was built before."""
    native.cc(), native.cxx(), native.tool("pkg-config"), native.tool("cmake")
    prefix = native.installed()
    (tmp_path / "examples").symlink_to(native.ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        "PKG_CONFIG_PATH": str(next(prefix.rglob("pkgconfig"))),
        **({"CMAKE_GENERATOR": "Ninja"} if native.generator() else {}),
    }
    ran = [block for block in blocks(DOCS / "embedding.md") if block.language == "sh" and ("examples" in block.text)]
    for block in ran:
        native.run("bash", "-euc", block.text, cwd=tmp_path, env=environment)
    folder = tmp_path / "build" / "examples"
    for program in (tmp_path / "trainer", folder / "trainer", folder / "program"):
        assert re.fullmatch(r"slope 3\.0000, offset -2\.0000 after 300 steps\nrefused: \w+.*\n", native.run(program))
    assert len(ran) == 2


@pytest.mark.parametrize(
    ("language", "compiler", "standard", "headers"),
    [
        ("cpp", native.cxx, "c++20", ("cassert", "functional", "string", "vector", "fusedstep/fusedstep.hpp")),
        ("c", native.cc, "c11", ("stdio.h", "fusedstep/fusedstep.h")),
    ],
)
def test_the_reference_of_cpp_and_c_compiles_and_runs(
    language: str, compiler: Any, standard: str, headers: tuple[str, ...], tmp_path: Path
) -> None:
    """The blocks of a language, in order, are the main function of a program."""
    main = "".join(block.text for block in blocks(DOCS / "cpp.md") if block.language == language)
    program = "".join(f"#include <{header}>\n" for header in headers) + f"int main(void) {{\n{main}\nreturn 0;\n}}\n"
    (tmp_path / f"program.{language}").write_text(program, encoding="utf-8")
    library = native.shared_library()
    native.run(compiler(), f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-I",
               native.sources() / "cpp" / "include", tmp_path / f"program.{language}", "-o", tmp_path / "program",
               library, f"-Wl,-rpath,{library.parent}")  # fmt: skip
    native.run(tmp_path / "program")


@pytest.mark.parametrize("header", ["fusedstep.h", "fusedstep.hpp", "rules.hpp"])
def test_the_reference_of_cpp_and_c_has_every_public_name(header: str) -> None:
    text = (ROOT / "cpp" / "include" / "fusedstep" / header).read_text(encoding="utf-8")
    page = (DOCS / "cpp.md").read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    names = re.findall(r"^FUSEDSTEP_API [\w:<>* ]*?(\w+)\(", code, re.MULTILINE)
    names += re.findall(
        r"^(?:typedef )?(?:class|struct|enum class|using|concept) (?:FUSEDSTEP_API )?(\w+)\b", code, re.MULTILINE
    )
    names += re.findall(r"\b(FUSEDSTEP_(?!API|H|SHARED)[A-Z0-9_]+)\b", code)
    assert names
    missing = {name for name in names if not re.search(rf"\b{name}\b", page)}
    assert not missing, f"docs/cpp.md does not name {sorted(missing)}"


# ------------------------------------------------------------------------------------------------------ names and files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\bfs\.((?:\w+\.)*\w+)", text):
        found: Any = fs
        module = path.partition(".")[0]
        if not hasattr(fs, module) and importlib.util.find_spec(f"fusedstep.{module}"):
            continue  # it needs another package, and is imported by name
        for name in path.split("."):
            assert hasattr(found, name), f"{page.name}: fs.{path}"
            found = getattr(found, name)
    assert set(re.findall(r"python -m fusedstep (\w+)", text)) <= set(COMMANDS)
    for extras in re.findall(r'"(?:\.|fusedstep)\[([\w,]+)\]"', text):
        assert set(extras.split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose) + re.findall(r'<img src="([^"]+)"', text)
    parts = re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    for path in links + parts:
        assert (page.parent / path).exists(), f"{page.name}: {path}"
    for path in re.findall(r"`((?:bench|cpp|docs|examples|python|tests)/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_api_reference_has_every_public_name() -> None:
    """Directives of docs/conf.py list the classes and functions of the rules, and reports; the page lists the rest."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, re.MULTILINE))
    assert re.findall(r"^\.\. public:: (\w+)$", text, re.MULTILINE) == ["optimizers", "reports", "functions"]
    optimizers = {"Optimizer"} | {name for name in fs.__all__ if name in {entry.class_name for entry in ENTRIES}}
    functions = {f"{rule}_" for rule in DECLARED}
    reports = {name for name in fs.__all__ if name.endswith("Report")}
    assert shown.isdisjoint(optimizers | functions | reports)
    assert shown | optimizers | functions | reports == set(fs.__all__) - {"reference"}
    assert ".. automodule:: fusedstep.reference\n   :members:\n" in text
    assert set(re.findall(r"`([A-Z]\w+)`", text)) - {"Optimizer"} == set(types.__all__)
    tree = ast.parse((ROOT / "python" / "fusedstep" / "torch.py").read_text(encoding="utf-8"))
    [names] = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert set(re.findall(r"autoclass:: fusedstep\.torch\.(\w+)", text)) == set(ast.literal_eval(names))


@pytest.mark.parametrize("rule", DECLARED)
def test_functions_show_as_the_packages_own(rule: str) -> None:
    """``help``, ``inspect`` and ``pickle`` see the extension's functions as the package's, not as methods."""
    name = f"{rule}_"
    function = getattr(fs, name)
    assert (function.__module__, function.__qualname__, function.__name__) == ("fusedstep", name, name)
    assert repr(function) == f"<built-in function {name}>"
    assert not inspect.ismethod(function)
    shown = pydoc.plaintext.document(function)
    assert shown.splitlines()[0] == f"{name}{inspect.signature(function)}"
    assert "Parameters" in shown
    assert copy.deepcopy(function) is function
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.rule)
def test_classes_show_their_arguments(entry: Any) -> None:
    """``inspect`` and ``help`` show the arguments of the constructor, also of a user's subclass."""
    cls = getattr(fs, entry.class_name)

    class Own(cls):
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, lr=rate)

    _, *arguments = inspect.signature(cls.__init__).parameters.values()
    assert list(inspect.signature(cls).parameters.values()) == arguments
    assert list(inspect.signature(Own).parameters) == ["params", "rate"]
    assert f"class {cls.__name__}(fusedstep" in pydoc.plaintext.document(cls)
    assert f"{cls.__name__}(params:" in pydoc.plaintext.document(cls)


def test_the_walk_passes_every_file_of_its_rule() -> None:
    """The page on adding a rule names each source file that mentions its rule."""
    page = (DOCS / "adding-a-rule.md").read_text(encoding="utf-8")
    [rule] = set(re.findall(r"<!-- excerpt: cpp/include/fusedstep/rules/(\w+)\.hpp", page))
    assert rule in DECLARED
    mentioned = re.compile(rule.replace("_", "_?"), re.IGNORECASE)
    files = [
        path
        for folder in ("bench", "cpp", "python", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".c", ".cpp", ".h", ".hpp", ".py", ".pyi", ".txt"}
    ]
    found = {str(path.relative_to(ROOT)) for path in files if mentioned.search(path.read_text(encoding="utf-8"))}
    assert len(found) >= 5
    assert found <= set(re.findall(r"`((?:bench|cpp|python|tests)/[\w./]+)`", page))
