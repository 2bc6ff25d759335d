"""The plans of a run: the policy that was named or what the planner finds for a budget, for every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from checkpointing.choices import Setting, choices, evaluations, unlike
from checkpointing.costs import Costs, UpdateCost
from checkpointing.plan import Plan
from checkpointing.planner.frontier import Point
from checkpointing.policies import Budget, Policy, StoreAll
from framework.sizes import format_size

#: What to do to hold values on disk.
NAME_A_FOLDER = "name a folder for them with --offload-dir (offload_dir in Python)"


class InfeasibleBudget(ValueError):  # noqa: N818  (the name that callers act on)
    """A budget that no plan meets, or that a named policy does not.

    Args:
        message: What is too small, and what would do.
        smallest: See below.
        with_disk: What gives the attribute; it takes a while, and many errors are never read.

    Attributes:
        smallest: The smallest budget in bytes that would do.
        with_disk: The smallest one that would do with values on disk, if that is less and a budget may not hold any; else None.
    """

    def __init__(self, message: str, smallest: int, with_disk: Callable[[], int] | None = None) -> None:
        super().__init__(message)
        self.smallest, self._with_disk = smallest, with_disk

    @property
    def with_disk(self) -> int | None:
        if self._with_disk is None:
            return None
        found = self._with_disk()
        return found if found < self.smallest else None

    def __str__(self) -> str:
        told = super().__str__()
        if (needed := self.with_disk) is not None:
            told += f"; with values on disk {needed:,} bytes (engine:{needed}) are enough: {NAME_A_FOLDER}"
        return told

    def at_least(self, smallest: int) -> InfeasibleBudget:
        """Returns the same error where more than `smallest` is needed."""
        return InfeasibleBudget(super().__str__(), max(self.smallest, smallest), self._with_disk)

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.smallest)


@dataclass(frozen=True)
class RunPlans:
    """The plans of a run.

    Attributes:
        policy: The policy that was named or chosen.
        train: The plan of a training step for each rank.
        evaluate: The plan of a validation batch for each rank (none if there is no validation).
        store_all_activation_nbytes: What StoreAll would hold at its peak besides parameters, gradients, optimizer state and communication.
    """

    policy: Policy
    train: tuple[Plan, ...]
    evaluate: tuple[Plan, ...]
    store_all_activation_nbytes: int

    @property
    def peak(self) -> int:
        """The predicted peak of the rank that holds the most, in bytes."""
        return max(plan.peak for plan in unlike((*self.train, *self.evaluate)))

    @property
    def activation_nbytes(self) -> int:
        """What the rank with the most holds at its peak besides parameters, gradients, optimizer state and communication."""
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
    updates: tuple[UpdateCost, ...] = (),
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
        updates: What the optimizer takes on each rank, where its state is shared out, and what each holds otherwise than others; empty where
            all is as the costs say. What ranks hold is not alike then: the choice among plans is made as if it were, with the least first, and
            again with more until all ranks fit the budget.

    Raises:
        InfeasibleBudget: The policy does not fit the budget, or nothing does; the message names the smallest that would.
        ValueError: The policy `Budget` without a budget; or a budget, and a layer whose bytes depend on the data.
    """
    if budget is not None:
        for each in (costs, evaluation_costs):
            _require_known_bytes(each)
    if isinstance(policy, Budget) and budget is None:
        raise ValueError("the policy 'budget' needs a budget; give --memory-budget, for example engine:64MiB")
    how = costs, evaluation_costs, policy, budget, shards, world, purpose, offload, bucket_nbytes
    held = {sum(nbytes for _, nbytes in update.held): update.held for update in updates}
    if len(held) < 2:
        return _plan_alike(*how, updates)
    *less, most = (tuple(update._replace(held=each) for update in updates) for _, each in sorted(held.items()))
    for alike in less:
        try:
            plans = _unlike(_plan_alike(*how, alike), updates)
        except InfeasibleBudget:
            break  # with more it will be so, too, and that error says what is enough for all
        if budget is None or plans.peak <= budget:
            return plans
    return _unlike(_plan_alike(*how, most), updates)


def _unlike(plans: RunPlans, updates: Sequence[UpdateCost]) -> RunPlans:
    """Returns the plans of ranks each of which holds what is its own."""
    train, evaluate = (
        tuple(replace(plan, costs=plan.costs.with_update(updates[plan.rank])) for plan in each)
        for each in (plans.train, plans.evaluate)
    )
    return replace(plans, train=train, evaluate=evaluate)


def _plan_alike(
    costs: Costs,
    evaluation_costs: Costs | None,
    policy: Policy | None,
    budget: int | None,
    shards: int,
    world: int,
    purpose: str,
    offload: bool,
    bucket_nbytes: int | None,
    updates: tuple[UpdateCost, ...],
) -> RunPlans:
    """See `plan_run`; ranks hold alike but for the optimizer's state."""
    evaluate: tuple[Plan, ...] = ()
    if evaluation_costs is not None:
        evaluate = evaluations(Setting(evaluation_costs, shards, world, "evaluate", updates=updates))
    known = choices(Setting(costs, shards, world, purpose, bucket_nbytes, updates))

    def planned(named: Policy, point: Point | None = None) -> RunPlans:
        return RunPlans(named, known.plans(named, point), evaluate, known.store_all_activation_nbytes)

    if policy is not None and not isinstance(policy, Budget):
        chosen = planned(policy)
        if budget is not None and chosen.peak > budget:
            raise InfeasibleBudget(_too_small(f"the policy {policy.name}", budget, chosen.peak), chosen.peak)
        return chosen
    if budget is None:
        return planned(StoreAll())
    elsewhere = max((plan.peak for plan in unlike(evaluate)), default=0)
    fitting = [choice for choice in (known.within(budget), *(known.on_disk if offload else ())) if choice is not None]
    fitting = [choice for choice in fitting if max(choice.peak, elsewhere) <= budget]
    if not fitting:
        smallest = max(elsewhere, min(known.least, known.least_on_disk) if offload else known.least)
        with_disk = None if offload else lambda: max(elsewhere, known.least_on_disk)
        raise InfeasibleBudget(_too_small("every known plan", budget, smallest), smallest, with_disk)
    # min keeps the first of equals, which holds nothing on disk.
    best = min(fitting, key=lambda choice: choice.seconds)
    return planned(best.policy, best.point)


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


def _largest(plans: Sequence[Plan]) -> Plan:
    return max(unlike(plans), key=lambda plan: plan.peak)


def _too_small(what: str, budget: int, smallest: int) -> str:
    return (
        f"a budget of {budget:,} bytes ({format_size(budget)}) is too small: {what} needs {smallest:,} bytes "
        f"(engine:{smallest}, {format_size(smallest)}) or more"
    )
