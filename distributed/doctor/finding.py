"""What a check looks at, and what it says: plain data, which others draw."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]
#: From the best to the worst.
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked at.
        level: ok; warning, where something works less well than it could or may go wrong; error, where something does not work.
        told: What was found, in words.
        remedy: What to do about it; empty where all is well.
        data: The same as JSON-ready data; sizes in bytes, times in seconds.
        group: What else it belongs to.
    """

    name: str
    level: Level
    told: str
    remedy: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""


def ok(name: str, told: str, **data: Any) -> Finding:
    """A finding that all is well."""
    return Finding(name, "ok", told, "", data)


def warning(name: str, told: str, remedy: str, **data: Any) -> Finding:
    """A finding of what may go wrong, or works less well than it could."""
    return Finding(name, "warning", told, remedy, data)


def error(name: str, told: str, remedy: str, **data: Any) -> Finding:
    """A finding of what does not work."""
    return Finding(name, "error", told, remedy, data)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of all.

    >>> worst([ok("a", "fine"), warning("b", "so-so", "look"), ok("c", "fine")])
    'warning'
    """
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


@dataclass(frozen=True)
class Surroundings:
    """What is looked at.

    Attributes:
        runs: Where runs are written; it need not exist yet.
        homes: The folder that each own package is imported from; None for one that is not found.
        source: The folder that the program itself lies in, with its own packages, if it does.
        constraints: The file of versions that were tested, if it is there.
        root: Where the file system begins; another one is for tests.
        environ: The environment.
        temporary: The folder of temporary files.
        start_ray: Whether Ray is started, to see whether that works.
    """

    runs: Path = Path("runs")
    homes: Mapping[str, Path | None] = field(default_factory=dict)
    source: Path | None = None
    constraints: Path | None = None
    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    temporary: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    start_ray: bool = False

    def read(self, path: str) -> str | None:
        """Returns the text of a system file below the root, or None where there is none."""
        try:
            return (self.root / path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
