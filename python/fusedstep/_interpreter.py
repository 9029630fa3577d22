"""Refuse interpreters in which importing the extension would hang."""

from __future__ import annotations

import importlib
import sys


def _check() -> None:
    """Raise ImportError in a subinterpreter of Python 3.11, where pybind11 waits for a lock that the first one has."""
    if sys.version_info >= (3, 12):
        return
    try:
        interpreters = importlib.import_module("_xxsubinterpreters")
    except ImportError:
        return
    if interpreters.get_current() != interpreters.get_main():
        raise ImportError("fusedstep in a subinterpreter needs Python 3.12 or later")


_check()
