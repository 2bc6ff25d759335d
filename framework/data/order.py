"""The order of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.keys import Key
from framework.memory import Array, Ledger


class EpochOrder:
    """The order of a split's examples, another in each epoch, a function of (seed, epoch) alone.

    The order is one array of the ledger's category `data`; a new epoch is shuffled in place. An incomplete last batch of
    an epoch is left out.

    Args:
        size: Number of examples.
        batch: Examples of a global batch.
        seed: The run's seed.
        ledger: Counts the array.
    """

    def __init__(self, size: int, batch: int, seed: int, ledger: Ledger) -> None:
        if size < batch:
            raise ValueError(f"a batch of {batch} examples is larger than the {size} that there are; lower --batch")
        self.batch = batch
        self._key = Key(seed).fold("epoch")
        self._epoch = -1
        self._order = ledger.empty((size,), order_dtype(size), "data", "epoch order")

    def indices(self, step: int, first: int, count: int) -> Array:
        """Returns the examples first..first+count of the batch of a step (a view, valid until the next epoch)."""
        epoch, number = divmod(step, self._order.size // self.batch)
        if epoch != self._epoch:
            self._order.fill(1)
            self._order[0] = 0
            np.cumsum(self._order, out=self._order)  # 0, 1, 2, … without another array
            self._key.fold(epoch).generator().shuffle(self._order)
            self._epoch = epoch
        start = number * self.batch + first
        return self._order[start : start + count]


def order_dtype(size: int) -> np.dtype[Any]:
    """The dtype of the order of `size` examples."""
    return np.dtype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)
