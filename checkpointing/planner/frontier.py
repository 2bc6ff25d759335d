"""The frontier of a chain: for every amount of memory the fastest schedule that is known.

It is made once for a chain and does not depend on the budget, so the time of what a budget gets never rises as the budget grows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from checkpointing.costs import Costs, StepCost, Times
from checkpointing.planner.evaluation import Codes, Evaluation, Evaluator
from checkpointing.planner.moves import Moves, ascend, descend
from checkpointing.schedules import Schedule
from framework.layers import Spec
from framework.losses import LossFootprint

#: How many amounts of memory are looked at closely, evenly spaced from the least to all: at most, and in a chain of one step. Schedules of
#: long chains take longer to look at, and each of their rungs is many moves wide anyway.
RUNGS, WORK = 64, 8192


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
        points: Those that are left.
        store_all: The peak of the schedule that stores all.
    """

    def __init__(self, evaluator: Evaluator, points: Sequence[Point]) -> None:
        self._evaluator = evaluator
        self.store_all = points[0].peak
        self.points: list[Point] = []
        for point in sorted(points, key=_order):
            if not self.points or point.time < self.points[-1].time:
                self.points.append(point)
        self._peaks = [point.peak for point in self.points]

    def within(self, limit: int) -> Point | None:
        """The fastest schedule whose peak does not pass a limit; None if there is none."""
        place = bisect_right(self._peaks, limit)
        return self.points[place - 1] if place else None

    @property
    def least(self) -> int:
        """The least peak of all."""
        return self._peaks[0]

    def schedule(self, point: Point) -> Schedule:
        """The schedule of a point."""
        return self._evaluator.schedule_of(point.codes)


def _order(point: Point) -> tuple[int, float, int, bool, int]:
    """Policies come before what was searched, in their own order."""
    return point.peak, *point.time, point.origin is None, point.origin or 0


def frontier(costs: Costs, policies: Sequence[Scheduling]) -> Frontier:
    """Returns the frontier of a chain; it is remembered.

    Args:
        costs: Costs of a training pass over a shard. Of them only what the pass itself takes counts.
        policies: Where the search starts. The first stores all.
    """
    return _frontier(costs.steps, costs.batch, costs.targets, costs.loss, costs.times, tuple(policies))


@lru_cache(maxsize=32)
def _frontier(
    steps: tuple[StepCost, ...],
    batch: Spec,
    targets: Spec,
    loss: LossFootprint,
    times: Times | None,
    policies: tuple[Scheduling, ...],
) -> Frontier:
    costs = Costs(steps, batch, targets, loss, times=times)
    evaluator = Evaluator(costs)
    search = _Search(evaluator)
    for number, policy in enumerate(policies):
        search.add(evaluator.evaluate(evaluator.codes_of(policy.schedule(costs))), number)
    search.run()
    return Frontier(evaluator, search.points)


class _Search:
    """Walks down from the policies to the least memory and up again, rung by rung, and remembers all it meets."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.moves = Moves(evaluator)
        self.rungs = max(16, min(RUNGS, WORK // evaluator.steps))
        self.points: list[Point] = []
        self.policies: list[Evaluation] = []

    def add(self, evaluation: Evaluation, origin: int | None = None) -> None:
        self.points.append(Point(evaluation.peak, evaluation.seconds, origin, evaluation.codes))
        if origin is not None:
            self.policies.append(evaluation)

    def run(self) -> None:
        top = self.policies[0]
        least = min(self._bottom(start) for start in self._lowest(1))
        span, at = top.peak - least, top
        rungs = [top.peak - span * rung // self.rungs for rung in range(self.rungs + 1)]
        known: dict[int, Evaluation] = {}
        for limit in rungs:
            at = descend(self.moves, at, limit)
            if at.peak > limit:
                break
            known[limit] = at = ascend(self.moves, at, limit)
            self.add(at)
        least = min(least, self._bottom(at))
        for limit in reversed(rungs):
            best = Frontier(self.moves.evaluator, self.points).within(limit)
            if best is not None and (limit not in known or best.time < known[limit].time):
                self.add(ascend(self.moves, self.moves.evaluator.evaluate(best.codes), limit))

    def _lowest(self, count: int) -> list[Evaluation]:
        """The policies with the least peaks and store-all."""
        return sorted(self.policies, key=lambda each: (each.peak, *each.time))[:count]

    def _bottom(self, start: Evaluation) -> int:
        """Walks down as far as it goes and returns the peak there."""
        at = start
        while True:
            lower = descend(self.moves, at, at.peak * (self.rungs - 1) // self.rungs)
            if lower.peak >= at.peak:
                return at.peak
            at = lower
            self.add(at)
