"""Gradients and losses added across ranks, in place, while the backward goes on.

Gradient buffers are slots of their rank's segment, so a gradient is never copied to be sent. To reduce a bucket, each rank adds its share of
all sums up the canonical tree, in place, into the buffer of shard 0. A thread of each rank does that, bucket after bucket, while the
rank's backward makes the next ones; the last Reduce waits for it. Who adds which elements, and when, changes no bit: an element's
additions are those of the tree. So of two ranks the one that made a bucket earlier adds more of it (`shares.py`), except for the last one of a
step, after which neither has anything else to do.

The thread meets those of the other ranks on a channel of its own: once a bucket, when all ranks have made it, and once in the end. It takes
no memory.

With several nodes the ranks of each do so up to the roots of the largest subtrees that lie on it. These its leader, the lowest rank, exchanges with other
leaders' (`cross_node.py`), and writes the mean over that root which comes first; there the ranks of the node read it. Messages from other nodes arrive in
memory that the leader has from the beginning.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from checkpointing.reduction import Sums, Totals, Word, add_in_tree, reduce_in_tree, total_of
from checkpointing.reduction_tree import roots_of, shards_of
from distributed.collectives.cross_node import Carried, CrossNode
from distributed.collectives.gradient_memory import SUMS, Header, Slot, header_nbytes, hierarchy_of, message_sizes
from distributed.collectives.rendezvous import GRACE, PROGRESS, Rendezvous, give_up
from distributed.collectives.segment import CACHE_LINE, Segment, SegmentAddress, attach_all, round_up
from distributed.collectives.shares import share_by_lead, share_of
from distributed.collectives.spread import Spread
from distributed.collectives.transport import RETRY, Inbox, Network, Transport
from framework.memory import Allocation, Array, Ledger
from framework.optimizers import global_norm, norm_share


class GradientReduction:
    """The reduction of W ranks; also the allocator of its rank's gradient buffers.

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
        spread: Of the ranks over nodes; None if they are on one.
        chunk: Bytes of a root that travel to another node at once, the same on all ranks.
        memory: For messages from other nodes: as many bytes as `message_sizes` says. None takes them now.
        retry: Seconds after which a message to another node is sent again.

    Attributes:
        seconds: How long the last reduction kept the rank waiting.
        progress: How far this rank is; see `checkpointing.reduction.Reduction`.
        inbox: Where messages from other nodes arrive; None if this rank gets none.
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
        spread: Spread | None = None,
        chunk: int = Network.chunk,
        memory: Array | None = None,
        retry: float = RETRY,
    ) -> None:
        self.rank, self.world, self.shards, self.size, self.dtype = rank, world, shards, size, dtype
        self.timeout = timeout
        self._spread = spread or Spread.of([0] * world)
        self._node = self._spread.node_of[rank]
        self._here = self._spread.nodes[self._node]  # the ranks that share memory
        self._hierarchy = hierarchy_of(shards, self._spread)
        self._roots = self._hierarchy.roots[self._node]
        sizes = message_sizes(rank, shards, self._spread, size, dtype.itemsize, chunk)
        self.inbox = Inbox(sizes, memory) if sizes else None
        self._chunk, self._retry = chunk, retry
        self._cross: CrossNode | None = None
        self._start = header_nbytes(shards, size)
        self._stride = round_up(size * dtype.itemsize, CACHE_LINE)
        self._own = Segment.create("retape-gradients", self._start + slots * self._stride)
        self.address = self._own.address
        self.progress: Word = self._own.words(PROGRESS, 1)
        self._free = list(range(slots))
        self._slot_at: dict[int, int] = {}  # address -> slot
        self.seconds = 0.0
        self._overlap, self._bandwidth = overlap and world > 1, bandwidth
        self._waiting: list[tuple[Mapping[int, Array], Sequence[slice], Sums]] = []  # buckets, where nothing overlaps
        self._begun: list[Future[None]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._everyone: dict[
            int, Array
        ] = {}  # while a step is reduced: the sums of this node's ranks, by their first shard
        self._totals: Totals | None = None
        self._buckets, self._left = 0, size  # how many were reduced, and how many elements of this step were not
        self._finishing = threading.Event()  # the rank has nothing else to do than to wait for the reduction
        self._told = False  # whether other nodes have been told this node's totals
        self._rendezvous: Rendezvous | None = None
        if world == 1:
            self.connect([self.address])

    def connect(self, addresses: Sequence[SegmentAddress], transport: Transport | None = None) -> None:
        """Maps the segments of the ranks of this node.

        Args:
            addresses: Of all ranks' segments, in the order of ranks.
            transport: Carries this rank's messages to other nodes, if it is its node's leader.

        Raises:
            CollectiveError: One cannot be attached to.
        """
        self._segments = attach_all(self.rank, self._own, [addresses[rank] for rank in self._here], self._here)
        self._headers = [Header(segment, self.shards, self.size) for segment in self._segments]
        alone = len(self._spread.nodes) == 1
        patience = self.timeout if alone or self.inbox else self.timeout + GRACE
        self._rendezvous = Rendezvous(self.rank, self._segments, patience, self._here)
        self._channel, self._reducing = self._rendezvous.channel(0), self._rendezvous.channel(1)
        if self.inbox is not None:
            assert transport is not None
            roots = self._hierarchy.roots
            self._cross = CrossNode(
                self._spread, roots, self._chunk, self.inbox, transport, self._rendezvous, self._retry
            )

    def progress_here(self) -> list[int]:
        """Returns how far each of the ranks is that share memory; any thread may ask."""
        return [segment.words(PROGRESS, 1)[0] for segment in self._segments]

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        """Returns a free slot as a gradient buffer; it is free again when the last view of it has died."""
        if shape != (self.size,) or dtype != self.dtype or not self._free:
            raise ValueError(
                f"no slot for {dtype}{list(shape)}: slots hold {self.dtype}[{self.size}], {len(self._free)} free"
            )
        number = self._free.pop(0)
        memory = self._slot(self._own, number)
        self._slot_at[_address(memory)] = number
        return np.asarray(Slot(self.release, number, memory, allocation))

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
        self._begun.append(self._thread.submit(self._reduce, sums, places, totals, time.monotonic()))

    def finish(self) -> tuple[Array, Totals]:
        """Waits for all that was begun, and returns the mean gradient and the totals over all shards.

        The gradient lies in the memory of the node's first root, on one node rank 0's: no rank may write to it before the next barrier.

        Raises:
            CollectiveError: Ranks did not come within the timeout, one died, or one gave up.
        """
        started = time.perf_counter()
        self._finishing.set()
        try:
            for bucket in self._waiting:
                self._reduce(*bucket)
            for future in self._begun:
                future.result()
            if self._cross is not None:
                self._cross.settle("all-reduce")
            self._reducing.barrier("all-reduce")
            return self._mean(), self._totals or self._totals_of_all()
        finally:
            self._forget()
            self.seconds = time.perf_counter() - started

    def total(self, sums: Sums) -> Totals:
        """Returns the totals over all ranks' shards, added in the tree."""
        total = self._exchange(sums)
        self.barrier("exchange of losses")  # nobody writes the next sums before all have read these
        return total

    def norm(self, mean: Array, ledger: Ledger) -> float:
        """Returns the norm of the mean gradient, of which each rank that shares memory sums the squares of a part.

        Raises:
            CollectiveError: See `barrier`.
        """
        return global_norm(mean, ledger, self._exchange_squares, self._here.index(self.rank), len(self._here))

    def barrier(self, what: str = "barrier") -> None:
        """Waits until all ranks that share memory have come here.

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

    def abort(self, reason: str = "it could not go on") -> None:
        """Tells the other ranks to wait no longer: their collectives raise. Those of other nodes are told the reason, too."""
        give_up(self._own)
        if self._cross is not None:
            self._cross.abort(reason)

    def _reduce(
        self, sums: Mapping[int, Array], places: Sequence[slice], totals: Sums, made: float | None = None
    ) -> None:
        """Adds this rank's share of a bucket when all ranks have made it, which this one had at some time of the system's clock."""
        if not self._everyone:
            self._publish(sums, totals)
        if made is not None:
            self._headers[self._here.index(self.rank)].made[self._buckets % 2] = made
        self._reducing.barrier("all-reduce", hurry=self._finishing)
        if not self._everyone:
            self._everyone = self._sums_of_all(sums)
        if self._bandwidth is not None:
            time.sleep(sum(place.stop - place.start for place in places) * self.dtype.itemsize / self._bandwidth)
        mine = self._share(places, overlaps=made is not None)
        if len(self._spread.nodes) == 1:
            self._totals = self._totals or self._totals_of_all()
            reduce_in_tree(self._everyone, mine, self._totals.divisor)
            return
        add_in_tree(self._everyone, mine, self._hierarchy.within[self._node])
        self._reducing.barrier("all-reduce", hurry=self._finishing)
        if self._cross is not None:
            self._reduce_across(self._cross, places)

    def _share(self, places: Sequence[slice], overlaps: bool) -> list[slice]:
        """Returns which elements of the next bucket this rank adds."""
        turn, here = self._buckets % 2, self._here.index(self.rank)
        self._buckets += 1
        self._left -= sum(place.stop - place.start for place in places)
        if not self._left or not overlaps:
            return share_of(places, len(self._here), here)
        made = [float(header.made[turn]) for header in self._headers]
        return share_by_lead(places, made, here, (len(self._everyone) + 1) * self.dtype.itemsize)

    def _reduce_across(self, cross: CrossNode, places: Sequence[slice]) -> None:
        """Makes the mean of what the nodes' roots have of a bucket, in this node's first root."""
        roots = {first: self._memory_of(self._everyone[first]) for first in self._roots}
        cross.carry(
            Carried(
                "all-reduce",
                [share_of(places, len(self._spread.nodes), node) for node in range(len(self._spread.nodes))],
                roots,
                roots[self._roots[0]],
                self._combine,
                extra=None if self._told else self._node_totals(),  # once a step
                take_extra=self._take_totals,
            )
        )
        self._told = True

    def _combine(self, sums: Mapping[int, Array], out: Array) -> None:
        """Adds up and divides what all nodes have of some elements; the totals are there, since they came first."""
        self._totals = self._totals or self._totals_of_all()
        add_in_tree(sums, [slice(0, out.size)], self._hierarchy.across, divisor=self._totals.divisor)
        if self._node:  # else it is there, in the sum that begins with shard 0
            out[...] = sums[0]

    def _mean(self) -> Array:
        """Returns the mean gradient, which counts as another's memory on all ranks but 0, as their plans have it."""
        found = self._everyone[self._roots[0]]
        return found if self.rank == 0 else self._memory_of(found)

    def _memory_of(self, array: Array) -> Array:
        """Returns the memory of a slot as such: who holds it, as messages do until they have arrived, keeps no gradient alive."""
        slot = self._slot_at.get(_address(array))
        return array if slot is None else self._slot(self._own, slot)

    def _publish(self, sums: Mapping[int, Array], totals: Sums) -> None:
        """Tells the others where this rank's sums lie, and its totals; they may read that after the next meeting."""
        header = self._headers[self._here.index(self.rank)]
        for first, array in sums.items():
            header.root_slots[first] = self._slot_at[_address(array)]
        for shard, each in totals.items():
            header.sums[shard] = tuple(each)

    def _exchange(self, totals: Sums) -> Totals:
        """Returns the totals over all ranks' shards; a barrier."""
        self._publish({}, totals)
        self.barrier("exchange of losses")
        if self._cross is not None:
            words = "exchange of losses"
            self._cross.carry(Carried(words, extra=self._node_totals(), take_extra=self._take_totals))
            self._cross.settle(words)
        if len(self._spread.nodes) > 1:
            self.barrier("exchange of losses")
        return self._totals_of_all()

    def _exchange_squares(self, sums: Array, mine: slice) -> None:
        """Writes the sums of other ranks' blocks beside this rank's; theirs may be written again after the next meeting."""
        self._headers[self._here.index(self.rank)].squares[mine] = sums[mine]
        self.barrier("norm of the gradient")
        for place, header in enumerate(self._headers):
            theirs = norm_share(sums.size, place, len(self._here))
            sums[theirs] = header.squares[theirs]

    def _node_totals(self) -> Array:
        """Puts the totals of this node's shards into the leader's header, and returns that: (V, 3)."""
        found = self._headers[0].sums
        for header, rank in zip(self._headers, self._here, strict=True):
            mine = shards_of(self.shards, self.world, rank)
            found[mine.start : mine.stop] = header.sums[mine.start : mine.stop]
        return found

    def _take_totals(self, node: int, numbers: Array) -> None:
        """Puts the totals of another node's shards there, too."""
        theirs = numbers.reshape(self.shards, SUMS)
        for rank in self._spread.nodes[node]:
            some = shards_of(self.shards, self.world, rank)
            self._headers[0].sums[some.start : some.stop] = theirs[some.start : some.stop]

    def _totals_of_all(self) -> Totals:
        one_node = len(self._spread.nodes) == 1
        return total_of({
            shard: Totals(*header.sums[shard].tolist())
            for rank in range(self.world)
            for header in (self._headers[rank if one_node else 0],)
            for shard in shards_of(self.shards, self.world, rank)
        })  # fmt: skip

    def _sums_of_all(self, own: Mapping[int, Array]) -> dict[int, Array]:
        """Returns the sums of all ranks of this node, by their first shard."""
        found = dict(own)
        for rank, segment, header in zip(self._here, self._segments, self._headers, strict=True):
            if rank != self.rank:
                for first, _ in roots_of(shards_of(self.shards, self.world, rank)):
                    found[first] = self._slot(segment, int(header.root_slots[first]))
        return found

    def _forget(self) -> None:
        """Holds no gradient any more."""
        self._everyone, self._totals, self._told = {}, None, False
        self._left = self.size
        self._finishing.clear()
        self._waiting.clear()
        self._begun.clear()

    def _slot(self, segment: Segment, number: int) -> Array:
        return segment.array(self._start + number * self._stride, self.size, self.dtype)


def _address(a: Array) -> int:
    return int(a.__array_interface__["data"][0])
