"""The report of `differentiate.py` as one page with plots that needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from _differentiate_report import Chapter, Grid, size

from checkpointing.report.page.shell import html_page

#: Of JVPs, VJPs, and what they are compared with; readable on white and on black.
_JVP, _VJP, _VJP_PALE, _OTHER = "#3987e5", "#e07b39", "rgba(224, 123, 57, .5)", "#8a8f98"


def page(chapters: Sequence[Chapter], data: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        chapters: Words and tables.
        data: The sections by name, for the plots.
    """
    links = "".join(f'<a href="#{c.name}">{n}. {escape(c.name)}</a> ' for n, c in enumerate(chapters, 1))
    body = "\n".join(_chapter(n, c, data) for n, c in enumerate(chapters, 1))
    lead = (
        "Jacobian–vector products (JVP) and vector–Jacobian products (VJP) of plain NumPy code, computed and measured on one machine. "
        "Times are medians."
    )
    return html_page("Jacobian products", lead, f"<nav>{links}</nav>\n{body}")


def _chapter(number: int, chapter: Chapter, data: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{chapter.name}">{number}. {escape(chapter.title)}</h2>', f"<p>{escape(chapter.about)}</p>"]
    parts += [_table(grid) for grid in chapter.grids]
    if chapter.found:
        parts.append(f"<p>{escape(chapter.found)}</p>")
    if chapter.name in _FIGURES:
        figure = _FIGURES[chapter.name](data[chapter.name])
        parts.append(f"<h3>{escape(_TITLES[chapter.name])}</h3>")
        parts.append(
            figure.to_html(
                full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
            )
        )
    return "\n".join(parts)


def _table(grid: Grid) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="left"' if place < grid.left else "" for place in range(len(row)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in grid.rows)
    return f'<div class="scroll"><table>\n<tr>{cells(grid.header, "th")}</tr>\n{rows}\n</table></div>'


def _sizes(s: Any) -> go.Figure:
    names = [c.component for c in s.components]
    series = (
        ("full Jacobian", _OTHER, [c.jacobian_bytes for c in s.components]),
        ("J v", _JVP, [c.jvp_bytes for c in s.components]),
        ("Jᵀ w", _VJP, [c.vjp_bytes for c in s.components]),
    )
    figure = go.Figure(
        [
            go.Bar(
                name=name, x=names, y=values, marker_color=color, text=[size(v) for v in values], textposition="outside"
            )
            for name, color, values in series
        ]
    )
    return _finished(figure, "", "bytes", y=_powers(3, 19, 3))


def _crossover(c: Any) -> go.Figure:
    ratios = [s.arguments / s.results for s in c.shapes]
    labels = [f"{s.arguments:,} → {s.results:,}" for s in c.shapes]
    figure = go.Figure(
        [
            go.Scatter(
                name=name, x=ratios, y=[getattr(s, field) for s in c.shapes], text=labels, mode="lines+markers",
                line_color=color, hovertemplate="%{text}: %{y:.3g} s",
            )
            for name, color, field in (("n JVPs", _JVP, "forward_seconds"), ("m VJPs", _VJP, "reverse_seconds"))
        ]
    )  # fmt: skip
    if c.crossover is not None:
        figure.add_vline(x=c.crossover, line_dash="dot", line_color=_OTHER)
        # On a logarithmic axis an annotation's place is the logarithm, but a line's is not.
        figure.add_annotation(
            x=math.log10(c.crossover), y=1, yref="paper", text=f"equal at {c.crossover:.2f}", showarrow=False, xanchor="left",
            xshift=6,
        )  # fmt: skip
    return _finished(figure, "arguments / results, n / m", "seconds", x=_powers(-3, 4), y=_powers(-6, 2))


def _cost(costs: Any) -> go.Figure:
    names = [f"{c.layers} × {c.width}, batch {c.batch}<br>by the {c.by}" for c in costs]
    series = (
        ("f and JVP", _JVP, [c.jvp_ratio for c in costs]),
        ("f and VJP", _VJP, [c.vjp_ratio for c in costs]),
        ("VJP alone", _VJP_PALE, [c.pullback_ratio for c in costs]),
        ("f and one of them, by counting matrix products", _OTHER, [c.matrix_products for c in costs]),
    )
    figure = go.Figure([go.Bar(name=name, x=names, y=ratios, marker_color=color) for name, color, ratios in series])
    return _finished(figure, "", "forward passes")


def _depth(d: Any) -> go.Figure:
    depths = [at.depth for at in d.depths]
    figure = go.Figure(
        [
            go.Scatter(
                name=name, x=depths, y=[getattr(at, field) for at in d.depths], mode="lines+markers", line_color=color,
                text=[size(getattr(at, field)) for at in d.depths], hovertemplate="%{x} layers: %{text}",
            )
            for name, color, field in (
                ("f and VJP", _VJP, "reverse_peak_bytes"),
                ("f and JVP", _JVP, "forward_peak_bytes"),
                ("f alone", _OTHER, "function_peak_bytes"),
            )
        ]
    )  # fmt: skip
    y = {
        "type": "log",
        "tickvals": [2**p for p in range(14, 31, 2)],
        "ticktext": [size(2**p) for p in range(14, 31, 2)],
    }
    return _finished(figure, "layers", "bytes", x={"type": "log", "tickvals": depths}, y=y)


_TITLES = {
    "sizes": "Bytes in float32",
    "crossover": "Time of a full Jacobian",
    "cost": "Time of one product",
    "depth": "Peak memory by depth",
}
_FIGURES = {"sizes": _sizes, "crossover": _crossover, "cost": _cost, "depth": _depth}


def _powers(first: int, last: int, step: int = 1) -> dict[str, Any]:
    """A logarithmic axis with ticks at powers of ten."""
    powers = range(first, last + 1, step)
    return {"type": "log", "tickvals": [10.0**p for p in powers], "ticktext": [f"10<sup>{p}</sup>" for p in powers]}


def _finished(figure: go.Figure, x_title: str, y_title: str, **axes: dict[str, Any]) -> go.Figure:
    """Gives a plot what all have; its text and grid get their colours from the page."""
    figure.update_layout(
        template="none", height=380,
        margin={"l": 70, "r": 20, "t": 40, "b": 40}, font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    figure.update_xaxes(title=x_title, automargin=True, **axes.get("x", {}))
    figure.update_yaxes(title={"text": y_title, "standoff": 12}, automargin=True, **axes.get("y", {}))
    return figure
