"""Reports of odd models and runs are right as data, JSON, text and trace: odd names, one layer, 1,000 layers, a run that failed half-way."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from checkpointing.report import build, json_file, sums, text, trace
from checkpointing.report.compare import compare
from checkpointing.report.data import PolicyRow, Report, Timeline
from framework import GELU, BudgetExceeded, Chain, Ledger, Linear, MeanSquaredError
from tests.checkpointing.cases import Case, tokens
from tests.checkpointing.report.recorded import report_of
from tests.checkpointing.report.test_timelines import require_sums
from tests.checkpointing.report.test_trace import require_rules

ODD = ('<b>&"', "größe层", "[red]x[/red]", "a b", "</script><script>alert(1)</script>", "{}\\n'")


def case_of(layers: dict[str, Any]) -> Case:
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    return Case("odd", Chain(**layers), MeanSquaredError(), x, x)


def require_right(report: Report) -> None:
    """All forms of a report say what its data say."""
    assert json_file.from_json(json.loads(json_file.dumps(report))) == report
    data = json.loads(trace.dumps(report))
    require_rules(data)
    told = text.text(report)
    for rank in report.ranks:
        for timeline in (rank.predicted, rank.measured):
            assert timeline is not None
            require_sums(timeline)
            names = [event["name"] for event in data["traceEvents"] if event["ph"] == "X" and event["cat"] != "phase"]
            assert set(timeline.labels) <= set(names)
        seen = rank.measured or rank.predicted
        for category, owner, nbytes in sums.at_peak(seen):
            assert any(category in line and f"{nbytes:,}" in line and owner[:8] in line for line in told.splitlines())
    found = compare(report, report)
    assert (found.at_peak, found.held) == ((), ())


def test_names_with_markup_and_of_other_scripts_stay_as_they_are() -> None:
    layers = {name: Linear(3) if number % 2 else GELU() for number, name in enumerate(ODD)}
    report = report_of(case_of({"first": Linear(3), **layers}), "every-k:2", title='<b>&"größe')
    require_right(report)
    assert [row.path for row in report.layers] == ["first", *ODD]
    told = text.text(report)
    assert all(name in told for name in ODD if name.isprintable() and len(name) < 14)
    assert report.drawing.steps == ("first", *ODD)


def test_a_model_of_one_layer() -> None:
    report = report_of(case_of({"only": Linear(3)}), "store-all")
    require_right(report)
    (row,) = report.layers
    assert (row.path, row.kind, row.parameters, row.kept, row.forwards) == ("only", "Linear", 12, "kept", 1)


@pytest.mark.memory
def test_a_model_of_a_thousand_layers() -> None:
    layers = {f"layer{number}": GELU() if number % 2 else Linear(3) for number in range(999)}
    # Given, since to bound the time of so many steps takes long.
    row = PolicyRow("every-k:30", None, 1, 1.0, None, None, None, 1.0, True)
    report = report_of(case_of({**layers, "last": Linear(3)}), "every-k:30", policies=[row])
    require_right(report)
    assert len(report.layers) == 1000
    assert sum(row.forwards for row in report.layers) > 1500
    assert len(json_file.dumps(report)) < 1e6


def test_a_run_that_failed_half_way() -> None:
    case = tokens()
    plan = case.plans("store-all").train[0]
    ledger = Ledger(limit=plan.peak - 1)
    engine = case.engine(ledger)
    ledger.start_recording()
    with pytest.raises(BudgetExceeded) as failed:
        engine.train_step(plan, case.loader(1), 0, 1e-2)
    rank = build.rank_of(plan, ledger.stop_recording(), step=0)
    layout = case.chain.layout(case.specs(1)[0])
    report = build.report("tokens", [plan], layout, ranks=[rank], failure=f"BudgetExceeded: {failed.value}")
    require_right(report)
    assert rank.measured is not None
    last = rank.measured.labels[-1]
    assert report.advice[0].startswith(
        f"The run ended in operation {len(rank.measured.labels)} of {len(plan.operations)}, {last}, before its end: BudgetExceeded:"
    )
    assert not any("not what was predicted" in sentence for sentence in report.advice)
    assert last in text.text(report)


def test_a_run_that_failed_at_its_first_operation_has_an_empty_timeline_at_worst() -> None:
    case = tokens()
    plan = case.plans("store-all").train[0]
    ledger = Ledger()
    engine = case.engine(ledger)
    ledger.start_recording()
    rank = build.rank_of(plan, ledger.stop_recording(), step=0)
    del engine
    report = build.report("tokens", [plan], case.chain.layout(case.specs(1)[0]), ranks=[rank], failure="it was killed")
    assert json_file.from_json(json.loads(json_file.dumps(report))) == report
    require_rules(json.loads(trace.dumps(report)))
    assert "it was killed" in text.text(report)


def repeated(timeline: Timeline, times: int, draw: random.Random) -> Timeline:
    """A timeline several times over, which ends as it began, with times as they are measured: no two alike."""
    columns = ("labels", "phases", "layers", "shards", "recomputed", "live", "inside", "changes")
    assert timeline.live[-1] == sum(timeline.before)
    more: dict[str, Any] = {name: getattr(timeline, name) * times for name in columns}
    return replace(timeline, **more, seconds=tuple(draw.randrange(10**6) / 1e9 for _ in more["labels"]))


@pytest.mark.memory
def test_a_report_of_a_hundred_thousand_events_is_small() -> None:
    report, draw = report_of(tokens(), "every-k:1", shards=8), random.Random(0)
    (rank,) = report.ranks
    assert rank.measured is not None
    times = -(-100_000 // len(rank.predicted.labels))
    long = replace(
        rank, predicted=replace(repeated(rank.predicted, times, draw), seconds=rank.predicted.seconds * times),
        measured=repeated(rank.measured, times, draw),
    )  # fmt: skip
    report = replace(report, ranks=(long,))
    said = json_file.dumps(report)
    assert len(said) < 2.5e6
    assert json_file.from_json(json.loads(said)) == report
    require_sums(long.measured or long.predicted)
