"""A report as JSON: read again it is the same, and what is no report is refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.report import json_file
from checkpointing.report.columns import column, written
from checkpointing.report.data import Drawing, FrontierPoint, LayerRow, PolicyRow, Process, Rank, Report, Timeline
from tests.checkpointing.cases import mlp, tokens
from tests.checkpointing.report.recorded import report_of

TEXT = st.text(max_size=8) | st.sampled_from(['<b>&"', "größe.层", "</script>"])
BYTES = st.integers(0, 2**50)
SECONDS = st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 1e9)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any timeline whose bytes add up."""
    count, holders = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    columns: dict[str, Any] = {
        "labels": TEXT,
        "phases": st.sampled_from(["load", "forward", "loss", "backward", "all-reduce", "optimizer"]),
        "layers": TEXT,
        "shards": st.none() | st.integers(0, 9),
        "recomputed": st.booleans(),
        "seconds": SECONDS,
    }
    found = {name: tuple(draw(st.lists(each, min_size=count, max_size=count))) for name, each in columns.items()}
    before = tuple(draw(BYTES) for _ in range(holders))
    changes: list[tuple[tuple[int, int], ...]] = []
    now, live, inside = list(before), [], []
    for _ in range(count):
        holder, after = draw(st.integers(0, holders - 1)), draw(BYTES)
        changes.append(((holder, after - now[holder]),) if after != now[holder] else ())
        inside.append(max(sum(now), sum(now) - now[holder] + after) + draw(BYTES))
        now[holder] = after
        live.append(sum(now))
    peak = inside.index(max(inside)) if inside else 0
    most = max(inside, default=sum(before))
    return Timeline(
        **found, live=tuple(live), inside=tuple(inside), holders=tuple((draw(TEXT), draw(TEXT)) for _ in range(holders)),
        before=before, changes=tuple(changes), peak=peak, at_peak=((0, most),) if most else (),
    )  # fmt: skip


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    steps, count = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    rows = st.text("0123", min_size=steps, max_size=steps)
    runs = st.none() | st.tuples(st.integers(0, steps - 1), st.sampled_from("FRB"))
    some = {"min_size": count, "max_size": count}
    return Drawing(
        tuple(draw(st.lists(TEXT, min_size=steps, max_size=steps))),
        *(tuple(draw(st.lists(each, **some))) for each in (TEXT, rows, runs)),  # type: ignore[arg-type]
    )


def rows(kind: type[Any], *fields: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.builds(kind, *fields), max_size=2).map(tuple)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


PROCESSES = st.builds(
    Process, BYTES, BYTES, BYTES, BYTES, st.integers(-(2**40), 2**40), st.lists(BYTES).map(tuple), maybe(BYTES)
)
RANKS = st.builds(
    Rank, st.integers(0, 9), TEXT, timelines(), maybe(timelines()), maybe(st.integers(0, 9)), maybe(PROCESSES)
)
LAYERS = rows(
    LayerRow, TEXT, TEXT, st.lists(st.integers(0, 9)).map(tuple), BYTES, BYTES, BYTES, BYTES, BYTES, SECONDS, SECONDS,
    st.sampled_from(["kept", "in part", "recomputed"]), st.integers(0, 9),
)  # fmt: skip
POLICIES = rows(
    PolicyRow, TEXT, maybe(BYTES), BYTES, SECONDS, maybe(BYTES), maybe(BYTES), maybe(SECONDS), SECONDS, st.booleans(), maybe(TEXT)
)  # fmt: skip
JSON = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT | st.lists(TEXT), max_size=3)
REPORTS = st.builds(
    Report, TEXT, st.lists(TEXT, max_size=2).map(tuple), TEXT, TEXT, TEXT, maybe(BYTES),
    st.lists(RANKS, min_size=1, max_size=2).map(tuple), LAYERS, POLICIES, rows(FrontierPoint, BYTES, SECONDS, SECONDS, TEXT),
    drawings(), JSON, JSON, st.dictionaries(TEXT, TEXT, max_size=3), TEXT,
)  # fmt: skip


@given(REPORTS)
def test_a_report_is_read_as_it_was_written(report: Report) -> None:
    said = json.dumps(json_file.to_json(report), allow_nan=False)
    assert json_file.from_json(json.loads(said)) == report


def test_a_report_of_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    report = report_of(tokens(), "every-k:1", shards=2, configuration={"batch": 8}, versions={"numpy": "2"})
    json_file.save(report, tmp_path / "report.json")
    assert json_file.load(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@given(st.lists(st.integers(0, 3) | st.none()))
def test_a_column_is_read_as_it_was_written(values: list[int | None]) -> None:
    said = json.loads(json.dumps(written(values)))
    assert column(lambda value, where: value)(said, "it") == tuple(values)


def said() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(json_file.to_json(report_of(mlp(), "store-all"))))
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(version=2), r"expected 'retape-report' version 1, but got 'retape-report' version 2"),
        (lambda data: data.pop("schema"), r"expected 'retape-report' version 1, but got None version 1"),
        (lambda data: data.pop("layers"), r"the report lacks 'layers'"),
        (lambda data: data.update(budgets=3), r"no field 'budgets'; did you mean 'budget'"),
        (lambda data: data.update(budget=3.5), r"budget of the report must be a whole number from 0, but is 3.5"),
        (lambda data: data.update(ranks=[]), r"ranks of the report must have at least one"),
        (lambda data: data["layers"][2].update(flops="many"), r"flops of number 2 in layers of the report must be a whole"),
        (lambda data: data["layers"][0].update(kept="half"), r"must be one of 'kept', 'in part', 'recomputed', but is 'half'"),
        (lambda data: data["ranks"][0]["predicted"]["before"].append(3), r"before of predicted .*of 15 holders, but has 16"),
        (lambda data: data["ranks"][0]["predicted"]["labels"].append("x"), r"must be equally long, but are: labels 38, phases 37"),
        (lambda data: data["ranks"][0]["predicted"]["at_peak"].__setitem__(1, 7), r"at_peak of predicted .* must add up to the peak"),
        (lambda data: data["ranks"][0]["predicted"]["at_peak"].__setitem__(0, 99), r"has the number 99, but there are 15"),
        (lambda data: data["drawing"].pop("running"), r"drawing of the report lacks 'running'"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_in_words(change: Any, message: str) -> None:
    data = said()
    assert json_file.from_json(data)
    change(data)
    with pytest.raises(ValueError, match=message):
        json_file.from_json(data)


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no report .*none.json; .* makes one"):
        json_file.load(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"schema": "retape-rep')
    with pytest.raises(ValueError, match=r"cut.json is no JSON file"):
        json_file.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json: the report must be an object, but is \[\]"):
        json_file.load(tmp_path / "list.json")


def test_columns_that_are_as_predicted_are_left_out() -> None:
    report = report_of(mlp(), "store-all")
    (rank,) = json_file.to_json(report)["ranks"]
    assert set(rank["measured"]) == {"nanoseconds"}
    seen = report.ranks[0].measured
    assert seen is not None
    other = replace(report.ranks[0], measured=replace(seen, labels=("x", *seen.labels[1:])))
    (rank,) = json_file.to_json(replace(report, ranks=(other,)))["ranks"]
    assert set(rank["measured"]) == {"nanoseconds", "labels"}
