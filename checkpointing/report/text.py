"""A report as text: coloured in a terminal, plain where it goes to a file or a pipe."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from checkpointing.explanation import format_seconds
from checkpointing.policies import Budget
from checkpointing.report.advice import peak_of, seconds_of
from checkpointing.report.data import PHASES, PolicyRow, Process, Rank, Report, Timeline
from checkpointing.report.excess import Excess, excess
from checkpointing.report.fitting import FittingTable
from checkpointing.report.sums import at_peak, seconds_by_phase
from framework.sizes import format_size

_WIDTH = 132
_HEIGHT = 12
#: Rows of tables in a terminal; a file has all.
_ROWS = 24
_LETTERS = dict(zip(PHASES, "LFLBAO", strict=True)) | {"loss": "l"}


def text(report: Report, width: int = _WIDTH) -> str:
    """Returns the whole report as plain text."""
    return plain(parts(report, width, rows=None), width)


def plain(drawn: Iterable[RenderableType], width: int = _WIDTH) -> str:
    """Returns parts of a report or a comparison as plain text."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, legacy_windows=False)
    for part in drawn:
        console.print(part)
    # Lines of tables are padded to the width.
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def parts(report: Report, width: int = _WIDTH, rows: int | None = _ROWS) -> Iterator[RenderableType]:
    """Yields the parts of a report, for a console to print.

    Args:
        report: The report.
        width: Characters of a line.
        rows: The most rows of a table; None for all.
    """
    yield Text(report.title, "bold")
    for sentence in report.advice:
        yield Text(sentence)
    yield Text()
    yield policies(report)
    for rank in report.ranks:
        yield from _rank(report, rank, width, rows)
    yield _layers(report, rows)
    if report.frontier:
        yield _frontier(report, rows)
    yield _about(report)


def policies(report: Report) -> Table:
    """Draws policies and budgets side by side, memory and time relative to the first."""
    drawn = table("policies", left=("policy",), spare=("lower bound", "process", "planned", "predicted"))
    measured = any(row.ledger_peak is not None for row in report.policies)
    _columns(
        drawn, "predicted", *(("counted", "process") if measured else ()), "planned", *(("step",) if measured else ())
    )
    _columns(drawn, "lower bound", "memory", "time", "")
    first = report.policies[0]
    for row in report.policies:
        seen = (_size(row.ledger_peak), _size(row.rss_peak)) if measured else ()
        stepped = ("" if row.step_seconds is None else format_seconds(row.step_seconds),) if measured else ()
        pair = (first, row)
        once = seconds_of(first, pair)
        drawn.add_row(
            Text(_policy(row)),
            format_size(row.predicted_peak),
            *seen,
            format_seconds(row.predicted_seconds),
            *stepped,
            format_seconds(row.bound_seconds),
            f"{peak_of(row) / max(1, peak_of(first)):.0%}",
            f"{seconds_of(row, pair) / once:.0%}" if once else "",
            Text(
                "failed: " + row.error
                if row.error
                else "chosen"
                if row.chosen
                else _differs(row.ledger_peak, row.predicted_peak)
            ),
            style="bold" if row.chosen else "",
        )
    return drawn


def _policy(row: PolicyRow) -> str:
    """A policy, or the budget that it was found for; both, where the budget came out as a policy of another name."""
    if row.budget is None:
        return row.policy
    budget = f"budget {format_size(row.budget)}"
    return budget if row.policy == Budget.name else f"{row.policy}, {budget}"


def _differs(counted: int | None, predicted: int) -> str:
    return "" if counted in (None, predicted) else "NOT AS PREDICTED"


def _rank(report: Report, rank: Rank, width: int, rows: int | None) -> Iterator[RenderableType]:
    timeline = rank.predicted if rank.measured is None else rank.measured
    whose = f"rank {rank.rank}" + (f" on {rank.node}" if rank.node else "")
    kind = (
        "predicted"
        if rank.measured is None
        else f"measured in step {rank.step}"
        if rank.step is not None
        else "measured"
    )
    if timeline.labels:
        yield Text(
            f"\nlive bytes in one step, {whose}, {kind}; peak {format_size(max(timeline.inside))} in {timeline.labels[timeline.peak]}",
            "bold",
        )
        yield chart(timeline, width, report.budget)
    yield _at_peak(timeline, rows)
    if rank.measured is not None and (found := excess(rank.predicted, rank.measured)):
        yield _excess(found, rows)
    if rank.process is not None:
        yield _process(rank.process)


