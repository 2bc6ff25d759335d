"""Rotor: the fastest persistent schedule of a chain of unequal stages within a memory limit, by dynamic programming.

A schedule is *persistent* if it never drops a value before its use. C(s, t, m) is the least time of the backwards of stages t..s from
a[s-1] and δ[t], in m bytes besides a[s-1]. Either stage s is saved as one of its options, or its input alone is kept and the
chain runs on to some stage j, whose input is kept next:

    C(s, t, m) = min of   f_s + b_so + C(s+1, t, m - ω̄_so)                        for each option o, if m fits its forward and backward
                          Σ_{k=s}^{j-1} f_k + C(j, t, m - ω_{j-1}) + C(s, j-1, m)     for s < j ≤ t, if m fits these forwards

Sources: Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova 2020 (hal-02352969); options: Zhao et al. 2023 (Rockmate). Two things differ
from the paper: the backward of stage s counts δ[s] and δ[s-1] both, without which schedules pass their limit, and running on to j must
fit the forwards up to j-1 alone instead of all up to t-1. With both, the result is the optimum of the class.

Among all schedules it need not be the best: dropping a value early that a later forward makes anyway can be better.
"""

from __future__ import annotations

import numpy as np

from checkpointing.solvers.chain import Action, Solution, StageBackward, StageChain, StageForward, solution
from framework.memory import Array

#: Numbers that are added at once, so that they stay in the cache; results do not depend on it.
_CHUNK = 32768

#: For how many t the table is filled side by side, so that rows of one s are read from the cache; results do not depend on it.
_TILE = 8


