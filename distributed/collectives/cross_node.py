"""Numbers of several nodes, reduced and shared by their leaders, in pipelined chunks.

Each node owns a *part* of the elements. In turn t a leader sends to each other one, in one message,

    what its node has for the other's part, piece t: the roots of the largest subtrees that lie on it, never a sum in another order;
    what its own part came to, piece t - lead;

and then takes the messages of turn t - lead + 1: it adds up that piece of its own part, up the tree, and writes down what the others' parts came to. So
messages of `lead` turns are on their way while numbers are added. A leader sends turn t when it has all others' messages of turn t - lead; so nobody
gets more than 2 lead messages ahead, for which there is room from the beginning.

A message is sent again until it is known to have arrived. What it is made of stays as it was until then: a root's piece is only overwritten by the
result, which its owner could not have made without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.rendezvous import GRACE, Rendezvous
from distributed.collectives.segment import round_up
from distributed.collectives.spread import Spread
from distributed.collectives.transport import (
    BACK_OFF,
    GIVEN_UP,
    LEAD,
    PROBE,
    Inbox,
    Message,
    PeerLost,
    Receipt,
    SlotSizes,
    Transport,
)
from framework.memory import Array
from framework.optimizers import NORM_BLOCK

#: Seconds between looks at what has become of messages, of the local ranks and of a node that keeps silent.
_LOOK = 0.05
#: Seconds that a leader waits longer for another node than the ranks of a node for each other: its leader can say which of them is late.
_GRACE = GRACE / 2

#: Adds up, for some elements of the own part, what all nodes have: arrays by their first shard, which it may overwrite; the result goes to the last.
Combine = Callable[[Mapping[int, Array], Array], None]


@dataclass(frozen=True)
class Carried:
    """One exchange, as a node sees it.

    Attributes:
        words: The operation, for errors; the same on all nodes.
        parts: For each node the elements that it owns.
        mine: This node's roots, by their first shard: flat arrays. Empty where nothing is reduced.
        home: Where the results are written: a flat array. The own part is read from there where nothing is reduced.
        combine: How to reduce; None for not at all.
        gather: Whether all nodes get the results.
        extra: More numbers for all other nodes; None for none.
        take_extra: Is given those of another node.
    """

    words: str
    parts: Sequence[Sequence[slice]] = ()
    mine: Mapping[int, Array] | None = None
    home: Array | None = None
    combine: Combine | None = None
    gather: bool = True
    extra: Array | None = None
    take_extra: Callable[[int, Array], None] = lambda node, numbers: None


class CrossNode:
    """A leader's part in what nodes do together; for one thread at a time.

    While others are waited for it looks whether all is well on its node. Others learn from the inbox whom the leader waits for there, and that somebody on
    another node gave up makes the ranks of this one wait no longer.

    Args:
        spread: Of the ranks.
        roots: For each node, the first shards of its roots.
        chunk: Bytes of a piece, the same on all nodes.
        inbox: Where the others' messages arrive.
        transport: Carries this node's.
        rendezvous: Of the leader with the ranks of its node; an exchange waits as long for another node's next message.
        retry: Seconds after which a message is sent again.
    """

    def __init__(
        self,
        spread: Spread,
        roots: Mapping[int, Sequence[int]],
        chunk: int,
        inbox: Inbox,
        transport: Transport,
        rendezvous: Rendezvous,
        retry: float,
    ) -> None:
        self._rank, self._node = rendezvous.rank, spread.node_of[rendezvous.rank]
        self._spread, self._roots, self._chunk = spread, roots, chunk
        self._inbox, self._transport, self._rendezvous, self._retry = inbox, transport, rendezvous, retry
        inbox.on_giving_up = rendezvous.abort
        inbox.waiting_for = lambda: rendezvous.missing
        self._others = [other for other in range(len(spread.nodes)) if other != self._node]
        self._sent = dict.fromkeys(self._others, 0)
        self._pending: dict[int, list[_Pending]] = {other: [] for other in self._others}
        self._probes: dict[int, Receipt] = {}
        #: The ranks that another node's leader waits for, as it said last.
        self._late_at: dict[int, list[int]] = {}

    def carry(self, what: Carried, timeout: float | None = None) -> None:
        """Reduces, gathers, or both.

        Raises:
            CollectiveError: A node is late or dead, gave up, or does another operation.
        """
        turns = _Turns(self, what, self._chunk)
        for turn in range(turns.count + turns.lead - 1):
            if turn < turns.count:
                for other in self._others:
                    self._post(other, Message(self._node, self._sent[other], what.words, turns.message(turn, other)))
            if (behind := turn - turns.lead + 1) >= 0:
                taken = {other: self._receive(other, what.words, timeout) for other in self._others}
                turns.take(behind, taken)
                for other in self._others:
                    self._inbox.take(other)

    def settle(self, words: str, timeout: float | None = None) -> None:
        """Returns when all that was sent has arrived: before it is overwritten."""
        started = time.monotonic()
        patience, pause = self._rendezvous.timeout if timeout is None else timeout, 1e-4
        while late := [other for other in self._others if self._unarrived(other, words)]:
            if (waited := time.monotonic() - started) > patience:
                raise self._error(words, late[0], waited)
            self._require_nobody_gave_up(words, waited)
            time.sleep(pause)
            pause = min(2 * pause, _LOOK)

    def abort(self, reason: str) -> None:
        """Tells all other nodes to wait no longer."""
        for other in self._others:
            self._transport.post(other, Message(self._node, GIVEN_UP, reason))

    def _post(self, other: int, message: Message) -> None:
        self._sent[other] += 1
        self._pending[other].append(_Pending(message, self._transport.post(other, message), time.monotonic()))

    def _receive(self, other: int, words: str, timeout: float | None) -> Array:
        """Returns the bytes of a node's next message, once it is there."""
        started = time.monotonic()
        patience = (self._rendezvous.timeout if timeout is None else timeout) + _GRACE
        while not self._inbox.wait(other, _LOOK):
            waited = time.monotonic() - started
            self._require_nobody_gave_up(words, waited)
            for each in self._others:
                self._unarrived(each, words, waited)
            self._probe(other, words, waited)
            if waited > patience:
                raise self._error(words, other, waited)
        theirs, found = self._inbox.look(other)
        if theirs != words:
            mine = f"ranks {[*self._spread.nodes[self._node]]} call {words}"
            raise CollectiveError(
                f"rank {self._rank}: all ranks must call the same, but {mine}; ranks {[*self._spread.nodes[other]]} call {theirs}",
                words,
            )
        return found

    def _unarrived(self, other: int, words: str, waited: float = 0.0) -> bool:
        """Looks at what was sent to a node, and sends again what takes too long; returns whether something has not arrived."""
        left = []
        for each in self._pending[other]:
            if (late := self._arrived(each.receipt, other, words, waited)) is not None:
                self._late_at[other] = late
                continue
            if time.monotonic() - each.posted > self._retry * min(2**each.again, BACK_OFF):
                each.receipt = self._transport.post(other, each.message)
                each.posted, each.again = time.monotonic(), each.again + 1
            left.append(each)
        self._pending[other] = left
        return bool(left)

    def _probe(self, other: int, words: str, waited: float) -> None:
        """Asks a node that keeps silent whether it is there, and whom it waits for itself."""
        if (receipt := self._probes.get(other)) is not None:
            late = self._arrived(receipt, other, words, waited)
            if late is None:
                return
            self._late_at[other] = late
        self._probes[other] = self._transport.post(other, Message(self._node, PROBE))

    def _arrived(self, receipt: Receipt, other: int, words: str, waited: float) -> list[int] | None:
        try:
            return receipt.arrived()
        except PeerLost as error:
            leader = self._spread.leaders[other]
            raise CollectiveError(
                f"rank {self._rank}: rank {leader} died ({error}), waited {waited:.1f} s in {words}",
                words, self._spread.nodes[other], [leader], waited,
            ) from error  # fmt: skip

    def _require_nobody_gave_up(self, words: str, waited: float) -> None:
        if self._inbox.given_up is not None:
            node, reason = self._inbox.given_up
            raise CollectiveError(
                f"rank {self._rank}: {words} given up after {waited:.1f} s, since the node of ranks {[*self._spread.nodes[node]]} "
                f"gave up: {reason}",
                words, seconds=waited,
            )  # fmt: skip
        self._rendezvous.require_all_well(words)

    def _error(self, words: str, other: int, waited: float) -> CollectiveError:
        late = self._late_at.get(other) or [*self._spread.nodes[other]]
        return CollectiveError(
            f"rank {self._rank}: ranks {late} late, on another node, waited {waited:.1f} s in {words}",
            words,
            late,
            seconds=waited,
        )


