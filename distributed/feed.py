"""What the Loads of a worker's plans bring: the examples of its shards, and their weights."""

from __future__ import annotations

from checkpointing.engine import Load
from distributed.worker_sizes import validation_windows
from distributed.worker_task import WorkerTask
from framework.data import Batches, EpochOrder
from framework.memory import Array, Ledger


class Feed:
    """The examples of a run by step and shard, the same for any number of workers.

    Args:
        task: The worker's.
        ledger: Counts the order of an epoch.

    Attributes:
        order: In which training sees its examples.
    """

    def __init__(self, task: WorkerTask, ledger: Ledger) -> None:
        self._data = task.data
        self.order = EpochOrder(Batches(task.data.size("train"), task.batch, task.last_batch), task.seed, ledger)
        self._windows = validation_windows(task.data, task.batch, task.validation_examples, task.last_batch)
        self._validation = Batches(len(self._windows), task.batch, task.last_batch)
        self._rows = task.batch // task.shards

    def train(self, step: int) -> Load:
        """Returns what loads the shards of a training step."""

        def load(shard: int, x: Array, targets: Array, *weights: Array) -> None:
            first, rows = shard * self._rows, self._rows
            self._data.load("train", self.order.indices(step, first, rows), x, targets)
            _weigh(self.order.true(step, first, rows), *weights)

        return load

    def validation(self, number: int) -> Load:
        """Returns what loads the shards of a validation batch."""

        def load(shard: int, x: Array, targets: Array, *weights: Array) -> None:
            first, rows = shard * self._rows, self._rows
            indices = [self._windows[place] for place in self._validation.places(number, first, rows)]
            self._data.load("validation", indices, x, targets)
            _weigh(self._validation.true(number, first, rows), *weights)

        return load


def _weigh(true: int, weights: Array | None = None) -> None:
    """Writes the weights of a shard's examples: one for each that is no padding, zero for the rest."""
    if weights is not None:
        weights[:true] = 1
        weights[true:] = 0
