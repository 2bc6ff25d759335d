"""What a report tells its reader, from its data alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from checkpointing.report.advice import advice
from checkpointing.report.data import PolicyRow, Process, Report
from tests.checkpointing.cases import mlp, tokens
from tests.checkpointing.report.recorded import report_of

MIB = 2**20


@cache
def plain() -> Report:
    return replace(report_of(tokens(batch=32), "store-all"), policies=())


def row(policy: str, peak: int, seconds: float, chosen: bool = False, budget: int | None = None) -> PolicyRow:
    return PolicyRow(policy, budget, peak, seconds, None, None, None, seconds, chosen)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            (row("store-all", 246 * MIB, 1.0), row("budget", 96 * MIB, 1.07, True, 96 * MIB)),
            "Budget 96.0 MiB costs 7% more time and saves 61% of the peak against store-all (96.0 MiB of 246.0 MiB, predicted).",
        ),
        (
            (row("store-all", 100, 1.0), row("every-k:1", 40, 1.0, True)),
            "Policy every-k:1 takes as long and saves 60% of the peak against store-all (40 B of 100 B, predicted).",
        ),
        (
            (row("store-all", 100, 1.0), row("recompute-all", 100, 1.5, True)),
            "Policy recompute-all costs 50% more time and saves no memory against store-all (100 B of 100 B, predicted).",
        ),
        (
            (row("store-all", 100, 1.0, True), row("every-k:1", 60, 1.1), row("recompute-all", 50, 3.0)),
            "If memory is short, take policy every-k:1: it costs 10% more time and saves 40% of the peak.",
        ),
        (
            (row("store-all", 100, 1.0, True), row("every-k:1", 60, 1.5)),
            "Keep store-all: no other that was tried saves 10% of its peak for at most 15% more time.",
        ),
        (
            (row("store-all", 100, 1.0), row("every-k:1", 60, 1.5, True), row("every-k:2", 50, 1.2)),
            "Take policy every-k:2 instead: it takes 20% less time and saves 17% of the peak.",
        ),
        (
            (row("store-all", 100 * MIB, 1.0), row("budget", 93 * MIB, 1.48, True, 94 * MIB)),
            "That is dear: unless 7.0 MiB more do not fit, take policy store-all, which takes 32% less time and holds 8% more.",
        ),
        (
            (row("store-all", 100, 1.0), row("recompute-all", 100, 1.5, True)),
            "That is dear: take policy store-all, which takes 33% less time and saves no memory.",
        ),
    ],
)  # fmt: skip
def test_the_choice_is_told_by_what_it_costs_and_saves(rows: tuple[PolicyRow, ...], sentence: str) -> None:
    assert sentence in advice(replace(plain(), policies=rows))


@pytest.mark.parametrize(("longer", "saved", "dear"), [(0.48, 0.07, True), (0.48, 0.17, False), (0.14, 0.0, False)])
def test_what_costs_much_more_time_than_it_saves_memory_is_advised_against(
    longer: float, saved: float, dear: bool
) -> None:
    rows = (row("store-all", 1000, 1.0), row("every-k:1", round(1000 * (1 - saved)), 1 + longer, True))
    assert any("That is dear" in each for each in advice(replace(plain(), policies=rows))) == dear


def test_a_time_that_was_measured_on_a_busy_machine_makes_no_plan_dear() -> None:
    first, second = row("store-all", 100, 1.0), row("every-k:1", 70, 1.04, True)
    measured = (replace(first, step_seconds=0.07), replace(second, step_seconds=0.15))
    assert not any("That is dear" in each for each in advice(replace(plain(), policies=measured)))
    dear = (replace(measured[0], predicted_seconds=0.5), measured[1])
    assert any("That is dear" in each for each in advice(replace(plain(), policies=dear)))


def test_measured_numbers_are_told_where_both_are_measured() -> None:
    first = replace(row("store-all", 100, 1.0), ledger_peak=200, step_seconds=2.0)
    second = replace(row("every-k:1", 50, 1.0, True), ledger_peak=50, step_seconds=3.0)
    told = "Policy every-k:1 costs 50% more time and saves 75% of the peak against store-all (50 B of 200 B, measured)."
    assert advice(replace(plain(), policies=(first, second)))[0] == told
    half = replace(second, step_seconds=None)
    assert "takes as long" in advice(replace(plain(), policies=(first, half)))[0]
    failed = replace(first, error="it broke")
    assert not any("against store-all" in each for each in advice(replace(plain(), policies=(failed, second))))


def test_the_peak_is_named_with_what_it_is_made_of() -> None:
    report = report_of(tokens(batch=64), "store-all")
    timeline = report.ranks[0].predicted
    label = timeline.labels[timeline.peak]
    (sentence,) = [each for each in report.advice if each.startswith("The peak")]
    assert timeline.layers[timeline.peak] in sentence
    assert label.split()[0] in sentence
    assert "of it are activations" in sentence
    small = report_of(mlp(), "store-all")
    assert "is in the operation norm; " in small.advice[-1]


def test_what_no_policy_changes_is_told() -> None:
    report = report_of(tokens(batch=2, features=96), "store-all")
    (sentence,) = [each for each in report.advice if each.startswith("The peak")]
    assert "which no policy changes, so none saves more than" in sentence


def test_a_failure_comes_first_with_its_place() -> None:
    report = plain()
    seen = report.ranks[0].measured
    assert seen is not None
    columns = ("labels", "phases", "layers", "shards", "recomputed", "seconds", "live", "inside", "changes")
    cut = replace(seen, **{name: getattr(seen, name)[:3] for name in columns}, peak=2)
    failed = replace(
        report, ranks=(replace(report.ranks[0], measured=cut),), failure="BudgetExceeded: 3 bytes.\nin operation 2"
    )
    first = advice(failed)[0]
    assert (
        first
        == f"The run ended in operation 3 of {len(seen.labels)}, {seen.labels[2]}, before its end: BudgetExceeded: 3 bytes."
    )
    unknown = advice(replace(report, failure="it was killed"))[0]
    assert unknown == "The run ended before its end: it was killed."


def test_memory_that_nobody_explains_is_told() -> None:
    report = plain()
    process = Process(300 * MIB, 100 * MIB, 100 * MIB, 0, 100 * MIB, (), None)

    def told(process: Process) -> bool:
        found = advice(replace(report, ranks=(replace(report.ranks[0], process=process),)))
        return any("100.0 MiB of the 300.0 MiB that the process takes are neither" in each for each in found)

    assert told(process)
    assert not told(replace(process, engine=195 * MIB, unexplained=5 * MIB))
