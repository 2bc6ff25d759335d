"""Ranks of a node change cores while they train, so that none is held up by where it runs.

A step lasts as long as its slowest rank, and cores are not equally fast: one serves interrupts and other programs, on a virtual machine one
shares its hardware with a busy neighbour, on some processors there are two kinds of them. A scheduler that sees each core busy with one
rank has no reason to move any, so the rank on the slow core is late in every step. Ranks that change places within a step all
get the mean of what the cores give.

The first rank of a node does that for all, from a thread. Each rank says in shared memory how much of its plan's time has passed. When one of those with the most shards is
behind another, and no less than the last time, each is put on the next core, and when all are there the scheduler may move them
again, so nothing stays of it. A change costs a rank the core's own caches, a millisecond or so in all. So ranks that keep abreast stay where they are; and
it is done where caches are filled again from one that all cores share, and where each core has a rank: with fewer ranks the scheduler has cores to choose from.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpointing.plan import PARTS

#: Seconds between looks at how far ranks are, and so between changes.
PERIOD = 0.05
#: The part of a step by which one has to be behind another: less is not worth a change, and not seen well, since ranks tell it operation by operation.
BEHIND = 0.05
#: And the part of what has passed since the last look: a twentieth of a short step is less than a change costs.
LATE = 0.1
_CPUS = Path("/sys/devices/system/cpu")
_libc, _BITS = ctypes.CDLL(None, use_errno=True), 8 * ctypes.sizeof(ctypes.c_ulong)


class CoreRotation:
    """Moves threads, each of which computes for a rank, around some cores until it is closed.

    Args:
        threads: Native ids of the threads, as many as cores.
        cores: The cores.
        progress: Returns how far ranks are that have equally much to do; see `checkpointing.reduction.Reduction`.
        tell: Is told, in the rotation's thread, why it ends before: a thread is gone, or may not be moved.
        period: Seconds between looks.
    """

    def __init__(
        self,
        threads: Sequence[int],
        cores: Sequence[int],
        progress: Callable[[], Sequence[int]],
        tell: Callable[[str], None],
        period: float = PERIOD,
    ) -> None:
        self._threads, self._cores, self._progress = [*threads], [*cores], progress
        self._tell, self._period = tell, period
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="core rotation", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the changes."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        turn, reached, behind, everywhere = 0, 0, 0, {*self._cores}
        while not self._closed.wait(self._period):
            progress, before, start = self._progress(), behind, reached
            reached, behind = max(progress), max(progress) - min(progress)
            if behind < max(before, BEHIND * PARTS, LATE * (reached - start)):
                continue  # or it catches up
            turn += 1
            places = [
                (thread, {self._cores[(at + turn) % len(self._cores)]}) for at, thread in enumerate(self._threads)
            ]
            try:
                for thread, cores in [*places, *((thread, everywhere) for thread in self._threads)]:
                    _move(thread, cores)
            except OSError as error:
                self._tell(f"ranks change cores no more: {error}")
                return


def _move(thread: int, cores: set[int]) -> None:
    """Lets a thread run on some cores only.

    That is `os.sched_setaffinity`, which would keep Python's lock: moving a thread takes until the scheduler's next tick, some
    milliseconds, and this process's rank is to go on meanwhile.
    """
    words = max(cores) // _BITS + 1
    mask = (ctypes.c_ulong * words)()
    for core in cores:
        mask[core // _BITS] |= 1 << core % _BITS
    if _libc.sched_setaffinity(thread, ctypes.sizeof(mask), mask):
        number = ctypes.get_errno()
        raise OSError(number, f"thread {thread} cannot be moved: {os.strerror(number)}")


def cores_to_change(threads: Sequence[int], each: int, cpus: Path = _CPUS) -> list[int]:
    """Returns the cores that ranks of one node are to change among; none if they are to stay.

    Args:
        threads: Native ids of the threads that compute for the ranks.
        each: How many threads each rank's products have.
        cpus: Where the system describes its processors.
    """
    found = os.sched_getaffinity(0)
    if each != 1 or len(threads) < 2 or len(found) != len(threads):
        return []
    if any(os.sched_getaffinity(thread) != found for thread in threads):
        return []  # somebody has chosen where they run
    return sorted(found) if found <= _sharing_a_cache(min(found), cpus) else []


def _sharing_a_cache(core: int, cpus: Path) -> set[int]:
    """Returns the cores that share a core's largest cache, itself included; none where the system does not say."""
    levels = {
        int((index / "level").read_text()): (index / "shared_cpu_list").read_text()
        for index in (cpus / f"cpu{core}" / "cache").glob("index*")
    }
    found: set[int] = set()
    for some in levels[max(levels)].strip().split(",") if levels else ():
        first, _, last = some.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
