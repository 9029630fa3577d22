"""``python -m fusedstep``: the demo, the self-check, and what the package was built with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import bench, demo, selfcheck
from ._config import get_cmake_dir, get_include, show_config


class Command(NamedTuple):
    """A subcommand: its line of help, its arguments, and what it does; ``run`` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``info``."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--cmake-dir", action="store_true", help="print the folder for CMake's fusedstep_DIR, alone")
    only.add_argument("--include-dir", action="store_true", help="print the folder for a C++ compiler's -I, alone")


def print_config(options: argparse.Namespace) -> int:
    """Print what the package was built with and what is in use, or where a part of it is."""
    if options.cmake_dir:
        print(get_cmake_dir())
    elif options.include_dir:
        print(get_include())
    else:
        print(show_config())
    return 0


COMMANDS = {
    "demo": Command(demo.HELP, demo.add_arguments, demo.run),
    "bench": Command(bench.HELP, bench.add_arguments, bench.run),
    "verify": Command(selfcheck.HELP, selfcheck.add_arguments, selfcheck.run),
    "info": Command("print version, compiler, instruction sets and threads", add_config_arguments, print_config),
}

EXTRAS = {"sklearn": ("scikit-learn", "demo"), "matplotlib": ("matplotlib", "demo")}
"""Optional modules: the package that has them and the extra that brings it."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, made from ``COMMANDS``."""
    parser = argparse.ArgumentParser(prog="python -m fusedstep", description=__doc__)
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
        if module not in EXTRAS:
            raise
        package, extra = EXTRAS[module]
        print(f'{options.command} needs {package}: pip install "fusedstep[{extra}]"', file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
