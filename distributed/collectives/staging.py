"""Arrays that lie anywhere, carried through memory that ranks share, in pieces that fit the cache.

Each rank owns a *part* of an array. A reduction brings all ranks' numbers of a part to its owner, a gathering brings the owner's numbers
of a part to all; an all-reduce is both. Parts are carried a piece at a time. In turn k a rank

    fills    its inbox with its numbers of the others' parts, piece k + LEAD;
    reduces  piece k of its own part, from all ranks' inboxes, into its own memory and its outbox;
    drains   piece k - LEAD of the others' parts, from their outboxes, into its own memory,

so what it reads was written LEAD turns ago, and it may be LEAD turns ahead of others: ranks that take turns on a core need not change places
for every piece. Each box is there 2 LEAD times, used in a circle: a slot that is written in turn k was read LEAD turns ago. A rank's own
numbers of its own part are never copied.
The count of pieces goes on from call to call, and all ranks meet once at the beginning of a call, so that two calls need no more between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from distributed.collectives.communicator import Op, combine, scratch_for
from distributed.collectives.segment import CACHE_LINE, PAGE, Segment, round_up
from framework.memory import Array

_BYTE = np.dtype(np.uint8)
#: By how many pieces a rank may be ahead of another, and how often each box is there.
LEAD = 4
SLOTS = 2 * LEAD


class Staging:
    """A rank's way to carry parts.

    Args:
        rank: This rank.
        segments: All ranks' segments.
        offset: Where in them the boxes begin, on a page.
        chunk: Bytes of one piece of all parts.
    """

    def __init__(self, rank: int, segments: Sequence[Segment], offset: int, chunk: int) -> None:
        self.rank, self.world, self._chunk = rank, len(segments), chunk
        size = box_nbytes(self.world, chunk)
        slots = [offset + slot * size for slot in range(2 * SLOTS)]
        self._inboxes = [[segment.array(slot, size, _BYTE) for slot in slots[:SLOTS]] for segment in segments]
        self._outboxes = [[segment.array(slot, size, _BYTE) for slot in slots[SLOTS:]] for segment in segments]
        self._count = 0

    @cached_property
    def scratch(self) -> Array:
        """What `combine` needs; who only gathers has none."""
        return scratch_for(self.world)

    def carry(
        self, parts: Sequence[Array], own: Array, op: Op | None, gather: bool, meet: Callable[[int], None]
    ) -> None:
        """Reduces parts to their owners, gathers them, or both.

        Args:
            parts: This rank's array of each rank's part, read by a reduction and written by a gathering (but the own one is neither).
            own: Of the own part: the numbers to be gathered, or where the reduced ones go; with a reduction, `parts[rank]` is its input.
            op: How to reduce; None to gather alone.
            gather: Whether to gather.
            meet: A meeting of all ranks, each of which may be so many meetings behind; of the first one, none may.
        """
        transfer = _Transfer(self, parts, own, op, self._chunk)
        lead = min(LEAD, transfer.pieces)
        if op:
            for piece in range(lead):
                transfer.fill(piece)
            meet(0)
        for piece in range(transfer.pieces):
            if op:
                transfer.fill(piece + lead)
            transfer.reduce(piece, gather)
            if gather:
                transfer.drain(piece - lead)
            if piece + 1 < transfer.pieces:
                meet(lead - 1)
        if gather:
            meet(0)
            for piece in range(transfer.pieces - lead, transfer.pieces):
                transfer.drain(piece)
        self._count += transfer.pieces

    def inbox(self, rank: int, piece: int, dtype: np.dtype[Any]) -> Array:
        return self._inboxes[rank][(self._count + piece) % SLOTS].view(dtype)

    def outbox(self, rank: int, piece: int, dtype: np.dtype[Any]) -> Array:
        return self._outboxes[rank][(self._count + piece) % SLOTS].view(dtype)


def box_nbytes(world: int, chunk: int) -> int:
    """Bytes of a box: a piece of each part, each on cache lines of its own."""
    return round_up(chunk + world * CACHE_LINE, PAGE)


def staging_nbytes(world: int, chunk: int) -> int:
    """Bytes of a rank's boxes."""
    return 2 * SLOTS * box_nbytes(world, chunk)


class _Transfer:
    """One call of `Staging.carry`."""

    def __init__(self, staging: Staging, parts: Sequence[Array], own: Array, op: Op | None, chunk: int) -> None:
        self._staging, self._parts, self._own, self._op = staging, parts, own, op
        self._rank, self._dtype = staging.rank, own.dtype
        self._owners = [rank for rank, part in enumerate(parts) if part.size]
        most = max(part.size for part in parts)
        line = CACHE_LINE // self._dtype.itemsize
        share = chunk // max(1, len(self._owners)) // CACHE_LINE * line
        self._width = min(round_up(most, line), max(line, share))  # elements of a piece of a part
        self.pieces = max(1, -(-most // max(1, self._width)))

    def fill(self, piece: int) -> None:
        for place, owner in enumerate(self._owners):
            numbers = self._piece(self._parts[owner], piece)
            if owner != self._rank and numbers.size:
                self._place(self._staging.inbox(self._rank, piece, self._dtype), place, numbers.size)[...] = numbers

    def reduce(self, piece: int, gather: bool) -> None:
        own = self._piece(self._own, piece)
        if not own.size:
            return
        if self._op:
            place = self._owners.index(self._rank)
            inputs = [
                self._piece(self._parts[rank], piece)
                if rank == self._rank
                else self._place(self._staging.inbox(rank, piece, self._dtype), place, own.size)
                for rank in range(self._staging.world)
            ]
            combine(inputs, self._op, own, self._staging.scratch)
        if gather:
            self._staging.outbox(self._rank, piece, self._dtype)[: own.size] = own

    def drain(self, piece: int) -> None:
        for owner in self._owners:
            numbers = self._piece(self._parts[owner], piece)
            if owner != self._rank and numbers.size:
                numbers[...] = self._staging.outbox(owner, piece, self._dtype)[: numbers.size]

    def _piece(self, part: Array, piece: int) -> Array:
        """Returns a piece of a part; nothing, if there is no such piece."""
        return part[max(0, piece * self._width) : max(0, (piece + 1) * self._width)]

    def _place(self, box: Array, place: int, size: int) -> Array:
        return box[place * self._width : place * self._width + size]
