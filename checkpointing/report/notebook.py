"""A report as a notebook shows it: its words and its tables, without plots, so that a notebook stays small."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from checkpointing.report.data import Rank, Report
from checkpointing.report.tables import html_table
from framework.sizes import format_size


def notebook_html(report: Report) -> str:
    """Returns HTML without scripts and styles of its own; names are escaped."""
    parts = [f"<h4>{escape(report.title)}</h4>"]
    if report.failure:
        parts.append(f"<p><strong>Failed:</strong> {escape(report.failure)}</p>")
    parts += [f"<p>{escape(sentence)}</p>" for sentence in report.advice]
    parts += _tables(report)
    return "\n".join(parts)


def _tables(report: Report) -> Iterator[str]:
    ranks = [_rank(rank) for rank in report.ranks]
    yield html_table(("rank", "node", "predicted peak", "measured peak", "process"), ranks, left=2, caption="Workers")
    policies = [
        (
            row.policy + (" (chosen)" if row.chosen else ""),
            format_size(row.predicted_peak),
            "" if row.ledger_peak is None else format_size(row.ledger_peak),
            f"{row.predicted_seconds:.4g} s",
            "" if row.step_seconds is None else f"{row.step_seconds:.4g} s",
        )
        for row in report.policies
    ]
    yield html_table(
        ("policy", "predicted peak", "measured peak", "planned time", "measured time"), policies, caption="Policies"
    )
    layers = [
        (
            row.path, row.kind, "×".join(map(str, row.output_shape)), row.kept,
            *(f"{number:,}" for number in (row.parameters, row.output, row.residuals, row.workspace, row.flops)),
        )
        for row in report.layers
    ]  # fmt: skip
    headings = (
        "layer",
        "kind",
        "output",
        "backward finds it",
        "parameters",
        "output bytes",
        "residuals",
        "workspace",
        "FLOPs",
    )
    yield html_table(headings, layers, left=4, caption="Layers, for a shard")


def _rank(rank: Rank) -> tuple[str, ...]:
    measured = rank.measured.inside[rank.measured.peak] if rank.measured and rank.measured.labels else None
    return (
        str(rank.rank),
        rank.node,
        f"{rank.predicted.inside[rank.predicted.peak]:,}",
        "" if measured is None else f"{measured:,}",
        "" if rank.process is None else f"{rank.process.rss:,}",
    )
