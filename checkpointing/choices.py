"""What the plans of a run are chosen from: schedules with the peak and the time of whole steps, of which no plan need be made.

All plans of a run have the same around the passes of shards, so the plan that stores everything is simulated once, and what others take
follows from one pass of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

from checkpointing.bounds import Bounds
from checkpointing.costs import Costs, UpdateCost
from checkpointing.operations import Backward, Drop, Forward, Load, Loss, Reduce
from checkpointing.plan import Plan
from checkpointing.planner.frontier import Frontier, Point, frontier
from checkpointing.policies import Budget, Policy, StoreAll, candidates, offloading_candidates
from checkpointing.reduction_tree import added_by_layer, roots_of, shards_of, sums_at
from checkpointing.schedules import Schedule, evaluation, make_plan, shard_operations
from checkpointing.simulation import simulate


@dataclass(frozen=True)
class Choice:
    """A schedule, and what steps by it take.

    Attributes:
        policy: Whose schedule it is; `Budget` if it was searched.
        peak: In bytes, of the rank that holds the most.
        shard_seconds: Time of a shard's pass.
        seconds: Time of a step of the rank that takes longest.
        point: Of the frontier, if it is one.
    """

    policy: Policy
    peak: int
    shard_seconds: float
    seconds: float
    point: Point | None = None


@dataclass(frozen=True)
class Setting:
    """What is planned, apart from the schedule.

    Attributes:
        costs: Costs of a training pass over a shard.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        purpose: Of the training plans: train or gradient.
        bucket_nbytes: Of how many bytes of gradients a reduction across ranks begins at once; None for one of all at the end.
        updates: What the optimizer takes on each rank, where its state is shared out; empty where it is what `costs` say.
    """

    costs: Costs
    shards: int = 1
    world: int = 1
    purpose: str = "train"
    bucket_nbytes: int | None = None
    updates: tuple[UpdateCost, ...] = ()

    def costs_of(self, rank: int) -> Costs:
        """The costs on a rank: they differ in what the optimizer takes."""
        return self.costs.with_update(self.updates[rank]) if self.updates else self.costs

    def bounds(self, disk: bool = False) -> list[Bounds]:
        """The bounds of each rank's plans."""
        return [Bounds(self.costs_of(rank), self.shards, self.world, rank, disk) for rank in range(self.world)]

    def plans(self, schedule: Schedule, policy: str) -> tuple[Plan, ...]:
        """The plan of each rank."""
        how = self.shards, self.world
        return tuple(
            make_plan(schedule, self.costs_of(rank), policy, self.purpose, *how, rank, self.bucket_nbytes)
            for rank in range(self.world)
        )

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        # All but what holds bytes through the step is hashable.
        values = (getattr(self.costs, field.name) for field in fields(self.costs))
        told = (tuple(sorted(value.items())) if isinstance(value, Mapping) else value for value in values)
        return (*told, self.shards, self.world, self.purpose, self.bucket_nbytes, self.updates)


def unlike(plans: Sequence[Plan]) -> list[Plan]:
    """Leaves out plans of ranks whose sums of gradients come and go as another's, beside as much: these hold as much and take as long."""
    found: dict[tuple[object, ...], Plan] = {}
    for plan in plans:
        mine = shards_of(plan.shards, plan.world, plan.rank)
        sums = tuple((sums_at(mine, shard), added_by_layer(mine, shard)) for shard in mine)
        beside = sum(plan.costs.static.values()), plan.costs.update_workspace
        found.setdefault((plan.purpose, plan.rank == 0, sums, len(roots_of(mine)), *beside), plan)
    return list(found.values())


@lru_cache(maxsize=8)
def choices(setting: Setting) -> Choices:
    """Returns the choices of a setting; they are remembered."""
    return Choices(setting)


