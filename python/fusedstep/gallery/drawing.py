"""The pictures: one function a scene, one colour an optimizer throughout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from . import scenes
from .surfaces import BEALE, SADDLE, Surface

Array = NDArray[Any]

DPI = 100
WIDTH = 14.0
RC: dict[Any, Any] = {
    "font.size": 16,
    "axes.titlesize": 16,
    "figure.titlesize": 19,
    "axes.grid": True,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.wspace": 0.04,
    "figure.constrained_layout.hspace": 0.06,
}
"""Large enough to be read at half size."""


SHADES = LinearSegmentedColormap.from_list("shades", ["0.72", "1.0"])
"""Of the surfaces: light enough for every line, lower is darker."""


class Style(NamedTuple):
    """How an optimizer's line looks."""

    color: str
    line: Any
    width: float
    marker: str


# The colours that Okabe & Ito 2008 chose for all kinds of colour vision, with a grey in place of their yellow.
# The three rules of the library are solid and wide; what is drawn for comparison is dashed.
STYLES = {
    "SGD": Style("#000000", (0, (1, 1)), 2.5, "s"),
    "Momentum": Style("#CC79A7", (0, (5, 1.5)), 3.0, "^"),
    "Nesterov": Style("#E69F00", (0, (3, 1, 1, 1)), 2.0, "v"),
    "Adagrad": Style("#D55E00", "-", 3.0, "D"),
    "Adadelta": Style("#888888", (0, (4, 2)), 2.0, "P"),
    "RMSprop": Style("#009E73", "-", 3.0, "o"),
    "Rprop": Style("#0072B2", "-", 3.0, "X"),
    "Adam": Style("#56B4E9", (0, (2, 1)), 2.0, "*"),
}


def line_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return the arguments of ``plot`` for an optimizer's line."""
    color, line, width, _ = STYLES[name]
    return {"color": color, "linestyle": line, "linewidth": width, **changes}


def marker_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return the arguments of ``plot`` for an optimizer's marker."""
    color, _, _, marker = STYLES[name]
    return {
        "color": color,
        "marker": marker,
        "markersize": 11,
        "markeredgecolor": "white",
        "linestyle": "none",
        "zorder": 5,
        **changes,
    }


