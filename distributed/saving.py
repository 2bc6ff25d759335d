"""When a run's state is saved, and what its manifests say."""

from __future__ import annotations

import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distributed.records import versions
from distributed.snapshots import clean, name_of, snapshots_in
from framework.durable import sync

if TYPE_CHECKING:
    from distributed.callbacks import Callback
    from distributed.groups import Group
    from distributed.run_folder import RunFolder
    from distributed.trainer import Trainer


class Saving:
    """Has snapshots taken every so many steps or minutes, between two steps.

    Args:
        trainer: The run.
        run_folder: Its folder, which is open.
        config: What the run was told when it was started.
        told: Is told of each when it is on the disk.

    Attributes:
        run_folder: The run's folder.
        taken: What `SnapshotWriter.write` said of each.
    """

    def __init__(self, trainer: Trainer, run_folder: RunFolder, config: dict[str, Any], told: Callback) -> None:
        self.run_folder = run_folder
        self._trainer, self._config, self._told = trainer, config, told
        self._folder = run_folder.snapshots.absolute()
        self._last = time.monotonic()
        self._pending: Path | None = None
        self.taken: list[dict[str, Any]] = []

    @property
    def due(self) -> bool:
        """Whether so many minutes have passed since the last one."""
        minutes = self._trainer.options.snapshot_minutes
        return minutes is not None and time.monotonic() - self._last >= 60 * minutes

    def after_step(self, group: Group, history: list[dict[str, Any]]) -> None:
        """Takes a snapshot if one is due after these steps; not after the last, which weights and summary follow.

        Raises:
            SnapshotFailed: It, or the one before, could not be written.
        """
        self._tell()
        options, step = self._trainer.options, len(history)
        by_steps = options.snapshot_every is not None and step % options.snapshot_every == 0
        if step < options.steps and (by_steps or self.due):
            self._take(group, history)

    def take_last(self, group: Group, history: list[dict[str, Any]]) -> None:
        """Takes one after these steps, unless there is one, and waits until it is on the disk."""
        if not self.taken or self.taken[-1]["name"] != name_of(len(history)):
            self._take(group, history)
        self.finish(group)

    def finish(self, group: Group) -> None:
        """Waits until the last one is on the disk."""
        group.call_first("finish_snapshot")
        self._tell()

    def clean(self) -> None:
        """Removes one that was not finished, when no worker writes any more."""
        clean(self._folder)

    def _take(self, group: Group, history: list[dict[str, Any]]) -> None:
        if not self._folder.exists():
            self._folder.mkdir()
            sync(self._folder.parent)
        losses = np.array([row["loss"] for row in history], np.float64)
        keep = self._trainer.options.keep_snapshots
        arguments = self._folder, keep, self._about(len(history)), losses
        if self._trainer.planning.holding.sharded:  # rank 0 writes, and the others send it what they hold
            self.taken.append(group.call("snapshot", *arguments)[0])
        else:  # all ranks hold the same
            self.taken.append(group.call_first("snapshot", *arguments))
        self._tell()  # one is begun when the one before is finished
        self._pending, self._last = self._folder / self.taken[-1]["name"], time.monotonic()

    def _tell(self) -> None:
        if self._pending is not None and self._pending.exists():
            pending, self._pending = self._pending, None
            self._told.on_snapshot(pending)

    def _about(self, step: int) -> dict[str, Any]:
        trainer = self._trainer
        epoch, batch = divmod(step, len(trainer.batches[0]))
        schedule = trainer.schedule
        return {
            "step": step,
            "epoch": epoch,
            "position": batch * trainer.options.batch,
            "seed": trainer.options.seed,
            "keys": "Philox, keyed by BLAKE2b of (seed, words): epoch; layers, step, shard, layer",
            "schedule": {"kind": type(schedule).__name__, **(asdict(schedule) if is_dataclass(schedule) else {})},
            "configuration": self._config,
            "versions": versions(),
            "fingerprint": trainer.fingerprint,
            "same_bits": trainer.same_bits,
        }

    def report(self) -> dict[str, Any] | None:
        """What the summary says of them; None where none was taken."""
        if not self.taken:
            return None
        return {
            "taken": len(self.taken),
            "bytes": self.taken[-1]["bytes"],
            "seconds": sum(each["seconds"] for each in self.taken),
        }


def last_snapshot_note(folder: RunFolder) -> str:
    """Says which snapshot of a run is the last one, and how to go on from it."""
    last = next(iter(snapshots_in(folder.snapshots)), None)
    if last is None:
        return f"the run in {folder.path} has no snapshot yet; --snapshot-every and --snapshot-minutes say when there are some"
    program = (
        f"python scripts/train.py --resume {folder.path}"
        if folder.request
        else f"Trainer(..., resume={str(folder.path)!r})"
    )
    return f"the last snapshot is {last}; go on from it with: {program}"
