"""How Sphinx builds the pages: Markdown by MyST, the reference from docstrings."""

import re
from collections.abc import Iterator
from typing import Any

from neurotome import __version__

project = "neurotome"
copyright = "the neurotome contributors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "neurotome"
html_copy_source = False

myst_heading_anchors = 4

autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# what lies beside docs/ where code is hosted, and its page here
_BESIDE = {
    "CONTRIBUTING.md": "/contributing.md",
    "CHANGELOG.md": "/changelog.md",
    "README.md": "/index.md",
    "examples/README.md": "/examples.md",
}


def literal_equations(lines: list[str]) -> Iterator[str]:
    """Yield a docstring in which every indented paragraph of its own, an equation, is a literal block."""
    before, inside = "", False
    for line in lines:
        indented = line.startswith("    ")
        if line and indented and not inside and before == "":
            inside = True
            yield from ("::", "")
        elif line and not indented:
            inside = False
        yield line if inside else escaped(line)
        before = line


def escaped(line: str) -> str:
    """Return a line in which bars, which mean a norm, are no substitutions; code stays as it is."""
    parts = line.split("``")
    return "``".join(part.replace("|", r"\|") if place % 2 == 0 else part for place, part in enumerate(parts))


def setup(app: Any) -> None:
    """Read equations of docstrings as they stand, and links of pages to what lies beside them."""

    def docstring(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        lines[:] = list(literal_equations(lines))

    def page(app: Any, name: str, source: list[str]) -> None:
        for file, to in _BESIDE.items():
            source[0] = re.sub(rf"\]\((?:\.\./)+{re.escape(file)}(?:#[\w-]*)?\)", f"]({to})", source[0])

    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon reads the sections
    app.connect("source-read", page)