def new_figure(height: float, title: str) -> Figure:
    """Return an empty figure with its title."""
    figure = Figure((WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    return figure


def legend_below(figure: Figure, rates: dict[str, float]) -> None:
    """Name the optimizers and their learning rates below the axes, where no data lie."""
    handles = []
    for name, lr in rates.items():
        color, line, width, marker = STYLES[name]
        label = f"{name}, lr {lr:g}"
        handles.append(
            Line2D([], [], color=color, linestyle=line, linewidth=width, marker=marker, markersize=9, label=label)
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(handles) < 7 else 4, handlelength=3)


def contours(axes: Axes, surface: Surface, x: tuple[float, float], y: tuple[float, float], levels: Any) -> None:
    """Draw a surface's contours, lower is darker, and its minimum."""
    grid_x, grid_y = np.meshgrid(np.linspace(*x, 300), np.linspace(*y, 300))
    values = surface.value(grid_x, grid_y)
    norm = BoundaryNorm(levels, len(levels) + 1, extend="both")  # equal shades between levels, whatever their spacing
    axes.contourf(grid_x, grid_y, values, levels, norm=norm, cmap=SHADES.resampled(len(levels) + 1), extend="both")
    axes.contour(grid_x, grid_y, values, levels, colors="0.6", linewidths=0.7, linestyles="solid")
    axes.grid(False)
    axes.set(xlim=x, ylim=y)
    if surface.minimum is not None:
        axes.plot(*surface.minimum, marker="+", color="black", markersize=18, markeredgewidth=2.5, zorder=6)


def mark_start(axes: Axes, start: tuple[float, float], offset: tuple[float, float]) -> None:
    """Write where the paths start."""
    axes.annotate("start", start, xytext=offset, textcoords="offset points", ha="center", va="center")


# a.


def draw_minibatches(scene: scenes.Minibatches) -> Figure:
    """Draw the weights: all of them, and without the one that ran away."""
    figure = new_figure(
        7.5,
        f"Mini-batches: nine gradients of 0.1, one of −0.9, repeated. They cancel,\n"
        f"but Rprop carries the weight {scene.moved('Rprop'):.1f} away, RMSprop {scene.moved('RMSprop'):.2f}",
    )
    whole, near = figure.subplots(1, 2)
    for name, weights in scene.weights.items():
        rule, _, alpha = name.partition(", alpha ")
        label = f"{rule}, α = {alpha or 0.9}" if rule == "RMSprop" else rule
        style = line_of(rule, label=label, **({"linestyle": (0, (6, 2)), "linewidth": 2} if alpha else {}))
        whole.plot(weights, **style)
        near.plot(weights, **style, marker=STYLES[rule].marker, markevery=(25, 50), markersize=9)
    whole.set(title="all weights", xlabel="mini-batches", ylabel="weight, 0 at the start")
    near.set(
        title="close up (RMSprop's average starts at 0)",
        xlabel="mini-batches",
        ylabel="weight, 0 at the start",
        ylim=(-0.6, 0.1),
    )
    handles, labels = near.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=3)
    return figure


# b.

SADDLE_SHOWN = 130
"""Steps of the paths that are drawn on the surface."""


def draw_saddle(scene: scenes.Saddle) -> Figure:
    """Draw the paths on contours and in space, the distances over time, and the steps to leave."""
    within = max(steps or np.inf for steps in scene.steps_to_leave["RMSprop"])
    figure = new_figure(
        13,
        f"Saddle point: RMSprop is {scenes.NEAR:g} away within {within} steps, "
        f"however small the gradient;\nmomentum needs {scene.left('Momentum')}, SGD {scene.left('SGD')}",
    )
    grid = figure.add_gridspec(2, 2)
    flat = figure.add_subplot(grid[0, 0])
    draw_saddle_plane(flat)
    space = figure.add_subplot(grid[0, 1], projection="3d")
    draw_saddle_space(space)
    for name, path in scene.paths.items():
        shown = path[:SADDLE_SHOWN]
        shown = shown[abs(shown[:, 1]) <= 1.1]
        flat.plot(*shown.T, **line_of(name))
        flat.plot(*shown[-1], **marker_of(name))
        space.plot(*shown.T, SADDLE.value(*shown.T), **line_of(name, zorder=5))
        space.plot(*shown[-1:].T, SADDLE.value(*shown[-1:].T), **marker_of(name))
    distance = figure.add_subplot(grid[1, 0])
    for name, path in scene.paths.items():
        distance.loglog(abs(path[:, 1]), **line_of(name))
    distance.axhline(scenes.NEAR, color="0.4", linewidth=1)
    distance.set(
        title=f"distance over steps (line: {scenes.NEAR:g})",
        xlabel="steps",
        ylabel="distance along y",
        ylim=(scene.offset / 2, 2),
        xlim=(1, len(path) - 1),
    )

    leave = figure.add_subplot(grid[1, 1])
    for name, steps in scene.steps_to_leave.items():
        leave.loglog(scene.offsets, steps, **line_of(name), marker=STYLES[name].marker, markersize=8)
    leave.invert_xaxis()
    leave.set(
        title=f"steps until {scenes.NEAR:g} away",
        xlabel="distance along y at the start (∝ gradient)",
        ylabel="steps",
    )
    legend_below(figure, scenes.SADDLE_RATES)
    return figure


def draw_saddle_plane(axes: Axes) -> None:
    """Draw the saddle from above."""
    contours(axes, SADDLE, (-1.05, 1.2), (-0.35, 1.2), np.linspace(-1.2, 1.2, 13))
    mark_start(axes, (1.0, 0.0), (0, -16))
    axes.set(title=f"from above, {SADDLE_SHOWN} steps", xlabel="x (steep, up)", ylabel="y (down)")


def draw_saddle_space(axes: Any) -> None:
    """Draw the saddle in space."""
    grid_x, grid_y = np.meshgrid(np.linspace(-1.1, 1.1, 40), np.linspace(-1.1, 1.1, 40))
    axes.computed_zorder = False
    axes.plot_surface(grid_x, grid_y, SADDLE.value(grid_x, grid_y), cmap="Greys_r", alpha=0.35, linewidth=0)
    axes.view_init(elev=30, azim=50)
    axes.set_box_aspect((1, 1, 0.75), zoom=0.95)
    axes.set(title="in space", xticks=(-1, 0, 1), yticks=(-1, 0, 1), zticks=(-1, 0, 1))
    axes.set_xlabel("x", labelpad=12)
    axes.set_ylabel("y", labelpad=12)
    axes.set_zlabel("x² − y²", labelpad=8)


# c.

VALLEY_MARK = 20
"""The step at which the paths are marked."""


def draw_valley(scene: scenes.Valley) -> Figure:
    """Draw the paths, the length of each step, and the distance from the minimum."""
    figure = new_figure(
        13,
        f"A long valley behind a steep wall (Beale): momentum overshoots by {scene.overshoot('Momentum'):.1f},\n"
        f"RMSprop's path is {scene.detour('RMSprop'):.2f} times the straight line, Adagrad jumps and slows down",
    )
    grid = figure.add_gridspec(2, 2, height_ratios=(1.4, 1))
    plane = figure.add_subplot(grid[0, :])
    draw_valley_plane(plane)
    plane.set_title(f"from above, {len(scene.paths['SGD']) - 1:,} steps; markers: after {VALLEY_MARK} steps")
    lengths, distance = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    for name, path in scene.paths.items():
        plane.plot(*path.T, **line_of(name))
        plane.plot(*path[VALLEY_MARK], **marker_of(name))
        time = np.arange(1, len(path))
        lengths.loglog(time, scene.step_lengths(name), **line_of(name))
        distance.loglog(time, scene.distance(name)[1:], **line_of(name))
    lengths.set(title="length of each step", xlabel="steps", ylabel="length")
    distance.set(title="distance from the minimum (+)", xlabel="steps", ylabel="distance")
    legend_below(figure, scenes.VALLEY_RATES)
    return figure


def draw_valley_plane(axes: Axes) -> None:
    """Draw Beale's function from above."""
    contours(axes, BEALE, (0.9, 5.0), (-1.45, 1.6), 10.0 ** np.arange(-2, 3.6, 0.5))
    mark_start(axes, scenes.VALLEY_START, (36, 0))
    axes.set(xlabel="x", ylabel="y")


# d.

CONDITION_SHOWN = 400
"""Steps of the paths that are drawn."""
STEEP_MARKS = {"SGD": (5, 10), "Adagrad": (20, 40), "RMSprop": (40, 40)}
"""First marker and steps between markers, apart from each other."""


def draw_condition(scene: scenes.Condition) -> Figure:
    """Draw the distances along both directions, and the effective steps."""
    figure = new_figure(
        8,
        f"Condition number {scene.number:,g}: "
        "Adagrad and RMSprop go as fast along the flat direction as along the steep.\n"
        f"Over a long run Adagrad's effective steps shrink to {scene.kept('Adagrad'):.0%}, RMSprop's stay",
    )
    distance, steps = figure.subplots(1, 2)
    for name, path in scene.paths.items():
        path = path[: CONDITION_SHOWN + 1]
        distance.semilogy(abs(path[:, 1]), **line_of(name))
        marks = marker_of(name, markerfacecolor="white", markeredgecolor=STYLES[name].color, markersize=8)
        distance.semilogy(abs(path[:, 0]), **marks, markevery=STEEP_MARKS[name])
    distance.set(
        title="distance from the minimum\nline: flat direction, markers: steep",
        xlabel="steps",
        ylabel="distance",
        ylim=(1e-3, 1.5),
    )
    for name, taken in scene.effective_steps.items():
        time, means = binned(taken)
        steps.loglog(time, means[:, 1], **line_of(name))
        steps.loglog(time, means[:, 0], **line_of(name, linestyle=(0, (2, 1))))
    steps.set(
        title="effective step, noisy gradients\nsolid: flat direction, dashed: steep",
        xlabel="steps",
        ylabel="lr / √(sum or average of g²)",
    )
    legend_below(figure, scenes.CONDITION_RATES)
    return figure


def binned(values: Array, bins_per_decade: int = 10) -> tuple[Array, Array]:
    """Return times, evenly spaced as logarithms, and the geometric means of the values between them."""
    count = int(np.log10(len(values)) * bins_per_decade)
    edges = np.unique(np.geomspace(1, len(values) + 1, count + 1).astype(int))
    means = [np.exp(np.log(values[a - 1 : b - 1]).mean(axis=0)) for a, b in itertools.pairwise(edges)]
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), np.array(means)


