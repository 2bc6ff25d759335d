"""A comparison of two reports as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from checkpointing.explanation import format_seconds
from checkpointing.report.compare import Change, Comparison
from checkpointing.report.text import table
from framework.sizes import format_size

#: Rows of a table.
_ROWS = 20


def comparison_parts(found: Comparison, limit: float | None = None) -> Iterator[RenderableType]:
    """Yields the parts of a comparison, for a console to print.

    Args:
        found: The comparison.
        limit: The part by which a peak may grow.
    """
    yield Text(f"{found.titles[0]}  →  {found.titles[1]}", "bold")
    above = set(found.above(limit)) if limit is not None else set()
    peaks = _table("peaks", ("of",))
    for change in (*found.peaks, *found.others):
        what = change.what if change.what != "step" else f"step of {change.layer}"
        whose = "" if change.rank is None else f" of rank {change.rank}"
        peaks.add_row(Text(what + whose), *told(change), style="bold red" if change in above else "")
    yield peaks
    for title, changes in (
        ("what holds more or less at the peak", found.at_peak),
        ("wherever the peak is, after an operation", found.held),
    ):
        if changes:
            yield _changes(title, changes)
    if not found.at_peak and not found.held:
        yield Text("every layer holds the same")
    for sentence in found.missing:
        yield Text(sentence)
    if limit is not None:
        words = f"{len(above)} of {len(found.peaks)} peaks grew by more than {limit * 100:g} %"
        yield Text(words, "bold red" if above else "green")


def _changes(title: str, changes: Sequence[Change]) -> Table:
    drawn = _table(title, ("category", "layer", "phase"))
    several = len({change.rank for change in changes}) > 1
    for change in changes[:_ROWS]:
        whose = f" (rank {change.rank})" if several else ""
        drawn.add_row(change.category, Text((change.layer or "the engine") + whose), change.what, *told(change))
    if len(changes) > _ROWS:
        drawn.caption = f"{len(changes) - _ROWS} more"
    return drawn


def _table(title: str, left: Sequence[str]) -> Table:
    drawn = table(title, left)
    for name in ("before", "after", "grew by", ""):
        drawn.add_column(name, justify="right", no_wrap=True)
    return drawn


def told(change: Change) -> tuple[str, str, str, str]:
    """A change in words: what it was, what it is, by how much, and by which part."""
    shown = format_seconds if change.what == "step" else format_size
    sign = "+" if change.grown > 0 else "-" if change.grown < 0 else ""
    part = "=" if not change.grown else "new" if change.part is None else f"{change.part:+.1%}"
    return shown(change.before), shown(change.after), f"{sign}{shown(abs(change.grown))}", part
