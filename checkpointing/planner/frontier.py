"""The frontier of a chain: for every amount of memory the fastest schedule that is known.

It is made once for a chain and does not depend on the budget, so the time of what a budget gets never rises as the budget grows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Protocol

from checkpointing.costs import Costs, StepCost, Times
from checkpointing.planner.evaluation import Codes, Evaluation, Evaluator
from checkpointing.planner.moves import FIRST_PEAK, ONE_BY_ONE, Moves, ascend, descend, swap
from checkpointing.planner.units import persistent_codes
from checkpointing.schedules import Schedule
from framework.layers import Spec
from framework.losses import LossFootprint

#: How many amounts of memory are looked at closely: at most, and in a chain of one step. Schedules of long chains take longer to look at,
#: and each of their rungs is many moves wide anyway.
RUNGS, WORK = 128, 12288

#: The same as `WORK` for chains so long that they are searched in one way alone.
LONG_WORK = 16384

#: The most steps of a chain for which there is time to walk in several ways, and to walk to the end more than once.
SHORT, MIDDLE = 56, 128

#: From about how many of the persistent program's schedules the search starts; the others are points alone.
STARTS = 16

#: Times the peak of the lowest start, up to which others count as nearly as low.
NEARLY = 1.5

#: Times the least peak that is known, up to which the last ways to the bottom start, and how many ways in a chain of one step: both what
#: there is to look at and the time to look at it grow with the steps.
CLOSE, WAYS = 1.15, 100_000


class Scheduling(Protocol):
    """What a policy is to the planner."""

    @property
    def name(self) -> str: ...

    def schedule(self, costs: Costs) -> Schedule: ...


@dataclass(frozen=True, slots=True)
class Point:
    """A schedule that no known one beats in both memory and time.

    Attributes:
        peak: The most bytes at once that one shard holds besides its gradient and what lasts.
        seconds: Its time.
        origin: Which of the policies it is; None if it was searched.
        codes: The schedule; see `Evaluator.schedule_of`.
    """

    peak: int
    seconds: float
    origin: int | None
    codes: Codes

    @property
    def time(self) -> tuple[float, int]:
        """See `Evaluation.time`."""
        return self.seconds, len(self.codes)


class Frontier:
    """Points by rising peak and falling time.

    Args:
        evaluator: Of the chain.
        points: Any; those that are beaten are left out. The first stores all.

    Attributes:
        store_all: The peak of the schedule that stores all.
        points: Those that are left.
    """

    def __init__(self, evaluator: Evaluator, points: Sequence[Point]) -> None:
        self._evaluator = evaluator
        self.store_all = points[0].peak
        self.points = _unbeaten(points)

    def within(self, limit: int) -> Point | None:
        """The fastest schedule whose peak does not pass a limit; None if there is none."""
        place = bisect_right(self.points, limit, key=_peak)
        return self.points[place - 1] if place else None

    @property
    def least(self) -> int:
        """The least peak of all."""
        return self.points[0].peak

    def times(self, point: Point) -> list[float]:
        """The seconds of each operation of a point, those of the loss being two."""
        return self._evaluator.times(point.codes)

    def schedule(self, point: Point) -> Schedule:
        """The schedule of a point."""
        return self._evaluator.schedule_of(point.codes)


def _unbeaten(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both memory and time, by rising peak."""
    found: list[Point] = []
    for point in sorted(points, key=_order):
        if not found or point.time < found[-1].time:
            found.append(point)
    return found


def _peak(point: Point) -> int:
    return point.peak


def _order(point: Point) -> tuple[int, float, int, bool, int]:
    """Policies come before what was searched, in their own order."""
    return point.peak, *point.time, point.origin is None, point.origin or 0


def frontier(costs: Costs, policies: Sequence[Scheduling]) -> Frontier:
    """Returns the frontier of a chain; it is remembered.

    Args:
        costs: Costs of a training pass over a shard. Of them only what the pass itself takes counts.
        policies: Where the search starts. The first stores all.
    """
    return _frontier(costs.steps, costs.batch, costs.targets, costs.loss, costs.weights, costs.times, tuple(policies))


