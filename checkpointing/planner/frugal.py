"""Plans of a stage for little memory, found by the planner itself as for a whole chain.

They keep of a stage its input alone, and its backward makes steps again more than once, so that it takes less at its peak. With them the
dynamic program over stages (`units.py`) goes nearly as far down as the search over single steps, and knows what that costs elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from checkpointing.costs import Costs, Seconds, Times
from checkpointing.operations import Backward, Forward, Loss, cotangent
from checkpointing.planner.evaluation import Evaluator
from checkpointing.planner.moves import Moves, ascend, descend
from checkpointing.schedules import Schedule, StepOperation, backwards, forwards, shard_operations
from checkpointing.solvers.stages import Undoings, alike
from framework.layers import BATCH
from framework.losses import LossFootprint

#: Plans are walked down to by this part of the peak at a time.
RUNG = 15 / 16


def frugal_plans(costs: Costs) -> list[Undoings]:
    """Returns for each stage the backwards of such plans, by rising peak; none where a stage has several inputs or a single step.

    Args:
        costs: A training pass of one shard, with its times.
    """
    known: dict[Hashable, list[list[Forward | Backward]]] = {}
    found: list[Undoings] = []
    for number in range(costs.stages):
        steps = costs.steps_of(number, number)
        entering = {source for step in steps for source in costs.steps[step].inputs if source not in steps}
        if len(entering) != 1 or len(steps) < 2:
            found.append([])
            continue
        key = alike(costs, steps)
        if key not in known:
            known[key] = [
                [operation for operation in schedule if isinstance(operation, Forward | Backward)]
                for schedule in _walk_down(_alone(costs, steps, *entering))
            ]
        found.append([_undoing(schedule, costs, steps.start, *entering) for schedule in known[key]])
    return found


def _alone(costs: Costs, steps: range, entering: int) -> Costs:
    """A stage as a chain, whose batch is the stage's input and whose loss is free."""
    free = Seconds(0.0, 0.0)
    return Costs(
        tuple(
            replace(
                costs.steps[step],
                inputs=tuple(source - steps.start if source in steps else BATCH for source in costs.steps[step].inputs),
                stage=0,
            )
            for step in steps
        ),
        costs.output(entering),
        costs.targets,
        LossFootprint(),
        times=Times(costs.source, tuple(map(costs.seconds, steps)), free),
    )


def _walk_down(alone: Costs) -> list[Schedule]:
    evaluator, steps = Evaluator(alone), range(len(alone.steps))
    moves, found = Moves(evaluator), list[Schedule]()
    at = evaluator.evaluate(evaluator.codes_of([*forwards(alone, steps), Loss(), *backwards(alone, steps)]) or ())
    while True:
        lower = descend(moves, at, int(RUNG * at.peak))
        if lower.peak >= at.peak:
            return found
        at = lower
        found.append(evaluator.schedule_of(ascend(moves, at, at.peak).codes))


def _undoing(schedule: Sequence[StepOperation], costs: Costs, start: int, entering: int) -> list[StepOperation]:
    """The same of a stage that starts at some step, without forwards that its backward does not use."""
    moved = [replace(operation, step=operation.step + start) for operation in schedule]
    used = shard_operations(moved, costs, read_later=[cotangent(entering)])
    return [operation for operation in used if isinstance(operation, Forward | Backward)]