class Choices:
    """The choices of a setting, each made when it is first asked for.

    Args:
        setting: What is planned.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.costs = setting, setting.costs
        # The shard beside which most is held decides.
        self._passing = self.costs.of_the_pass(setting.shards, setting.world)
        self._most_shards = len(shards_of(setting.shards, setting.world, 0))

    @cached_property
    def everything(self) -> tuple[Plan, ...]:
        """The plans that store everything."""
        return self.setting.plans(StoreAll().schedule(self.costs), StoreAll.name)

    @cached_property
    def store_all(self) -> int:
        """The peak of the plans that store everything, of the rank that holds the most."""
        return max(plan.peak for plan in unlike(self.everything))

    @cached_property
    def store_all_activation_nbytes(self) -> int:
        """What that rank then holds besides parameters, gradients and optimizer state."""
        largest = max(unlike(self.everything), key=lambda plan: plan.peak)
        return largest.simulation.activation_nbytes

    @cached_property
    def least(self) -> int:
        """The least peak that is known without a disk."""
        return max(self._frontier.least + self._beside, self._elsewhere)

    @cached_property
    def least_on_disk(self) -> int:
        """The least peak that is known of plans that hold values on disk."""
        return min(choice.peak for choice in self.on_disk)

    def within(self, budget: int) -> Choice | None:
        """The fastest choice within a budget that holds nothing on disk; None if there is none."""
        point = self._frontier.within(budget - self._beside)
        if point is None or self._elsewhere > budget:
            return None
        if point.codes not in self._made:
            policy = Budget() if point.origin is None else self._candidates[point.origin]
            times = self._frontier.times(point)
            seconds = math.fsum(times), math.fsum(times * self._most_shards)
            self._made[point.codes] = Choice(policy, self._peak(point.peak), *seconds, point)
        return self._made[point.codes]

    def plans(self, policy: Policy, point: Point | None = None) -> tuple[Plan, ...]:
        """The plans of a policy or a point of the frontier, for each rank."""
        if isinstance(policy, StoreAll):
            return self.everything
        schedule = self._frontier.schedule(point) if point else policy.schedule(self.costs)
        return self.setting.plans(schedule, policy.name)

    @cached_property
    def on_disk(self) -> list[Choice]:
        """What holds values on disk."""
        return [self.of(policy) for policy in offloading_candidates(self.costs)]

    def of(self, policy: Policy) -> Choice:
        """What a policy takes."""
        operations = [Load(0), *shard_operations(policy.schedule(self.costs), self._passing)]
        found = simulate(operations, self._passing, "gradient", 1, 0)
        # The disk has nothing to do when a shard ends, so each takes as long.
        seconds = found.seconds * self._most_shards
        inside = found.peak - found.static - self._passing.gradient_nbytes
        return Choice(policy, self._peak(inside), found.seconds, seconds)

    def _peak(self, inside: int) -> int:
        return max(inside + self._beside, self._elsewhere)

    @cached_property
    def _made(self) -> dict[tuple[int, ...], Choice]:
        return {}

    @cached_property
    def _candidates(self) -> list[Policy]:
        return candidates(self.costs)

    @cached_property
    def _frontier(self) -> Frontier:
        return frontier(self._passing, candidates(self._passing))

    @cached_property
    def _moments(self) -> tuple[int, int]:
        """The most bytes while a shard's pass runs where everything is stored, and at other moments.

        Of an optimizer's state that is shared out, ranks hold more or less by a block. Each counts here as if it held as much as the one with
        the most: which rank has the peak under another schedule is not known here, and a plan must fit all of them.
        """
        inside, elsewhere = 0, 0
        most = max(plan.simulation.static for plan in self.everything)
        for plan in unlike(self.everything):
            less = most - plan.simulation.static
            for operation, moment in zip(plan.operations, plan.simulation.timeline, strict=True):
                if isinstance(operation, Forward | Loss | Backward):
                    inside = max(inside, moment.inside + less)
                elif not isinstance(operation, Drop | Reduce):  # during which nothing is made
                    elsewhere = max(elsewhere, moment.inside + less)
        return inside, elsewhere

    @property
    def _beside(self) -> int:
        """The most bytes held beside the pass of a shard while it runs."""
        return self._moments[0] - self._frontier.store_all

    @property
    def _elsewhere(self) -> int:
        return self._moments[1]


@lru_cache(maxsize=8)
def evaluations(setting: Setting) -> tuple[Plan, ...]:
    """The plans of a validation batch for each rank; they are remembered."""
    return setting.plans(evaluation(setting.costs), "")