@lru_cache(maxsize=32)
def _frontier(
    steps: tuple[StepCost, ...],
    batch: Spec,
    targets: Spec,
    loss: LossFootprint,
    weights: Spec | None,
    times: Times | None,
    policies: tuple[Scheduling, ...],
) -> Frontier:
    costs = Costs(steps, batch, targets, loss, weights, times=times)
    evaluator = Evaluator(costs)
    search = _Search(evaluator)
    for number, policy in enumerate(policies):
        codes = evaluator.codes_of(policy.schedule(costs))
        if codes is not None:
            search.add(evaluator.evaluate(codes), number)
    found = list(persistent_codes(evaluator, search.starts[0].peak))
    for number, codes in enumerate(found):
        search.add(evaluator.evaluate(codes), start=number % max(1, len(found) // STARTS) == 0)
    search.run()
    return Frontier(evaluator, search.points)


class _Search:
    """Walks down from where it starts to the least memory and up again, rung by rung, and remembers all it meets."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.moves = Moves(evaluator)
        self.count = max(16, min(RUNGS, (WORK if evaluator.steps <= MIDDLE else LONG_WORK) // evaluator.steps))
        self.points: list[Point] = []
        self.starts: list[Evaluation] = []  # the first stores all
        self._unbeaten: list[Point] = []  # by rising peak and falling time
        self._started: set[Codes] = set()
        self._climbed: set[tuple[int, Codes]] = set()

    def add(self, evaluation: Evaluation, origin: int | None = None, start: bool = False) -> None:
        point = Point(evaluation.peak, evaluation.seconds, origin, evaluation.codes)
        self.points.append(point)
        place = bisect_left(self._unbeaten, point.peak, key=_peak)
        if not place or point.time < self._unbeaten[place - 1].time:
            beaten = place
            while beaten < len(self._unbeaten) and point.time <= self._unbeaten[beaten].time:
                beaten += 1
            if beaten > place or place == len(self._unbeaten) or point.peak < self._unbeaten[place].peak:
                self._unbeaten[place:beaten] = [point]
        if (start or origin is not None) and evaluation.codes not in self._started:
            self._started.add(evaluation.codes)
            self.starts.append(evaluation)

    def run(self) -> None:
        """Searches a chain, and one for which there is time to do so in several ways."""
        top, steps = self.starts[0], self.moves.evaluator.steps
        if steps <= MIDDLE:
            lowest, short = sorted(self.starts, key=lambda each: (each.peak, *each.time)), steps <= SHORT
            least = min(map(self._to_the_bottom, lowest[:2] if short else [self._quickest(lowest)]))
            rungs = _rungs(least, top.peak, self.count)
            for together, from_there in product((True, False), repeat=2) if short else ((True, True),):
                self._to_the_bottom(self._walk(top, rungs, together, from_there))
            for start in self.starts[1:]:
                self._down_while_best(start, rungs)
            for start in lowest if short else ():
                self._climb(start, rungs[::2])
            self._climb_from_best(top, rungs)
        rungs = self._down_from_best(top)
        self._to_the_bottom_from_several()
        self._climb_from_best(top, rungs)
        self._swap_everywhere()

    def _swap_everywhere(self) -> None:
        """Swaps what is held in the best that is known for each amount of memory, up to the next."""
        limits = [point.peak - 1 for point in self._unbeaten[1:]] + [self._unbeaten[-1].peak]
        for point, limit in zip(list(self._unbeaten), limits, strict=True):
            if (better := swap(self.moves, point.codes, limit)) is not None:
                self.add(better)

    def _to_the_bottom_from_several(self) -> None:
        """Walks down from points that are close to the bottom: one step earlier another way may go a little further."""
        close = [point for point in self._unbeaten if point.peak <= CLOSE * self._unbeaten[0].peak]
        count = min(len(close), max(1, WAYS // self.moves.evaluator.steps**2))
        for number in range(count):
            self._to_the_bottom(self.moves.evaluator.evaluate(close[-1 - number * len(close) // count].codes))

    def _down_from_best(self, at: Evaluation) -> list[int]:
        """Walks down rung by rung, each time from the best that is known, and on as far as it goes; returns the rungs."""
        rungs = _rungs(self._unbeaten[0].peak, at.peak, self.count)
        for limit in rungs[1:]:
            at = self._step_down(at, limit)
        while 0 < at.peak <= rungs[-1]:
            rungs.append(rungs[-1] * 15 // 16)
            at = self._step_down(at, rungs[-1])
        return [*rungs[:-1], at.peak]

    def _step_down(self, at: Evaluation, limit: int) -> Evaluation:
        """Walks down to a rung and keeps again what fits; returns the best that is known there, or how far it went if nothing is."""
        low = descend(self.moves, at, limit)
        if low.peak <= limit:
            low = ascend(self.moves, low, limit)
        self.add(low)
        best = self._best(limit)
        return low if best is None or best.codes == low.codes else self.moves.evaluator.evaluate(best.codes)

    def _quickest(self, lowest: Sequence[Evaluation]) -> Evaluation:
        """Of the starts that are nearly the lowest the one with the fewest operations: long schedules take long to look at."""
        return min((each for each in lowest if each.peak <= NEARLY * lowest[0].peak), key=lambda each: len(each.codes))

    def _climb_from_best(self, at: Evaluation, rungs: Sequence[int]) -> None:
        """Keeps, at each rung from below, what fits besides the best that is known there."""
        for limit in reversed(rungs):
            best = self._best(limit)
            if best is not None:
                at = at if at.codes == best.codes else self.moves.evaluator.evaluate(best.codes)
                at = ascend(self.moves, at, limit)
                self.add(at)

    def _climb(self, start: Evaluation, rungs: Sequence[int]) -> None:
        """Walks up rung by rung, and at each keeps what fits, until it comes where another climb was."""
        at = start
        for limit in reversed(rungs):
            if limit > at.peak:
                if (limit, at.codes) in self._climbed:
                    return
                self._climbed.add((limit, at.codes))
                at = ascend(self.moves, at, limit)
                self.add(at)

    def _walk(self, start: Evaluation, rungs: Sequence[int], together: bool, from_there: bool) -> Evaluation:
        """Walks down rung by rung, and at each keeps again what fits; goes on from there, or from what was before."""
        at = start
        for limit in rungs[:-1]:
            at = descend(self.moves, at, limit, FIRST_PEAK if together else ONE_BY_ONE)
            if at.peak > limit:
                return at
            up = ascend(self.moves, at, limit)
            self.add(up)
            at = up if from_there else at
        return at

    def _to_the_bottom(self, start: Evaluation) -> int:
        """Walks down as far as it goes and returns the peak there."""
        at = start
        while True:
            lower = descend(self.moves, at, at.peak * 15 // 16)
            if lower.peak >= at.peak:
                return at.peak
            at = lower
            self.add(at)

    def _down_while_best(self, start: Evaluation, rungs: Sequence[int]) -> None:
        """Walks down rung by rung as long as nothing that is known is better. The way to the last one is the longest: it was gone once."""
        at = start
        for limit in rungs[:-1]:
            if limit >= at.peak:
                continue
            known = self._best(limit)
            if known is not None and known.time <= at.time:
                return  # on the way down time only grows
            at = descend(self.moves, at, limit)
            if at.peak > limit:
                return
            self.add(at)

    def _best(self, limit: int) -> Point | None:
        place = bisect_right(self._unbeaten, limit, key=_peak)
        return self._unbeaten[place - 1] if place else None


def _rungs(least: int, most: int, count: int) -> list[int]:
    """Amounts of memory from the most to the least, half of them evenly spaced, half of them by their ratio."""
    even = [most - (most - least) * number // (count // 2) for number in range(count // 2 + 1)]
    ratio = (least / most) ** (2 / count) if most else 1.0
    return sorted({*even, *(int(most * ratio**number) for number in range(1, count // 2))}, reverse=True)
