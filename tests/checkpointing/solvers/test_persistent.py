"""The persistent DP: the optimum of its class, within its memory, and what lies beyond its class."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest

from checkpointing import costs_of
from checkpointing.schedules import make_plan
from checkpointing.solvers.chain import Option, Stage, StageChain, StageForward
from checkpointing.solvers.persistent import PersistentTable, persistent
from checkpointing.solvers.stages import chain_of, fixed_nbytes, schedule_of
from framework import AdamW
from tests.checkpointing.cases import all_cases
from tests.checkpointing.solvers.chains import least_held, random_chain, uniform
from tests.checkpointing.solvers.oracle import optimum

CASES = {case.name: case for case in all_cases()}


def random_memory(draw: random.Random, chain: StageChain) -> int:
    everything = sum(max(o.nbytes for o in stage.options) for stage in chain.stages)
    return chain.input_nbytes + draw.randint(5, everything + 15)


@pytest.mark.parametrize(("length", "memory", "extra", "optimal"), [(4, 12, 2, 1), (6, 15, 3, 2), (7, 15, 4, 3)])
def test_uniform_chains_on_which_a_value_dropped_early_is_better(
    length: int, memory: int, extra: int, optimal: int
) -> None:
    chain = uniform(length)
    assert persistent(chain, memory).seconds - chain.least_seconds == extra
    assert optimum(chain, memory) - chain.least_seconds == optimal


def test_it_is_the_optimum_of_its_class_and_never_below_that_of_all_schedules() -> None:
    draw = random.Random(2)
    feasible = beaten = 0
    for _ in range(400):
        chain = random_chain(draw, draw.randint(1, 5), options=draw.randint(1, 3))
        memory = random_memory(draw, chain)
        table = PersistentTable(chain, memory)
        assert table.seconds() == optimum(chain, memory, persistent=True)
        best = optimum(chain, memory)
        assert table.seconds() >= best
        feasible += best < math.inf
        beaten += best < table.seconds() < math.inf
    assert feasible > 150
    assert beaten > 10  # the class is too small


def test_every_schedule_stays_within_its_memory_and_takes_the_time_of_the_table() -> None:
    draw = random.Random(3)
    feasible = 0
    for _ in range(300):
        chain = random_chain(draw, draw.randint(2, 40), options=3, largest=draw.choice((5, 1000)))
        memory = random_memory(draw, chain)
        table = PersistentTable(chain, memory, steps=draw.choice((40, 150, 10**6 if memory < 500 else 200)))
        if table.seconds() == math.inf:
            continue
        feasible += 1
        found = table.solution()
        held, seconds = least_held(chain, found.actions)
        assert held <= found.peak <= memory
        assert found.seconds == pytest.approx(seconds, rel=1e-12) == pytest.approx(table.seconds(), rel=1e-12)
    assert feasible > 150


def test_one_table_answers_for_every_smaller_memory_and_time_never_rises_with_it() -> None:
    chain = random_chain(random.Random(4), 9, options=2)
    top = chain.input_nbytes + 80
    table = PersistentTable(chain, top)
    times = [table.seconds(memory) for memory in range(top + 1)]
    assert times == [persistent_seconds(chain, memory) for memory in range(top + 1)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == chain.least_seconds
    smallest = table.smallest
    assert smallest is not None
    assert times[smallest] < math.inf == times[smallest - 1]
    assert table.solution(smallest).peak <= smallest


def persistent_seconds(chain: StageChain, memory: int) -> float:
    return PersistentTable(chain, memory).seconds() if memory >= chain.input_nbytes else math.inf


def test_the_cotangent_of_a_stages_output_counts_in_its_backward() -> None:
    # Without δ[1] beside δ[0] and r[1], 13 bytes would do.
    chain = StageChain(4, (Stage.simple(5, 5, 1.0, 1.0),))
    assert PersistentTable(chain, 17).seconds() == math.inf
    assert PersistentTable(chain, 18).seconds() == chain.least_seconds


def test_a_stage_is_saved_as_the_option_that_the_memory_allows() -> None:
    options = (Option(10, 1.0, name="all"), Option(6, 3.0, name="cheap steps again"), Option(2, 6.0, name="output"))
    chain = StageChain(1, (Stage(2, 5.0, options),) * 4)
    table = PersistentTable(chain, 60)
    assert table.seconds() == chain.least_seconds
    times = [table.seconds(memory) - chain.least_seconds for memory in range(60)]
    # As the memory shrinks, stages come down one after the other: first to the option that costs 2 more, never yet to a forward of 5.
    assert sorted(set(times))[:5] == [0.0, 2.0, 4.0, 6.0, 8.0]
    plan = table.solution(next(memory for memory in range(60) if times[memory] == 4.0))
    saved = [action.option for action in plan.actions if isinstance(action, StageForward) and action.stage <= 4]
    assert sorted(saved) == [0, 0, 1, 1]


@pytest.mark.parametrize("unlike", [False, True])
def test_little_more_than_the_table_is_held(unlike: bool) -> None:
    draw, length, steps = random.Random(5), 160, 40
    chain = random_chain(draw, length, options=3, largest=10**6) if unlike else uniform(length)
    everything = sum(max(option.nbytes for option in stage.options) for stage in chain.stages)
    tracemalloc.start()
    try:
        PersistentTable(chain, everything // 2, steps).solution()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    table = 4 * (steps + 1) * (length + 1) * (length + 2)
    assert table < peak < 1.5 * table


def test_what_does_not_fit_is_an_error_that_names_what_does() -> None:
    chain = uniform(5)
    table = PersistentTable(chain, 40)
    assert table.smallest is not None
    with pytest.raises(ValueError, match=f"no persistent schedule fits 3 bytes; {table.smallest} bytes are enough"):
        table.solution(3)
    with pytest.raises(ValueError, match="the table ends at 40 bytes"):
        table.seconds(41)
    with pytest.raises(ValueError, match="3 bytes are too few as well"):
        persistent(chain, 3)
    with pytest.raises(ValueError, match="is no memory to plan in"):
        persistent(chain, 0)


@pytest.mark.parametrize("name", CASES)
def test_plans_of_models_stay_within_what_they_were_made_for(name: str) -> None:
    case = CASES[name]
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    chain, fixed = chain_of(costs), fixed_nbytes(costs)
    everything = sum(stage.options[0].nbytes for stage in chain.stages)
    table = PersistentTable(chain, chain.input_nbytes + 4 * everything, steps=2000)
    assert table.seconds() == pytest.approx(chain.least_seconds)
    assert table.smallest is not None
    for memory in np.linspace(table.smallest, table.memory, 12).astype(int).tolist():
        plan = make_plan(schedule_of(table.solution(memory).actions, costs), costs, "persistent", purpose="gradient")
        plan.check()
        assert plan.peak <= fixed + memory


@pytest.mark.soak
@pytest.mark.parametrize(("length", "count"), [(4, 1200), (5, 800), (6, 300)])
def test_how_often_and_by_how_much_something_outside_of_the_class_is_better(length: int, count: int) -> None:
    draw, gaps = random.Random(length), list[float]()
    while len(gaps) < count:
        chain = random_chain(draw, length)
        table = PersistentTable(chain, random_memory(draw, chain))
        # Where there is no choice, or everything fits, there is nothing to compare.
        if table.seconds() in (math.inf, chain.least_seconds):
            continue
        best = optimum(chain, table.memory)
        assert best <= table.seconds() == optimum(chain, table.memory, persistent=True)
        assert table.solution().peak <= table.memory
        gaps.append(table.seconds() / best - 1)
    beaten = [gap for gap in gaps if gap > 0]
    print(
        f"L = {length}: {count} chains, beaten on {len(beaten) / count:.1%}, mean gap there {np.mean(beaten):.2%}, "
        f"over all {np.mean(gaps):.2%}, largest {max(gaps):.1%}"
    )
    assert 0.1 < len(beaten) / count < 0.7
