"""A plan as a drawing of letters: steps across, time down, and what is held of each step when."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from checkpointing.holdings import ALL, COTANGENT, NOTHING, PART, Holdings
from framework import format_size

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
