"""The shell of pages with plots that need no network: style, scripts, and colours that follow the reader's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files


def html_page(title: str, lead: str, body: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """Returns a page that stands alone.

    Args:
        title: Its heading.
        lead: A sentence below it.
        body: HTML; its plots come without Plotly's script, which is in the page.
        styles: Further style sheets, files beside this one.
        scripts: Further scripts, files beside this one; they run after the body and the shell's script.
    """
    from plotly.offline import get_plotlyjs

    style = "".join(map(asset, ("shell.css", *styles)))
    script = "".join(map(asset, ("shell.js", *scripts)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{style}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n</header>\n<main>\n{body}\n</main>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


@cache
def asset(name: str) -> str:
    """Returns a style sheet or script that lies beside this file."""
    return (files(__package__) / name).read_text(encoding="utf-8")
