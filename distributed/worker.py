"""A worker: one rank's engine, data and communicator. The same class runs in process and as a Ray actor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from checkpointing.engine import Engine
from checkpointing.inspector import Finding
from checkpointing.plan import Plan
from checkpointing.process_memory import ProcessMemory, give_back_free_memory, peak_rss
from checkpointing.reduction import LocalReduction, Totals, total_of
from checkpointing.reduction_tree import shards_of
from checkpointing.report import recording
from checkpointing.report.data import Timeline
from checkpointing.witness import Verification, Witness
from distributed.collectives.gradients import GradientReduction
from distributed.collectives.ray_transport import CALLS_NBYTES
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Network, Transport
from distributed.fingerprint import Fingerprint, fingerprint
from distributed.logs import close_log, log_file, no_log, open_log, told_process
from distributed.recording import RecordedStep
from distributed.sharded_state import ShardedState, StateCarrier
from distributed.snapshot_writer import SnapshotWriter
from distributed.snapshots import LOSSES, OPTIMIZER, WEIGHTS, SnapshotFailed, load
from distributed.worker_sizes import (
    CHUNKS,
    chunk_nbytes,
    reserved_nbytes,
    shard_specs,
    static_nbytes,
    validation_windows,
)
from framework import weights
from framework.data import Batches, Dataset, EpochOrder, LastBatch
from framework.memory import Array, Ledger
from framework.models import Model
from framework.optimizers import Optimizer
from framework.parameters import sha256_of
from framework.schedules import WarmupCosine
from framework.tensor_files import Tensors


@dataclass(frozen=True)
class WorkerTask:
    """All that a worker is told.

    Attributes:
        model: Chain and loss.
        data: The examples.
        optimizer: Updates the parameters.
        schedule: The learning rate by step.
        rank: Which worker this is.
        world: W, the number of ranks.
        shards: V.
        batch: Examples of a global batch.
        last_batch: What becomes of the last batch of an epoch, and of a validation, where it is not whole.
        seed: The run's seed.
        clip: Greatest norm of a gradient.
        limit: The ledger's hard limit in bytes.
        threads: BLAS threads.
        train: The rank's plan of a training step.
        evaluate: The rank's plan of a validation batch.
        validation_examples: Examples of a validation.
        shared: Whether gradients are reduced with other workers in shared memory.
        block: Whether the buffers of a step lie in one block; see `checkpointing.executor.Executor`.
        offload_dir: The folder for values that a plan holds on disk.
        record: The step that the ledger records; None for none.
        verify: Whether the first step and the first validation batch run under the witness; see `checkpointing.witness`.
        timeout: Seconds to wait for them.
        overlap, bandwidth: See `GradientReduction`.
        shard_optimizer: Whether the rank holds the optimizer's state of its part of the parameters alone.
        spread: Of the ranks over nodes.
        network: What is between nodes.
    """

    model: Model
    data: Dataset
    optimizer: Optimizer
    schedule: WarmupCosine
    rank: int
    world: int
    shards: int
    batch: int
    last_batch: LastBatch
    seed: int
    clip: float | None
    limit: int | None
    threads: int
    train: Plan
    evaluate: Plan
    validation_examples: int
    shared: bool
    block: bool
    offload_dir: Path | None
    record: int | None
    verify: bool
    timeout: float
    overlap: bool
    bandwidth: float | None
    shard_optimizer: bool
    spread: Spread
    network: Network


class Worker:
    """One rank of a training run."""

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        if task.block:
            assert (
                task.train.packing and task.evaluate.packing
            )  # made now, and what that took is given back before the first array
        give_back_free_memory()
        self._witness: Witness | None = None
        self._shared: GradientReduction | None = None
        self._carrier: StateCarrier | None = None
        self._sharded: ShardedState | None = None
        self._offloads: Engine | None = None
        self._recorded: Timeline | None = None
        self._log = no_log()
        self._snapshots: SnapshotWriter | None = None
        try:
            self._build(task)
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Stops the witness, and gives back the file of offloaded values and the shared memory."""
        if self._offloads:
            self._offloads.close()
        if self._witness:
            self._witness.close()
        if self._shared:
            self._shared.close()
        if self._carrier:
            self._carrier.communicator.close()

    def _build(self, task: WorkerTask) -> None:
        self._ledger = Ledger(task.limit)
        leads = len(task.spread.nodes) > 1 and task.rank in task.spread.leaders
        self._witness = Witness(self._ledger, CALLS_NBYTES if leads else 0) if task.verify else None
        self._verification: Verification | None = None
        layout = task.model.chain.layout(shard_specs(task.data, task.batch, task.shards)[0])
        static = static_nbytes(task.data, task.shards, task.shared)
        chunks = chunk_nbytes(layout, task.shards, task.spread, task.network.chunk, task.rank)
        category, owner = CHUNKS.split("/")
        self._counted = [self._ledger.count(task.data.nbytes, "data", "data set")]
        if task.shared:
            most = max(moment.categories.get("gradients", 0) for moment in task.train.simulation.timeline)
            self._counted.append(
                self._ledger.count(static["communication/segment header"], "communication", "segment header")
            )
            self._shared = GradientReduction(
                task.rank, task.world, task.shards, layout.gradients.size, layout.dtype,
                most // layout.gradients.nbytes, task.timeout, task.overlap, task.bandwidth,
                task.spread, task.network.chunk,
                self._ledger.empty((chunks,), np.uint8, category, owner) if chunks else None, task.network.retry,
            )  # fmt: skip
        if task.shard_optimizer:
            self._carrier = StateCarrier(task.rank, task.spread, task.timeout, task.network, self._ledger)
            self._sharded = ShardedState(self._carrier.communicator, layout, self._ledger, task.spread)
        self._engine = Engine(
            task.model.chain,
            task.model.loss,
            layout,
            task.optimizer,
            seed=task.seed,
            clip=task.clip,
            ledger=self._ledger,
            reduction=self._shared or LocalReduction(),
            gradients=self._shared,
            block=task.block,
            offload_dir=task.offload_dir,
            sharing=self._sharded,
        )
        self._offloads = self._engine
        self._engine.reserve([task.train, task.evaluate])
        batches = Batches(task.data.size("train"), task.batch, task.last_batch)
        self._order = EpochOrder(batches, task.seed, self._ledger)
        self._windows = validation_windows(task.data, task.batch, task.validation_examples, task.last_batch)
        self._validation = Batches(len(self._windows), task.batch, task.last_batch)
        self._rows = task.batch // task.shards
        # The limit lasts as long as this worker: products in another number of threads have other bits.
        self._threads = threadpool_limits(task.threads)

    def address(self) -> SegmentAddress | None:
        """Where other workers find this one's shared memory."""
        return self._shared.address if self._shared else None

    def connect(self, addresses: Sequence[SegmentAddress], transport: Transport | None = None) -> None:
        """Attaches to the shared memory of the workers on its node; the transport carries messages to other nodes, if there are any."""
        if self._shared:
            self._shared.connect(addresses, transport)

    def state_address(self) -> SegmentAddress | None:
        """Where other workers find the shared memory through which this one sends parameters and state."""
        return self._carrier.communicator.address if self._carrier else None

    def connect_state(self, addresses: Sequence[SegmentAddress], transport: Transport | None = None) -> None:
        """Attaches to the same of the workers on its node; the transport carries messages to other nodes, if there are any."""
        if self._carrier:
            self._carrier.connect(addresses, transport)

    def begin(self, run: str, logs: Path | None) -> str | None:
        """Is told that the run begins: writes its log from now on.

        Args:
            run: What the run is called.
            logs: The folder of the logs, if there are any.

        Returns:
            Why there is no log although there should be one, as on a node that has not such a folder; else None.
        """
        if logs is None:
            return None
        task = self._task
        try:
            self._log = open_log(log_file(logs, task.rank))
        except OSError as error:
            return str(error)
        self._log.info("start: rank %d of %d, %s", task.rank, task.world, told_process())
        self._log.info(
            "run %s; policy %s; shards %s; predicted peak %s bytes",
            run, task.train.policy, [*self.shards], f"{max(task.train.peak, task.evaluate.peak):,}",
        )  # fmt: skip
        return None

    @property
    def shards(self) -> range:
        """The shards of this rank."""
        return shards_of(self._task.shards, self._task.world, self._task.rank)

    def step(self, step: int) -> dict[str, float]:
        """Runs one training step and reports it."""
        started = time.perf_counter()
        rate = self._task.schedule(step)
        try:
            if self._snapshots is not None:
                self._snapshots.check()
            with np.errstate(all="ignore"):  # the Trainer stops a run whose loss or gradient is not finite, with words
                if self._witness:
                    self._engine.evaluate(self._task.evaluate, self._load_validation(0), self._witness)
                with self._recording(step):
                    outcome = self._engine.train_step(
                        self._task.train, self._load_train(step), step, rate, self._witness
                    )
            if self._witness:
                self._testify(self._witness)
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
                finding = self._engine.inspect(self._task.train, self._load_train(step), step)
            if self._shared:
                self._shared.barrier("end of an inspection")
        except BaseException as error:
            self._give_up(error)
            raise
        return finding

    def inspect_validation(self, number: int) -> Finding | None:
        """Runs a validation batch again whose loss was not finite: see `inspect`."""
        with np.errstate(all="ignore"):
            return self._engine.inspect(self._task.evaluate, self._load_validation(number), 0)

    def validate(self, first: int, count: int) -> list[Totals]:
        """Returns the totals of some validation batches."""
        totals = []
        try:
            with np.errstate(all="ignore"):
                for number in range(first, first + count):
                    sums = self._engine.evaluate(self._task.evaluate, self._load_validation(number))
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
        state = {**self._state(), LOSSES: {"losses": losses}}
        try:
            if self._sharded and self._task.rank:
                self._sharded.pass_on(state[OPTIMIZER])
                return {}
            if self._snapshots is None:
                self._snapshots = SnapshotWriter(folder, keep)
            written = self._snapshots.write(about, state)
        except BaseException as error:
            self._give_up(error)  # others may wait to send what they hold
            raise
        self._log.info("snapshot %s: %s bytes, %.3f s", written["name"], f"{written['bytes']:,}", written["seconds"])
        return written

    def finish_snapshot(self) -> None:
        """Waits until the last snapshot, if there is one, is on the disk."""
        if self._snapshots is not None:
            self._snapshots.wait()

    def restore(self, snapshot: Path) -> None:
        """Takes parameters and state from a snapshot, every byte of which it checks."""
        load(snapshot, self._state(), self._ledger)

    def _state(self) -> dict[str, Tensors]:
        engine = self._engine
        optimizer, state = engine.optimizer, engine.optimizer_state
        by_name: Tensors = (
            self._sharded.tensors(optimizer, state)
            if self._sharded
            else optimizer.state_by_name(engine.parameters.layout, state)
        )
        return {WEIGHTS: engine.parameters.with_state(), OPTIMIZER: by_name}

    def finish(self) -> dict[str, Any]:
        """Returns what the worker held and what became of its parameters."""
        sha256, state = self._engine.parameters.sha256(), self._engine.optimizer_state
        self._log.info("end: peak %s bytes, parameters %s", f"{self._ledger.peak:,}", sha256)
        return {
            "rank": self._task.rank,
            "shards": [*self.shards],
            "predicted_peak_bytes": max(self._task.train.peak, self._task.evaluate.peak),
            "ledger_peak_bytes": self._ledger.peak,
            "reserved_bytes": reserved_nbytes(self._task.train, self._task.evaluate, self._task.block),
            "process": asdict(ProcessMemory.read()),
            "parameters_sha256": sha256,
            "optimizer_bytes": state.nbytes,
            "optimizer_sha256": self._sharded.sha256(state) if self._sharded else sha256_of(state),
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

    def _testify(self, witness: Witness) -> None:
        """Ends the testimony: the run goes on at full speed."""
        self._verification = witness.found
        witness.close()
        self._witness = None

    def close(self) -> None:
        """Gives back the BLAS threads, the file of offloaded values and the shared memory, and closes the log."""
        with contextlib.suppress(SnapshotFailed):  # a run that ends well has asked, in another its own error is told
            self.finish_snapshot()
        self._threads.restore_original_limits()
        self._let_go()
        close_log(self._log)

    def _load_train(self, step: int) -> Any:
        def load(shard: int, x: Array, targets: Array, *weights: Array) -> None:
            first, rows = shard * self._rows, self._rows
            self._task.data.load("train", self._order.indices(step, first, rows), x, targets)
            _weigh(self._order.true(step, first, rows), *weights)

        return load

    def _load_validation(self, number: int) -> Any:
        def load(shard: int, x: Array, targets: Array, *weights: Array) -> None:
            first, rows = shard * self._rows, self._rows
            indices = [self._windows[place] for place in self._validation.places(number, first, rows)]
            self._task.data.load("validation", indices, x, targets)
            _weigh(self._validation.true(number, first, rows), *weights)

        return load

    def _give_up(self, error: BaseException) -> None:
        if self._shared:
            self._shared.abort(str(error))
        if self._carrier:
            self._carrier.communicator.abort()
        self._log.error("failed: %s", error, exc_info=error)


def _weigh(true: int, weights: Array | None = None) -> None:
    """Writes the weights of a shard's examples: one for each that is no padding, zero for the rest."""
    if weights is not None:
        weights[:true] = 1
        weights[true:] = 0
