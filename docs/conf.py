"""How the site is built: sphinx-build -W docs .site/html (make site)."""

import re
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pages import make  # noqa: E402

make()

project = "minibeft"
author = copyright = "the authors of minibeft"
version = release = metadata.version("minibeft")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx-mathjax-offline", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "minibeft"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = [str(page) for page in sorted((HERE.parent / "records").glob("*.html"))]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries = False
highlight_language = "text"


def as_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings here are plain text: no character means markup, and what is set in columns stays so."""
    made = []
    for paragraph in "\n".join(lines).strip().split("\n\n"):
        if re.search(r"\S {2,}\S|^ ", paragraph, re.MULTILINE):
            made += ["::", "", *(f"    {line}" for line in paragraph.split("\n")), ""]
        else:
            made += [re.sub(r"([\\*`|_])", r"\\\1", paragraph).replace("\n", " "), ""]
    lines[:] = made


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_text)
