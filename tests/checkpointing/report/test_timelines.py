"""Timelines add up to the byte, and what is predicted is what the ledger records."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing import Engine, run_plans
from checkpointing.costs import costs_of
from checkpointing.executor import Executor
from checkpointing.operations import Operation
from checkpointing.plan import Plan
from checkpointing.report import sums
from checkpointing.report.data import PHASES, Timeline
from checkpointing.report.timelines import measured, predicted
from checkpointing.running import Job
from checkpointing.schedules import make_plan
from checkpointing.simulation import _Simulator
from framework import SGD, BudgetExceeded, Chain, Key, Ledger, Linear, MeanSquaredError, Parameters
from framework.memory import CATEGORIES, Recording
from tests.checkpointing.cases import IN_MEMORY, Case, all_cases, mlp, tokens
from tests.checkpointing.report.recorded import recorded, recorded_beside
from tests.checkpointing.test_random_plans import random_case, random_schedule

CASES = {case.name: case for case in all_cases()}


def require_sums(timeline: Timeline) -> None:
    """Category x layer x phase adds up to the total at every operation, remainder 0."""
    columns = sums.by_category(timeline)
    for place, now in enumerate(sums.held(timeline)):
        by_phase = Counter[tuple[str, str, str]]()
        for (category, owner), nbytes in now.items():
            assert nbytes > 0
            by_phase[category, owner, timeline.phases[place]] += nbytes
        assert sum(by_phase.values()) == timeline.live[place]
        assert sum(column[place + 1] for column in columns.values()) == timeline.live[place]
        assert timeline.inside[place] >= timeline.live[place]
    assert sum(nbytes for _, nbytes in timeline.at_peak) == timeline.inside[timeline.peak] == max(timeline.inside)
    assert timeline.peak == timeline.inside.index(max(timeline.inside))
    assert set(timeline.phases) <= set(PHASES)
    assert {category for category, _ in timeline.holders} <= set(CATEGORIES)


def require_equal(plan: Plan, recording: Recording) -> None:
    """Predicted and measured are one timeline but for seconds, and its numbers are the ledger's."""
    told, seen = predicted(plan), measured(plan, recording)
    assert replace(seen, seconds=told.seconds) == told
    require_sums(seen)
    assert all(seconds >= 0 for seconds in seen.seconds)
    assert sum(told.seconds) == pytest.approx(plan.simulation.seconds, abs=1e-9 * len(told.seconds))
    for place, (moment, now) in enumerate(zip(recording.moments, sums.held(seen), strict=True)):
        assert (seen.live[place], seen.inside[place], seen.labels[place]) == (moment.live, moment.inside, moment.label)
        assert now == moment.holders


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.memory if name.endswith("64") else ()) for name in CASES]
)
def test_what_is_predicted_is_what_is_recorded(name: str) -> None:
    draw = random.Random(name)
    for policy in draw.sample(IN_MEMORY, 2):
        plan = CASES[name].plans(policy, draw.choice((1, 4))).train[0]
        require_equal(plan, recorded(CASES[name], plan, block=draw.random() < 0.5))


def random_run(seed: int) -> tuple[Plan, Recording]:
    """A random plan of a random chain, and what the ledger records of its run."""
    case, draw = random_case(seed), random.Random(seed)
    shards = draw.choice((1, 2))
    costs = costs_of(case.chain, case.loss, *case.specs(shards))
    plan = make_plan(random_schedule(costs, draw), costs, "random", "gradient", shards=shards)
    parameters = Parameters.initialize(case.chain.layout(case.specs(shards)[0]), Key(1))
    ledger = Ledger()
    held = ledger.count(parameters.flat.nbytes, "parameters", "model")
    executor = Executor(case.chain, case.loss, parameters, ledger, block=draw.random() < 0.5)
    ledger.start_recording()
    executor.run(plan, Job(case.loader(plan.shards), Key(2)))
    del held
    return plan, ledger.stop_recording()


@given(st.integers(0, 10**6))
def test_so_it_is_for_random_plans_of_random_chains(seed: int) -> None:
    require_equal(*random_run(seed))


@pytest.mark.memory
def test_so_it_is_for_many_more_of_them() -> None:
    for seed in range(10**6, 10**6 + 300):
        require_equal(*random_run(seed))


