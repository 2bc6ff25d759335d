"""A plan from a file as a policy, so that a run can use what was planned before."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path

from checkpointing.costs import Costs, StepCost
from checkpointing.operations import Accumulate, Drop, Load, Norm, Operation, PlanError, Reduce, Update
from checkpointing.plan import Plan
from checkpointing.policies import Policy
from checkpointing.schedules import Schedule


@dataclass(frozen=True)
class Planned(Policy):
    """The order in which a plan runs the steps of a shard, for any number of shards and ranks.

    Drops are not taken over: each value is dropped when nothing reads it any more, as in all plans that policies make.

    Attributes:
        plan: The plan.
        source: What errors call it.
    """

    plan: Plan
    source: str = "the plan"

    @classmethod
    def load(cls, path: Path | str) -> Planned:
        """Reads a plan that `Plan.save` wrote, for one, the plan.json of a run.

        Raises:
            PlanError: It is no plan of a training step; the message names the file.
        """
        try:
            plan = Plan.load(path)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        if plan.purpose == "evaluate":
            raise PlanError(f"{path} is a plan of an evaluation, not of a training step")
        return cls(plan, str(path))

    @property
    def name(self) -> str:
        return self.plan.policy

    def schedule(self, costs: Costs) -> Schedule:
        """Returns the order of the plan's first shard.

        Raises:
            PlanError: The plan was made for other steps than these, or its shards run in different orders.
        """
        self._require_made_for(costs)
        shards: list[list[Operation]] = []
        for operation in self.plan.operations:
            if isinstance(operation, Load):
                shards.append([])
            elif not isinstance(operation, Drop | Accumulate | Reduce | Norm | Update):
                shards[-1].append(operation)
        if any(shard != shards[0] for shard in shards):
            raise PlanError(
                f"{self.source} runs its shards in different orders, of which a run takes one; make it again with scripts/plan.py"
            )
        return [
            operation
            for operation in shards[0]
            if not isinstance(operation, Load | Accumulate | Reduce | Norm | Update | Drop)
        ]

    def _require_made_for(self, costs: Costs) -> None:
        theirs = self.plan.costs
        for number, (mine, other) in enumerate(zip_longest(costs.steps, theirs.steps)):
            if mine != other:
                raise self._other(f"step {number}", _told(other), _told(mine), _differing(mine, other))
        for what in ("batch", "targets", "loss", "gradient_nbytes"):
            if getattr(costs, what) != getattr(theirs, what):
                raise self._other(what, str(getattr(theirs, what)), str(getattr(costs, what)), "")

    def _other(self, what: str, theirs: str, mine: str, more: str) -> PlanError:
        return PlanError(
            f"{self.source} was made for another model, batch or number of shards: its {what} is {theirs}, but here it is {mine}{more}. Make it "
            "with the same --model, --batch, --shards, --dtype and --dropout as the run (scripts/plan.py --out)"
        )


def _told(step: StepCost | None) -> str:
    return f"{step.path!r} ({step.kind}) with an output of {step.footprint.output}" if step else "none"


def _differing(mine: StepCost | None, theirs: StepCost | None) -> str:
    """Names what differs where it cannot be seen from path, kind and output."""
    if mine is None or theirs is None or _told(mine) != _told(theirs):
        return ""
    pairs = [(field.name, mine, theirs) for field in fields(StepCost) if field.name != "footprint"]
    pairs += [(field.name, mine.footprint, theirs.footprint) for field in fields(mine.footprint)]  # type: ignore[misc]
    names = [name for name, a, b in pairs if getattr(a, name) != getattr(b, name)]
    return f" ({', '.join(names)} differ)"
