"""Lower bounds: no plan goes below them, and they are not empty words."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from checkpointing import Costs, costs_of, parse_policy, plan_run
from checkpointing.bound_items import Items, in_buffer, nbytes_of
from checkpointing.bounds import Bounds
from checkpointing.costs import Seconds, Times
from checkpointing.operations import Value, output
from checkpointing.schedules import make_plan
from checkpointing.simulation import backward_needs
from framework import AdamW, Chain, Embedding, LayerNorm, Linear, MeanSquaredError, Residual, Spec, Tanh, build
from framework.layers import BATCH
from tests.checkpointing.cases import POLICIES, Case, all_cases
from tests.checkpointing.test_random_plans import random_case, random_schedule

#: Dtypes change sizes alone.
CASES = {case.name: case for case in all_cases() if case.name.endswith("float32")}
#: Sums of the same times in another order.
ROUNDING = 1 + 1e-12


def drawn_times(costs: Costs, draw: random.Random) -> Costs:
    steps = tuple(Seconds(draw.random() ** 3, draw.random()) for _ in costs.steps)
    return replace(costs, times=Times("drawn", steps, Seconds(draw.random(), draw.random())))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("shards", "world"), [(1, 1), (8, 3)])
def test_no_policy_goes_below_the_bounds(name: str, shards: int, world: int) -> None:
    case = CASES[name]
    modelled = costs_of(case.chain, case.loss, *case.specs(shards), AdamW())
    for costs in (modelled, drawn_times(modelled, random.Random(name))):
        for policy in POLICIES:
            for plan in plan_run(costs, policy=parse_policy(policy), shards=shards, world=world).train:
                bounds = Bounds(costs, shards, world, plan.rank, disk=plan.simulation.disk_nbytes > 0)
                assert bounds.memory <= plan.peak
                assert bounds.seconds(plan.peak) <= plan.simulation.seconds * ROUNDING


def test_no_random_plan_goes_below_the_bounds() -> None:
    for seed in range(60):
        case, draw = random_case(seed), random.Random(seed)
        shards = draw.choice((1, 2))
        costs = drawn_times(costs_of(case.chain, case.loss, *case.specs(shards)), draw)
        bounds = Bounds(costs, shards)
        for _ in range(20):
            plan = make_plan(random_schedule(costs, draw), costs, "random", "gradient", shards)
            assert bounds.memory <= plan.peak
            assert bounds.seconds(plan.peak) <= plan.simulation.seconds * ROUNDING


@pytest.mark.parametrize("model", ["byte-gpt-tiny", "mlp-deep", "lenet"])
def test_the_bound_is_store_alls_time_where_it_fits_and_rises_as_the_budget_falls(model: str) -> None:
    built = build(model)
    data = built.dataset(())
    x, targets = (Spec((8, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
    costs = costs_of(built.chain, built.loss, x, targets, AdamW())
    everything = plan_run(costs).train[0]
    bounds = Bounds(costs)
    assert bounds.seconds(everything.peak) == pytest.approx(everything.simulation.seconds, rel=1e-12)
    least = bounds.memory
    budgets = [least + (everything.peak - least) * part // 20 for part in range(20, -1, -1)]
    times = [bounds.seconds(budget) for budget in budgets]
    assert all(a <= b for a, b in itertools.pairwise(times))
    assert times[-1] > 1.03 * times[0]
    assert bounds.seconds(least - 1) == math.inf


def items_by_definition(costs: Costs, readers: Sequence[int], held: Sequence[Value]) -> list[tuple[int, float]]:
    """What `Items` gives, worked out for one moment alone."""
    surely = {in_buffer(costs, value) for value in held}
    read: dict[int, set[Value]] = {}
    for reader in readers:
        for value in (in_buffer(costs, value) for value in backward_needs(costs, reader)):
            if value not in surely and value.at != BATCH:
                read.setdefault(value.at, set()).add(value)
    items, charged = [], set()
    for step, values in read.items():
        again, nbytes = [step], sum(nbytes_of(costs, value) for value in values)
        for made in again if nbytes else ():
            for source in costs.steps[made].inputs:
                aliases = source == BATCH or costs.steps[source].footprint.output_aliases_input
                if aliases or source in read or source in charged or output(source) in surely:
                    continue
                if costs.output(source).nbytes >= nbytes:
                    charged.add(source)
                    again.append(source)
        if nbytes:
            items.append((nbytes, math.fsum(costs.seconds(each).forward for each in again)))
    return items


def drawn_costs() -> Iterator[Costs]:
    for name, case in CASES.items():
        yield drawn_times(costs_of(case.chain, case.loss, *case.specs(1)), random.Random(name))
    for seed in range(60):
        case = random_case(seed)
        yield drawn_times(costs_of(case.chain, case.loss, *case.specs(1)), random.Random(seed))


def test_what_goes_on_from_moment_to_moment_is_what_each_moment_is_by_itself() -> None:
    charged = 0
    for costs in drawn_costs():
        trained = [number for number, step in enumerate(costs.steps) if step.trains]
        found = Items(costs)
        for place, step in enumerate([*trained, None]):
            held = [] if step is None else backward_needs(costs, step)
            found.hold(held)
            expected = items_by_definition(costs, trained[:place], held)
            assert list(zip(*(array.tolist() for array in found.arrays()), strict=True)) == expected
            single = {costs.seconds(number).forward for number in range(len(costs.steps))}
            charged += sum(seconds not in single for _, seconds in expected)
            if step is not None:
                found.read(step)
    assert charged > 100  # what runs again with others is among them


def test_deep_chains_are_worked_out_in_little_more_than_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    x, targets = np.zeros((2, 6), np.uint8), np.zeros((2, 6, 8), np.float32)
    worked_out = []
    plainly = Items._work_out
    monkeypatch.setattr(Items, "_work_out", lambda items, *entry: worked_out.append(entry) or plainly(items, *entry))
    for blocks in (10, 40):
        made = [Residual(Chain(LayerNorm(), Linear(16), Tanh(), Linear(8))) for _ in range(blocks)]
        case = Case("deep", Chain(Embedding(5, 6, 8), *made, Linear(8)), MeanSquaredError(), x, targets)
        costs, before = costs_of(case.chain, case.loss, *case.specs(1)), len(worked_out)
        Bounds(costs)
        assert len(worked_out) - before < 8 * len(costs.steps)


def equal_stages(count: int, seconds: Seconds) -> Costs:
    """Stages of one Tanh, which keeps its output, of which each has equal times, after a first one without a backward."""
    x = np.zeros((4000, 25), np.float32)
    case = Case("equal", Chain(Linear(25), *[Tanh() for _ in range(count)]), MeanSquaredError(), x, x)
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    return replace(costs, times=Times("given", (seconds,) * (count + 1), Seconds(0.0, 0.0)))


def test_the_bound_is_near_where_equal_stages_are_dropped_once() -> None:
    costs = equal_stages(9, Seconds(1.0, 2.0))
    for policy in ("every-k:2", "every-k:3", "sqrt-n"):
        plan = plan_run(costs, policy=parse_policy(policy)).train[0]
        again = sum(type(o).__name__ == "Forward" for o in plan.operations) - len(costs.steps)
        bound = Bounds(costs).seconds(plan.peak) - 3.0 * len(costs.steps)
        # At the peak of such a plan some values of a segment lie beside what is kept, and could have been kept instead.
        assert 0 < bound <= again < bound + 5


def test_a_sum_that_is_not_kept_takes_the_branch_before_it_along() -> None:
    """Tanh reads its output in the backward; the sum before it and the branch that this adds are read by none, and run again with it."""
    x, targets = np.zeros((2, 6), np.uint8), np.zeros((2, 6, 8), np.float32)
    blocks = [Residual(Chain(Tanh(), Linear(8))) for _ in range(6)]
    case = Case("sums", Chain(Embedding(5, 6, 8), *blocks, Linear(8)), MeanSquaredError(), x, targets)
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    given = tuple(Seconds(100.0 if step.kind == "Linear" else 1.0, 0.0) for step in costs.steps)
    costs = replace(costs, times=Times("given", given, Seconds(0.0, 0.0)))
    bounds, once = Bounds(costs), sum(seconds.forward for seconds in given)
    room = bounds.memory - sum(costs.static.values()) - costs.gradient_nbytes
    kept = room // costs.output(0).nbytes - 1  # beside the loss's cotangent
    # Of seven outputs that backwards read, those with room are kept; the first costs 2 to make again, the next 102.
    assert kept == 3
    assert bounds.seconds(bounds.memory) - once > 102.0 * (7 - kept - 2)


def test_values_are_held_whole_or_not_at_all() -> None:
    """Of nine equal values whole ones run again, also where there is room for a part of one more."""
    costs = equal_stages(9, Seconds(1.0, 2.0))
    bounds, everything = Bounds(costs), plan_run(costs).peak
    once, part = bounds.seconds(everything), costs.output(1).nbytes // 7
    again = [bounds.seconds(budget) - once for budget in range(bounds.memory, everything + 1, part)]
    assert len(set(again)) > 5
    assert all(seconds == round(seconds) for seconds in again)
