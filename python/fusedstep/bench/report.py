"""`python -m fusedstep bench`: text, JSON, a table and a plot."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import rows as measuring
from .cases import CASES, LAYOUTS
from .models import MODELS
from .rows import MAIN, OURS, Row, Setting

__all__ = ["add_arguments", "defeats", "plot", "run", "table"]

START, SHORT_START, END = "<!-- bench:start -->", "<!-- bench:start short -->", "<!-- bench:end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--quick", action="store_true", help="three sizes on one thread, under a minute")
    scope.add_argument(
        "--table",
        metavar="FILE",
        nargs="*",
        type=Path,
        help=f"print one Markdown table, or write it into each FILE between {START} and {END}, in short after "
        f"{SHORT_START}; some eight minutes",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all rows")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw ns an element over size (needs matplotlib)")
    parser.add_argument("--no-peers", action="store_true", help="our kernels and the limits alone")
    parser.add_argument("--rules", metavar="NAME", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--sizes", metavar="N", nargs="+", type=int, help="only these numbers of elements")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), help="only these")
    parser.add_argument("--threads", metavar="N", nargs="+", type=int, help="only these numbers of threads")
    parser.add_argument("--seconds", type=float, help="time for one group of contenders")


def _setting(arguments: argparse.Namespace) -> Setting:
    chosen = (
        measuring.QUICK if arguments.quick else measuring.table() if arguments.table is not None else measuring.full()
    )
    changes: dict[str, Any] = {}
    if arguments.rules:
        changes["cases"] = tuple(arguments.rules)
    if arguments.sizes:
        changes["sizes"] = changes["sizes_of_variants"] = tuple(arguments.sizes)
        changes |= {"models": (), "layouts": False, "whole_step": False}
    if arguments.dtypes:
        changes["dtypes"] = tuple(arguments.dtypes)
    if arguments.threads:
        changes["threads"] = tuple(arguments.threads)
    if arguments.no_peers:
        changes["peers"] = False
    if arguments.seconds is not None:
        changes["seconds"] = arguments.seconds
    return replace(chosen, **changes)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit code."""
    setting = _setting(arguments)
    for path in arguments.table or ():
        _parts(path)  # before minutes are spent
    started = time.perf_counter()
    facts = measuring.machine()
    groups = measuring.groups(setting)
    say: Callable[[str], None] = print if arguments.table is None else (lambda text: None)
    say(_facts(facts))
    say("ns an element: median (quartiles); GB/s of the bytes that the rule must read and write; share of the limit.")
    found: list[Row] = []
    last: Any = None
    for row in measuring.measure(groups, _progress(len(groups))):
        found.append(row)
        if row.ns_per_element is None:
            continue
        if row.group != last:
            _clear()
            say(_heading(row))
            last = row.group
        say(_line(row))
    _clear()
    say("")
    for line in [*_not_timed(found), *defeats(found)]:
        say(line)
    say(f"\n{len(found)} rows of {len(groups)} groups in {time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in found]}, indent=1))
        say(f"rows written to {arguments.json}")
    if arguments.plot:
        plot(found, facts, arguments.plot)
        say(f"plot written to {arguments.plot}")
    if arguments.table == []:
        print(table(found, facts))
    for path in arguments.table or ():
        before, start, after = _parts(path)
        path.write_text(f"{before}{start}\n{table(found, facts, short=start == SHORT_START)}\n{END}{after}")
        print(f"table written to {path}, {time.perf_counter() - started:.0f} s after the start")
    return 1 if any(row.error.startswith("wrong") and row.is_ours for row in found) else 0


def _parts(path: Path) -> tuple[str, str, str]:
    """Return what stands before the place of the table, the line with which that starts, and what stands after it."""
    text = path.read_text()
    start = SHORT_START if SHORT_START in text else START
    before, found, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise SystemExit(f"{path} has no lines {START} and {END} to write the table between")
    return before, start, after


def _progress(total: int) -> Callable[[int, str], None]:
    """Return a bar on the terminal, with the time left as the groups so far let guess."""
    if not sys.stderr.isatty():
        return lambda done, name: None
    started = time.perf_counter()

    def show(done: int, name: str) -> None:
        filled = 20 * done // total
        left = "" if done < 3 else f", {(time.perf_counter() - started) / done * (total - done):.0f} s left"
        text = f"[{'#' * filled}{'.' * (20 - filled)}] {done}/{total}{left}: {name}"
        sys.stderr.write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    return show


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


# --------------------------------------------------------------------------------------------------------------- text


def _facts(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['system']}, {facts['compiler']}, {facts['instruction set']}, "
        f"threads: {facts['threads']}; {versions}"
    )


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _heading(row: Row) -> str:
    what = "" if row.what == LAYOUTS[0] else f", {row.what}"
    return f"\n{row.case}{what}, {row.n:,} elements of {row.dtype}, {_threads(row.threads)}"


