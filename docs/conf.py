"""The guide, by Sphinx: ``sphinx-build -W --keep-going -n docs build/docs``; warnings are errors."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import matplotlib.pyplot as plt
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

import fusedstep as fs

project = "fusedstep"
copyright = author = "the fusedstep developers"
version = release = fs.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["gallery/index.rst"]  # gallery.md lists its pages
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc's sections have them in words
autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("mpi4py", "torch") if not find_spec(name)]
numpydoc_show_class_members = False
highlight_language = "none"  # formulas in docstrings
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_selector = "div:not(.highlight-text) > div.highlight pre"

html_theme = "furo"
html_title = "fusedstep"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_math_renderer = "mathml"


def set_resolution(conf: dict[str, Any], script: str) -> None:
    """Draw the pictures sharp enough for dense screens."""
    plt.rcParams["figure.dpi"] = 150


def save_figures(block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """Save the figures of a block; where it makes an ``animation``, save that as a GIF, which needs no script."""
    animation = variables["example_globals"].pop("animation", None)
    if animation is None:
        text = str(matplotlib_scraper(block, variables, conf))
        for path in re.findall(r"image-sg:: (\S+)", text):
            picture = Path(conf["src_dir"], path.lstrip("/"))
            Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)  # a third of the bytes
        return text
    path = Path(next(variables["image_path_iterator"])).with_suffix(".gif")
    animation.save(path, writer="pillow")
    plt.close("all")
    return str(figure_rst([str(path)], conf["src_dir"], "The paths in motion"))


sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "image_scrapers": (save_figures,),
    "reset_modules": ("matplotlib", set_resolution),
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 60,
    "show_signature": False,
    "write_computation_times": False,
}


def public(kind: str) -> list[Any]:
    """Return what the package exports of a kind.

    Optimizers and functions come in the order of the core's list of rules.
    """
    exported = [getattr(fs, name) for name in fs.__all__]
    classes = [each for each in exported if inspect.isclass(each) and not issubclass(each, Exception)]
    optimizers = {each._schema.rule: each for each in classes if hasattr(each, "_schema")}
    return {
        "optimizers": [*(optimizers[rule] for rule in fs._core.rules()), fs.Optimizer],
        "functions": [getattr(fs, f"{rule}_") for rule in fs._core.rules()],
        "reports": [each for each in classes if each.__name__.endswith("Report")],
    }[kind]


def write_pages(app: Sphinx) -> None:
    """Write a page for each class and function; of a class, name the members that its base does not have."""
    folder = Path(app.srcdir, "api")
    folder.mkdir(exist_ok=True)
    for each in (each for kind in ("optimizers", "functions", "reports") for each in public(kind)):
        name, of_class = each.__name__, inspect.isclass(each)
        title = name.replace("_", "\\_")
        lines = [title, "=" * len(title), "", ".. currentmodule:: fusedstep", ""]
        lines.append(f".. auto{'class' if of_class else 'function'}:: {name}")
        if of_class and not hasattr(each, "_fields"):  # the fields of a NamedTuple are in its documentation
            kinds = (property, FunctionType, classmethod)
            own = [key for key, value in vars(each).items() if isinstance(value, kinds) and key[0] != "_"]
            lines += [f"   :members: {', '.join(own)}"] if own else []
            if each in public("optimizers")[:-1]:
                lines += [
                    "",
                    "Its other methods are those of :class:`Optimizer`: ``step``, ``save``, ``load`` and more.",
                ]
        text = "\n".join(lines) + "\n"
        page = folder / f"{name}.rst"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


class Public(SphinxDirective):
    """``public::`` lists the pages of what the package exports of a kind, with the first line of each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write a list, and a table of contents for the sidebar."""
        found = public(self.arguments[0])
        lines = []
        for each in found:
            first = (inspect.getdoc(each) or "").partition("\n\n")[0].replace("\n", " ")
            lines.append(f"* :doc:`{each.__name__} <api/{each.__name__}>`: {first}")
        lines += ["", ".. toctree::", "   :hidden:", "", *(f"   api/{each.__name__}" for each in found)]
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


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adapt what reads well on a code host: link pages of the gallery, and name the files that are not in the guide."""
    text, pages = source[0], re.findall(r"\]\(\.\./examples/(gallery/\w+)\.py\)", source[0])
    text = re.sub(r"\]\(\.\./examples/(gallery/\w+)\.py\)", r"](\1.rst)", text)
    text = re.sub(r"\[([^\]]+)\]\(\.\./([\w./-]+)\)", r"\1 (`\2`)", text)
    if docname == "gallery":
        text += "\n".join(["", "```{toctree}", ":hidden:", "", *dict.fromkeys(pages), "```", ""])
    source[0] = text


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
    app.connect("source-read", complete)
    app.connect("builder-inited", write_pages)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
