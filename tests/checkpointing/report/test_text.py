"""A report as text says what its data say, plainly, whatever the names."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from checkpointing.report import text
from checkpointing.report.compare import compare
from checkpointing.report.compare_text import comparison_parts
from checkpointing.report.data import FrontierPoint, Process, Report
from framework.sizes import format_size
from tests.checkpointing.cases import tokens
from tests.checkpointing.report.recorded import report_of


def full() -> Report:
    process = Process(5000, 1000, 3000, 0, 1000, (4000, 5000), 4500)
    report = report_of(
        tokens(),
        "every-k:1",
        shards=2,
        budget=10**5,
        configuration={"batch": 8, "policies": ["a", "b"], "data": []},
        failure="it broke",
    )
    rank = replace(report.ranks[0], process=process, node="node [a]")
    return replace(report, ranks=(rank,), frontier=(FrontierPoint(1000, 0.5, 0.4, "every-k:1"),), advice=("Do this.",))


def test_text_is_plain_and_says_what_the_report_says() -> None:
    report = full()
    told = text.text(report)
    assert "\x1b" not in told
    assert "…" not in told
    assert all(line == line.rstrip() for line in told.splitlines())
    assert "Do this." in told
    for row in report.layers:
        assert f"  {row.path:<14}"[:16] in told
        assert f"{row.kept} ×{row.forwards}" in told if row.forwards > 1 else row.kept in told
    timeline = report.ranks[0].predicted
    for number, nbytes in timeline.at_peak:
        assert any(timeline.holders[number][0] in line and f"{nbytes:,}" in line for line in told.splitlines())
    for part in (
        "engine",
        "interpreter",
        "Ray",
        "unexplained",
        "resident",
        "node [a]",
        "it broke",
        "┄ budget",
        "the memory-time curve",
    ):
        assert part in told
    assert "chosen" in told
    assert "asked for: batch 8, policies a b, data none" in told
    assert f"after steps  {4000 / 1024:.1f} KiB" in told


def test_a_row_is_called_by_its_policy_and_its_budget_once_each() -> None:
    report = full()
    first = report.policies[0]
    rows = (first, replace(first, policy="budget", budget=2**20), replace(first, policy="every-k:2", budget=2**20))
    drawn = text.plain([text.policies(replace(report, policies=rows))])
    named = [line.strip().partition("  ")[0] for line in drawn.splitlines()[-4:] if line]
    assert named == [first.policy, "budget 1.0 MiB", "every-k:2, budget 1.0 MiB"]


def test_the_chart_is_as_high_as_the_bytes() -> None:
    timeline = full().ranks[0].predicted
    lines = text.chart(timeline, width=60).plain.splitlines()
    columns = min(len(timeline.labels), 47)
    top = max(timeline.inside)
    heights = [
        sum(line[12 + column : 13 + column] not in ("", " ") for line in lines[:12]) for column in range(columns)
    ]
    for column, height in enumerate(heights):
        first, last = (number * len(timeline.labels) // columns for number in (column, column + 1))
        exact = max(timeline.inside[first:last]) * 12 / top
        assert exact - 1e-9 <= height + 1 / 8
        assert height <= exact + 1
    assert set(lines[12].split()[0]) <= set("LFlBAO")


def test_markup_and_non_ascii_in_names_stay_as_they_are() -> None:
    report = full()
    name = '<b>&"[red]größe.层'
    rows = tuple(replace(row, path=name) for row in report.layers[:1])
    timeline = replace(
        report.ranks[0].predicted, holders=tuple((c, name) for c, _ in report.ranks[0].predicted.holders)
    )
    odd = replace(report, layers=rows, title=name, ranks=(replace(report.ranks[0], predicted=timeline, measured=None),))
    told = text.text(odd)
    assert told.splitlines()[0] == name
    assert told.count(name) >= 1 + len(timeline.at_peak)


def test_a_terminal_sees_the_first_rows_and_how_many_more_there_are() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system="standard")
    for part in text.parts(full(), 100, rows=3):
        console.print(part)
    assert "\x1b[" in out.getvalue()
    assert f"{len(full().layers) - 3} more" in out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_in_short_lines_no_number_or_name_is_cut(width: int) -> None:
    report = full()
    told = text.text(report, width)
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= width
    for row in report.layers:
        assert any(line.startswith(f"  {row.path} ") for line in told.splitlines())
        assert format_size(row.output) in told
    assert "left out in lines this short: kind" in told
    assert "left out" not in text.text(report)


def test_a_comparison_as_text() -> None:
    before, after = report_of(tokens(batch=16), "every-k:1"), report_of(tokens(batch=16), "store-all")
    found = compare(before, after)
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None)
    for part in comparison_parts(found, 0.05):
        console.print(part)
    told = out.getvalue()
    assert "peak of rank 0" in told
    assert found.at_peak[0].layer in told
    assert f"{len(found.above(0.05))} of {len(found.peaks)} peaks grew by more than 5 %" in told
    same = list(comparison_parts(compare(before, before)))
    assert str(same[-1]) == "every layer holds the same"
