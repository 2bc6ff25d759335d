"""Shared memory without a name: a memfd that one process owns and others attach to.

Other processes of the node map it through /proc/PID/fd/N: such memory cannot leak, since it is gone with its last mapping, and does
not count against the size of /dev/shm.

A segment begins with a control area, in which ranks meet (`rendezvous`); what follows is up to whoever made it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed.collectives.communicator import CollectiveError
from framework.memory import Array

PAGE = 4096
CACHE_LINE = 64


@dataclass(frozen=True)
class SegmentAddress:
    """Where other processes of the node find a segment."""

    pid: int
    descriptor: int
    nbytes: int


class Segment:
    """Shared memory, as its owner or another process sees it; made by `create` or `attach`.

    Attributes:
        address: Where it is found. Its pid is the owner's.
    """

    def __init__(self, address: SegmentAddress, descriptor: int) -> None:
        self.address = address
        self._map = mmap.mmap(descriptor, address.nbytes)
        self._bytes = memoryview(self._map)
        self._close: Callable[[], Any] = lambda: None

    @classmethod
    def create(cls, name: str, nbytes: int) -> Segment:
        """Makes a segment of zeros that this process owns.

        Raises:
            OSError: The system has no memfd.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("workers share memory through memfd, which this system does not have; use workers=0")
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        segment = cls(SegmentAddress(os.getpid(), descriptor, nbytes), descriptor)
        segment._close = weakref.finalize(segment, os.close, descriptor)
        return segment

    @classmethod
    def attach(cls, address: SegmentAddress, what: str) -> Segment:
        """Maps the segment of another process.

        Args:
            address: Where it is.
            what: Whose segment that is, for errors.

        Raises:
            CollectiveError: It is not there, or this process may not open it.
        """
        path = f"/proc/{address.pid}/fd/{address.descriptor}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CollectiveError(
                f"cannot attach to the shared memory of {what} at {path}: {error.strerror}; "
                "workers of one node must run as one user in one process namespace and be dumpable"
            ) from error
        try:
            return cls(address, descriptor)
        except ValueError as error:  # the descriptor is of something else by now
            raise CollectiveError(f"cannot attach to the shared memory of {what}: {path} is not it any more") from error
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Lets nobody attach any more. The memory is gone when the last mapping is."""
        self._close()

    def words(self, offset: int, count: int) -> memoryview[int]:
        """Returns a view of `count` 64-bit integers at `offset` bytes, faster to read and write one by one than an array."""
        return self._bytes[offset : offset + 8 * count].cast("q")

    def bytes(self, offset: int, count: int) -> memoryview[int]:
        """Returns a view of `count` bytes at `offset`."""
        return self._bytes[offset : offset + count]

    def array(self, offset: int, size: int, dtype: np.dtype[Any]) -> Array:
        """Returns a view of `size` numbers at `offset` bytes."""
        return np.frombuffer(self._map, dtype, size, offset)


def attach_all(
    rank: int, own: Segment, addresses: Sequence[SegmentAddress], names: Sequence[int] | None = None
) -> list[Segment]:
    """Returns all ranks' segments as `rank`, who owns `own`, sees them.

    Args:
        rank: This rank.
        own: Its segment.
        addresses: Of all segments.
        names: What the ranks are called, where they are some of many; this rank is one of them.

    Raises:
        CollectiveError: One cannot be attached to.
    """
    try:
        return [
            own if name == rank else Segment.attach(address, f"rank {name}")
            for name, address in zip(range(len(addresses)) if names is None else names, addresses, strict=True)
        ]
    except CollectiveError as error:
        raise CollectiveError(f"rank {rank} {error}", "connect") from error


def round_up(nbytes: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is not less than `nbytes`."""
    return -(-nbytes // unit) * unit
