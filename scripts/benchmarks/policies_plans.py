"""Our side's plans in the suite `policies`: all that the planner knows of a model, by the bytes that each saves for the backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine_cases import Case
from benchmarks.engine_sides import OPTIMIZER

from checkpointing import Budget, Costs, Plan, StoreAll, costs_of
from checkpointing.bounds import in_buffer
from checkpointing.operations import Backward, Drop, Forward, Load, Loss, Value, output, residuals
from checkpointing.planner.frontier import frontier
from checkpointing.policies import candidates
from checkpointing.schedules import make_plan
from checkpointing.simulation import backward_needs
from checkpointing.timing import measure_times
from framework import Spec
from framework.layers import BATCH


@dataclass(frozen=True)
class Known:
    """A plan, and the bytes that it saves for the backward at its worst moment."""

    plan: Plan
    saved: int

    @property
    def seconds(self) -> float:
        """Of its forwards, losses and backwards, as planned."""
        return self.plan.simulation.seconds


def measured_costs(case: Case) -> Costs:
    """Returns the costs of a case's whole batch as one shard, with times that are measured now, not remembered ones."""
    model = case.model()
    x, targets = (Spec((case.batch, *spec.shape), spec.dtype) for spec in (case.inputs, case.targets))
    costs = costs_of(model.chain, model.loss, x, targets, OPTIMIZER)
    return costs.with_times(measure_times(costs, model.chain, model.loss, threads=1, remember=False))


def known_plans(costs: Costs) -> list[Known]:
    """Returns the plans that budgets get (see `plan_run`), from store-all to the least memory."""
    passing = costs.of_the_pass(shards=1, world=1)
    policies = candidates(passing)
    best = frontier(passing, policies)
    plans = [make_plan(StoreAll().schedule(costs), costs, StoreAll.name)]
    for point in reversed(best.points):
        name = Budget.name if point.origin is None else policies[point.origin].name
        plan = make_plan(best.schedule(point), costs, name)
        if plan.operations != plans[0].operations and plan.peak < plans[-1].peak:  # else the step's end is the peak
            plans.append(plan)
    return [Known(plan, saved_nbytes(plan)) for plan in plans]


def fastest_within(known: Sequence[Known], nbytes: int) -> Known | None:
    """Returns the fastest plan that saves at most so many bytes; None if there is none."""
    return min((each for each in known if each.saved <= nbytes), key=lambda each: each.seconds, default=None)


def saved_nbytes(plan: Plan) -> int:
    """Returns the most bytes that a plan of one shard saves for the backward at once, as PyTorch's saved-tensor hooks count theirs.

    Saved is an output (the batch, too) or residuals from where it is made to where it is dropped, if a Backward reads it, or a Forward after a
    Loss or Backward that came between, which computes again from it. What only passes from one forward to the next is on its way, on
    either side. A buffer counts once, however many values name it.

    Raises:
        ValueError: The plan has several shards, or holds values on disk.
    """
    if plan.shards != 1 or plan.simulation.file_nbytes:
        raise ValueError(
            f"a plan of one shard without a disk is expected, but it has {plan.shards} and is {plan.policy}"
        )
    costs, lives = plan.costs, _lives(plan)
    begins, ends = ({} for _ in range(2))
    for life in lives:
        if life.saved:
            begins.setdefault(life.made, []).append(life.value)
            ends.setdefault(life.dropped, []).append(life.value)
    names: Counter[Value] = Counter()
    live = most = 0
    for place, operation in enumerate(plan.operations):
        for value in ends.get(place, ()):
            names[buffer := in_buffer(costs, value)] -= 1
            live -= 0 if names[buffer] else _nbytes(costs, buffer)
        for value in begins.get(place, ()):
            live += 0 if names[buffer := in_buffer(costs, value)] else _nbytes(costs, buffer)
            names[buffer] += 1
        most = max(most, live + (costs.loss.own_nbytes if isinstance(operation, Loss) else 0))
    return most


@dataclass
class _Life:
    """A value from the place where it is made to the one from which it no longer counts.

    Attributes:
        turn: How many Losses and Backwards came before it was made.
        saved: Whether a backward reads it, or what is computed again for one.
    """

    value: Value
    made: int
    turn: int
    dropped: int = 0
    saved: bool = False


def _lives(plan: Plan) -> list[_Life]:
    costs, turn = plan.costs, 0
    found: list[_Life] = []
    alive: dict[Value, _Life] = {}

    def make(value: Value) -> None:
        alive[value] = _Life(value, place, turn)
        found.append(alive[value])

    for place, operation in enumerate(plan.operations):
        match operation:
            case Load():
                make(output(BATCH))
            case Forward(step, keep):
                inputs = [alive[output(source)] for source in costs.steps[step].inputs]
                for life in inputs:
                    life.saved |= life.turn < turn
                if place in plan.simulation.in_place:
                    inputs[0].dropped = place  # the output lies in its place
                make(output(step))
                if keep is not None:
                    make(residuals(step))
            case Backward(step):
                for value in backward_needs(costs, step):
                    alive[value].saved = True
                turn += 1
            case Loss():
                turn += 1
            case Drop(value) if value.kind in "ar":
                life = alive.pop(value)
                life.dropped = life.dropped or place
    return found


def _nbytes(costs: Costs, value: Value) -> int:
    return costs.output(value.at).nbytes if value.kind == "a" else costs.steps[value.at].footprint.own_nbytes
