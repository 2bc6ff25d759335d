"""What a worker consists of, made in one order, so that all ranks take memory alike."""

from __future__ import annotations

import numpy as np

from checkpointing.engine import Engine
from checkpointing.plan import pack_together
from checkpointing.process_memory import give_back_free_memory
from checkpointing.reduction import LocalReduction
from checkpointing.witness import Witness
from distributed.collectives.gradients import GradientReduction
from distributed.collectives.ray_transport import CALLS_NBYTES
from distributed.feed import Feed
from distributed.sharded_state import ShardedState, StateCarrier
from distributed.shared_weights import SharedWeights
from distributed.worker_sizes import CHUNKS, chunk_nbytes, shard_specs, static_nbytes
from distributed.worker_state import WorkerState
from distributed.worker_task import WorkerTask
from framework.keys import Key
from framework.memory import Ledger
from framework.parameters import Layout


class WorkerParts:
    """Makes a rank's parts; where one fails, those before it are given back.

    Args:
        task: What the worker is told.

    Attributes:
        ledger: Counts all of them.
        witness: Of the first step; None where there is none, or none any more.
        reduction: Adds gradients and losses with other ranks; None without others.
        weights: The parameters, where workers of a node have one copy; else None.
        carrier: Of parameters and state between ranks; None where each rank has all of the optimizer's state.
        engine: Runs the plans.
        state: What snapshots have.
        feed: What plans load.
    """

    def __init__(self, task: WorkerTask) -> None:
        # What plans say is worked out now: what that takes is given back before the first array, and no witness has to look at it.
        plans = task.train, task.evaluate
        if task.block:
            pack_together(plans)
        if task.verify:
            for plan in plans:
                plan.work_out()
        give_back_free_memory()
        self.witness: Witness | None = None
        self.reduction: GradientReduction | None = None
        self.carrier: StateCarrier | None = None
        self.weights: SharedWeights | None = None
        self._engine: Engine | None = None
        try:
            self._make(task)
        except BaseException:
            self.close()
            raise

    def _make(self, task: WorkerTask) -> None:
        self.ledger = Ledger(task.limit)
        leads = len(task.spread.nodes) > 1 and task.rank in task.spread.leaders
        if task.verify:
            self.witness = Witness(self.ledger, CALLS_NBYTES if leads else 0)
        layout = task.model.chain.layout(shard_specs(task.data, task.batch, task.shards)[0])
        self._counted = [self.ledger.count(task.data.nbytes, "data", "data set")]
        if task.shared:
            self.reduction = self._make_reduction(task, layout)
        sharded: ShardedState | None = None
        self.weights = self._make_weights(task, layout) if task.share_weights else None
        if task.shard_optimizer:
            self.carrier = StateCarrier(task.rank, task.spread, task.timeout, task.network, self.ledger)
            sharded = ShardedState(self.carrier.communicator, layout, self.ledger, task.spread)
        self.engine = self._engine = Engine(
            task.model.chain,
            task.model.loss,
            layout,
            task.optimizer,
            seed=task.seed,
            clip=task.clip,
            ledger=self.ledger,
            reduction=self.reduction or LocalReduction(),
            gradients=self.reduction,
            block=task.block,
            offload_dir=task.offload_dir,
            sharing=sharded,
            parameters=self.weights,
        )
        self.engine.reserve([task.train, task.evaluate])
        self.state = WorkerState(self.engine, sharded, self.ledger, task.rank)
        self.feed = Feed(task, self.ledger)

    def _make_weights(self, task: WorkerTask, layout: Layout) -> SharedWeights:
        return SharedWeights(task.rank, task.spread, layout, Key(task.seed), self.ledger)

    def _make_reduction(self, task: WorkerTask, layout: Layout) -> GradientReduction:
        header = static_nbytes(task.data, task.shards, task.shared, layout)["communication/segment header"]
        self._counted.append(self.ledger.count(header, "communication", "segment header"))
        chunks = chunk_nbytes(layout, task.shards, task.spread, task.network.chunk, task.rank)
        category, owner = CHUNKS.split("/")
        return GradientReduction(
            task.rank, task.world, task.shards, layout.gradients.size, layout.dtype,
            task.train.simulation.gradient_nbytes // layout.gradients.nbytes, task.timeout, task.overlap, task.bandwidth,
            task.spread, task.network.chunk,
            self.ledger.empty((chunks,), np.uint8, category, owner) if chunks else None, task.network.retry,
        )  # fmt: skip

    def dismiss_witness(self) -> None:
        """Stops the witness."""
        if self.witness:
            self.witness.close()
        self.witness = None

    def close(self) -> None:
        """Stops the witness, and gives back the file of offloaded values and the shared memory."""
        if self._engine:
            self._engine.close()
        self.dismiss_witness()
        if self.reduction:
            self.reduction.close()
        if self.carrier:
            self.carrier.communicator.close()
        if self.weights:
            self.weights.close()
