"""Tables of a page: captions, headers of columns and rows, buttons that sort, and bars behind numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Where long names may go on in the next line: policies behind colons and commas, layers behind the dots of their paths.
_JOINT = re.compile(r"[.,:](?=[^\W\d])")


@dataclass(frozen=True)
class Column:
    """A column: its name, what it is in more words, and whether it is text, which stands left."""

    name: str
    title: str = ""
    text: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What stands in it.
        value: What it is sorted by; None for its text.
        share: How long a bar behind it is, from 0 to 1; None for no bar.
        mark: The class of a small mark before the text; empty for none.
    """

    text: str
    value: float | None = None
    share: float | None = None
    mark: str = ""


def table(
    caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, sortable: bool = False, chosen: int = -1
) -> str:
    """Returns a table that scrolls sideways by itself where it is too wide.

    Args:
        caption: What it holds.
        columns: At least one; the first cell of a row is the row's header.
        rows: Cells, as many as columns.
        sortable: Whether the headers are buttons that sort.
        chosen: The place of a row that is marked.
    """
    head = "".join(_head(column, sortable) for column in columns)
    body = "\n".join(_row(columns, row, number == chosen) for number, row in enumerate(rows))
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table{kind}>'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>\n</table></div>"
    )


def pairs(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Returns a table of names and what they are."""
    body = "\n".join(
        f'<tr><th scope="row" class="left">{escape(name)}</th><td class="left wrap">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table class="pairs"><caption><span>{escape(caption)}</span></caption><tbody>{body}</tbody></table>'


def name(text: str, before: str = "") -> str:
    """Returns a name in the first column, which goes on in the next line where a screen is narrow; before it markup."""
    return f"<span>{before}" + _JOINT.sub(r"\g<0><wbr>", escape(text)) + "</span>"


def _head(column: Column, sortable: bool) -> str:
    kind = ' class="left"' if column.text else ""
    title = f' title="{escape(column.title)}"' if column.title else ""
    name = escape(column.name)
    if not sortable:
        return f'<th scope="col"{kind}{title}>{name}</th>'
    return f'<th scope="col"{kind}{title} aria-sort="none"><button type="button">{name}</button></th>'


def _row(columns: Sequence[Column], row: Sequence[Cell], chosen: bool) -> str:
    cells = "".join(
        _cell(column, cell, place == 0) for place, (column, cell) in enumerate(zip(columns, row, strict=True))
    )
    return f'<tr class="chosen">{cells}</tr>' if chosen else f"<tr>{cells}</tr>"


def _cell(column: Column, cell: Cell, first: bool) -> str:
    tag = 'th scope="row"' if first else "td"
    kinds = [*(["left"] if column.text else []), *(["bar"] if cell.share is not None else [])]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    value = "" if cell.value is None else f' data-v="{cell.value:.12g}"'
    share = "" if cell.share is None else f' style="--s:{cell.share:.1%}"'
    mark = f'<i class="{escape(cell.mark)}"></i>' if cell.mark else ""
    text = name(cell.text, mark) if first else mark + escape(cell.text)
    return f"<{tag}{kind}{value}{share}>{text}</{tag[:2]}>"
