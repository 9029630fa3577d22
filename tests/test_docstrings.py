"""Public docstrings: each has an example, all examples run, and their sections are numpydoc's."""

from __future__ import annotations

import doctest
import importlib
import inspect
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fusedstep as fs

MODULES = ["fusedstep", *(["fusedstep.torch"] if find_spec("torch") else [])]


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public name that has a docstring of its own, and the public methods of classes."""
    yield "fusedstep.reference", fs.reference  # the fused functions document its functions
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.ismodule(found):
                continue
            yield f"{module.__name__}.{name}", found
            for key, value in vars(found).items() if inspect.isclass(found) else ():
                method = value.__func__ if isinstance(value, classmethod) else value
                if key[0] != "_" and inspect.isfunction(method) and method.__doc__:
                    yield f"{module.__name__}.{name}.{key}", method


PUBLIC = dict(public())
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
_, *LEFT_OUT = PROJECT["tool"]["numpydoc_validation"]["checks"]  # all checks except these


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    if "import scipy" in text or "from scipy" in text:
        pytest.importorskip("scipy")
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
    assert test.examples, "it has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_numpydocs(name: str) -> None:
    validate = pytest.importorskip("numpydoc.validate").validate
    assert [found for found in validate(name)["errors"] if found[0] not in LEFT_OUT] == []
