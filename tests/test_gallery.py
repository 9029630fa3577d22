"""``python -m fusedstep gallery``: the surfaces, the optimizers for comparison, and the pictures."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import __main__, gallery
from fusedstep.gallery import comparison, scenes, surfaces

SIZES = {
    "minibatches.png": (1400, 750),
    "saddle.png": (1400, 1300),
    "valley.png": (1400, 1300),
    "condition.png": (1400, 800),
    "variants.png": (1400, 950),
    "digits.png": (1400, 800),
}
SHOWN = {
    "minibatches.png": ["Rprop", "RMSprop", "Adagrad", "SGD"],
    "saddle.png": list(scenes.OPTIMIZERS),
    "valley.png": list(scenes.VALLEY_RATES),
    "condition.png": list(scenes.CONDITION_RATES),
    "variants.png": ["Rprop"],
    "digits.png": ["Rprop", "Adagrad", "RMSprop"],
}
ANIMATIONS = ("saddle.gif", "valley.gif")


@pytest.mark.parametrize("surface", [surfaces.SADDLE, surfaces.BEALE, surfaces.quadratic(50.0, 2.0, 30.0)])
@pytest.mark.parametrize("point", [(1.0, 2.0), (-0.5, 0.25), (3.0, -1.0)])
def test_gradient_is_the_slope(surface: surfaces.Surface, point: tuple[float, float]) -> None:
    h = 1e-5
    p = np.array(point)
    slopes = [(surface.value(*(p + d)) - surface.value(*(p - d))) / (2 * h) for d in h * np.eye(2)]
    np.testing.assert_allclose(surface.gradient(p), slopes, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("surface", [surfaces.BEALE, surfaces.quadratic(50.0, 2.0, 30.0)])
def test_minimum_is_flat(surface: surfaces.Surface) -> None:
    assert surface.minimum is not None
    np.testing.assert_array_equal(surface.gradient(np.array(surface.minimum)), 0)


def test_quadratic_has_its_condition_number() -> None:
    surface = surfaces.quadratic(50.0, 2.0, 30.0)
    hessian = np.array([surface.gradient(axis) for axis in np.eye(2)])
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), [2, 50])


def test_optimizers_for_comparison_agree_where_they_are_the_same() -> None:
    pairs = [
        (lambda p: comparison.Momentum(p, mu=0.0), comparison.SGD),
        (lambda p: comparison.Nesterov(p, mu=0.0), comparison.SGD),
        (
            lambda p: comparison.Adam(p, betas=(0.0, 0.9)),
            lambda p: fs.RMSprop(p, lr=0.01, alpha=0.9, bias_correction=True),
        ),
    ]
    for make_one, make_other in pairs:
        one, other = np.ones(3), np.ones(3)
        optimizers = make_one(one), make_other(other)
        for grad in np.random.default_rng(0).standard_normal((20, 3)):
            for optimizer in optimizers:
                optimizer.step(grad)
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_adadelta_takes_its_first_step() -> None:
    param, grad = np.zeros(1), np.array([2.0])
    comparison.Adadelta(param).step(grad)
    np.testing.assert_allclose(param, -2 * np.sqrt(1e-6 / (0.1 * 4 + 1e-6)))


def test_gallery_imports_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from fusedstep.gallery import scenes; scenes.minibatches()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class Gallery(NamedTuple):
    out: Path
    printed: str


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Every picture, in a short form, in a directory that the gallery had to make."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    from fusedstep.gallery import animation

    out = tmp_path_factory.mktemp("gallery") / "made" / "here"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(animation, "FRAMES", 4)
        patch.setattr(animation, "HELD", 2)
        written = gallery.draw_all(out, animate=True, epochs=2)
    assert written == [out / name for name in (*SIZES, *ANIMATIONS)]
    return Gallery(out, printed.getvalue())


@pytest.mark.parametrize("name", SIZES)
def test_picture_has_its_size_and_every_colour(drawn: Gallery, name: str) -> None:
    from PIL import Image

    from fusedstep.gallery.drawing import STYLES

    with Image.open(drawn.out / name) as image:
        assert image.size == SIZES[name]
        pixels = np.asarray(image.convert("RGB"))
    white = (pixels == 255).all(axis=2).mean()
    assert 0.1 < white < 0.98
    for optimizer in SHOWN[name]:
        color = np.frombuffer(bytes.fromhex(STYLES[optimizer].color[1:]), np.uint8)
        assert (pixels == color).all(axis=2).sum() > 100, optimizer


@pytest.mark.parametrize("name", SIZES)
def test_nothing_is_cut_off(drawn: Gallery, name: str) -> None:
    from PIL import Image

    with Image.open(drawn.out / name) as image:
        pixels = np.asarray(image.convert("RGB"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animation_moves(drawn: Gallery, name: str) -> None:
    from PIL import Image

    with Image.open(drawn.out / name) as image:
        assert image.n_frames >= 4
        first = np.asarray(image.convert("RGB"))
        image.seek(image.n_frames - 1)
        last = np.asarray(image.convert("RGB"))
    assert first.shape == last.shape == (576, 896, 3)
    assert (first != last).any(axis=2).mean() > 0.001


def test_gallery_prints_what_it_wrote_and_the_numbers(drawn: Gallery) -> None:
    for name in (*SIZES, *ANIMATIONS):
        assert f"{drawn.out / name}\n" in drawn.printed
    for number in ("Rprop: 19.3 away after 300", "RMSprop: 0.1 away after 4 steps", "path over straight line 1.10"):
        assert number in drawn.printed


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, bool]] = []
    monkeypatch.setattr(gallery, "draw_all", lambda out, *, animate: asked.append((out, animate)))
    for arguments in (["gallery"], ["gallery", "--out", "there", "--animate"]):
        assert __main__.main(arguments) == 0
    assert asked == [(Path("gallery"), False), (Path("there"), True)]
