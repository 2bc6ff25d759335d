"""What profile_memory.py writes and prints: a report in the format that a file's ending says, and comparisons."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import _console
from rich.console import Console, RenderableType

from checkpointing.report import json_file, text, trace
from checkpointing.report.compare import Comparison
from checkpointing.report.compare_text import comparison_parts
from checkpointing.report.data import Report


def _html(report: Report) -> str:
    from checkpointing.report.html import page  # plotly takes a second to import

    return page(report)


def _picture(report: Report) -> str:
    """The table of policies as an SVG that needs nothing from elsewhere."""
    recorder = Console(record=True, width=120, file=io.StringIO())
    recorder.print(text.policies(report))
    svg = recorder.export_svg(title="python scripts/profile_memory.py")
    # rich would load its fonts from the network, and name itself.
    return re.sub(r"@font-face \{.*?\}|<!-- .*? -->", "", svg, flags=re.DOTALL)


#: By ending, the longest first: what writes a report.
_WRITERS: dict[str, Callable[[Report], str]] = {
    ".trace.json": trace.dumps,
    ".json": json_file.dumps,
    ".html": _html,
    ".txt": text.text,
    ".svg": _picture,
}
ENDINGS = ", ".join(_WRITERS)


def writer(name: str) -> Callable[[Report], str]:
    """Returns what makes the content of a file with such a name.

    Raises:
        ValueError: The ending is unknown.
    """
    for ending, write in _WRITERS.items():
        if name.lower().endswith(ending):
            return write
    raise ValueError(f"{name} has none of the endings that say in which format a report is written: {ENDINGS}")


def require(out: Sequence[str], force: bool) -> None:
    """Checks the files that will be written, before any work."""
    for name in out:
        writer(name)
        _console.require_new({"--out": Path(name)}, force)
    if len({Path(name).absolute() for name in out}) < len(out):
        raise ValueError(f"--out names a file twice: {', '.join(out)}")


def show(report: Report) -> None:
    """Prints a report: in colours and cut to what one reads in a terminal, whole and plain elsewhere."""
    if _console.console.is_terminal:
        _print(text.parts(report, _console.console.width))
    elif not _console.console.quiet:
        _console.show(text.text(report))


def show_comparison(found: Comparison, limit: float | None) -> None:
    """Prints a comparison."""
    parts = comparison_parts(found, limit)
    if _console.console.is_terminal:
        _print(parts)
    elif not _console.console.quiet:
        _console.show(text.plain(parts))


def _print(parts: Iterable[RenderableType]) -> None:
    for part in parts:
        _console.console.print(part)
