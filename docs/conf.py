"""The guide, by Sphinx: ``sphinx-build -W --keep-going -n docs build/docs``; warnings are errors."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

import fusedstep as fs

project = "fusedstep"
copyright = author = "the fusedstep developers"
version = release = fs.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
# benchmark.md is a part of performance.md, written by the benchmark; gallery.md lists the pages of the gallery.
exclude_patterns = ["benchmark.md", "gallery/index.rst"]
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

GALLERY = Path(__file__).with_name("gallery.md").read_text(encoding="utf-8")


def set_resolution(conf: dict[str, Any], script: str) -> None:
    """Draw the pictures sharp enough for dense screens."""
    plt.rcParams["figure.dpi"] = 150


def save_figures(block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """Save the figures of a block; where it makes an ``animation``, save that as a GIF, which needs no script."""
    animation = variables["example_globals"].pop("animation", None)
    if animation is None:
        return str(matplotlib_scraper(block, variables, conf))
    path = Path(next(variables["image_path_iterator"])).with_suffix(".gif")
    animation.save(path, writer="pillow")
    plt.close("all")
    return str(figure_rst([str(path)], conf["src_dir"], "The paths in motion"))


sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "backreferences_dir": "gallery/backreferences",
    "minigallery_sort_order": lambda path: GALLERY.index(Path(path).stem),  # as the table of contents in gallery.md
    "image_scrapers": (save_figures,),
    "reset_modules": ("matplotlib", set_resolution),
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 60,
    "show_signature": False,
    "write_computation_times": False,
}


class Public(SphinxDirective):
    """``public::`` documents what the package exports of a kind: ``optimizers``, their ``functions``, or ``reports``.

    Optimizers and functions come in the order of the core's list of rules. A report is any other class.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write a directive of autodoc for each name; of a class, name its own members."""
        exported = [getattr(fs, name) for name in fs.__all__]
        classes = [each for each in exported if inspect.isclass(each) and not issubclass(each, Exception)]
        optimizers = {each._schema.rule: each for each in classes if hasattr(each, "_schema")}
        found = {
            "optimizers": [optimizers[rule] for rule in fs._core.rules()],
            "functions": [getattr(fs, f"{rule}_") for rule in fs._core.rules()],
            "reports": [each for each in classes if not issubclass(each, fs.Optimizer)],
        }[self.arguments[0]]
        lines = []
        for each in found:
            of_class = inspect.isclass(each)
            lines.append(f".. auto{'class' if of_class else 'function'}:: {each.__name__}")
            wanted = inspect.isfunction if each in optimizers.values() else inspect.isdatadescriptor
            own = [key for key, value in vars(each).items() if wanted(value) and key[0] != "_"] if of_class else []
            if own and not hasattr(each, "_fields"):  # the fields of a NamedTuple are in its documentation
                lines.append(f"   :members: {', '.join(own)}")
        return self.parse_text_to_nodes("\n".join(lines))


def correct_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Show no arguments for what users never make, and those of a class where autodoc finds those of a mocked base."""
    if obj is fs.Optimizer or getattr(obj, "__name__", "").endswith("Report"):
        return "", None
    if signature == "(*args, **kwargs)":
        _, *own = inspect.signature(obj.__init__).parameters.values()
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in own]
        return str(inspect.Signature(plain)), None
    return None


def name_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Name the files to which a page links on a code host, but which are not part of the guide."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([\w./-]+)\)", r"\1 (`\2`)", source[0])


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
    app.add_directive("public", Public)
    app.connect("autodoc-process-signature", correct_signature)
    app.connect("source-read", name_files)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
