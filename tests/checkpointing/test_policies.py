"""Policies: what they keep, what they cost, and how a budget chooses among them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from checkpointing import EveryK, InfeasibleBudget, Plan, SqrtN, costs_of, parse_policy, plan_run
from checkpointing.operations import Backward, Forward
from checkpointing.policies import candidates, offloading_candidates
from checkpointing.solvers.revolve import extra_forwards
from framework import AdamW, Chain, Linear, MeanSquaredError, Spec, build
from tests.checkpointing.cases import POLICIES, Case, tokens


def stages(count: int, width: int = 16) -> Case:
    """Equal stages of one layer."""
    x = np.zeros((4, width), np.float32)
    return Case("stages", Chain(*[Linear(width) for _ in range(count)]), MeanSquaredError(), x, x)


def forwards_of(plan: Plan) -> list[int]:
    return [operation.step for operation in plan.operations if isinstance(operation, Forward)]


def most_activations(plan: Plan) -> int:
    return max(moment.categories.get("activations", 0) for moment in plan.simulation.timeline)


def test_store_all_computes_nothing_twice() -> None:
    plan = tokens().plans("store-all").train[0]
    assert forwards_of(plan) == list(range(len(plan.costs.steps)))


def test_recompute_all_keeps_the_batch_alone_and_is_quadratic() -> None:
    plan = stages(6).plans("recompute-all").train[0]
    first = next(i for i, o in enumerate(plan.operations) if isinstance(o, Backward))
    held = plan.simulate().timeline[first - 1].categories
    # Before the first backward: the batch, the input of the last Linear, and the cotangent of its output, which lies over it.
    assert held["activations"] == 2 * plan.costs.output(0).nbytes
    assert "cotangents" not in held
    # A Linear's backward needs its input alone, so before stage s is undone 0..s-1 run again.
    assert len(forwards_of(plan)) == 6 + sum(range(5))


def test_every_k_keeps_the_inputs_of_segments_and_computes_all_but_the_last_again() -> None:
    plan = stages(6).plans("every-k:2").train[0]
    # Segments 0-1, 2-3, 4-5; the last is stored; of the others only the second stage's input is missing.
    assert forwards_of(plan) == [0, 1, 2, 3, 4, 5, 2, 0]
    backwards = [operation.step for operation in plan.operations if isinstance(operation, Backward)]
    assert backwards == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("count", range(1, 30))
def test_sqrt_n_makes_root_n_segments_whose_sizes_differ_by_at_most_one(count: int) -> None:
    case = stages(count)
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    again = [operation.step for operation in SqrtN().schedule(costs)[count + 1 :] if isinstance(operation, Forward)]
    runs = [list(run) for _, run in itertools.groupby(enumerate(again), key=lambda pair: pair[1] - pair[0])]
    sizes = sorted([len(run) for run in runs] + [count - len(again)])
    assert len(sizes) == int(np.sqrt(count))
    assert sum(sizes) == count
    assert sizes[-1] - sizes[0] <= 1


def test_stages_are_the_elements_of_the_outermost_chain() -> None:
    built = build("byte-gpt-tiny")
    costs = costs_of(built.chain, built.loss, Spec.of((1, 128), np.uint8), Spec.of((1, 128), np.uint8))
    assert costs.stages == 1 + 4 + 1 + 1


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "store-all"])
def test_every_policy_but_store_all_lowers_the_peak_of_a_byte_gpt_and_costs_time(policy: str) -> None:
    built = build("byte-gpt-tiny")
    x = np.zeros((2, 128), np.uint8)
    case = Case("gpt", built.chain, built.loss, x, x)
    everything, plan = case.plans("store-all").train[0], case.plans(policy).train[0]
    assert plan.peak < everything.peak
    assert plan.simulate().seconds > everything.simulate().seconds


@pytest.mark.parametrize("offload", [False, True])
def test_a_budget_chooses_the_fastest_that_fits_and_time_never_rises_with_it(offload: bool) -> None:
    case = tokens()
    costs = costs_of(case.chain, case.loss, *case.specs(2), AdamW())
    more = offloading_candidates(costs) if offload else []
    known = [plan_run(costs, policy=policy, shards=2) for policy in candidates(costs) + more]
    before = None
    for budget in sorted({plans.peak + more for plans in known for more in (-1, 0, 1)})[1:]:
        plans = plan_run(costs, budget=budget, shards=2, offload=offload)
        seconds = plans.train[0].simulate().seconds
        assert plans.peak <= budget
        assert seconds <= min(p.train[0].simulate().seconds for p in known if p.peak <= budget)
        assert before is None or seconds <= before
        before = seconds


def test_a_budget_below_what_is_possible_names_the_smallest_that_fits() -> None:
    case = tokens()
    with pytest.raises(InfeasibleBudget, match="every known plan needs") as caught:
        case.plans(budget=1000)
    smallest = caught.value.smallest
    assert f"engine:{smallest}" in str(caught.value)
    assert case.plans(budget=smallest).peak == smallest
    with pytest.raises(InfeasibleBudget):
        case.plans(budget=smallest - 1)


def test_a_named_policy_that_does_not_fit_is_refused() -> None:
    case = tokens()
    needed = case.plans("store-all").peak
    with pytest.raises(InfeasibleBudget, match=f"the policy store-all needs {needed:,} bytes"):
        case.plans("store-all", budget=needed - 1)
    assert case.plans("store-all", budget=needed).peak == needed


def test_all_ranks_take_one_policy_that_fits_the_one_with_the_most() -> None:
    built = build("byte-gpt-tiny")
    x = np.zeros((8, 128), np.uint8)
    case = Case("gpt", built.chain, built.loss, x, x)
    plans = case.plans("store-all", shards=8, world=3)
    gradients = [max(m.categories.get("gradients", 0) for m in p.simulate().timeline) for p in plans.train]
    one = plans.train[0].costs.gradient_nbytes
    assert [held // one for held in gradients] == [2, 2, 1]
    chosen = case.plans(budget=plans.peak - 1, shards=8, world=3)
    assert len({plan.policy for plan in chosen.train}) == 1
    assert chosen.peak == max(plan.peak for plan in chosen.train) < plans.peak


@pytest.mark.parametrize(
    "text",
    [
        "",
        "store",
        "every-k",
        "every-k:0",
        "every-k:x",
        "every-k:-1",
        "Store-All",
        "revolve:0",
        "mixed:",
        "selective",
        "selective:",
        "selective:a,,b",
        "offload:0",
        "offload:",
    ],
)
def test_an_unknown_policy_lists_the_known_ones(text: str) -> None:
    with pytest.raises(
        ValueError,
        match="known: store-all, recompute-all, sqrt-n, offload, budget, every-k:K, revolve:K, mixed:K, offload:K, selective:PATTERN",
    ):
        parse_policy(text)


@pytest.mark.parametrize(
    "text",
    [
        "store-all",
        "recompute-all",
        "sqrt-n",
        "every-k:4",
        "offload",
        "offload:3",
        "revolve:3",
        "mixed:3",
        "budget",
        "selective:Linear,block?.*",
    ],
)
def test_policies_are_spelled_as_they_are_read(text: str) -> None:
    assert parse_policy(text).name == text


def test_the_policy_budget_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="needs a budget"):
        tokens().plans("budget")
    assert parse_policy("every-k:7") == EveryK(7)


def test_selective_computes_again_all_but_what_matches_and_the_last_stage() -> None:
    plan = tokens().plans("selective:Linear,CausalAttention").train[0]
    first = len(plan.costs.steps)
    kinds = [plan.costs.steps[step].kind for step in forwards_of(plan)[first:]]
    # Per block: two norms, the Add between them, and GELU; the Add at the end is the next stage's input, and kept.
    assert sorted(kinds) == sorted(2 * ["LayerNorm", "LayerNorm", "Add", "GELU", "Dropout"] + ["LayerNorm"])


def test_selective_of_everything_computes_nothing_again_and_of_a_composite_only_what_is_outside() -> None:
    case = stages(4)
    assert forwards_of(case.plans("selective:*").train[0]) == [0, 1, 2, 3]
    case = tokens()
    plan = case.plans("selective:1.mlp").train[0]
    again = {plan.costs.steps[step].path for step in forwards_of(plan)[len(plan.costs.steps) :]}
    assert not any(path.startswith("1.mlp.") for path in again)
    assert any(path.startswith("2.mlp.") for path in again)
    assert any(path.startswith("1.attention.") for path in again)


@pytest.mark.parametrize("pattern", ["linear", "Linear,Conv2d", "mlp"])
def test_a_pattern_that_names_nothing_lists_kinds_and_paths(pattern: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{pattern.split(',')[-1]}' names no step.*kinds: Embedding, .*paths: \*, \*\.attention"
    ) as e:
        tokens().plans(f"selective:{pattern}")
    assert len(str(e.value)) < 500


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5])
def test_revolve_runs_the_forwards_of_its_closed_form_and_keeps_no_more_states(snapshots: int) -> None:
    case, count = stages(9), 9
    plan = case.plans(f"revolve:{snapshots}").train[0]
    # A Linear's backward reads its input alone: nothing runs again to be saved, and the last stage runs once.
    assert len(forwards_of(plan)) == count + extra_forwards(count, snapshots) - (count - 1)
    # The batch is counted apart; the output that is in hand and the one being made come on top.
    assert most_activations(plan) <= (snapshots - 1 + 2) * plan.costs.output(0).nbytes


def test_mixed_with_a_unit_for_each_stage_is_store_all_and_with_one_it_is_quadratic() -> None:
    case = stages(7)
    assert forwards_of(case.plans("mixed:6").train[0]) == list(range(7))
    few, many = (case.plans(f"mixed:{units}").train[0] for units in (1, 3))
    assert len(forwards_of(few)) > len(forwards_of(many)) > 7
    assert most_activations(few) < most_activations(many) < most_activations(case.plans("store-all").train[0])


def test_revolve_is_faster_than_any_other_policy_that_keeps_as_few_activations() -> None:
    case = stages(24)
    others = [
        case.plans(name).train[0] for name in ("recompute-all", "sqrt-n", *(f"every-k:{k}" for k in range(1, 25)))
    ]
    for snapshots in (2, 3):
        plan = case.plans(f"revolve:{snapshots}").train[0]
        fitting = [other for other in others if most_activations(other) <= most_activations(plan)]
        assert [other.policy for other in fitting] == ["recompute-all"]
        assert plan.simulation.seconds < fitting[0].simulation.seconds
