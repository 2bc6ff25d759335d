"""How examples are cut into batches, and the order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from framework.keys import Key
from framework.memory import Ledger

#: What becomes of the last batch of an epoch where it is not whole.
LastBatch = Literal["drop", "pad"]


@dataclass(frozen=True)
class Batches:
    """How examples in some order are cut into batches of one size.

    Attributes:
        size: Number of examples.
        batch: Examples of a batch.
        last: What becomes of the examples that are left over when there is no whole batch of them any more: they are dropped, or
            form a batch that is padded with the first ones. Padding has a weight of zero, so that it counts nothing; that it is of real
            examples keeps every value inside a model as usual.
    """

    size: int
    batch: int
    last: LastBatch = "drop"

    def __post_init__(self) -> None:
        if self.last == "drop" and self.size < self.batch:
            raise ValueError(
                f"a batch of {self.batch} examples is larger than the {self.size} that there are; lower --batch, or pad it with "
                "--last-batch pad"
            )

    def __len__(self) -> int:
        """Number of batches."""
        return self.size // self.batch + self.padded

    @property
    def padded(self) -> bool:
        """Whether there is padding in the last batch."""
        return self.last == "pad" and self.size % self.batch != 0

    def places(self, number: int, first: int, count: int) -> list[int]:
        """Returns where the examples first..first+count of a batch are in the order; those of padding begin again at its start.

        >>> Batches(10, 4, "pad").places(2, 0, 4)
        [8, 9, 0, 1]
        """
        start = number * self.batch + first
        return [place % self.size for place in range(start, start + count)]

    def true(self, number: int, first: int, count: int) -> int:
        """Returns how many of the examples first..first+count of a batch are no padding: they are the first ones."""
        return min(max(self.size - number * self.batch - first, 0), count)


class EpochOrder:
    """The order of a split's examples, another in each epoch, a function of (seed, epoch) alone.

    The order is one array of the ledger's category `data`; a new epoch is shuffled in place.

    Args:
        batches: How the examples of an epoch are cut into batches.
        seed: The run's seed.
        ledger: Counts the array.
    """

    def __init__(self, batches: Batches, seed: int, ledger: Ledger) -> None:
        self.batches = batches
        self._key = Key(seed).fold("epoch")
        self._epoch = -1
        self._order = ledger.empty((batches.size,), order_dtype(batches.size), "data", "epoch order")

    def indices(self, step: int, first: int, count: int) -> list[int]:
        """Returns the examples first..first+count of the batch of a step."""
        epoch, number = divmod(step, len(self.batches))
        if epoch != self._epoch:
            self._order.fill(1)
            self._order[0] = 0
            np.cumsum(self._order, out=self._order)  # 0, 1, 2, … without another array
            self._key.fold(epoch).generator().shuffle(self._order)
            self._epoch = epoch
        return [int(self._order[place]) for place in self.batches.places(number, first, count)]

    def true(self, step: int, first: int, count: int) -> int:
        """Returns how many of them are no padding; see `Batches.true`."""
        return self.batches.true(step % len(self.batches), first, count)


def order_dtype(size: int) -> np.dtype[Any]:
    """The dtype of the order of `size` examples."""
    return np.dtype(np.int32 if size <= np.iinfo(np.int32).max else np.int64)
