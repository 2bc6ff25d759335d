"""Arrays in a part of a segment: taken first fit, and free again when their last view has died."""

from __future__ import annotations

import bisect
import math
from typing import Any

import numpy as np

from distributed.collectives.segment import PAGE, Segment, round_up
from framework.memory import Array
from framework.sizes import format_size


class Arena:
    """The arrays of a segment's owner.

    Args:
        segment: Where they lie.
        start: The first of its bytes that are for arrays, on a page.
    """

    def __init__(self, segment: Segment, start: int) -> None:
        self._segment = segment
        self._start, self._stop = start, segment.address.nbytes
        self._base = address_of(segment.array(0, 0, np.dtype(np.uint8)))
        self._free = [(start, self._stop - start)]  # (offset, bytes), in order, never adjacent

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Returns an array on pages of its own.

        Raises:
            MemoryError: There is no room.
        """
        size = math.prod(shape)
        nbytes = round_up(max(1, size * dtype.itemsize), PAGE)
        offset = self._take(nbytes)
        memory = self._segment.array(offset, size, dtype).reshape(shape)
        return np.asarray(_Owner(self, offset, nbytes, memory))

    def offset(self, array: Array) -> int | None:
        """Returns where in the segment an array lies; None if it does not."""
        offset = address_of(array) - self._base
        return offset if self._start <= offset and offset + array.nbytes <= self._stop else None

    def release(self, offset: int, nbytes: int) -> None:
        """Takes bytes back."""
        at = bisect.bisect(self._free, (offset, nbytes))
        if at < len(self._free) and offset + nbytes == self._free[at][0]:
            nbytes += self._free.pop(at)[1]
        if at and sum(self._free[at - 1]) == offset:
            offset, nbytes = self._free[at - 1][0], self._free[at - 1][1] + nbytes
            at -= 1
            del self._free[at]
        self._free.insert(at, (offset, nbytes))

    def _take(self, nbytes: int) -> int:
        for at, (offset, free) in enumerate(self._free):
            if free >= nbytes:
                self._free[at : at + 1] = [(offset + nbytes, free - nbytes)] if free > nbytes else []
                return offset
        largest = max((free for _, free in self._free), default=0)
        raise MemoryError(
            f"no room for {format_size(nbytes)} in shared memory: of {format_size(self._stop - self._start)}, the largest "
            f"free piece has {format_size(largest)}; give the communicator a larger capacity"
        )


class _Owner:
    """The base of an array in the arena, and of all its views."""

    def __init__(self, arena: Arena, offset: int, nbytes: int, memory: Array) -> None:
        self._arena, self._offset, self._nbytes, self._memory = arena, offset, nbytes, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._arena.release(self._offset, self._nbytes)


def address_of(array: Array) -> int:
    """Returns the address of an array's first number."""
    return int(array.__array_interface__["data"][0])
