"""What a plan holds of each step after each operation: what drawings of plans are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpointing.operations import (
    Backward,
    Drop,
    Fetch,
    Forward,
    Load,
    Loss,
    Operation,
    Reduce,
    Value,
    cotangent,
    output,
    residuals,
)
from checkpointing.plan import Plan
from framework.layers import BATCH
from framework.memory import Array

#: What is held of a step, in the order of what is shown where several steps share a place: nothing, its cotangent alone, a part of
#: its output and own residuals, all of them.
NOTHING, COTANGENT, PART, ALL = range(4)


@dataclass(frozen=True)
class Holdings:
    """The first shard of a plan: operations down, steps across.

    Attributes:
        steps: The paths of the steps.
        labels: The operations, Drops left out.
        held: What is held after each operation, and the Drops that follow, of each step: shape (operations, steps), int8.
        running: For each operation, its step and "F" (forward), "R" (forward again), "B" (backward); None for others.
        live: Bytes alive after each operation.
        inside: The most bytes alive during each.
    """

    steps: tuple[str, ...]
    labels: tuple[str, ...]
    held: Array
    running: tuple[tuple[int, str] | None, ...]
    live: tuple[int, ...]
    inside: tuple[int, ...]


def holdings(plan: Plan) -> Holdings:
    """Returns what a plan holds during its first shard."""
    costs, timeline = plan.costs, plan.simulation.timeline
    values: set[Value] = set()
    row = np.full(len(costs.steps), NOTHING, np.int8)
    done: Counter[int] = Counter()
    rows: list[Array] = []
    labels: list[str] = []
    running: list[tuple[int, str] | None] = []
    live: list[int] = []
    inside: list[int] = []
    for place, operation in enumerate(first_shard(plan.operations)):
        row = row.copy()
        for step in _follow(values, operation, plan) - {BATCH}:
            row[step] = _held(values, step, bool(costs.steps[step].footprint.own))
        if isinstance(operation, Drop):
            rows[-1], live[-1] = row, timeline[place].live
            continue
        rows.append(row)
        labels.append(plan.labels[place])
        running.append(_running(operation, done))
        live.append(timeline[place].live)
        inside.append(timeline[place].inside)
    paths = tuple(step.path for step in costs.steps)
    return Holdings(paths, tuple(labels), np.stack(rows), tuple(running), tuple(live), tuple(inside))


def first_shard(operations: Sequence[Operation]) -> Sequence[Operation]:
    """The operations of the first shard of a plan."""
    ends = (place for place, each in enumerate(operations) if place and isinstance(each, Load | Reduce))
    return operations[: next(ends, len(operations))]


def _follow(values: set[Value], operation: Operation, plan: Plan) -> set[int]:
    """Adds to the values what an operation makes, or removes what it drops; returns the steps that these are of."""
    made: set[Value] = set()
    match operation:
        case Forward(step, keep):
            made = {output(step)} | ({residuals(step)} if keep is not None else set())
        case Loss() if plan.purpose != "evaluate":
            made = {cotangent(len(plan.costs.steps) - 1)}
        case Backward(step):
            cost = plan.costs.steps[step]
            made = {cotangent(source) for source, wanted in zip(cost.inputs, cost.wanted, strict=True) if wanted}
        case Fetch(value):
            made = {value}
        case Drop(value):
            values.discard(value)
            return {value.at} if value.kind in "ard" else set()
    values |= made
    return {value.at for value in made}


def _held(values: set[Value], step: int, own: bool) -> int:
    """What is held of a step that has own residuals, or none."""
    found = (output(step) in values) + (residuals(step) in values)
    if found:
        return ALL if found == 1 + own else PART
    return COTANGENT if cotangent(step) in values else NOTHING


def _running(operation: Operation, done: Counter[int]) -> tuple[int, str] | None:
    match operation:
        case Forward(step):
            done[step] += 1
            return step, "F" if done[step] == 1 else "R"
        case Backward(step):
            return step, "B"
        case _:
            return None
