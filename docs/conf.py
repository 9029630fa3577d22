"""The guide, by Sphinx: ``sphinx-build -W --keep-going -n docs build/docs``; warnings are errors."""

from __future__ import annotations

import contextlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import fusedstep as fs
from fusedstep import gallery
from fusedstep.optimizers import Optimizer

project = "fusedstep"
copyright = author = "the fusedstep developers"
version = release = fs.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["benchmark.md"]  # a part of performance.md, written by the benchmark
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc's sections have them in words
autodoc_member_order = "bysource"
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]
numpydoc_show_class_members = False
highlight_language = "none"  # formulas in docstrings

html_theme = "furo"
html_title = "fusedstep"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_math_renderer = "mathml"

PICTURES = Path(__file__).parent / "_gallery"


def draw_gallery(app: Sphinx) -> None:
    """Draw the pictures, unless they are there: remove the folder to have them drawn again."""
    if not PICTURES.exists():
        with contextlib.redirect_stdout(None):
            gallery.draw_all(PICTURES)


def correct_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Show the arguments of a class, where autodoc finds those of a mocked base; and none for what we make."""
    if signature == "(*args, **kwargs)":
        _, *own = inspect.signature(obj.__init__).parameters.values()
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in own]
        return str(inspect.Signature(plain)), None
    return ("", None) if obj in (fs.StepReport, Optimizer) else None


def visit_math(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script, no network."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    """Write formulas on lines of their own: beside each other where there is room, else below each other."""
    formulas = [tex2mathml(part, as_block=True) for part in re.split(r"(?:\\qquad\s*)+", node.astext())]
    translator.body.append(f'<div class="formula">{"".join(formulas)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("builder-inited", draw_gallery)
    app.connect("autodoc-process-signature", correct_signature)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
