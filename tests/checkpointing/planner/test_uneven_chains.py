"""Budgets of random chains of 2 to 40 stages with sizes and times of all kinds: every plan is valid, within its budget, and runs within it.

`make test` draws a few chains, `make soak` 10,000.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from checkpointing import Costs, costs_of, plan_run
from checkpointing.choices import Setting, choices
from checkpointing.costs import Seconds, Times
from checkpointing.operations import Forward
from checkpointing.plan import Plan
from framework import Chain, Dropout, Key, Layer, Linear, MeanSquaredError, Parameters, Residual
from tests.checkpointing.cases import NORMALIZED, OF_INPUT, OF_OUTPUT, Case
from tests.checkpointing.test_random_plans import run_within

WIDTHS = (1, 2, 3, 5, 8, 13, 40)


def uneven(seed: int) -> tuple[Case, Costs]:
    """Products of any width, blocks with a wide inside, of which a plan may keep a part, and layers that need input, output or a mask."""
    draw, generator = random.Random(seed), Key(seed).generator()
    length, width = draw.randint(2, 40), draw.choice(WIDTHS)
    layers: list[Layer] = [Linear(width)]
    for _ in range(length - 2):
        kind = draw.randrange(8)
        if kind < 3:
            width = draw.choice(WIDTHS)
            layers.append(Linear(width, bias=draw.random() < 0.5))
        elif kind == 3:
            layers.append(Residual(Chain(Linear(draw.choice((1, 4, 16, 60))), draw.choice(OF_INPUT), Linear(width))))
        else:
            some = draw.choice(OF_INPUT), draw.choice(OF_OUTPUT), draw.choice(NORMALIZED), Dropout(0.3)
            layers.append(some[kind - 4])
    x, targets = (generator.standard_normal((2, size)).astype("float32") for size in (draw.choice(WIDTHS), 4))
    case = Case(f"uneven {seed}", Chain(*layers, Linear(4)), MeanSquaredError(), x, targets)
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    times = tuple(Seconds(draw.uniform(0.1, 9), draw.uniform(0.1, 9)) for _ in costs.steps)
    return case, costs.with_times(Times("drawn", times, Seconds(0.1, 0.2)))


def check(seed: int, budgets: int) -> tuple[int, int]:
    """Checks plans of a chain at budgets from the least to the most; returns its stages, and how many plans recompute something."""
    case, costs = uneven(seed)
    most = plan_run(costs, purpose="gradient").peak
    least = choices(Setting(costs, purpose="gradient")).least
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    bits, seconds, recomputing = set(), np.inf, 0
    for number in range(budgets):
        budget = least + (most - least) * number // (budgets - 1)
        plan = plan_run(costs, budget=budget, purpose="gradient").train[0]
        plan.check()
        assert plan.simulate().peak == plan.peak <= budget
        assert plan.simulation.seconds <= seconds
        seconds = plan.simulation.seconds
        found, ledger = run_within(case, plan, parameters, block=bool(number % 2), limit=budget)
        assert ledger.peak == plan.peak
        bits.add(found)
        recomputing += forwards(plan) > len(costs.steps)
    assert len(bits) == 1
    return costs.stages, recomputing


def forwards(plan: Plan) -> int:
    return sum(isinstance(operation, Forward) for operation in plan.operations)


def test_plans_of_uneven_chains_run_within_their_budgets() -> None:
    found = [check(seed, 4) for seed in range(12)]
    assert min(stages for stages, _ in found) < 10
    assert max(stages for stages, _ in found) > 30
    assert sum(recomputing for _, recomputing in found) > 24


@pytest.mark.soak
@pytest.mark.parametrize("part", range(20), ids="part {}".format)
def test_plans_of_10_000_uneven_chains_run_within_their_budgets(part: int) -> None:
    found = [check(seed, 4) for seed in range(1000 + 500 * part, 1500 + 500 * part)]
    assert {stages for stages, _ in found} == set(range(2, 41))
    print(f"500 chains at 4 budgets, {sum(again for _, again in found):,} plans recompute: every one within its budget")
