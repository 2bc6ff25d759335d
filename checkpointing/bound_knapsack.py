"""The least time of whole items that together have so many bytes: a covering knapsack by dynamic programming, item after item.

What is not held at a moment must run again, and half of a value cannot be held instead of the whole. Bounds ask at every moment of a step, and
from one moment to the next few items change, mostly late ones, so the table of those before them is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from framework.memory import Array

#: In how many units the bytes of all items of a moment are divided at most; a unit is exact if it divides all of them.
UNITS = 2048

#: The most items of a moment. Of more each is a small part of the whole, so parts of items tell as much.
MOST = 512


class Knapsacks:
    """Knapsacks over items of several moments.

    Args:
        moments: Of each moment the bytes and the seconds of its items, bytes being positive.
    """

    def __init__(self, moments: Sequence[tuple[Array, Array]]) -> None:
        every = [nbytes for nbytes, _ in moments if len(nbytes)]
        total = max((int(nbytes.sum()) for nbytes in every), default=1)
        exact = int(np.gcd.reduce(np.concatenate(every))) if every else 1
        self._unit = exact if total // exact <= UNITS else -(-total // UNITS)
        self._most = max((int(self._up(nbytes).sum()) for nbytes in every), default=0)
        nothing = np.full(self._most + 1, math.inf)
        nothing[0] = 0.0
        self._items: list[tuple[int, float]] = []
        self._tables = [nothing]  # with the first 0, 1, 2, … items, by units

    def _up(self, nbytes: Array) -> Array:
        return -(-nbytes // self._unit)

    def table(self, nbytes: Array, seconds: Array) -> Array:
        """Returns for 0, 1, 2, … units the least seconds of items that have so many, as far as all of them do.

        The bytes of items are rounded up, so none is above what whole bytes would give.
        """
        units = self._up(nbytes)
        items = list(zip(units.tolist(), seconds.tolist(), strict=True))
        same = 0
        while same < min(len(items), len(self._items)) and items[same] == self._items[same]:
            same += 1
        del self._items[same:], self._tables[same + 1 :]
        for count, time in items[same:]:
            before = self._tables[-1]
            after = before.copy()
            np.minimum(after[1:count], time, out=after[1:count])
            np.minimum(after[count:], before[: len(before) - count] + time, out=after[count:])
            self._items.append((count, time))
            self._tables.append(after)
        return self._tables[-1][: int(units.sum()) + 1]

    def least(self, table: Array, nbytes: int) -> float:
        """Returns what such a table says of so many bytes, of all that there are if these are fewer."""
        return float(table[min(-(-nbytes // self._unit), len(table) - 1)])
