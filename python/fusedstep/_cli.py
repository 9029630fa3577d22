"""The commands: a demo, a self-check, a small benchmark, and what the package was built with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import _bench, _core, _demo
from ._config import get_cmake_dir, get_include, show_config
from ._verification import _selfcheck

__all__ = ["COMMANDS", "main", "make_parser"]


class Command(NamedTuple):
    """A subcommand: its line of help, its arguments, and what it does; ``run`` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``info``."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--cmake-dir", action="store_true", help="only print the folder for CMake's fusedstep_DIR")
    only.add_argument("--include-dir", action="store_true", help="only print the folder for a C++ compiler's -I")
    only.add_argument("--json", action="store_true", help="print the same as JSON")


def print_config(options: argparse.Namespace) -> int:
    """Print what the package was built with and what is in use, or where a part of it is."""
    if options.cmake_dir:
        print(get_cmake_dir())
    elif options.include_dir:
        print(get_include())
    else:
        print(json.dumps(show_config(), indent=2) if options.json else show_config())
    return 0


COMMANDS = {
    "demo": Command(_demo.HELP, _demo.add_arguments, _demo.run),
    "bench": Command(_bench.HELP, _bench.add_arguments, _bench.run),
    "verify": Command(_selfcheck.HELP, _selfcheck.add_arguments, _selfcheck.run),
    "info": Command("print version, compiler, instruction sets and threads", add_config_arguments, print_config),
}

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
"""Optional modules, and the packages that have them."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, made from ``COMMANDS``."""
    parser = argparse.ArgumentParser(prog="python -m fusedstep", description=__doc__)
    parser.add_argument("--version", action="version", version=_core.version)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help, description=command.help))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; 2 where an optional package is missing."""
    options = make_parser().parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in PACKAGES:
            raise
        needed = " ".join(sorted({PACKAGES[module], *(PACKAGES.values() if options.command == "demo" else ())}))
        print(f"{options.command} needs {PACKAGES[module]}: pip install {needed}", file=sys.stderr)
        return 2
