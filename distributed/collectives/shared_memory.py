"""Collectives between processes of one node, through shared memory.

Each rank owns one segment (`segment.py`) and maps everybody's. Arrays are carried in one of two ways:

- **In place**, if they were made by `empty`: they lie in their rank's segment, so that every rank reads them where they are. A reduction
  reads each array once and writes the result once, each rank its slice; nothing is copied to be sent.
- **Copied**, wherever else they lie, through pieces in the segment that fit the cache (`staging.py`).

A segment: the control area of `rendezvous`, calls, mailboxes, the boxes of `staging`, then the arrays in place. It may be far larger than
what is used of it: pages take memory when they are first written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distributed.collectives.arena import Arena
from distributed.collectives.calls import CALLS_NBYTES, Calls
from distributed.collectives.communicator import (
    CollectiveError,
    Op,
    combine,
    kind_of,
    require_array,
    slices_of,
)
from distributed.collectives.mailbox import Mailboxes, Wait, mailboxes_nbytes
from distributed.collectives.rendezvous import CONTROL_NBYTES, Rendezvous, give_up
from distributed.collectives.segment import PAGE, Segment, SegmentAddress, attach_all, round_up
from distributed.collectives.staging import SLOTS, Staging, staging_nbytes
from framework.memory import Array

#: Bytes of a copied array that travel at once: few enough for the cache, many enough to pay for a meeting.
CHUNK = 1 << 20
_CALLS = CONTROL_NBYTES
_MAILBOXES = round_up(_CALLS + CALLS_NBYTES, PAGE)


def gathering_nbytes(piece: int) -> int:
    """Bytes of a rank's segment that gathering and broadcasting take, of which at most so many bytes of one rank travel at once."""
    return _MAILBOXES + SLOTS * round_up(piece, PAGE)


