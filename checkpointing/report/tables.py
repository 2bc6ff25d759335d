"""Tables in plain text and in HTML that notebooks show: no style sheet, no script, names escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a table.

    Args:
        headings: Of the columns.
        rows: The cells.
        left: So many columns are text, aligned left; the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return [line(headings), "  ".join("─" * width for width in widths), *map(line, rows)]


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, caption: str = "") -> str:
    """Returns a table as HTML; without headings it has none. See `text_table` for the arguments."""

    def cells(each: Sequence[str], tag: str) -> str:
        aligned = ("left" if number < left else "right" for number in range(len(each)))
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
            for side, cell in zip(aligned, each, strict=True)
        )

    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>" if headings else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"
