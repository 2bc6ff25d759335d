"""What a schedule could drop at a place, and what making it again would cost."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from checkpointing.planner.evaluation import Evaluation, Evaluator, Id


class Drop(NamedTuple):
    """A way to drop a buffer at the peak.

    Attributes:
        ratio: Seconds that it costs per byte that it frees.
        root: The value that the buffer is named by.
        freed: Bytes that are free at the peak.
        start: From which place on they are free.
        stop: Before which place they are made again.
        inserted: Forwards to run, and before which places of the schedule.
        values: What is dropped.
        reads: What is held at the peak and read by the forwards.
    """

    ratio: float
    root: Id
    freed: int
    start: int
    stop: int
    inserted: tuple[tuple[int, tuple[int, ...]], ...]
    values: frozenset[Id]
    reads: frozenset[Id]


class _Again(NamedTuple):
    """How to make a value again: forwards to run before the place where it is used, and what that costs.

    Attributes:
        steps: The forwards.
        seconds: Their time.
        held: Bytes of other values that must be kept over the peak for it.
        reads: What is there and is read.
        worth: The most seconds per byte that keeping one of the others would save; at a lower price some would be kept.
        since, until: It is the same for every use after the one place, and up to the other.
    """

    steps: set[int]
    seconds: float
    held: int
    reads: set[Id]
    worth: float
    since: float
    until: float


#: A value that lies idle, the place of the operation before, and that of the next that uses it.
Gap = tuple[Id, int, int]


class Drops:
    """What could be dropped in one schedule.

    Args:
        evaluator: Of the chain.
        at: The schedule.
    """

    def __init__(self, evaluator: Evaluator, at: Evaluation) -> None:
        self._evaluator, self._at = evaluator, at
        self._places: list[list[int]] = [[] for _ in range(evaluator.steps)]  # of each step its forwards
        gaps: list[Gap] = []
        touched: dict[Id, int] = {}  # of each value the last operation that makes or reads it
        for place, code in enumerate(at.codes):
            for value in evaluator.reads[code]:
                before = touched.get(value, place)
                if place - before > 1:
                    gaps.append((value, before, place))
                touched[value] = place
            if code < evaluator.steps:
                self._places[code].append(place)
                for value in evaluator.makes[code]:
                    touched[value] = place
        self._gaps = np.array(gaps, np.int64).reshape(-1, 3)

    def at(self, place: int) -> Iterator[Drop]:
        """Yields the ways to drop a value that lies idle at a place, what costs the least time for its bytes first.

        They are looked for as they are asked for: what a value's own forward takes is a lower bound of its cost.
        """
        ev, code = self._evaluator, self._at.codes[place]
        root_of, gaps = ev.root, self._gaps
        idle: list[Gap] = list(map(tuple, gaps[(gaps[:, 1] < place) & (place < gaps[:, 2])].tolist()))
        here = {value for value, *_ in idle}.union(ev.uses[code], ev.makes[code])
        groups: dict[Id, list[Gap]] = {}  # values that name one buffer
        for gap in idle:
            groups.setdefault(root_of[gap[0]], []).append(gap)
        busy = {root_of[value] for value in here if value <= ev.steps} - groups.keys()
        # By ratio, least first: 0 and the root of a group that is yet to be looked at, or 1 and a drop.
        queue: list[tuple[float, int, Id, int, Drop | None]] = []
        for root, members in groups.items():
            if root and root not in busy and ev.size[root]:
                least = sum(ev.seconds[ev.step_of(value)] for value, *_ in members)
                queue.append((least / ev.size[root], 0, root, 0, None))
        heapify(queue)
        remaking = _Remaking(ev, self._places, here, place)
        while queue:
            _, _, root, _, drop = heappop(queue)
            if drop is not None:
                yield drop
                continue
            for number, drop in enumerate(self._drops_of(root, groups[root], remaking)):
                heappush(queue, (drop.ratio, 1, root, number, drop))

    def _drops_of(self, root: Id, members: list[Gap], remaking: _Remaking) -> Iterator[Drop]:
        """The cheapest way to drop a buffer without keeping anything for it, and one that keeps what is worth it."""
        values, size = frozenset(value for value, *_ in members), self._evaluator.size[root]
        start, stop = max(before for _, before, _ in members) + 1, min(use for *_, use in members)
        nothing = [(use, remaking.cheapest(value, use, values)) for value, _, use in members]
        ways = [nothing]
        if any(again.seconds < size * again.worth for _, again in nothing):
            ways.append([
                (use, remaking.cheapest(value, use, values, again.seconds / size))
                for (value, _, use), (_, again) in zip(members, nothing, strict=True)
            ])  # fmt: skip
        for way in ways:
            freed = size - sum(again.held for _, again in way)
            if freed > 0:
                seconds = sum(again.seconds for _, again in way)
                inserted = tuple((use, tuple(sorted(again.steps))) for use, again in way)
                reads = frozenset().union(*(again.reads for _, again in way))
                yield Drop(seconds / freed, root, freed, start, stop, inserted, values, reads)


class _Remaking:
    """How values that are dropped at a place would be made again.

    Args:
        evaluator: Of the chain.
        places: Of each step its forwards in the schedule.
        here: What is there at the place.
        place: The place.
    """

    def __init__(self, evaluator: Evaluator, places: list[list[int]], here: set[Id], place: int) -> None:
        self._evaluator, self._places, self._here, self._place = evaluator, places, here, place
        self._after: dict[Id, float] = dict.fromkeys(here, 0.0)  # where each value is there from
        self._after[0] = 0.0
        self._known: dict[int, _Again] = {}

    def cheapest(self, value: Id, use: int, leaving: frozenset[Id], price: float = math.inf) -> _Again:
        """The cheapest way to make a value again before place `use`; another one may be kept instead at a price per byte.

        At an infinite price nothing is kept. What is here may be read, but for what is leaving.
        """
        shared = price == math.inf and len(leaving) == 1  # then what is leaving is no input of what makes it
        known = self._known if shared else {}
        return self._step(self._evaluator.step_of(value), use, leaving, price, known)

    def _there_from(self, source: Id) -> float:
        """The place from which on an output is there without being made again."""
        if source not in self._after:
            made = self._places[source - 1]
            after = bisect_right(made, self._place)
            self._after[source] = made[after] if after < len(made) else math.inf
        return self._after[source]

    def _step(self, step: int, use: int, leaving: frozenset[Id], price: float, known: dict[int, _Again]) -> _Again:
        if step in known and known[step].since < use <= known[step].until:
            return known[step]
        ev = self._evaluator
        steps, seconds, held, reads, worth, since, until = {step}, ev.seconds[step], 0, set[Id](), 0.0, -1.0, math.inf
        for source in ev.reads[step]:
            there_from = self._there_from(source) if source not in leaving else math.inf
            if there_from < use:
                reads.add(source)  # it is there, or can stay from where it is
                since = max(since, there_from)
                continue
            inner, size = self._step(source - 1, use, leaving, price, known), ev.size[source]
            since, until = max(since, inner.since), min(until, there_from, inner.until)
            if price * size < inner.seconds + price * inner.held:
                held += size
                continue
            if size:
                worth = max(worth, inner.worth, inner.seconds / size)
            new = inner.steps - steps
            seconds += sum(map(ev.seconds.__getitem__, new)) if len(new) < len(inner.steps) else inner.seconds
            steps |= new
            held += inner.held
            reads |= inner.reads
        found = known[step] = _Again(steps, seconds, held, reads, worth, since, until)
        return found
