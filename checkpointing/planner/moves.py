"""Small changes to a schedule: drop a value that lies idle at the peak and make it again, or keep one that was made again.

Both leave the order of backwards alone, so whatever they give is a valid schedule. What they find lies outside the plans that never
drop a value before its use: any idle value may go, also one that was made again for the sake of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice, tee
from typing import NamedTuple

from checkpointing.planner.evaluation import Codes, Evaluation, Evaluator, Id

#: How many of the best moves are tried one by one.
TRIES = 8


class _Drop(NamedTuple):
    """A way to drop a buffer at the peak.

    Attributes:
        ratio: Seconds that it costs per byte that it frees.
        root: The value that the buffer is named by.
        freed: Bytes that are free at the peak.
        inserted: Forwards to run, and before which places of the schedule.
        values: What is dropped.
        reads: What is held at the peak and read by the forwards.
    """

    ratio: float
    root: Id
    freed: int
    inserted: tuple[tuple[int, tuple[int, ...]], ...]
    values: frozenset[Id]
    reads: frozenset[Id]


class _Keep(NamedTuple):
    """A forward that could be left out.

    Attributes:
        ratio: Seconds that it adds per byte that keeping its output takes: the more it saves the smaller.
        place: Its place in the schedule.
        before: The place where its output is used or made before, from where on it would be kept.
        nbytes: Of the output.
    """

    ratio: float
    place: int
    before: int
    nbytes: int


class _Again(NamedTuple):
    """How to make a value again: forwards to run before the place where it is used, and what that costs.

    Attributes:
        steps: The forwards.
        seconds: Their time.
        held: Bytes of other values that must be kept over the peak for it.
        reads: What is there and is read.
    """

    steps: frozenset[int]
    seconds: float
    held: int
    reads: frozenset[Id]


class Moves:
    """The moves of one chain."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.peaks: dict[Codes, int] = {}  # of what `ascend` tried: the peak, or bytes above what it was tried for
        self._root = list(range(1 + evaluator.steps))  # of each output: the value whose buffer it names
        for step, aliases in enumerate(evaluator.aliases):
            if aliases:
                self._root[1 + step] = self._root[evaluator.inputs[step][0]]

    def drops(self, at: Evaluation) -> Iterator[_Drop]:
        """Yields the ways to drop a value that lies idle at the peak, what costs the least time for its bytes first.

        They are looked for as they are asked for: what a value's own forward takes is a lower bound of its cost.
        """
        ev, codes, peak = self.evaluator, at.codes, at.inside.index(at.peak)
        idle = [gap for gap in at.gaps if gap[1] < peak < gap[2]]
        here = {value for value, *_ in idle} | set(ev.uses[codes[peak]]) | set(ev.makes[codes[peak]])
        made: dict[int, int] = {}  # of each step the first forward after the peak
        for place in range(len(codes) - 1, peak, -1):
            made[codes[place]] = place
        groups: dict[Id, list[tuple[Id, int]]] = {}  # values that name one buffer, and their next uses
        for value, _, use in idle:
            groups.setdefault(self._root[value] if value <= ev.steps else value, []).append((value, use))
        busy = {self._root[value] for value in here if value <= ev.steps} - groups.keys()
        # By ratio, least first: 0 and the root of a group that is yet to be looked at, or 1 and a drop.
        queue: list[tuple[float, int, Id, int, _Drop | None]] = []
        for root, members in groups.items():
            if root and root not in busy and ev.size[root]:
                least = sum(ev.seconds[ev.step_of(value)] for value, _ in members)
                queue.append((least / ev.size[root], 0, root, 0, None))
        heapify(queue)
        while queue:
            _, _, root, _, drop = heappop(queue)
            if drop is not None:
                yield drop
                continue
            for number, drop in enumerate(self._drops_of(root, groups[root], here, made)):
                heappush(queue, (drop.ratio, 1, root, number, drop))

    def _drops_of(
        self, root: Id, members: list[tuple[Id, int]], here: set[Id], made: dict[int, int]
    ) -> Iterator[_Drop]:
        """The cheapest way to drop a buffer without keeping anything for it, and one that keeps what is worth it."""
        values, size = frozenset(value for value, _ in members), self.evaluator.size[root]
        for keeping in (False, True):
            options = []
            for value, use in members:
                again = self._again(value, use, here, values, made, None)
                if keeping and again.seconds:
                    again = self._again(value, use, here, values, made, again.seconds / size)
                options.append((use, again))
            freed = size - sum(again.held for _, again in options)
            if freed > 0:
                seconds = sum(again.seconds for _, again in options)
                inserted = tuple((use, tuple(sorted(again.steps))) for use, again in options)
                reads = frozenset().union(*(again.reads for _, again in options))
                yield _Drop(seconds / freed, root, freed, inserted, values, reads)
            if all(len(again.steps) == 1 for _, again in options):
                break

    def _again(
        self, value: Id, use: int, here: set[Id], leaving: frozenset[Id], made: dict[int, int], price: float | None
    ) -> _Again:
        """The cheapest way to make a value again before place `use`; another one may be kept instead at a price per byte.

        With no price nothing is kept. What is here may be read, but for what is leaving.
        """
        ev = self.evaluator
        known: dict[int, _Again] = {}

        def step_again(step: int) -> _Again:
            if step not in known:
                steps, seconds, held, reads = {step}, ev.seconds[step], 0, set()
                for source in ev.uses[step]:
                    there = source == 0 or (source in here and source not in leaving)
                    if there or made.get(source - 1, use) < use:
                        reads.add(source)  # it is there, or can stay from where it is
                        continue
                    inner = step_again(source - 1)
                    if price is not None and price * ev.size[source] < inner.seconds + price * inner.held:
                        held += ev.size[source]
                        continue
                    new = inner.steps - steps
                    seconds += sum(map(ev.seconds.__getitem__, new)) if len(new) < len(inner.steps) else inner.seconds
                    steps |= new
                    held += inner.held
                    reads |= inner.reads
                known[step] = _Again(frozenset(steps), seconds, held, frozenset(reads))
            return known[step]

        return step_again(ev.step_of(value))

    def keeps(self, at: Evaluation, limit: int) -> list[_Keep]:
        """The forwards of values that, as it seems, could be kept instead, what saves the most time for its bytes first."""
        ev, inside, peak = self.evaluator, at.inside, at.inside.index(at.peak)
        touched: dict[Id, int] = {}
        found = []
        for place, code in enumerate(at.codes):
            if code < ev.steps:
                before = touched.get(1 + code)
                if before is not None:
                    more = ev.size[1 + code] if self._root[1 + code] == 1 + code else 0
                    over_peak = before < peak < place and more + at.peak > limit  # which most are
                    if not over_peak and more + max(inside[before + 1 : place], default=0) <= limit:
                        found.append(_Keep(-ev.seconds[code] / (more + 1), place, before, more))
            for value in ev.touched[code]:
                touched[value] = place
        return sorted(found, key=lambda keep: (keep.ratio, keep.place))


