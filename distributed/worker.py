"""A worker: one rank's engine, data and communicator. The same class runs in process and as a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from checkpointing.engine import Engine
from checkpointing.executor import LocalReduction, total_of
from checkpointing.plan import Plan
from checkpointing.profiler import peak_rss
from checkpointing.reduction_tree import shards_of
from distributed.collectives.shared_memory import SegmentAddress, SharedMemory, header_nbytes
from framework.data import Dataset, EpochOrder, order_dtype, spread
from framework.layers import Spec
from framework.memory import Array, Ledger
from framework.models import Model
from framework.optimizers import Optimizer
from framework.schedules import WarmupCosine


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
        seed: The run's seed.
        clip: Greatest norm of a gradient.
        limit: The ledger's hard limit in bytes.
        threads: BLAS threads.
        train: The rank's plan of a training step.
        evaluate: The rank's plan of a validation batch.
        validation_examples: Examples of a validation.
        shared: Whether gradients are reduced with other workers in shared memory.
        timeout: Seconds to wait for them.
    """

    model: Model
    data: Dataset
    optimizer: Optimizer
    schedule: WarmupCosine
    rank: int
    world: int
    shards: int
    batch: int
    seed: int
    clip: float | None
    limit: int | None
    threads: int
    train: Plan
    evaluate: Plan
    validation_examples: int
    shared: bool
    timeout: float


def shard_specs(data: Dataset, batch: int, shards: int) -> tuple[Spec, Spec]:
    """Returns the specs of one shard's inputs and targets."""
    rows = batch // shards
    return Spec((rows, *data.inputs.shape), data.inputs.dtype), Spec((rows, *data.targets.shape), data.targets.dtype)


def static_nbytes(data: Dataset, shards: int, shared: bool) -> dict[str, int]:
    """Returns the bytes, besides parameters and optimizer state, that a worker holds throughout, by "category/owner"."""
    size = data.size("train")
    return {
        "data/data set": data.nbytes,
        "data/epoch order": size * order_dtype(size).itemsize,
        "communication/segment header": header_nbytes(shards) if shared else 0,
    }


def validation_windows(data: Dataset, batch: int, most: int) -> list[int]:
    """Returns the validation examples of a run: spread evenly, a multiple of the batch (at least one batch).

    Raises:
        ValueError: There are fewer than a batch.
    """
    size = data.size("validation")
    if size < batch:
        raise ValueError(
            f"the validation split has {size} examples, fewer than a batch of {batch}; lower --batch, or give more data"
        )
    return spread(size, max(batch, min(size, most) // batch * batch))


class Worker:
    """One rank of a training run."""

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self._ledger = Ledger(task.limit)
        layout = task.model.chain.layout(shard_specs(task.data, task.batch, task.shards)[0])
        static = static_nbytes(task.data, task.shards, task.shared)
        self._counted = [self._ledger.count(task.data.nbytes, "data", "data set")]
        self._shared: SharedMemory | None = None
        if task.shared:
            most = max(moment.categories.get("gradients", 0) for moment in task.train.simulation.timeline)
            self._counted.append(self._ledger.count(static["communication/segment header"], "communication", "segment header"))
            self._shared = SharedMemory(
                task.rank, task.world, task.shards, layout.size, layout.dtype, most // layout.nbytes, task.timeout
            )
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
        )
        self._order = EpochOrder(task.data.size("train"), task.batch, task.seed, self._ledger)
        self._rows = task.batch // task.shards
        # The limit lasts as long as this worker: products in another number of threads have other bits.
        self._threads = threadpool_limits(task.threads)

    def address(self) -> SegmentAddress | None:
        """Where other workers find this one's shared memory."""
        return self._shared.address if self._shared else None

    def connect(self, addresses: Sequence[SegmentAddress]) -> None:
        """Attaches to all workers' shared memory."""
        if self._shared:
            self._shared.connect(addresses)

    def step(self, step: int) -> dict[str, float]:
        """Runs one training step and reports it."""
        started = time.perf_counter()
        rate = self._task.schedule(step)
        try:
            with np.errstate(all="ignore"):  # the Trainer stops a run whose loss or gradient is not finite, with words
                outcome = self._engine.train_step(self._task.train, self._load_train(step), step, rate)
            if self._shared:
                self._shared.barrier("end of a step")  # before rank 0's gradient buffer is used again
        except BaseException:
            self._give_up()
            raise
        return {
            "step": step,
            "loss": outcome.loss,
            "learning_rate": rate,
            "gradient_norm": outcome.gradient_norm,
            "step_seconds": time.perf_counter() - started,
            "live_bytes": self._ledger.live,
            "peak_bytes": self._ledger.peak,
        }

    def validate(self, first: int, count: int) -> list[tuple[float, float]]:
        """Returns the sums of losses and counts of some validation batches."""
        totals = []
        indices = validation_windows(self._task.data, self._task.batch, self._task.validation_examples)
        try:
            for number in range(first, first + count):
                batch = indices[number * self._task.batch : (number + 1) * self._task.batch]
                sums = self._engine.evaluate(self._task.evaluate, self._loader("validation", batch))
                totals.append(self._shared.total(sums) if self._shared else total_of(sums))
        except BaseException:
            self._give_up()
            raise
        return totals

    def finish(self) -> dict[str, Any]:
        """Returns what the worker held and what became of its parameters."""
        return {
            "rank": self._task.rank,
            "shards": list(shards_of(self._task.shards, self._task.world, self._task.rank)),
            "predicted_peak_bytes": max(self._task.train.peak, self._task.evaluate.peak),
            "ledger_peak_bytes": self._ledger.peak,
            "rss_peak_bytes": peak_rss(),
            "parameters_sha256": self._engine.parameters.sha256(),
        }

    def parameters(self) -> Array:
        """Returns the flat parameters."""
        return self._engine.parameters.flat

    def set_parameters(self, flat: Array) -> None:
        """Starts from given parameters instead of initial ones."""
        self._engine.parameters.flat[...] = flat

    def close(self) -> None:
        """Gives back the BLAS threads and the shared memory."""
        self._threads.restore_original_limits()
        if self._shared:
            self._shared.close()

    def _load_train(self, step: int) -> Any:
        def load(shard: int, x: Array, targets: Array) -> None:
            indices = self._order.indices(step, shard * self._rows, self._rows)
            self._task.data.load("train", indices.tolist(), x, targets)

        return load

    def _loader(self, split: str, batch: Sequence[int]) -> Any:
        def load(shard: int, x: Array, targets: Array) -> None:
            self._task.data.load(split, batch[shard * self._rows : (shard + 1) * self._rows], x, targets)

        return load

    def _give_up(self) -> None:
        if self._shared:
            self._shared.abort()
