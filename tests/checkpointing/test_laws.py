"""What is always true: predicted bytes are the ledger's and tracemalloc's, and no plan changes a bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from checkpointing import Plan
from framework import Ledger
from framework.memory import Moment
from tests.checkpointing.cases import POLICIES, all_cases, tokens

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
        over = case.plans(policy, shards=2).train[0]
        apart = dataclasses.replace(over)  # has not been simulated yet
        assert over.simulation.in_place
        bits = case.bits_after(over)
        with monkeypatch.context() as patch:
            patch.setattr("checkpointing.simulation._Simulator.may_overwrite", lambda *_: False)
            assert not apart.simulation.in_place
        assert case.bits_after(apart) == bits
        assert over.peak <= apart.peak
        pairs = zip(over.simulation.timeline, apart.simulation.timeline, strict=True)
        assert all(a.live <= b.live and a.inside <= b.inside for a, b in pairs)
