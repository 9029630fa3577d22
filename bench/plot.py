"""The picture of the guide: nanoseconds per element over the number of elements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .cases import LAYOUTS
from .report import measured_rate, with_threads
from .rows import MAIN, OURS, Row

STYLES = {
    "measured rate": ("black", ":", "", 2.0),
    f"{OURS}, Python function": ("#D55E00", "-", "o", 2.6),
    "numba": ("#009E73", "-", "D", 1.1),
    "NumPy out=": ("#777777", "--", "s", 1.1),
    "NumPy": ("#777777", "-", "s", 1.1),
    "torch foreach": ("#CC79A7", "-", "X", 1.1),
    "torch fused": ("#0072B2", "-", "h", 1.1),
    "optax jit, donated": ("#E69F00", "-", "<", 1.1),
}
"""What is drawn: colour, line, marker, width. All can tell the colours apart, and the markers in black and white."""


def check(path: Path) -> None:
    """Raise ValueError if this kind of picture cannot be drawn, ImportError without matplotlib."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:] not in kinds:
        raise ValueError(f"{path}: expected a name that ends in one of {', '.join(sorted(kinds))}")


def plot(found: list[Row], facts: dict[str, Any], path: Path) -> None:
    """Draw nanoseconds per element over size, one panel per rule: one thread, float32, each line named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text instead of outlines: a third of the size
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
            if way == "measured rate":
                points = {n: measured_rate([row for row in rows if row.n == n])[0] for n in {row.n for row in rows}}
            else:
                points = {row.n: row.ns_per_element for row in rows if row.way == way and row.ns_per_element}
            if points:
                x, y = zip(*sorted(points.items()), strict=True)
                axis.loglog(x, y, line, color=colour, marker=marker, markersize=4.5, linewidth=width)
                ends.append((x[-1], y[-1], way, colour))
        _name_lines(axis, ends)
        axis.set_title(case)
        axis.set_xlabel("elements")
        axis.set_ylabel("nanoseconds per element")
        axis.grid(True, which="major", alpha=0.3)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    figure.suptitle(f"float32, {with_threads(threads)}, {facts['instruction set']}: {facts['processor']}", fontsize=12)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _name_lines(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write the name of each line beside its end, moved apart so that none covers another."""
    if not ends:
        return
    low, high = (math.log(end) for end in axis.get_ylim())
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
            fontweight="bold" if way.startswith((OURS, "measured")) else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
    axis.set_xlim(right=right * 1.6)
