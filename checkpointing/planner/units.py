"""Schedules from the persistent dynamic program, as places where the planner's search starts.

The chain of the program has finer stages than the model: it is cut also wherever a single value is live, so both halves of a transformer's
block are stages of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from checkpointing.costs import Costs, StepCost
from checkpointing.planner.evaluation import Codes, Evaluator
from checkpointing.solvers.chain import Action
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import chain_of, schedule_of

#: In how many units the program divides the memory: at most, and in a chain of one stage. Schedules of long chains take longer to look at.
STEPS, WORK = 384, 10240

#: Up to which part of what storing everything takes the program is asked: its chain is conservative, so it needs more for the same.
BEYOND = 1.5


def persistent_codes(evaluator: Evaluator, most: int) -> Iterator[Codes]:
    """Yields the program's schedules, by rising memory, one for each time that it knows.

    Args:
        evaluator: Of the chain.
        most: What storing everything takes, in bytes of a shard's pass.
    """
    fine = cut(evaluator.costs)
    chain, known = chain_of(fine), dict[Action, Codes]()
    memory = int(BEYOND * most)
    if chain.input_nbytes > memory:
        return
    table = PersistentTable(chain, memory, steps_for(fine))
    for limit in table.changes:
        codes: list[int] = []
        for action in table.actions(limit):
            if action not in known:
                known[action] = evaluator.codes_of(schedule_of([action], fine)) or ()
            codes += known[action]
        yield tuple(codes)


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
