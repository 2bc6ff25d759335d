"""The parts of a memory report's page below the step's: policies, the plan, layers, the process, and what was run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from checkpointing.explanation import format_seconds
from checkpointing.report.data import LayerRow, PolicyRow, Process, Report
from checkpointing.report.page.drawn import Drawn, DrawnRank
from checkpointing.report.page.sections import choice, figure, of_ranks, section
from checkpointing.report.page.tables import Cell, Column, pairs, table
from framework import format_size

_KEPT = {"kept": "●", "in part": "◐", "recomputed": "○"}


def policies(report: Report, drawn: Drawn) -> str:
    """Peak against time, and the same as a table."""
    caption = (
        "Circles: predicted; diamonds: measured; a thin line joins the two of a policy; a star marks the plan of this report. "
        + ("Steps: the fastest known plan within each budget. " if report.frontier else "")
        + "Dotted, hatched below: no plan of that peak is faster."
    )
    seconds = (
        choice("seconds", "Time", (("seconds", "seconds"), ("relative", "relative")))
        if any(row.step_seconds for row in report.policies)
        else ""
    )
    body = f'<div class="controls">{seconds}</div>' if seconds else ""
    body += f"<p class=note>Planned times are {escape(report.costs)}.</p>"
    body += figure("frontier", drawn.frontier.words, caption) + _policies(report.policies)
    return section("policies", "Policies: memory against time", body)


def _policies(rows: tuple[PolicyRow, ...]) -> str:
    columns = [
        Column("policy", text=True), Column("budget"), Column("predicted peak"), Column("measured peak", "by the ledger"),
        Column("resident", "peak of the process"), Column("planned time"), Column("measured time"),
        Column("lower bound", "no plan of this peak is planned faster"), Column("remarks", text=True),
    ]  # fmt: skip
    top = max((row.predicted_peak for row in rows), default=0) or 1
    body = [
        [
            Cell(row.policy),
            _size(row.budget),
            Cell(format_size(row.predicted_peak), row.predicted_peak, row.predicted_peak / top),
            _size(row.ledger_peak),
            _size(row.rss_peak),
            _seconds(row.predicted_seconds),
            _seconds(row.step_seconds),
            _seconds(row.bound_seconds),
            Cell(_remark(row)),
        ]
        for row in rows
    ]
    chosen = next((place for place, row in enumerate(rows) if row.chosen), -1)
    return table("Policies and budgets", columns, body, sortable=True, chosen=chosen)


def _remark(row: PolicyRow) -> str:
    if row.error:
        return f"failed: {row.error}"
    apart = row.ledger_peak is not None and row.ledger_peak != row.predicted_peak
    return ", ".join(
        [*(["this report's plan"] if row.chosen else []), *(["measured is not as predicted"] if apart else [])]
    )


def _size(nbytes: int | None) -> Cell:
    return Cell("", -1) if nbytes is None else Cell(format_size(nbytes), nbytes)


def _seconds(seconds: float | None) -> Cell:
    return Cell("", -1) if seconds is None else Cell(format_seconds(seconds), seconds)


def plan(drawn: Drawn) -> str:
    """The plan as a drawing."""
    found = drawn.cells
    keys = "".join(
        f'<span class="key"><i class="cell d{digit}"></i>{text}</span> '
        for digit, text in (
            (1, "its cotangent"), (2, "a part of its values"), (3, "all its values"), (4, "▸ runs forward"),
            (6, "✕ runs forward again"), (5, "◂ runs backward"),
        )
    )  # fmt: skip
    shared = ""
    if found.across > 1 or found.down > 1:
        shared = (
            f'<p class="note reduced">Reduced: {found.across:,} operations share a column and {found.down:,} layers a row; of what they hold the most is '
            "shown, and before that what runs.</p>"
        )
    body = (
        f"<p>Of one shard: layers down, operations across. What is held of each layer after each operation, and what runs.</p>{shared}"
        + figure("plan", found.words, keys, "tall")
    )
    return section("plan", "What the plan holds when", body)


def layers(report: Report) -> str:
    """The table of layers."""
    rows = report.layers
    most = {
        name: max((getattr(row, name) for row in rows), default=0) or 1
        for name in ("parameters", "output", "residuals", "workspace", "flops", "forward_seconds", "backward_seconds")
    }
    columns = [
        Column("layer", text=True), Column("kind", text=True), Column("output shape", "of a shard"), Column("parameters"),
        Column("output"), Column("residuals", "besides input and output"), Column("workspace", "the larger of forward and backward"),
        Column("FLOPs", "of forward and backward"), Column("forward"), Column("backward"), Column("values", "what the backward finds", text=True),
        Column("forwards", "in a shard"),
    ]  # fmt: skip
    timed = "measured" if any(rank.measured is not None for rank in report.ranks) else "planned"
    caption = f"{len(rows):,} layers, per shard; times {timed}; press a header to sort"
    return section("layers", "Layers", table(caption, columns, [_layer(row, most) for row in rows], sortable=True))


def _layer(row: LayerRow, most: Mapping[str, float]) -> list[Cell]:
    def bar(text: str, name: str) -> Cell:
        value = getattr(row, name)
        return Cell(text, value, value / most[name])

    return [
        Cell(row.path or "(all)"),
        Cell(row.kind),
        Cell(" × ".join(map(str, row.output_shape)), _product(row.output_shape)),
        bar(f"{row.parameters:,}", "parameters"),
        bar(format_size(row.output), "output"),
        bar(format_size(row.residuals), "residuals"),
        bar(format_size(row.workspace), "workspace"),
        bar(_flops(row.flops), "flops"),
        bar(format_seconds(row.forward_seconds), "forward_seconds"),
        bar(format_seconds(row.backward_seconds), "backward_seconds"),
        Cell(f"{_KEPT.get(row.kept, '')} {row.kept}"),
        Cell(str(row.forwards), row.forwards),
    ]


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for extent in shape:
        found *= extent
    return found


def _flops(flops: float) -> str:
    for unit in ("", "k", "M", "G"):
        if flops < 1000:
            return f"{flops:.4g}{' ' + unit if unit else ''}"
        flops /= 1000
    return f"{flops:,.4g} T"


def process(drawn: Drawn) -> str:
    """The memory of whole processes."""
    if all(rank.process is None for rank in drawn.ranks):
        return section("process", "The whole process", "<p>It was not measured.</p>")
    words = "Peak resident bytes of the process after each step. " + " ".join(map(_steps_in_words, drawn.ranks))
    plot = figure("steps", words, "Peak resident bytes after each step; dashed: predicted.", "short")
    parts = of_ranks(drawn, (_process(rank) for rank in drawn.ranks))
    return section("process", "The whole process", f'<div class="beside">{parts}{plot}</div>')


def _steps_in_words(rank: DrawnRank) -> str:
    steps = () if rank.process is None else rank.process.by_step
    if not steps:
        return f"Rank {rank.rank}: not measured."
    return f"Rank {rank.rank}: {format_size(steps[0])} after the first of {len(steps):,} steps, {format_size(steps[-1])} after the last."


def _process(rank: DrawnRank) -> str:
    found = rank.process
    if found is None:
        return "<p>It was not measured.</p>"
    whole = found.rss or 1
    rows = [
        [
            Cell(name),
            Cell(f"{nbytes:,}", nbytes),
            Cell(_mebibytes(nbytes)),
            Cell(f"{nbytes / whole:.1%}", share=max(0.0, nbytes / whole)),
        ]
        for name, nbytes in process_parts(found)
    ]
    columns = [Column("", text=True), Column("bytes"), Column("size"), Column("of it")]
    predicted = ""
    if found.predicted is not None:
        predicted = f"<p class=note>Predicted: {format_size(found.predicted)} ({found.predicted / whole - 1:+.1%} of what was measured).</p>"
    return (
        table("Resident memory at the peak: engine + interpreter + Ray + unexplained = resident", columns, rows)
        + predicted
    )


def process_parts(found: Process) -> list[tuple[str, int]]:
    """The parts of a process's memory, which add up, and their sum."""
    return [
        ("engine", found.engine),
        ("interpreter and libraries", found.interpreter),
        ("Ray", found.ray),
        ("unexplained", found.unexplained),
        ("resident", found.rss),
    ]


def _mebibytes(nbytes: int) -> str:
    return f"{'−' if nbytes < 0 else ''}{format_size(abs(nbytes))}"


def about(report: Report) -> str:
    """What was asked for, and what it ran on."""
    parts = [
        pairs(caption, [_told(name, value) for name, value in found.items()])
        for caption, found in (
            ("Configuration", {"model": report.model, "policy": report.policy, **report.configuration}),
            ("Machine", report.machine),
            ("Versions", report.versions),
        )
        if found
    ]
    look = (
        "Colours of categories are those of Okabe and Ito, with greys for what lasts; patterns, symbols and styles of lines say the same to who "
        "cannot tell colours apart. Drag across a plot to enlarge a part, press twice to see all again."
    )
    body = f'<div class="beside">{"".join(parts)}</div><p class="note">{look}</p>'
    return section("about", "Configuration, machine, versions", body)


def _told(name: str, value: Any) -> tuple[str, str]:
    if name.endswith("_bytes") and isinstance(value, int):
        return name.removesuffix("_bytes"), format_size(value)
    return name, (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
