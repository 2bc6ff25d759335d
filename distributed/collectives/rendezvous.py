"""How ranks of one node wait for each other: counters in shared memory, each with one writer.

A rank *arrives* by adding one to a counter of its own, and waits until all others have counted as far. Between the two it can do
something useful. Counters are published by plain stores, which x86 keeps in order: who sees a counter sees all that its rank wrote before.

A rank has several *channels*, each with a counter: what is done on one (by a thread that communicates) is independent of the others.

Who waits polls: a few hundred times at once, then between short sleeps, so that more ranks than cores get on. A thread that waits *calmly*, since
its rank's core has other work, sleeps at once and longer, until it is told to hurry. Whoever is late is looked at through its pidfd: a process that has ended is an error within a moment, not after the timeout.

The control area at the head of a segment: the abort flag (0, or the id of the process that gave up), a number that says how far the rank is, if
it tells that, then a cache line for each channel.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.segment import CACHE_LINE, Segment, SegmentAddress

#: Channels of a rank.
CHANNELS = 4
CONTROL_NBYTES = CACHE_LINE * (1 + CHANNELS)
#: Where a rank says how far it is.
PROGRESS = 8
#: Polls of the counters before a waiting rank begins to sleep, and its shortest sleep in seconds: where each rank has a core, and where
#: the late one may be waiting for ours, from which looking takes time, too.
_SPINS, _SPINS_OF_MANY = 200, 10
_SHORTEST, _SHORTEST_OF_MANY = 2e-5, 1e-4
#: The longest sleep in seconds.
_LONGEST = 1e-3
#: A sleep is this part of the time waited so far.
_PART = 1 / 8
#: The shortest and the longest sleep of who waits calmly, at once and without polls before it, and which part of the time waited it is: whoever
#: wakes takes Python's lock and a part of the caches from the rank's own work.
_CALM, _LONGEST_CALM, _PART_CALM = 2e-3, 1e-2, 1 / 4
#: Seconds between looks at whether the late ones are alive.
_LOOK = 0.05
#: Seconds that a rank waits longer than its node's leader, who can say which ranks of other nodes are late.
GRACE = 0.5


class Rendezvous:
    """One rank's view of where all ranks are.

    Args:
        rank: This rank.
        segments: All ranks' segments.
        timeout: Seconds that a rank waits for the others where a call does not say.
        names: What the ranks of the segments are called in errors, where they are some of many; this rank is one of them.

    Attributes:
        missing: The ranks that are waited for, as they are called.
    """

    def __init__(
        self, rank: int, segments: Sequence[Segment], timeout: float, names: Sequence[int] | None = None
    ) -> None:
        self.rank, self.timeout = rank, timeout
        self._segments = segments
        self._names = [*range(len(segments))] if names is None else names
        self._place = self._names.index(rank)
        self.missing: list[int] = []
        many = len(segments) > len(os.sched_getaffinity(0))
        self._spins, self._shortest = (_SPINS_OF_MANY, _SHORTEST_OF_MANY) if many else (_SPINS, _SHORTEST)
        self._flags = [segment.words(0, 1) for segment in segments]
        self._pids = [segment.address.pid for segment in segments]
        self._pidfds = _open_pidfds(rank, self._pids, self._names)
        self._close = weakref.finalize(self, _close_all, list(self._pidfds.values()))

    def channel(self, number: int) -> Channel:
        """Returns one of this rank's channels, which counts on from where it is."""
        return Channel(self, self._segments, number)

    def wait(
        self,
        late: Callable[[], list[int]],
        operation: str,
        timeout: float | None = None,
        hurry: threading.Event | None = None,
    ) -> None:
        """Waits until nobody is late.

        Args:
            late: Returns the ranks that have not come yet.
            operation: For errors.
            timeout: Seconds to wait.
            hurry: Until it is set polls are to take little from what else runs on this core, at the cost of some milliseconds.

        Raises:
            CollectiveError: A late rank's process has ended, somebody gave up, or the timeout has passed.
        """
        patience = self.timeout if timeout is None else timeout
        started, polls, look = time.monotonic(), 0, 0.0
        while missing := late():
            if any(flag[0] for flag in self._flags) and late():  # what all have reached is passed by all
                raise self._given_up(operation, missing, time.monotonic() - started)
            polls += 1
            calm = hurry if hurry is not None and not hurry.is_set() else None
            if polls <= self._spins and calm is None:
                continue
            waited = time.monotonic() - started
            if waited >= look:
                look, self.missing = waited + _LOOK, self._named(missing)
                if (dead := self._dead(missing)) and set(dead) & set(late()):
                    raise self._died(operation, missing, dead, waited)
            if waited > patience:
                raise CollectiveError(
                    f"rank {self.rank}: ranks {self._named(missing)} late, waited {waited:.1f} s in {operation}",
                    operation, self._named(missing), seconds=waited,
                )  # fmt: skip
            if calm is not None:
                calm.wait(min(max(_CALM, waited * _PART_CALM), _LONGEST_CALM))
            else:
                time.sleep(min(max(self._shortest, waited * _PART), _LONGEST))
        self.missing = []

    def require_all_well(self, operation: str) -> None:
        """Raises a `CollectiveError` if somebody gave up, or a process has ended."""
        self.require_nobody_gave_up(operation)
        if dead := self._dead(range(len(self._pids))):
            raise self._died(operation, dead, dead, 0.0)

    def require_nobody_gave_up(self, operation: str) -> None:
        """Raises a `CollectiveError` if somebody gave up."""
        if any(flag[0] for flag in self._flags):
            raise self._given_up(operation, [], 0.0)

    def abort(self) -> None:
        """Tells all ranks, this one included, to wait no longer: their collectives raise. Any thread may call it."""
        give_up(self._segments[self._place])

    def close(self) -> None:
        """Looks after the others' processes no more."""
        self._pidfds = {}
        self._close()

    def _dead(self, ranks: Sequence[int]) -> list[int]:
        """Returns those of some ranks whose process has ended."""
        watched = {self._pidfds[rank]: rank for rank in ranks if rank in self._pidfds}
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)  # readable once the process has ended
        return [watched[descriptor] for descriptor, _ in poll.poll(0)]

    def _died(self, operation: str, late: list[int], dead: list[int], waited: float) -> CollectiveError:
        who = ", ".join(f"rank {self._names[place]} (pid {self._pids[place]})" for place in dead)
        return CollectiveError(
            f"rank {self.rank}: {who} died, waited {waited:.1f} s in {operation}",
            operation, self._named(late), self._named(dead), waited,
        )  # fmt: skip

    def _named(self, places: Sequence[int]) -> list[int]:
        return [self._names[place] for place in places]

    def _given_up(self, operation: str, late: list[int], waited: float) -> CollectiveError:
        """Tells who gave up, but first who is dead or late, which will be the reason."""
        if dead := self._dead(late or range(len(self._pids))):
            return self._died(operation, late, dead, waited)
        place, by = next((place, flag[0]) for place, flag in enumerate(self._flags) if flag[0])
        why = f"rank {self._names[place]} gave up" if by == self._pids[place] else f"process {by} aborted it"
        missing = f"; ranks {self._named(late)} are late" if late else ""
        return CollectiveError(
            f"rank {self.rank}: {operation} given up after {waited:.1f} s, since {why}{missing}",
            operation,
            self._named(late),
            (),
            waited,
        )


