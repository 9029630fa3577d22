"""One line of JSON per run, and what changed between the last two."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusedstep._bench import digits

from .rows import Row

NOISE = 0.05
"""Times that differ by less are no change, and neither are those whose quartiles overlap."""


def append(path: Path, found: list[Row], facts: dict[str, Any]) -> None:
    """Add a run: its date, the machine, the versions and the rows that were timed."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = [asdict(row) for row in found if row.ns_per_element is not None]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"date": date, **facts, "rows": rows}) + "\n")


def compare(path: Path) -> Iterator[str]:
    """Yield what became slower or faster from the last run but one to the last, slower first."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[-2:]]
    if len(runs) < 2:
        yield f"{path}: one run, nothing to compare it with"
        return
    before, after = runs
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version != "missing")
        yield f"{run['date']}: {run['processor']}, {run['compiler']}, {versions}"
    if before["processor"] != after["processor"]:
        yield "not compared: another processor"
        return
    old = {_key(row): row for row in before["rows"]}
    pairs = [(old[_key(row)], row) for row in after["rows"] if _key(row) in old]
    changes = {
        " ".join(map(str, _key(new))): new["ns_per_element"] / was["ns_per_element"]
        for was, new in pairs
        if new["lower"] > was["upper"] or was["lower"] > new["upper"]
    }
    for name, ratio in sorted(changes.items(), key=lambda change: -change[1]):
        if ratio > 1 + NOISE:
            yield f"{digits(ratio)} times as long: {name}"
        elif ratio < 1 - NOISE:
            yield f"{digits(1 / ratio)} times as fast: {name}"
    changed = sum(abs(ratio - 1) > NOISE for ratio in changes.values())
    yield f"{len(pairs)} rows compared, {changed} changed by more than {NOISE:.0%}"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("case", "what", "way", "n", "dtype", "threads", "isa"))
