"""What the page of a memory report draws, as plain data: what each plot gets, and what it shows in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from checkpointing.explanation import format_seconds
from checkpointing.report import sums
from checkpointing.report.advice import seconds_of
from checkpointing.report.data import Drawing, PolicyRow, Process, Rank, Report, Timeline
from checkpointing.report.page.points import Points, points
from framework import format_size

#: Operations that are drawn of one timeline, and of all timelines of a page together.
MOST_POINTS, MOST_POINTS_OF_ALL = 1_500, 8_000
#: Cells of the drawing of a plan: operations across, steps down.
MOST_ACROSS, MOST_DOWN = 500, 160
#: Holders that are named one by one.
MOST_HOLDERS = 12
#: The digits of a cell, after those of `Drawing.held`: what runs there.
RUNNING = {"F": 4, "B": 5, "R": 6}


@dataclass(frozen=True)
class PhaseRow:
    """One phase of a step: its operations and seconds, and the one with the most bytes inside."""

    phase: str
    operations: int
    seconds: float
    peak: int
    label: str


@dataclass(frozen=True)
class DrawnRank:
    """One worker.

    Attributes:
        rank, node, step: As in `Rank`.
        predicted: Its timeline as planned.
        measured: As measured; None where nothing was.
        agreement: How the two compare, in words; empty where only one is there.
        equal: Whether they are equal to the byte.
        phases: The phases of what was measured, else planned.
        by_category: The bytes at the peak by category, the most first.
        by_layer: The same by owner.
        holders: The same by both: the largest, and then all others as one with an empty category.
        process: As in `Rank`.
        words: The timeline in words, for who cannot see it.
    """

    rank: int
    node: str
    step: int | None
    predicted: Points
    measured: Points | None
    agreement: str
    equal: bool
    phases: tuple[PhaseRow, ...]
    by_category: tuple[tuple[str, int], ...]
    by_layer: tuple[tuple[str, int], ...]
    holders: tuple[tuple[str, str, int], ...]
    process: Process | None
    words: str

    @property
    def peak(self) -> int:
        """The most bytes that the engine held: measured, else planned."""
        return max((self.measured or self.predicted).inside)


@dataclass(frozen=True)
class Cells:
    """The drawing of a plan: a string of digits for each row, operations across.

    Attributes:
        rows: Of each row the digits: those of `Drawing.held`, or of `RUNNING` where something runs.
        steps: The path of each row's first step.
        labels: The label of each column's first operation.
        down, across: How many steps share a row, and operations a column; a cell has the largest digit of those that share it.
        words: The drawing in words.
    """

    rows: tuple[str, ...]
    steps: tuple[str, ...]
    labels: tuple[str, ...]
    down: int
    across: int
    words: str


@dataclass(frozen=True)
class Frontier:
    """Peak against step time.

    Attributes:
        policies: As in `Report`.
        curve: Of the memory-time curve: budget in bytes, seconds, lower bound in seconds, policy.
        budget: As in `Report`.
        words: What it shows.
    """

    policies: tuple[PolicyRow, ...]
    curve: tuple[tuple[int, float, float, str], ...]
    budget: int | None
    words: str


@dataclass(frozen=True)
class Drawn:
    """All that the page draws beside the report's own words and tables."""

    ranks: tuple[DrawnRank, ...]
    frontier: Frontier
    cells: Cells


