"""Gradients and losses added across the ranks of one node, in place.

Gradient buffers are slots of their rank's segment, so a gradient is never copied to be sent. To reduce, each rank adds its slice of
all roots up the canonical tree, in place, into the buffer of shard 0.

A segment: the control area, the totals and the slots of roots by shard, then the slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from checkpointing.executor import Sums, Totals, total_of
from checkpointing.reduction_tree import Node, additions_across, roots_of, shards_of
from distributed.collectives.rendezvous import CONTROL_NBYTES, Rendezvous, give_up
from distributed.collectives.segment import CACHE_LINE, PAGE, Segment, SegmentAddress, attach_all, round_up
from framework import kernels
from framework.memory import Allocation, Array
from framework.optimizers import NORM_BLOCK

_SUMS = len(Totals._fields)
_FLOAT, _INTEGER = np.dtype(np.float64), np.dtype(np.int64)


def header_nbytes(shards: int) -> int:
    """Bytes of a segment before its slots."""
    return round_up(CONTROL_NBYTES + shards * (_SUMS * _FLOAT.itemsize + _INTEGER.itemsize), PAGE)


class _Header:
    """What a rank tells the others of its shards, in its segment.

    Attributes:
        sums: The totals of each shard.
        root_slots: The slot in which the root that begins with a shard lies.
    """

    def __init__(self, segment: Segment, shards: int) -> None:
        self.sums = segment.array(CONTROL_NBYTES, shards * _SUMS, _FLOAT).reshape(shards, _SUMS)
        self.root_slots = segment.array(CONTROL_NBYTES + self.sums.nbytes, shards, _INTEGER)


class _Slot:
    """Owns a slot of a segment: the base of its array and of all views."""

    def __init__(self, owner: GradientReduction, number: int, memory: Array, allocation: Allocation) -> None:
        self._owner, self._number, self._memory = owner, number, memory
        self._allocation = allocation
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._owner.release(self._number)


class GradientReduction:
    """The reduction of W ranks on one node; also the allocator of its rank's gradient buffers.

    Args:
        rank: This rank.
        world: W.
        shards: V.
        size: Elements of a gradient.
        dtype: Their dtype.
        slots: The most gradient buffers of this rank that are alive at once.
        timeout: Seconds that a collective waits for the other ranks.
    """

    def __init__(
        self, rank: int, world: int, shards: int, size: int, dtype: np.dtype[Any], slots: int, timeout: float = 300.0
    ) -> None:
        self.rank, self.world, self.shards, self.size, self.dtype = rank, world, shards, size, dtype
        self.timeout = timeout
        self._start = header_nbytes(shards)
        self._stride = round_up(size * dtype.itemsize, CACHE_LINE)
        self._own = Segment.create("retape-gradients", self._start + slots * self._stride)
        self.address = self._own.address
        self._free = list(range(slots))
        self._slot_at: dict[int, int] = {}  # address -> slot
        blocks = -(-size // NORM_BLOCK)
        mine = shards_of(blocks, world, rank)
        self._slice = slice(mine.start * NORM_BLOCK, min(mine.stop * NORM_BLOCK, size))
        self._rendezvous: Rendezvous | None = None
        if world == 1:
            self.connect([self.address])

    def connect(self, addresses: Sequence[SegmentAddress]) -> None:
        """Maps all ranks' segments, given in the order of ranks.

        Raises:
            CollectiveError: One cannot be attached to.
        """
        self._segments = attach_all(self.rank, self._own, addresses)
        self._headers = [_Header(segment, self.shards) for segment in self._segments]
        self._rendezvous = Rendezvous(self.rank, self._segments, self.timeout)
        self._channel = self._rendezvous.channel(0)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns a free slot as a gradient buffer; it is free again when the last view of it has died."""
        if shape != (self.size,) or dtype != self.dtype or not self._free:
            raise ValueError(
                f"no slot for {dtype}{list(shape)}: slots hold {self.dtype}[{self.size}], {len(self._free)} free"
            )
        number = self._free.pop(0)
        memory = self._slot(self._own, number)
        self._slot_at[_address(memory)] = number
        return np.asarray(_Slot(self, number, memory, allocation))

    def release(self, number: int) -> None:
        """Takes a slot back."""
        self._free.append(number)
        self._free.sort()

    def reduce(self, roots: Mapping[Node, Array], sums: Sums) -> tuple[Array, Totals]:
        """Adds all ranks' roots up the tree; see `checkpointing.executor.Reduction`.

        The result lies in rank 0's memory: no rank may write to it before the next barrier.
        """
        self._publish(roots)
        totals = self._exchange(sums)
        places = self._places()
        self._add_slice(places, totals.divisor)
        self.barrier("all-reduce")
        return roots[min(roots)] if self.rank == 0 else places[0], totals

    def total(self, sums: Sums) -> Totals:
        """Returns the totals over all ranks' shards, added in the tree."""
        total = self._exchange(sums)
        self.barrier("exchange of losses")  # nobody writes the next sums before all have read these
        return total

    def barrier(self, what: str = "barrier") -> None:
        """Waits until all ranks have come here.

        Raises:
            CollectiveError: Ranks did not come within the timeout, one died, or one gave up.
        """
        self._channel.barrier(what)

    def close(self) -> None:
        """Lets nobody attach any more. The memory is gone when the last mapping is."""
        self._own.close()
        if self._rendezvous:
            self._rendezvous.close()

    def abort(self) -> None:
        """Tells the other ranks to wait no longer: their collectives raise."""
        give_up(self._own)

    def _publish(self, roots: Mapping[Node, Array]) -> None:
        """Tells the others where this rank's roots lie; they may read it after the next barrier."""
        for (first, _), root in roots.items():
            self._headers[self.rank].root_slots[first] = self._slot_at[_address(root)]

    def _exchange(self, sums: Sums) -> Totals:
        """Returns the totals over all ranks' shards; a barrier."""
        for shard, totals in sums.items():
            self._headers[self.rank].sums[shard] = tuple(totals)
        self.barrier("exchange of losses")
        everyone: Sums = {}
        for rank, header in enumerate(self._headers):
            for shard in shards_of(self.shards, self.world, rank):
                everyone[shard] = Totals(*header.sums[shard].tolist())
        return total_of(everyone)

    def _places(self) -> dict[int, Array]:
        """Returns all ranks' roots, by their first shard."""
        return {
            first: self._slot(self._segments[rank], int(self._headers[rank].root_slots[first]))
            for rank in range(self.world)
            for first, _ in roots_of(shards_of(self.shards, self.world, rank))
        }

    def _add_slice(self, places: Mapping[int, Array], divisor: float) -> None:
        """Adds this rank's slice of all roots up the tree into that of shard 0, and divides it."""
        additions = additions_across(self.shards, self.world)
        for block in kernels.row_blocks(self._slice.stop - self._slice.start, 1):
            here = slice(self._slice.start + block.start, self._slice.start + block.stop)
            for first, number in additions:
                places[first][here] += places[first + number][here]
            places[0][here] /= divisor

    def _slot(self, segment: Segment, number: int) -> Array:
        return segment.array(self._start + number * self._stride, self.size, self.dtype)


def _address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])
