"""A report in the trace-event format, which Perfetto and Chrome's tracing page open: operations as spans, live bytes as counters.

The format: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Each worker
is a process; its measured and its predicted step are two threads of it, phases above the operations that they hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from checkpointing.report.data import Rank, Report, Timeline
from checkpointing.report.sums import by_category
from framework.durable import write_all, written_aside

Event = dict[str, Any]


def to_trace(report: Report) -> dict[str, Any]:
    """Returns a report as the JSON object format of trace events, times in microseconds from each step's begin."""
    events = [event for rank in report.ranks for event in _rank_events(rank)]
    # Metadata first. Events of one time stay in their order: a phase before its operations, and these as they ran.
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "title": report.title,
            "advice": " ".join(report.advice),
            "policy": report.policy,
            "failure": report.failure,
        },
    }


def dumps(report: Report) -> str:
    """Returns a report as the text of a trace."""
    return json.dumps(to_trace(report), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def save(report: Report, path: Path) -> None:
    """Writes a report as a trace, which appears whole or not at all."""
    with written_aside(path) as descriptor:
        write_all(descriptor, dumps(report).encode())


def _rank_events(rank: Rank) -> Iterator[Event]:
    where = f"rank {rank.rank}" + (f" on {rank.node}" if rank.node else "")
    yield _metadata(rank.rank, 0, "process_name", name=where)
    yield _metadata(rank.rank, 0, "process_sort_index", sort_index=rank.rank)
    for tid, (kind, timeline) in enumerate((("measured", rank.measured), ("predicted", rank.predicted)), 1):
        if timeline is not None:
            yield _metadata(rank.rank, tid, "thread_name", name=kind)
            yield _metadata(rank.rank, tid, "thread_sort_index", sort_index=tid)
            yield from _timeline_events(rank.rank, tid, kind, timeline)


def _metadata(pid: int, tid: int, what: str, **args: Any) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": what, "args": args}


def _timeline_events(pid: int, tid: int, kind: str, timeline: Timeline) -> Iterator[Event]:
    # Whole nanoseconds, so that what lies in a phase does so exactly.
    begins = list(accumulate((round(each * 1e9) for each in timeline.seconds), initial=0))
    common: Event = {"pid": pid, "tid": tid}
    for phase, group in groupby(range(len(timeline.labels)), key=timeline.phases.__getitem__):
        places = list(group)
        yield {**common, "ph": "X", "name": phase, "cat": "phase", **_span(begins[places[0]], begins[places[-1] + 1])}
        for place in places:
            span = _span(begins[place], begins[place + 1])
            about = _about(timeline, place)
            yield {**common, "ph": "X", "name": timeline.labels[place], "cat": phase, **span, "args": about}
    yield from _counters(common, kind, timeline, begins)


def _span(begin: int, end: int) -> Event:
    return {"ts": begin / 1e3, "dur": (end - begin) / 1e3}


def _about(timeline: Timeline, place: int) -> dict[str, Any]:
    told: dict[str, Any] = {"live bytes": timeline.live[place], "most bytes inside": timeline.inside[place]}
    if timeline.layers[place]:
        told["layer"] = timeline.layers[place]
    if timeline.shards[place] is not None:
        told["shard"] = timeline.shards[place]
    if timeline.recomputed[place]:
        told["recomputed"] = True
    return told


def _counters(common: Event, kind: str, timeline: Timeline, begins: Sequence[int]) -> Iterator[Event]:
    """Live bytes by category wherever they change, and the most during each operation."""
    columns = by_category(timeline)
    for place in range(len(timeline.labels) + 1):
        if place == 0 or timeline.changes[place - 1]:
            bytes_now = {category: column[place] for category, column in columns.items()}
            yield {**common, "ph": "C", "name": f"live bytes, {kind}", "ts": begins[place] / 1e3, "args": bytes_now}
    for most, group in groupby(range(len(timeline.inside)), key=timeline.inside.__getitem__):
        args, begin = {"bytes": most}, begins[next(group)]
        yield {**common, "ph": "C", "name": f"most bytes inside, {kind}", "ts": begin / 1e3, "args": args}
