"""Schedules from the persistent dynamic program, as places where the planner's search starts.

The chain of the program has finer stages than the model: it is cut wherever a single value is live, so both halves of a transformer's block are
stages of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from checkpointing.costs import Costs
from checkpointing.schedules import Schedule
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import chain_of, schedule_of

#: In how many units the program divides the memory, and how many of its schedules are taken.
STEPS, COUNT = 256, 16


def persistent_schedules(costs: Costs, most: int) -> Iterator[Schedule]:
    """Yields the program's schedules for some amounts of memory from the least that it knows a schedule for.

    Args:
        costs: The chain.
        most: The largest amount, in bytes of a shard's pass.
    """
    fine = cut(costs)
    chain = chain_of(fine)
    if chain.input_nbytes > most:
        return
    table = PersistentTable(chain, most, STEPS)
    least, seen = table.smallest, set()
    if least is None:
        return
    for number in range(COUNT):
        # Evenly by ratio: little memory is where a schedule of segments has the most to offer.
        actions = table.solution(int(least * (most / least) ** (number / COUNT))).actions
        if actions not in seen:
            seen.add(actions)
            yield schedule_of(actions, fine)


def cut(costs: Costs) -> Costs:
    """The costs with a stage for each run of steps between two places where the output of one step alone is live."""
    last_reader = {source: number for number, step in enumerate(costs.steps) for source in step.inputs}
    stage, furthest, steps = 0, 0, []
    for number, step in enumerate(costs.steps):
        steps.append(replace(step, stage=stage))
        if furthest <= number:
            stage += 1
        furthest = max(furthest, last_reader.get(number, 0))
    return replace(costs, steps=tuple(steps))
