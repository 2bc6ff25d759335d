"""The planner: exact in bytes, never worse than a policy, and with more memory never slower."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from checkpointing import InfeasibleBudget, Plan, RunPlans, costs_of, parse_policy, plan_run
from checkpointing.bounds import Bounds
from checkpointing.costs import Costs
from checkpointing.operations import Backward, Forward, Loss
from checkpointing.planner.evaluation import Evaluation, Evaluator
from checkpointing.planner.frontier import Point, _frontier, frontier
from checkpointing.planner.moves import Moves, ascend, descend
from checkpointing.planner.units import cut, steps_for
from checkpointing.policies import candidates
from checkpointing.schedules import Schedule, backwards, forwards, make_plan
from checkpointing.simulation import backward_needs
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import chain_of, schedule_of
from framework import AdamW, Chain, Key, Layer, Linear, MeanSquaredError, Parameters, Spec, build
from framework.layers import BATCH, Footprint
from framework.models import MODELS
from tests.checkpointing.cases import IN_MEMORY, all_cases
from tests.checkpointing.test_random_plans import random_case, random_schedule, run_within

CASES = {case.name: case for case in all_cases()}

#: Models of which a hundred plans take a second or two.
SMALL = ("mlp-small", "lenet", "byte-gpt-tiny")

#: Of a shard: its input and targets, by the model's default data.
ROWS = 4
SHAPES = {
    "mlp": ((64,), (), np.int64),
    "lenet": ((1, 16, 16), (), np.int64),
    "resnet": ((3, 32, 32), (), np.int64),
    "unet": ((1, 16, 16), (1, 16, 16), np.float32),
}


def named(model: str) -> Costs:
    """The costs of a model of `MODELS` for a small batch."""
    built = build(model)
    family = model.split("-")[0]
    if family == "byte":
        window = built.window or {"tiny": 128, "small": 256, "medium": 512, "large": 1024}[model.split("-")[2]]
        x = targets = Spec.of((1, window), np.uint8)
    else:
        shape, of_targets, dtype = SHAPES[family]
        x, targets = Spec.of((ROWS, *shape), np.float32), Spec.of((ROWS, *of_targets), dtype)
    return costs_of(built.chain, built.loss, x, targets, AdamW())


def require_the_simulators(costs: Costs, schedules: list[Schedule]) -> int:
    """Asserts that the fast evaluation equals the simulator's, operation by operation; returns how many were compared."""
    evaluator = Evaluator(costs)
    for schedule in schedules:
        plan = make_plan(schedule, costs, "", "gradient")
        codes = evaluator.codes_of(schedule)
        assert codes is not None
        found = evaluator.evaluate(codes)
        beside = costs.gradient_nbytes + sum(costs.static.values())
        moments = zip(plan.operations, plan.simulation.timeline, strict=True)
        expected = [m.inside - beside for o, m in moments if isinstance(o, Forward | Loss | Backward)]
        assert found.inside == expected
        assert found.peak + beside == plan.peak
        assert found.seconds == plan.simulation.seconds
        assert make_plan(evaluator.schedule_of(found.codes), costs, "", "gradient").operations == plan.operations
    return len(schedules)


@pytest.mark.parametrize("name", CASES)
def test_the_fast_evaluation_is_the_simulators(name: str) -> None:
    case, draw = CASES[name], random.Random(3)
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    known = [parse_policy(policy).schedule(costs) for policy in IN_MEMORY]
    assert require_the_simulators(costs, [*known, *(random_schedule(costs, draw) for _ in range(10))]) > 10


def test_what_moves_values_to_disk_is_not_evaluated() -> None:
    costs = named("byte-gpt-tiny")
    assert Evaluator(costs).codes_of(parse_policy("offload").schedule(costs)) is None


def test_the_fast_evaluation_is_the_simulators_on_random_chains() -> None:
    for seed in range(25):
        case, draw = random_case(seed), random.Random(seed)
        costs = costs_of(case.chain, case.loss, *case.specs(1))
        require_the_simulators(costs, [random_schedule(costs, draw) for _ in range(6)])


