"""The saddle and the valley as they happen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from . import drawing, scenes

__all__ = ["animate_saddle", "animate_valley"]

FRAMES = 50
FRAMES_A_SECOND = 10
HELD = 10
"""Frames for which the end stays."""
SIZE = (14.0, 9.0)
PIXELS_AN_INCH = 64


def animate_saddle(scene: scenes.Saddle, path: Path) -> None:
    """Write the paths away from the saddle, until SGD has left it too."""
    figure, axes = new_axes()
    drawing.draw_saddle_plane(axes)
    drawing.legend_below(figure, scenes.SADDLE_RATES)
    play(figure, axes, scene.paths, len(scene.paths["SGD"]) - 1, path)


def animate_valley(scene: scenes.Valley, path: Path) -> None:
    """Write the paths through the valley."""
    figure, axes = new_axes()
    drawing.draw_valley_plane(axes)
    drawing.legend_below(figure, scenes.VALLEY_RATES)
    play(figure, axes, scene.paths, len(scene.paths["SGD"]) - 1, path)


def new_axes() -> tuple[Figure, Axes]:
    """Return a figure of one panel."""
    figure = Figure(SIZE, dpi=PIXELS_AN_INCH, layout="constrained")
    return figure, figure.add_subplot()


def play(figure: Figure, axes: Axes, paths: Mapping[str, NDArray[Any]], last: int, path: Path) -> None:
    """Write frames with longer and longer paths; time runs faster and faster."""
    lines = {name: axes.plot([], [], **drawing.line_of(name))[0] for name in paths}
    heads = {name: axes.plot([], [], **drawing.marker_of(name))[0] for name in paths}
    axes.set_title("step 0")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it would lay out every frame anew
    writer = PillowWriter(fps=FRAMES_A_SECOND)
    shown = np.unique(np.geomspace(1, last + 1, FRAMES).astype(int)) - 1
    with writer.saving(figure, path, figure.dpi):
        for step in [*shown, *[last] * HELD]:
            for name, points in paths.items():
                lines[name].set_data(*points[: step + 1].T)
                heads[name].set_data(*points[step : step + 1].T)
            axes.set_title(f"step {step:,}")
            writer.grab_frame()
