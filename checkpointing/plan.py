"""A plan: everything that a training step does on one rank, and a simulator that knows its memory to the byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpointing.costs import Costs
from checkpointing.operations import (
    Accumulate,
    Backward,
    Load,
    Loss,
    Norm,
    Operation,
    PlanError,
    Reduce,
    Update,
    from_json,
    gradient,
    label,
    to_json,
)
from checkpointing.packing import Packing, pack
from checkpointing.reduction_tree import require_shards, roots_of, shards_of
from checkpointing.simulation import Simulation, simulate

if TYPE_CHECKING:
    from checkpointing.explanation import Explanation

FORMAT, VERSION = "retape.plan", 1

#: A plan's time has so many parts, where it is told how much of it has passed.
PARTS = 1 << 20

#: train: a whole step. gradient: up to the mean gradient, which is left in g[0,V]. evaluate: losses alone.
PURPOSES = ("train", "gradient", "evaluate")


@dataclass(frozen=True)
class Plan:
    """The operations of one step on one rank, fully unrolled, with the costs they were made from.

    Attributes:
        operations: What is done, in order.
        costs: Footprints of steps and of the step's end.
        policy: The policy it was made by, as it is spelled.
        purpose: One of `PURPOSES`.
        shards: V, the virtual shards of a global batch.
        world: W, the number of ranks.
        rank: Whose plan it is.
    """

    operations: tuple[Operation, ...]
    costs: Costs
    policy: str
    purpose: str = "train"
    shards: int = 1
    world: int = 1
    rank: int = 0

    @cached_property
    def simulation(self) -> Simulation:
        """The plan's memory and time, operation by operation."""
        return simulate(self.operations, self.costs, self.purpose, self.shards, self.rank)

    def simulate(self) -> Simulation:
        """Returns the plan's memory and time, operation by operation, without an array.

        Raises:
            PlanError: An operation lacks a value that it needs.
        """
        return self.simulation

    @cached_property
    def packing(self) -> Packing:
        """A place in one block for every buffer of the plan, but for gradients where they are another's (a caller's, or shared)."""
        return self._pack(0)

    def packing_within(self, nbytes: int) -> Packing:
        """Returns `packing`; if it was not worked out before, one that fits a block of so many bytes will do."""
        if "packing" not in self.__dict__:
            self.__dict__["packing"] = self._pack(nbytes)
        return self.packing

    def _pack(self, enough: int) -> Packing:
        buffers = self.simulation.buffers
        if self.purpose == "gradient" or self.world > 1:
            buffers = tuple(buffer for buffer in buffers if buffer.category != "gradients")
        return pack(buffers, len(self.operations), enough)

    def work_out(self) -> None:
        """Makes now what is made when it is first asked for, but for the packing: `tracemalloc`, when it traces, looks at every object made since."""
        _ = self.labels, self.simulation, self.passed

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return self.simulation.peak

    @cached_property
    def passed(self) -> tuple[int, ...]:
        """How much of the planned time has passed after each operation, of `PARTS`, which is reached at the end."""
        so_far = list(accumulate(moment.seconds for moment in self.simulation.timeline))
        return (*(round(PARTS * seconds / (so_far[-1] or 1.0)) for seconds in so_far[:-1]), PARTS)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        paths = [step.path for step in self.costs.steps]
        return tuple(label(operation, paths) for operation in self.operations)

    def check(self) -> None:
        """Checks that the plan does a whole step, in an order that gives the bits of every other valid plan.

        Each of the rank's shards is loaded once, in order; has one loss; runs the backward of each trained step once, last to
        first; gradients are added in the canonical tree; reductions come before the norm and the norm before the updates;
        every operation finds its values; and nothing is left at the end.

        Raises:
            PlanError: One of these does not hold.
        """
        if self.purpose not in PURPOSES:
            raise PlanError(f"unknown purpose {self.purpose!r}; known: {', '.join(PURPOSES)}")
        require_shards(self.shards, self.world)
        if not 0 <= self.rank < self.world:
            raise PlanError(f"rank {self.rank} does not lie in a world of {self.world}")
        left = set(self.simulation.left)
        expected = {gradient(0, self.shards)} if self.purpose == "gradient" else set()
        if left != expected:
            found = ", ".join(sorted(map(str, left ^ expected)))
            raise PlanError(f"values differ from what should be left at the end of the step: {found}")
        mine = shards_of(self.shards, self.world, self.rank)
        trained = [i for i, step in enumerate(self.costs.steps) if step.trains]
        per_shard: list[Operation] = []
        for shard in mine:
            per_shard += [Load(shard), Loss()]
            if self.purpose != "evaluate":
                per_shard += [Backward(step) for step in reversed(trained)]
        self._require_order("of loads, losses and backwards", per_shard, (Load, Loss, Backward))
        if self.purpose == "evaluate":
            self._require_order("of an evaluation", [], (Accumulate, Reduce, Norm, Update))
            return
        buckets = sum(isinstance(operation, Reduce) for operation in self.operations)
        ending: list[Operation] = [*(Loss() for _ in mine), *map(Reduce, range(max(1, buckets)))]
        if self.purpose == "train":
            ending += [Norm(), Update(0)]
        self._require_order("of losses and of the step's end", ending, (Loss, Reduce, Norm, Update))
        reduces = [place for place, operation in enumerate(self.operations) if isinstance(operation, Reduce)]
        if any(
            isinstance(operation, Accumulate) and operation.count > 1 for operation in self.operations[reduces[0] :]
        ):
            raise PlanError("sums of several shards are added after the first Reduce has begun, which needs them")
        if any(isinstance(operation, Backward | Accumulate) for operation in self.operations[reduces[-1] :]):
            raise PlanError(
                "the last Reduce comes before the gradient is whole: a Backward or an Accumulate follows it"
            )
        sums = {v.at: v.span for v in self.simulation.roots}
        if sums != dict(roots_of(mine)):
            raise PlanError(
                f"rank {self.rank} must end with the sums {roots_of(mine)}, but ends with {sorted(sums.items())}"
            )

    def _require_order(self, what: str, expected: list[Operation], kinds: tuple[type, ...]) -> None:
        found = [operation for operation in self.operations if isinstance(operation, kinds)]
        for number, (got, want) in enumerate(zip(found, expected, strict=False)):
            if got != want:
                raise PlanError(f"order {what}: number {number} must be {to_json(want)}, but is {to_json(got)}")
        if len(found) != len(expected):
            raise PlanError(f"order {what}: there must be {len(expected)}, but are {len(found)}")

    def explain(self, budget: int | None = None) -> Explanation:
        """Returns the plan in words (`str`) and numbers: what it keeps and recomputes, what that costs, and what other budgets would buy.

        Args:
            budget: The bytes it was made for; by default its own peak.

        Raises:
            PlanError: It is a plan of an evaluation.
            ValueError: The budget is below the plan's peak.
        """
        from checkpointing.explanation import explain  # which makes plans

        return explain(self, budget)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as JSON-ready data."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "policy": self.policy,
            "purpose": self.purpose,
            "shards": self.shards,
            "world": self.world,
            "rank": self.rank,
            "operations": [to_json(operation) for operation in self.operations],
            "costs": self.costs.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote, and checks it.

        Raises:
            PlanError: It is no plan of this version, or does not pass `check`.
        """
        if not isinstance(data, Mapping):
            raise PlanError(f"a plan is a JSON object, but this is a {type(data).__name__}")
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            found = f"{data.get('format')!r} version {data.get('version')!r}"
            raise PlanError(f"expected {FORMAT!r} version {VERSION}, but got {found}; make the plan again")
        try:
            plan = cls(
                operations=tuple(map(from_json, data["operations"])),
                costs=Costs.from_json(data["costs"]),
                **{name: data[name] for name in ("policy", "purpose", "shards", "world", "rank")},
            )
            plan.check()
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise PlanError(f"the plan is incomplete or malformed ({error}); make it again") from error
        return plan

    def save(self, path: Path | str) -> None:
        """Writes the plan as a JSON file."""
        Path(path).write_text(json.dumps(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Reads a JSON file that `save` wrote.

        Raises:
            PlanError: See `from_json`.
        """
        try:
            data = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise PlanError(f"{path} is no JSON file: {error}") from error
        return cls.from_json(data)


def pack_together(plans: Sequence[Plan]) -> Packing:
    """Packs plans that have one block in turn, and returns the packing that needs most of it.

    The largest is packed as well as can be; others need not be where its block has room for them.
    """
    largest, *others = sorted(plans, key=lambda plan: plan.peak, reverse=True)
    first = largest.packing
    return max([first, *(plan.packing_within(first.nbytes) for plan in others)], key=lambda packing: packing.nbytes)
