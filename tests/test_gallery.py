"""The pages of the gallery run, hold what they claim, and draw: ``examples/gallery``."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import native

PAGES = sorted((native.ROOT / "examples" / "gallery").glob("plot_*.py"))

pytestmark = pytest.mark.skipif(not PAGES, reason="the gallery is not here")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    for needed in ("scipy", "sklearn"):
        if f"from {needed}" in page.read_text(encoding="utf-8"):
            pytest.importorskip(needed)
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    try:
        runpy.run_path(str(page))
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert figures
        for figure in figures:
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())
            assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10, "nothing is drawn"
            for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
                assert (edge == 255).all(), "something is cut off"
    finally:
        plt.close("all")
