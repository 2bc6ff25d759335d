"""Any valid plan of any chain: the budget is kept, nothing feasible is refused, and the gradient has one bit pattern.

`make test` draws some hundred pairs of a chain and a plan, `make test-memory` 10,000.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from checkpointing import parse_policy
from checkpointing.costs import Costs, costs_of
from checkpointing.executor import Executor
from checkpointing.operations import Backward, Loss
from checkpointing.plan import Plan
from checkpointing.running import Job
from checkpointing.schedules import Schedule, backwards, forwards, make_plan
from framework import (
    LSTM,
    BudgetExceeded,
    CausalAttention,
    Chain,
    CrossEntropy,
    Embedding,
    Key,
    Layer,
    Ledger,
    Linear,
    MeanSquaredError,
    Parameters,
    ReLU,
    Residual,
    Shared,
)
from tests.checkpointing.cases import Case, digest, random_layers

PLANS = 20  # of each chain


def random_case(seed: int) -> Case:
    """A chain of random layers on tiny arrays: vectors, or tokens with attention or an LSTM."""
    draw = random.Random(seed)
    generator, dtype = Key(seed).generator(), draw.choice(("float32", "float64"))
    width, rows = draw.choice((3, 4)), draw.choice((2, 4))
    body: list[Layer] = [*random_layers(draw, width, 2), Linear(width)]
    if draw.random() < 0.3:
        body[0] = Shared(Linear(width), weight="last.weight", bias="last.bias")
    if draw.random() < 0.3:
        x = generator.integers(5, size=(rows, 3)).astype(np.uint8)
        mixing = (
            Chain(Linear(3 * width), CausalAttention(1)) if draw.random() < 0.5 else LSTM(width, draw.randint(1, 4))
        )
        attention = Residual(mixing)
        chain = Chain(Embedding(5, 3, width, dtype=dtype), attention, *body[:-1], last=body[-1])
        return Case(f"tokens {seed}", chain, CrossEntropy(), x, generator.integers(width, size=(rows, 3)))
    x, targets = generator.standard_normal((rows, 5)), generator.standard_normal((rows, width))
    chain = Chain(*([ReLU()] if draw.random() < 0.3 else []), Linear(width), *body[:-1], last=body[-1])
    return Case(f"vectors {seed}", chain, MeanSquaredError(), x.astype(dtype), targets.astype(dtype))


def random_schedule(costs: Costs, draw: random.Random) -> Schedule:
    """A forward pass, then before each backward some runs of steps computed again for no good reason."""
    count = len(costs.steps)
    schedule = [*forwards(costs, range(count)), Loss()]
    for operation in backwards(costs, range(count)):
        assert isinstance(operation, Backward)
        for _ in range(draw.choice((0, 0, 1, 2))):
            first = draw.randrange(count)
            schedule += forwards(costs, range(first, draw.randrange(first, count) + 1))
        schedule.append(operation)
    return schedule


def run_within(case: Case, plan: Plan, parameters: Parameters, block: bool, limit: int) -> tuple[str, Ledger]:
    """Runs a plan under a hard limit and returns the gradient's digest; the ledger counts the parameters, too."""
    ledger = Ledger(limit=limit, record=True)
    held = ledger.count(parameters.flat.nbytes, "parameters", "model")
    executor = Executor(case.chain, case.loss, parameters, ledger, block=block)
    outcome = executor.run(plan, Job(case.loader(plan.shards), Key(2)))
    del held
    assert outcome.gradient is not None
    return digest(outcome.gradient), ledger


def check_chain(seed: int) -> int:
    """Checks `PLANS` random plans of one random chain; returns how many operations they recompute."""
    case, draw = random_case(seed), random.Random(-seed)
    shards = draw.choice((1, 2))
    costs = costs_of(case.chain, case.loss, *case.specs(shards))
    parameters = Parameters.initialize(case.chain.layout(case.specs(shards)[0]), Key(1))
    least = len(make_plan(parse_policy("store-all").schedule(costs), costs, "", "gradient", shards).operations)
    bits, more = set(), 0
    for number in range(PLANS):
        plan = make_plan(random_schedule(costs, draw), costs, "random", "gradient", shards=shards)
        plan.check()
        found, ledger = run_within(case, plan, parameters, block=bool(number % 2), limit=plan.peak)
        assert tuple(ledger.timeline or ()) == plan.simulate().timeline
        assert ledger.peak == plan.peak
        bits.add(found)
        more += len(plan.operations) - least
    assert len(bits) == 1
    with pytest.raises(BudgetExceeded):  # the peak is needed to the byte
        run_within(case, plan, parameters, block=False, limit=plan.peak - 1)
    return more


def test_random_plans_of_random_chains_keep_their_budgets_and_change_no_bit() -> None:
    assert sum(check_chain(seed) for seed in range(15)) > 15 * PLANS


@pytest.mark.memory
@pytest.mark.parametrize("part", range(10), ids="part {}".format)
def test_10_000_random_plans_keep_their_budgets_and_change_no_bit(part: int) -> None:
    chains = 1_000 // PLANS
    more = sum(check_chain(seed) for seed in range(1000 + part * chains, 1000 + (part + 1) * chains))
    print(f"{chains * PLANS:,} pairs of chain and plan, {more:,} operations more than store-all's: no difference")
