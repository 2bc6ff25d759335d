"""The plans of a run: the policy that was named or what the planner finds for a budget, for every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checkpointing.costs import Costs
from checkpointing.operations import Backward, Drop, Forward, Loss, Reduce
from checkpointing.plan import Plan
from checkpointing.planner.frontier import Frontier, frontier
from checkpointing.policies import Budget, Policy, StoreAll, candidates, offloading_candidates
from checkpointing.schedules import Schedule, evaluation, make_plan
from framework.sizes import format_size


class InfeasibleBudget(ValueError):  # noqa: N818  (the name that callers act on)
    """A budget that no plan meets, or that a named policy does not.

    Attributes:
        smallest: The smallest budget in bytes that would do.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.smallest)


@dataclass(frozen=True)
class RunPlans:
    """The plans of a run.

    Attributes:
        policy: The policy that was named or chosen.
        train: The plan of a training step for each rank.
        evaluate: The plan of a validation batch for each rank (none if there is no validation).
        store_all_activation_nbytes: What StoreAll would hold at its peak besides parameters, gradients and optimizer state.
    """

    policy: Policy
    train: tuple[Plan, ...]
    evaluate: tuple[Plan, ...]
    store_all_activation_nbytes: int

    @property
    def peak(self) -> int:
        """The predicted peak of the rank that holds the most, in bytes."""
        return max(plan.peak for plan in (*self.train, *self.evaluate))

    @property
    def activation_nbytes(self) -> int:
        """What the rank with the most holds at its peak besides parameters, gradients and optimizer state."""
        return _largest(self.train).simulation.activation_nbytes


def plan_run(
    costs: Costs,
    evaluation_costs: Costs | None = None,
    policy: Policy | None = None,
    budget: int | None = None,
    shards: int = 1,
    world: int = 1,
    purpose: str = "train",
    offload: bool = False,
    bucket_nbytes: int | None = None,
) -> RunPlans:
    """Chooses a policy and plans every rank of a run.

    All ranks take one policy, one that fits the rank with the most. Without policy and budget it is StoreAll; with a budget alone,
    or the policy `Budget`, the fastest schedule that the planner knows and that fits: all policies are among them, so it is never worse than
    any. Its time never rises as the budget grows. Of schedules of the same time the one with the fewest operations is taken, then the one with
    the lowest peak; where that is a policy's, `RunPlans.policy` is that policy, else `Budget`. What holds values on disk is taken where it is
    faster than all else that fits.

    Args:
        costs: Costs of a training pass over a shard.
        evaluation_costs: Costs of a validation pass over a shard.
        policy: The policy.
        budget: The most bytes of any rank.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        purpose: Of the training plans: train or gradient.
        offload: Whether a budget may choose plans that hold values on disk.
        bucket_nbytes: Of how many bytes of gradients a reduction across ranks begins at once; None for one of all at the end.

    Raises:
        InfeasibleBudget: The policy does not fit the budget, or nothing does; the message names the smallest that would.
        ValueError: The policy `Budget` without a budget; or a budget, and a layer whose bytes depend on the data.
    """
    if budget is not None:
        for known in (costs, evaluation_costs):
            _require_known_bytes(known)
    if isinstance(policy, Budget) and budget is None:
        raise ValueError("the policy 'budget' needs a budget; give --memory-budget, for example engine:64MiB")
    evaluate: tuple[Plan, ...] = ()
    if evaluation_costs is not None:
        evaluate = _plans(evaluation(evaluation_costs), evaluation_costs, "", "evaluate", shards, world)

    def planned(candidate: Policy) -> RunPlans:
        train = _plans(candidate.schedule(costs), costs, candidate.name, purpose, shards, world, bucket_nbytes)
        return RunPlans(candidate, train, evaluate, store_all)

    everything = _plans(StoreAll().schedule(costs), costs, StoreAll.name, purpose, shards, world, bucket_nbytes)
    store_all = _largest(everything).simulation.activation_nbytes
    if policy is not None and not isinstance(policy, Budget):
        chosen = planned(policy)
        if budget is not None and chosen.peak > budget:
            raise InfeasibleBudget(_too_small(f"the policy {policy.name}", budget, chosen.peak), chosen.peak)
        return chosen
    if budget is None:
        return planned(StoreAll())
    passing = costs.of_the_pass(shards, world)
    best = frontier(passing, candidates(passing))
    beside, elsewhere = _besides_the_pass(everything, best)
    elsewhere = max([elsewhere, *(plan.peak for plan in evaluate)])
    point, fitting = best.within(budget - beside), []
    if point is not None and elsewhere <= budget:
        taken = Budget() if point.origin is None else candidates(costs)[point.origin]
        train = _plans(best.schedule(point), costs, taken.name, purpose, shards, world, bucket_nbytes)
        fitting.append(RunPlans(taken, train, evaluate, store_all))
    on_disk = [planned(candidate) for candidate in offloading_candidates(costs)] if offload or not fitting else []
    if offload:
        fitting += [plans for plans in on_disk if plans.peak <= budget]
    if not fitting:
        raise _infeasible(budget, max(best.least + beside, elsewhere), min(plans.peak for plans in on_disk), offload)
    # min keeps the first of equals, which holds nothing on disk.
    return min(fitting, key=_seconds)


