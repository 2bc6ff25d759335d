"""A worker's parameters and optimizer state, as snapshots have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpointing.engine import Engine
from distributed.sharded_state import ShardedState
from distributed.snapshot_writer import SnapshotWriter
from distributed.snapshots import LOSSES, OPTIMIZER, WEIGHTS, load
from framework.memory import Array, Ledger
from framework.parameters import sha256_of
from framework.tensor_files import Tensors


class WorkerState:
    """What a rank holds from step to step.

    Args:
        engine: Has parameters and state.
        sharded: Shares the optimizer's state out over ranks; None where each rank holds all.
        ledger: Counts what reading takes.
        rank: Which one.
    """

    def __init__(self, engine: Engine, sharded: ShardedState | None, ledger: Ledger, rank: int) -> None:
        self._engine, self._sharded, self._ledger, self._rank = engine, sharded, ledger, rank
        self._writer: SnapshotWriter | None = None

    def write(self, folder: Path, keep: int, about: dict[str, Any], losses: Array) -> dict[str, Any]:
        """Writes a snapshot and returns what `SnapshotWriter.write` does; see `Worker.snapshot`.

        Returns:
            Nothing on ranks that only send rank 0 what they hold.
        """
        files = {**self._files(), LOSSES: {"losses": losses}}
        if self._sharded and self._rank:
            self._sharded.pass_on(files[OPTIMIZER])
            return {}
        if self._writer is None:
            self._writer = SnapshotWriter(folder, keep)
        return self._writer.write(about, files)

    def check(self) -> None:
        """Raises `SnapshotFailed` if the last snapshot, if there is one, could not be written."""
        if self._writer is not None:
            self._writer.check()

    def wait(self) -> None:
        """Waits until the last snapshot, if there is one, is on the disk."""
        if self._writer is not None:
            self._writer.wait()

    def restore(self, snapshot: Path) -> None:
        """Takes parameters and state from a snapshot, every byte of which it checks."""
        load(snapshot, self._files(), self._ledger)

    def optimizer_facts(self) -> dict[str, Any]:
        """Returns the bytes of the optimizer's state that this rank holds, and the hash of all of it."""
        state = self._engine.optimizer_state
        return {
            "optimizer_bytes": state.nbytes,
            "optimizer_sha256": self._sharded.sha256(state) if self._sharded else sha256_of(state),
        }

    def _files(self) -> dict[str, Tensors]:
        engine = self._engine
        optimizer, state = engine.optimizer, engine.optimizer_state
        by_name: Tensors = (
            self._sharded.tensors(optimizer, state)
            if self._sharded
            else optimizer.state_by_name(engine.parameters.layout, state)
        )
        return {WEIGHTS: engine.parameters.with_state(), OPTIMIZER: by_name}
