"""Make the functions of the extension from Python signatures.

A ``def`` in the module of a rule declares the signature and the documentation. The decorator replaces it by a function
of the extension, because a Python frame costs more than the update of a small array.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from types import FunctionType
from typing import TypeVar, cast

from . import _core

__all__ = ["fused"]

F = TypeVar("F", bound=Callable[..., None])


def fused(rule: str) -> Callable[[F], F]:
    """Replace a signature by the extension's function for ``rule``, with the same name, arguments and documentation."""

    def make(declared: F) -> F:
        function = cast(FunctionType, declared)
        code = function.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        defaults = function.__kwdefaults__ or {}
        parameters = [(name, defaults.get(name), name not in defaults) for name in names]
        shown = [name if required else f"{name}={default!r}" for name, default, required in parameters]
        shown = ["$module", *shown[: code.co_argcount], "*", *shown[code.co_argcount :]]
        name = function.__name__
        documentation = f"{name}({', '.join(shown)})\n--\n\n{cleandoc(function.__doc__ or '')}"
        return cast(F, _core.make_function(rule, name, documentation, parameters, code.co_argcount))

    return make