# e.

NARROW_SHOWN = 120
"""Step sizes that are drawn."""
NARROW_PATH = 60
"""Steps of the paths that are drawn."""


def draw_variants(scene: dict[str, scenes.Variant]) -> Figure:
    """Draw each variant's path above its step sizes."""
    figure = new_figure(
        9.5,
        f"Rprop's variants in one narrow valley: the first {NARROW_PATH} steps, the step sizes,\n"
        "and how many steps it takes until the loss is below 0.0001",
    )
    rows = figure.subplots(2, len(scene), sharex="row", sharey="row")
    for (name, variant), path, sizes in zip(scene.items(), *rows, strict=True):
        contours(path, scenes.NARROW, (-2.1, 0.4), (-1.5, 0.5), 10.0 ** np.arange(-3, 3, 0.5))
        path.plot(*variant.path[: NARROW_PATH + 1].T, **line_of("Rprop", linewidth=1.5, marker=".", markersize=6))
        path.plot(*variant.path[NARROW_PATH], **marker_of("Rprop", zorder=7))
        path.set(title=f"{name}\n{variant.steps_to(1e-4)} steps", xlabel="x")
        shown = variant.step_sizes[: NARROW_SHOWN + 1]
        along_x = line_of("Rprop", linewidth=2, label="along x")
        along_y = line_of("Rprop", linewidth=1.5, linestyle=(0, (2, 1)), color="0.35", label="along y")
        sizes.semilogy(shown[:, 0], **along_x)
        sizes.semilogy(shown[:, 1], **along_y)
        sizes.set(xlabel="steps")
    rows[0][0].set(ylabel="y")
    rows[1][0].set(ylabel="step size")
    handles, labels = rows[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3)
    return figure


