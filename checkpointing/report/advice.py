"""What a report tells its reader to do, in a sentence or two: from its data alone."""

from __future__ import annotations

from checkpointing.report.data import Report


def advice(report: Report) -> tuple[str, ...]:
    """Returns the sentences at the top of a report."""
    return ()