class Channel:
    """A sequence of meetings of all ranks, for one thread of each at a time."""

    def __init__(self, rendezvous: Rendezvous, segments: Sequence[Segment], number: int) -> None:
        offset = CACHE_LINE * (1 + number)
        self._rendezvous = rendezvous
        self._counters = [segment.words(offset, 1) for segment in segments]
        self._own = self._counters[rendezvous._place]

    def arrive(self) -> int:
        """Tells the others that this rank has come, and returns which meeting that is: what to wait for."""
        self._own[0] += 1
        return self._own[0]

    def wait(
        self, meeting: int, operation: str, timeout: float | None = None, hurry: threading.Event | None = None
    ) -> None:
        """Waits until all ranks have come to a meeting; see `Rendezvous.wait`."""
        self._rendezvous.wait(partial(self._late, meeting), operation, timeout, hurry)

    def barrier(
        self, operation: str = "barrier", timeout: float | None = None, hurry: threading.Event | None = None
    ) -> None:
        """Arrives, and waits for the others."""
        self.wait(self.arrive(), operation, timeout, hurry)

    def _late(self, meeting: int) -> list[int]:
        return [rank for rank, counter in enumerate(self._counters) if counter[0] < meeting]


def give_up(segment: Segment) -> None:
    """Raises the flag of a segment: the collectives of all ranks that are connected with its owner raise."""
    segment.words(0, 1)[0] = os.getpid()


def abort(address: SegmentAddress) -> None:
    """Makes the collectives of all ranks raise that are connected with the owner of a segment; any process of the node may call it.

    Raises:
        CollectiveError: The segment cannot be attached to.
    """
    give_up(Segment.attach(address, f"process {address.pid}"))


def _open_pidfds(rank: int, pids: Sequence[int], names: Sequence[int]) -> dict[int, int]:
    """Opens a pidfd for each rank that lives in another process."""
    found: dict[int, int] = {}
    try:
        for other, pid in enumerate(pids):
            if pid != os.getpid():
                found[other] = os.pidfd_open(pid)
    except OSError as error:
        _close_all(list(found.values()))
        raise CollectiveError(
            f"rank {rank} cannot look after rank {names[other]} (pid {pid}): {error.strerror}",
            "connect", [names[other]], [names[other]],
        ) from error  # fmt: skip
    return found


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
