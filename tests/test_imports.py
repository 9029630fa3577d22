"""What an import loads, and what it does if something is missing."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import fusedstep as fs
from checks import python
from fusedstep import _core

PACKAGE = Path(fs.__file__).parent
SOURCES = [path for path in PACKAGE.rglob("*.py") if path.is_file()]


def run(code: str) -> Any:
    return ast.literal_eval(python(code))


def test_import_brings_little_along() -> None:
    """Modules that are rarely needed are imported where they are used, so the import takes little time."""
    present = "sys, numpy, inspect"  # newer versions of NumPy import inspect
    code = f"import {present}; before = set(sys.modules); import fusedstep; print(sorted(set(sys.modules) - before))"
    found = {name for name in run(code) if not name.startswith("_")}
    ours = {name for name in found if name.partition(".")[0] == "fusedstep"}
    assert {name for name in found - ours if not name.startswith("numpy.")} == set(), "modules of others"
    later = ("_checkpoint", "_verification._", "_cli", "_demo", "_bench", "torch")
    assert not [name for name in ours if name.removeprefix("fusedstep.").startswith(later)]


def test_no_step_imports_modules_of_others() -> None:
    """An import in a step takes milliseconds, and where memory runs out it fails as no step should."""
    code = (
        "import sys, numpy as np, fusedstep as fs\n"
        "p, g = {'w': np.ones((4, 2))}, {'w': np.ones((4, 2))}\n"
        "opt, rows, state = fs.Adagrad(p), fs.Rows(np.array([1]), np.ones((1, 2))), np.zeros((4, 2))\n"
        "before = set(sys.modules)\n"
        "opt.step(g, clip_norm=1.0)\n"
        "opt.step(g, mask={'w': p['w'] > 0})\n"
        "opt.step({'w': rows})\n"
        "fs.rmsprop_(p['w'], g['w'], state, lr=0.1)\n"
        "print([name for name in {*sys.modules} - before if not name.startswith('fusedstep.')])"
    )
    assert run(code) == []


def test_names_mean_one_thing_each() -> None:
    """Modules are private, or public and listed. No function has the name of a module."""
    code = (
        "import fusedstep as fs, fusedstep._cli, fusedstep._checkpoint._files; from types import ModuleType as M\n"
        "print(sorted(name for name, value in vars(fs).items() if isinstance(value, M) and name[0] != '_'))"
    )
    assert run(code) == ["reference", "typing"]
    for name in fs.__all__:
        assert not (PACKAGE / f"{name}.py").exists() or name == "reference"
    assert callable(fs.dialects)
    assert fs.Optimizer in fs.RMSprop.__mro__
    assert Path(fs.get_include()).name == "include"


def test_each_function_of_the_header_has_an_address() -> None:
    header = Path(__file__).parents[1] / "cpp" / "include" / "fusedstep" / "fusedstep.h"
    declared = re.findall(r"^FUSEDSTEP_API [\w *]+?(fusedstep_\w+)\(", header.read_text(encoding="utf-8"), re.MULTILINE)
    addresses = fs.c_functions()
    assert sorted(addresses) == sorted(declared)
    assert len({*addresses.values()}) == len(declared)


def imported(path: Path) -> set[str]:
    """Return the modules of this package that a module imports anywhere in it, as dotted names."""
    own = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "fusedstep" for alias in node.names), f"{path}: absolute"
        if not isinstance(node, ast.ImportFrom):
            continue
        assert (node.module or "").partition(".")[0] != "fusedstep", f"{path}: absolute"
        if node.level == 0:
            continue
        base = [*own[: len(own) - node.level], *(node.module.split(".") if node.module else ())]
        for alias in node.names:
            for name in ([*base, alias.name], base):
                if name and any(PACKAGE.joinpath(*name).with_suffix(ending).is_file() for ending in (".py", ".pyi")):
                    found.add(".".join(name))
                    break
                if name and PACKAGE.joinpath(*name, "__init__.py").is_file():
                    found.add(".".join([*name, "__init__"]))
                    break
    return found


def test_no_circle_of_imports() -> None:
    """Each module imports only what it stands on. Checkpoints and verification know no optimizer."""
    graph = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): imported(path) for path in SOURCES}
    reached: dict[str, set[str]] = {}

    def reach(module: str, path: tuple[str, ...] = ()) -> set[str]:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in reached:
            below = graph.get(module, set())
            reached[module] = below | {name for each in below for name in reach(each, (*path, module))}
        return reached[module]

    for module in graph:
        reach(module)
    for module in graph:
        if module.startswith(("_checkpoint.", "_verification.")):
            assert "_optimizer" not in reached[module], module
            assert "_run" in reached[module] or module.endswith(("__init__", "_containers", "_extra", "_version1")), (
                module
            )
    assert graph["reference"] == set()
    assert graph["_optimizer"] >= {"_run", "_checkpoint._files", "_verification._step"}, "the graph is there"


def test_a_copy_under_another_name(tmp_path: Path) -> None:
    """The package works under any name: its reports, errors, pickles and checkpoints are its own."""
    copied = shutil.copytree(PACKAGE, tmp_path / "vendored", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    assert _core.__file__
    shutil.copy(_core.__file__, copied)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import copy, pickle, vendored as v, numpy as np\n"
        "opt = v.Rprop({'w': np.ones(3)}, verify='every')\n"
        "assert type(opt.step({'w': np.ones(3)})) is v.StepReport\n"
        "w, state = np.ones(3), np.zeros(3)\n"
        "v.rmsprop_(w, np.ones(3), state, lr=0.1)\n"
        f"opt.save({str(tmp_path / 'x.npz')!r}); opt.load({str(tmp_path / 'x.npz')!r})\n"
        "assert pickle.loads(pickle.dumps(opt)).steps == 1\n"
        "for wrong in (lambda: v.RMSprop(w, learning_rate=1), lambda: v.rmsprop_(w, w, w, learning_rate=1)):\n"
        "    try: wrong()\n"
        "    except TypeError as error: assert 'did you mean' in str(error)\n"
        "print('fusedstep' in sys.modules)"
    )
    assert run(code) is False


@pytest.mark.parametrize(
    ("module", "missing", "says"),
    [
        ("torch", "torch", "fusedstep.torch needs PyTorch: pip install torch"),
        ("mpi", "mpi4py", "fusedstep.mpi needs mpi4py and an MPI: pip install mpi4py mpich"),
    ],
)
def test_a_package_is_missing(module: str, missing: str, says: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try: import fusedstep.{module}\n"
        "except ImportError as error: print(repr((str(error), error.name, type(error).__name__)))"
    )
    assert run(code) == (says, missing, "ImportError")
