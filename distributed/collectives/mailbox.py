"""Messages from one rank to another, through mailboxes in the sender's segment.

For each receiver a sender has a mailbox of two slots, used in turn, a counter of the pieces that it has sent, and, for each sender, a
counter of the pieces that it has received. A sender is at most two pieces ahead. With each piece stands what the message is, in words, so
that a receiver who expects another is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distributed.collectives.calls import decoded, encoded
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.segment import PAGE, Segment, round_up
from framework.memory import Array

_WORDS_NBYTES = 256
#: Bytes of numbers in a slot, which begins with what the message is.
_PIECE_NBYTES = 256 * 1024
_SLOT_NBYTES = _WORDS_NBYTES + _PIECE_NBYTES
_BYTE = np.dtype(np.uint8)

#: Waits until the condition holds of the rank.
Wait = Callable[[int, Callable[[], bool]], None]


class Mailboxes:
    """A rank's mailboxes, and how it sees those of others.

    Args:
        rank: This rank.
        segments: All ranks' segments.
        offset: Where in them counters and mailboxes are, on a page.
    """

    def __init__(self, rank: int, segments: Sequence[Segment], offset: int) -> None:
        self._rank = rank
        self._segments = segments
        world = len(segments)
        self._sent = [segment.words(offset, world) for segment in segments]
        self._received = [segment.words(offset + 8 * world, world) for segment in segments]
        self._start = offset + _counters_nbytes(world)

    def send(self, numbers: Array, message: str, to: int, wait: Wait) -> None:
        """Sends a flat array; returns when all of it is in the mailbox."""
        sent, received = self._sent[self._rank], self._received[to]
        for piece in _pieces(numbers):
            wait(to, lambda: received[self._rank] >= sent[to] - 1)
            words, slot = self._slot(self._rank, to, sent[to])
            words[:] = encoded(message, _WORDS_NBYTES)
            slot.view(numbers.dtype)[: piece.size] = piece
            sent[to] += 1

    def receive(self, numbers: Array, message: str, source: int, wait: Wait) -> None:
        """Receives a flat array.

        Raises:
            CollectiveError: What was sent is another message.
        """
        sent, received = self._sent[source], self._received[self._rank]
        for piece in _pieces(numbers):
            wait(source, lambda: sent[self._rank] > received[source])
            words, slot = self._slot(source, self._rank, received[source])
            if (other := decoded(words)) != message:
                raise CollectiveError(
                    f"rank {self._rank}: expects {message} of rank {source}, who sent {other}", "receive"
                )
            piece[...] = slot.view(numbers.dtype)[: piece.size]
            received[source] += 1

    def _slot(self, source: int, to: int, number: int) -> tuple[memoryview[int], Array]:
        offset = self._start + (2 * to + number % 2) * _SLOT_NBYTES
        segment = self._segments[source]
        return segment.bytes(offset, _WORDS_NBYTES), segment.array(offset + _WORDS_NBYTES, _PIECE_NBYTES, _BYTE)


def mailboxes_nbytes(world: int) -> int:
    """Bytes of a rank's counters and mailboxes; only what is used takes memory."""
    return round_up(_counters_nbytes(world) + 2 * world * _SLOT_NBYTES, PAGE)


def _counters_nbytes(world: int) -> int:
    return round_up(2 * 8 * world, _WORDS_NBYTES)


def _pieces(numbers: Array) -> list[Array]:
    """Cuts an array into what fits a slot, at least one piece."""
    width = _PIECE_NBYTES // numbers.dtype.itemsize
    return [numbers[start : start + width] for start in range(0, max(1, numbers.size), width)]
