"""Tables for a terminal of any width: what does not fit is left out whole and named, no number is cut, and names go on where they have joints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

#: Characters that a column whose words may go on in the next line keeps, where it has as many.
_WORDS = 22
#: As wide as any table is.
_ENDLESS = 10_000
#: Words, and their parts where one is longer than a line: policies are joined by colons and commas, layers by dots.
_WORD, _PART = re.compile(r"\S+\s*|\s+"), re.compile(r".+?(?:[,:]|\.(?=[^\W\d])|$)\s*")


class Folded:
    """A text whose words go on in the next line behind a comma, a colon or the dot of a path, if they are longer than a line."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self.text.divide(_breaks(self.text.plain, options.max_width))
        for line in lines:
            line.rstrip()
        yield Text("\n", overflow="fold").join(lines)


def _breaks(text: str, width: int) -> list[int]:
    """Where lines of so many characters begin, but the first one."""
    found, line = [], 0
    for start, end in _parts(text, width):
        if start > line and cell_len(text[line:end].rstrip()) > width:
            found.append(start)
            line = start
    return found


def _parts(text: str, width: int) -> Iterator[tuple[int, int]]:
    for word in _WORD.finditer(text):
        if cell_len(word[0].rstrip()) <= width:
            yield word.span()
        else:
            yield from ((word.start() + part.start(), word.start() + part.end()) for part in _PART.finditer(word[0]))


class FittingTable(Table):
    """A table that leaves columns out where a line is too short for all, and says below which.

    Columns that may wrap give way first, down to 22 characters.
    """

    def __init__(self, *, spare: Sequence[str] = (), **options: Any) -> None:
        """Makes an empty table.

        Args:
            spare: Headings of columns that can be left out, in the order in which they are.
            options: What `rich.table.Table` takes.
        """
        super().__init__(**options)
        self.spare = spare

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Adds a row, strings as they are: brackets in them are no markup."""
        columns = [*self.columns, *(Column() for _ in cells[len(self.columns) :])]
        super().add_row(*(_cell(cell, column) for cell, column in zip(cells, columns, strict=False)), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left, out = list(self.columns), []
        for name in self.spare:
            if _least(self, left, console, options) <= options.max_width:
                break
            if name in (column.header for column in left):
                left = [column for column in left if column.header != name]
                out.append(name)
        yield from Table.__rich_console__(self._of(left, out), console, options)

    def _of(self, columns: list[Column], out: list[str]) -> Table:
        drawn = copy(self)
        drawn.columns = columns
        if out:
            told = f"left out in lines this short: {', '.join(out)}"
            drawn.caption = f"{self.caption}\n{told}" if self.caption else told
        return drawn


def _cell(cell: RenderableType | None, column: Column) -> RenderableType | None:
    text = Text(cell) if isinstance(cell, str) else cell
    return Folded(text) if isinstance(text, Text) and not column.no_wrap else text


def _least(table: Table, columns: list[Column], console: Console, options: ConsoleOptions) -> int:
    """The characters without which some of these columns would be cut."""
    narrow = copy(table)
    narrow.columns = [
        column if column.no_wrap else replace(column, max_width=max(_WORDS, column.min_width or 0))
        for column in columns
    ]
    return Measurement.get(console, options.update(max_width=_ENDLESS), narrow).maximum
