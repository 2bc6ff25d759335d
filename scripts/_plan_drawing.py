"""What plan.py shows in a terminal: tables, and a plan as a drawing of letters, steps across and time down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from checkpointing.curve import CurvePoint
from checkpointing.explanation import Explanation, format_seconds
from checkpointing.holdings import ALL, COTANGENT, NOTHING, PART, Holdings
from checkpointing.report.fitting import FittingTable
from framework import format_size

_CAPTION = "gap: by how much a step is longer than the least that any plan of that peak must take"

#: What is held, and what runs.
_HELD = {NOTHING: (" ", ""), COTANGENT: ("·", "yellow"), PART: ("▒", "blue"), ALL: ("█", "blue")}
_RUNNING = {"F": "green", "R": "bold red", "B": "yellow"}
_MOST_ROWS = 48
_LEGEND = "F forward, R forward again, B backward; █ all of a step's values are held, ▒ a part, · its cotangent alone"


def drawing(found: Holdings, width: int) -> Text:
    """Draws the first shard of a plan.

    Several operations share a line, and several steps a column, where there are too many.

    Args:
        found: What the plan holds.
        width: Characters of a line.
    """
    columns = min(len(found.steps), max(10, width - 34))
    place = [step * columns // len(found.steps) for step in range(len(found.steps))]
    told = Text()
    steps = f"{len(found.steps)} steps" + (
        f", {len(found.steps) / columns:.1f} a column" if columns < len(found.steps) else ""
    )
    told.append(f"{'':20}{steps:<{columns}}  {'live':>11}\n", "bold")
    for first, last in _lines(len(found.labels)):
        cells: list[tuple[str, str]] = [_HELD[NOTHING]] * columns
        # Of steps that share a column the one of which most is held is shown.
        held = [
            max(int(found.held[last - 1, step]) for step in range(len(place)) if place[step] == column)
            for column in range(columns)
        ]
        cells = [_HELD[each] for each in held]
        for operation in range(first, last):
            if (runs := found.running[operation]) is not None:
                step, what = runs
                cells[place[step]] = what, _RUNNING[what]
        told.append(f"{_short(found.labels[first]):<20}")
        for cell, style in cells:
            told.append(cell, style)
        told.append(f"  {format_size(max(found.inside[first:last])):>11}\n")
    told.append(_LEGEND, "italic")
    return told


def _lines(operations: int) -> Iterator[tuple[int, int]]:
    lines = min(operations, _MOST_ROWS)
    for line in range(lines):
        yield line * operations // lines, (line + 1) * operations // lines


def _short(label: str) -> str:
    """A label in 19 letters; of a path the end tells more than the middle."""
    return label if len(label) <= 19 else f"{label[:8]}…{label[-10:]}"


def table(rows: Sequence[dict[str, Any]], budget: int | None) -> Table:
    """Draws the policies side by side."""
    title = "policies" if budget is None else f"policies; budget {format_size(budget)} ({budget:,} bytes)"
    drawn = _fitting(title, "of store-all", caption=_CAPTION)
    drawn.add_column("policy", overflow="fold")
    for name in ("peak", "of store-all", "a step", "extra time", "gap", ""):
        drawn.add_column(name, justify="right", no_wrap=True)
    peaks = in_one_unit([row["peak_bytes"] for row in rows])
    for row, peak in zip(rows, peaks, strict=True):
        drawn.add_row(
            row["policy"],
            peak,
            f"{row['peak_bytes'] / rows[0]['peak_bytes']:.0%}",
            format_seconds(row["seconds"], 4),
            f"{row['extra_time']:.1%}",
            f"{row['gap']:.1%}",
            "chosen" if row["chosen"] else "" if row["fits"] else "too large",
            style="bold" if row["chosen"] else "" if row["fits"] else "dim",
        )
    return drawn


def _fitting(title: str, *spare: str, caption: str | None = None) -> Table:
    return FittingTable(
        spare=spare,
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )


def node_table(rows: Sequence[dict[str, Any]], world: int) -> Table:
    """Draws what a node takes with weights and the optimizer's state held in one way or another."""
    title = f"one node with all {world} workers, who run as the plan chosen"
    (held,) = (row["held"] for row in rows if row["chosen"])
    caption = f"the plan is for: {held}" if len(rows) > 1 else None
    drawn = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    for name in ("held", "weights", "optimizer", "a worker's peak", "the node's engines"):
        drawn.add_column(name, justify="right", no_wrap=True)
    sizes: list[int] = []
    for row in rows:
        sizes += [sum(row["parameters_bytes"]), sum(row["optimizer_bytes"]), max(row["peak_bytes"]), row["bytes"]]
    told = in_one_unit(sizes)
    for place, row in enumerate(rows):
        drawn.add_row(row["held"], *told[4 * place : 4 * place + 4])
    return drawn


def paragraphs(told: Explanation) -> Table:
    """Draws the plan in words."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(justify="right", style="bold", no_wrap=True)
    drawn.add_column()
    for name, words in told.paragraphs():
        drawn.add_row(name, words)
    return drawn


def curve_table(curve: Sequence[CurvePoint], rows: int | None = None) -> Table:
    """Draws the memory-time curve, of many points every so many, so that there are at most so many rows."""
    drawn = _fitting("the memory-time curve", "lower bound")
    for name in ("budget", "peak", "a step", "extra time", "lower bound", "gap"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("policy", overflow="fold")
    once = curve[-1].seconds
    shown = curve if rows is None else curve[:: len(curve) // -rows][::-1]  # from the last one, which stores all
    if len(shown) < len(curve):
        drawn.caption = f"{len(shown)} of {len(curve)} points; a file or pipe, --html and --json have all"
    sizes = in_one_unit([nbytes for point in shown for nbytes in (point.budget, point.peak)])
    for point, budget, peak in zip(shown, sizes[::2], sizes[1::2], strict=True):
        drawn.add_row(
            budget,
            peak,
            format_seconds(point.seconds, 4),
            f"{point.seconds / once - 1:.1%}" if once else "",
            format_seconds(point.bound, 4),
            f"{point.gap:.1%}",
            point.policy,
        )
    return drawn


def in_one_unit(sizes: Sequence[int]) -> list[str]:
    """Writes sizes in bytes in one unit, so that a column can be compared: the largest of which the largest size has ten.

    >>> in_one_unit([1071644672, 838860800]), in_one_unit([172726, 51200])
    (['1022.0 MiB', '800.0 MiB'], ['168.7 KiB', '50.0 KiB'])
    """
    units = ("KiB", "MiB", "GiB", "TiB")
    power = max((place for place in range(1, 5) if max(sizes, default=0) >= 10 * 1024**place), default=1)
    return [f"{nbytes / 1024**power:.1f} {units[power - 1]}" for nbytes in sizes]
