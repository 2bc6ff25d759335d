"""Policies: what to keep and what to recompute.

`StoreAll`, `RecomputeAll`, `EveryK` and `SqrtN` cut the stages of a chain (the elements of the outermost Chain) into segments. A
segment keeps its input alone and is computed again before its backwards; the last one is saved in the first forward. `Revolve` and `Mixed` run
the fewest forwards that so many kept stages allow. `Selective` goes inside the stages. `Budget` chooses the fastest of all that fits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from checkpointing.costs import Costs
from checkpointing.offload_schedule import offloading
from checkpointing.operations import Backward, Drop, Forward, Loss
from checkpointing.patterns import PRODUCTS, matching
from checkpointing.plan import Plan
from checkpointing.planner.frontier import Frontier, frontier
from checkpointing.schedules import Schedule, backwards, evaluation, forwards, make_plan
from checkpointing.solvers.mixed import mixed
from checkpointing.solvers.revolve import revolve
from checkpointing.solvers.stages import schedule_of
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


class Segment(NamedTuple):
    """Stages first..last."""

    first: int
    last: int


class Policy(ABC):
    """Turns costs into the schedule of one shard."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How the policy is spelled on the command line."""

    @abstractmethod
    def schedule(self, costs: Costs) -> Schedule:
        """Returns the order in which forwards and backwards run."""


@dataclass(frozen=True)
class StoreAll(Policy):
    """Keeps all that the backwards need: one segment, nothing computed twice."""

    name = "store-all"

    def schedule(self, costs: Costs) -> Schedule:
        return _by_segments(costs, [Segment(0, costs.stages - 1)])


@dataclass(frozen=True)
class RecomputeAll(Policy):
    """Keeps the batch alone and starts from it for every stage: quadratic time, the least memory of these."""

    name = "recompute-all"

    def schedule(self, costs: Costs) -> Schedule:
        return _by_segments(costs, [Segment(stage, stage) for stage in range(costs.stages)], from_batch=True)


@dataclass(frozen=True)
class EveryK(Policy):
    """Keeps the input of every k-th stage (segments of k stages, the last one shorter).

    EveryK(1) is what PyTorch users call checkpointing every block.
    """

    k: int

    @property
    def name(self) -> str:
        return f"every-k:{self.k}"

    def schedule(self, costs: Costs) -> Schedule:
        starts = range(0, costs.stages, self.k)
        return _by_segments(costs, [Segment(s, min(s + self.k, costs.stages) - 1) for s in starts])