class SharedMemory:
    """A `Communicator` of W ranks on one node, of one thread each; another thread takes a communicator of its own.

    All ranks make theirs, tell each other their `address`, and `connect`. Arrays may have any shape, if they are contiguous.

    Args:
        rank: This rank.
        world: W.
        capacity: Bytes for arrays in place, more than which this rank cannot have at once. It is room among addresses alone: memory is
            taken by what is written.
        timeout: Seconds that an operation waits for other ranks.
        chunk: Bytes of a copied array that travel at once, the same on all ranks.

    Raises:
        OSError: The system has no memfd.
    """

    def __init__(
        self, rank: int, world: int, capacity: int = 1 << 30, timeout: float = 300.0, chunk: int = CHUNK
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"a rank lies in 0..{world - 1}, but got {rank}")
        self.rank, self.world, self.timeout = rank, world, timeout
        self._chunk = chunk
        self._boxes = _MAILBOXES + mailboxes_nbytes(world)
        start = self._boxes + staging_nbytes(world, self._chunk)
        self._own = Segment.create("retape-collectives", start + round_up(capacity, PAGE))
        self._arena = Arena(self._own, start)
        self._unusable = "connect comes first"
        self._rendezvous: Rendezvous | None = None
        if world == 1:
            self.connect([self.address])

    @property
    def address(self) -> SegmentAddress:
        """Where other ranks find this one's segment."""
        return self._own.address

    def connect(self, addresses: Sequence[SegmentAddress]) -> None:
        """Maps all ranks' segments, given in the order of ranks.

        Raises:
            CollectiveError: One cannot be attached to.
        """
        if len(addresses) != self.world:
            raise ValueError(f"a communicator of {self.world} ranks needs as many addresses, but got {len(addresses)}")
        self._segments = attach_all(self.rank, self._own, addresses)
        self._rendezvous = Rendezvous(self.rank, self._segments, self.timeout)
        self._channel = self._rendezvous.channel(0)
        self._calls = Calls(self.rank, self._segments, _CALLS)
        self._mailboxes = Mailboxes(self.rank, self._segments, _MAILBOXES)
        self._staging = Staging(self.rank, self._segments, self._boxes, self._chunk)
        self._unusable = ""

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Returns an array that lies in this rank's segment, to be carried in place; its memory is free again after its last view's death.

        Raises:
            MemoryError: It does not fit the capacity.
        """
        return self._arena.empty((shape,) if isinstance(shape, int) else shape, np.dtype(dtype))

    def all_reduce(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns what all ranks' arrays combine to.

        In place it lies in rank 0's array, and the others' are unchanged; rank 0 may write to its array when its next operation (a barrier,
        say) has returned, since the others may read it until they call theirs. Copied, the result lies in the array given.
        """
        flat, slices = self._flat(array, op), slices_of(array.size, self.world)
        with self._calling(f"all_reduce({op}, ", array, timeout) as call:
            if not call.in_place:
                parts = [flat[part] for part in slices]
                self._staging.carry(parts, parts[self.rank], op, True, call.meet)
                return array
            arrays = call.meet_arrays(flat)
            mine = slices[self.rank]
            combine([other[mine] for other in arrays], op, arrays[0][mine], self._staging.scratch)
            call.meet()
            return _read_only(arrays[0].reshape(array.shape))

    def reduce(self, array: Array, root: int = 0, op: Op = "sum", timeout: float | None = None) -> Array:
        """Writes what all ranks' arrays combine to into that of rank `root`; the others' are unchanged. Returns the array given."""
        flat = self._flat(array, op, writes=self._require_rank(root) == self.rank)
        with self._calling(f"reduce({op}, root {root}, ", array, timeout, copied=True) as call:
            parts = [flat if rank == root else flat[:0] for rank in range(self.world)]
            self._staging.carry(parts, parts[self.rank], op, False, call.meet)
        return array

    def reduce_scatter(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns this rank's slice (`slices_of`) of what all ranks' arrays combine to, a flat view of the array given; its rest is unchanged."""
        flat, slices = self._flat(array, op), slices_of(array.size, self.world)
        mine = flat[slices[self.rank]]
        with self._calling(f"reduce_scatter({op}, ", array, timeout) as call:
            if not call.in_place:
                self._staging.carry([flat[part] for part in slices], mine, op, False, call.meet)
                return mine
            inputs = [other[slices[self.rank]] for other in call.meet_arrays(flat)]
            combine(inputs, op, mine, self._staging.scratch)
            call.meet()  # the others have read their slices of this array
            return mine

    def all_gather(self, array: Array, timeout: float | None = None) -> Array:
        """Returns the array given, of which each rank has filled in its slice (`slices_of`), with the slices of all."""
        flat, slices = self._flat(array), slices_of(array.size, self.world)
        with self._calling("all_gather(", array, timeout) as call:
            if not call.in_place:
                parts = [flat[part] for part in slices]
                self._staging.carry(parts, parts[self.rank], None, True, call.meet)
                return array
            for rank, other in enumerate(call.meet_arrays(flat)):
                if rank != self.rank:
                    flat[slices[rank]] = other[slices[rank]]
            call.meet()
            return array

    def broadcast(self, array: Array, root: int = 0, timeout: float | None = None) -> Array:
        """Returns the numbers of rank `root`: in place its very array, which it may write to when its next operation has returned."""
        flat = self._flat(array, writes=self._require_rank(root) != self.rank)
        with self._calling(f"broadcast(root {root}, ", array, timeout) as call:
            if not call.in_place:
                parts = [flat if rank == root else flat[:0] for rank in range(self.world)]
                self._staging.carry(parts, parts[self.rank], None, True, call.meet)
                return array
            return _read_only(call.meet_arrays(flat)[root].reshape(array.shape))

    def reduce_parts(self, parts: Sequence[Array], out: Array, op: Op = "sum", timeout: float | None = None) -> None:
        """Combines all ranks' `parts[r]` into rank r's `out`: a reduce_scatter of arrays that do not lie behind one another."""
        flat = [self._flat(part, op, writes=False) for part in self._require_like(parts, out)]
        with self._calling(f"reduce_parts({op}, {len(parts)} of ", out, timeout, copied=True) as call:
            self._staging.carry(flat, self._flat(out, op), op, False, call.meet)

    def gather_parts(self, parts: Sequence[Array], own: Array, timeout: float | None = None) -> None:
        """Writes rank r's `own` into all ranks' `parts[r]`: an all_gather of arrays that do not lie behind one another."""
        flat = [self._flat(part) for part in self._require_like(parts, own)]
        with self._calling(f"gather_parts({len(parts)} of ", own, timeout, copied=True) as call:
            self._staging.carry(flat, self._flat(own, writes=False), None, True, call.meet)
        np.copyto(parts[self.rank], own)

    def send(self, array: Array, to: int, timeout: float | None = None) -> None:
        """Sends an array to another rank, who receives it; returns when it may be written again."""
        flat = self._flat(array, writes=False)
        with self._pairing(f"send(to rank {self._require_rank(to)}, {kind_of(array)})", timeout) as wait:
            self._mailboxes.send(flat, kind_of(array), to, wait)

    def receive(self, array: Array, source: int, timeout: float | None = None) -> Array:
        """Returns the array given, filled with what another rank sends."""
        flat = self._flat(array)
        with self._pairing(f"receive(from rank {self._require_rank(source)}, {kind_of(array)})", timeout) as wait:
            self._mailboxes.receive(flat, kind_of(array), source, wait)
        return array

    def share(self, array: Array, timeout: float | None = None) -> None:
        """Returns when all ranks have written their slices of an array that they have in common."""
        require_array(array, None, writes=True)
        with self._calling(f"share({kind_of(array)}", None, timeout) as call:
            call.meet()

    def barrier(self, timeout: float | None = None) -> None:
        """Returns when all ranks have called it."""
        with self._calling("barrier(", None, timeout) as call:
            call.meet()

    def abort(self) -> None:
        """Makes all ranks' operations raise, the running ones, too. Any thread may call it; for other processes there is `rendezvous.abort`."""
        give_up(self._own)

    def close(self) -> None:
        """Lets nobody attach any more, and gives back descriptors. The memory is gone when the last mapping is."""
        self._unusable = "it is closed"
        self._own.close()
        if self._rendezvous:
            self._rendezvous.close()

    @contextmanager
    def _calling(self, words: str, array: Array | None, timeout: float | None, copied: bool = False) -> Iterator[_Call]:
        """Writes down this rank's call for the others, and gives up if it fails."""
        in_place = None if copied or array is None else self._arena.offset(array)
        words += ("" if array is None else kind_of(array)) + ("" if in_place is None else ", in place") + ")"
        with self._operation(words):
            self._calls.publish(words, -1 if in_place is None else in_place)
            yield _Call(self, words, timeout, in_place is not None)

    @contextmanager
    def _pairing(self, words: str, timeout: float | None) -> Iterator[Wait]:
        """Yields what waits for one other rank. A message that is there can be received, whatever has become of its sender."""
        with self._operation(words, concerns_all=False) as rendezvous:
            yield lambda rank, ready: rendezvous.wait(lambda: [] if ready() else [rank], words, timeout)

    @contextmanager
    def _operation(self, words: str, concerns_all: bool = True) -> Iterator[Rendezvous]:
        """Refuses to begin where an operation has failed, here or elsewhere, and gives up for all ranks if this one fails."""
        if self._unusable or self._rendezvous is None:
            raise CollectiveError(f"rank {self.rank}: {words} is not possible, since {self._unusable}", words)
        if concerns_all:
            self._rendezvous.require_nobody_gave_up(words)
        try:
            yield self._rendezvous
        except BaseException as error:  # others would take what this rank leaves behind for what they wait for
            self._unusable = f"an operation failed before: {error!r}"
            self.abort()
            raise

    def _flat(self, array: Array, op: Op | None = None, writes: bool = True) -> Array:
        """Returns a flat view of an array that can be carried."""
        require_array(array, op, writes)
        return array.reshape(-1)

    def _require_rank(self, rank: int) -> int:
        if not 0 <= rank < self.world:
            raise ValueError(f"a rank lies in 0..{self.world - 1}, but got {rank}")
        return rank

    def _require_like(self, parts: Sequence[Array], own: Array) -> Sequence[Array]:
        if len(parts) != self.world or any(kind_of(part) != kind_of(own) for part in parts):
            raise ValueError(
                f"there must be {self.world} arrays, one a rank, each {kind_of(own)} as the single one, but got "
                f"{', '.join(map(kind_of, parts)) or 'none'}"
            )
        return parts


class _Call:
    """An operation that all ranks have begun, or will.

    Attributes:
        in_place: Whether this rank's array lies in its segment.
    """

    def __init__(self, owner: SharedMemory, words: str, timeout: float | None, in_place: bool) -> None:
        self._owner, self._words, self._timeout, self.in_place = owner, words, timeout, in_place
        self._places: list[int] | None = None

    def meet(self, behind: int = 0) -> None:
        """Meets all ranks, which may be so many meetings behind; the first time, none may, and what they call is compared."""
        channel = self._owner._channel
        meeting = channel.arrive()
        channel.wait(meeting if self._places is None else meeting - behind, self._words, self._timeout)
        if self._places is None:
            self._places = self._owner._calls.compare()

    def meet_arrays(self, like: Array) -> list[Array]:
        """Meets all ranks, and returns their arrays in place: flat, as `like` is."""
        self.meet()
        assert self._places is not None
        segments = self._owner._segments
        return [
            segment.array(place, like.size, like.dtype) for segment, place in zip(segments, self._places, strict=True)
        ]


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
