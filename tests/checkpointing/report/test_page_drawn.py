"""What the page draws is what the report says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import accumulate
from typing import Any

import pytest

from checkpointing.report.data import Drawing, Report
from checkpointing.report.page.drawn import MOST_ACROSS, MOST_DOWN, MOST_POINTS, RUNNING, cells, drawn, phase_rows
from checkpointing.report.page.encoding import embedded, encoded
from checkpointing.report.page.points import Points
from tests.checkpointing.cases import mlp
from tests.checkpointing.report.recorded import report_of
from tests.checkpointing.report.reports import COLUMNS, HOSTILE, made_report, made_timeline, names


@pytest.fixture(scope="module")
def measured() -> Report:
    """Of a step that was run."""
    return report_of(mlp(), "every-k:2", 2)


def test_the_numbers_of_a_measured_step(measured: Report) -> None:
    rank, (found,) = measured.ranks[0], drawn(measured).ranks
    assert rank.measured is not None
    assert found.measured is not None
    assert found.predicted.inside == rank.predicted.inside
    assert found.measured.live == rank.measured.live
    assert found.equal
    assert f"equal after and during each of {len(rank.predicted.labels)} operations" in found.agreement
    most = max(rank.measured.inside)
    assert found.peak == most
    assert f"{most:,}" not in found.agreement
    for parts in (found.by_category, found.by_layer):
        assert sum(nbytes for _, nbytes in parts) == most
        assert [nbytes for _, nbytes in parts] == sorted((nbytes for _, nbytes in parts), reverse=True)
    assert sum(nbytes for *_, nbytes in found.holders) == most
    assert found.words.startswith(
        f"Bytes alive through {len(rank.measured.labels)} operations of a training step, measured."
    )


def test_phases_add_up_to_the_step(measured: Report) -> None:
    timeline = measured.ranks[0].predicted
    rows = phase_rows(timeline)
    assert [row.phase for row in rows] == [
        each for each in ("load", "forward", "loss", "backward", "all-reduce", "optimizer") if each in timeline.phases
    ]
    assert sum(row.operations for row in rows) == len(timeline.labels)
    assert sum(row.seconds for row in rows) == pytest.approx(sum(timeline.seconds))
    assert max(row.peak for row in rows) == max(timeline.inside)
    assert timeline.labels[timeline.peak] in [row.label for row in rows]


def test_a_byte_too_many_is_told() -> None:
    report = made_report()
    rank = report.ranks[0]
    assert rank.measured is not None
    inside = list(rank.measured.inside)
    inside[4] += 2_048
    off = replace(report, ranks=(replace(rank, measured=replace(rank.measured, inside=tuple(inside))),))
    (found,) = drawn(off).ranks
    assert not found.equal
    assert "differ at 1 of" in found.agreement
    assert f"number 4 ({rank.measured.labels[4]}): +2.0 KiB" in found.agreement


def test_a_run_that_ended_half_way() -> None:
    report = made_report()
    rank = report.ranks[0]
    whole = rank.predicted
    cut = replace(
        whole,
        peak=whole.inside[:5].index(max(whole.inside[:5])),
        **{name: getattr(whole, name)[:5] for name in COLUMNS},
    )
    (found,) = drawn(replace(report, ranks=(replace(rank, measured=cut),))).ranks
    assert found.measured is not None
    assert found.measured.at == (0, 1, 2, 3, 4)
    assert not found.equal
    assert found.agreement.endswith(f"The measurement ends after 5 of {len(whole.labels)}.")
    nothing = replace(cut, **dict.fromkeys(COLUMNS, ()))
    (without,) = drawn(replace(report, ranks=(replace(rank, measured=nothing),))).ranks
    assert without.measured is None


def test_many_workers_share_what_may_be_drawn() -> None:
    report = made_report(layers=200, shards=2, workers=8)
    found = drawn(report)
    assert all(len(rank.predicted.at) <= MOST_POINTS for rank in found.ranks)
    assert sum(len(points.at) for rank in found.ranks for points in (rank.predicted, rank.measured) if points) <= 8_000
    assert {max(rank.predicted.inside) for rank in found.ranks} == {max(report.ranks[0].predicted.inside)}


def test_the_drawing_of_a_plan_cell_by_cell(measured: Report) -> None:
    drawing = measured.drawing
    found = cells(drawing)
    assert (found.down, found.across, found.steps, found.labels) == (1, 1, drawing.steps, drawing.labels)
    for step, row in enumerate(found.rows):
        for place, digit in enumerate(row):
            runs = drawing.running[place]
            assert int(digit) == (RUNNING[runs[1]] if runs and runs[0] == step else int(drawing.held[place][step]))
    again = {runs for runs in drawing.running if runs and runs[1] == "R"}
    assert f"{len(again)} steps run forward again" in found.words


def test_what_shares_a_cell_shows_the_most() -> None:
    count, steps = 2 * MOST_ACROSS + 1, MOST_DOWN + 1
    held = [["0"] * steps for _ in range(count)]
    held[4][7], held[5][6], held[-1][-1] = "2", "3", "1"
    running = [None] * count
    running[10] = (0, "F")  # type: ignore[call-overload]
    running[11] = (1, "R")  # type: ignore[call-overload]
    found = cells(Drawing(names(steps), names(count), tuple(map("".join, held)), tuple(running)))
    assert (found.across, found.down) == (3, 2)
    assert len(found.rows) == len(found.steps) == -(-steps // 2)
    assert {len(row) for row in found.rows} == {len(found.labels)} == {-(-count // 3)}
    expected = [["0"] * len(found.labels) for _ in found.rows]
    expected[3][1], expected[-1][-1], expected[0][3] = "3", "1", "6"
    assert found.rows == tuple(map("".join, expected))
    assert cells(Drawing((), (), (), ())).rows == ()


def decoded(coded: dict[str, Any]) -> dict[str, Any]:
    """What decode.js does."""
    columns = {name: tuple(accumulate(coded[name])) for name in ("at", "shards", "starts", "ends", "live", "inside")}
    texts = {
        name: tuple(coded[name]["texts"][place] for place in coded[name]["at"])
        for name in ("labels", "layers", "phases")
    }
    return {**coded, **columns, **texts, "stacks": tuple(tuple(accumulate(stack)) for stack in coded["stacks"])}


def require_same(coded: dict[str, Any], points: Points) -> None:
    found = decoded(coded)
    for name in (
        "operations",
        "stride",
        "peak",
        *("at", "shards", "starts", "ends", "live", "inside", "labels", "layers", "phases", "stacks"),
    ):
        assert found[name] == getattr(points, name)
    assert [each == "1" for each in found["recomputed"]] == list(points.recomputed)
    assert [list(holder) for holder in points.holders] == found["holders"]
    pairs = [tuple(zip(each[::2], each[1::2], strict=True)) for each in found["changes"]]
    assert pairs == list(points.changes)


def test_what_is_embedded_is_what_is_drawn() -> None:
    report = made_report(layers=30, shards=4, hostile=True)
    found = drawn(report)
    text = embedded(found)
    assert "<" not in text
    data = json.loads(text)
    assert data == json.loads(json.dumps(encoded(found)))
    coded = data["ranks"][0]
    require_same(coded["predicted"], found.ranks[0].predicted)
    # The bytes of what was measured are those predicted, so its times alone are there.
    assert found.ranks[0].measured is not None
    assert set(coded["measured"]) == {"as_predicted", "starts", "ends"}
    require_same({**coded["predicted"], **coded["measured"]}, found.ranks[0].measured)
    assert data["frontier"]["policies"] == json.loads(json.dumps([asdict(row) for row in report.policies]))
    assert [tuple(point) for point in data["frontier"]["curve"]] == [
        (p.budget, p.seconds, p.bound_seconds, p.policy) for p in report.frontier
    ]
    assert data["cells"]["steps"] == list(names(30, hostile=True))
    assert HOSTILE[0] in data["frontier"]["policies"][1]["policy"]


def test_what_was_measured_otherwise_is_embedded_whole() -> None:
    report = made_report()
    other = made_timeline(names(6), 3)
    found = drawn(replace(report, ranks=(replace(report.ranks[0], measured=other),)))
    assert found.ranks[0].measured is not None
    require_same(json.loads(embedded(found))["ranks"][0]["measured"], found.ranks[0].measured)