@dataclass
class _Pending:
    """A message that is not known to have arrived."""

    message: Message
    receipt: Receipt
    posted: float
    again: int = 0


class _Turns:
    """The turns of one exchange.

    Attributes:
        lead: By how many turns sending is ahead of taking.
        count: How many turns there are.
    """

    def __init__(self, owner: CrossNode, what: Carried, chunk: int) -> None:
        self._what, self._node, self._roots = what, owner._node, owner._roots
        nodes = range(len(owner._spread.nodes))
        width = 1 if what.home is None else chunk_size(chunk, what.home.dtype.itemsize)
        self._pieces = [list(_pieces(what.parts[node], width)) if what.parts else [] for node in nodes]
        count = max(1, *map(len, self._pieces))
        self.lead = min(LEAD, count)
        # What a part came to follows by the lead, where it is made here.
        self._lag = self.lead if what.combine and what.gather else 0
        self.count = count + self._lag

    def message(self, turn: int, other: int) -> list[Array]:
        """Returns what a node is sent."""
        what, found = self._what, []
        if turn == 0 and what.extra is not None:
            found.append(what.extra)
        if what.combine:
            assert what.mine is not None
            found += [what.mine[first][here] for first in self._roots[self._node] for here in self._piece(other, turn)]
        if what.gather and what.home is not None:
            found += [what.home[here] for here in self._piece(self._node, turn - self._lag)]
        return found

    def take(self, turn: int, taken: Mapping[int, Array]) -> None:
        """Does what is to be done with all others' messages of a turn."""
        what, readers = self._what, {other: _Reader(data) for other, data in taken.items()}
        if turn == 0 and what.extra is not None:
            for other, reader in readers.items():
                what.take_extra(other, reader.read(what.extra.size, what.extra.dtype))
        if what.home is None:
            return
        if what.combine:
            self._combine(self._piece(self._node, turn), readers)
        if what.gather:
            for other, reader in readers.items():
                for here in self._piece(other, turn - self._lag):
                    what.home[here] = reader.read(here.stop - here.start, what.home.dtype)

    def _combine(self, piece: Sequence[slice], readers: Mapping[int, _Reader]) -> None:
        what = self._what
        assert what.home is not None and what.mine is not None and what.combine is not None
        inputs: list[dict[int, Array]] = [
            {first: what.mine[first][here] for first in self._roots[self._node]} for here in piece
        ]
        for other, reader in readers.items():
            for first in self._roots[other]:
                for here, by_first in zip(piece, inputs, strict=True):
                    by_first[first] = reader.read(here.stop - here.start, what.home.dtype)
        for here, by_first in zip(piece, inputs, strict=True):
            what.combine(by_first, what.home[here])

    def _piece(self, node: int, number: int) -> Sequence[slice]:
        """Returns a piece of a node's part; nothing, if there is no such piece."""
        return self._pieces[node][number] if 0 <= number < len(self._pieces[node]) else ()


