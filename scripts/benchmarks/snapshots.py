"""What snapshots cost: 50 steps with one of them, beside the same steps without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Row, in_fresh_process

PACKAGES = ("numpy",)
MODEL = "byte-gpt-small"
#: Steps between snapshots that the cost is told for, and those between the ones that are measured.
EVERY, PERIOD = 50, 5
#: Steps of a period that a snapshot delays: it is written before the first, and the disk may still take it in the second.
_DELAYED = 2


def rows(runs: int, workers: int = 0, batch: int = 8, shards: int = 4) -> Iterator[Row]:
    """Measures in a process of its own: steps that a snapshot delays and others, in turn.

    Args:
        runs: Snapshots that the median is of.
        workers: Ray workers; 0 is in process.
        batch: Examples of a global batch.
        shards: Its virtual shards.
    """
    found = in_fresh_process(measure, MODEL, workers, batch, shards, runs)
    alone = EVERY * found["step"]
    where = f"{workers} workers" if workers else "in process"
    name = f"{EVERY} steps of {MODEL} with a snapshot of {found['bytes'] / 1e6:.0f} MB, {where}"
    yield Row(name, "s", alone + found["snapshot"], alone, "the same steps without", runs)


def measure(model: str, workers: int, batch: int, shards: int, runs: int) -> dict[str, float]:
    """Trains with a snapshot every few steps.

    Returns:
        Seconds of a step that no snapshot delays; seconds by which a snapshot delays the steps after it, all told; its bytes.
    """
    from distributed import RunFolder, Trainer
    from framework import build

    moments: list[float] = []
    options: dict[str, Any] = {"workers": workers, "batch": batch, "shards": shards, "validation_examples": batch}
    with tempfile.TemporaryDirectory(prefix="retape-benchmark-", dir=".") as folder:
        trainer = Trainer(
            build(model), run_folder=RunFolder(Path(folder) / "run"), steps=PERIOD * (runs + 1) + 1, snapshot_every=PERIOD,
            **options,
        )  # fmt: skip
        summary = trainer.fit(lambda row: moments.append(time.perf_counter())).summary
    seconds = [after - before for before, after in pairwise(moments)]
    # seconds[i] is from the end of step i to that of step i + 1; a snapshot comes after steps PERIOD - 1, 2 * PERIOD - 1, ...
    periods = [seconds[first : first + PERIOD] for first in range(PERIOD - 1, len(seconds) - PERIOD, PERIOD)]
    step = median(second for period in periods for second in period[_DELAYED:])
    delays = [sum(period[:_DELAYED]) - _DELAYED * step for period in periods]
    return {"step": step, "snapshot": median(delays), "bytes": summary["snapshots"]["bytes"]}