def budgets_between(plans: Callable[[int], RunPlans], most: int, count: int) -> list[RunPlans]:
    """The plans at evenly spaced budgets from the least that can be met to all that StoreAll takes."""
    with pytest.raises(InfeasibleBudget) as caught:
        plans(1)
    least = caught.value.smallest
    found = []
    for number in range(count):
        budget = least + (most - least) * number // (count - 1)
        found.append(plans(budget))
        assert found[-1].peak <= budget
    assert found[0].peak == least
    return found


def check_law(model: str, count: int) -> None:
    """Checks at some budgets that time never rises with them, and that no policy is better."""
    costs = named(model)
    known = [plan_run(costs, policy=policy) for policy in candidates(costs)]
    found = budgets_between(lambda budget: plan_run(costs, budget=budget), known[0].peak, count)
    seconds = [plans.train[0].simulation.seconds for plans in found]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == known[0].train[0].simulation.seconds
    assert found[0].peak <= min(plans.peak for plans in known)
    for plans in known:
        best = plan_run(costs, budget=plans.peak)
        assert best.train[0].simulation.seconds <= plans.train[0].simulation.seconds


@pytest.mark.parametrize("model", SMALL)
def test_time_never_rises_with_the_budget_and_no_policy_is_better(model: str) -> None:
    check_law(model, 100)


@pytest.mark.memory
@pytest.mark.parametrize("model", [model for model in MODELS if model not in SMALL])
def test_time_never_rises_with_the_budget_of_the_other_models(model: str) -> None:
    check_law(model, 100)


def check_persistent(costs: Costs, steps: int) -> int:
    """Checks that no schedule of the persistent program is faster than ours in the memory that it takes; returns how many there are."""
    found, evaluator, count = frontier(costs, candidates(costs)), Evaluator(costs), 0
    for stages in (costs, cut(costs)):
        chain = chain_of(stages)
        table = PersistentTable(chain, chain.input_nbytes + 2 * found.store_all, steps)
        for memory in table.changes:
            codes = evaluator.codes_of(schedule_of(table.actions(memory), stages))
            assert codes is not None
            theirs = evaluator.evaluate(codes)
            ours = found.within(theirs.peak)
            assert ours is not None
            assert ours.seconds <= theirs.seconds
            count += 1
    return count


@pytest.mark.parametrize("model", [*SMALL, "byte-lstm-small"])
def test_no_persistent_schedule_is_faster(model: str) -> None:
    assert check_persistent(named(model), 1000) > 5


def test_no_persistent_schedule_of_a_random_chain_is_faster() -> None:
    cases = [random_case(seed) for seed in range(25)]
    assert sum(check_persistent(costs_of(c.chain, c.loss, *c.specs(1)), 1000) for c in cases) > 100


@pytest.mark.memory
@pytest.mark.parametrize("model", [model for model in MODELS if model not in (*SMALL, "byte-lstm-small")])
def test_no_persistent_schedule_of_the_other_models_is_faster(model: str) -> None:
    # Of the largest model there is time for schedules at as many amounts of memory alone as the search itself looks at.
    costs = named(model)
    assert check_persistent(costs, steps_for(cut(costs)) if model == "byte-gpt-large" else 1000) > 5


@pytest.mark.parametrize(
    "name", [name if name.endswith("float32") else pytest.param(name, marks=pytest.mark.memory) for name in CASES]
)
def test_plans_of_budgets_change_no_bit(name: str) -> None:
    case = CASES[name]
    everything = case.plans("store-all", shards=2)
    found = budgets_between(lambda budget: case.plans(budget=budget, shards=2), everything.peak, 6)
    results = {case.bits_after(plans.train[0]) for plans in found}
    assert results == {case.bits_after(everything.train[0])}


