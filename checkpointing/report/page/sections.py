"""The parts of a memory report's page, in HTML, in the order in which they stand."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from checkpointing.explanation import format_seconds
from checkpointing.report.advice import peak_of, seconds_of
from checkpointing.report.data import PHASES, PolicyRow, Report
from checkpointing.report.page.drawn import Drawn, DrawnRank
from checkpointing.report.page.points import PASSING
from checkpointing.report.page.tables import Cell, Column, table
from framework import format_size
from framework.memory import CATEGORIES


def swatch(category: str) -> str:
    """The class of a category's mark, in its colour and pattern."""
    return f"swatch c{(*CATEGORIES, PASSING).index(category)}"


def section(name: str, title: str, body: str) -> str:
    """Returns a part of the page with a heading that names it."""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>\n{body}\n</section>'


def figure(name: str, words: str, caption: str, kind: str = "") -> str:
    """Returns a plot's place: the script draws into it; who cannot see it reads the words."""
    return (
        f'<figure><div class="plot {kind}" id="plot-{name}" role="img" aria-label="{escape(words)}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def of_ranks(drawn: Drawn, parts: Iterator[str]) -> str:
    """Returns a part for each worker, all but the first hidden until they are chosen."""
    return "\n".join(
        f'<div data-rank="{rank.rank}"{" hidden" if number else ""}>{part}</div>'
        for number, (rank, part) in enumerate(zip(drawn.ranks, parts, strict=True))
    )


def failure(report: Report) -> str:
    """What ended the run, where something did."""
    if not report.failure:
        return ""
    return (
        '<section class="failure" aria-labelledby="failure-title"><h2 id="failure-title">The run ended early</h2>'
        f"<pre>{escape(report.failure)}</pre><p>What follows is what was known until then.</p></section>"
    )


def advice(report: Report) -> str:
    """What the reader should do."""
    if not report.advice:
        return ""
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.advice)
    return f'<section class="advice" aria-label="Advice">{told}</section>'


def figures(report: Report, drawn: Drawn) -> str:
    """The figures that matter most, side by side."""
    worst = max(drawn.ranks, key=lambda rank: rank.peak)
    planned = max(worst.predicted.inside)
    found = [("Predicted peak", format_size(planned), f"{planned:,} bytes")]
    if worst.measured is not None:
        most = max(worst.measured.inside)
        found.append(
            (
                "Measured peak",
                format_size(most),
                "equal to the byte" if most == planned else f"{most - planned:+,} bytes",
            )
        )
    if report.budget is not None:
        found.append(("Budget", format_size(report.budget), f"{worst.peak / report.budget:.1%} of it at the peak"))
    if chosen := next((row for row in report.policies if row.chosen), None):
        how = report.costs.partition(":")[0] if chosen.step_seconds is None else "measured"
        found.append(("Step", format_seconds(seconds_of(chosen, [chosen])), how))
        found += _against_store_all(report, chosen)
    resident = [rank.process.rss for rank in drawn.ranks if rank.process is not None]
    if resident:
        found.append(("Whole process", format_size(max(resident)), "resident at its peak"))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in found
    )
    return f'<dl class="figures">{items}</dl>'


def _against_store_all(report: Report, chosen: PolicyRow) -> list[tuple[str, str, str]]:
    whole = next((row for row in report.policies if row.policy == "store-all"), None)
    if whole is None or whole is chosen:
        return []
    once, now = (seconds_of(row, (whole, chosen)) for row in (whole, chosen))
    if not peak_of(whole) or not once:
        return []
    saved, longer = peak_of(chosen) / peak_of(whole) - 1, now / once - 1
    return [("Against store-all", f"{saved:+.0%} memory".replace("-", "−"), f"{longer:+.1%} time".replace("-", "−"))]


def timeline(report: Report, drawn: Drawn) -> str:
    """The plot of a step, what is held where the reader points, and the table of its phases."""
    first = drawn.ranks[0]
    measured = any(rank.measured is not None for rank in drawn.ranks)
    over = "Areas: bytes after each operation by category, and hatched what it holds in passing. "
    if measured:
        over += "Solid line: the most during it, measured; dashed: predicted. "
    else:
        over += "Line: the most during it. "
    if report.budget is not None:
        over += "Dotted: the budget. "
    marks = " ".join(
        f'<span class="key"><i class="phase p{number}"></i>{phase}</span>' for number, phase in enumerate(PHASES)
    )
    again = '<span class="key"><i class="phase again"></i>runs forward again</span>'
    mark = '<span class="mark" id="mark" hidden></span>'
    plot = figure("timeline", first.words, f"{over}<br>{marks} {again}{mark}", "tall")
    cursor = '<label class="cursor"><span>Operation</span> <input type="range" id="cursor" min="0" value="0"></label>'
    readout = f'<div class="readout" id="readout" role="group" aria-label="At the chosen operation">{cursor}<div id="at-cursor"></div></div>'
    notes = of_ranks(drawn, (_notes(rank) for rank in drawn.ranks))
    phases = of_ranks(drawn, (_phases(rank) for rank in drawn.ranks))
    body = f'{_workers(drawn)}{_choices(drawn, measured)}{notes}<div class="split">{plot}{readout}</div>{phases}'
    return section("timeline", "Memory through a step", body)


