"""Chains of equal steps whose states are kept in RAM and on slower levels: disk without a limit, and H-Revolve's levels of so many slots.

A chain is n steps (the papers' index is l = n - 1). A forward takes uf; a backward ub, with the forward that saves what it reads. RAM
holds c states, the first among them, and costs nothing; each state written to a level and read from it takes time.

Sources: Aupy, Herrmann, Hovland and Robert 2016 (doi 10.1137/15M1019222), disk without a limit; Herrmann and Pallez 2020, H-Revolve
(doi 10.1145/3378672).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from checkpointing.solvers.chain import StageBackward, StageForward
from checkpointing.solvers.revolve import extra_forwards, revolve
from framework.memory import Array


@dataclass(frozen=True, slots=True)
class StateWrite:
    """Writes the output of a stage, which is in hand, to a level below RAM (1 is the next)."""

    stage: int
    level: int


@dataclass(frozen=True, slots=True)
class StateRead:
    """Reads the output of a stage from a level; after the last time its slot is free again."""

    stage: int
    level: int
    last: bool


#: What a schedule with disk consists of. Stages are numbered from 1; there is no loss.
DiskAction = StageForward | StageBackward | StateWrite | StateRead


class Level(NamedTuple):
    """A level below RAM: how many states it holds, and the times to write and to read one."""

    slots: int
    write: float
    read: float


class _Steps(NamedTuple):
    """A part of a chain to plan: its first stage and its steps; the level that it may use, and how many slots; whether its first state lies there."""

    first: int
    n: int
    level: int
    slots: int
    stored: bool


class _Hierarchy(ABC):
    """What both kinds have in common: a table of times for each level, and the way back through it."""

    def __init__(self, length: int, slots: int, forward: float, backward: float) -> None:
        if length < 1 or slots < 1:
            raise ValueError(f"{length} steps with {slots} states in RAM cannot be planned; give at least one of each")
        self.length, self.slots, self.forward = length, slots, forward
        extra = [extra_forwards(n, slots) for n in range(1, length + 1)]
        self.ram = np.array([np.inf, *(forward * more + backward * n for n, more in enumerate(extra, 1))])

    def splits(self, n: int, rest: Array, read: float, again: Array) -> Array:
        """By j - 1 the time to go j steps on from a stored state, plan the rest, read the state, and plan the first j."""
        j = np.arange(1, n)
        found: Array = j * self.forward + rest[n - j] + read + again[j]
        return found

    def run(self, whole: _Steps) -> list[DiskAction]:
        found: list[DiskAction] = []
        todo: list[DiskAction | _Steps] = [whole]
        while todo:
            item = todo.pop()
            if not isinstance(item, _Steps):
                found.append(item)
            elif item.level == 0:
                found += revolve(item.n, self.slots, item.first, loss=False)
            else:
                todo += reversed(self.parts(item))
        return found

    @abstractmethod
    def parts(self, steps: _Steps) -> list[DiskAction | _Steps]:
        """Returns what some steps do first, and the shorter runs of steps that are left."""

    def split(self, steps: _Steps, j: int, rest: _Steps, again: _Steps, last: bool) -> list[DiskAction | _Steps]:
        state, level = steps.first - 1, steps.level
        write = [] if steps.stored else [StateWrite(state, level)]
        advance = [StageForward(stage, None, keeps_input=False) for stage in range(steps.first, steps.first + j)]
        return [*write, *advance, rest, StateRead(state, level, last), again]


class UnlimitedDisk(_Hierarchy):
    """The fastest schedules with RAM and a disk that holds any number of states.

    A state that was read is planned on with RAM alone between further reads of it, which is optimal.

    Args:
        length: The most steps.
        slots: c, the states that RAM holds.
        write, read: Times of one state to disk and from it.
        forward, backward: uf and ub.
    """

    def __init__(
        self, length: int, slots: int, write: float, read: float, forward: float = 1.0, backward: float = 1.0
    ) -> None:
        super().__init__(length, slots, forward, backward)
        self.write, self.read = write, read
        self.stored, self.free = self.ram.copy(), self.ram.copy()
        for n in range(2, length + 1):
            self.stored[n] = min(self.ram[n], self.splits(n, self.ram, read, self.stored).min())
            self.free[n] = min(self.ram[n], write + self.splits(n, self.free, read, self.stored).min())

    def seconds(self, n: int) -> float:
        """The least time of n steps."""
        return float(self.free[n])

    def actions(self, n: int) -> list[DiskAction]:
        """Returns the fastest schedule of n steps."""
        return self.run(_Steps(1, n, 1, 0, False))

    def parts(self, steps: _Steps) -> list[DiskAction | _Steps]:
        first, n = steps.first, steps.n
        table, rest = (self.stored, self.ram) if steps.stored else (self.free, self.free)
        if self.ram[n] <= table[n]:
            return [steps._replace(level=0)]
        j = 1 + int(np.argmin(self.splits(n, rest, self.read, self.stored)))
        beyond = _Steps(first + j, n - j, 0 if steps.stored else 1, 0, False)
        last = bool(self.ram[j] <= self.stored[j])
        return self.split(steps, j, beyond, _Steps(first, j, 1, 0, True), last)


class HRevolve(_Hierarchy):
    """The fastest schedules with RAM and levels that hold so many states each.

    P(k, n, m) is the time of n steps whose first state lies on level k, m slots of which are at hand, that state's among them; O(k, n, m) that
    where it is in hand alone, so it may be written there, or only levels above used:

        P(k, n, m) = min of O(k-1, n, slots of k-1) and j·uf + O(k, n-j, m-1) + read + P(k, j, m)
        O(k, n, m) = min of O(k-1, n, slots of k-1) and write + P(k, n, m)

    Args:
        length: The most steps.
        slots: The states that RAM holds.
        levels: The levels below RAM, fastest first.
        forward, backward: uf and ub.
    """

    def __init__(
        self, length: int, slots: int, levels: Sequence[Level], forward: float = 1.0, backward: float = 1.0
    ) -> None:
        super().__init__(length, slots, forward, backward)
        self.levels = tuple(levels)
        self.above = [self.ram]  # of k - 1, with all its slots
        self.stored: list[Array] = []  # of k - 1: P by m and n
        self.free: list[Array] = []  # of k - 1: O
        for level in self.levels:
            above = self.above[-1]
            stored, free = (np.tile(above, (level.slots + 1, 1)) for _ in range(2))
            for m in range(1, level.slots + 1):
                for n in range(2, length + 1):
                    stored[m, n] = min(above[n], self.splits(n, free[m - 1], level.read, stored[m]).min())
                    free[m, n] = min(above[n], level.write + stored[m, n])
            self.above.append(free[-1])
            self.stored.append(stored)
            self.free.append(free)

    def seconds(self, n: int) -> float:
        """The least time of n steps."""
        return float(self.above[-1][n])

    def actions(self, n: int) -> list[DiskAction]:
        """Returns the fastest schedule of n steps."""
        return self.run(_Steps(1, n, len(self.levels), self._slots(len(self.levels)), False))

    def _slots(self, level: int) -> int:
        return self.levels[level - 1].slots if level else 0

    def parts(self, steps: _Steps) -> list[DiskAction | _Steps]:
        first, n, k, m, stored = steps
        above, table = self.above[k - 1], (self.stored if stored else self.free)[k - 1]
        if above[n] <= table[m, n]:
            return [_Steps(first, n, k - 1, self._slots(k - 1), False)]
        known = self.stored[k - 1][m]
        j = 1 + int(np.argmin(self.splits(n, self.free[k - 1][m - 1], self.levels[k - 1].read, known)))
        beyond, again = _Steps(first + j, n - j, k, m - 1, False), _Steps(first, j, k, m, True)
        return self.split(steps, j, beyond, again, bool(above[j] <= known[j]))
