"""The report of `plan.py` as one page with plots that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from _plan_drawing import in_one_unit

from checkpointing.curve import CurvePoint
from checkpointing.explanation import Explanation, format_seconds
from checkpointing.holdings import Holdings
from checkpointing.report.page.shell import html_page
from checkpointing.report.page.tables import name

_MIB = 2**20
_BLUE, _ORANGE, _GREY = "#3987e5", "#e07b39", "#8a8f98"
#: Nothing, cotangent, part, all; forward, forward again, backward.
_COLOURS = ["rgba(0,0,0,0)", "#f2c94c", "#a9cbf3", "#3987e5", "#2f9e5b", "#d9383a", "#b5860b"]
_NAMES = ["nothing", "its cotangent", "a part", "all its values", "runs forward", "runs forward again", "runs backward"]
_RUNS = {"F": 4, "R": 5, "B": 6}


def page(
    title: str,
    explained: Explanation,
    found: Holdings,
    policies: Sequence[dict[str, Any]],
    curve: Sequence[CurvePoint] | None,
) -> str:
    """Returns the page.

    Args:
        title: The model and the batch.
        explained: The plan in words.
        found: What it holds when.
        policies: The rows of the table of policies.
        curve: The memory-time curve, if it was asked for.
    """
    words = "".join(
        f"<tr><th class=left>{escape(name)}</th><td class=left style='white-space:normal'>{escape(text)}</td></tr>"
        for name, text in explained.paragraphs()
    )
    parts = [
        f"<h2>The plan</h2><table>{words}</table>",
        "<h2>What is held when</h2><p>Of the first shard: steps across, time down. Colours tell what is held of a step after an operation, "
        "and what runs.</p>",
        _html(_held(found)),
        _html(_live(found, explained)),
        "<h2>Memory and time</h2><p>Policies, and the least time that any plan within a budget can take.</p>",
        _html(_policies(policies, curve, explained)),
        _table(policies),
    ]
    return html_page(title, f"Predicted before any array exists. Times are {explained.source}.", "\n".join(parts))


def _held(found: Holdings) -> go.Figure:
    codes = found.held.astype(int)
    for row, runs in enumerate(found.running):
        if runs is not None:
            codes[row, runs[0]] = _RUNS[runs[1]]
    scale = [[(each + side) / len(_COLOURS), colour] for each, colour in enumerate(_COLOURS) for side in (0, 1)]
    numbers = list(range(len(found.labels)))
    heat = go.Heatmap(
        z=codes.tolist(),
        x=list(range(len(found.steps))),
        y=numbers,
        zmin=-0.5,
        zmax=len(_COLOURS) - 0.5,
        colorscale=scale,
        colorbar={"tickvals": list(range(len(_NAMES))), "ticktext": _NAMES, "thickness": 12},
        hovertemplate="operation %{y}, step %{x}<extra></extra>",
    )
    figure = go.Figure(heat)
    ticks = _ticks(len(found.steps), 16)
    figure.update_xaxes(tickvals=ticks, ticktext=[found.steps[tick] for tick in ticks], tickangle=50)
    downs = _ticks(len(found.labels), 24)
    figure.update_yaxes(tickvals=downs, ticktext=[found.labels[down] for down in downs], autorange="reversed")
    return _finished(figure, 640)


def _live(found: Holdings, explained: Explanation) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(
        y=[each / _MIB for each in found.inside], name="during the operation", line={"color": _ORANGE, "width": 1}
    )
    figure.add_scatter(
        y=[each / _MIB for each in found.live], name="after it", fill="tozeroy", line={"color": _BLUE, "width": 1}
    )
    figure.add_hline(y=explained.budget / _MIB, line={"color": _GREY, "dash": "dot"}, annotation_text="budget")
    figure.update_xaxes(title="operation of the first shard")
    figure.update_yaxes(title="live MiB", rangemode="tozero")
    return _finished(figure, 320)


def _policies(
    policies: Sequence[dict[str, Any]], curve: Sequence[CurvePoint] | None, explained: Explanation
) -> go.Figure:
    figure = go.Figure()
    if curve:
        at = [point.budget / _MIB for point in curve]
        figure.add_scatter(
            x=at, y=[point.seconds for point in curve], name="the fastest known", line={"color": _BLUE, "shape": "hv"},
            text=[point.policy for point in curve], hovertemplate="%{x:.1f} MiB, %{y:.4g} s, %{text}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=at, y=[point.bound for point in curve], name="lower bound", line={"color": _GREY, "dash": "dot"}
        )
    figure.add_scatter(
        x=[row["peak_bytes"] / _MIB for row in policies],
        y=[row["seconds"] for row in policies],
        text=[row["policy"] for row in policies],
        mode="markers",
        name="policies",
        marker={"color": _ORANGE, "size": 8},
        hovertemplate="%{text}: %{x:.1f} MiB, %{y:.4g} s<extra></extra>",
    )
    figure.add_scatter(
        x=[explained.peak / _MIB], y=[explained.seconds], mode="markers", name="this plan",
        marker={"color": _BLUE, "size": 12, "symbol": "diamond"}, text=[explained.policy], hovertemplate="%{text}: %{x:.1f} MiB, %{y:.4g} s<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="peak or budget, MiB")
    figure.update_yaxes(title="seconds a step")
    return _finished(figure, 420)


def _table(policies: Sequence[dict[str, Any]]) -> str:
    head = "".join(
        f"<th{' class=left' * (not n)}>{heading}</th>"
        for n, heading in enumerate(("policy", "peak", "a step", "extra time", "gap to the bound"))
    )
    rows = "".join(
        f"<tr><td class=left>{name(row['policy'])}</td><td>{peak}</td><td>{format_seconds(row['seconds'], 4)}</td>"
        f"<td>{row['extra_time']:.1%}</td><td>{row['gap']:.1%}</td></tr>"
        for row, peak in zip(policies, in_one_unit([row["peak_bytes"] for row in policies]), strict=True)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _ticks(count: int, most: int) -> list[int]:
    step = max(1, -(-count // most))
    return list(range(0, count, step))


def _finished(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.12},
    )


def _html(figure: go.Figure) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return html