class _Reader:
    """Reads a message's numbers where they lie."""

    def __init__(self, data: Array) -> None:
        self._data, self._at = data, 0

    def read(self, size: int, dtype: np.dtype[Any]) -> Array:
        start = self._at
        self._at += size * dtype.itemsize
        return self._data[start : self._at].view(dtype)


def chunk_size(chunk: int, itemsize: int) -> int:
    """Returns how many numbers of a part travel at once."""
    return max(1, chunk // itemsize)


def slot_sizes(
    spread: Spread, node: int, roots: Mapping[int, Sequence[int]], size: int, itemsize: int, chunk: int, extra: int = 0
) -> SlotSizes:
    """Returns the bytes of the messages that a node may get.

    Args:
        spread: Of the ranks.
        node: Which one.
        roots: For each node, the first shards of its roots.
        size: Elements of the largest array that is carried.
        itemsize: Bytes of each.
        chunk: As `CrossNode` is told.
        extra: Most bytes of `Carried.extra`.
    """
    blocks = round_up(size, NORM_BLOCK) // NORM_BLOCK
    share = round_up(blocks, len(spread.nodes)) // len(spread.nodes) * NORM_BLOCK
    piece = min(chunk_size(chunk, itemsize), share, size) * itemsize
    return SlotSizes.of({
        other: extra + (len(roots[other]) + 1) * piece for other in range(len(spread.nodes)) if other != node
    })  # fmt: skip


def _pieces(places: Sequence[slice], width: int) -> Iterator[list[slice]]:
    """Cuts elements into pieces of `width`, the last of which may be shorter."""
    piece: list[slice] = []
    room = width
    for place in places:
        start = place.start
        while start < place.stop:
            stop = min(place.stop, start + room)
            piece.append(slice(start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield piece
                piece, room = [], width
    if piece:
        yield piece
