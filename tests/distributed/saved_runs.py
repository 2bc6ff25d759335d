"""A small run that is saved, stopped, and resumed: what tests of snapshots share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distributed import RunFolder, Stopped, Trainer
from framework import ArrayDataset, BatchNorm, Chain, CrossEntropy, Dropout, Linear, ReLU
from framework.data import clusters

#: 14 batches an epoch, so that 30 steps take two epochs and a bit; dropout, clipping and statistics are on.
RUN: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 30, "clip_norm": 0.5, "seed": 7, "learning_rate": 3e-3}
#: What may be otherwise in a resumed run. A report takes a moment; what is not about it goes without.
FREE: dict[str, Any] = {"validation_examples": 8, "report": False}


class Seen(ArrayDataset):
    """A data set that remembers the training examples that were asked for."""

    def __init__(self) -> None:
        made = clusters(128, 8, 10)
        super().__init__(made.x, made.y)
        self.seen: list[int] = []

    def load(self, split: str, indices: Sequence[int], x: np.ndarray, targets: np.ndarray) -> None:
        if split == "train":
            self.seen.extend(int(index) for index in indices)
        super().load(split, indices, x, targets)


def trainer(folder: Path | None = None, data: ArrayDataset | None = None, **options: Any) -> Trainer:
    """A Trainer of the run; it is recorded in a new folder, or resumed."""
    chain = Chain(Linear(16), BatchNorm(), ReLU(), Dropout(0.1), Linear(10))
    given = {**FREE, **(options if "resume" in options else {**RUN, **options})}
    run_folder = RunFolder(folder) if folder is not None else None
    return Trainer(chain, CrossEntropy(), data=data or clusters(128, 8, 10), run_folder=run_folder, **given)


def stopped(after: int, made: Trainer) -> None:
    """Trains until so many steps are done, and stops."""

    def stop(row: dict[str, Any]) -> None:
        if row["step"] + 1 == after:
            assert made.stop()

    try:
        made.fit(stop)
    except Stopped as stop_:
        assert stop_.step == after
        return
    raise AssertionError("the run was not stopped")


def hashes(summary: dict[str, Any]) -> tuple[Any, ...]:
    names = ("parameters_sha256", "optimizer_sha256", "losses_sha256", "validation_loss")
    return tuple(summary[name] for name in names)
