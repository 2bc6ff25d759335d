"""Tables for a terminal of any width: what does not fit is left out whole and named, and no number is cut."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

#: Characters that a column whose words may go on in the next line keeps, where it has as many.
_WORDS = 22
#: As wide as any table is.
_ENDLESS = 10_000


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


def _least(table: Table, columns: list[Column], console: Console, options: ConsoleOptions) -> int:
    """The characters without which some of these columns would be cut."""
    narrow = copy(table)
    narrow.columns = [
        column if column.no_wrap else replace(column, max_width=max(_WORDS, column.min_width or 0))
        for column in columns
    ]
    return Measurement.get(console, options.update(max_width=_ENDLESS), narrow).maximum