def descend(moves: Moves, start: Evaluation, limit: int, together: bool = True) -> Evaluation:
    """Drops what costs the least time for its bytes until a schedule fits a limit, or as far as that goes.

    As many are dropped at once as seem to be enough, and one by one where that does not lower the peak, or is not wanted: it takes longer, and
    may be a little better or worse.

    Args:
        moves: Of the chain.
        start: Where to begin.
        limit: In bytes, like `Evaluation.peak`.
        together: Whether several may be dropped at once.
    """
    best = start
    while best.peak > limit:
        found, again = tee(moves.drops(best))
        enough = [_enough(found, best.peak - limit)] if together else []
        for drops in chain(enough, ([drop] for drop in islice(again, TRIES))):
            tried = moves.evaluator.evaluate(_without(best.codes, drops), best.peak)
            if _lower(tried, best):
                best = tried
                break
        else:
            return best
    return best


def _enough(found: Iterable[_Drop], nbytes: int) -> list[_Drop]:
    """The first drops that together free some bytes, of which none reads what another drops."""
    chosen: list[_Drop] = []
    gone: set[Id] = set()
    read: set[Id] = set()
    for drop in found:
        if nbytes <= 0:
            break
        if gone.isdisjoint(drop.reads | drop.values) and read.isdisjoint(drop.values):
            chosen.append(drop)
            gone |= drop.values
            read |= drop.reads
            nbytes -= drop.freed
    return chosen


def _without(codes: Codes, drops: Sequence[_Drop]) -> Codes:
    """A schedule with the forwards of some drops."""
    places: dict[int, set[int]] = {}
    for drop in drops:
        for use, steps in drop.inserted:
            places.setdefault(use, set()).update(steps)
    longer = list(codes)
    for use in sorted(places, reverse=True):
        longer[use:use] = sorted(places[use])
    return tuple(longer)


def _lower(tried: Evaluation, best: Evaluation) -> bool:
    """Whether one peak is below another, or is the same, but reached by fewer operations."""
    if tried.peak != best.peak:
        return tried.peak < best.peak
    return tried.inside.count(best.peak) < best.inside.count(best.peak)


def ascend(moves: Moves, start: Evaluation, limit: int) -> Evaluation:
    """Keeps what fits a limit, most time saved for its bytes first, until nothing more fits.

    As many are kept at once as seem to fit, fewer where they do not, and then one by one.
    """
    best = start
    while True:
        found = moves.keeps(best, limit)
        together, tries = _fitting(found, best.inside, limit), []
        while len(together) > 1:
            tries.append(together)
            together = together[: len(together) // 2]
        for keeps in (*tries, *([keep] for keep in found[:TRIES])):
            left_out = {keep.place for keep in keeps}
            codes = tuple(code for place, code in enumerate(best.codes) if place not in left_out)
            if moves.peaks.get(codes, 0) > limit:
                continue
            tried = moves.evaluator.evaluate(codes, limit)
            moves.peaks[codes] = tried.peak
            if tried.peak <= limit and tried.time < best.time:
                best = tried
                break
        else:
            return best


def _fitting(found: Sequence[_Keep], inside: Sequence[int], limit: int) -> list[_Keep]:
    """The first keeps that together fit a limit, as it seems."""
    profile, chosen = list(inside), []
    for keep in found:
        over = profile[keep.before + 1 : keep.place]
        if keep.nbytes + max(over, default=0) <= limit:
            profile[keep.before + 1 : keep.place] = [each + keep.nbytes for each in over]
            chosen.append(keep)
    return chosen
