"""What ranks that reduce gradients have in memory: slots of gradients in their segments, and before them what they tell each other.

A segment: the control area, the totals and the slots of roots by shard, when buckets were made, the sums of squares by block, then the slots.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from checkpointing.reduction import Totals
from checkpointing.reduction_tree import Hierarchy, in_hierarchy, roots_of, shards_of
from distributed.collectives.cross_node import slot_sizes
from distributed.collectives.rendezvous import CONTROL_NBYTES
from distributed.collectives.segment import PAGE, Segment, round_up
from distributed.collectives.spread import Spread
from distributed.collectives.transport import SlotSizes
from framework.memory import Allocation, Array
from framework.optimizers import norm_blocks

#: Buckets whose times are kept: a rank is never more than one meeting ahead of another, so nobody overwrites one that is still to be read.
_TIMES = 2
#: Numbers of the totals of a shard.
SUMS = len(Totals._fields)
_FLOAT, _INTEGER = np.dtype(np.float64), np.dtype(np.int64)


def header_nbytes(shards: int, size: int) -> int:
    """Bytes of a segment before its slots, which have so many elements each."""
    by_shard = shards * (SUMS * _FLOAT.itemsize + _INTEGER.itemsize)
    return round_up(CONTROL_NBYTES + by_shard + (_TIMES + norm_blocks(size)) * _FLOAT.itemsize, PAGE)


def hierarchy_of(shards: int, spread: Spread) -> Hierarchy:
    """Returns which sums of gradients are added within nodes, and which across."""
    nodes = spread.node_of
    return in_hierarchy({
        first: node
        for rank, node in enumerate(nodes)
        for first, _ in roots_of(shards_of(shards, len(nodes), rank))
    })  # fmt: skip


def message_sizes(rank: int, shards: int, spread: Spread, size: int, itemsize: int, chunk: int) -> SlotSizes | None:
    """Returns the bytes of the messages that a rank may get from other nodes; None if it gets none."""
    if len(spread.nodes) == 1 or rank not in spread.leaders:
        return None
    roots = hierarchy_of(shards, spread).roots
    extra = shards * SUMS * _FLOAT.itemsize
    return slot_sizes(spread, spread.node_of[rank], roots, size, itemsize, chunk, extra)


class Header:
    """What a rank tells the others of its shards, in its segment.

    Attributes:
        sums: The totals of each shard.
        root_slots: The slot in which the root that begins with a shard lies.
        made: When the rank had made the last two buckets, in seconds, in turn.
        squares: Sums of squares of the mean gradient, block by block, of those that the rank has summed; see `global_norm`.
    """

    def __init__(self, segment: Segment, shards: int, size: int) -> None:
        self.sums = segment.array(CONTROL_NBYTES, shards * SUMS, _FLOAT).reshape(shards, SUMS)
        behind = CONTROL_NBYTES + self.sums.nbytes
        self.root_slots = segment.array(behind, shards, _INTEGER)
        behind += self.root_slots.nbytes
        self.made = segment.array(behind, _TIMES, _FLOAT)
        self.squares = segment.array(behind + self.made.nbytes, norm_blocks(size), _FLOAT)


class Slot:
    """Owns a slot of a segment: the base of its array and of all views."""

    def __init__(self, release: Callable[[int], None], number: int, memory: Array, allocation: Allocation) -> None:
        self._release, self._number, self._memory = release, number, memory
        self._allocation = allocation
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._release(self._number)
