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
from checkpointing.operations import Loss
from checkpointing.patterns import PRODUCTS, matching
from checkpointing.schedules import Schedule, StepOperation, backwards, forwards
from checkpointing.solvers.mixed import mixed
from checkpointing.solvers.revolve import revolve
from checkpointing.solvers.stages import schedule_of


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
        schedule: list[StepOperation | Loss] = [*forwards(costs, range(len(costs.steps))), Loss()]
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
    schedule: list[StepOperation | Loss] = [*forwards(costs, range(len(costs.steps))), Loss()]
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
