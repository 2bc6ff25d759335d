"""Packing: a fixed place in one block of memory for every buffer of a plan.

Two buffers may share bytes if their lives do not overlap. The least block that holds all of them is at least the peak of live bytes; to
find it is NP-hard (dynamic storage allocation; Garey & Johnson 1979, problem SR2). Several greedy packings are tried: in several
orders, from the lower end alone or from both. Placing the largest first, each in the smallest gap that it fits, is usually within a percent (Sekiyama
et al. 2018, arXiv 1804.10001; Pisarchyk & Lee 2020, arXiv 2001.03288). Where it is not, `packing_search` searches, mostly with plans near the
least memory, in which many moments are as full as the peak. The best is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from checkpointing.packing_search import Search, components
from framework.memory import Array

#: Buffers begin at multiples of it: a cache line.
ALIGNMENT = 64
#: More bytes for scratch, whose single arrays are not known beforehand and begin at such multiples, too.
_SCRATCH_SLACK = 8 * ALIGNMENT


#: Where the first order comes within this factor of what is aimed at, other orders are tried, but nothing is searched.
_GOOD = 1.002
#: What lives for few operations, so that it can come from the upper end while the rest grows from the lower one.
_SHORT_LIVED = frozenset({"cotangents", "workspace"})
#: What outlives the shards, so that between them nothing else may live.
_LONG_LIVED = "gradients"


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer of a plan and its life.

    Attributes:
        category: What it is for.
        owner: Who asks for it.
        pieces: The bytes of each array in it (scratch is one piece, whatever is cut from it).
        first: The place of the operation that makes it.
        last: The place of the operation after which it is gone.
    """

    category: str
    owner: str
    pieces: tuple[int, ...]
    first: int
    last: int

    @property
    def packed_nbytes(self) -> int:
        """The bytes that it takes in a block."""
        return sum(map(_aligned, self.pieces)) + (_SCRATCH_SLACK if self.category == "workspace" else 0)


#: Where an array lies: its offset and its bytes.
Slot = tuple[int, int]


@dataclass(frozen=True)
class Packing:
    """Where the buffers of a plan lie.

    Attributes:
        nbytes: Bytes of the block.
        bound: No packing is smaller: the most bytes, aligned, that live at once.
        slots: For each operation, by category, the slots of the arrays that it makes, in their order.
        name: Which of the packings tried it is.
    """

    nbytes: int
    bound: int
    slots: tuple[dict[str, list[Slot]], ...]
    name: str

    @property
    def overhead(self) -> float:
        """How much larger the block is than the bound, as a part of it."""
        return self.nbytes / self.bound - 1 if self.bound else 0.0


def pack(buffers: Sequence[Buffer], operations: int, enough: int = 0) -> Packing:
    """Returns the best packing found.

    Args:
        buffers: All buffers of a plan, in the order in which they are made.
        operations: How many operations the plan has.
        enough: Bytes of a block that is there in any case: once a packing fits it, no better one is looked for.
    """
    sizes = np.array([buffer.packed_nbytes for buffer in buffers], np.int64)
    first = np.array([buffer.first for buffer in buffers], np.intp)
    last = np.array([buffer.last for buffer in buffers], np.intp)
    short = np.array([buffer.category in _SHORT_LIVED for buffer in buffers], bool)
    long = np.array([buffer.category == _LONG_LIVED for buffer in buffers], bool)
    live = _live(sizes, first, last)
    bound = int(live.max(initial=0))
    # Shards have nothing to do with each other unless gradients live through all of them. The fullest first: it says what others have room for.
    parts = [np.arange(len(sizes))] if long.any() else components(first, last)
    offsets, nbytes, name = np.zeros_like(sizes), 0, ""
    twins: dict[tuple[bytes, ...], _Trial] = {}
    for part in sorted(parts, key=lambda part: -int(live[first[part].min() : last[part].max() + 1].max())):
        start = first[part].min()
        kind = tuple(
            a.tobytes() for a in (sizes[part], first[part] - start, last[part] - start, short[part], long[part])
        )
        if kind not in twins:
            twins[kind] = _best(*kind, max(bound, nbytes), enough)
        best = twins[kind]
        offsets[part] = best.offsets
        if best.nbytes > nbytes or not name:
            nbytes, name = best.nbytes, best.name
    return Packing(nbytes, bound, _slots(buffers, offsets, operations), name)


@lru_cache(maxsize=64)
def _best(sizes: bytes, first: bytes, last: bytes, short: bytes, long: bytes, aim: int, enough: int) -> _Trial:
    """Returns the lowest of the packings that are tried, or the first that is as low as is aimed at, or low enough.

    Shards of other ranks have the same buffers but for their names. So the last answers are remembered.
    """
    lives = np.frombuffer(first, np.intp), np.frombuffer(last, np.intp)
    kinds = np.frombuffer(short, bool), np.frombuffer(long, bool)
    best: _Trial | None = None
    for trial in _trials(np.frombuffer(sizes, np.int64), *lives, *kinds, aim):
        if best is None or trial.nbytes < best.nbytes:
            best = trial
        if best.nbytes <= max(aim, enough):
            break
    assert best is not None
    return best