def check_budgets(seed: int, count: int) -> int:
    """Checks the plans of some budgets of a random chain, executed under hard limits; returns how many recompute something."""
    case, draw = random_case(seed), random.Random(seed)
    shards = draw.choice((1, 2))
    costs = costs_of(case.chain, case.loss, *case.specs(shards))
    parameters = Parameters.initialize(case.chain.layout(case.specs(shards)[0]), Key(1))
    everything = plan_run(costs, shards=shards, purpose="gradient")
    found = budgets_between(
        lambda budget: plan_run(costs, budget=budget, shards=shards, purpose="gradient"), everything.peak, count
    )
    bits = set()
    for number, plans in enumerate(found):
        plan = plans.train[0]
        plan.check()
        digest, ledger = run_within(case, plan, parameters, block=bool(number % 2), limit=plan.peak)
        assert ledger.peak == plan.peak
        bits.add(digest)
    assert len(bits) == 1
    return sum(len(plans.train[0].operations) > len(everything.train[0].operations) for plans in found)


def test_plans_of_budgets_of_random_chains_run_within_them() -> None:
    assert sum(check_budgets(seed, 6) for seed in range(40)) > 100


@pytest.mark.memory
@pytest.mark.parametrize("part", range(10), ids="part {}".format)
def test_10_000_plans_of_budgets_of_random_chains_run_within_them(part: int) -> None:
    again = sum(check_budgets(seed, 10) for seed in range(2000 + 100 * part, 2100 + 100 * part))
    print(f"1,000 pairs of chain and budget, {again:,} of which recompute: every peak as planned, no bit different")


