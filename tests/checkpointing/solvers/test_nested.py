"""A stage's own plans as its options in the abstract chain: what they promise holds, and the program with them is never slower."""

from __future__ import annotations

import random

import numpy as np
import pytest

from checkpointing import Costs, costs_of
from checkpointing.operations import Forward
from checkpointing.planner.frugal import frugal_plans
from checkpointing.schedules import backwards, make_plan
from checkpointing.solvers.chain import StageBackward, StageForward, replay
from checkpointing.solvers.nested import own_plans
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.stages import Undoings, chain_of, fixed_nbytes, schedule_of
from framework import AdamW, Spec, build
from tests.checkpointing.cases import all_cases
from tests.checkpointing.solvers.chains import random_actions
from tests.checkpointing.test_random_plans import random_case

CASES = {case.name: case for case in all_cases()}


def all_plans(costs: Costs) -> list[Undoings]:
    """Those that keep a part of a stage, and those that keep its input alone and take less at their peak."""
    return [[*frugal, *own] for frugal, own in zip(frugal_plans(costs), own_plans(costs), strict=True)]


def check_promise(costs: Costs, draw: random.Random, shards: int, count: int) -> int:
    """Checks plans of drawn schedules of a chain with options against what the chain says; returns how many recompute inside a stage."""
    passing = costs.of_the_pass(shards, 1)
    undoings, fixed = all_plans(passing), fixed_nbytes(costs, shards)
    chain, inside = chain_of(passing, undoings), 0
    for _ in range(count):
        actions = list(random_actions(draw, chain))
        promised = replay(chain, actions)
        plan = make_plan(schedule_of(actions, costs, undoings), costs, "drawn", purpose="gradient", shards=shards)
        plan.check()
        assert plan.peak <= fixed + promised.peak
        assert plan.simulation.seconds <= shards * promised.seconds * (1 + 1e-12)
        saved = {action.stage: action.option for action in actions if isinstance(action, StageForward)}
        undone = [
            action.stage for action in actions if isinstance(action, StageBackward) and action.stage <= costs.stages
        ]
        inside += any(isinstance(o, Forward) for stage in undone for o in undoings[stage - 1][saved[stage] or 0])
    return inside


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("float32")])
def test_a_chain_with_options_never_promises_less_than_its_plans_take(name: str) -> None:
    case = CASES[name]
    for shards in (1, 2):
        costs = costs_of(case.chain, case.loss, *case.specs(shards), AdamW())
        check_promise(costs, random.Random(name), shards, 8)


def test_a_random_chain_with_options_never_promises_less_than_its_plans_take() -> None:
    inside = 0
    for seed in range(40):
        case = random_case(seed)
        inside += check_promise(costs_of(case.chain, case.loss, *case.specs(1)), random.Random(seed), 1, 6)
    assert inside > 100


def transformer() -> Costs:
    model, x = build("byte-gpt-tiny"), Spec.of((1, 128), np.uint8)
    return costs_of(model.chain, model.loss, x, x, AdamW())


def check_never_slower(costs: Costs) -> int:
    """Checks the program with and without options at all memories of a table; returns at how many it is faster with them."""
    plain, undoings = chain_of(costs), own_plans(costs)
    nested = chain_of(costs, undoings)
    for stage, without in zip(nested.stages, plain.stages, strict=True):
        assert stage.options[-1] == without.options[0]
    everything = sum(stage.options[0].nbytes for stage in plain.stages) + plain.input_nbytes
    tables = [PersistentTable(chain, 2 * everything, 400) for chain in (plain, nested)]
    times = [[table.seconds(plain.input_nbytes + unit * table.unit) for unit in range(table.steps)] for table in tables]
    assert all(with_options <= without for without, with_options in zip(*times, strict=True))
    return sum(with_options < without for without, with_options in zip(*times, strict=True))


def test_the_program_is_never_slower_with_options_and_often_faster() -> None:
    assert check_never_slower(transformer()) > 50
    cases = [random_case(seed) for seed in range(25)]
    assert sum(check_never_slower(costs_of(case.chain, case.loss, *case.specs(1))) for case in cases) > 100


def test_a_plan_of_a_transformer_keeps_the_products_of_a_block_and_recomputes_what_is_cheap() -> None:
    costs = transformer()
    undoings = own_plans(costs)
    plain, nested = chain_of(costs), chain_of(costs, undoings)
    most = replay(plain, PersistentTable(plain, 10**9).actions()).peak
    memory = most * 85 // 100
    without, found = (PersistentTable(chain, memory, 1000) for chain in (plain, nested))
    assert found.seconds() < without.seconds()
    plan = make_plan(schedule_of(found.actions(), costs, undoings), costs, "nested", purpose="gradient")
    plan.check()
    assert plan.peak <= fixed_nbytes(costs) + memory
    again = [operation.step for operation in plan.operations if isinstance(operation, Forward)]
    twice = {step for step in again if again.count(step) > 1}
    assert twice
    assert {costs.steps[step].kind for step in twice}.isdisjoint({"Linear", "CausalAttention"})
    # Where all of a stage or nothing is kept, products run again.
    less = make_plan(schedule_of(without.actions(), costs), costs, "plain", purpose="gradient")
    again = [operation.step for operation in less.operations if isinstance(operation, Forward)]
    assert any(again.count(step) > 1 for step in again if costs.steps[step].kind == "Linear")


def test_plans_of_a_stage_go_from_the_fewest_bytes_to_all_and_nothing_beats_them() -> None:
    costs = transformer()
    found, chain = own_plans(costs), chain_of(costs, own_plans(costs))
    block = 2
    assert list(found[block][-1]) == backwards(costs, costs.steps_of(block, block))
    options = chain.stages[block].options
    kept = [option.nbytes for option in options]
    seconds = [option.backward_seconds for option in options]
    assert kept == sorted(set(kept))
    assert seconds == sorted(set(seconds), reverse=True)
    assert kept[0] == chain.stages[block].nbytes  # of the fewest only the output, which every option includes
    assert own_plans(costs, 3)[block][0] == found[block][0]
    assert [len(own_plans(costs, most)[block]) for most in (2, 3, 5)] == [2, 3, 5]
    assert own_plans(costs, 1) == [[backwards(costs, costs.steps_of(number, number))] for number in range(costs.stages)]
    with pytest.raises(ValueError, match="at least one plan, but 0 were asked for"):
        own_plans(costs, 0)


def test_equal_blocks_have_equal_plans_in_their_own_steps() -> None:
    costs = transformer()
    for plans in (own_plans(costs), frugal_plans(costs)):
        assert plans[1]
        first = costs.steps_of(1, 1).start
        for stage in range(2, costs.stages - 2):
            start = costs.steps_of(stage, stage).start
            moved = [[(type(o), o.step - start) for o in undoing] for undoing in plans[stage]]
            assert moved == [[(type(o), o.step - first) for o in undoing] for undoing in plans[1]]


def test_frugal_plans_take_less_at_their_peak_than_those_that_keep_as_little() -> None:
    costs = transformer()
    options, count = chain_of(costs, all_plans(costs)).stages[2].options, len(frugal_plans(costs)[2])
    frugal, own = options[:count], options[count:]
    assert {option.nbytes for option in frugal} == {own[0].nbytes}
    least = min(frugal, key=lambda option: option.backward_temporary)
    assert least.backward_temporary < own[0].backward_temporary
    assert least.backward_seconds > own[0].backward_seconds
