"""Schedules from the persistent dynamic program, as places where the planner's search starts.

The program plans the model's stages, and finer ones: cut also wherever a single value is live, so both halves of a transformer's block are
stages of their own. Each stage has the choice of its own plans: those of `solvers.nested`, and frugal ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from checkpointing.costs import Costs, StepCost
from checkpointing.planner.evaluation import Codes, Evaluator
from checkpointing.planner.frugal import frugal_plans
from checkpointing.solvers.chain import Action
from checkpointing.solvers.nested import own_plans
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import action_schedule, chain_of, with_options

#: In how many units the program divides the memory: at most, and in a chain of one stage. Schedules of long chains take longer to look at.
STEPS, WORK = 384, 10240

#: Up to which part of what storing everything takes the program is asked: its chain is conservative, so it needs more for the same.
BEYOND = 1.5

#: Schedules for the lowest part of the memory are taken from a table of their own, whose unit is finer.
LOW = 1 / 8

#: By which part the memory of schedules differs at least, for each step of the chain: schedules of long chains take longer to look at.
APART = 1 / 50_000


def persistent_codes(evaluator: Evaluator, most: int) -> Iterator[Codes]:
    """Yields the program's schedules, by rising memory: of all that it knows for about the same memory the fastest.

    Args:
        evaluator: Of the chain.
        most: What storing everything takes, in bytes of a shard's pass.
    """
    fine, memory = cut(evaluator.costs), int(BEYOND * most)
    found: list[tuple[int, float, _Units]] = []
    for costs in (fine, evaluator.costs) if fine.stages > evaluator.costs.stages else (fine,):
        units, above = _Units(evaluator, costs), 0
        for limit in (int(LOW * memory), memory):
            if units.chain.input_nbytes <= limit:
                table = units.add(limit, steps_for(fine))
                found += [(each, table.seconds(each), units) for each in table.changes if each > above]
                above = limit
    fastest, apart = math.inf, APART * evaluator.steps
    chosen: dict[int, tuple[int, _Units]] = {}
    for limit, seconds, units in sorted(found, key=lambda each: each[:2]):
        if seconds < fastest:
            fastest = seconds
            chosen[int(math.log(max(1, limit)) / apart)] = limit, units
    for limit, units in chosen.values():
        yield units.codes(limit)


class _Units:
    """The program over stages of one size.

    Args:
        evaluator: Of the chain.
        costs: The same chain, in these stages.
    """

    def __init__(self, evaluator: Evaluator, costs: Costs) -> None:
        self._evaluator, self._costs = evaluator, costs
        self._undoings = [[*frugal, *own] for frugal, own in zip(frugal_plans(costs), own_plans(costs), strict=True)]
        self.chain = chain_of(costs, self._undoings)
        self._tables: list[PersistentTable] = []
        self._known: dict[tuple[Action, int], Codes] = {}

    def add(self, memory: int, steps: int) -> PersistentTable:
        """Returns a table, which the schedules of its memories are taken from from now on."""
        self._tables.append(PersistentTable(self.chain, memory, steps))
        return self._tables[-1]

    def codes(self, memory: int) -> Codes:
        """The schedule for a memory, from the first table that has it."""
        table = next(table for table in self._tables if table.memory >= memory)
        return tuple(chain.from_iterable(map(self._of, with_options(table.actions(memory)))))

    def _of(self, key: tuple[Action, int]) -> Codes:
        if key not in self._known:
            self._known[key] = self._evaluator.codes_of(action_schedule(*key, self._costs, self._undoings)) or ()
        return self._known[key]


def steps_for(costs: Costs) -> int:
    """In how many units the memory of such a chain is divided."""
    return max(64, min(STEPS, WORK // costs.stages))


def cut(costs: Costs) -> Costs:
    """The costs with finer stages: a cut more wherever the output of one step alone is live."""
    last_reader = {source: number for number, step in enumerate(costs.steps) for source in step.inputs}
    stage, furthest, steps = 0, 0, list[StepCost]()
    for number, step in enumerate(costs.steps):
        steps.append(replace(step, stage=stage))
        ends = number + 1 == len(costs.steps) or costs.steps[number + 1].stage != step.stage
        stage += furthest <= number or ends
        furthest = max(furthest, last_reader.get(number, 0))
    return replace(costs, steps=tuple(steps))
