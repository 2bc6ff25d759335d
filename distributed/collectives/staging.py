"""Arrays that lie anywhere, carried through memory that ranks share, in pieces that fit the cache.

Each rank owns a *part* of an array. A reduction brings all ranks' numbers of a part to its owner, a gathering brings the owner's numbers
of a part to all; an all-reduce is both. Parts are carried a piece at a time, and three pieces are on their way at once. Between two
meetings, a rank

    fills    its inbox with its numbers of the others' parts, piece k + 1;
    reduces  piece k of its own part, from all ranks' inboxes, into its own memory and its outbox;
    drains   piece k - 1 of the others' parts, from their outboxes, into its own memory.

Each box is there twice, for even and odd pieces: what a rank writes between two meetings, nobody reads between the same two. So one
meeting a piece is enough, and a rank's own numbers of its own part are never copied.
The count of pieces goes on from call to call, so there need be no meeting between two calls either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distributed.collectives.communicator import Op, combine, scratch_for
from distributed.collectives.segment import CACHE_LINE, PAGE, Segment, round_up
from framework.memory import Array

_BYTE = np.dtype(np.uint8)


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
        inboxes, outboxes = (offset, offset + size), (offset + 2 * size, offset + 3 * size)
        self._inboxes = [[segment.array(place, size, _BYTE) for place in inboxes] for segment in segments]
        self._outboxes = [[segment.array(place, size, _BYTE) for place in outboxes] for segment in segments]
        self.scratch = scratch_for(self.world)
        self._count = 0

    def carry(self, parts: Sequence[Array], own: Array, op: Op | None, gather: bool, meet: Callable[[], None]) -> None:
        """Reduces parts to their owners, gathers them, or both.

        Args:
            parts: This rank's array of each rank's part, read by a reduction and written by a gathering (but the own one is neither).
            own: Of the own part: the numbers to be gathered, or where the reduced ones go; with a reduction, `parts[rank]` is its input.
            op: How to reduce; None to gather alone.
            gather: Whether to gather.
            meet: A meeting of all ranks.
        """
        transfer = _Transfer(self, parts, own, op, self._chunk)
        first, last = (-1 if op else 0), transfer.pieces - (0 if gather else 1)
        for piece in range(first, last + 1):
            if op:
                transfer.fill(piece + 1)
            transfer.reduce(piece, gather)
            if gather:
                transfer.drain(piece - 1)
            if piece < last:
                meet()
        self._count += transfer.pieces

    def inbox(self, rank: int, piece: int, dtype: np.dtype[Any]) -> Array:
        return self._inboxes[rank][(self._count + piece) % 2].view(dtype)

    def outbox(self, rank: int, piece: int, dtype: np.dtype[Any]) -> Array:
        return self._outboxes[rank][(self._count + piece) % 2].view(dtype)


def box_nbytes(world: int, chunk: int) -> int:
    """Bytes of a box: a piece of each part, each on cache lines of its own."""
    return round_up(chunk + world * CACHE_LINE, PAGE)


def staging_nbytes(world: int, chunk: int) -> int:
    """Bytes of a rank's boxes."""
    return 4 * box_nbytes(world, chunk)


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
