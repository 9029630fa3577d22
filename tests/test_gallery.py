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
        names = runpy.run_path(str(page))
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

    if "gradient" in names and "surface" in names:  # the gradient is the slope of the surface
        for point in np.array([(1.0, 2.0), (-0.5, 0.25), (3.0, -1.0)]):
            steps = 1e-5 * np.eye(2)
            slopes = [(names["surface"](*(point + d)) - names["surface"](*(point - d))) / 2e-5 for d in steps]
            np.testing.assert_allclose(names["gradient"](point), slopes, rtol=1e-7, atol=1e-7)
