"""Packing: a fixed place in one block of memory for every buffer of a plan.

Two buffers may share bytes if their lives do not overlap. The least block that holds all of them is at least the peak of live bytes; to
find it is NP-hard (dynamic storage allocation; Garey & Johnson 1979, problem SR2), so several greedy packings are tried and the
best is kept: in several orders, from the lower end alone or from both, and with sides drawn by chance. Placing the largest first, each in the smallest gap that it fits, is usually within a percent (Sekiyama et al. 2018, arXiv
1804.10001; Pisarchyk & Lee 2020, arXiv 2001.03288).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from framework.keys import Key
from framework.memory import Array

#: Buffers begin at multiples of it: a cache line.
ALIGNMENT = 64
#: More bytes for scratch, whose single arrays are not known beforehand and begin at such multiples, too.
_SCRATCH_SLACK = 8 * ALIGNMENT


#: A packing within this factor of the bound is not improved, and others by trying so many times over the number of buffers.
_GOOD, _WORK = 1.002, 20_000
#: What lives for few operations, so that it can come from the upper end while the rest grows from the lower one.
_SHORT_LIVED = frozenset({"cotangents", "workspace"})
#: Of which order sides are drawn by chance, and the parts of the kinds of buffers of which one is drawn: so many come from the upper end.
_DRAWN = "busiest operation first, longest life"
_ABOVE = (0.1, 0.3, 0.5)


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


def pack(buffers: Sequence[Buffer], operations: int) -> Packing:
    """Returns the best packing found.

    Args:
        buffers: All buffers of a plan, in the order in which they are made.
        operations: How many operations the plan has.
    """
    sizes = np.array([buffer.packed_nbytes for buffer in buffers], np.int64)
    first = np.array([buffer.first for buffer in buffers], np.int64)
    last = np.array([buffer.last for buffer in buffers], np.int64)
    bound = _most_at_once(sizes, first, last, operations)
    orders = dict(_orders(sizes, first, last))
    kinds = {key: number for number, key in enumerate(dict.fromkeys((b.category, b.owner) for b in buffers))}
    kind = np.array([kinds[b.category, b.owner] for b in buffers], np.intp)
    above = np.array([buffer.category in _SHORT_LIVED for buffer in buffers], bool)
    best: _Trial | None = None
    for name, order in orders.items():
        for sides, high in (("", np.zeros_like(above)), (", from both ends", above)):
            offsets = _place(order, sizes, first, last, high, bound)
            trial = _Trial(int(np.max(offsets + sizes, initial=0)), name + sides, offsets, order, high)
            if best is None or trial.nbytes < best.nbytes:
                best = trial
        if best is not None and best.nbytes == bound:
            break
    assert best is not None
    generator = Key(0).fold("packing").generator()
    for number in range(_WORK // max(1, len(buffers))):
        if best.nbytes <= bound * _GOOD:
            break
        if number % 2:
            order, high = orders[_DRAWN], (generator.random(len(kinds)) < generator.choice(_ABOVE))[kind]
        else:
            order, high = _repaired(best, sizes, generator), best.high
        offsets = _place(order, sizes, first, last, high, bound)
        reached = int(np.max(offsets + sizes))
        if reached < best.nbytes or (reached == best.nbytes and not number % 2):
            best = _Trial(reached, "drawn sides" if number % 2 else "repaired", offsets, order, high)
    height, name, offsets = best[:3]
    return Packing(height, bound, _slots(buffers, offsets, operations), name)


class _Trial(NamedTuple):
    """A packing that was tried: how high it is, what it is called, its offsets, and the order and the sides that made them."""

    nbytes: int
    name: str
    offsets: Array
    order: Array
    high: Array


def _repaired(trial: _Trial, sizes: Array, generator: np.random.Generator) -> Array:
    """Another order: a buffer that reaches the top was placed too late and goes to the front, and some other buffer with it."""
    top = np.flatnonzero(trial.offsets + sizes == trial.nbytes)
    moved = np.unique([generator.choice(top), generator.integers(len(sizes))])
    found: Array = np.concatenate([moved, trial.order[~np.isin(trial.order, moved)]])
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _most_at_once(sizes: Array, first: Array, last: Array, operations: int) -> int:
    change = np.zeros(operations + 1, np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -sizes)
    return int(np.max(np.cumsum(change), initial=0))


def _orders(sizes: Array, first: Array, last: Array) -> Iterator[tuple[str, Array]]:
    """The orders in which buffers are placed; ties go to the earlier buffer."""
    life = last - first + 1
    yield "largest first", np.argsort(-sizes, kind="stable")
    yield "longest life first", np.lexsort((-sizes, -life))
    yield "largest area first", np.argsort(-sizes * life, kind="stable")
    yield "in order of time", np.lexsort((-sizes, first))
    # The operations at which most bytes live are the hardest: what lives there goes first, below all else.
    change = np.zeros(int(np.max(last, initial=0)) + 2, np.int64)
    np.add.at(change, first, sizes)
    np.add.at(change, last + 1, -sizes)
    live = np.cumsum(change)
    busiest = np.array([live[a : b + 1].max() for a, b in zip(first, last, strict=True)])
    yield "busiest operation first", np.lexsort((-sizes, -busiest))
    yield _DRAWN, np.lexsort((-life, -busiest))


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
