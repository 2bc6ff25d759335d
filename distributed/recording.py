"""What a run's report says beyond its plans: the recorded step of each worker, and the processes' memory after every step."""

from __future__ import annotations

import platform
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpointing.report.data import Timeline


@dataclass(frozen=True)
class RecordedStep:
    """What one worker recorded: where it runs, and the ledger's timeline; None where it recorded nothing."""

    node: str
    timeline: Timeline | None

    @classmethod
    def here(cls, timeline: Timeline | None) -> RecordedStep:
        return cls(platform.node(), timeline)


class RunRecording:
    """What the driver collects from its workers while a run goes on.

    Args:
        step: The step that is recorded; None for none.
        world: W, the number of ranks.

    Attributes:
        steps: What each rank recorded, None for one that has not said.
        peaks: For each rank, the peak of its process's resident bytes after each step.
        seconds: How long each step took.
        rows: What each rank said of the last step; see `Worker.step`.
    """

    def __init__(self, step: int | None, world: int) -> None:
        self.step = step
        self.steps: list[RecordedStep | None] = [None] * world
        self.peaks = [array("q") for _ in range(world)]  # 8 bytes a step
        self.seconds = array("d")
        self.rows: Sequence[dict[str, Any]] = ()
        self._ends: list[int] = []

    def add(self, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Takes what the workers said of a step, by rank."""
        for peaks, row in zip(self.peaks, rows, strict=True):
            peaks.append(row["rss_peak_bytes"])
        self.seconds.append(seconds)
        self.rows = rows

    def finish(self, reports: Sequence[dict[str, Any]]) -> None:
        """Takes what the workers said at the end; see `Worker.finish`."""
        self._ends = [report["process"]["peak_rss"] for report in reports]

    def peak(self, rank: int) -> int | None:
        """The peak of a rank's process; None where no step has ended."""
        known = [*self.peaks[rank], *self._ends[rank : rank + 1]]
        return max(known, default=None)