def _seconds(plans: RunPlans) -> float:
    """The time of the slowest rank."""
    return max(plan.simulation.seconds for plan in plans.train)


def _infeasible(budget: int, smallest: int, with_disk: int, offload: bool) -> InfeasibleBudget:
    """The error of a budget that nothing meets; where that is so without a disk alone, it says what one would do."""
    if offload:
        smallest = min(smallest, with_disk)
    message = _too_small("every known plan", budget, smallest)
    if with_disk < smallest:
        message += (
            f"; with values on disk {with_disk:,} bytes (engine:{with_disk}) are enough: name a folder for them with --offload-dir "
            "(offload_dir in Python)"
        )
    return InfeasibleBudget(message, smallest)


def _require_known_bytes(costs: Costs | None) -> None:
    """Raises if a layer takes bytes that nobody knows beforehand."""
    for step in costs.steps if costs is not None else ():
        if spread := step.footprint.heap_spread:
            raise ValueError(
                f"no memory budget can be promised: what step {step.path!r} ({step.kind}) takes from plain NumPy depends on its data, "
                f"and differed by {spread:,} bytes between draws. Let the sizes of what apply makes depend on shapes alone (np.where "
                "instead of x[mask]); or write a footprint(self, x, training=True) that says the most, dataclasses.replace("
                "super().footprint(x, training), unmeasured=False, forward_heap=..., backward_heap=...); or train without a budget"
            )


def _plans(
    schedule: Schedule,
    costs: Costs,
    policy: str,
    purpose: str,
    shards: int,
    world: int,
    bucket_nbytes: int | None = None,
) -> tuple[Plan, ...]:
    ranks = range(world)
    return tuple(make_plan(schedule, costs, policy, purpose, shards, world, rank, bucket_nbytes) for rank in ranks)


def _besides_the_pass(everything: Sequence[Plan], best: Frontier) -> tuple[int, int]:
    """What all plans of a run have in common: the most bytes held beside the pass of a shard while it runs, and at other moments."""
    inside, elsewhere = 0, 0
    for plan in everything:
        for operation, moment in zip(plan.operations, plan.simulation.timeline, strict=True):
            if isinstance(operation, Forward | Loss | Backward):
                inside = max(inside, moment.inside)
            elif not isinstance(operation, Drop | Reduce):  # during which nothing is made
                elsewhere = max(elsewhere, moment.inside)
    return inside - best.store_all, elsewhere


def _largest(plans: Sequence[Plan]) -> Plan:
    return max(plans, key=lambda plan: plan.peak)


def _too_small(what: str, budget: int, smallest: int) -> str:
    return (
        f"a budget of {budget:,} bytes ({format_size(budget)}) is too small: {what} needs {smallest:,} bytes "
        f"(engine:{smallest}, {format_size(smallest)}) or more"
    )
