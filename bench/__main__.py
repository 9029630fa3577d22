"""``python -m bench``: measure, and write tables, a plot, rows and the history of runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fusedstep._terminal import progress

from . import history, plot, report, rows, sparse
from .cases import CASES
from .rows import Row, Setting

START, SHORT_START, END = "<!-- bench:start -->", "<!-- bench:start short -->", "<!-- bench:end -->"


def case_name(text: str) -> str:
    """Return the name of a case that is written in any letters, large or small."""
    names = {case.name.lower(): case.name for case in CASES}
    if text.lower() not in names:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(names.values())}, got {text!r}")
    return names[text.lower()]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    scope = made.add_mutually_exclusive_group()
    scope.add_argument("--sparse", action="store_true", help="gradients of some rows, beside those of others; a minute")
    scope.add_argument("--quick", action="store_true", help="three sizes on one thread; a minute")
    scope.add_argument(
        "--table",
        metavar="FILE",
        nargs="*",
        type=Path,
        help=f"print one Markdown table, or write it into each FILE between {START} and {END}, in short after "
        f"{SHORT_START}; ten minutes",
    )
    made.add_argument("--json", metavar="FILE", type=Path, help="write all rows")
    made.add_argument("--plot", metavar="FILE", type=Path, help="draw ns per element over size (needs matplotlib)")
    made.add_argument("--history", metavar="FILE", type=Path, help="append this run, and compare it with the last one")
    made.add_argument("--no-peers", action="store_true", help="only our ways and the measured rates")
    made.add_argument("--rules", metavar="NAME", nargs="+", type=case_name, help="only these")
    made.add_argument("--sizes", metavar="N", nargs="+", type=int, help="only these numbers of elements")
    made.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), help="only these")
    made.add_argument("--threads", metavar="N", nargs="+", type=int, help="only these numbers of threads")
    made.add_argument("--seconds", type=float, help="time for one group of contenders")
    return made


def setting_of(options: argparse.Namespace) -> Setting:
    chosen = rows.QUICK if options.quick else rows.table() if options.table is not None else rows.full()
    changes: dict[str, Any] = {}
    if options.rules:
        changes["cases"] = tuple(options.rules)
    if options.sizes:
        changes["sizes"] = changes["sizes_of_variants"] = tuple(options.sizes)
        changes |= {"models": (), "layouts": False, "whole_step": False}
    if options.dtypes:
        changes["dtypes"] = tuple(options.dtypes)
    if options.threads:
        changes["threads"] = tuple(options.threads)
    if options.no_peers:
        changes["peers"] = False
    if options.seconds is not None:
        changes["seconds"] = options.seconds
    return replace(chosen, **changes)


def check_outputs(options: argparse.Namespace) -> None:
    """Raise OSError or ValueError if something cannot be written, before minutes are spent."""
    for path in options.table or ():
        parts(path)
    for path in (*(options.table or ()), options.json, options.plot, options.history):
        if path is not None:
            path.open("a").close()
    if options.plot:
        plot.check(options.plot)


def parts(path: Path) -> tuple[str, str, str]:
    """Return what stands before the place of the table, the line that starts it, and what stands after it."""
    text = path.read_text(encoding="utf-8")
    start = SHORT_START if SHORT_START in text else START
    before, found, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"{path} has no lines {START} and {END} to write the table between")
    return before, start, after


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write. Return 1 if one of our results was wrong, 2 if something cannot be written."""
    options = parser().parse_args(arguments)
    try:
        check_outputs(options)
    except (OSError, ValueError, ImportError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    if options.sparse:
        for line in sparse.report(options.seconds or 1.0):
            print(line, flush=True)
        return 0
    started = time.perf_counter()
    facts = rows.machine()
    groups = rows.groups(setting_of(options))
    say: Callable[[str], None] = print if options.table is None else lambda text: None
    say(report.summary(facts))
    say("ns per element: median (quartiles); GB/s of the bytes that the rule moves; share of the slower measured rate.")
    found: list[Row] = []
    show, group = progress(), None
    for row in rows.measure(groups, lambda done, name: show(done / len(groups), name)):
        found.append(row)
        if row.ns_per_element is not None:
            if row.group != group:
                show(1, "")
                say(report.heading(row))
            say(report.line(row))
            group = row.group
    show(1, "")
    say("")
    for line in [*report.not_timed(found), *report.defeats(found)]:
        say(line)
    say(f"\n{len(found)} rows of {len(groups)} groups in {time.perf_counter() - started:.0f} s")
    if options.json:
        text = json.dumps({"machine": facts, "rows": [asdict(row) for row in found]}, indent=1)
        options.json.write_text(text, encoding="utf-8")
    if options.plot:
        plot.plot(found, facts, options.plot)
    if options.table == []:
        print(report.table(found, facts))
    for path in options.table or ():
        before, start, after = parts(path)
        text = (report.short if start == SHORT_START else report.table)(found, facts)
        path.write_text(f"{before}{start}\n{text}\n{END}{after}", encoding="utf-8")
    if options.history:
        history.append(options.history, found, facts)
        print(*history.compare(options.history), sep="\n")
    return 1 if any(row.error.startswith("wrong") and row.is_ours for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
