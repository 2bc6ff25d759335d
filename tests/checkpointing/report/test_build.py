"""Each part of a report says what the plan and the recording say."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest

from checkpointing.bounds import Bounds
from checkpointing.holdings import holdings
from checkpointing.report import build
from checkpointing.report.data import Report
from framework.layers import flatten
from tests.checkpointing.cases import all_cases, tied, tokens
from tests.checkpointing.report.recorded import report_of

CASES = {case.name: case for case in all_cases() if case.name.endswith("64")}


@pytest.mark.parametrize("policy", ["store-all", "every-k:2", "offload"])
@pytest.mark.parametrize("name", CASES)
def test_the_table_of_layers_adds_up(name: str, policy: str) -> None:
    case = CASES[name]
    plan = case.plans(policy, shards=2).train[0]
    layout = case.chain.layout(case.specs(2)[0])
    rows = build.layer_rows(plan, layout)
    assert [(row.path, row.kind) for row in rows] == [(step.path, step.layer.kind) for step in flatten(case.chain)]
    assert sum(row.parameters for row in rows) == layout.size
    again = sum(
        (row.forwards - 1) * step.footprint.forward_flops for row, step in zip(rows, plan.costs.steps, strict=True)
    )
    loss = plan.costs.loss.forward_flops + plan.costs.loss.backward_flops
    assert 2 * (sum(row.flops for row in rows) + again + loss) == plan.simulation.flops
    first = plan.labels[: plan.labels.index("load 1")]
    for row in rows:
        assert row.forwards == first.count(f"forward {row.path}")
        assert (row.kept == "kept") == (row.forwards == 1)
    if policy != "every-k:2":
        assert {row.kept for row in rows} == {"kept"}
    seconds = sum(row.forwards * row.forward_seconds + row.backward_seconds for row in rows) + sum(
        plan.costs.loss_seconds
    )
    if policy != "offload":  # the disk makes it wait
        assert 2 * seconds == pytest.approx(plan.simulation.seconds, rel=0.1, abs=1e-6)


def test_what_a_backward_finds_of_a_layer_decides_how_it_is_kept() -> None:
    case = tokens()
    plan = case.plans("selective:Linear").train[0]
    rows = {row.path: row for row in build.layer_rows(plan, case.chain.layout(case.specs(1)[0]))}
    drawn = build.drawing(plan)
    at_loss = dict(zip(drawn.steps, drawn.held[drawn.labels.index("loss")], strict=True))
    found = Counter(row.kept for row in rows.values())
    assert found["kept"] > 0
    assert found["recomputed"] > 0
    for path, row in rows.items():
        if row.kept == "recomputed":
            assert at_loss[path] in "01"
        elif row.kept == "in part":
            assert at_loss[path] in "23"


def test_a_shared_parameter_counts_at_its_first_step() -> None:
    rows = {row.path: row.parameters for row in report_of(tied(), "store-all").layers}
    assert rows["head"] == 0
    assert rows["embedding"] == 11 * 6 + 6 * 6
    # The owner comes last; the step before it that shares its weight and bias is met first.
    assert rows["last"] == 0
    assert sum(rows.values()) == tied().chain.layout(tied().specs(1)[0]).size


def test_times_of_layers_are_the_medians_of_what_was_measured() -> None:
    report = report_of(tokens(), "every-k:1", shards=4)
    seen = report.ranks[0].measured
    assert seen is not None
    for row in report.layers:
        for kind, told in (("forward", row.forward_seconds), ("backward", row.backward_seconds)):
            each = [s for label, s in zip(seen.labels, seen.seconds, strict=True) if label == f"{kind} {row.path}"]
            assert len(each) >= 4
            assert told == pytest.approx(median(each), abs=1e-9)


def test_the_drawing_is_what_the_plan_holds() -> None:
    plan = tokens().plans("every-k:2", shards=2).train[0]
    drawn, found = build.drawing(plan), holdings(plan)
    assert [[int(digit) for digit in row] for row in drawn.held] == found.held.tolist()
    assert (drawn.steps, drawn.labels, drawn.running) == (found.steps, found.labels, found.running)


def test_policies_have_their_plans_numbers_and_a_bound_below_them() -> None:
    case = tokens()
    candidates = [
        build.Candidate(policy, case.plans(policy, shards=2, world=2).train, chosen=policy == "sqrt-n")
        for policy in ("store-all", "every-k:1", "sqrt-n", "recompute-all", "offload")
    ]
    rows = build.policy_rows(candidates)
    for row, each in zip(rows, candidates, strict=True):
        assert (row.policy, row.budget, row.chosen) == (each.policy, None, each.policy == "sqrt-n")
        assert row.predicted_peak == max(plan.peak for plan in each.plans)
        assert row.predicted_seconds == max(plan.simulation.seconds for plan in each.plans)
        assert 0 < row.bound_seconds <= row.predicted_seconds * (1 + 1e-9)
        assert row == build.policy_row(each.plans, each.policy, chosen=each.chosen)
    plan = candidates[1].plans[0]
    assert rows[1].bound_seconds == Bounds(plan.costs, 2, 2, 0).seconds(rows[1].predicted_peak)


def test_a_report_has_store_all_beside_another_policy() -> None:
    def policies(report: Report) -> list[tuple[str, bool]]:
        return [(row.policy, row.chosen) for row in report.policies]

    assert policies(report_of(tokens(), "every-k:1")) == [("store-all", False), ("every-k:1", True)]
    assert policies(report_of(tokens(), "store-all")) == [("store-all", True)]
