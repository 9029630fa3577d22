"""``python -m fusedstep gallery``: what the sources say about the rules, computed by the kernels and drawn."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import demo

__all__ = ["add_arguments", "draw_all", "run"]

HELP = "draw what the rules do at saddle points, in valleys, on mini-batches and on real data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``gallery``."""
    parser.add_argument(
        "--out", type=Path, default=Path("gallery"), metavar="DIR", help="where the pictures go (default: gallery)"
    )
    parser.add_argument("--animate", action="store_true", help="write the saddle and the valley as GIFs as well")


def run(options: argparse.Namespace) -> int:
    """Draw every scene, print the numbers behind it and where it was written."""
    draw_all(options.out, animate=options.animate)
    return 0


def draw_all(out: Path, *, animate: bool = False, epochs: int = demo.EPOCHS) -> list[Path]:
    """Compute every scene, write its picture, print its numbers, and return the paths of the pictures.

    Parameters
    ----------
    out : Path
        Where the pictures go; made if need be.
    animate : bool
        Whether to write GIFs of the saddle and the valley.
    epochs : int
        How long the digits network is trained.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from . import animation, drawing, findings, scenes

    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def show(name: str, figure: Figure, lines: list[str]) -> None:
        written.append(out / name)
        figure.savefig(written[-1])
        print(written[-1], " ".join(figure.get_suptitle().split("\n")), *lines, sep="\n  ", flush=True)

    with matplotlib.rc_context(drawing.RC):
        minibatches = scenes.minibatches()
        show("minibatches.png", drawing.draw_minibatches(minibatches), findings.minibatches(minibatches))
        saddle = scenes.saddle()
        show("saddle.png", drawing.draw_saddle(saddle), findings.saddle(saddle))
        valley = scenes.valley()
        show("valley.png", drawing.draw_valley(valley), findings.valley(valley))
        condition = scenes.condition()
        show("condition.png", drawing.draw_condition(condition), findings.condition(condition))
        variants = scenes.variants()
        show("variants.png", drawing.draw_variants(variants), findings.variants(variants))
        digits = scenes.digits(epochs)
        show("digits.png", drawing.draw_digits(digits), findings.digits(digits))
        if animate:
            written += [out / "saddle.gif", out / "valley.gif"]
            animation.animate_saddle(saddle, written[-2])
            animation.animate_valley(valley, written[-1])
            print(*written[-2:], sep="\n")
    return written
