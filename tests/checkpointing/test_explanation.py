"""Plans in words, and the memory-time curve."""

from __future__ import annotations

import itertools

import pytest

from checkpointing import Budget, Plan, costs_of, parse_policy, plan_run
from checkpointing.bounds import Bounds
from checkpointing.curve import least_budget, memory_time_curve
from checkpointing.explanation import Explanation
from checkpointing.operations import Drop, Forward, Loss, PlanError
from framework import AdamW
from tests.checkpointing.cases import SELECTIVE, all_cases, mlp, tokens

#: Dtypes change sizes alone.
CASES = {case.name: case for case in all_cases() if case.name.endswith("float32")}


def kept_nbytes(plan: Plan) -> set[int]:
    """What lives when the first loss has run, by the simulator, without what lasts and the loss's cotangent; with the batch, and without."""
    place = next(i for i, operation in enumerate(plan.operations) if isinstance(operation, Loss))
    while isinstance(plan.operations[place + 1], Drop):
        place += 1
    costs = plan.costs
    besides = plan.simulation.static + costs.gradient_nbytes + costs.output(len(costs.steps) - 1).nbytes
    live = plan.simulation.timeline[place].live - besides
    return {live, live - costs.batch.nbytes}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ["every-k:2", "offload", SELECTIVE])
def test_what_is_told_is_what_the_plan_does(name: str, policy: str) -> None:
    plan = CASES[name].plans(policy, shards=2).train[0]
    told = plan.explain()
    forwards = sum(isinstance(operation, Forward) for operation in plan.operations)
    assert told.forwards + sum(each.count for each in told.again) == forwards
    assert told.once + told.stall + sum(each.seconds for each in told.again) == pytest.approx(told.seconds)
    assert told.bound <= told.seconds * (1 + 1e-12)
    assert told.least_memory <= told.peak == plan.peak == told.budget
    assert sum(each.nbytes for each in told.kept) in kept_nbytes(plan)
    if told.larger is not None:
        assert told.larger.budget > told.budget
        assert told.larger.seconds < told.seconds
    if told.smaller is not None:
        assert told.smaller.budget < told.budget


def test_the_words() -> None:
    plan = tokens().plans("every-k:1").train[0]
    text = str(plan.explain())
    lines = text.splitlines()
    assert [line[:13].strip() for line in lines] == [
        "plan", "memory", "keeps", "recomputes", "costs", "more memory", "less memory"
    ]  # fmt: skip
    assert lines[0].endswith("every-k:1; times are modelled: FLOPs at 50 GFLOP/s")
    assert "2 CausalAttention" in lines[3]
    assert "more than if nothing ran twice;" in lines[4]
    assert "a step takes" in lines[5]
    everything = str(tokens().plans("store-all").train[0].explain())
    assert "recomputes  nothing" in everything
    assert "the least there is" in everything
    assert "it buys nothing" in everything


def test_a_plan_is_explained_for_the_budget_it_was_made_for() -> None:
    case = tokens()
    plan = case.plans("sqrt-n").train[0]
    told = plan.explain(plan.peak + 1000)
    assert isinstance(told, Explanation)
    assert told.budget == plan.peak + 1000
    assert told.bound <= plan.explain().bound
    with pytest.raises(ValueError, match=f"the plan's peak, {plan.peak:,} bytes, is above the budget"):
        plan.explain(plan.peak - 1)
    with pytest.raises(PlanError, match="nothing to explain"):
        case.plans("sqrt-n").evaluate[0].explain()


def test_the_plan_with_the_least_memory_has_no_smaller_neighbour() -> None:
    case = tokens()
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    least = least_budget(costs)
    plan = plan_run(costs, budget=least).train[0]
    assert plan.peak == least
    assert plan.explain().smaller is None
    assert "no plan known for less" in str(plan.explain())


@pytest.mark.parametrize(("shards", "world"), [(1, 1), (4, 3)])
def test_along_the_curve_time_falls_and_no_budget_is_passed(shards: int, world: int) -> None:
    case = mlp()
    costs = costs_of(case.chain, case.loss, *case.specs(shards), AdamW())
    told: list[tuple[int, int]] = []
    curve = memory_time_curve(costs, 12, shards, world, progress=lambda *each: told.append(each))
    assert told == [(number, 12) for number in range(1, 13)]
    everything = plan_run(costs, policy=parse_policy("store-all"), shards=shards, world=world)
    assert curve[0].budget == least_budget(costs, shards, world)
    assert curve[-1].budget == everything.peak
    assert curve[-1].seconds == max(plan.simulation.seconds for plan in everything.train)
    assert curve[-1].gap == pytest.approx(0, abs=1e-12)
    for point in curve:
        assert point.peak <= point.budget
        assert point.bound <= point.seconds * (1 + 1e-12)
        chosen = plan_run(costs, policy=Budget(), budget=point.budget, shards=shards, world=world)
        assert chosen.policy.name == point.policy
    for before, after in itertools.pairwise(curve):
        assert before.budget <= after.budget
        assert after.seconds <= before.seconds
        assert after.bound <= before.bound
    assert curve[0].bound == max(Bounds(costs, shards, world, rank).seconds(curve[0].budget) for rank in range(world))
    with pytest.raises(ValueError, match="at least 2 points, but got 1"):
        memory_time_curve(costs, 1)
