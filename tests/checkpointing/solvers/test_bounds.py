"""Bounds: never above the optimum, tight where they are known to be, and computed exactly."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from checkpointing import costs_of
from checkpointing.schedules import make_plan
from checkpointing.solvers.bounds import least_memory, least_seconds
from checkpointing.solvers.chain import FREE_LOSS, StageChain
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import chain_of, fixed_nbytes, schedule_of
from framework import AdamW
from tests.checkpointing.cases import tokens
from tests.checkpointing.solvers.chains import random_chain, uniform
from tests.checkpointing.solvers.oracle import optimum


def by_all_choices(chain: StageChain, memory: int) -> float:
    """The knapsack over every choice of how each stage is saved, or not."""
    capacity = memory - chain.input_nbytes - chain.nbytes(chain.length)
    best = math.inf
    ways = [(None, *stage.options) for stage in chain.stages]
    for choice in itertools.product(*ways):
        if sum(option.nbytes for option in choice if option is not None) > max(0, capacity):
            continue
        seconds = 0.0
        for stage, option in zip(chain.stages, choice, strict=True):
            fastest = min(o.backward_seconds for o in stage.options)
            seconds += stage.forward_seconds + fastest if option is None else option.backward_seconds
        best = min(best, seconds)
    return chain.forward_seconds + best + chain.loss.options[0].backward_seconds


def test_no_schedule_is_faster_or_smaller() -> None:
    draw, met, tight = random.Random(6), 0, 0
    for _ in range(300):
        chain = random_chain(draw, draw.randint(1, 5), options=draw.randint(1, 3))
        memory = least_memory(chain) + draw.randint(-1, 12)
        best, bound = optimum(chain, memory), least_seconds(chain, memory)
        assert bound <= best
        if memory < least_memory(chain):
            assert best == bound == math.inf
        met += best < math.inf
        tight += best == bound < math.inf
    assert met > 100
    assert tight > 20


def test_it_is_tight_on_four_equal_stages_in_twelve_bytes() -> None:
    chain = uniform(4)
    assert least_seconds(chain, 12) - chain.least_seconds == 1
    assert optimum(chain, 12) == least_seconds(chain, 12)


def test_the_knapsack_is_exact_in_bytes_and_coarser_units_only_lower_it() -> None:
    draw = random.Random(7)
    for _ in range(60):
        chain = random_chain(draw, draw.randint(1, 5), options=2, largest=50)
        memory = least_memory(chain) + draw.randint(0, 150)
        exact = least_seconds(chain, memory)
        assert exact == by_all_choices(chain, memory)
        coarse = [least_seconds(chain, memory, steps) for steps in (1, 3, 20)]
        assert max(coarse) <= exact
        assert min(coarse) >= chain.least_seconds


def test_half_the_memory_of_fifty_equal_layers_costs_a_sixth_of_a_step() -> None:
    layers = uniform(50, nbytes=1, saved=1).stages
    backward = tuple(stage.__class__.simple(1, 1, 1.0, 2.0) for stage in layers)
    chain = StageChain(0, backward, FREE_LOSS)
    # Besides what is saved, δ of the last output.
    half = least_seconds(chain, 25 + 1)
    assert half - chain.least_seconds == 25
    assert (half - chain.least_seconds) / chain.least_seconds == pytest.approx(1 / 6)


def test_the_least_memory_is_that_of_a_backward() -> None:
    chain = uniform(3)  # batch 1, a[1], r[2], δ[2] and δ[1]
    assert least_memory(chain) == 1 + 1 + 3 + 1 + 1
    assert least_seconds(chain, 6) == math.inf
    assert optimum(chain, 6) == math.inf


def test_plans_of_a_model_take_no_less_than_the_bound_at_what_their_chain_needs() -> None:
    case = tokens()
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    chain = chain_of(costs)
    table = PersistentTable(chain, 4 * sum(stage.options[0].nbytes for stage in chain.stages))
    assert table.smallest is not None
    assert least_memory(chain) <= table.smallest
    for memory in (table.smallest, (table.smallest + table.memory) // 2, table.memory):
        found = table.solution(memory)
        assert least_seconds(chain, memory) <= found.seconds
        plan = make_plan(schedule_of(found.actions, costs), costs, "persistent", purpose="gradient")
        assert plan.peak <= fixed_nbytes(costs) + found.peak
