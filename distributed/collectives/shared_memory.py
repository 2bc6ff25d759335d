"""All-reduce in shared memory between workers of one node.

Each rank owns one memfd and maps everybody's, through /proc/PID/fd/N: such memory has no name, so it cannot leak, and does not
count against the size of /dev/shm. Gradient buffers are slots of the owner's segment, so a gradient is never copied to
be sent. To reduce, each rank adds its slice of all roots up the canonical tree, in place, into the buffer of shard 0.

Barriers publish by plain stores to counters with one writer each, which x86 keeps in order.

A segment: a header (a counter for barriers, a flag, the totals and the slots of roots by shard), then the slots.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpointing.executor import Sums, Totals, total_of
from checkpointing.reduction_tree import Node, additions_across, roots_of, shards_of
from framework import kernels
from framework.memory import Allocation, Array
from framework.optimizers import NORM_BLOCK

_PAGE = 4096
_SUMS = len(Totals._fields)
_FIXED = 64  # bytes: counter, flag, and padding to a cache line
#: Polls of the counters before a waiting rank begins to sleep, and its shortest and longest sleep in seconds.
_SPINS, _SHORTEST, _LONGEST = 200, 2e-5, 1e-3


class CollectiveError(RuntimeError):
    """A collective did not complete: ranks are late, or one of them gave up."""


@dataclass(frozen=True)
class SegmentAddress:
    """Where other processes of the node find a segment."""

    pid: int
    descriptor: int
    nbytes: int


def header_nbytes(shards: int) -> int:
    """Bytes of a segment's header."""
    needed = _FIXED + shards * (_SUMS * np.dtype(np.float64).itemsize + np.dtype(np.int64).itemsize)
    return -(-needed // _PAGE) * _PAGE


class Segment:
    """One rank's shared memory, as its owner or another rank sees it."""

    def __init__(self, descriptor: int, nbytes: int, shards: int) -> None:
        self._map = mmap.mmap(descriptor, nbytes)
        control = np.frombuffer(self._map, np.int64, 2)
        self.counter, self.flag = control[:1], control[1:]
        sums = np.frombuffer(self._map, np.float64, _SUMS * shards, _FIXED)
        self.sums = sums.reshape(shards, _SUMS)
        self.root_slots = np.frombuffer(self._map, np.int64, shards, _FIXED + sums.nbytes)
        self._start = header_nbytes(shards)

    def slot(self, number: int, size: int, dtype: np.dtype[Any]) -> Array:
        """Returns slot `number` as an array of `size` elements."""
        return np.frombuffer(self._map, dtype, size, self._start + number * slot_nbytes(size, dtype))


def slot_nbytes(size: int, dtype: np.dtype[Any]) -> int:
    """Bytes between slots: whole cache lines."""
    return -(-size * dtype.itemsize // 64) * 64


class _Slot:
    """Owns a slot of a segment: the base of its array and of all views."""

    def __init__(self, owner: SharedMemory, number: int, memory: Array, allocation: Allocation) -> None:
        self._owner, self._number, self._memory = owner, number, memory
        self._allocation = allocation
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._owner.release(self._number)


class SharedMemory:
    """A communicator of W ranks on one node; also the allocator of its rank's gradient buffers.

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
        nbytes = header_nbytes(shards) + slots * slot_nbytes(size, dtype)
        if not hasattr(os, "memfd_create"):
            raise OSError("workers share memory through memfd, which this system does not have; use workers=0")
        descriptor = os.memfd_create("retape-gradients", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        self._close = weakref.finalize(self, os.close, descriptor)
        self.address = SegmentAddress(os.getpid(), descriptor, nbytes)
        self._own = Segment(descriptor, nbytes, shards)
        self._segments: list[Segment] = [self._own]
        self._free = list(range(slots))
        self._slot_at: dict[int, int] = {}  # address -> slot
        self._generation = 0
        blocks = -(-size // NORM_BLOCK)
        mine = shards_of(blocks, world, rank)
        self._slice = slice(mine.start * NORM_BLOCK, min(mine.stop * NORM_BLOCK, size))

    def connect(self, addresses: Sequence[SegmentAddress]) -> None:
        """Maps all ranks' segments, given in the order of ranks."""
        self._segments = []
        for rank, address in enumerate(addresses):
            if rank == self.rank:
                self._segments.append(self._own)
                continue
            path = f"/proc/{address.pid}/fd/{address.descriptor}"
            try:
                descriptor = os.open(path, os.O_RDWR)
            except OSError as error:
                raise CollectiveError(
                    f"rank {self.rank} cannot attach to the shared memory of rank {rank} at {path}: {error.strerror}; "
                    "workers of one node must run as one user in one process namespace and be dumpable"
                ) from error
            try:
                self._segments.append(Segment(descriptor, address.nbytes, self.shards))
            finally:
                os.close(descriptor)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns a free slot as a gradient buffer; it is free again when the last view of it has died."""
        if shape != (self.size,) or dtype != self.dtype or not self._free:
            raise ValueError(
                f"no slot for {dtype}{list(shape)}: slots hold {self.dtype}[{self.size}], {len(self._free)} free"
            )
        number = self._free.pop(0)
        memory = self._own.slot(number, self.size, self.dtype)
        self._slot_at[_address(memory)] = number
        return np.asarray(_Slot(self, number, memory, allocation))

    def release(self, number: int) -> None:
        """Takes a slot back."""
        self._free.append(number)
        self._free.sort()

    def reduce(self, roots: Mapping[Node, Array], sums: Sums) -> tuple[Array, Totals]:
        """Adds all ranks' roots up the tree; see `checkpointing.executor.Reduction`.

        The result lies in rank 0's memory: no rank may write to it before `release_result`.
        """
        for (first, _), root in roots.items():
            self._own.root_slots[first] = self._slot_at[_address(root)]
        totals = self._exchange(sums)
        nodes = [
            (rank, node) for rank in range(self.world) for node in roots_of(shards_of(self.shards, self.world, rank))
        ]
        places = {first: self._root(rank, first) for rank, (first, _) in nodes}
        additions = additions_across(self.shards, self.world)
        for block in kernels.row_blocks(self._slice.stop - self._slice.start, 1):
            here = slice(self._slice.start + block.start, self._slice.start + block.stop)
            for first, number in additions:
                places[first][here] += places[first + number][here]
            places[0][here] /= totals.divisor
        self.barrier("all-reduce")
        return roots[min(roots)] if self.rank == 0 else places[0], totals

    def total(self, sums: Sums) -> Totals:
        """Returns the totals over all ranks' shards, added in the tree."""
        total = self._exchange(sums)
        self.barrier("exchange of losses")  # nobody writes the next sums before all have read these
        return total

    def _exchange(self, sums: Sums) -> Totals:
        for shard, totals in sums.items():
            self._own.sums[shard] = tuple(totals)
        self.barrier("exchange of losses")
        everyone: Sums = {}
        for rank, segment in enumerate(self._segments):
            for shard in shards_of(self.shards, self.world, rank):
                everyone[shard] = Totals(*segment.sums[shard].tolist())
        return total_of(everyone)

    def barrier(self, what: str = "barrier") -> None:
        """Waits until all ranks have come here.

        Raises:
            CollectiveError: Ranks did not come within the timeout, or one gave up.
        """
        self._generation += 1
        self._own.counter[0] = self._generation
        started, polls, pause = time.monotonic(), 0, _SHORTEST
        while True:
            late = [r for r, segment in enumerate(self._segments) if segment.counter[0] < self._generation]
            if not late:
                return  # before the flags: a barrier that all have reached is passed by all
            gone = [r for r, segment in enumerate(self._segments) if segment.flag[0]]
            if gone:
                raise CollectiveError(f"rank {self.rank}: {what} given up, since rank {gone[0]} failed")
            polls += 1
            if polls <= _SPINS:
                continue
            waited = time.monotonic() - started
            if waited > self.timeout:
                raise CollectiveError(
                    f"rank {self.rank}: {what} waited {waited:.1f} s for ranks {late}, who did not come"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)

    def close(self) -> None:
        """Lets nobody attach any more. The memory is gone when the last mapping is."""
        self._close()

    def abort(self) -> None:
        """Tells the other ranks to wait no longer: their collectives raise."""
        self._own.flag[0] = 1

    def _root(self, rank: int, first: int) -> Array:
        segment = self._segments[rank]
        return segment.slot(int(segment.root_slots[first]), self.size, self.dtype)


def _address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])
