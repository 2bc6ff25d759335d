"""A worker: one rank's engine, data and communicator. The same class runs in process and as a Ray actor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from checkpointing.inspector import Finding
from checkpointing.process_memory import ProcessMemory, peak_rss
from checkpointing.reduction import Totals, total_of
from checkpointing.reduction_tree import shards_of
from checkpointing.report import recording
from checkpointing.report.data import Timeline
from checkpointing.witness import Verification
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.transport import Transport
from distributed.fingerprint import Fingerprint, fingerprint
from distributed.logs import RankLog, no_log, told_process
from distributed.recording import RecordedStep
from distributed.snapshots import SnapshotFailed
from distributed.worker_parts import WorkerParts
from distributed.worker_sizes import reserved_nbytes
from distributed.worker_task import WorkerTask
from framework import weights
from framework.memory import Array

__all__ = ["Worker", "WorkerTask"]


class StateAddress(NamedTuple):
    """Where other workers find one's memory of parameters and state.

    Attributes:
        carrier: Through which it sends them, if they are sent.
        weights: The version of the parameters that it holds for its node, if it holds one.
    """

    carrier: SegmentAddress | None
    weights: SegmentAddress | None


class Worker:
    """One rank of a training run."""

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self._parts = parts = WorkerParts(task)
        self._ledger, self._engine, self._state, self._feed = parts.ledger, parts.engine, parts.state, parts.feed
        self._shared, self._carrier = parts.reduction, parts.carrier
        self._verification: Verification | None = None
        self._recorded: Timeline | None = None
        self._log = no_log()
        self._own_log: RankLog | None = None
        # The limit lasts as long as this worker: products in another number of threads have other bits.
        self._threads = threadpool_limits(task.threads)

    def address(self) -> SegmentAddress | None:
        """Where other workers find this one's shared memory."""
        return self._shared.address if self._shared else None

    def connect(self, addresses: Sequence[SegmentAddress], transport: Transport | None = None) -> None:
        """Attaches to the shared memory of the workers on its node; the transport carries messages to other nodes, if there are any."""
        if self._shared:
            self._shared.connect(addresses, transport)

    def state_address(self) -> StateAddress:
        """Where other workers find the shared memory of parameters and state."""
        weights = self._parts.weights
        return StateAddress(
            self._carrier.communicator.address if self._carrier else None, weights.address if weights else None
        )

    def connect_state(self, addresses: Sequence[StateAddress], transport: Transport | None = None) -> None:
        """Attaches to the same of the workers on its node; the transport carries messages to other nodes, if there are any."""
        if self._carrier:
            self._carrier.connect([each.carrier for each in addresses if each.carrier], transport)
        if self._parts.weights:
            self._parts.weights.connect([each.weights for each in addresses])

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> str | None:
        """Is told that the run begins: writes its log from now on.

        Args:
            run: What the run is called.
            logs: The folder of the logs, if there are any.
            mark: See `RankLog`.

        Returns:
            Why the log is kept here and not in that folder, as on a node that does not see it; else None.
        """
        if logs is None:
            return None
        task = self._task
        self._own_log = RankLog(logs, task.rank, mark)
        self._log = self._own_log.log
        self._log.info("start: rank %d of %d, %s", task.rank, task.world, told_process())
        self._log.info(
            "run %s; policy %s; shards %s; predicted peak %s bytes",
            run, task.train.policy, [*self.shards], f"{max(task.train.peak, task.evaluate.peak):,}",
        )  # fmt: skip
        return self._own_log.fault

    def kept_log(self) -> str:
        """What this rank has logged so far, if it does not see the run's folder."""
        return self._own_log.kept() if self._own_log is not None else ""

    @property
    def shards(self) -> range:
        """The shards of this rank."""
        return shards_of(self._task.shards, self._task.world, self._task.rank)

    def step(self, step: int) -> dict[str, float]:
        """Runs one training step and reports it."""
        started = time.perf_counter()
        # A NumPy scalar would change the precision of what it is multiplied with.
        rate, witness = float(self._task.schedule(step)), self._parts.witness
        try:
            self._state.check()
            with np.errstate(all="ignore"):  # the Trainer stops a run whose loss or gradient is not finite, with words
                if witness:
                    self._engine.evaluate(self._task.evaluate, self._feed.validation(0), witness)
                with self._recording(step):
                    outcome = self._engine.train_step(self._task.train, self._feed.train(step), step, rate, witness)
            if witness:
                self._verification = witness.found
                self._parts.dismiss_witness()  # the run goes on at full speed
            if self._shared:
                self._shared.barrier("end of a step")  # before rank 0's gradient buffer is used again
        except BaseException as error:
            self._give_up(error)
            raise
        return {
            "step": step,
            "loss": outcome.loss,
            "learning_rate": rate,
            "gradient_norm": outcome.gradient_norm,
            "targets": sum(totals.targets for totals in outcome.sums.values()),
            "step_seconds": time.perf_counter() - started,
            "reduce_seconds": self._shared.seconds if self._shared else 0.0,
            "live_bytes": self._ledger.live,
            "peak_bytes": self._ledger.peak,
            "rss_peak_bytes": peak_rss(),
        }

    @contextlib.contextmanager
    def _recording(self, step: int) -> Iterator[None]:
        """Has the ledger record inside, if this is the step for it; a step that fails is recorded as far as it comes."""
        if step != self._task.record:
            yield
            return
        recording.start(self._ledger, self._task.train)
        try:
            yield
        finally:
            self._recorded = recording.stop(self._ledger, self._task.train)

    def recorded(self) -> RecordedStep:
        """Returns what was recorded, if the step for it has begun, and lets go of it."""
        found, self._recorded = self._recorded, None
        return RecordedStep.here(found)

    def inspect(self, step: int) -> Finding | None:
        """Runs a step again whose loss or gradient was not finite; it has changed nothing.

        Returns:
            The first value that is not finite, None if this rank has none.
        """
        try:
            with np.errstate(all="ignore"):
                finding = self._engine.inspect(self._task.train, self._feed.train(step), step)
            if self._shared:
                self._shared.barrier("end of an inspection")
        except BaseException as error:
            self._give_up(error)
            raise
        return finding

    def inspect_validation(self, number: int) -> Finding | None:
        """Runs a validation batch again whose loss was not finite: see `inspect`."""
        with np.errstate(all="ignore"):
            return self._engine.inspect(self._task.evaluate, self._feed.validation(number), 0)

    def validate(self, first: int, count: int) -> list[Totals]:
        """Returns the totals of some validation batches."""
        totals = []
        try:
            with np.errstate(all="ignore"):
                for number in range(first, first + count):
                    sums = self._engine.evaluate(self._task.evaluate, self._feed.validation(number))
                    totals.append(self._shared.total(sums) if self._shared else total_of(sums))
        except BaseException as error:
            self._give_up(error)
            raise
        return totals

    def fingerprint(self) -> Fingerprint:
        """What the bits of this process's results depend on."""
        return fingerprint(self._task.threads)

    def snapshot(self, folder: Path, keep: int, about: dict[str, Any], losses: Array) -> dict[str, Any]:
        """Writes a snapshot between two steps: see `SnapshotWriter.write`.

        Where the optimizer's state is shared out, all ranks are asked for it; the others send rank 0 what they hold.

        Args:
            folder: RUN/snapshots.
            keep: How many of them stay.
            about: What the manifest says.
            losses: Of all steps so far.
        """
        try:
            written = self._state.write(folder, keep, about, losses)
        except BaseException as error:
            self._give_up(error)  # others may wait to send what they hold
            raise
        if written:
            name, nbytes, seconds = written["name"], f"{written['bytes']:,}", written["seconds"]
            self._log.info("snapshot %s: %s bytes, %.3f s", name, nbytes, seconds)
        return written

    def finish_snapshot(self) -> None:
        """Waits until the last snapshot, if there is one, is on the disk."""
        self._state.wait()

    def restore(self, snapshot: Path) -> None:
        """Takes parameters and state from a snapshot, every byte of which it checks."""
        self._state.restore(snapshot)

    def finish(self) -> dict[str, Any]:
        """Returns what the worker held and what became of its parameters."""
        sha256 = self._engine.parameters.sha256()
        self._log.info("end: peak %s bytes, parameters %s", f"{self._ledger.peak:,}", sha256)
        return {
            "rank": self._task.rank,
            "shards": [*self.shards],
            "predicted_peak_bytes": max(self._task.train.peak, self._task.evaluate.peak),
            "ledger_peak_bytes": self._ledger.peak,
            "reserved_bytes": reserved_nbytes(self._task.train, self._task.evaluate, self._task.block),
            "process": asdict(ProcessMemory.read()),
            "parameters_sha256": sha256,
            **self._state.optimizer_facts(),
        }

    def parameters(self) -> tuple[Array, Array | None]:
        """Returns the flat parameters, and the flat state if there is one."""
        parameters = self._engine.parameters
        return parameters.flat, None if parameters.state is None else parameters.state.flat

    def load_weights(self, path: Path) -> None:
        """Starts from the parameters in a file instead of initial ones."""
        weights.load(path, self._engine.parameters, self._ledger)

    def verification(self) -> Verification | None:
        """What the witness found at the first step and a validation batch before it; None where there was none."""
        return self._verification

    def close(self) -> None:
        """Gives back the BLAS threads, the file of offloaded values and the shared memory, and closes the log."""
        with contextlib.suppress(SnapshotFailed):  # a run that ends well has asked, in another its own error is told
            self.finish_snapshot()
        self._threads.restore_original_limits()
        self._parts.close()
        if self._own_log is not None:
            self._own_log.close()

    def _give_up(self, error: BaseException) -> None:
        if self._shared:
            self._shared.abort(str(error))
        if self._carrier:
            self._carrier.communicator.abort()
        self._log.error("failed: %s", error, exc_info=error)