def drawn(report: Report) -> Drawn:
    """Returns what the page draws of a report."""
    timelines = sum(1 + (rank.measured is not None) for rank in report.ranks)
    most = max(100, min(MOST_POINTS, MOST_POINTS_OF_ALL // max(1, timelines)))
    return Drawn(
        tuple(_rank(rank, most, report.budget) for rank in report.ranks), _frontier(report), cells(report.drawing)
    )


def _rank(rank: Rank, most: int, budget: int | None) -> DrawnRank:
    measured = rank.measured if rank.measured is not None and rank.measured.labels else None
    shown = rank.predicted if measured is None else measured
    agreement, equal = ("", False) if measured is None else _agreement(rank.predicted, measured)
    by_category: Counter[str] = Counter()
    by_layer: Counter[str] = Counter()
    largest = sums.at_peak(shown)
    for category, owner, nbytes in largest:
        by_category[category] += nbytes
        by_layer[owner] += nbytes
    holders = largest[:MOST_HOLDERS]
    if rest := largest[MOST_HOLDERS:]:
        holders.append(("", f"{len(rest)} others", sum(nbytes for *_, nbytes in rest)))
    return DrawnRank(
        rank=rank.rank,
        node=rank.node,
        step=rank.step,
        predicted=points(rank.predicted, most),
        measured=None if measured is None else points(measured, most),
        agreement=agreement,
        equal=equal,
        phases=phase_rows(shown),
        by_category=tuple(by_category.most_common()),
        by_layer=tuple(by_layer.most_common()),
        holders=tuple(holders),
        process=rank.process,
        words=_words(shown, measured is not None, budget),
    )


def _agreement(predicted: Timeline, measured: Timeline) -> tuple[str, bool]:
    count = min(len(predicted.labels), len(measured.labels))
    off = [
        (abs(measured.inside[place] - predicted.inside[place]), -place)
        for place in range(count)
        if (measured.inside[place], measured.live[place]) != (predicted.inside[place], predicted.live[place])
    ]
    missing = (
        "" if count == len(predicted.labels) else f" The measurement ends after {count:,} of {len(predicted.labels):,}."
    )
    if not off:
        return (
            f"Measured and predicted bytes are equal after and during each of {count:,} operations.{missing}",
            not missing,
        )
    _, at = max(off)
    apart = measured.inside[-at] - predicted.inside[-at]
    return (
        f"Measured and predicted bytes differ at {len(off):,} of {count:,} operations, the most at number {-at:,} "
        f"({measured.labels[-at]}): {_signed(apart)}.{missing}",
        False,
    )


def _signed(nbytes: int) -> str:
    return f"{'+' if nbytes >= 0 else '−'}{format_size(abs(nbytes))}"


def phase_rows(timeline: Timeline) -> tuple[PhaseRow, ...]:
    """Returns the phases that occur, in their order."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, phase in enumerate(timeline.phases):
        places[phase].append(place)
    found = []
    for phase, seconds in sums.seconds_by_phase(timeline).items():
        top = max(places[phase], key=lambda place: (timeline.inside[place], -place))
        found.append(PhaseRow(phase, len(places[phase]), seconds, timeline.inside[top], timeline.labels[top]))
    return tuple(found)


def _words(timeline: Timeline, measured: bool, budget: int | None) -> str:
    at = timeline.peak
    within = "" if budget is None else f", of a budget of {format_size(budget)}"
    phases = "; ".join(
        f"{row.phase}: at most {format_size(row.peak)} in {format_seconds(row.seconds)}" for row in phase_rows(timeline)
    )
    return (
        f"Bytes alive through {len(timeline.labels):,} operations of a training step, {'measured' if measured else 'predicted'}. They begin at "
        f"{format_size(sum(timeline.before))} and are most in operation {at:,}, {timeline.labels[at]}: "
        f"{format_size(timeline.inside[at])}{within}. By phase: {phases}."
    )


def _frontier(report: Report) -> Frontier:
    curve = tuple((each.budget, each.seconds, each.bound_seconds, each.policy) for each in report.frontier)
    rows = [
        f"{row.policy} {format_size(row.predicted_peak)}, {format_seconds(seconds_of(row, [row]))}"
        for row in report.policies
    ]
    within = "" if report.budget is None else f" The budget is {format_size(report.budget)}."
    return Frontier(
        report.policies,
        curve,
        report.budget,
        f"Peak memory and time of a step by policy: {'; '.join(rows)}.{within} The table below has the same figures.",
    )


def cells(drawing: Drawing) -> Cells:
    """Returns the drawing of a plan, several steps in a row and operations in a column where there are too many."""
    count, steps = len(drawing.labels), len(drawing.steps)
    again = len({place for place in drawing.running if place is not None and place[1] == "R"})
    words = f"What the plan of one shard holds of each of {steps:,} steps after each of {count:,} operations. " + (
        f"{again:,} steps run forward again." if again else "No step runs forward again."
    )
    if not count or not steps:
        return Cells((), drawing.steps, drawing.labels, 1, 1, words)
    digits = np.frombuffer("".join(drawing.held).encode("ascii"), np.uint8).reshape(count, steps) - ord("0")
    for place, runs in enumerate(drawing.running):
        if runs is not None:
            digits[place, runs[0]] = RUNNING[runs[1]]
    across, down = -(-count // MOST_ACROSS), -(-steps // MOST_DOWN)
    shared = np.maximum.reduceat(digits, np.arange(0, count, across), axis=0)
    shared = np.maximum.reduceat(shared, np.arange(0, steps, down), axis=1)
    rows = tuple("".join(map(str, column)) for column in shared.T.tolist())
    return Cells(rows, drawing.steps[::down], drawing.labels[::across], down, across, words)
