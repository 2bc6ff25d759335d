"""The memory–time curve: the fastest plan known for each budget, beside the lower bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checkpointing.choices import Setting, choices
from checkpointing.costs import Costs, UpdateCost


@dataclass(frozen=True)
class CurvePoint:
    """The plan for one budget.

    Attributes:
        budget: In bytes, of the rank with the most.
        peak: Predicted bytes.
        seconds: Time of a step's forwards and backwards.
        bound: Seconds that no plan within the budget goes below.
        policy: How the plan is made.
    """

    budget: int
    peak: int
    seconds: float
    bound: float
    policy: str

    @property
    def gap(self) -> float:
        """By which part the plan takes longer than the bound."""
        return gap(self.seconds, self.bound)


def gap(seconds: float, bound: float) -> float:
    """By which part a time is above its lower bound; sums of the same times in another order count as equal."""
    return max(0.0, seconds / bound - 1) if bound else 0.0


def least_budget(costs: Costs, shards: int = 1, world: int = 1, purpose: str = "train", offload: bool = False) -> int:
    """Returns the smallest budget in bytes that a plan is known for; where it may offload, one that holds values on disk counts."""
    known = choices(Setting(costs, shards, world, purpose))
    return min(known.least, known.least_on_disk) if offload else known.least


def memory_time_curve(
    costs: Costs,
    points: int = 100,
    shards: int = 1,
    world: int = 1,
    progress: Callable[[int, int], None] | None = None,
    bucket_nbytes: int | None = None,
    updates: tuple[UpdateCost, ...] = (),
) -> list[CurvePoint]:
    """Returns the plans for budgets that are evenly spaced from the smallest feasible one to what storing everything takes.

    Args:
        costs: Costs of a training pass over a shard.
        points: How many budgets, at least 2.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        progress: Told how many of how many are planned.
        bucket_nbytes: Of how many bytes of gradients a reduction across ranks begins at once; see `checkpointing.plan_run`.
        updates: See `plan_run`.

    Raises:
        ValueError: There are fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"a curve has at least 2 points, but got {points}")
    setting = Setting(costs, shards, world, bucket_nbytes=bucket_nbytes, updates=updates)
    known = choices(setting)
    most = max(known.least, known.store_all)
    bounds = setting.bounds()
    found = []
    for number in range(points):
        budget = known.least + (most - known.least) * number // (points - 1)
        choice = known.within(budget)
        assert choice is not None
        bound = max(each.seconds(budget) for each in bounds)
        found.append(CurvePoint(budget, choice.peak, choice.seconds, bound, choice.policy.name))
        if progress is not None:
            progress(number + 1, points)
    return found
