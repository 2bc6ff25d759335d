"""Ranks of a node change cores while they train, so that none is held up by where it runs.

A step lasts as long as its slowest rank, and cores are not equally fast: one serves interrupts and other programs, on a virtual machine one
shares its hardware with a busy neighbour, on some processors there are two kinds of them. A scheduler that sees each core busy with one
rank has no reason to move any, so the rank on the slow core is late in every step. Ranks that change places within a step all
get the mean of what the cores give.

The first rank of a node sees to that for all. Each rank says in shared memory, operation by operation, how much of its plan's time has passed;
from that follows how fast each core is (`Lags`). Where ranks would be apart by less after a change, they change at the moment from which they will just
have come abreast a quarter of a step later, or at its end. Each is put on the next core, and when all are there the scheduler may move them again, so
nothing stays of it. A change costs a rank the core's own caches, half a millisecond. So ranks that keep abreast stay where they are; and
it is done where caches are filled again from one that all cores share, and where each core has a rank: with fewer ranks the scheduler has cores to choose from.

Looking costs no more than a few microseconds, so the rank's own thread does it between two operations. Moving takes until the scheduler's next
tick, some milliseconds, for which a thread waits that does nothing else.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from checkpointing.plan import PARTS
from checkpointing.reduction import Word

#: Seconds between looks at how far ranks are.
PERIOD = 0.02
#: The part of a step for which the speeds of cores are taken to last.
HORIZON = 0.25
#: The part of a step that has to have passed since they were last where they are, for speeds to be known: ranks tell them operation by operation.
KNOWN = 0.04
#: The part of a step by which ranks are to be closer for a change.
GAIN = 0.01
#: And the part of what has passed since the last look: a hundredth of a short step is less than a change costs.
LATE = 0.1
_CPUS = Path("/sys/devices/system/cpu")
_libc, _BITS = ctypes.CDLL(None, use_errno=True), 8 * ctypes.sizeof(ctypes.c_ulong)


class Lags:
    """How far apart ranks are and will be, in parts of a step (see `checkpointing.plan.PARTS`), and whether they had better change cores.

    Args:
        ranks: How many there are. In a change each gets the core of the next one.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._step = self._reached = 0
        # Since then each rank has been on its core: how far they were in the mean, and by how much each was ahead of that.
        self._since = 0.0
        self._ahead: dict[int, float] = {}

    def ask_for_change(self, told: Mapping[int, int]) -> bool:
        """Returns whether all are to change now, and takes it that they will.

        Args:
            told: How far ranks are that have equally much to do, by their place among all of them. Others have time.
        """
        most, mean = max(told.values()), sum(told.values()) / len(told)
        new, self._reached = most - self._reached, most
        step, passed = divmod(most, PARTS)
        if step != self._step:  # they have begun it together
            self._step, self._since, self._ahead = step, step * PARTS, {}
        gone, left = mean - self._since, min(PARTS - passed, HORIZON * PARTS)
        if gone < KNOWN * PARTS:
            return False
        ahead = {at: each - mean for at, each in told.items()}
        gained = {at: (lead - self._ahead.get(at, 0.0)) / gone for at, lead in ahead.items()}  # which its core has done
        staying = {at: lead + gained[at] * left for at, lead in ahead.items()}
        changed = {at: lead + gained.get((at + 1) % self._ranks, 0.0) * left for at, lead in ahead.items()}
        first, last = max(ahead, key=ahead.__getitem__), min(ahead, key=ahead.__getitem__)
        closer = _spread(staying) - _spread(changed)
        if changed[first] < changed[last] or closer < max(GAIN * PARTS, LATE * new):
            return False  # the one would pass the other, so there is time; or it is not worth it
        self._since, self._ahead = mean, ahead
        return True


def _spread(of: Mapping[int, float]) -> float:
    return max(of.values()) - min(of.values())


class CoreRotation:
    """Moves threads, each of which computes for a rank, around some cores until it is closed.

    Args:
        threads: Native ids of the threads, as many as cores.
        cores: The cores.
        progress: Returns how far ranks are; see `Lags.ask_for_change`.
        tell: Is told, in the rotation's thread, why it ends before: a thread is gone, or may not be moved.
        period: Seconds between looks.
    """

    def __init__(
        self,
        threads: Sequence[int],
        cores: Sequence[int],
        progress: Callable[[], Mapping[int, int]],
        tell: Callable[[str], None],
        period: float = PERIOD,
    ) -> None:
        self._threads, self._cores, self._progress = [*threads], [*cores], progress
        self._tell, self._period = tell, period
        self._lags, self._looked = Lags(len(threads)), 0.0
        self._closed, self._wanted = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="core rotation", daemon=True)
        self._thread.start()

    def watch(self, word: Word) -> Word:
        """Returns a rank's word of progress of which to write it is also to look, if the last time is long enough ago."""
        return _Watched(word, self._look)

    def change(self) -> None:
        """Has all change cores, and does not wait for it."""
        self._wanted.set()

    def close(self) -> None:
        """Ends the changes."""
        self._closed = True
        self._wanted.set()
        self._thread.join()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= self._period:
            self._looked = now
            if self._lags.ask_for_change(self._progress()):
                self.change()

    def _run(self) -> None:
        turn, everywhere = 0, {*self._cores}
        while self._wanted.wait() and not self._closed:
            self._wanted.clear()
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


class _Watched:
    """A word of progress; who writes it also looks."""

    def __init__(self, word: Word, look: Callable[[], None]) -> None:
        self._word, self._look = word, look

    def __getitem__(self, at: int) -> int:
        return self._word[at]

    def __setitem__(self, at: int, progress: int) -> None:
        self._word[at] = progress
        self._look()


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
