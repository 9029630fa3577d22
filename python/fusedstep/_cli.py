"""The commands of ``python -m fusedstep``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import _bench, _core, _demo
from ._config import get_cmake_dir, get_include, show_config
from ._verification import _selfcheck


class Command(NamedTuple):
    """A subcommand: its line of help, its arguments, what it does, and an example; ``run`` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    example: str


FOLDERS = {
    "--cmake-dir": ("CMake's fusedstep_DIR", get_cmake_dir),
    "--include-dir": ("a compiler's -I", get_include),
    "--pkg-config-dir": (
        "PKG_CONFIG_PATH",
        lambda: os.path.join(os.path.dirname(os.path.dirname(get_cmake_dir())), "pkgconfig"),
    ),
}
"""Options of ``info``: what the folder is for, and where it is."""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    only = parser.add_mutually_exclusive_group()
    for option, (purpose, find) in FOLDERS.items():
        about = f"only print the folder for {purpose}"
        only.add_argument(option, dest="find", action="store_const", const=find, help=about)
    only.add_argument("--json", action="store_true", help="print the same as JSON")


def print_config(options: argparse.Namespace) -> int:
    """Print how the package was built and what is in use, or the folder of a part."""
    if options.find:
        print(options.find())
    else:
        print(json.dumps(show_config(), indent=2) if options.json else show_config())
    return 0


COMMANDS = {
    "demo": Command(_demo.HELP, _demo.add_arguments, _demo.run, "demo --out pictures"),
    "verify": Command(_selfcheck.HELP, _selfcheck.add_arguments, _selfcheck.run, "verify --quick --rules rmsprop"),
    "bench": Command(_bench.HELP, _bench.add_arguments, _bench.run, "bench --quick --json rows.json"),
    "info": Command("show version, compiler, instruction sets, threads", add_config_arguments, print_config, "info"),
}

EXIT_CODES = "Exit code: 0 if all is well, 1 if a bit differs, 2 if the command is wrong or a package is missing."

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
"""Optional modules, and the packages that have them."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fusedstep",
        description="Check and measure fusedstep on this machine, or see it train a network.",
        epilog=f"`python -m fusedstep demo --help` shows the options of `demo`, and so on. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=_core.version)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS), title="commands")
    for name, command in COMMANDS.items():
        described = f"{command.help[0].upper()}{command.help[1:]}."
        epilog = f"Example: python -m fusedstep {command.example}"
        command.add_arguments(subparsers.add_parser(name, help=command.help, description=described, epilog=epilog))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; 2 where an optional package is missing."""
    options = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names of processors and files in a terminal that is ASCII only
    try:
        code = COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return code
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in PACKAGES:
            raise
        needed = " ".join(sorted({PACKAGES[module], *(PACKAGES.values() if options.command == "demo" else ())}))
        print(f"{options.command} needs {PACKAGES[module]}: pip install {needed}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again when it ends
        return 0
    except KeyboardInterrupt:
        return 130  # as a shell reports Ctrl-C
