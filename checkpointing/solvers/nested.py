"""A stage's own plans: each keeps a part of what the stage's backward reads and makes the rest again, step by step.

They become the options of the stage in the abstract chain (`chain.py`), so a plan of the chain may keep the matrix products of a
transformer's block and recompute what is cheap between them, and another part of the next block. The idea is Rockmate's (Zhao et al. 2023).

A plan is a choice of steps whose outputs and residuals are kept. What else a backward reads is made just before it, from what is kept or from
the stage's input, and stays until its last use. Of the choices only those count that nothing beats in both bytes and time.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from checkpointing.costs import Costs
from checkpointing.operations import Forward, Value, output, residuals
from checkpointing.schedules import StepOperation, backwards
from checkpointing.simulation import backward_needs
from checkpointing.solvers.stages import Undoings, alike, read_first

#: The most steps of which every choice is looked at; of more, steps are left out one after the other, cheapest first.
EXACT = 10

#: The most plans of a stage.
MOST = 16


class _Plan(NamedTuple):
    """Attributes: bytes kept, seconds of forwards that run again, and the backward."""

    nbytes: int
    seconds: float
    undoing: Sequence[StepOperation]


def own_plans(costs: Costs, most: int = MOST) -> list[Undoings]:
    """Returns for each stage the backwards of its plans, by rising kept bytes; the last keeps all.

    Args:
        costs: A training pass of one shard, with its times.
        most: Of how many plans a stage has the choice, at most: one that keeps all, then one that keeps the least, then others between them.

    Raises:
        ValueError: There is to be no plan.
    """
    if most < 1:
        raise ValueError(f"a stage needs at least one plan, but {most} were asked for")
    known: dict[Hashable, tuple[int, Undoings]] = {}
    found: list[Undoings] = []
    for number in range(costs.stages):
        steps = costs.steps_of(number, number)
        key = alike(costs, steps)
        if key not in known:
            known[key] = steps.start, _plans(costs, steps, most)
        start, undoings = known[key]
        found.append([_moved(undoing, steps.start - start) for undoing in undoings])
    return found


def _moved(undoing: Sequence[StepOperation], by: int) -> Sequence[StepOperation]:
    return [replace(operation, step=operation.step + by) for operation in undoing] if by else undoing


def _plans(costs: Costs, steps: range, most: int) -> Undoings:
    everything = backwards(costs, steps)
    parts: dict[int, set[Value]] = {}  # of each step what the backwards read
    for value in sorted(read_first(everything, costs)):
        if value.at in steps:
            parts.setdefault(value.at, set()).add(value)
    choices = _all_choices if len(parts) <= EXACT else _one_by_one
    unbeaten: list[_Plan] = []
    for plan in sorted(choices(costs, steps, parts), key=lambda plan: plan[:2]):
        if not unbeaten or plan.seconds < unbeaten[-1].seconds:
            unbeaten.append(plan)
    plans = [*(plan.undoing for plan in unbeaten if plan.undoing != everything), everything]
    count = min(most, len(plans))
    return [plans[number * (len(plans) - 1) // (count - 1)] for number in range(count - 1)] + [everything]


def _all_choices(costs: Costs, steps: range, parts: dict[int, set[Value]]) -> Iterator[_Plan]:
    for count in range(len(parts) + 1):
        for kept in combinations(parts, count):
            yield _plan(costs, steps, parts, kept)


def _one_by_one(costs: Costs, steps: range, parts: dict[int, set[Value]]) -> Iterator[_Plan]:
    kept, at = set(parts), _plan(costs, steps, parts, parts)
    yield at
    while kept:
        tried = [(step, _plan(costs, steps, parts, kept - {step})) for step in sorted(kept)]
        step, at = min(tried, key=lambda each: (each[1].seconds - at.seconds) / max(1, at.nbytes - each[1].nbytes))
        kept.remove(step)
        yield at


def _plan(costs: Costs, steps: range, parts: dict[int, set[Value]], kept: Collection[int]) -> _Plan:
    held = {value for step in kept for value in parts[step]}
    nbytes = sum(
        costs.steps[value.at].footprint.own_nbytes if value.kind == "r" else costs.output(value.at).nbytes
        for value in held
    )
    undoing = _just_before(costs, steps, held | {output(steps[-1])})  # which is at the stage's border
    seconds = sum(costs.seconds(operation.step).forward for operation in undoing if isinstance(operation, Forward))
    return _Plan(nbytes, seconds, undoing)


def _just_before(costs: Costs, steps: range, held: set[Value]) -> list[StepOperation]:
    """The backwards of some steps, and before each the forwards of what it reads and is not held."""
    found: list[StepOperation] = []

    def make(value: Value) -> None:
        if value in held or value.at not in steps:
            return
        for source in costs.steps[value.at].inputs:
            make(output(source))
        found.append(Forward(value.at, 0 if costs.steps[value.at].footprint.own else None))
        held.update((output(value.at), residuals(value.at)))

    for operation in backwards(costs, steps):
        for value in backward_needs(costs, operation.step):
            make(value)
        found.append(operation)
    return found