@pytest.mark.parametrize("model", ["mlp-deep", "byte-gpt-tiny", "unet"])
def test_a_chain_that_is_taken_for_a_long_one_is_planned_as_well(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = named(model)
    least = frontier(costs, candidates(costs)).least
    monkeypatch.setattr("checkpointing.planner.frontier.SHORT", 0)
    monkeypatch.setattr("checkpointing.planner.frontier.MIDDLE", 0)
    _frontier.cache_clear()
    found, evaluator = frontier(costs, candidates(costs)), Evaluator(costs)
    _frontier.cache_clear()
    assert found.least <= least * 1.02
    times = [point.time for point in found.points]
    assert times == sorted(times, reverse=True)
    for policy in candidates(costs):
        codes = evaluator.codes_of(policy.schedule(costs))
        assert codes is not None
        theirs = evaluator.evaluate(codes)
        ours = found.within(theirs.peak)
        assert ours is not None
        assert ours.time <= theirs.time


def test_an_evaluation_ends_where_a_limit_is_passed() -> None:
    for model in ("byte-gpt-tiny", "lenet"):  # of which the second has a view
        costs = named(model)
        evaluator = Evaluator(costs)
        codes = evaluator.codes_of(parse_policy("every-k:2").schedule(costs))
        assert codes is not None
        whole = evaluator.evaluate(codes)
        assert evaluator.evaluate(codes, whole.peak) == whole
        for limit in (whole.peak - 1, whole.peak // 2, 0):
            assert limit < evaluator.evaluate(codes, limit).peak <= whole.peak


def lenets_points() -> str:
    costs = named("lenet")
    return repr([(point.peak, point.seconds, point.codes) for point in frontier(costs, candidates(costs)).points])


def test_plans_do_not_depend_on_how_sets_are_ordered() -> None:
    """Each rank and each run plans for itself, and hashes of strings differ from process to process."""
    program = f"from {__name__} import lenets_points; print(lenets_points())"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == lenets_points()


def test_a_point_of_the_frontier_is_found_again_by_its_peak() -> None:
    costs = named("byte-gpt-tiny")
    found = frontier(costs, candidates(costs))
    peaks = [point.peak for point in found.points]
    assert peaks == sorted(peaks)
    for point in found.points:
        assert found.within(point.peak) is point
    assert found.within(found.least - 1) is None
    assert frontier(costs, candidates(costs)) is found
    assert isinstance(found.points[0], Point)


def evaluated(moves: Moves, policy: str) -> Evaluation:
    codes = moves.evaluator.codes_of(parse_policy(policy).schedule(moves.evaluator.costs))
    assert codes is not None
    return moves.evaluator.evaluate(codes)


def test_descending_and_ascending_stay_within_the_limit_and_the_second_saves_time() -> None:
    costs = named("byte-gpt-small")
    moves = Moves(Evaluator(costs))
    start, every = (evaluated(moves, policy) for policy in ("store-all", "every-k:1"))
    limit = start.peak * 6 // 10
    low = descend(moves, start, limit)
    assert low.peak <= limit
    assert low.seconds > start.seconds
    high = ascend(moves, low, limit)
    assert high.peak <= limit
    assert low.seconds >= high.seconds
    # From a plan that recomputes every stage, what is kept again saves a part of that.
    more = ascend(moves, every, limit)
    assert every.peak < more.peak <= limit
    assert more.seconds < every.seconds


def test_a_transformer_at_three_quarters_of_its_memory_recomputes_no_product() -> None:
    costs = named("byte-gpt-small")
    everything = plan_run(costs)
    lasting = everything.peak - everything.activation_nbytes
    plan = plan_run(costs, budget=lasting + everything.activation_nbytes * 3 // 4).train[0]
    again = [operation.step for operation in plan.operations if isinstance(operation, Forward)]
    twice = {step for step in again if again.count(step) > 1}
    assert twice
    assert {costs.steps[step].kind for step in twice}.isdisjoint({"Linear", "CausalAttention"})


@pytest.mark.parametrize(
    ("model", "gap"), [("byte-gpt-tiny", 0.015), ("byte-gpt-small", 0.005), ("byte-gpt-medium", 0.005)]
)
def test_plans_of_transformers_are_near_the_lower_bound_of_any_plan(model: str, gap: float) -> None:
    costs = named(model)
    everything, bounds = plan_run(costs), Bounds(costs)
    lasting = everything.peak - everything.activation_nbytes
    for percent in range(30, 100, 5):
        budget = lasting + everything.activation_nbytes * percent // 100
        seconds = plan_run(costs, budget=budget).train[0].simulation.seconds
        assert 1 <= seconds / bounds.seconds(budget) <= 1 + gap


@dataclass(frozen=True)
class Cosine(Layer):
    """Its VJP reads the input."""

    def footprint(self, x: Spec, training: bool = True) -> Footprint:
        return Footprint(output=x, needs_input=(True,), forward_flops=x.size, backward_flops=2 * x.size)


def lazily(costs: Costs, kept: set[int]) -> Schedule:
    """Keeps the outputs of some steps and makes all else again just before the backward that reads it."""
    schedule, held = [*forwards(costs, range(len(costs.steps))), Loss()], {BATCH, *kept}

    def make(step: int) -> None:
        if step not in held:
            for source in costs.steps[step].inputs:
                make(source)
            schedule.append(Forward(step))
            held.add(step)

    for operation in backwards(costs, range(len(costs.steps))):
        for value in backward_needs(costs, operation.step):
            make(value.at)
        schedule.append(operation)
    return schedule


def test_no_more_products_are_recomputed_than_in_functorchs_memory_budget_experiment() -> None:
    """Five 512 x 512 products, each followed by a cosine, budgets in tenths of the ten arrays that are saved.

    PyTorch's test/functorch/test_ac.py, test_matmul_even_chain: with b <= 5 tenths its plan saves the outputs of b products
    and computes 5 - b again; from there on none. Which ones it saves the test leaves open, and its budget is of what is saved between
    forward and backward. Here budgets are of the peak, so each of its plans is simulated, and ours gets that plan's peak.
    """
    chain = Chain(Cosine(), *(layer for _ in range(5) for layer in (Linear(512, bias=False), Cosine())))
    x = Spec.of((512, 512), np.float32)
    costs = costs_of(chain, MeanSquaredError(), x, x)
    products = [number for number, step in enumerate(costs.steps) if step.kind == "Linear"]

    def computed_again(plan: Plan) -> int:
        found = [o.step for o in plan.operations if isinstance(o, Forward) and o.step in products]
        return len(found) - len(products)

    for tenths in range(6):
        for kept in combinations(products, tenths):
            theirs = make_plan(lazily(costs, set(kept)), costs, "", "gradient")
            assert computed_again(theirs) == 5 - tenths
            saved = theirs.simulation.timeline[theirs.operations.index(Loss())].live
            held = theirs.simulation.static + costs.gradient_nbytes + 3 * x.nbytes  # and batch, targets and a cotangent
            assert saved == held + tenths * x.nbytes
            assert computed_again(plan_run(costs, budget=theirs.peak, purpose="gradient").train[0]) <= 5 - tenths
