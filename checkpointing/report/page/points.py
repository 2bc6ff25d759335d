"""A timeline as it is drawn: all its operations, or of a long one those that no peak is lost without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from checkpointing.report import sums
from checkpointing.report.data import Timeline

_T = TypeVar("_T")

#: What the operation itself holds at most on top of what is there after it.
PASSING = "in passing"


@dataclass(frozen=True)
class Points:
    """The operations of a timeline that are drawn, in their order: columns of equal length.

    Attributes:
        operations: How many the timeline has.
        stride: How many follow each other for each that is drawn: 1 where all are.
        at: Which operations these are, from 0.
        labels, layers, phases: As in `Timeline`.
        shards: As in `Timeline`, but -1 for None.
        recomputed: As in `Timeline`.
        starts, ends: When what is drawn of each begins and ends, in nanoseconds from the beginning of the step: together they cover it.
        live, inside: As in `Timeline`, in bytes.
        categories: The categories that hold anything, in the order in which they are stacked; `PASSING` is the last.
        stacks: For each category its bytes: all but the last are those after the operation, and add up to `live`; with the last
            they add up to `inside`.
        holders: All (category, owner).
        changes: For each operation, what holders have more or less after it than after the one drawn before it: (holder, bytes). The
            first one's are from nothing.
        peak: The place of the operation with the most bytes inside, the first of equal ones.
    """

    operations: int
    stride: int
    at: tuple[int, ...]
    labels: tuple[str, ...]
    layers: tuple[str, ...]
    phases: tuple[str, ...]
    shards: tuple[int, ...]
    recomputed: tuple[bool, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    live: tuple[int, ...]
    inside: tuple[int, ...]
    categories: tuple[str, ...]
    stacks: tuple[tuple[int, ...], ...]
    holders: tuple[tuple[str, str], ...]
    changes: tuple[tuple[tuple[int, int], ...], ...]
    peak: int


def representatives(inside: Sequence[int], most: int) -> tuple[int, list[int]]:
    """Chooses the operations that are drawn: of as many as follow each other as must, the one with the most bytes inside.

    Args:
        inside: The most bytes during each operation.
        most: How many may be drawn, at least 1.

    Returns:
        The stride, and for each stretch of that many operations the first of those with the most bytes.
    """
    stride = max(1, -(-len(inside) // most))
    firsts = range(0, len(inside), stride)
    return stride, [
        max(range(first, min(first + stride, len(inside))), key=lambda place: (inside[place], -place))
        for first in firsts
    ]


def points(timeline: Timeline, most: int) -> Points:
    """Returns a timeline as it is drawn.

    Args:
        timeline: Any timeline with at least one operation.
        most: How many operations may be drawn.
    """
    stride, at = representatives(timeline.inside, most)
    clock = [0, *(round(seconds * 1e9) for seconds in accumulate(timeline.seconds))]
    edges = [clock[first] for first in range(0, len(timeline.inside), stride)]
    changes = _changes(timeline, at)
    columns = {category: _of(column[1:], at) for category, column in sums.by_category(timeline).items()}
    inside, after = _of(timeline.inside, at), _of(timeline.live, at)
    passing = tuple(most - left for most, left in zip(inside, after, strict=True))

    return Points(
        operations=len(timeline.inside),
        stride=stride,
        at=tuple(at),
        labels=_of(timeline.labels, at),
        layers=_of(timeline.layers, at),
        phases=_of(timeline.phases, at),
        shards=tuple(-1 if shard is None else shard for shard in _of(timeline.shards, at)),
        recomputed=_of(timeline.recomputed, at),
        starts=tuple(edges),
        ends=(*edges[1:], clock[-1]),
        live=after,
        inside=inside,
        categories=(*columns, PASSING),
        stacks=(*columns.values(), passing),
        holders=timeline.holders,
        changes=changes,
        peak=at.index(timeline.peak),
    )


def _of(column: Sequence[_T], at: Sequence[int]) -> tuple[_T, ...]:
    return tuple(column[place] for place in at)


def _changes(timeline: Timeline, at: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Adds up the changes of operations that are not drawn."""
    found = []
    pending = Counter(dict(enumerate(timeline.before)))
    drawn = iter(at)
    following = next(drawn)
    for place, changes in enumerate(timeline.changes):
        for holder, nbytes in changes:
            pending[holder] += nbytes
        if place == following:
            found.append(tuple((holder, nbytes) for holder, nbytes in sorted(pending.items()) if nbytes))
            pending.clear()
            following = next(drawn, len(timeline.changes))
    return tuple(found)
