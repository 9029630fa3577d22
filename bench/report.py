"""Rows as text, and the tables of README and the guide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fusedstep._bench import digits

from .cases import LAYOUTS
from .lists import MODELS
from .rows import DIVIDER, OURS, STREAMING, Row, is_rate


def summary(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['system']}, {facts['compiler']}, {facts['instruction set']}, "
        f"threads: {facts['threads']}; {versions}"
    )


def with_threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def heading(row: Row) -> str:
    what = "" if row.what == LAYOUTS[0] else f", {row.what}"
    return f"\n{row.case}{what}, {row.n:,} elements of {row.dtype}, {with_threads(row.threads)}"


def line(row: Row) -> str:
    spread = f"{row.ns_per_element:9.3f} ({row.lower:.3f} to {row.upper:.3f})"
    rate = f"{row.gigabytes_per_second:7.1f} GB/s" if row.gigabytes_per_second is not None else " " * 12
    share = f"{row.share_of_rate:5.2f} of {row.bound_by}" if row.share_of_rate is not None else ""
    return f"  {row.way:<30} {spread:<30} {rate} {share:<16} {row.error}".rstrip()


def not_timed(found: list[Row]) -> list[str]:
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
        if row.ns_per_element is not None and not row.is_rate:
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
            times = f"{digits(peer.ns_per_element or 0.0)} ns per element, {name} {digits(best)}"
            lines.append(f"{peer.way} {verb} ({times}): {heading(peer).strip()}")
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
    missing = [line.removeprefix("not timed: ") for line in not_timed(found)]
    return [
        " ".join(lines) or "No peer is as fast.",
        *(["", f"Not timed: {'; '.join(missing)}."] if missing else []),
    ]


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
        "A cell: error of one step, in units of the last place (ulp) of the sum; nanoseconds per element, the median "
        "of alternating rounds; share of the measured rate. That is the slower of the streaming rate and the divider "
        "rate, measured in the same rounds by loops of the same kind. A share can be above 1, because memory varies.",
        "",
    ]
    arrays = [row for row in found if row.what == LAYOUTS[0] and row.dtype == "float32"]
    columns = sorted({(row.threads, row.n) for row in arrays})
    names = [f"{n:,}" if threads == 1 else f"{n:,}, {with_threads(threads)}" for threads, n in columns]
    text += [f"| rule | way | {' | '.join(names)} |", "|---|---|" + "---|" * len(columns)]
    for case in dict.fromkeys(row.case for row in arrays):
        cells = {(row.way, row.threads, row.n): row for row in arrays if row.case == case}
        rates = [[row for row in cells.values() if (row.threads, row.n) == column] for column in columns]
        text.append(f"| {case} | measured rate | {' | '.join(map(_rate_cell, rates))} |")
        for way in dict.fromkeys(way for way, *_ in cells):
            if way in NAMES or not (is_rate(way) or way.startswith(OURS)):
                ours = [_cell(cells.get((way, *column))) for column in columns]
                if any(cell.endswith(tuple("0123456789")) for cell in ours):
                    text.append(f"| | {NAMES.get(way, way)} | {' | '.join(ours)} |")
    lists = [row for row in found if row.what not in LAYOUTS]
    if lists:
        ways = list(dict.fromkeys(row.way for row in lists if row.error != "has no such rule"))
        text += ["", "Lists of parameters, one thread; a cell: error, microseconds per step of the whole list.", ""]
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
    if silent := not_timed(found):
        text += ["", "Not timed:", "", *(f"- {line.removeprefix('not timed: ')}" for line in silent)]
    return "\n".join(text)


def _in_short(row: Row) -> bool:
    if row.what != LAYOUTS[0]:
        return row.what in SHORT_LISTS and row.case == "RMSprop"
    shown = row.is_rate or (any(way in row.way for way in SHORT_WAYS) and row.way != "numba parallel")
    return shown and (row.threads, row.n) in SHORT_SIZES


def _rate_cell(rows: list[Row]) -> str:
    rate, bound_by = measured_rate(rows)
    return f"{digits(rate)} ns, {bound_by}"


def measured_rate(rows: list[Row]) -> tuple[float, str]:
    """Return the slower of the measured rates of a group, in ns per element, and its name."""
    times = {row.way: row.ns_per_element for row in rows if row.is_rate and row.ns_per_element}
    streaming = min(taken for way, taken in times.items() if way.startswith(STREAMING))
    return max((streaming, "streaming"), (times.get(DIVIDER, 0.0), "divider"))


def _cell(row: Row | None) -> str:
    if row is None or row.error == "has no such rule":
        return ""
    if row.ns_per_element is None:
        return row.error.partition(":")[0]
    return f"{row.error}, {digits(row.ns_per_element)} ns, {row.share_of_rate:.2f}"


def _list_cell(row: Row | None) -> str:
    if row is None or row.error == "has no such rule":
        return ""
    if row.ns_per_element is None:
        return row.error.partition(":")[0]
    return f"{row.error}, {digits(row.ns_per_element * row.n / 1e3)}"