class PersistentTable:
    """The fastest persistent schedules of a chain for every memory limit up to the largest.

    Limits are counted in units of ⌈(memory - ω[0]) / steps⌉ bytes, sizes rounded up and limits down. So a schedule never passes its
    limit, and it is the fastest of its class if the unit is one byte. Time O(steps·L³), memory 4·(steps + 1)·(L + 1)·(L + 2) bytes
    for the table and a few rows more.

    Args:
        chain: The chain.
        memory: The largest limit in bytes, the batch included.
        steps: In how many units it is divided at most.

    Raises:
        ValueError: There is no unit, or the memory does not even hold the batch.
    """

    def __init__(self, chain: StageChain, memory: int, steps: int = 500) -> None:
        room = memory - chain.input_nbytes
        if steps < 1 or room < 0:
            raise ValueError(
                f"{memory} bytes with a batch of {chain.input_nbytes} bytes, in {steps} steps, is no memory to plan in"
            )
        self.chain, self.memory = chain, memory
        self.unit = max(1, -(-room // steps))
        self.steps = room // self.unit
        self._last = chain.length + 1
        self._nbytes = [chain.nbytes(i) for i in range(self._last + 1)]
        self._units = [self._up(nbytes) for nbytes in self._nbytes]
        self._options = [[], *(self._options_of(s) for s in range(1, self._last + 1))]
        self._known_ways: dict[tuple[int, int], list[tuple[float, int, int]]] = {}  # of s and the bytes of δ[t]
        self._forward = np.cumsum([0.0] + [stage.forward_seconds for stage in chain.all]).tolist()
        self._rows: list[Array] = []  # of s: C(s, t, m) by t-s and m
        self._least: list[Array] = []  # of s: by t-s the first m with a schedule, in bytes
        self._passing = [np.empty(0, np.int64)] + [self._passing_bytes(s) for s in range(1, self._last + 1)]
        self._chosen: dict[tuple[int, int, int], tuple[int, int]] = {}  # of (s, t, m): what `_choice` found
        self._fill()

    def seconds(self, memory: int | None = None) -> float:
        """The time of the fastest schedule in a memory (the largest by default), infinite if there is none."""
        m = self._slot(memory)
        return float(self._rows[1][self._last - 1, m]) if m >= 0 else np.inf

    @property
    def changes(self) -> list[int]:
        """The memories in bytes from which on the time is less than below, rising."""
        times = self._rows[1][self._last - 1]
        faster = np.flatnonzero(times < np.concatenate([[np.inf], times[:-1]]))
        return (self.chain.input_nbytes + faster * self.unit).tolist()

    @property
    def smallest(self) -> int | None:
        """The smallest memory in bytes with a schedule; None where even the largest has none."""
        least = int(self._least[1][self._last - 1])
        return None if least > self.steps * self.unit else self.chain.input_nbytes + least

    def solution(self, memory: int | None = None) -> Solution:
        """Returns the fastest schedule in a memory, the largest by default, with what its replay takes.

        Raises:
            ValueError: There is none; the message names the smallest memory that has one, as far as the table knows.
        """
        return solution(self.chain, self.actions(memory))

    def actions(self, memory: int | None = None) -> list[Action]:
        """Returns the fastest schedule in a memory, the largest by default.

        Raises:
            ValueError: As `solution`.
        """
        if not np.isfinite(self.seconds(memory)):
            known = (
                f"{self.smallest} bytes are enough"
                if self.smallest is not None
                else f"{self.memory} bytes are too few as well"
            )
            raise ValueError(f"no persistent schedule fits {self.memory if memory is None else memory} bytes; {known}")
        return self._actions(self._slot(memory))

    def _slot(self, memory: int | None) -> int:
        if memory is None:
            return self.steps
        if memory > self.memory:
            raise ValueError(f"the table ends at {self.memory} bytes, but {memory} were asked for; make a larger one")
        return (memory - self.chain.input_nbytes) // self.unit

    def _up(self, nbytes: int) -> int:
        return -(-nbytes // self.unit)

    def _passing_bytes(self, s: int) -> Array:
        """By j-s-1 the bytes that the forwards s..j-1 take besides δ[t], s being the only one whose input stays."""
        nbytes = self._nbytes
        between = [
            nbytes[k] + (nbytes[k - 1] if k > s else 0) + self.chain.stage(k).forward_temporary
            for k in range(s, self._last)
        ]
        return np.maximum.accumulate(np.array(between, np.int64)) if between else np.empty(0, np.int64)

    def _fill(self) -> None:
        last, width = self._last, self.steps + 1
        self._rows = [np.empty((last + 1 - s if s else 0, width)) for s in range(last + 1)]
        self._least = [np.zeros(last + 1 - s, np.int64) for s in range(last + 1)]
        # For each t of a tile, by j: Σ_{k<j} f_k + C(j, t, m - ω[j-1]), and its first m that is finite, in bytes.
        beyond, first = np.empty((_TILE, last + 1, width)), np.empty((_TILE, last + 1), np.int64)
        scratch = np.empty((max(1, _CHUNK // width), width))
        for start in range(1, last + 1, _TILE):
            stop = min(start + _TILE, last + 1)
            self._known_ways.clear()  # of unlike stages there are as many as pairs of s and t, which would take memory
            for s in range(stop - 1, 0, -1):
                for t in range(max(s, start), stop):
                    best = self._rows[s][t - s]
                    self._save(s, t, best)
                    if s < t:
                        self._run_on(s, t, best, beyond[t - start], first[t - start], scratch)
                    least = int(np.count_nonzero(best == np.inf))
                    self._least[s][t - s] = least * self.unit
                    shift = min(self._units[s - 1], width)
                    beyond[t - start, s, :shift] = np.inf
                    np.add(best[: width - shift], self._forward[s - 1], out=beyond[t - start, s, shift:])
                    first[t - start, s] = (least + shift) * self.unit

    def _save(self, s: int, t: int, best: Array) -> None:
        rest = self._rows[s + 1][t - s - 1] if s < t else None
        best.fill(np.inf)
        for number, (seconds, start, shift) in enumerate(self._ways(s, t)):
            if start >= len(best):
                continue
            into = best[start:]
            found = np.asarray(seconds) if rest is None else seconds + rest[start - shift : len(best) - shift]
            if number:
                np.minimum(into, found, out=into)
            else:
                into[...] = found

    def _ways(self, s: int, t: int) -> list[tuple[float, int, int]]:
        """For each option of stage s, with δ[t] held: its time, the first m that it fits in, and the units that it keeps."""
        held, unit = self._nbytes[t], self.unit
        if (s, held) not in self._known_ways:
            self._known_ways[s, held] = [
                (seconds, -(-max(forward + held, backward) // unit), units)
                for seconds, forward, backward, units in self._options[s]
            ]
        return self._known_ways[s, held]

    def _options_of(self, s: int) -> list[tuple[float, int, int, int]]:
        """For each option: its time, the bytes of its forward besides δ[t], those of its backward, and the units that it keeps."""
        stage, found = self.chain.stage(s), []
        for option in stage.options:
            forward = option.nbytes + option.forward_temporary
            backward = option.nbytes + option.backward_temporary + stage.nbytes + self.chain.cotangent_nbytes(s - 1)
            seconds = stage.forward_seconds + option.backward_seconds
            found.append((seconds, forward, backward, self._up(option.nbytes)))
        return found

    def _run_on(self, s: int, t: int, best: Array, beyond: Array, first: Array, scratch: Array) -> None:
        """Takes the minimum with running on to each j."""
        before, after = self._rows[s][: t - s], beyond[s + 1 : t + 1]
        needed = self._passing[s][: t - s] + self._nbytes[t]
        # Mostly the parts need as much themselves; where they do not, the forwards between decide.
        short = needed > np.maximum(self._least[s][: t - s], first[s + 1 : t + 1])
        short_rows = np.flatnonzero(short).tolist() if short.any() else []
        size = len(scratch)
        for start in range(0, t - s, size):
            stop = min(start + size, t - s)
            block = np.add(before[start:stop], after[start:stop], out=scratch[: stop - start])
            for row in short_rows:
                if start <= row < stop:
                    block[row - start, : self._up(int(needed[row]))] = np.inf
            least = np.minimum.reduce(block, axis=0)
            least -= self._forward[s - 1]
            np.minimum(best, least, out=best)

    def _actions(self, m: int) -> list[Action]:
        """Finds again what the table chose, from the whole problem down; a list in place of recursion."""
        found: list[Action] = []
        todo: list[Action | tuple[int, int, int]] = [(1, self._last, m)]
        while todo:
            item = todo.pop()
            if not isinstance(item, tuple):
                found.append(item)
                continue
            s, t, m = item
            if item not in self._chosen:
                self._chosen[item] = self._choice(s, t, m)
            option, j = self._chosen[item]
            if j:
                found += [StageForward(k, None, keeps_input=k == s) for k in range(s, j)]
                todo += [(s, j - 1, m), (j, t, m - self._units[j - 1])]
            else:
                found.append(StageForward(s, option))
                todo.append(StageBackward(s))
                if s < t:
                    todo.append((s + 1, t, m - self._ways(s, t)[option][2]))
        return found

    def _choice(self, s: int, t: int, m: int) -> tuple[int, int]:
        """Returns the option as which stage s is saved and 0, or 0 and the j that it runs on to."""
        found: list[tuple[float, int, int]] = []
        for option, (seconds, start, shift) in enumerate(self._ways(s, t)):
            if m >= start:
                found.append((seconds + (self._rows[s + 1][t - s - 1, m - shift] if s < t else 0.0), option, 0))
        for j in range(s + 1, t + 1):
            left = m - self._units[j - 1]
            if left >= 0 and m * self.unit >= self._passing[s][j - s - 1] + self._nbytes[t]:
                passing = self._forward[j - 1] - self._forward[s - 1]
                found.append((passing + self._rows[j][t - j, left] + self._rows[s][j - 1 - s, m], 0, j))
        seconds, option, j = min(found)
        assert np.isfinite(seconds)
        return option, j


def persistent(chain: StageChain, memory: int, steps: int = 500) -> Solution:
    """Returns the fastest persistent schedule of a chain within a memory.

    Args:
        chain: The chain.
        memory: The limit in bytes, the batch included.
        steps: In how many units it is divided at most; see `PersistentTable`.

    Raises:
        ValueError: There is none.

    >>> from checkpointing.solvers.chain import Stage, StageChain
    >>> chain = StageChain(1, (Stage.simple(1, 3, 1.0, 1.0),) * 4)
    >>> persistent(chain, 12).seconds - chain.least_seconds  # forwards that run again
    2.0
    """
    return PersistentTable(chain, memory, steps).solution()
