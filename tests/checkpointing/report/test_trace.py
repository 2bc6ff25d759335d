"""The trace follows the rules of the trace-event format, and says what the report says."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpointing.report import sums, trace
from checkpointing.report.data import Report
from tests.checkpointing.cases import mlp, tokens
from tests.checkpointing.report.recorded import report_of


def require_rules(data: dict[str, Any]) -> None:
    """The rules of the format for the events that are used: M, X and C."""
    assert isinstance(data["traceEvents"], list)
    assert data["displayTimeUnit"] in ("ms", "ns")
    last = 0.0
    named: set[tuple[int, int]] = set()
    spans: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in data["traceEvents"]:
        assert {"ph", "ts", "pid", "tid", "name"} <= set(event)
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["ts"] >= last
        last = event["ts"]
        key, begin = (event["pid"], event["tid"]), round(event["ts"] * 1e3)
        match event["ph"]:
            case "M":
                assert event["name"] in ("process_name", "process_sort_index", "thread_name", "thread_sort_index")
                named.add(key)
            case "X":
                assert isinstance(event["cat"], str)
                assert event["dur"] >= 0
                spans[key].append((begin, begin + round(event["dur"] * 1e3)))
            case "C":
                assert event["args"]
                assert all(type(number) is int and number >= 0 for number in event["args"].values())
            case other:
                raise AssertionError(f"event of kind {other}")
    for key, each in spans.items():
        assert key in named
        open_: list[int] = []
        for begin, end in each:
            while open_ and open_[-1] <= begin and (open_[-1] < begin or end > begin):
                open_.pop()
            assert not open_ or end <= open_[-1], "spans of a thread overlap without one holding the other"
            open_.append(end)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_trace_follows_the_rules_of_the_format(shards: int, tmp_path: Path) -> None:
    report = report_of(tokens(), "every-k:1", shards)
    trace.save(report, tmp_path / "x.trace.json")
    data = json.loads((tmp_path / "x.trace.json").read_text())
    assert data == trace.to_trace(report)
    require_rules(data)


def spans_of(report: Report, pid: int, tid: int) -> list[dict[str, Any]]:
    events = trace.to_trace(report)["traceEvents"]
    return [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) == (pid, tid)]


def test_a_trace_says_what_the_report_says() -> None:
    report = report_of(mlp(), "every-k:2", shards=2)
    for tid, timeline in ((1, report.ranks[0].measured), (2, report.ranks[0].predicted)):
        assert timeline is not None
        spans = spans_of(report, 0, tid)
        operations = [span for span in spans if span["cat"] != "phase"]
        assert [span["name"] for span in operations] == list(timeline.labels)
        assert [span["cat"] for span in operations] == list(timeline.phases)
        assert [round(span["dur"] * 1e3) for span in operations] == [round(each * 1e9) for each in timeline.seconds]
        assert [span["args"]["live bytes"] for span in operations] == list(timeline.live)
        kind = ("", "measured", "predicted")[tid]
        counters = [
            event for event in trace.to_trace(report)["traceEvents"]
            if event["ph"] == "C" and event["tid"] == tid and event["name"] == f"live bytes, {kind}"
        ]  # fmt: skip
        columns = sums.by_category(timeline)
        assert counters[0]["args"] == {category: column[0] for category, column in columns.items()}
        assert counters[-1]["args"] == {category: column[-1] for category, column in columns.items()}
        assert sum(counters[-1]["args"].values()) == timeline.live[-1]


def test_each_worker_is_a_process_of_its_own_with_its_name() -> None:
    report = report_of(mlp(), "store-all")
    (rank,) = report.ranks
    both = replace(report, ranks=(replace(rank, node="größe & <b>"), replace(rank, rank=1, measured=None)))
    data = trace.to_trace(both)
    require_rules(data)
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in data["traceEvents"]
        if event["ph"] == "M" and event["name"].endswith("_name")
    }
    assert names == {
        (0, 0): "rank 0 on größe & <b>", (0, 1): "measured", (0, 2): "predicted", (1, 0): "rank 1", (1, 2): "predicted",
    }  # fmt: skip
    assert spans_of(both, 1, 2)
    assert not spans_of(both, 1, 1)
