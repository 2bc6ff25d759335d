"""Gradients and losses added across the ranks of one node, in place, while the backward goes on.

Gradient buffers are slots of their rank's segment, so a gradient is never copied to be sent. To reduce a bucket, each rank adds its share of
all sums up the canonical tree, in place, into the buffer of shard 0. A thread of each rank does that, bucket after bucket, while the
rank's backward makes the next ones; the last Reduce waits for it. Who adds which elements, and when, changes no bit: an element's
additions are those of the tree.

The thread meets those of the other ranks on a channel of its own: once a bucket, when all ranks have made it, and once in the end. It takes
no memory.

A segment: the control area, the totals and the slots of roots by shard, then the slots.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from checkpointing.reduction import Sums, Totals, reduce_in_tree, total_of
from checkpointing.reduction_tree import roots_of, shards_of
from distributed.collectives.rendezvous import CONTROL_NBYTES, Rendezvous, give_up
from distributed.collectives.segment import CACHE_LINE, PAGE, Segment, SegmentAddress, attach_all, round_up
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
        overlap: Whether a bucket is reduced as soon as it is made; else all are when the last one is.
        bandwidth: Bytes a second of a network that there is not: what a bucket would take there is waited. None for none.

    Attributes:
        seconds: How long the last reduction kept the rank waiting.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        shards: int,
        size: int,
        dtype: np.dtype[Any],
        slots: int,
        timeout: float = 300.0,
        overlap: bool = True,
        bandwidth: float | None = None,
    ) -> None:
        self.rank, self.world, self.shards, self.size, self.dtype = rank, world, shards, size, dtype
        self.timeout = timeout
        self._start = header_nbytes(shards)
        self._stride = round_up(size * dtype.itemsize, CACHE_LINE)
        self._own = Segment.create("retape-gradients", self._start + slots * self._stride)
        self.address = self._own.address
        self._free = list(range(slots))
        self._slot_at: dict[int, int] = {}  # address -> slot
        self.seconds = 0.0
        self._overlap, self._bandwidth = overlap and world > 1, bandwidth
        self._waiting: list[tuple[Mapping[int, Array], Sequence[slice], Sums]] = []  # buckets, where nothing overlaps
        self._begun: list[Future[None]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._everyone: dict[int, Array] = {}  # while a step is reduced: all ranks' sums, by their first shard
        self._totals: Totals | None = None
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
        self._channel, self._reducing = self._rendezvous.channel(0), self._rendezvous.channel(1)

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

    def begin(self, sums: Mapping[int, Array], places: Sequence[slice], totals: Sums) -> None:
        """Begins to reduce some elements; see `checkpointing.reduction.Reduction`."""
        if not self._overlap:
            self._waiting.append((sums, places, totals))
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"reduction of rank {self.rank}")
        self._begun.append(self._thread.submit(self._reduce, sums, places, totals))

    def finish(self) -> tuple[Array, Totals]:
        """Waits for all that was begun, and returns the mean gradient and the totals over all shards.

        The gradient lies in rank 0's memory: no rank may write to it before the next barrier.

        Raises:
            CollectiveError: Ranks did not come within the timeout, one died, or one gave up.
        """
        started = time.perf_counter()
        try:
            for bucket in self._waiting:
                self._reduce(*bucket)
            for future in self._begun:
                future.result()
            self._reducing.barrier("all-reduce")
            assert self._totals is not None
            return self._everyone[0], self._totals
        finally:
            self._forget()
            self.seconds = time.perf_counter() - started

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
        """Ends the thread, and lets nobody attach any more. The memory is gone when the last mapping is."""
        if self._begun:
            self.abort()  # the step failed, and its thread may wait for others
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._forget()
        self._own.close()
        if self._rendezvous:
            self._rendezvous.close()

    def abort(self) -> None:
        """Tells the other ranks to wait no longer: their collectives raise."""
        give_up(self._own)

    def _reduce(self, sums: Mapping[int, Array], places: Sequence[slice], totals: Sums) -> None:
        """Adds this rank's share of a bucket when all ranks have made it."""
        if not self._everyone:
            self._publish(sums, totals)
        self._reducing.barrier("all-reduce")
        if not self._everyone:
            self._everyone, self._totals = self._sums_of_all(sums), self._totals_of_all()
        assert self._totals is not None
        if self._bandwidth is not None:
            time.sleep(sum(place.stop - place.start for place in places) * self.dtype.itemsize / self._bandwidth)
        reduce_in_tree(self._everyone, share_of(places, self.world, self.rank), self._totals.divisor)

    def _publish(self, sums: Mapping[int, Array], totals: Sums) -> None:
        """Tells the others where this rank's sums lie, and its totals; they may read that after the next meeting."""
        header = self._headers[self.rank]
        for first, array in sums.items():
            header.root_slots[first] = self._slot_at[_address(array)]
        for shard, each in totals.items():
            header.sums[shard] = tuple(each)

    def _exchange(self, totals: Sums) -> Totals:
        """Returns the totals over all ranks' shards; a barrier."""
        self._publish({}, totals)
        self.barrier("exchange of losses")
        return self._totals_of_all()

    def _totals_of_all(self) -> Totals:
        return total_of({
            shard: Totals(*header.sums[shard].tolist())
            for rank, header in enumerate(self._headers)
            for shard in shards_of(self.shards, self.world, rank)
        })  # fmt: skip

    def _sums_of_all(self, own: Mapping[int, Array]) -> dict[int, Array]:
        """Returns all ranks' sums, by their first shard."""
        found = dict(own)
        for rank, (segment, header) in enumerate(zip(self._segments, self._headers, strict=True)):
            if rank != self.rank:
                for first, _ in roots_of(shards_of(self.shards, self.world, rank)):
                    found[first] = self._slot(segment, int(header.root_slots[first]))
        return found

    def _forget(self) -> None:
        """Holds no gradient any more."""
        self._everyone, self._totals = {}, None
        self._waiting.clear()
        self._begun.clear()

    def _slot(self, segment: Segment, number: int) -> Array:
        return segment.array(self._start + number * self._stride, self.size, self.dtype)


def share_of(places: Sequence[slice], world: int, rank: int) -> list[slice]:
    """Returns a rank's share of some elements, cut at multiples of 4,096.

    >>> share_of([slice(0, 8192), slice(10000, 14096)], 3, 1)
    [slice(4096, 8192, None)]
    """
    mine = shards_of(-(-sum(place.stop - place.start for place in places) // NORM_BLOCK), world, rank)
    found, before = [], 0
    for place in places:
        start, stop = (
            min(max(place.start + edge * NORM_BLOCK - before, place.start), place.stop)
            for edge in (mine.start, mine.stop)
        )
        if stop > start:
            found.append(slice(start, stop))
        before += place.stop - place.start
    return found


def _address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])
