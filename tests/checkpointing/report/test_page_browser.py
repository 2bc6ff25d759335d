"""Chromium draws the page of a report, without a network and without complaint, and what a reader does works."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from checkpointing.report.data import Drawing, Report
from checkpointing.report.html import page
from checkpointing.report.page.shell import html_page
from tests.browser import Browser, Opened
from tests.checkpointing.cases import mlp
from tests.checkpointing.report.recorded import report_of
from tests.checkpointing.report.reports import COLUMNS, HOSTILE, made_report, made_timeline, names

DRAWN = "[data-drawn=all]"
PLOTS = ("timeline", "frontier", "plan", "steps")


@contextmanager
def opened(
    browser: Browser, report: Report, folder: Path, width: int = 1400, *, dark: bool = False
) -> Iterator[Opened]:
    path = folder / "report.html"
    path.write_text(page(report), encoding="utf-8")
    with browser.open(path, width, dark=dark, wait=DRAWN) as found:
        yield found
        assert found.page.evaluate("window.broken") is None


def require_drawn(found: Opened, width: int) -> None:
    """Every plot has a drawing in it, and the page does not scroll sideways."""
    for name in PLOTS:
        plot = found.page.locator(f"#plot-{name}")
        assert plot.locator("svg.main-svg").count() >= 1
        box = plot.bounding_box()
        assert box["width"] > 0.4 * min(width, 900)
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    for name, marks in (
        ("timeline", ".fills path, .js-fill, .hm image"),
        ("frontier", ".points path"),
        ("plan", ".hm image"),
        ("steps", ".lines path"),
    ):
        assert found.page.locator(f"#plot-{name}").locator(marks).count() > 0, name
    assert found.page.evaluate("document.documentElement.scrollWidth") == width


def hover(found: Opened, plot: str, across: float, down: float, *expected: str) -> None:
    """Points at a place of a plot, as parts of its area, and waits until its label says what is expected."""
    found.page.locator(f"#plot-{plot}").scroll_into_view_if_needed()
    box = found.page.locator(f"#plot-{plot} .nsewdrag").first.bounding_box()
    for short in (3, 0):
        found.page.mouse.move(box["x"] + across * box["width"] - short, box["y"] + down * box["height"])
    label = found.page.locator(f"#plot-{plot} .hoverlayer .hovertext")
    for text in expected:
        label = label.filter(has_text=text)
    label.first.wait_for()


def test_a_measured_step_is_drawn_and_can_be_read(browser: Browser, tmp_path: Path) -> None:
    report = report_of(mlp(), "every-k:2", 2, budget=10**6)
    process = made_report().ranks[0].process
    report = replace(report, ranks=(replace(report.ranks[0], process=process),))
    timeline = report.ranks[0].measured
    assert timeline is not None
    with opened(browser, report, tmp_path) as found:
        require_drawn(found, 1400)
        # What the script has decoded are the report's numbers, measured times with predicted bytes.
        told = found.page.evaluate(
            "(({at, inside, live, labels, ends}) => ({at, inside, live, labels, ends}))(data.ranks[0].measured)"
        )
        assert told["inside"] == list(timeline.inside)
        assert told["live"] == list(timeline.live)
        assert told["labels"] == list(timeline.labels)
        assert told["ends"][-1] == pytest.approx(sum(timeline.seconds) * 1e9, abs=1)
        # The areas add up to the bytes drawn.
        tops = found.page.evaluate(
            "stepPlot.data.filter((trace) => trace.name === 'in passing')[0].y.map((y) => y * sizeUnit(Math.max(...shown().inside)).size)"
        )
        assert tops[:-1] == pytest.approx(list(timeline.inside))
        place = len(timeline.labels) // 3
        hover(
            found, "timeline", (place + 0.5) / len(timeline.labels), 0.5, timeline.labels[place], timeline.layers[place]
        )
        head = found.page.locator("#readout h3").text_content()
        assert head == f"{place}  {timeline.labels[place]}"
        held = found.page.locator("#readout table").first.inner_text()
        assert "activations" in held
    print(f"a measured step of {len(timeline.labels)} operations: {(tmp_path / 'report.html').stat().st_size:,} bytes")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_every_plot_is_drawn(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    with opened(browser, made_report(layers=12, workers=2), tmp_path, width, dark=dark) as found:
        require_drawn(found, width)
        ink = found.page.evaluate("stepPlot._fullLayout.font.color")
        assert ink == ("#e8eaed" if dark else "#1d2125")
        # And in the other colours, when the reader changes them.
        found.page.emulate_media(color_scheme="light" if dark else "dark")
        found.page.wait_for_function("before => stepPlot._fullLayout.font.color !== before", arg=ink)
        require_drawn(found, width)


@pytest.mark.browser
def test_hovering_tells_operation_layer_and_bytes(browser: Browser, tmp_path: Path) -> None:
    report = made_report(layers=9)
    drawing, timeline = report.drawing, report.ranks[0].predicted
    with opened(browser, report, tmp_path) as found:
        for place in (0, timeline.peak, len(timeline.labels) - 1):
            hover(
                found,
                "timeline",
                (place + 0.5) / len(timeline.labels),
                0.4,
                timeline.labels[place],
                timeline.layers[place],
            )
        column = next(place for place, runs in enumerate(drawing.running) if runs and runs[1] == "R")
        runs = drawing.running[column]
        assert runs is not None
        at = (column + 0.5) / len(drawing.labels), (runs[0] + 0.5) / len(drawing.steps)
        hover(found, "plan", *at, drawing.labels[column], f"{drawing.steps[runs[0]]}: runs forward again")
        hover(found, "steps", 0.5, 0.5, "step 1: 92.5 MiB")


def column_of(found: Opened, number: int) -> list[str]:
    cells: list[str] = found.page.locator(f"#layers tbody tr > :nth-child({number + 1})").all_text_contents()
    return cells


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_tables_are_sorted_by_their_headers_by_mouse_and_by_keyboard(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    report = made_report(layers=12)
    with opened(browser, report, tmp_path, width) as found:
        heads = found.page.locator("#layers thead th")
        by = [f"{row.parameters:,}" for row in sorted(report.layers, key=lambda row: -row.parameters)]
        heads.nth(3).locator("button").click()
        assert heads.nth(3).get_attribute("aria-sort") == "descending"
        assert column_of(found, 3) == by
        heads.nth(3).locator("button").focus()
        found.page.keyboard.press("Enter")
        assert heads.nth(3).get_attribute("aria-sort") == "ascending"
        assert column_of(found, 3) == by[::-1]
        # Words from the first to the last, numbers in them as numbers: block2.b comes before block10.a.
        heads.nth(0).locator("button").focus()
        found.page.keyboard.press("Space")
        assert heads.nth(0).get_attribute("aria-sort") == "ascending"
        assert heads.nth(3).get_attribute("aria-sort") == "none"
        assert column_of(found, 0) == [row.path for row in report.layers]


@pytest.mark.browser
def test_on_a_phone_names_stay_where_a_table_scrolls_and_leave_room(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, made_report(layers=12, hostile=True), tmp_path, 400) as found:
        for table in ("#layers", "#policies"):
            area = found.page.locator(f"{table} .scroll").first
            places = [area.locator("thead th").first, *area.locator("tbody tr > :first-child").all()]
            before = [each.bounding_box() for each in places]
            scrolled = area.evaluate("each => { each.scrollLeft = 10_000; return each.scrollLeft; }")
            assert scrolled > 100
            after = [each.bounding_box() for each in places]
            assert [each["x"] for each in after] == [each["x"] for each in before]
            assert all(each["width"] < 190 for each in after)
            area.scroll_into_view_if_needed()
            # What lies at a point is known when what was scrolled has been drawn.
            found.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            for each in places[:2]:  # and nothing lies over them
                at = each.bounding_box()
                on_top = (
                    "(each, at) => each.contains(document.elementFromPoint(at.x + at.width / 2, at.y + at.height / 2))"
                )
                assert each.evaluate(on_top, at)


@pytest.mark.browser
def test_the_cursor_moves_by_keyboard_and_says_where_it_is(browser: Browser, tmp_path: Path) -> None:
    report = made_report(layers=5)
    timeline = report.ranks[0].predicted
    with opened(browser, report, tmp_path) as found:
        cursor = found.page.get_by_label("Operation", exact=True)
        assert cursor.input_value() == str(timeline.peak)
        cursor.focus()
        found.page.keyboard.press("Home")
        assert timeline.labels[0] in cursor.get_attribute("aria-valuetext")
        found.page.keyboard.press("ArrowRight")
        assert found.page.locator("#readout h3").text_content() == f"1  {timeline.labels[1]}"
        mark, area = (found.page.locator(name).first.bounding_box() for name in ("#mark", "#plot-timeline .nsewdrag"))
        assert mark["x"] - area["x"] == pytest.approx(area["width"] * 1.5 / len(timeline.labels), abs=2)


@pytest.mark.browser
def test_each_worker_can_be_looked_at(browser: Browser, tmp_path: Path) -> None:
    report = made_report(workers=2)
    other = made_timeline(names(6), 1)
    report = replace(report, ranks=(report.ranks[0], replace(report.ranks[1], predicted=other, measured=None)))
    with opened(browser, report, tmp_path) as found:
        parts = found.page.locator("#peak [data-rank='1']")
        assert not parts.is_visible()
        found.page.get_by_label("Worker", exact=True).select_option(label="rank 1")
        assert parts.is_visible()
        assert not found.page.locator("#peak [data-rank='0']").is_visible()
        assert found.page.evaluate("stepPlot.data.at(-1).x.length") == len(other.labels)
        assert (
            found.page.locator("#plot-timeline")
            .get_attribute("aria-label")
            .startswith(f"Bytes alive through {len(other.labels)} ")
        )
        for choice in ("predicted", "time", "what changes", "relative"):
            found.page.get_by_text(choice, exact=True).first.click()
        require_drawn(found, 1400)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 400])
def test_names_execute_nothing(browser: Browser, tmp_path: Path, width: int) -> None:
    report = made_report(workers=2, hostile=True)
    with opened(browser, report, tmp_path, width) as found:
        require_drawn(found, width)
        timeline = report.ranks[0].predicted
        for path in dict.fromkeys(timeline.layers):
            place = timeline.layers.index(path)
            hover(found, "timeline", (place + 0.5) / len(timeline.labels), 0.5, timeline.labels[place], path)
        if width > 640:  # narrower, the names are in its labels alone
            assert "<img src=" in found.page.locator("#plot-frontier").text_content()
        assert found.page.locator("a:not([href^='#']), img, script[src]").count() == 0
        assert found.page.title() == HOSTILE[0]


@pytest.mark.browser
@pytest.mark.parametrize("layers", [1, 1_000])
def test_models_of_one_layer_and_of_a_thousand(browser: Browser, tmp_path: Path, layers: int) -> None:
    report = made_report(layers, 1)
    with opened(browser, report, tmp_path) as found:
        require_drawn(found, 1400)
        assert len(column_of(found, 0)) == layers
        inside: Any = found.page.evaluate("data.ranks[0].predicted.inside")
        assert max(inside) == max(report.ranks[0].predicted.inside)


def cut_short(report: Report) -> Report:
    """A run that ended in its fifth operation."""
    rank = report.ranks[0]
    inside = rank.predicted.inside[:5]
    cut = replace(
        rank.predicted, peak=inside.index(max(inside)), **{name: getattr(rank.predicted, name)[:5] for name in COLUMNS}
    )
    return replace(report, ranks=(replace(rank, measured=cut, process=None),), failure="WorkerLost: rank 0")


def bare(report: Report) -> Report:
    """A plan alone, of which nothing else is known."""
    nothing = Drawing((), (), (), ())
    return replace(report, budget=None, policies=(), frontier=(), layers=(), advice=(), drawing=nothing)


@pytest.mark.browser
@pytest.mark.parametrize(
    "report", [cut_short(made_report()), bare(made_report(measured=False))], ids=["cut short", "bare"]
)
def test_reports_that_lack_something_are_drawn_as_far_as_they_go(
    browser: Browser, tmp_path: Path, report: Report
) -> None:
    with opened(browser, report, tmp_path) as found:
        areas = found.page.locator("#plot-timeline .fills path, #plot-timeline .js-fill")
        assert areas.count() > 3
        shown = report.ranks[0].measured or report.ranks[0].predicted
        assert found.page.evaluate("shown().at.length") == len(shown.labels)
        hover(found, "timeline", 2.5 / len(shown.labels), 0.5, shown.labels[2])
        assert found.page.get_by_text("The run ended early").count() == bool(report.failure)


@pytest.mark.browser
def test_pages_of_other_programs_follow_the_readers_colours(browser: Browser, tmp_path: Path) -> None:
    figure = go.Figure(go.Scatter(y=[1, 2, 3]))
    path = tmp_path / "page.html"
    path.write_text(
        html_page("<b>", "a lead", figure.to_html(full_html=False, include_plotlyjs=False)), encoding="utf-8"
    )
    with browser.open(path, dark=True, wait=".lines path") as found:
        colours = (
            "(({font, yaxis}) => [font.color, yaxis.gridcolor])(document.querySelector('.js-plotly-plot')._fullLayout)"
        )
        found.page.wait_for_function(f"{colours}[0] === '#e8eaed'")
        assert found.page.evaluate(colours) == ["#e8eaed", "#363c44"]
        found.page.emulate_media(color_scheme="light")
        found.page.wait_for_function(f"{colours}[0] === '#1d2125'")
        assert found.page.locator("h1").text_content() == "<b>"


@pytest.mark.browser
def test_it_is_printed_in_the_colours_of_paper(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, made_report(), tmp_path, dark=True) as found:
        found.page.emulate_media(media="print", color_scheme="dark")
        found.page.wait_for_function("stepPlot._fullLayout.font.color === '#000'")
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not found.page.locator(".controls").first.is_visible()
        assert len(found.page.pdf(format="A4")) > 50_000


@pytest.mark.browser
def test_a_hundred_thousand_operations(browser: Browser, tmp_path: Path) -> None:
    report = made_report(layers=1_000, shards=19, workers=2)
    timeline = report.ranks[0].predicted
    assert len(timeline.labels) > 100_000
    path = tmp_path / "report.html"
    path.write_text(page(report), encoding="utf-8")
    size = path.stat().st_size
    assert size < 8_000_000
    began = time.perf_counter()
    with browser.open(path, wait=DRAWN) as found:
        took = time.perf_counter() - began
        require_drawn(found, 1400)
        assert found.page.evaluate("Math.max(...data.ranks[0].predicted.inside)") == max(timeline.inside)
        assert json.loads(found.page.locator("#data").text_content())["ranks"][0]["predicted"]["operations"] == len(
            timeline.labels
        )
    print(f"{len(timeline.labels):,} operations on each of two workers: {size:,} bytes, opened in {took:.2f} s")
