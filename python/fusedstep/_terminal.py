"""What the commands share: progress on stderr, and names of rules."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import _core
from ._hints import did_you_mean


def cannot_write(command: str, path: Path) -> bool:
    """Return whether no file can be written at ``path``, and say why. What is there stays."""
    existed = path.exists()
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        if not existed:
            path.unlink()
    except OSError as problem:
        print(f"{command}: cannot write {path}: {problem.strerror}", file=sys.stderr)
        return True
    return False


def progress() -> Callable[[float, str], None]:
    """Return a function that reports progress after two seconds: on one line of a terminal, or a few of a file."""
    started, terminal, said = time.perf_counter(), sys.stderr.isatty(), 2.0

    def say(done: float, what: str) -> None:
        nonlocal said
        if (elapsed := time.perf_counter() - started) >= said and (terminal or done < 1):
            text = f"{done:.0%}, {elapsed:.0f} s {what}"
            sys.stderr.write(f"\r\033[K{text if done < 1 else ''}" if terminal else f"{text}\n")
            sys.stderr.flush()
            said = said if terminal else 2 * elapsed

    return say


def add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", metavar="RULE", nargs="+", type=rule_name, help="only these rules (default: all)")


def rule_name(text: str) -> str:
    """Return the name of a rule from that of its class or function, in large or small letters."""
    names = {rule.replace("_", ""): rule for rule in _core.rules()}
    name = text.lower().replace("_", "")
    if name not in names:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(names.values())}, got {text!r}{did_you_mean(name, names)}"
        )
    return names[name]
