"""How Sphinx makes a site of these pages: `make docs`.

The pages are plain Markdown, which a forge shows as they are; what only a site needs, its navigation and the docstrings, is added while
Sphinx reads them. The site takes nothing from the network: fonts and scripts are the theme's own, and formulas are text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = "Retape"
author = "Retape's contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]

myst_heading_anchors = 4  # links to headings as on a forge
autosummary_generate = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100
napoleon_use_ivar = True
default_role = "py:obj"  # docstrings name things in single backquotes: a link where there is such a thing

html_theme = "furo"
html_title = "Retape"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_dark_style = "github-dark"

_CODE = re.compile(r"(``.*?``|`[^`]*`)")
_PAGES = re.compile(r"\]\(([\w/-]+)\.md\)")
_OUTSIDE = re.compile(r"\[([^]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")
_NAMES = re.compile(r"^(?:`\w+`,?\s)+$", re.MULTILINE)


def add_navigation(text: str) -> str:
    """Adds to the index what Sphinx calls its tree: the pages that each of its sections links to, and those that none does."""
    trees, named = [], {"index"}
    for section in text.split("\n## ")[1:]:
        pages = _PAGES.findall(section)
        named.update(pages)
        trees.append(_tree(section.splitlines()[0], pages))
    there = {str(path.relative_to(HERE).with_suffix("")) for path in HERE.rglob("*.md")}
    if more := sorted(there - named):
        trees.append(_tree("More", more))
    return "\n".join([text, *trees])


def _tree(caption: str, pages: list[str]) -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def add_docstrings(package: str, text: str) -> str:
    """Turns lists of a package's names into tables with their summaries, and adds all docstrings."""

    def table(found: re.Match[str]) -> str:
        names = "\n".join(f"   {package}.{name}" for name in re.findall(r"\w+", found.group()))
        return f"```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{names}\n```\n"

    every = f".. automodule:: {package}\n   :members:\n   :imported-members:\n"
    return f"{_NAMES.sub(table, text)}\n## In full\n\n```{{eval-rst}}\n{every}```\n"


def without_links_outside(page: Path, text: str) -> str:
    """Writes the names of pages and folders that are no part of the site in place of links to them; other files can be downloaded."""

    def name(found: re.Match[str]) -> str:
        path = (page.parent / found[2]).resolve()
        if path.is_relative_to(HERE) or not (path.is_dir() or path.suffix == ".md"):
            return found.group()
        return f"{found[1]} (`{path.relative_to(HERE.parent)}`)"

    return _OUTSIDE.sub(name, text)


def read(app: Any, page: str, source: list[str]) -> None:
    source[0] = without_links_outside(HERE / f"{page}.md", source[0])
    if page == "index":
        source[0] = add_navigation(source[0])
    elif page.startswith("api/"):
        source[0] = add_docstrings(page.removeprefix("api/"), source[0])


def plain(line: str) -> str:
    """Escapes what a docstring means literally and reStructuredText does not: |d|, x*y and *args."""
    pieces = _CODE.split(line)
    pieces[::2] = [re.sub(r"([*|])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Runs before the sections of a docstring are read. Sessions of an interpreter stay as they are."""
    session = False
    for number, line in enumerate(lines):
        session = line.lstrip().startswith(">>>") or (session and bool(line.strip()))
        if not session:
            lines[number] = plain(line)


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", escape, priority=400)  # Napoleon's is 500
