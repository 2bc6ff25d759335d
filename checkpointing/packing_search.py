"""A search for packings: many orders at once are stacked to skylines, the best orders are changed and stacked again, and the best stack is
pressed below a ceiling.

A *skyline* is the height at which each moment is filled so far. Buffers are stacked one after the other, each at the highest
skyline of its life, and gaps below are never filled. Nothing is lost by that: stacked in the order of their offsets, the buffers of any
packing come to lie no higher than there. So only the order matters. At each step the buffer that can lie lowest is taken, but none
whose life would become higher than a ceiling even if all else were stacked on it without a gap; among equals its key decides. Keys are drawn:
they prefer long lives and large sizes, more or less. That is strip packing with given columns (Burke et al. 2004, "A new placement
heuristic for the orthogonal stock-cutting problem"); the bound on what is left is that of Moffitt 2023, "MiniMalloc".

*Pressing* takes out what reaches above the ceiling and puts it back at the place where it ejects least, then what it ejected, and so on until
nothing is out. What is ejected often becomes dear, so that the chains do not go round in a circle (ejection chains, Glover 1996; the weights
are those of the breakout method, Morris 1993).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from framework.keys import Key
from framework.memory import Array

#: Orders that are stacked at once, the best that are kept, and how often they are changed.
_LANES, _KEPT, _ROUNDS = 48, 8, 4
#: What is near enough: a height over the one aimed at; and what is so after stacking, so that nothing is pressed.
_NEAR, _ENOUGH = 1.002, 1.01
#: Ceilings that are pressed below, over the height aimed at; how often each is tried, and how often a try puts buffers back: each on average,
#: and in all.
_PRESSED, _TRIES, _PUT_BACK, _IN_ALL = (1.01, 1.02, 1.03, 1.05), 6, 20, 2_000
#: How far above the height that is aimed at the ceilings of orders lie.
_CEILINGS = (0.0, 0.005, 0.01, 0.02, 0.04)
#: The parts of the keys that are changed, and by how much.
_CHANGED, _BY = (0.02, 0.1, 0.3), (0.3, 1.0, 3.0)


class Stack(NamedTuple):
    """Orders and what came of them, one a row: keys of buffers, ceilings over the height aimed at, heights, offsets."""

    keys: Array
    ceilings: Array
    heights: Array
    offsets: Array

    def best(self, count: int) -> Stack:
        """The lowest."""
        rows = np.argsort(self.heights, kind="stable")[:count]
        return Stack(*(each[rows] for each in self))

    def joined(self, other: Stack) -> Stack:
        return Stack(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


@dataclass
class Search:
    """Packs sets of buffers, each above a floor, into one height.

    Attributes:
        aim: The height that all may have: the bound, then the highest that was reached.
        unit: All bytes are multiples of it.
    """

    aim: int
    unit: int
    _known: dict[tuple[bytes, ...], tuple[Array, Array]] = field(default_factory=dict)

    def offsets(self, sizes: Array, first: Array, last: Array, floor: Array) -> Array:
        """Returns an offset for each buffer and raises the aim where it cannot be met.

        Args:
            sizes: The buffers' bytes.
            first: The first moment of each buffer's life.
            last: The last one.
            floor: By moment, the bytes that are taken below.
        """
        begins, moments = _crowded(first, last)
        floor = np.maximum.reduceat(floor[: last.max() + 1], begins)
        first = np.searchsorted(moments, first)
        last = np.searchsorted(moments, last, side="right") - 1
        shape = sizes.tobytes(), first.tobytes(), last.tobytes()
        if shape in self._known:  # a shard like another, with more or fewer gradients below
            offsets, below = self._known[shape]
            offsets = offsets + np.max(floor - below)
        if shape not in self._known or np.max(offsets + sizes) > self.aim:
            offsets = self._found(_Skylines(sizes, first, last, floor))
            self._known[shape] = offsets, floor
        self.aim = max(self.aim, int(np.max(offsets + sizes)))
        return offsets

    def _found(self, skylines: _Skylines) -> Array:
        stack = self._stacked(skylines)
        offsets: Array = stack.offsets[0]
        if stack.heights[0] <= _ENOUGH * self.aim:
            return offsets
        for ceiling in _PRESSED:
            most = int(self.aim * ceiling) // self.unit * self.unit
            if stack.heights[0] <= most:
                break
            for number in range(_TRIES):
                start = stack.offsets[number % len(stack.offsets)]
                pressed = skylines.pressed(start, most, even=number % 2 == 1, seed=number)
                if pressed is not None:
                    return pressed
        return offsets

    def _stacked(self, skylines: _Skylines) -> Stack:
        """The best orders that are found, the lowest first."""
        count, generator = len(skylines.sizes), Key(0).fold("packing").generator()
        length, size = np.log(skylines.last - skylines.first + 1.0), np.log(skylines.sizes + 1.0)
        lanes = max(4, min(_LANES, 16_384 // count))

        def stack(keys: Array, ceilings: Array) -> Stack:
            return Stack(keys, ceilings, *skylines.stacked(keys, (self.aim * (1 + ceilings)).astype(np.int64)))

        weights = 2 * generator.random((lanes, 2, 1))
        keys = weights[:, 0] * length + weights[:, 1] * size
        keys += generator.random((lanes, 1)) * generator.gumbel(size=keys.shape)
        best = stack(keys, generator.choice(_CEILINGS, lanes)).best(_KEPT)
        for _ in range(_ROUNDS):
            if best.heights[0] <= _NEAR * self.aim:
                break
            parents = generator.integers(0, len(best.keys), lanes)
            changed = generator.random(keys.shape) < generator.choice(_CHANGED, (lanes, 1))
            by = generator.choice(_BY, (lanes, 1)) * generator.gumbel(size=keys.shape)
            others = generator.choice(_CEILINGS, lanes)
            ceilings = np.where(generator.random(lanes) < 0.8, best.ceilings[parents], others)
            best = best.joined(stack(best.keys[parents] + changed * by, ceilings)).best(_KEPT)
        return best


class _Skylines:
    """Buffers with their lives in moments without gaps, above a floor, and what all orders of them have in common."""

    def __init__(self, sizes: Array, first: Array, last: Array, floor: Array) -> None:
        self.sizes, self.first, self.last, self.floor = sizes, first, last, floor
        moments = np.arange(len(floor))
        self._together = (first[:, None] <= last) & (last[:, None] >= first)
        self._alive = (first[:, None] <= moments) & (last[:, None] >= moments)
        # The most over a life is the larger of those over two stretches, whose length is a power of two, from its either end.
        level = np.log2(last - first + 1).astype(np.intp)
        self._levels = int(level.max()) + 1
        self._from_first = level * len(floor) + first
        self._to_last = level * len(floor) + last + 1 - 2**level

    def stacked(self, keys: Array, ceilings: Array) -> tuple[Array, Array]:
        """Stacks each row's buffers; returns the height of each row, and the offsets."""
        rows, never = np.arange(len(keys)), np.iinfo(np.int64).max // 4
        lowest = np.tile(np.where(self._alive, self.floor, 0).max(axis=1), (len(keys), 1))
        left = np.tile(np.where(self._alive.T, self.sizes, 0).sum(axis=1), (len(keys), 1))
        most = np.zeros((len(keys), self._levels, len(self.floor)), np.int64)
        offsets = np.full(keys.shape, -1, np.int64)
        for _ in self.sizes:
            self._fill(most, left)
            by_level = most.reshape(len(keys), -1)
            above = np.maximum(by_level[:, self._from_first], by_level[:, self._to_last])
            reached = np.where(offsets < 0, lowest + above, never)  # at least, if this one is the next
            allowed = reached <= np.maximum(reached.min(axis=1), ceilings)[:, None]
            place = np.where(allowed, lowest, never)
            chosen = np.where(place == place.min(axis=1)[:, None], keys, -np.inf).argmax(axis=1)
            offsets[rows, chosen] = lowest[rows, chosen]
            top = offsets[rows, chosen] + self.sizes[chosen]
            np.maximum(lowest, top[:, None], out=lowest, where=self._together[chosen])
            left -= self._alive[chosen] * self.sizes[chosen][:, None]
        heights: Array = (offsets + self.sizes).max(axis=1)
        return heights, offsets

    def pressed(self, offsets: Array, ceiling: int, even: bool, seed: int) -> Array | None:
        """Presses a packing below a ceiling, or gives up.

        Args:
            offsets: Of the packing.
            ceiling: What no buffer may reach above.
            even: Whether all buffers are equally dear at first, instead of by their sizes.
            seed: Of what is drawn.
        """
        generator, sizes, offsets = Key(seed).fold("pressed").generator(), self.sizes, offsets.copy()
        lowest = np.where(self._alive, self.floor, 0).max(axis=1)
        if np.any(lowest + sizes > ceiling):
            return None
        there = offsets + sizes <= ceiling
        price = np.ones(len(sizes)) if even else sizes / ceiling + 0.02
        first_price, out = price.copy(), np.flatnonzero(~there).tolist()
        for _ in range(min(_PUT_BACK * len(sizes), _IN_ALL)):
            if not out:
                return offsets
            i = out.pop(int(generator.integers(len(out))))
            others = np.flatnonzero(self._together[i] & there)
            starts, ends = offsets[others], offsets[others] + sizes[others]
            places = np.concatenate([[lowest[i], ceiling - sizes[i]], ends, starts - sizes[i]])
            places = places[(places >= lowest[i]) & (places <= ceiling - sizes[i])]
            met = (places[:, None] < ends) & (places[:, None] + sizes[i] > starts)
            # A little chance, so that equals take turns.
            chosen = np.argmin(np.where(met, price[others], 0).sum(axis=1) * (1 + 0.1 * generator.random(len(places))))
            offsets[i], there[i] = places[chosen], True
            ejected = others[met[chosen]]
            there[ejected] = False
            price[ejected] += first_price[ejected]
            out += ejected.tolist()
        return None

    def _fill(self, most: Array, left: Array) -> None:
        """The most of what is left over stretches of 1, 2, 4, ... moments from each on."""
        most[:, 0] = left
        for level in range(1, self._levels):
            half, end = 2 ** (level - 1), most.shape[2] - 2**level + 1
            np.maximum(most[:, level - 1, :end], most[:, level - 1, half : half + end], out=most[:, level, :end])


def _crowded(first: Array, last: Array) -> tuple[Array, Array]:
    """Cuts time where buffers that have ended are followed by ones that begin.

    Returns:
        Where each stretch begins, and a moment in it at which all live that live in the stretch.
    """
    moments = np.unique(first)
    ended = np.searchsorted(np.sort(last), moments, side="left")
    apart = ended[1:] != ended[:-1]
    return moments[np.append(True, apart)], moments[np.append(apart, True)]


def components(first: Array, last: Array) -> list[Array]:
    """Returns the numbers of the buffers by stretches of time, between which none lives."""
    if not len(first):
        return []
    order = np.argsort(first, kind="stable")
    ends = np.maximum.accumulate(last[order])
    return np.split(order, np.flatnonzero(first[order][1:] > ends[:-1]) + 1)
