"""Small changes to a schedule: drop a value that lies idle at the peak and make it again, or keep one that was made again.

Both leave the order of backwards alone, so whatever they give is a valid schedule. What they find lies outside the plans that never
drop a value before its use: any idle value may go, also one that was made again for the sake of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import NamedTuple

import numpy as np

from checkpointing.planner.drops import Drop, Drops
from checkpointing.planner.evaluation import Codes, Evaluation, Evaluator, Id

#: How many of the best moves are tried one by one.
TRIES = 8

#: How much `descend` drops at once.
ONE_BY_ONE, FIRST_PEAK, ALL_PEAKS = range(3)


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


class _Swap(NamedTuple):
    """A forward that could be left out if its output were held instead of its input.

    Attributes:
        place: Its place in the schedule.
        before: The place where its output is used or made before.
        more: By how many bytes the output is larger than the input.
    """

    place: int
    before: int
    more: int


class Moves:
    """The moves of one chain."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.peaks: dict[Codes, int] = {}  # of what `ascend` tried: the peak, or bytes above what it was tried for

    def keeps(self, at: Evaluation, limit: int) -> list[_Keep]:
        """The forwards of values that, as it seems, could be kept instead, what saves the most time for its bytes first."""
        ev, inside, peak = self.evaluator, at.inside, at.inside.index(at.peak)
        touched: dict[Id, int] = {}
        found = []
        for place, code in enumerate(at.codes):
            if code < ev.steps:
                before = touched.get(1 + code)
                if before is not None:
                    more = ev.size[1 + code] if ev.root[1 + code] == 1 + code else 0
                    over_peak = before < peak < place and more + at.peak > limit  # which most are
                    if not over_peak and more + max(inside[before + 1 : place], default=0) <= limit:
                        found.append(_Keep(-ev.seconds[code] / (more + 1), place, before, more))
            for value in ev.touched[code]:
                touched[value] = place
        return sorted(found, key=lambda keep: (keep.ratio, keep.place))

    def swaps(self, codes: Codes) -> list[_Swap]:
        """What could be held in place of an input that waits for one forward alone, at least since this forward's output was let go.

        `keeps` takes for granted that the input stays.
        """
        ev = self.evaluator
        touched: dict[Id, int] = {}
        waiting: dict[Id, _Swap] = {}  # by inputs that nobody has read or made since
        found: list[_Swap] = []
        for place, code in enumerate(codes):
            if waiting:
                for value in ev.reads[code]:
                    waiting.pop(value, None)
                for value in ev.makes[code]:
                    if value in waiting:
                        found.append(waiting.pop(value))
            if code < ev.steps and (before := touched.get(1 + code)) is not None:
                for value in ev.reads[code]:
                    if value and touched[value] <= before:
                        waiting[value] = _Swap(place, before, ev.size[1 + code] - ev.size[value])
            for value in ev.touched[code]:
                touched[value] = place
        return [*found, *waiting.values()]


def descend(moves: Moves, start: Evaluation, limit: int, together: int = ALL_PEAKS) -> Evaluation:
    """Drops what costs the least time for its bytes until a schedule fits a limit, or as far as that goes.

    As many are dropped at once as seem to be enough, and one by one where that does not lower the peak, or is not wanted: it takes longer, and
    may be a little better or worse.

    Args:
        moves: Of the chain.
        start: Where to begin.
        limit: In bytes, like `Evaluation.peak`.
        together: How many may be dropped at once: `ONE_BY_ONE`, what seems enough at the `FIRST_PEAK`, or at `ALL_PEAKS`.
    """
    best = start
    while best.peak > limit:
        for drops in _tries(moves, best, limit, together):
            tried = moves.evaluator.evaluate(_without(best.codes, drops), best.peak)
            if _lower(tried, best):
                best = tried
                break
        else:
            return best
    return best


def _tries(moves: Moves, at: Evaluation, limit: int, together: int) -> Iterator[list[Drop]]:
    """Yields what to drop: what seems enough at all peaks, what seems enough at the first of them, and the best there one by one."""
    could, peak = Drops(moves.evaluator, at), at.inside.index(at.peak)
    found, again = tee(could.at(peak))
    if together:
        chosen = _Chosen(at.inside)
        first = chosen.add(found, peak, limit)
        drops = list(first)
        while together == ALL_PEAKS and chosen.profile[place := chosen.highest()] > limit:
            more = chosen.add(could.at(place), place, limit)
            if not more:
                break
            drops += more
        if len(drops) > len(first):
            yield drops
        yield first
    yield from ([drop] for drop in islice(again, TRIES))


class _Chosen:
    """Drops of which none reads what another drops, and what operations take with them, as it seems."""

    def __init__(self, inside: Sequence[int]) -> None:
        self.profile = np.array(inside, np.int64)
        self.gone: set[Id] = set()
        self.read: set[Id] = set()

    def highest(self) -> int:
        """The place that takes the most."""
        return int(self.profile.argmax())

    def add(self, found: Iterable[Drop], place: int, limit: int) -> list[Drop]:
        """Takes the first drops that together bring a place to a limit, and returns them."""
        profile, chosen = self.profile, []
        gone, read = self.gone, self.read
        for drop in found:
            if profile[place] <= limit:
                break
            if gone.isdisjoint(drop.reads | drop.values) and read.isdisjoint(drop.values):
                chosen.append(drop)
                gone |= drop.values
                read |= drop.reads
                profile[drop.start : drop.stop] -= drop.freed
        return chosen


def _without(codes: Codes, drops: Sequence[Drop]) -> Codes:
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


def swap(moves: Moves, codes: Codes, limit: int) -> Evaluation | None:
    """Holds, within a limit, outputs in place of inputs that wait to make them again, as often as that goes; None if it saves nothing.

    All at once, then the last one alone, and so on.
    """
    best: Evaluation | None = None
    while swaps := moves.swaps(codes if best is None else best.codes):
        at = best or moves.evaluator.evaluate(codes)
        places = sorted(
            each.place for each in swaps if each.more + max(at.inside[each.before + 1 : each.place], default=0) <= limit
        )
        for left_out in ([places] if len(places) > 1 else []) + [[place] for place in reversed(places)]:
            kept = tuple(code for place, code in enumerate(at.codes) if place not in left_out)
            tried = moves.evaluator.evaluate(kept, limit)
            if tried.peak <= limit and tried.time < at.time:
                best = tried
                break
        else:
            break
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