class _Trial(NamedTuple):
    """A packing that was tried: how high it is, what it is called, and its offsets."""

    nbytes: int
    name: str
    offsets: Array


def _trials(sizes: Array, first: Array, last: Array, short: Array, long: Array, aim: int) -> Iterator[_Trial]:
    """Packings, the one that is quick and usually good enough first."""

    def trial(name: str, offsets: Array) -> _Trial:
        return _Trial(int(np.max(offsets + sizes, initial=0)), name, offsets)

    orders = _orders(sizes, first, last)
    sides = (("", np.zeros_like(short)), (", from both ends", short))
    for number, (name, order) in enumerate(orders):
        nbytes = []
        for side, high in sides:  # the second one only if it is asked for
            placed = trial(name + side, _place(order, sizes, first, last, high, aim))
            nbytes.append(placed.nbytes)
            yield placed
        if number == 0 and min(nbytes) > _GOOD * aim:
            yield trial("searched", _searched(sizes, first, last, long, aim))


def _searched(sizes: Array, first: Array, last: Array, long: Array, aim: int) -> Array:
    """Places what outlives the shards below all else, and searches for the places of the rest, of one shard after the other."""
    offsets, floor = np.zeros_like(sizes), np.zeros(last.max() + 1, np.int64)
    for i in np.flatnonzero(long):  # they come and go like a stack
        life = slice(first[i], last[i] + 1)
        offsets[i] = floor[life].max()
        floor[life] = offsets[i] + sizes[i]
    rest = np.flatnonzero(~long)
    live = floor + _live(sizes[rest], first[rest], last[rest], len(floor))
    search = Search(aim, ALIGNMENT)
    parts = [rest[part] for part in components(first[rest], last[rest])]
    # The fullest first: what serves it serves its twins, too.
    for part in sorted(parts, key=lambda part: -int(live[first[part].min() : last[part].max() + 1].max())):
        start = first[part].min()
        offsets[part] = search.offsets(sizes[part], first[part] - start, last[part] - start, floor[start:])
    return offsets


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _live(sizes: Array, first: Array, last: Array, moments: int = 0) -> Array:
    """The bytes that live at each operation, of so many at least."""
    change = np.zeros(max(moments, last.max(initial=-1) + 1) + 1, np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -sizes)
    live: Array = np.cumsum(change)[:-1]
    return live


def _orders(sizes: Array, first: Array, last: Array) -> Iterator[tuple[str, Array]]:
    """The orders in which buffers are placed; ties go to the earlier buffer."""
    life = last - first + 1
    yield "largest first", np.argsort(-sizes, kind="stable")
    yield "longest life first", np.lexsort((-sizes, -life))
    yield "largest area first", np.argsort(-sizes * life, kind="stable")
    yield "in order of time", np.lexsort((-sizes, first))
    # The operations at which most bytes live are the hardest: what lives there goes first, below all else.
    live = _live(sizes, first, last)
    busiest = np.array([live[a : b + 1].max() for a, b in zip(first, last, strict=True)])
    yield "busiest operation first", np.lexsort((-sizes, -busiest))
    yield "busiest operation first, longest life", np.lexsort((-life, -busiest))


def _place(order: Array, sizes: Array, first: Array, last: Array, high: Array, ceiling: int) -> Array:
    """Puts each buffer into the smallest gap that it fits between those it lives together with; if it is high, at the end of the last.

    The space below the ceiling is a gap, too, though a far one; what fits no gap goes above all.
    """
    offsets = np.zeros_like(sizes)
    placed = np.zeros(len(sizes), bool)
    for i in order:
        together = np.flatnonzero(placed & (first <= last[i]) & (last >= first[i]))
        starts = offsets[together]
        by_start = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate((starts + sizes[together])[by_start], dtype=np.int64)
        below = np.concatenate([np.zeros(1, np.int64), ends])  # a gap begins where all below it end
        above = np.append(starts[by_start], max(ceiling, int(below[-1])))
        gaps = above - below
        fitting = np.flatnonzero(gaps >= sizes[i])
        if not fitting.size:
            offsets[i] = below[-1]
        elif high[i]:
            offsets[i] = above[fitting[-1]] - sizes[i]
        else:
            inner = fitting[fitting < len(gaps) - 1]
            offsets[i] = below[inner[np.argmin(gaps[inner])]] if inner.size else below[-1]
        placed[i] = True
    return offsets


def _slots(buffers: Sequence[Buffer], offsets: Array, operations: int) -> tuple[dict[str, list[Slot]], ...]:
    slots: list[dict[str, list[Slot]]] = [{} for _ in range(operations)]
    for buffer, offset in zip(buffers, offsets.tolist(), strict=True):
        if buffer.category == "workspace":
            slots[buffer.first]["workspace"] = [(offset, buffer.packed_nbytes)]
            continue
        for nbytes in buffer.pieces:
            slots[buffer.first].setdefault(buffer.category, []).append((offset, nbytes))
            offset += _aligned(nbytes)
    return tuple(slots)
