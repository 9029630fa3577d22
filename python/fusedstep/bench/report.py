"""`python -m fusedstep bench`: tables, JSON and a plot."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import rows as measuring
from .rows import Row

__all__ = ["add_arguments", "plot", "run", "table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="three sizes on one thread, under a minute")
    parser.add_argument("--no-peers", action="store_true", help="our kernels and the limits alone")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all rows")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw ns an element over size (needs matplotlib)")
    parser.add_argument("--seconds", type=float, help="time for one group of contenders")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; return the exit code."""
    setting = measuring.QUICK if arguments.quick else measuring.full()
    if arguments.no_peers:
        setting = replace(setting, peers=False)
    if arguments.seconds is not None:
        setting = replace(setting, seconds=arguments.seconds)
    started = time.perf_counter()
    facts = measuring.machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("ns/element: median (quartiles); GB/s of the bytes that the rule must read and write; share of the limit.\n")
    found: list[Row] = []
    last: Any = None
    for row in measuring.run(setting, _progress if sys.stderr.isatty() else lambda _: None):
        found.append(row)
        if row.ns_per_element is None:
            continue
        if row.key != last:
            _clear()
            print(_heading(row))
            last = row.key
        print(_line(row))
    _clear()
    for way in dict.fromkeys(row.way for row in found if row.ns_per_element is None):
        said = dict.fromkeys(
            f"{row.error} ({row.case})" for row in found if row.way == way and row.ns_per_element is None
        )
        missing = [each for each in said if each.startswith("missing")]
        print(f"not timed: {way}: {missing[0].partition(' (')[0] if missing else '; '.join(said)}")
    print(f"\n{len(found)} rows in {time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in found]}, indent=1))
        print(f"rows written to {arguments.json}")
    if arguments.plot:
        plot(found, facts, arguments.plot)
        print(f"plot written to {arguments.plot}")
    return 1 if any(row.error.startswith("wrong") and row.way.startswith("fusedstep") for row in found) else 0


def _progress(what: str) -> None:
    sys.stderr.write(f"\r\033[K... {what}")
    sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _heading(row: Row) -> str:
    return f"\n{row.case}, {row.n:,} elements of {row.dtype}, {row.threads} thread{'s' if row.threads > 1 else ''}"


def _line(row: Row) -> str:
    spread = f"{row.ns_per_element:9.3f} ({row.lower:.3f} to {row.upper:.3f})"
    rate = f"{row.gigabytes_per_second:7.1f} GB/s" if row.gigabytes_per_second is not None else " " * 12
    share = f"{row.share_of_limit:5.2f} of {row.bound_by}" if row.share_of_limit is not None else ""
    return f"  {row.way:<42} {spread:<30} {rate} {share:<16} {row.error}".rstrip()


def table(found: list[Row], sizes: list[int]) -> str:
    """Return a Markdown table of the rules: ways down, sizes across, error and time in one cell."""
    lines = []
    for case in dict.fromkeys(row.case for row in found):
        chosen = [row for row in found if row.case == case and row.n in sizes and row.dtype == "float32"]
        chosen = [row for row in chosen if row.bound_by or row.way.startswith("limit")]
        ways = dict.fromkeys(row.way for row in chosen if row.ns_per_element is not None)
        lines.append(f"| {case} | " + " | ".join(f"{n:,}" for n in sizes) + " |")
        lines.append("|---" * (len(sizes) + 1) + "|")
        for way in ways:
            cells = []
            for n in sizes:
                row = next((r for r in chosen if r.way == way and r.n == n), None)
                if row is None or row.ns_per_element is None:
                    cells.append("-")
                else:
                    cells.append(f"{row.ns_per_element:.3g}" + (f", {row.error}" if row.error else ""))
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


STYLES = {
    "fusedstep": ("#D55E00", "-", "o", 2.4),
    "limit: traffic": ("black", "--", "", 1.4),
    "limit: divider": ("black", ":", "", 1.4),
    "NumPy": ("#999999", "-", "s", 1.2),
    "NumPy out=": ("#56B4E9", "-", "^", 1.2),
    "numexpr": ("#F0E442", "-", "v", 1.2),
    "numba": ("#009E73", "-", "D", 1.2),
    "numba parallel": ("#009E73", "--", "D", 1.2),
    "torch loop": ("#CC79A7", "-", "P", 1.2),
    "torch foreach": ("#CC79A7", "--", "X", 1.2),
    "torch fused": ("#0072B2", "-", "h", 1.2),
    "torch compiled": ("#0072B2", "--", "*", 1.2),
    "jax jit, donated": ("#E69F00", "-", "<", 1.2),
    "DeepSpeed": ("#8B4513", "-", ">", 1.2),
}


def plot(found: list[Row], facts: dict[str, Any], path: Path) -> None:
    """Draw ns an element over size, log-log, a panel a rule: one thread, float32."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [
        row
        for row in found
        if row.dtype == "float32" and row.threads == 1 and row.ns_per_element is not None and row.way in STYLES
    ]
    cases = [name for name in ("RMSprop", "Adagrad", "Rprop") if any(row.case == name for row in chosen)]
    figure, axes = plt.subplots(1, len(cases), figsize=(4.6 * len(cases), 5.2), sharey=True, squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for way, (colour, line, marker, width) in STYLES.items():
            points = sorted((r.n, r.ns_per_element) for r in chosen if r.case == case and r.way == way)
            if points:
                x, y = zip(*points, strict=True)
                axis.loglog(x, y, line, color=colour, marker=marker, markersize=5, linewidth=width, label=way)
        axis.set_title(case)
        axis.set_xlabel("elements")
        axis.grid(True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("nanoseconds an element")
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(f"float32, one thread, {facts['instruction set']}: {facts['processor']}", fontsize=11)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)