def chart(timeline: Timeline, width: int = _WIDTH, budget: int | None = None) -> Text:
    """Draws the most bytes of each operation, in their order, above the phase that it belongs to; a budget is a line of dashes."""
    columns = min(len(timeline.labels), width - 13)
    places = [number * len(timeline.labels) // columns for number in range(columns + 1)]
    most = [max(timeline.inside[a:b]) for a, b in pairwise(places)]
    top = max(*most, budget or 0, 1)
    drawn = Text()
    limit = None if budget is None else min(_HEIGHT - 1, budget * _HEIGHT // top)
    for level in reversed(range(_HEIGHT)):
        drawn.append(f"{format_size(top * (level + 1) // _HEIGHT):>11} ")
        for nbytes in most:
            filled = nbytes * _HEIGHT * 8 // top - level * 8
            block = "█" if filled >= 8 else " ▁▂▃▄▅▆▇"[max(0, filled)]
            drawn.append("┄" if level == limit and block == " " else block, "red" if level == limit else "blue")
        drawn.append("\n")
    letters = "".join(_LETTERS[timeline.phases[place]] for place in places[:-1])
    drawn.append(f"{'':11} {letters}\n")
    drawn.append(
        "L load, F forward, l loss, B backward, A all-reduce, O optimizer"
        + ("; ┄ budget" if budget is not None else ""),
        "italic",
    )
    return drawn


def _at_peak(timeline: Timeline, rows: int | None) -> Table:
    held = at_peak(timeline)
    drawn = table("what holds memory at the peak", left=("category", "owner"))
    _columns(drawn, "bytes", "part")
    total = sum(nbytes for _, _, nbytes in held) or 1
    for category, owner, nbytes in held[:rows]:
        drawn.add_row(category, Text(owner or "the engine"), f"{nbytes:,}", f"{nbytes / total:.1%}")
    if rows is not None and (rest := held[rows:]):
        nbytes = sum(nbytes for _, _, nbytes in rest)
        drawn.add_row(f"{len(rest)} more", "", f"{nbytes:,}", f"{nbytes / total:.1%}")
    return drawn


def _excess(found: Sequence[Excess], rows: int | None) -> Table:
    drawn = table("what holds more or less than predicted", left=("category", "owner"))
    _columns(drawn, "bytes")
    drawn.add_column("first in", overflow="fold")
    drawn.add_column("until", no_wrap=True)
    for each in found[:rows]:
        owner, operation = Text(each.layer or "the engine"), Text(each.operation)
        drawn.add_row(each.category, owner, f"{each.nbytes:+,}", operation, "later" if each.stays else "its end")
    return drawn


def _process(process: Process) -> Table:
    drawn = table("the whole process at its peak", left=("part",))
    _columns(drawn, "bytes", "")
    parts = {
        "engine": process.engine,
        "interpreter": process.interpreter,
        "Ray": process.ray,
        "unexplained": process.unexplained,
    }
    for name, nbytes in parts.items():
        drawn.add_row(name, f"{nbytes:,}", format_size(nbytes))
    drawn.add_row("resident", f"{process.rss:,}", format_size(process.rss), style="bold")
    if process.predicted is not None:
        drawn.add_row("predicted", f"{process.predicted:,}", f"{process.predicted / process.rss - 1:+.1%}")
    if process.by_step:
        drawn.add_row("after steps", *(format_size(each) for each in (process.by_step[0], process.by_step[-1])))
    return drawn


def _layers(report: Report, rows: int | None) -> Table:
    spare = ("kind", "workspace", "FLOPs", "parameters", "forward", "backward", "residuals")
    drawn = table("layers, of a shard", left=("layer",), spare=spare)
    drawn.add_column("kind", no_wrap=True)
    _columns(drawn, "parameters", "output", "residuals", "workspace", "FLOPs", "forward", "backward", "")
    for row in report.layers[:rows]:
        drawn.add_row(
            Text(row.path or "·"),
            Text(row.kind),
            f"{row.parameters:,}",
            *(format_size(nbytes) for nbytes in (row.output, row.residuals, row.workspace)),
            _count(row.flops),
            format_seconds(row.forward_seconds),
            format_seconds(row.backward_seconds),
            row.kept if row.forwards <= 1 else f"{row.kept} ×{row.forwards}",
        )
    if rows is not None and len(report.layers) > rows:
        drawn.caption = f"{len(report.layers) - rows} more"
    return drawn


def _frontier(report: Report, rows: int | None) -> Table:
    drawn = table("the memory-time curve", left=())
    _columns(drawn, "budget", "a step", "lower bound")
    drawn.add_column("policy", overflow="fold")
    step = 1 if rows is None else max(1, -(-len(report.frontier) // rows))
    for point in report.frontier[::step]:
        drawn.add_row(
            format_size(point.budget),
            format_seconds(point.seconds),
            format_seconds(point.bound_seconds),
            Text(point.policy),
        )
    return drawn


def _about(report: Report) -> Text:
    lines = [f"times are {report.costs}"]
    for name, rows in (("asked for", report.configuration), ("machine", report.machine), ("versions", report.versions)):
        if rows:
            lines.append(f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in rows.items()))
    if report.failure:
        lines.append(f"failed: {report.failure}")
    for rank in report.ranks:
        timeline = rank.predicted if rank.measured is None else rank.measured
        times = ", ".join(f"{phase} {format_seconds(seconds)}" for phase, seconds in seconds_by_phase(timeline).items())
        lines.append(f"rank {rank.rank}: {times}")
    return Text("\n".join(lines))


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def table(title: str, left: Sequence[str], spare: Sequence[str] = ()) -> Table:
    """Returns an empty table with columns of text; those of numbers are added behind, of which some can be spared in short lines."""
    drawn = FittingTable(
        spare=spare,
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for name in left:
        drawn.add_column(name, overflow="fold")
    return drawn


def _columns(drawn: Table, *names: str) -> None:
    for name in names:
        drawn.add_column(name, justify="right", no_wrap=True)


def _count(number: int) -> str:
    """Writes a count in three digits, with the prefix of thousands, millions and so on."""
    value, prefix = float(number), ""
    for prefix in ("", "k", "M", "G", "T", "P"):  # noqa: B007
        if value < 999.5:
            break
        value /= 1000
    return f"{value:.3g}{prefix}"


def _size(nbytes: int | None) -> str:
    return "" if nbytes is None else format_size(nbytes)