def _line(row: Row) -> str:
    spread = f"{row.ns_per_element:9.3f} ({row.lower:.3f} to {row.upper:.3f})"
    rate = f"{row.gigabytes_per_second:7.1f} GB/s" if row.gigabytes_per_second is not None else " " * 12
    share = f"{row.share_of_limit:5.2f} of {row.bound_by}" if row.share_of_limit is not None else ""
    return f"  {row.way:<30} {spread:<30} {rate} {share:<16} {row.error}".rstrip()


def _not_timed(found: list[Row]) -> list[str]:
    """Return a line for each peer and reason: what is missing or wrong is never dropped silently."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found:
        if row.ns_per_element is None and row.error != "has no such rule":
            what = "" if row.what == LAYOUTS[0] else f" ({row.what})"
            places = reasons.setdefault((row.way, row.error), [])
            if (place := f"{row.case} {row.dtype}{what}") not in places:
                places.append(place)
    return [
        f"not timed: {way}: {said}" + ("" if said.startswith("missing") else f": {', '.join(places)}")
        for (way, said), places in reasons.items()
    ]


ADAPTOR = "fusedstep.torch"

TIE = 0.03
"""Times that differ by less are no victory."""


def defeats(found: Iterable[Row]) -> list[str]:
    """Return a line for each group in which a peer is faster than our best way from Python, or as fast."""
    groups: dict[Any, list[Row]] = {}
    for row in found:
        if row.ns_per_element is not None and not row.is_limit:
            groups.setdefault(row.group, []).append(row)
    lines = []
    for rows in groups.values():
        peers = [row for row in rows if not row.is_ours]
        lines += _defeats("ours", [row for row in rows if row.is_ours and "Python" in row.way], peers)
        adaptor = [row for row in rows if row.way == ADAPTOR]
        lines += _defeats(ADAPTOR, adaptor, [row for row in peers if row.way.startswith("torch")])
    return lines


def _defeats(name: str, ours: list[Row], peers: list[Row]) -> list[str]:
    lines = []
    best = min((row.ns_per_element or 0.0 for row in ours), default=0.0)
    for peer in peers:
        ratio = best / (peer.ns_per_element or 1.0)
        if ratio > 1 - TIE:
            verb = "is faster" if ratio > 1 + TIE else "ties"
            times = f"{_digits(peer.ns_per_element or 0.0)} ns an element, {name} {_digits(best)}"
            lines.append(f"{peer.way} {verb} ({times}): {_heading(peer).strip()}")
    return lines


def _defeats_in_short(found: list[Row]) -> list[str]:
    """Return where which peers are faster, or as fast; and which were not timed."""
    places: dict[str, dict[str, list[str]]] = {"Faster than ours": {}, "As fast as ours, within 3%": {}}
    faster, as_fast = places
    for line in defeats(found):
        verdict, _, place = line.partition("): ")
        peer, ties, _ = verdict.partition(" ties ")
        *rule, size, _ = place.replace(" elements of float32", "").split(", ")
        where = " ".join(rule) if rule[-1] in MODELS else f"{' '.join(rule)} {size}"
        places[as_fast if ties else faster].setdefault(peer.partition(" is faster ")[0], []).append(where)
    lines = []
    for verb, peers in places.items():
        peers_and_places = [f"{peer} ({'; '.join(where)})" for peer, where in peers.items()]
        if peers:
            lines.append(f"{verb}: {', '.join(peers_and_places)}.")
    missing = [line.removeprefix("not timed: ") for line in _not_timed(found)]
    return [
        " ".join(lines) or "No peer is as fast.",
        *(["", f"Not timed: {'; '.join(missing)}."] if missing else []),
    ]


# -------------------------------------------------------------------------------------------------------------- table

NAMES = {
    f"{OURS}, kernel": f"**{OURS}**, the kernel alone",
    f"{OURS}, C++ function": f"**{OURS}**, C++ function",
    f"{OURS}, C++ optimizer": f"**{OURS}**, C++ optimizer",
    f"{OURS}, Python function": f"**{OURS}**, Python function",
    f"{OURS}, Python optimizer": f"**{OURS}**, Python optimizer",
    ADAPTOR: f"**{ADAPTOR}**",
}


SHORT_SIZES = ((1, 1_000), (1, 30_000), (1, 16_000_000), (2, 16_000_000))
SHORT_WAYS = ("C++ function", "Python function", "NumPy out=", "numba", "torch foreach", "torch fused", "optax")
SHORT_LISTS = ("100 x 10,000", "10,000 x 16")
"""What of the table is shown in short."""


def table(found: list[Row], facts: dict[str, Any], short: bool = False) -> str:
    """Return Markdown: what was measured on, one table of arrays, one of lists, and where we lose or tie."""
    all_found = found
    if short:
        found = [row for row in found if _in_short(row)]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = [
        f"{facts['processor']}, {facts['instruction set']}, {facts['system'].partition('-')[0]}; {facts['compiler']}, "
        f"{versions}. float32.",
        "",
        "A cell: error of one step, in units of the last place (ulp) of the sum; nanoseconds an element, the median of "
        "alternating rounds; share of the limit. The limit is the larger of the memory's traffic and the divider's "
        "rate, measured in the same rounds by loops of the same kind; a share can be above 1, for memory varies.",
        "",
    ]
    arrays = [row for row in found if row.what == LAYOUTS[0] and row.dtype == "float32"]
    columns = sorted({(row.threads, row.n) for row in arrays})
    names = [f"{n:,}" if threads == 1 else f"{n:,}, {_threads(threads)}" for threads, n in columns]
    text += [f"| rule | way | {' | '.join(names)} |", "|---|---|" + "---|" * len(columns)]
    for case in dict.fromkeys(row.case for row in arrays):
        cells = {(row.way, row.threads, row.n): row for row in arrays if row.case == case}
        limits = [[row for row in cells.values() if (row.threads, row.n) == column] for column in columns]
        text.append(f"| {case} | limit | {' | '.join(map(_limit_cell, limits))} |")
        for way in dict.fromkeys(way for way, *_ in cells):
            if way in NAMES or not way.startswith(("limit", OURS)):
                ours = [_cell(cells.get((way, *column))) for column in columns]
                if any(cell.endswith(tuple("0123456789")) for cell in ours):
                    text.append(f"| | {NAMES.get(way, way)} | {' | '.join(ours)} |")
    lists = [row for row in found if row.what not in LAYOUTS]
    if lists:
        ways = list(dict.fromkeys(row.way for row in lists if row.error != "has no such rule"))
        text += ["", "Lists of parameters, one thread; a cell: error, microseconds a step of the whole list.", ""]
        text += [
            f"| list | rule | {' | '.join(NAMES.get(way, way) for way in ways)} |",
            "|---|---|" + "---|" * len(ways),
        ]
        for what, case in dict.fromkeys((row.what, row.case) for row in lists):
            by_way = {row.way: row for row in lists if (row.what, row.case, row.threads) == (what, case, 1)}
            text.append(f"| {what} | {case} | {' | '.join(_list_cell(by_way.get(way)) for way in ways)} |")
    lost = defeats(all_found)
    if short:
        text += ["", *_defeats_in_short(all_found)]
        return "\n".join(text)
    text += [
        "",
        "Where a peer is faster than ours called from Python, or within 3%:" if lost else "No peer is as fast.",
    ]
    text += ["", *(f"- {line}" for line in lost)] if lost else []
    if silent := _not_timed(found):
        text += ["", "Not timed:", "", *(f"- {line.removeprefix('not timed: ')}" for line in silent)]
    return "\n".join(text)


def _in_short(row: Row) -> bool:
    if row.what != LAYOUTS[0]:
        return row.what in SHORT_LISTS and row.case == "RMSprop"
    shown = row.is_limit or (any(way in row.way for way in SHORT_WAYS) and row.way != "numba parallel")
    return shown and (row.threads, row.n) in SHORT_SIZES


def _limit_cell(rows: list[Row]) -> str:
    """Return the limit of a size, and which one it is."""
    limit, bound_by = _limit(rows)
    return f"{_digits(limit)} ns, {bound_by}"


def _limit(rows: list[Row]) -> tuple[float, str]:
    """Return the larger of the limits of a group in ns an element, and its name."""
    times = {row.way: row.ns_per_element for row in rows if row.is_limit and row.ns_per_element}
    traffic = min(taken for way, taken in times.items() if "traffic" in way)
    return max((traffic, "traffic"), (times.get("limit: divider", 0.0), "divider"))


def _cell(row: Row | None) -> str:
    if row is None or row.error == "has no such rule":
        return ""
    if row.ns_per_element is None:
        return row.error.partition(":")[0]
    return f"{row.error}, {_digits(row.ns_per_element)} ns, {row.share_of_limit:.2f}"


def _list_cell(row: Row | None) -> str:
    if row is None or row.error == "has no such rule":
        return ""
    if row.ns_per_element is None:
        return row.error.partition(":")[0]
    return f"{row.error}, {_digits(row.ns_per_element * row.n / 1e3)}"


def _digits(x: float) -> str:
    """Return three digits, or the whole number where that has more."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