def _workers(drawn: Drawn) -> str:
    if len(drawn.ranks) == 1:
        return ""
    columns = [
        Column("worker", text=True), Column("node", text=True), Column("predicted peak"), Column("measured peak"), Column("resident"),
    ]  # fmt: skip
    rows = []
    for rank in drawn.ranks:
        planned = max(rank.predicted.inside)
        seen = None if rank.measured is None else max(rank.measured.inside)
        resident = None if rank.process is None else rank.process.rss
        sizes = [
            Cell("" if size is None else format_size(size), -1 if size is None else size)
            for size in (planned, seen, resident)
        ]
        rows.append([Cell(f"rank {rank.rank}", rank.rank), Cell(rank.node), *sizes])
    return table("Workers", columns, rows, sortable=True)


def _choices(drawn: Drawn, measured: bool) -> str:
    parts = []
    if len(drawn.ranks) > 1:
        options = "".join(
            f'<option value="{number}">rank {rank.rank}</option>' for number, rank in enumerate(drawn.ranks)
        )
        parts.append(f'<span><label for="rank">Worker</label> <select id="rank">{options}</select></span>')
    if measured:
        parts.append(choice("areas", "Areas", (("measured", "measured"), ("predicted", "predicted"))))
    parts.append(choice("across", "Across", (("operations", "operations"), ("time", "time"))))
    parts.append(choice("from", "Bytes", (("zero", "all"), ("lasting", "what changes"))))
    return f'<div class="controls">{"".join(parts)}</div>'


def choice(name: str, legend: str, options: tuple[tuple[str, str], ...]) -> str:
    """Returns a group of buttons of which one is down, the first at the beginning; the options are values and texts."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if not number else ""}><span>{text}</span></label>'
        for number, (value, text) in enumerate(options)
    )
    return f'<fieldset class="choice"><legend>{legend}</legend>{buttons}</fieldset>'


def _notes(rank: DrawnRank) -> str:
    mark = "equal" if rank.equal else "apart"
    told = f'<p class="{mark}">{escape(rank.agreement)}</p>' if rank.agreement else ""
    reduced = [
        f"{name}: {points.operations:,} operations, of which {len(points.at):,} are drawn"
        for name, points in (("predicted", rank.predicted), ("measured", rank.measured))
        if points is not None and points.stride > 1
    ]
    if reduced:
        stride = rank.predicted.stride
        told += (
            f'<p class="note reduced">Reduced ({"; ".join(reduced)}). Of {stride:,} operations that follow each other the one with the most bytes during it '
            "is drawn, so no peak is lost; what is less in between does not show, nor when the reader zooms in. The report as .json or .trace.json has all.</p>"
        )
    return told


def _phases(rank: DrawnRank) -> str:
    whole = sum(row.seconds for row in rank.phases) or 1.0
    top = max(row.peak for row in rank.phases)
    rows = [
        [
            Cell(row.phase),
            Cell(f"{row.operations:,}", row.operations),
            Cell(format_seconds(row.seconds), row.seconds),
            Cell(f"{row.seconds / whole:.1%}", share=row.seconds / whole),
            Cell(format_size(row.peak), row.peak, row.peak / top if top else None),
            Cell(row.label),
        ]
        for row in rank.phases
    ]
    columns = [
        Column("phase", text=True), Column("operations"), Column("time"), Column("of the step"), Column("peak"), Column("at", text=True),
    ]  # fmt: skip
    return table(f"Phases of the step, {'predicted' if rank.measured is None else 'measured'}", columns, rows)


def peak(drawn: Drawn) -> str:
    """What holds memory at the peak."""
    return section("peak", "What holds memory at the peak", of_ranks(drawn, (_peak(rank) for rank in drawn.ranks)))


def _peak(rank: DrawnRank) -> str:
    shown = rank.measured or rank.predicted
    most = shown.inside[shown.peak] or 1
    where = f"<p>{format_size(most)} ({most:,} bytes) in operation {shown.at[shown.peak]:,}, <b>{escape(shown.labels[shown.peak])}</b>.</p>"
    strip = "".join(
        f'<i class="{swatch(category)}" style="width:{nbytes / most:.3%}" title="{escape(category)}"></i>'
        for category, nbytes in rank.by_category
    )
    by_category = [_share(Cell(category, mark=swatch(category)), nbytes, most) for category, nbytes in rank.by_category]
    largest = [
        [
            Cell(owner or "(no layer)"),
            Cell(category, mark=swatch(category) if category else ""),
            *_share(Cell(""), nbytes, most)[1:],
        ]
        for category, owner, nbytes in rank.holders
    ]
    by_layer = [_share(Cell(owner or "(no layer)"), nbytes, most) for owner, nbytes in rank.by_layer[:12]]
    sizes = [Column("bytes"), Column("of the peak")]
    return (
        f'{where}<div class="strip" aria-hidden="true">{strip}</div><div class="beside">'
        + table("By category", [Column("category", text=True), *sizes], by_category)
        + table("Largest holders", [Column("of", text=True), Column("category", text=True), *sizes], largest)
        + table("By layer, the largest", [Column("of", text=True), *sizes], by_layer)
        + "</div>"
    )


def _share(name: Cell, nbytes: int, most: int) -> list[Cell]:
    return [name, Cell(format_size(nbytes), nbytes), Cell(f"{nbytes / most:.1%}", share=max(0.0, nbytes / most))]
