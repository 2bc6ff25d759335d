"""What is always true: predicted bytes are the ledger's and tracemalloc's, and no plan changes a bit."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from checkpointing import Plan, parse_policy
from checkpointing.costs import costs_of
from checkpointing.executor import Executor, Job
from checkpointing.operations import Backward, Loss
from checkpointing.schedules import Schedule, backwards, forwards, make_plan
from framework import AdamW, Key, Ledger, Parameters, build
from framework.memory import Moment
from tests.checkpointing.cases import POLICIES, Case, all_cases, digest, mlp, nested, tokens

CASES = {case.name: case for case in all_cases()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shards", [1, 4])
def test_predicted_bytes_are_the_ledgers_at_and_inside_every_operation(name: str, policy: str, shards: int) -> None:
    case, ledger = CASES[name], Ledger(record=True)
    plans = case.plans(policy, shards)
    engine = case.engine(ledger)
    assert ledger.timeline == []
    for step in range(2):
        engine.train_step(plans.train[0], case.loader(shards), step, 1e-2)
        assert tuple(ledger.timeline) == plans.train[0].simulate().timeline
        ledger.timeline.clear()
    engine.evaluate(plans.evaluate[0], case.loader(shards))
    assert tuple(ledger.timeline) == plans.evaluate[0].simulate().timeline
    assert ledger.peak == plans.peak


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shards", [1, 4])
def test_no_policy_changes_a_bit_with_dropout_on(name: str, shards: int) -> None:
    case = CASES[name]
    results = {case.bits_after(case.plans(policy, shards).train[0]) for policy in POLICIES}
    assert len(results) == 1
    assert np.isfinite(results.pop()[1]).all()


def random_schedule(case: Case, draw: random.Random) -> Schedule:
    """A forward pass, then before each backward some runs of steps computed again for no good reason."""
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    count = len(costs.steps)
    schedule = [*forwards(costs, range(count)), Loss()]
    for operation in backwards(costs, range(count)):
        assert isinstance(operation, Backward)
        for _ in range(draw.choice((0, 0, 1, 2))):
            first = draw.randrange(count)
            schedule += forwards(costs, range(first, draw.randrange(first, count) + 1))
        schedule.append(operation)
    return schedule


@pytest.mark.parametrize("make", [mlp, tokens, nested], ids=lambda make: make.__name__)
def test_any_valid_plan_has_the_predicted_bytes_and_the_same_gradient(make) -> None:  # type: ignore[no-untyped-def]
    case: Case = make("float32")
    costs = costs_of(case.chain, case.loss, *case.specs(2))
    layout = case.chain.layout(case.specs(2)[0])
    bits, recomputed = set(), 0
    for seed in range(60):
        plan = make_plan(random_schedule(case, random.Random(seed)), costs, "random", "gradient", shards=2)
        plan.check()
        ledger = Ledger(record=True)
        parameters = Parameters.initialize(layout, Key(1), ledger)
        outcome = Executor(case.chain, case.loss, parameters, ledger).run(plan, Job(case.loader(2), Key(2)))
        assert tuple(ledger.timeline or ()) == plan.simulate().timeline
        assert outcome.gradient is not None
        bits.add(digest(outcome.gradient))
        recomputed += len(plan.operations)
    assert len(bits) == 1
    assert recomputed > 60 * len(make_plan(parse_policy("store-all").schedule(costs), costs, "").operations)


def numpy_bytes() -> int:
    """Live bytes that NumPy itself reports."""
    domain = np.lib.tracemalloc_domain
    return sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.domain == domain)


class WitnessedLedger(Ledger):
    """Asks tracemalloc at every operation boundary."""

    def __init__(self) -> None:
        super().__init__()  # no timeline: a reading costs time for each object that was made since tracing began
        self.differences: list[tuple[str, int]] = []
        self.points = 0

    def mark(self, label: str) -> None:
        super().mark(label)
        self.points += 1
        if (difference := numpy_bytes() - self.live) != 0:
            self.differences.append((label, difference))


@pytest.mark.parametrize(
    ("model", "policy", "shards"),
    [
        ("byte-gpt-tiny", "store-all", 4),
        ("byte-gpt-tiny", "sqrt-n", 4),
        ("byte-gpt-tiny", "recompute-all", 4),
        ("byte-gpt-small", "every-k:2", 1),
    ],
)
def test_tracemalloc_agrees_to_the_byte_at_peaks_above_20_mib(model: str, policy: str, shards: int) -> None:
    built = build(model, dropout=0.1)
    window = built.dataset(()).window  # type: ignore[attr-defined]
    x = np.arange(2 * shards * window).astype(np.uint8).reshape(2 * shards, window)
    case = Case(model, built.chain, built.loss, x, x)
    plan = case.plans(policy, shards).train[0]
    assert plan.peak >= 20 * 2**20
    assert plan.labels  # made before tracing begins
    tracemalloc.start()
    try:
        before = numpy_bytes()
        assert before == 0
        ledger = WitnessedLedger()
        engine = case.engine(ledger)
        engine.train_step(plan, case.loader(shards), 0, 1e-3)
    finally:
        tracemalloc.stop()
    assert ledger.differences == []
    assert ledger.points == len(plan.operations)
    assert ledger.peak == plan.peak


def test_moments_of_a_plan_know_their_categories() -> None:
    case = tokens()
    for moment in case.plans("store-all").train[0].simulate().timeline:
        assert isinstance(moment, Moment)
        assert sum(moment.categories.values()) == moment.live <= moment.inside


def test_a_plan_read_from_json_runs_to_the_same_bits() -> None:
    case = tokens()
    plan = case.plans("every-k:1", shards=2).train[0]
    again = Plan.from_json(plan.to_json())
    assert again.operations == plan.operations
    assert again.costs == plan.costs
    assert case.bits_after(again) == case.bits_after(plan)


@pytest.mark.parametrize("name", CASES)
def test_overwriting_what_nobody_reads_changes_no_bit_and_never_adds_a_byte(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    for policy in POLICIES:
        over, apart = case.plans(policy, shards=2).train[0], case.plans(policy, shards=2).train[0]
        assert over.simulation.in_place
        bits = case.bits_after(over)
        with monkeypatch.context() as patch:
            patch.setattr("checkpointing.simulation._Simulator.may_overwrite", lambda *_: False)
            assert not apart.simulation.in_place
        assert case.bits_after(apart) == bits
        assert over.peak <= apart.peak
        pairs = zip(over.simulation.timeline, apart.simulation.timeline, strict=True)
        assert all(a.live <= b.live and a.inside <= b.inside for a, b in pairs)
