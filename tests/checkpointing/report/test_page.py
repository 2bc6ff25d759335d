"""A report's page stands alone, says the report's numbers, and shows every name as it is."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from plotly.offline import get_plotlyjs

from checkpointing.explanation import format_seconds
from checkpointing.report.data import Report
from checkpointing.report.html import page
from framework import format_size
from tests.checkpointing.report.reports import HOSTILE, made_report

#: Elements without an end.
_VOID = {"meta", "br", "input", "link", "img", "wbr"}


class Reader(HTMLParser):
    """Reads a page: its elements, that each ends where it should, and the text of table cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self._caption = ""
        self.feed(text.replace(get_plotlyjs(), ""))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)
        if "caption" in self.open:
            self._caption += data
        elif {"td", "th"} & set(self.open):
            self.tables[self._caption][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report() -> Report:
    return made_report(workers=2)


@pytest.fixture(scope="module")
def read(report: Report) -> Reader:
    return Reader(page(report))


def test_it_needs_nothing_from_elsewhere(report: Report) -> None:
    text = page(report)
    assert text.count(get_plotlyjs()) == 1
    own = text.replace(get_plotlyjs(), "")
    assert all(outside not in own for outside in ("http:", "https:", "src=", "<link", "@import", "url("))
    assert len(own) < 200_000


def test_tables_say_the_reports_numbers(report: Report, read: Reader) -> None:
    header, *rows = next(rows for caption, rows in read.tables.items() if "press a header to sort" in caption)
    assert header[:5] == ["layer", "kind", "output shape", "parameters", "output"]
    for row, layer in zip(rows, report.layers, strict=True):
        assert row[0] == layer.path
        assert row[3:7] == [
            f"{layer.parameters:,}",
            *map(format_size, (layer.output, layer.residuals, layer.workspace)),
        ]
        assert row[8:10] == [format_seconds(layer.forward_seconds), format_seconds(layer.backward_seconds)]
        assert row[10].endswith(layer.kept)
        assert row[11] == str(layer.forwards)
    _, *rows = read.tables["Policies and budgets"]
    for row, policy in zip(rows, report.policies, strict=True):
        assert row[0] == policy.policy
        assert row[2] == format_size(policy.predicted_peak)
        assert row[5] == format_seconds(policy.predicted_seconds)
        assert row[3] == ("" if policy.ledger_peak is None else format_size(policy.ledger_peak))
    assert rows[2][-1] == "failed: killed"
    parts = read.tables["Resident memory at the peak: engine + interpreter + Ray + unexplained = resident"]
    sizes = [int(row[1].replace(",", "")) for row in parts[1:6]]
    process = report.ranks[0].process
    assert process is not None
    assert sizes == [process.engine, process.interpreter, process.ray, process.unexplained, process.rss]
    assert sum(sizes[:4]) == sizes[4]
    assert [row[0] for row in read.tables["Workers"][1:]] == ["rank 0", "rank 1"]


def test_at_the_top_stands_what_matters(report: Report, read: Reader) -> None:
    text = " ".join(read.text)
    assert report.advice[0] in text
    assert f"{max(report.ranks[0].predicted.inside):,} bytes" in text
    assert "equal to the byte" in text
    assert "−67% memory" in text
    assert "+33.3% time" in text
    assert text.index(report.title) < text.index(report.advice[0]) < text.index("Memory through a step")


def test_it_can_be_read_without_eyes(read: Reader) -> None:
    assert read.all("html")[0]["lang"] == "en"
    for landmark in ("header", "main", "nav"):
        assert len(read.all(landmark)) == 1
    levels = [int(tag[1]) for tag, _ in read.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for section in read.all("section"):
        assert section.get("aria-label") or section["aria-labelledby"] in ids
    plots = [attributes for attributes in read.all("div") if "plot" in (attributes.get("class") or "").split()]
    assert len(plots) == 4
    assert all(plot["role"] == "img" and len(plot["aria-label"] or "") > 40 for plot in plots)
    assert len(read.all("caption")) == len(read.all("table"))
    assert all(cell["scope"] in ("col", "row") for cell in read.all("th"))
    assert len([head for head in read.all("th") if head.get("aria-sort") == "none"]) == len(read.all("button"))
    assert len(read.all("label")) == len(read.all("input")) + len(read.all("select"))


@pytest.mark.parametrize("layers", [1, 6])
def test_names_are_shown_as_they_are(layers: int) -> None:
    read = Reader(page(made_report(layers, workers=2, hostile=True)))
    assert read.all("img") == []
    assert all(not name.startswith("on") for _, attributes in read.elements for name in attributes)
    assert all((link["href"] or "").startswith("#") for link in read.all("a"))
    assert len(read.all("script")) == 3
    _, *rows = next(rows for caption, rows in read.tables.items() if "press a header to sort" in caption)
    assert [row[0] for row in rows] == [HOSTILE[place] + str(place) for place in range(layers)]
    text = "".join(read.text)
    assert "The run ended early" in text
    assert f"WorkerLost: {HOSTILE[0]}" in text


def test_a_report_of_a_plan_alone() -> None:
    report = replace(made_report(measured=False), budget=None, policies=(), frontier=(), advice=(), layers=())
    read = Reader(page(report))
    text = " ".join(read.text)
    assert "Measured peak" not in text
    assert "It was not measured." in text
    assert "The run ended early" not in text
    assert 'name="areas"' not in page(report)


def test_a_long_step_is_reduced_and_says_how() -> None:
    report = made_report(layers=400, measured=False)
    told = " ".join(Reader(page(report)).text)
    assert f"predicted: {len(report.ranks[0].predicted.labels):,} operations, of which" in told
    assert "the one with the most bytes during it is drawn, so no peak is lost" in told
    assert "nor when the reader zooms in. The report as .json or .trace.json has all." in told
    assert "3 operations share a column and 3 layers a row" in told