# --------------------------------------------------------------------------------------------------------------- plot

STYLES = {
    f"{OURS}, kernel": ("#D55E00", "-", "o", 2.6),
    f"{OURS}, Python function": ("#D55E00", "--", "o", 1.6),
    "limit": ("black", ":", "", 2.0),
    "NumPy": ("#777777", "-", "s", 1.1),
    "NumPy out=": ("#777777", "--", "s", 1.1),
    "numexpr": ("#B8A000", "-", "v", 1.1),
    "numba": ("#009E73", "-", "D", 1.1),
    "numba parallel": ("#009E73", "--", "D", 1.1),
    "torch loop": ("#CC79A7", "-", "P", 1.1),
    "torch foreach": ("#CC79A7", "--", "X", 1.1),
    "torch fused": ("#0072B2", "-", "h", 1.1),
    "torch compiled": ("#0072B2", "--", "*", 1.1),
    "optax jit, donated": ("#E69F00", "-", "<", 1.1),
    "DeepSpeed": ("#8B4513", "-", ">", 1.1),
}
"""Colour, line, marker and width; the colours can be told apart by all, the markers in black and white."""


def plot(found: list[Row], facts: dict[str, Any], path: Path) -> None:
    """Draw ns an element over size, log-log, a panel a rule: one thread, float32, each line named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not their outlines: a third of the size
    import matplotlib.pyplot as plt

    threads = min((row.threads for row in found), default=1)
    chosen = [
        row
        for row in found
        if row.what == LAYOUTS[0] and row.dtype == "float32" and row.threads == threads and row.ns_per_element
    ]
    cases = [name for name in MAIN if any(row.case == name for row in chosen)]
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.6 * columns, 5.2 * lines), squeeze=False, layout="constrained"
    )
    for axis, case in zip(axes.flat, cases, strict=False):
        rows = [row for row in chosen if row.case == case]
        ends: list[tuple[float, float, str, str]] = []
        for way, (colour, line, marker, width) in STYLES.items():
            if way == "limit":
                points = {n: _limit([row for row in rows if row.n == n])[0] for n in {row.n for row in rows}}
            else:
                points = {row.n: row.ns_per_element for row in rows if row.way == way and row.ns_per_element}
            if points:
                x, y = zip(*sorted(points.items()), strict=True)
                axis.loglog(x, y, line, color=colour, marker=marker, markersize=4.5, linewidth=width)
                ends.append((x[-1], y[-1], way, colour))
        _name_lines(axis, ends)
        axis.set_title(case)
        axis.set_xlabel("elements")
        axis.set_ylabel("nanoseconds an element")
        axis.grid(True, which="major", alpha=0.3)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    figure.suptitle(f"float32, {_threads(threads)}, {facts['instruction set']}: {facts['processor']}", fontsize=12)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _name_lines(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write the name of each line beside its end, moved apart so that none covers another."""
    if not ends:
        return
    low, high = (math.log(limit) for limit in axis.get_ylim())
    ends = sorted(ends, key=lambda end: end[1])
    places = [(math.log(y) - low) / (high - low) for _, y, *_ in ends]
    gap = 0.043
    for _ in range(200):
        for k in range(1, len(places)):
            if (close := gap - (places[k] - places[k - 1])) > 0:
                places[k - 1] -= close / 2
                places[k] += close / 2
        places = [min(max(at, k * gap), 1 - (len(places) - 1 - k) * gap) for k, at in enumerate(places)]
    right = max(x for x, *_ in ends)
    for at, (x, y, way, colour) in zip(places, ends, strict=True):
        axis.annotate(
            way,
            xy=(x, y),
            xytext=(1.06, at),
            textcoords="axes fraction",
            color=colour,
            fontsize=8.5,
            va="center",
            fontweight="bold" if way.startswith((OURS, "limit")) else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
    axis.set_xlim(right=right * 1.6)
