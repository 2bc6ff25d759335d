"""A memory report as one page that needs no network."""

from __future__ import annotations

from html import escape

from checkpointing.report.data import Report
from checkpointing.report.page import further_sections, sections
from checkpointing.report.page.drawn import drawn
from checkpointing.report.page.encoding import embedded
from checkpointing.report.page.shell import html_page

_SCRIPTS = ("decode.js", "look.js", "timeline.js", "plots.js", "tables.js", "start.js")
_PARTS = (
    ("timeline", "Step"),
    ("peak", "Peak"),
    ("policies", "Policies"),
    ("plan", "Plan"),
    ("layers", "Layers"),
    ("process", "Process"),
    ("about", "Configuration"),
)


def page(report: Report) -> str:
    """Returns the page: plots of what `drawn` says, tables, and the report's words.

    Args:
        report: Any report; one of a run that failed tells so at the top.
    """
    found = drawn(report)
    links = "".join(f'<a href="#{name}">{escape(text)}</a> ' for name, text in _PARTS)
    body = [
        sections.failure(report),
        sections.advice(report),
        sections.figures(report, found),
        f'<nav aria-label="Sections">{links}</nav>',
        "<noscript><p>The plots need JavaScript; the tables do not.</p></noscript>",
        sections.timeline(report, found),
        sections.peak(found),
        further_sections.policies(report, found),
        further_sections.plan(found),
        further_sections.layers(report),
        further_sections.process(found),
        further_sections.about(report),
        f'<script type="application/json" id="data">{embedded(found)}</script>',
    ]
    lead = f"Memory report of a training step: policy {report.policy}; planned times are {report.costs}."
    return html_page(report.title, lead, "\n".join(filter(None, body)), styles=("report.css",), scripts=_SCRIPTS)
