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
from ._hints import parameters

F = TypeVar("F", bound=Callable[..., None])


def fused(rule: str) -> Callable[[F], F]:
    """Replace a signature by the extension's function for ``rule``, with the same name, arguments and documentation."""

    def make(declared: F) -> F:
        function = cast(FunctionType, declared)
        name, positional = function.__name__, function.__code__.co_argcount
        defaults = function.__kwdefaults__ or {}
        takes = [(each, defaults.get(each), each not in defaults) for each in parameters(function)]
        shown = [each if required else f"{each}={default!r}" for each, default, required in takes]
        shown = ["$module", *shown[:positional], "*", *shown[positional:]]
        documentation = f"{name}({', '.join(shown)})\n--\n\n{cleandoc(function.__doc__ or '')}"
        return cast(F, _core.make_function(rule, name, documentation, takes, positional))

    return make
