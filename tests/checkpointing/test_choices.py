"""What budgets are chosen by: the peaks and times of plans that are not made equal those of the plans."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from checkpointing import InfeasibleBudget, costs_of, parse_policy, plan_run
from checkpointing import choices as module
from checkpointing.choices import Setting, choices, evaluations, unlike
from checkpointing.policies import offloading_candidates
from framework import AdamW
from tests.checkpointing.cases import POLICIES, all_cases, images, tokens

#: Dtypes change sizes alone.
CASES = {case.name: case for case in all_cases() if case.name.endswith("float32")}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("shards", "world", "purpose"), [(1, 1, "gradient"), (8, 1, "train"), (8, 3, "train")])
def test_a_choice_takes_what_its_plans_take(name: str, shards: int, world: int, purpose: str) -> None:
    case = CASES[name]
    costs = costs_of(case.chain, case.loss, *case.specs(shards), AdamW())
    known = choices(Setting(costs, shards, world, purpose))
    assert (
        choices(Setting(costs_of(case.chain, case.loss, *case.specs(shards), AdamW()), shards, world, purpose)) is known
    )
    found = [known.of(parse_policy(policy)) for policy in POLICIES]
    for number in range(6):
        choice = known.within(known.least + (known.store_all - known.least) * number // 5)
        assert choice is not None
        found.append(choice)
    assert known.within(known.least - 1) is None
    for choice in found:
        plans = known.plans(choice.policy, choice.point)
        assert choice.peak == max(plan.peak for plan in plans)
        times = [plan.simulation.seconds for plan in plans]
        assert choice.seconds == pytest.approx(max(times), rel=1e-12)
        assert choice.shard_seconds * shards == pytest.approx(sum(times), rel=1e-12)


@pytest.mark.parametrize(("shards", "world"), [(8, 4), (16, 5), (16, 16)])
def test_ranks_that_are_left_out_hold_as_much_and_take_as_long_as_another(shards: int, world: int) -> None:
    case = tokens()
    costs = costs_of(case.chain, case.loss, *case.specs(2), AdamW())
    schedule = parse_policy("sqrt-n").schedule(costs)
    setting = Setting(costs, shards, world)
    for plans in (
        setting.plans(schedule, "sqrt-n"),
        replace(setting, bucket_nbytes=2000).plans(schedule, "sqrt-n"),
        evaluations(replace(setting, purpose="evaluate")),
    ):
        told = {(plan.peak, plan.simulation.seconds) for plan in plans}
        assert {(plan.peak, plan.simulation.seconds) for plan in unlike(plans)} == told
    assert len(unlike(setting.plans(schedule, "sqrt-n"))) < world


def test_what_a_disk_would_do_is_planned_when_an_error_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked = images(), list[int]()
    costs = costs_of(case.chain, case.loss, *case.specs(1), AdamW())
    choices.cache_clear()

    def counted(*arguments: object) -> object:
        asked.append(1)
        return offloading_candidates(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "offloading_candidates", counted)
    with pytest.raises(InfeasibleBudget) as caught:
        plan_run(costs, budget=1)
    assert not asked
    text = str(caught.value)
    assert asked == [1]
    assert caught.value.with_disk is not None
    assert f"with values on disk {caught.value.with_disk:,} bytes" in text
    raised = caught.value.at_least(caught.value.smallest + 5)
    assert (raised.smallest, raised.with_disk) == (caught.value.smallest + 5, caught.value.with_disk)
    assert str(raised) == text
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.smallest) == (text, caught.value.smallest)
    with pytest.raises(InfeasibleBudget) as refused:
        plan_run(costs, budget=1, offload=True)
    assert refused.value.smallest == caught.value.with_disk
    assert refused.value.with_disk is None
