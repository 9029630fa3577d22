"""Rows as text, and the tables of README and the guide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fusedstep._bench import digits

from .cases import LAYOUTS
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
    """Return a line for each peer that is missing or wrong, with the reason, so that none is dropped silently."""
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
    """Return a line for each peer that is as fast as our best way from Python, or faster."""
    return [
        f"{peer.way} {'ties' if ratio < 1 + TIE else 'is faster'} ({digits(taken)} ns per element, "
        f"{name} {digits(ratio * taken)}): {heading(peer).strip()}"
        for peer, taken, name, ratio in _lost(found)
    ]


def _lost(found: Iterable[Row]) -> Iterator[tuple[Row, float, str, float]]:
    """Yield peers that are as fast or faster: their time, what it was compared with, and the ratio."""
    groups: dict[Any, list[Row]] = {}
    for row in found:
        if row.ns_per_element is not None and not row.is_rate:
            groups.setdefault(row.group, []).append(row)
    for rows in groups.values():
        peers = [row for row in rows if not row.is_ours]
        adaptor = [row for row in rows if row.way == ADAPTOR]
        for name, ours, theirs in (
            ("ours", [row for row in rows if row.is_ours and "Python" in row.way], peers),
            (ADAPTOR, adaptor, [row for row in peers if row.way.startswith("torch")]),
        ):
            best = min((row.ns_per_element or 0.0 for row in ours), default=0.0)
            for peer in theirs:
                taken = peer.ns_per_element or 0.0
                if best > (1 - TIE) * taken:
                    yield peer, taken, name, best / taken


NAMES = {
    f"{OURS}, kernel": f"**{OURS}**, the kernel only",
    f"{OURS}, C++ function": f"**{OURS}**, C++ function",
    f"{OURS}, C++ optimizer": f"**{OURS}**, C++ optimizer",
    f"{OURS}, Python function": f"**{OURS}**, Python function",
    f"{OURS}, Python optimizer": f"**{OURS}**, Python optimizer",
    ADAPTOR: f"**{ADAPTOR}**",
}


FIVE = {
    f"**{OURS}**": (f"{OURS}, Python optimizer",) * 2,
    "NumPy, `out=` everywhere": ("NumPy out=",) * 2,
    "NumPy": ("NumPy",) * 2,
    "numba, your own loop": ("numba", "numba, a call per array"),
    "PyTorch, `foreach`": ("torch foreach",) * 2,
}
"""The lines of the short table: their names, and which ways they are for one large array and for many small ones."""

LARGE, MANY = 16_000_000, "10,000 x 16"


def short(found: list[Row], facts: dict[str, Any]) -> str:
    """Return Markdown: five lines for a step of RMSprop on one thread, the peers that are as fast, and the machine."""
    rows = [row for row in found if (row.case, row.dtype, row.threads) == ("RMSprop", "float32", 1)]
    large = {row.way: row for row in rows if row.what == LAYOUTS[0] and row.n == LARGE}
    many = {row.way: row for row in rows if row.what == MANY}
    text = [f"| a step of RMSprop | one array of {LARGE:,} | {MANY.replace('x', 'arrays of')} |", "|---|---|---|"]
    ours, *_ = FIVE.values()
    for name, ways in FIVE.items():
        cells = [_short_cell(*map(of.get, pair)) for of, *pair in zip((large, many), ways, ours, strict=True)]
        text.append(f"| {name} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("numpy", "numba", "torch"))
    text += ["", f"float32, one thread, {facts['instruction set']}: {facts['processor']}; {versions}."]
    return "\n".join([*text, "", *_defeats_in_short(found)])


def _short_cell(row: Row | None, ours: Row | None) -> str:
    if row is None or row.ns_per_element is None:
        return row.error.partition(":")[0] if row else ""
    taken = f"{digits(row.ns_per_element * row.n / 1e6)} ms"
    if row is ours or ours is None or ours.ns_per_element is None:
        return taken
    return f"{taken} ({digits(row.ns_per_element / ours.ns_per_element)} times)"


def _defeats_in_short(found: list[Row]) -> list[str]:
    """Return a line for the peers that are faster and one for those that are as fast, with rules and sizes."""
    lines = []
    for verb, tie in (("Faster than fusedstep", False), ("As fast as fusedstep, within 3%", True)):
        peers: dict[str, dict[str, dict[str, None]]] = {}
        for peer, _, _, ratio in _lost(found):
            if (ratio < 1 + TIE) is tie:
                size = f"{peer.n:,}" if peer.what == LAYOUTS[0] else peer.what
                peers.setdefault(peer.way, {}).setdefault(peer.case, {})[size] = None
        places = [
            f"{way} ({'; '.join(f'{case} ' + ', '.join(sizes) for case, sizes in cases.items())})"
            for way, cases in peers.items()
        ]
        if places:
            lines.append(f"{verb}: {', '.join(places)}.")
    return lines or ["No peer is as fast."]


def table(found: list[Row], facts: dict[str, Any]) -> str:
    """Return Markdown: the machine, tables of arrays and of lists for each rule, and where we lose or tie."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = [
        f"{facts['processor']}, {facts['instruction set']}, {facts['system'].partition('-')[0]}; {facts['compiler']}, "
        f"{versions}. float32.",
        "",
        "Columns are numbers of elements. A cell has nanoseconds per element, the median of alternating rounds, and "
        "the share of the measured rate: the slower of the streaming rate and the divider rate, measured in the same "
        "rounds by loops of the same kind. A share can be above 1, because memory varies. `ulp` is the error of one "
        "step in units of the last place of the result.",
    ]
    arrays = [row for row in found if row.what == LAYOUTS[0] and row.dtype == "float32"]
    for case in dict.fromkeys(row.case for row in arrays):
        for threads in sorted({row.threads for row in arrays}):
            cells = {(row.way, row.n): row for row in arrays if (row.case, row.threads) == (case, threads)}
            sizes = sorted({n for _, n in cells})
            text += ["", f"## {case}, {with_threads(threads)}", ""]
            text += [f"| way | ulp | {' | '.join(f'{n:,}' for n in sizes)} |", "|---|---|" + "---|" * len(sizes)]
            rates = [measured_rate([row for row in cells.values() if row.n == n]) for n in sizes]
            text.append(f"| measured rate | | {' | '.join(f'{digits(rate)} ({bound})' for rate, bound in rates)} |")
            for way in dict.fromkeys(way for way, _ in cells):
                if way in NAMES or not (is_rate(way) or way.startswith(OURS)):
                    of_way = [cells.get((way, n)) for n in sizes]
                    timed = [row for row in of_way if row and row.ns_per_element is not None]
                    if timed:
                        text.append(f"| {NAMES.get(way, way)} | {_ulp(timed[0])} | {' | '.join(map(_cell, of_way))} |")
    lists = [row for row in found if row.what not in LAYOUTS and row.ns_per_element is not None]
    models = list(dict.fromkeys(row.what for row in lists))
    for case in dict.fromkeys(row.case for row in lists):
        own = [row for row in lists if (row.case, row.threads) == (case, 1)]
        shown = [model for model in models if any(row.what == model for row in own)]
        text += ["", f"## Lists of parameters, {case}", ""]
        text += ["Microseconds per step of the whole list, on one thread.", ""]
        text += [f"| way | ulp | {' | '.join(shown)} |", "|---|---|" + "---|" * len(shown)]
        for way in dict.fromkeys(row.way for row in own):
            by_model = {row.what: row for row in own if row.way == way}
            times = [_microseconds(by_model.get(model)) for model in shown]
            text.append(f"| {NAMES.get(way, way)} | {_ulp(*by_model.values())} | {' | '.join(times)} |")
    if lost := defeats(found):
        text += ["", "## Where a peer is faster than fusedstep from Python, or within 3%", ""]
        text += [f"- {line}" for line in lost]
    if silent := not_timed(found):
        text += ["", "## Not timed", "", *(f"- {line.removeprefix('not timed: ')}" for line in silent)]
    return "\n".join(text)


def measured_rate(rows: list[Row]) -> tuple[float, str]:
    """Return the slower of the measured rates of a group, in ns per element, and its name."""
    times = {row.way: row.ns_per_element for row in rows if row.is_rate and row.ns_per_element}
    streaming = min(taken for way, taken in times.items() if way.startswith(STREAMING))
    return max((streaming, "streaming"), (times.get(DIVIDER, 0.0), "divider"))


def _ulp(*rows: Row) -> str:
    """Return the largest error of a way."""
    return max((row.error.removesuffix(" ulp") for row in rows), key=float)


def _cell(row: Row | None) -> str:
    if row is None or row.ns_per_element is None:
        return row.error.partition(":")[0] if row else ""
    return f"{digits(row.ns_per_element)} ({row.share_of_rate:.2f})"


def _microseconds(row: Row | None) -> str:
    return digits(row.ns_per_element * row.n / 1e3) if row and row.ns_per_element is not None else ""