def test_phases_follow_each_other_in_each_shard() -> None:
    told = predicted(tokens().plans("every-k:1", shards=2).train[0])
    for shard in (0, 1):
        mine = [phase for phase, number in zip(told.phases, told.shards, strict=True) if number == shard]
        assert list(dict.fromkeys(mine)) == ["load", "forward", "loss", "backward"]
        assert mine == sorted(mine, key=PHASES.index)
    whole = [phase for phase, number in zip(told.phases, told.shards, strict=True) if number is None]
    assert list(dict.fromkeys(whole)) == ["all-reduce", "optimizer"]
    again = [place for place, each in enumerate(told.recomputed) if each]
    assert again
    for place in again:
        assert told.phases[place] == "backward"
        assert told.labels[place] in told.labels[:place]
        assert told.labels[place] == f"forward {told.layers[place]}"


def test_a_run_that_failed_half_way_has_the_operation_that_failed_last() -> None:
    case = tokens()
    plan = case.plans("store-all").train[0]
    ledger = Ledger(limit=plan.peak - 1)
    engine = case.engine(ledger)
    ledger.start_recording()
    with pytest.raises(BudgetExceeded):
        engine.train_step(plan, case.loader(1), 0, 1e-2)
    seen, told = measured(plan, ledger.stop_recording()), predicted(plan)
    assert 0 < len(seen.labels) == told.peak + 1
    assert seen.labels == told.labels[: told.peak + 1]
    assert seen.inside[:-1] == told.inside[: told.peak]
    assert seen.inside[-1] < told.inside[told.peak]
    require_sums(seen)


def test_a_recording_of_another_plan_is_refused() -> None:
    case = mlp()
    one, other = (case.plans(policy).train[0] for policy in ("store-all", "recompute-all"))
    recording = recorded(case, one)
    with pytest.raises(ValueError, match="operation 5 is 'forward 3', but the plan has"):
        measured(other, recording)
    twice = Recording(recording.before, recording.moments * 2, recording.at_peak)
    with pytest.raises(ValueError, match="but the plan has its end; record one step"):
        measured(one, twice)


def test_what_the_ledger_holds_besides_is_in_the_measured_timeline() -> None:
    case = mlp()
    plan = case.plans("store-all").train[0]
    seen = measured(plan, recorded_beside(case, plan, 1000))
    assert seen.live[0] == predicted(plan).live[0] + 1000
    assert ("data", "beside", 1000) in sums.at_peak(seen)
    require_sums(seen)


class _InEachOperation(Ledger):
    """Writes down who holds the most bytes inside each operation, and not inside the highest alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[tuple[str, str], int]] = []

    def begin(self) -> None:
        super().begin()
        self._highest, self._at_peak, self._rising = self.live, self._holders.copy(), False

    def mark(self, label: str) -> None:
        self._note_peak()
        self.found.append(self._at_peak)
        super().mark(label)


class _PredictedInEach(_Simulator):
    """The same as the simulator says it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.costs, plan.purpose, plan.shards, plan.rank)
        self.found: list[dict[tuple[str, str], int]] = []
        self.run(plan.operations)

    def do(self, place: int, operation: Operation) -> None:
        self.highest, self.at_peak = self.live, self.held.copy()
        super().do(place, operation)
        self.found.append(self.at_peak)


def require_holders_inside(case: Case, policy: str, shards: int) -> None:
    plan = case.plans(policy, shards).train[0]
    ledger = _InEachOperation()
    engine = case.engine(ledger)
    ledger.start_recording()
    engine.train_step(plan, case.loader(shards), 0, 1e-2)
    assert ledger.found == _PredictedInEach(plan).found


@pytest.mark.parametrize("name", ["tokens-float32", "images-float64", "recurrent-float64"])
def test_who_holds_the_most_inside_an_operation_is_as_predicted(name: str) -> None:
    """Not at the peak alone: so it is known wherever the peak may be."""
    require_holders_inside(CASES[name], "every-k:2", 4)


@pytest.mark.memory
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("policy", IN_MEMORY)
@pytest.mark.parametrize("name", CASES)
def test_so_it_is_inside_all_operations(name: str, policy: str, shards: int) -> None:
    require_holders_inside(CASES[name], policy, shards)


def test_an_optimizer_without_state_is_named_where_it_holds_scratch() -> None:
    """With one example the peak is in the update."""
    x = np.ones((1, 3), "float32")
    case = Case("wide", Chain(Linear(20_000), Linear(3)), MeanSquaredError(), x, x)
    plan = run_plans(case.chain, case.loss, *case.specs(1), SGD(momentum=0.0)).train[0]
    ledger = Ledger()
    engine = Engine(case.chain, case.loss, case.chain.layout(case.specs(1)[0]), SGD(momentum=0.0), ledger=ledger)
    ledger.start_recording()
    engine.train_step(plan, case.loader(1), 0, 1e-2)
    recording = ledger.stop_recording()
    require_equal(plan, recording)
    assert plan.labels[predicted(plan).peak] == "update 0"
    assert recording.at_peak["workspace", "SGD"] > 0
