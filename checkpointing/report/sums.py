"""Sums over a timeline: what tables, plots and comparisons show of it, to the byte."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from checkpointing.report.data import PHASES, Timeline
from framework.memory import CATEGORIES


def held(timeline: Timeline) -> Iterator[dict[tuple[str, str], int]]:
    """Yields what is alive after each operation by (category, owner), zeros left out; the same dict, changed in place."""
    now = {holder: nbytes for holder, nbytes in zip(timeline.holders, timeline.before, strict=True) if nbytes}
    for changes in timeline.changes:
        for number, more in changes:
            holder = timeline.holders[number]
            nbytes = now.get(holder, 0) + more
            if nbytes:
                now[holder] = nbytes
            else:
                now.pop(holder, None)
        yield now


def at_peak(timeline: Timeline) -> list[tuple[str, str, int]]:
    """Returns what holds memory at the peak as (category, owner, bytes), most bytes first."""
    rows = [(*timeline.holders[number], nbytes) for number, nbytes in timeline.at_peak]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def by_category(timeline: Timeline) -> dict[str, tuple[int, ...]]:
    """Returns bytes after each operation by category, in the order of `CATEGORIES`: columns that add up to `live`.

    The first number of each is that before the first operation. Categories that never hold anything are left out.
    """
    before: defaultdict[str, int] = defaultdict(int)
    for (category, _), nbytes in zip(timeline.holders, timeline.before, strict=True):
        before[category] += nbytes
    more: dict[str, list[int]] = {category: [before[category]] for category, _ in timeline.holders}
    for changes in timeline.changes:
        for column in more.values():
            column.append(0)
        for number, nbytes in changes:
            more[timeline.holders[number][0]][-1] += nbytes
    columns = {category: tuple(accumulate(more[category])) for category in CATEGORIES if category in more}
    return {category: column for category, column in columns.items() if any(column)}


def most_by_holder(timeline: Timeline) -> dict[tuple[str, str, str], int]:
    """Returns the most bytes that each holder has after an operation of each phase: by (category, owner, phase), zeros left out."""
    most: dict[tuple[str, str, str], int] = {}
    before = ""
    for phase, changes, now in zip(timeline.phases, timeline.changes, held(timeline), strict=True):
        # Within a phase only those can have more than so far that changed.
        changed = now if phase != before else [timeline.holders[number] for number, more in changes if more > 0]
        for category, owner in changed:
            key = category, owner, phase
            most[key] = max(most.get(key, 0), now[category, owner])
        before = phase
    return most


def seconds_by_phase(timeline: Timeline) -> dict[str, float]:
    """Returns how long the operations of each phase take together; phases without any are left out."""
    found: defaultdict[str, float] = defaultdict(float)
    for phase, seconds in zip(timeline.phases, timeline.seconds, strict=True):
        found[phase] += seconds
    return {phase: found[phase] for phase in PHASES if phase in found}
