"""Collectives of ranks on several nodes: within each through shared memory, between them by their leaders.

An array passes a *window* of each rank's segment, piece by piece. Of each piece

    every rank writes what it has into its window (or, where nothing is reduced, its part into its leader's);
    the ranks of a node add up, each its share, the subtrees of the canonical tree that lie on the node;
    the leader exchanges the roots of these with other leaders (`cross_node.py`), and has the results in its window;
    every rank reads there what it wants.

A segment: the control area of `rendezvous`, calls, the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from checkpointing.reduction import add_in_tree
from checkpointing.reduction_tree import in_hierarchy
from distributed.collectives.calls import CALLS_NBYTES, Calls
from distributed.collectives.communicator import UFUNCS, CollectiveError, Op, kind_of, require_array, slices_of
from distributed.collectives.cross_node import Carried, CrossNode
from distributed.collectives.rendezvous import CONTROL_NBYTES, GRACE, Rendezvous, give_up
from distributed.collectives.segment import PAGE, Segment, SegmentAddress, attach_all, round_up
from distributed.collectives.shares import share_of
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Inbox, Network, SlotSizes, Transport
from framework.memory import Array

#: Bytes of a rank's window; between two pieces that pass it nothing is on its way.
WINDOW = 16 << 20
#: Bytes of a segment before the window.
HEADER_NBYTES = round_up(CONTROL_NBYTES + CALLS_NBYTES, PAGE)
#: Bytes of the largest number.
_WIDEST = 16


def message_sizes(spread: Spread, node: int, chunk: int) -> SlotSizes:
    """Returns the bytes of the messages that the leader of a node may get."""
    piece, roots = max(chunk, _WIDEST), in_hierarchy(dict(enumerate(spread.node_of))).roots
    return SlotSizes.of({
        other: (len(roots[other]) + 1) * piece for other in range(len(spread.nodes)) if other != node
    })  # fmt: skip


class Hierarchical:
    """A `Communicator` of W ranks on any nodes, of one thread each.

    All ranks make theirs, tell each other their `address`, and `connect`; leaders also need a transport, which brings messages to the others' `inbox`.
    Results are written to the arrays given.

    Args:
        rank: This rank.
        spread: Of all ranks.
        timeout: Seconds that an operation waits for other ranks.
        network: What is between nodes.
        window: Bytes of an array that pass at once, the same on all ranks.
        memory: For messages from other nodes: as many bytes as `message_sizes` says. None takes them now.

    Attributes:
        inbox: Where messages from other nodes arrive; None if this rank gets none.
    """

    def __init__(
        self,
        rank: int,
        spread: Spread,
        timeout: float = 300.0,
        network: Network = Network(),  # noqa: B008  (it is frozen)
        window: int = WINDOW,
        memory: Array | None = None,
    ) -> None:
        self.rank, self.world, self.timeout = rank, len(spread.node_of), timeout
        self._spread, self._network, self._window = spread, network, window
        self._node = spread.node_of[rank]
        self._here = spread.nodes[self._node]
        self._hierarchy = in_hierarchy(dict(enumerate(spread.node_of)))
        self._own = Segment.create("retape-hierarchy", HEADER_NBYTES + round_up(window, PAGE))
        leads = len(spread.nodes) > 1 and rank == self._here[0]
        self.inbox = Inbox(message_sizes(spread, self._node, network.chunk), memory) if leads else None
        self._cross: CrossNode | None = None
        self._unusable = "connect comes first"

    @property
    def address(self) -> SegmentAddress:
        """Where the other ranks of its node find this one's segment."""
        return self._own.address

    def connect(self, addresses: Sequence[SegmentAddress], transport: Transport | None = None) -> None:
        """Maps the segments of the ranks of this node.

        Args:
            addresses: Of all ranks, in order.
            transport: Carries messages to other nodes' leaders; for leaders of several nodes.

        Raises:
            CollectiveError: One cannot be attached to.
        """
        self._segments = attach_all(self.rank, self._own, [addresses[rank] for rank in self._here], self._here)
        patience = self.timeout if self.inbox or len(self._spread.nodes) == 1 else self.timeout + GRACE
        self._rendezvous = Rendezvous(self.rank, self._segments, patience, self._here)
        self._channel = self._rendezvous.channel(0)
        self._calls = Calls(self.rank, self._segments, CONTROL_NBYTES, self._here)
        if self.inbox is not None:
            assert transport is not None
            roots, network = self._hierarchy.roots, self._network
            self._cross = CrossNode(
                self._spread, roots, network.chunk, self.inbox, transport, self._rendezvous, network.retry
            )
        self._unusable = ""

    def all_reduce(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns the array given, with what all ranks' arrays combine to."""
        flat, nodes = self._flat(array, op), len(self._spread.nodes)
        with self._calling(f"all_reduce({op}, {kind_of(array)})", timeout) as call:
            for here in self._pieces(flat):
                parts = [share_of([slice(0, here.stop - here.start)], nodes, node) for node in range(nodes)]
                call.pass_on(flat, [here], parts, [here], op, gather=True)
        return array

    def reduce_scatter(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns this rank's slice (`slices_of`) of what all ranks' arrays combine to, a flat view of the array given; its rest is unchanged."""
        flat, slices = self._flat(array, op), slices_of(array.size, self.world)
        with self._calling(f"reduce_scatter({op}, {kind_of(array)})", timeout) as call:
            for here in self._pieces(flat):
                mine = _common(slices[self.rank], here)
                call.pass_on(flat, [here], self._of_nodes(slices, here), mine, op, gather=False)
        return flat[slices[self.rank]]

    def all_gather(self, array: Array, timeout: float | None = None) -> Array:
        """Returns the array given, of which each rank has filled in its slice (`slices_of`), with the slices of all."""
        flat, slices = self._flat(array), slices_of(array.size, self.world)
        with self._calling(f"all_gather({kind_of(array)})", timeout) as call:
            for here in self._pieces(flat):
                call.pass_on(flat, _common(slices[self.rank], here), self._of_nodes(slices, here), [here])
        return array

    def share(self, array: Array, timeout: float | None = None) -> None:
        """Fills an array that the ranks of this node have in common, in which each has written its slice (`slices_of`), with other nodes' slices."""
        flat, slices = self._flat(array), slices_of(array.size, self.world)
        with self._calling(f"share({kind_of(array)})", timeout) as call:
            call.exchange(flat, [[slices[rank] for rank in ranks] for ranks in self._spread.nodes])

    def broadcast(self, array: Array, root: int = 0, timeout: float | None = None) -> Array:
        """Returns the array given, with the numbers of rank `root`."""
        if not 0 <= root < self.world:
            raise ValueError(f"a rank lies in 0..{self.world - 1}, but got {root}")
        flat = self._flat(array, writes=root != self.rank)
        with self._calling(f"broadcast(root {root}, {kind_of(array)})", timeout) as call:
            for here in self._pieces(flat):
                whole = [slice(0, here.stop - here.start)]
                parts = [whole if root in ranks else [] for ranks in self._spread.nodes]
                mine, others = ([here], []) if root == self.rank else ([], [here])
                call.pass_on(flat, mine, parts, others)
        return array

    def barrier(self, timeout: float | None = None) -> None:
        """Returns when all ranks have called it."""
        with self._calling("barrier()", timeout) as call:
            call.pass_on(np.empty(0, np.uint8), [], [], [])

    def abort(self, reason: str = "it could not go on") -> None:
        """Makes all ranks' operations raise, the running ones, too. Any thread may call it."""
        give_up(self._own)
        if self._cross is not None:
            self._cross.abort(reason)

    def close(self) -> None:
        """Lets nobody attach any more, and gives back descriptors. The memory is gone when the last mapping is."""
        connected, self._unusable = self._unusable != "connect comes first", "it is closed"
        self._own.close()
        if connected:
            self._rendezvous.close()

    def _flat(self, array: Array, op: Op | None = None, writes: bool = True) -> Array:
        require_array(array, op, writes)
        return array.reshape(-1)

    def _pieces(self, flat: Array) -> Iterator[slice]:
        """Cuts an array into what passes the window, at least one piece."""
        width = self._window // flat.itemsize
        for start in range(0, max(1, flat.size), width):
            yield slice(start, min(start + width, flat.size))

    def _of_nodes(self, slices: Sequence[slice], here: slice) -> list[list[slice]]:
        """What each node's ranks own of a piece, counted from its beginning."""
        return [
            [
                slice(each.start - here.start, each.stop - here.start)
                for rank in ranks
                for each in _common(slices[rank], here)
            ]
            for ranks in self._spread.nodes
        ]

    @contextmanager
    def _calling(self, words: str, timeout: float | None) -> Iterator[_Call]:
        """Writes down this rank's call for the others, and gives up if it fails."""
        if self._unusable:
            raise CollectiveError(f"rank {self.rank}: {words} is not possible, since {self._unusable}", words)
        self._rendezvous.require_nobody_gave_up(words)
        try:
            self._calls.publish(words)
            with np.errstate(all="ignore"):  # an overflow is the result, as in any other transport
                yield _Call(self, words, timeout)
        except BaseException as error:  # others would take what this rank leaves behind for what they wait for
            self._unusable = f"an operation failed before: {error!r}"
            self.abort(str(error))
            raise


class _Call:
    """An operation that all ranks have begun, or will."""

    def __init__(self, owner: Hierarchical, words: str, timeout: float | None) -> None:
        self._owner, self._words, self._timeout = owner, words, timeout
        self._compared = False

    def pass_on(
        self,
        flat: Array,
        give: Sequence[slice],
        parts: Sequence[Sequence[slice]],
        take: Sequence[slice],
        op: Op | None = None,
        gather: bool = True,
    ) -> None:
        """Lets one piece of all ranks' arrays pass the windows.

        Args:
            flat: This rank's array.
            give: What it has of the piece; where that is reduced, all of it.
            parts: What each node owns of the piece, counted from its beginning.
            take: What this rank wants to know of it.
            op: How to reduce; None for not at all.
            gather: Whether all nodes get what the parts come to.
        """
        owner, touched = self._owner, [*give, *take]
        width = owner._window // flat.itemsize
        start = touched[0].start // width * width if touched else 0
        windows = {
            rank: segment.array(HEADER_NBYTES, width, flat.dtype)
            for rank, segment in zip(owner._here, owner._segments, strict=True)
        }
        home = windows[owner._here[0]]
        mine = windows[owner.rank] if op else home
        for here in give:
            mine[here.start - start : here.stop - start] = flat[here]
        self._meet()
        if op:
            (here,) = give
            whole = [slice(0, here.stop - here.start)]
            share = share_of(whole, len(owner._here), owner._here.index(owner.rank))
            add_in_tree(windows, share, owner._hierarchy.within[owner._node], UFUNCS[op])
            self._meet()
        if owner._cross is not None:
            combine = partial(self._combine, UFUNCS[op]) if op else None
            owner._cross.carry(Carried(self._words, parts, windows, home, combine, gather), self._timeout)
            owner._cross.settle(self._words, self._timeout)
        self._meet(following=True)
        for here in take:
            flat[here] = home[here.start - start : here.stop - start]
        self._meet()  # before a window is written again

    def exchange(self, home: Array, parts: Sequence[Sequence[slice]]) -> None:
        """Fills memory of this node, a part of which its ranks have written, with what other nodes have of theirs."""
        self._meet()
        if (cross := self._owner._cross) is not None:
            cross.carry(Carried(self._words, parts, home=home), self._timeout)
            cross.settle(self._words, self._timeout)
        self._meet(following=True)

    def _combine(self, ufunc: np.ufunc, sums: Mapping[int, Array], out: Array) -> None:
        add_in_tree(sums, [slice(0, out.size)], self._owner._hierarchy.across, ufunc)
        if self._owner._node:  # else it is there, in what began with rank 0
            out[...] = sums[0]

    def _meet(self, following: bool = False) -> None:
        """Meets the ranks of this node; `following`, where all wait for the leader, who may wait for other nodes."""
        owner = self._owner
        patience = self._timeout
        if patience is not None and following and owner._cross is None and len(owner._spread.nodes) > 1:
            patience += GRACE
        owner._channel.wait(owner._channel.arrive(), self._words, patience)
        if not self._compared:
            owner._calls.compare()
            self._compared = True


def _common(one: slice, other: slice) -> list[slice]:
    """Returns what two slices have in common, if anything."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return [slice(start, stop)] if start < stop else []
