"""What each rank calls, in words, so that ranks that do not call the same are told so instead of mixing their bytes.

A rank writes down its call before it arrives at the call's first meeting, and compares after it. There are two places, used in turn: a
rank is never more than one meeting ahead of another, so nobody overwrites a call that is still to be read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.segment import Segment

#: Bytes of a call's words and of the integer that comes with it.
_WORDS_NBYTES, _NUMBER_NBYTES = 248, 8
_CALL_NBYTES = _WORDS_NBYTES + _NUMBER_NBYTES
CALLS_NBYTES = 2 * _CALL_NBYTES


class Calls:
    """The calls of all ranks.

    Args:
        rank: This rank.
        segments: All ranks' segments.
        offset: Where in them calls are.
        names: What the ranks are called in errors, where they are some of many; this rank is one of them.
    """

    def __init__(self, rank: int, segments: Sequence[Segment], offset: int, names: Sequence[int] | None = None) -> None:
        self._names = [*range(len(segments))] if names is None else names
        self._rank = self._names.index(rank)
        self._turn = 0
        self._places = [
            [
                (
                    segment.bytes(offset + turn * _CALL_NBYTES, _WORDS_NBYTES),
                    segment.words(offset + turn * _CALL_NBYTES + _WORDS_NBYTES, 1),
                )
                for turn in range(2)
            ]
            for segment in segments
        ]

    def publish(self, call: str, number: int = 0) -> None:
        """Writes down this rank's call, and a number that may differ from rank to rank."""
        self._turn ^= 1
        words, numbers = self._places[self._rank][self._turn]
        words[:] = encoded(call, _WORDS_NBYTES)
        numbers[0] = number

    def compare(self) -> list[int]:
        """Returns all ranks' numbers, after the meeting.

        Raises:
            CollectiveError: Ranks call different things.
        """
        theirs = [rank[self._turn] for rank in self._places]
        mine = bytes(theirs[self._rank][0])
        if any(words != mine for words, _ in theirs):
            raise self._disagreement([decoded(words) for words, _ in theirs])
        return [numbers[0] for _, numbers in theirs]

    def _disagreement(self, calls: Sequence[str]) -> CollectiveError:
        by_call: dict[str, list[int]] = {}
        for name, call in zip(self._names, calls, strict=True):
            by_call.setdefault(call, []).append(name)
        told = "; ".join(f"ranks {ranks} call {call}" for call, ranks in by_call.items())
        rank = self._names[self._rank]
        return CollectiveError(f"rank {rank}: all ranks must call the same, but {told}", calls[self._rank])


def encoded(words: str, nbytes: int) -> bytes:
    """Returns words in exactly so many bytes; what is too long ends in a checksum."""
    raw = words.encode()
    if len(raw) > nbytes:
        end = f"... {zlib.crc32(raw):08x}".encode()
        raw = raw[: nbytes - len(end)] + end
    return raw.ljust(nbytes, b"\0")


def decoded(raw: bytes | memoryview[int]) -> str:
    """Returns the words."""
    return bytes(raw).rstrip(b"\0").decode(errors="replace")
