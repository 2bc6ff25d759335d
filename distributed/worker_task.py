"""What a worker is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from checkpointing.plan import Plan
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Network
from framework.data import Dataset, LastBatch
from framework.models import Model
from framework.optimizers import Optimizer
from framework.schedules import Schedule


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
        rotate_cores: Whether the ranks of a node may change cores; see `distributed.core_rotation`.
        shard_optimizer: Whether the rank holds the optimizer's state of its part of the parameters alone.
        share_weights: Whether the ranks of a node have one copy of the parameters; then that state is shared out, too.
        spread: Of the ranks over nodes.
        network: What is between nodes.
    """

    model: Model
    data: Dataset
    optimizer: Optimizer
    schedule: Schedule
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
    rotate_cores: bool
    shard_optimizer: bool
    share_weights: bool
    spread: Spread
    network: Network
