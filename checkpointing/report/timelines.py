"""Timelines of a step: predicted, from a plan and its simulation, and measured, from what the ledger recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from checkpointing.operations import (
    Accumulate,
    Backward,
    Drop,
    Fetch,
    Forward,
    Load,
    Loss,
    Norm,
    Offload,
    Operation,
    Reduce,
    Update,
    Wait,
)
from checkpointing.plan import Plan
from checkpointing.report.data import Timeline
from checkpointing.simulation import Holder
from framework.layers import BATCH
from framework.memory import CATEGORIES, Moment, Recording


@dataclass(frozen=True)
class _Place:
    """What a plan says of one operation besides bytes."""

    phase: str
    layer: str
    shard: int | None
    recomputed: bool


def predicted(plan: Plan) -> Timeline:
    """Returns a plan's timeline by its simulation; seconds are those of its costs."""
    simulation = plan.simulation
    return _timeline(plan, Recording(simulation.before, simulation.timeline, simulation.at_peak))


def measured(plan: Plan, recording: Recording) -> Timeline:
    """Returns the timeline of a run of a plan, as the ledger recorded it.

    Args:
        plan: The plan that was run.
        recording: From before the step to its end, or to what ended it half-way: then the operation that failed is the last.

    Raises:
        ValueError: It is of another plan, or of more than one step.
    """
    labels = tuple(moment.label for moment in recording.moments)
    if labels != plan.labels[: len(labels)]:
        place = next(
            (i for i, (got, wanted) in enumerate(zip(labels, plan.labels, strict=False)) if got != wanted),
            len(plan.labels),
        )
        wanted = f"{plan.labels[place]!r}" if place < len(plan.labels) else "its end"
        raise ValueError(
            f"the recording is of another plan: operation {place} is {labels[place]!r}, but the plan has {wanted}; record one step, "
            "with start_recording just before it and stop_recording after it"
        )
    return _timeline(plan, recording)


def _timeline(plan: Plan, recording: Recording) -> Timeline:
    moments = recording.moments
    holders = _holders(recording)
    number = {holder: place for place, holder in enumerate(holders)}
    places = list(_places(plan))[: len(moments)]
    held = [recording.before, *(moment.holders for moment in moments)]
    return Timeline(
        labels=tuple(moment.label for moment in moments),
        phases=tuple(place.phase for place in places),
        layers=tuple(place.layer for place in places),
        shards=tuple(place.shard for place in places),
        recomputed=tuple(place.recomputed for place in places),
        seconds=tuple(in_nanoseconds(moment.seconds) for moment in moments),
        live=tuple(moment.live for moment in moments),
        inside=tuple(moment.inside for moment in moments),
        holders=holders,
        before=tuple(recording.before.get(holder, 0) for holder in holders),
        changes=tuple(_changes(held[place], held[place + 1], number) for place in range(len(moments))),
        peak=_peak(moments),
        at_peak=tuple(sorted((number[holder], nbytes) for holder, nbytes in recording.at_peak.items())),
    )


def in_nanoseconds(seconds: float) -> float:
    """Rounds a time as clocks do, so that a report's JSON says the same as the report."""
    return round(seconds, 9)


def _holders(recording: Recording) -> tuple[Holder, ...]:
    """All that hold anything at any time: by category, then as they first do."""
    found = dict.fromkeys(recording.before, -1)
    last: dict[Holder, int] = {}
    for place, moment in enumerate(recording.moments):
        if moment.holders.keys() != last.keys():
            for holder in moment.holders.keys() - found.keys():
                found[holder] = place
        last = moment.holders
    for holder in recording.at_peak.keys() - found.keys():
        found[holder] = len(recording.moments)
    return tuple(sorted(found, key=lambda holder: (CATEGORIES.index(holder[0]), found[holder], holder[1])))


def _changes(
    before: dict[Holder, int], after: dict[Holder, int], number: dict[Holder, int]
) -> tuple[tuple[int, int], ...]:
    if before == after:
        return ()
    differing = dict(before.items() ^ after.items())
    return tuple(sorted((number[holder], after.get(holder, 0) - before.get(holder, 0)) for holder in differing))


def _peak(moments: Sequence[Moment]) -> int:
    """The first operation with the most bytes inside."""
    return max(range(len(moments)), key=lambda place: moments[place].inside, default=0)


def _places(plan: Plan) -> Iterator[_Place]:
    """Yields phase, layer and shard of each operation: what only takes values or gives them up belongs to what ran before."""
    paths = [step.path for step in plan.costs.steps]
    phase, shard, whole = "load", None, False  # whether the last operation was of no single shard
    done: set[int] = set()
    for operation in plan.operations:
        recomputed = False
        match operation:
            case Load(number):
                phase, shard, whole = "load", number, False
                done.clear()
            case Forward(step):
                recomputed, whole = step in done, False
                done.add(step)
                phase = "backward" if phase in ("loss", "backward", "all-reduce") else "forward"
            case Loss():
                phase, whole = "loss", False
            case Backward():
                phase, whole = "backward", False
            case Accumulate() | Reduce():
                phase, whole = "all-reduce", True
            case Norm() | Update():
                phase, whole = "optimizer", True
        yield _Place(phase, _layer(operation, paths), None if whole else shard, recomputed)


def _layer(operation: Operation, paths: Sequence[str]) -> str:
    """The path of the layer that runs, or whose value it is."""
    match operation:
        case Forward(step) | Backward(step):
            return paths[step]
        case Drop(value) | Offload(value) | Fetch(value) | Wait(value) if value.kind in "ard" and value.at != BATCH:
            return paths[value.at]
        case _:
            return ""