# f.

DIGITS_LOSSES = (1e-7, 20.0)
"""What is below is rounding: the network computes in float32."""
RATE_LINES: Sequence[Any] = ((0, (1, 1)), (0, (5, 1.5)), "-")
RATE_MARKERS = ("v", "s", "^")


def draw_digits(scene: list[scenes.Training]) -> Figure:
    """Draw the loss over the epochs, a panel for each rule."""
    figure = new_figure(
        8,
        "Handwritten digits: Rprop needs all images at each step;\n"
        "with 32 images a step Adagrad slows down, RMSprop goes on",
    )
    panels = figure.subplots(1, 3, sharey=True)
    rules = list(dict.fromkeys(training.rule for training in scene))
    for rule, axes in zip(rules, panels, strict=True):
        rows = [training for training in scene if training.rule == rule]
        usual = rows[0].batch
        line = 0
        for training in rows:
            time = np.arange(1, len(training.losses) + 1)
            if training.batch == usual:
                look = {"linestyle": RATE_LINES[line], "marker": RATE_MARKERS[line], "markevery": (3 * line, 10)}
                axes.semilogy(time, training.losses, **line_of(rule, label=f"lr {training.lr:g}", markersize=8, **look))
                line += 1
            else:
                label = f"lr {training.lr:g}, {training.batch} a step"
                axes.semilogy(time, training.losses, **line_of(rule, label=label, linewidth=1.2, linestyle="-"))
        axes.set(title=f"{rule}, {usual or 'all'} images a step", xlabel="epochs")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), handlelength=3)
    panels[0].set(ylabel="mean cross-entropy, training images", ylim=DIGITS_LOSSES)
    return figure