@dataclass(frozen=True)
class SqrtN(Policy):
    """Cuts n stages into ⌊√n⌋ segments whose sizes differ by at most one (Chen et al. 2016, arXiv 1604.06174).

    The longer segments come last, since the last one is not computed again.
    """

    name = "sqrt-n"

    def schedule(self, costs: Costs) -> Schedule:
        count = math.isqrt(costs.stages)
        borders = [i * costs.stages // count for i in range(count + 1)]
        return _by_segments(costs, [Segment(a, b - 1) for a, b in pairwise(borders)])


@dataclass(frozen=True)
class Selective(Policy):
    """Keeps what some steps make and computes the rest of each stage again from it, before the stage's backwards.

    Such as the outputs of matrix products, with all that is cheap between them computed again (Korthikanti et al. 2022, arXiv 2205.05198,
    keep all but attention). Inputs of stages are kept, too, and all of the last stage.

    Attributes:
        patterns: Name the steps; see `patterns.matching`.
    """

    patterns: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"selective:{','.join(self.patterns)}"

    def schedule(self, costs: Costs) -> Schedule:
        kept = matching(costs, self.patterns)
        schedule = [*forwards(costs, range(len(costs.steps))), Loss()]
        for stage in reversed(range(costs.stages)):
            steps = costs.steps_of(stage, stage)
            if stage < costs.stages - 1:
                schedule += forwards(costs, [step for step in steps if step not in kept])
            schedule += backwards(costs, steps)
        return schedule


@dataclass(frozen=True)
class Revolve(Policy):
    """Keeps the inputs of so many stages at a time and runs the fewest forwards for it (Griewank and Walther 2000).

    It takes stages for equal, and one stage's residuals are held at a time. Where a border of stages has several values, they are one
    input.

    Attributes:
        snapshots: How many inputs are kept at once, the batch among them.
    """

    snapshots: int

    @property
    def name(self) -> str:
        return f"revolve:{self.snapshots}"

    def schedule(self, costs: Costs) -> Schedule:
        return schedule_of(revolve(costs.stages, self.snapshots), costs)


@dataclass(frozen=True)
class Mixed(Policy):
    """Like `Revolve`, but a unit of storage holds either a stage's input or its residuals (Maddison 2024).

    It takes stages for equal, and inputs and residuals, too, so it suits chains of small stages more than blocks.

    Attributes:
        units: How many inputs and residuals are kept at once.
    """

    units: int

    @property
    def name(self) -> str:
        return f"mixed:{self.units}"

    def schedule(self, costs: Costs) -> Schedule:
        return schedule_of(mixed(costs.stages, self.units), costs)


@dataclass(frozen=True)
class Offload(Policy):
    """Holds on disk what another policy holds in memory from the forward to the backward; the last segment stays.

    With k that is EveryK(k): the inputs of segments go to disk. Without, it is StoreAll: outputs and residuals of all stages but the
    last one go there, and nothing is computed twice (swapping, as in vDNN: Rhu et al. 2016, arXiv 1602.08124).

    Attributes:
        k: The stages of a segment, or None.
    """

    k: int | None = None

    @property
    def name(self) -> str:
        return "offload" if self.k is None else f"offload:{self.k}"

    def schedule(self, costs: Costs) -> Schedule:
        policy = StoreAll() if self.k is None else EveryK(self.k)
        last = (costs.stages - 1) // (self.k or 1) * (self.k or 1)  # where the last segment starts
        return offloading(policy.schedule(costs), costs, costs.steps_of(last, costs.stages - 1).start)


@dataclass(frozen=True)
class Budget(Policy):
    """The fastest schedule known that fits a budget, searched step by step; see `plan_run` and `checkpointing.planner`."""

    name = "budget"

    def schedule(self, costs: Costs) -> Schedule:
        raise TypeError("which schedule meets a budget depends on the budget: call plan_run")


def _by_segments(costs: Costs, segments: Sequence[Segment], from_batch: bool = False) -> Schedule:
    """Forward through all stages, then for each segment, last to first: compute it again, and its backwards.

    Args:
        costs: The chain.
        segments: They cover the stages in order.
        from_batch: Whether a segment is computed again from the batch instead of from its kept input.
    """
    schedule = [*forwards(costs, range(len(costs.steps))), Loss()]
    for segment in reversed(segments):
        steps = costs.steps_of(*segment)
        if segment is not segments[-1]:
            schedule += forwards(costs, range(0 if from_batch else steps.start, steps.stop))
        schedule += backwards(costs, steps)
    return schedule


_SIMPLE: dict[str, Callable[[], Policy]] = {
    "store-all": StoreAll,
    "recompute-all": RecomputeAll,
    "sqrt-n": SqrtN,
    "offload": Offload,
    "budget": Budget,
}
#: Policies with a number.
_WITH_NUMBER: dict[str, Callable[[int], Policy]] = {
    "every-k": EveryK,
    "revolve": Revolve,
    "mixed": Mixed,
    "offload": Offload,
}
KNOWN = (*_SIMPLE, *(f"{name}:K" for name in _WITH_NUMBER), "selective:PATTERN,…")


def parse_policy(text: str) -> Policy:
    """Reads a policy: store-all, recompute-all, every-k:4, sqrt-n, revolve:3, mixed:3, selective:Linear,block*.mlp.act, offload, offload:4, budget.

    Raises:
        ValueError: It is unknown or its number is wrong; the message lists the known ones.
    """
    if text in _SIMPLE:
        return _SIMPLE[text]()
    name, _, number = text.partition(":")
    if name in _WITH_NUMBER and number.isdecimal() and int(number) > 0:
        return _WITH_NUMBER[name](int(number))
    if name == "selective" and all(patterns := tuple(number.split(","))):
        return Selective(patterns)
    raise ValueError(
        f"unknown policy {text!r}; known: {', '.join(KNOWN)} with K = 1, 2, … and patterns of kinds or paths"
    )


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
        train = _plans(candidate.schedule(costs), costs, candidate.name, purpose, shards, world)
        return RunPlans(candidate, train, evaluate, store_all)

    everything = _plans(StoreAll().schedule(costs), costs, StoreAll.name, purpose, shards, world)
    store_all = _largest(everything).simulation.activation_nbytes
    if policy is not None and not isinstance(policy, Budget):
        chosen = planned(policy)
        if budget is not None and chosen.peak > budget:
            raise InfeasibleBudget(_too_small(f"the policy {policy.name}", budget, chosen.peak), chosen.peak)
        return chosen
    if budget is None:
        return planned(StoreAll())
    best = frontier(costs, candidates(costs))
    beside, elsewhere = _besides_the_pass(everything, best)
    elsewhere = max([elsewhere, *(plan.peak for plan in evaluate)])
    point, fitting = best.within(budget - beside), []
    if point is not None and elsewhere <= budget:
        taken = Budget() if point.origin is None else candidates(costs)[point.origin]
        train = _plans(best.schedule(point), costs, taken.name, purpose, shards, world)
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


def candidates(costs: Costs) -> list[Policy]:
    """The policies that a budget's search starts from."""
    products = tuple(kind for kind in PRODUCTS if any(step.kind == kind for step in costs.steps))
    inside = [Selective(products)] if products else []
    segments = [EveryK(k) for k in range(1, costs.stages)]
    equal = [make(count) for make in (Revolve, Mixed) for count in range(1, costs.stages)]
    return [StoreAll(), *segments, SqrtN(), *inside, *equal, RecomputeAll()]


def offloading_candidates(costs: Costs) -> list[Policy]:
    """The policies that hold values on disk."""
    return [Offload(), *(Offload(k) for k in range(1, costs.stages))]


def _plans(schedule: Schedule, costs: Costs, policy: str, purpose: str, shards: int, world: int) -> tuple[Plan, ...]:
    return tuple(make_plan(schedule, costs, policy, purpose, shards, world, rank) for rank in range(world))


def _besides_the_pass(everything: Sequence[Plan], best: Frontier) -> tuple[int, int]:
    """What all plans of a run have in common: the most bytes held beside the pass of a shard while it runs, and at other moments."""
    inside, elsewhere = 0, 0
    for plan in everything:
        for operation, moment in zip(plan.operations, plan.simulation.timeline, strict=True):
            if isinstance(operation, Forward | Loss | Backward):
                inside = max(inside, moment.inside)
            elif not isinstance(operation, Drop):  # during which nothing is made
                elsewhere = max(elsewhere, moment.inside)
    return inside - best.store_all, elsewhere


def _largest(plans: Sequence[Plan]) -> Plan:
    return max(plans, key=lambda plan: plan.peak)


def _too_small(what: str, budget: int, smallest: int) -> str:
    return (
        f"a budget of {budget:,} bytes ({format_size(budget)}) is too small: {what} needs {smallest:,} bytes "
        f"(engine:{smallest}, {format_size(smallest)}) or more"
    )
