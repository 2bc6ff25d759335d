"""Callbacks: who is told what happens in a run, and the ones that write it down."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed.recording import RunRecording
    from distributed.trainer import Trainer

#: What `Callback.on_step` and `Callback.on_validation` are as functions; see `Trainer.fit`.
OnStep = Callable[[dict[str, Any]], None]
OnValidation = Callable[[int, int], None]

#: What differs from rank to rank of the metrics of a step.
_BY_RANK = ("targets", "step_seconds", "reduce_seconds", "live_bytes", "peak_bytes", "rss_peak_bytes")


class Callback:
    """Is told what happens in a run, in the process of the Trainer; each method does nothing unless it is overridden.

    An exception in one ends the run. `on_end` is called for each callback whose `on_start` was.

    >>> class Stopping(Callback):
    ...     def on_step(self, row):
    ...         if row["loss"] < 0.1:
    ...             raise KeyboardInterrupt
    """

    def on_start(self, trainer: Trainer) -> None:
        """The workers are there, the plans are made, and the first step comes next."""

    def on_step(self, row: dict[str, Any]) -> None:
        """A step is done, and the validation after it, if there was one; `row` is what the history gets."""

    def on_validation(self, done: int, total: int) -> None:
        """So many batches of a validation are done, of so many."""

    def on_snapshot(self, path: Path) -> None:
        """A snapshot has been written."""

    def on_end(self, error: BaseException | None) -> None:
        """The run has ended: by an error (an interrupt is one), or whole."""


class Callbacks(Callback):
    """Several callbacks as one, in their order; at the end in the reverse one."""

    def __init__(self, each: Sequence[Callback]) -> None:
        self._each = list(each)
        self._started: list[Callback] = []

    def on_start(self, trainer: Trainer) -> None:
        for callback in self._each:
            self._started.append(callback)
            callback.on_start(trainer)

    def on_step(self, row: dict[str, Any]) -> None:
        for callback in self._each:
            callback.on_step(row)

    def on_validation(self, done: int, total: int) -> None:
        for callback in self._each:
            callback.on_validation(done, total)

    def on_snapshot(self, path: Path) -> None:
        for callback in self._each:
            callback.on_snapshot(path)

    def on_end(self, error: BaseException | None) -> None:
        """Tells all, also where one of them fails."""
        with ExitStack() as stack:
            while self._started:
                stack.callback(self._started.pop(0).on_end, error)


class Functions(Callback):
    """Two functions as a callback."""

    def __init__(self, on_step: OnStep | None, on_validation: OnValidation | None) -> None:
        self._on_step, self._on_validation = on_step, on_validation

    def on_step(self, row: dict[str, Any]) -> None:
        if self._on_step is not None:
            self._on_step(row)

    def on_validation(self, done: int, total: int) -> None:
        if self._on_validation is not None:
            self._on_validation(done, total)


class JsonLines(Callback):
    """Writes the metrics of each step as a line of a run folder's ``metrics.jsonl``, at once readable.

    Where there are several ranks, what differs between them is in ``rank-metrics.jsonl``.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._recording: RunRecording | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._recording = trainer.recording

    def on_step(self, row: dict[str, Any]) -> None:
        self._folder.add_metrics(row)
        ranks = self._recording.rows if self._recording is not None else ()
        if len(ranks) > 1:
            self._folder.add_rank_metrics(row["step"], [{name: rank[name] for name in _BY_RANK} for rank in ranks])


class TensorBoard(Callback):
    """Writes the metrics of each step as event files for TensorBoard.

    Args:
        folder: The run folder; the files are in ``tensorboard`` inside it.

    Raises:
        ValueError: The package tensorboardX is not installed.
    """

    def __init__(self, folder: RunFolder) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                f"event files for TensorBoard are written by the package tensorboardX, which cannot be imported ({error}); install it "
                "with pip install 'retape[tensorboard]', or leave --tensorboard away"
            ) from error
        self._folder = folder
        self._make = SummaryWriter
        self._writer: Any = None

    def on_step(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if self._writer is None:
            # What an interrupted run wrote of this step and later ones is hidden by the one that goes on. Names have the time in
            # seconds alone: in one second it would write over the file of the run before.
            suffix = f".{step:09d}.{os.getpid()}"
            self._writer = self._make(str(self._folder.tensorboard), purge_step=step, filename_suffix=suffix)
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{_group(name)}/{name}", value, step)

    def on_end(self, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _group(name: str) -> str:
    """Under which heading TensorBoard shows a metric."""
    if name.endswith("_bytes"):
        return "memory"
    if name.endswith(("_seconds", "_per_second")):
        return "speed"
    return "validation" if name.startswith("validation_") else "training"
