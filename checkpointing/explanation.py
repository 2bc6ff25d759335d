"""A plan in words: what it keeps, what it computes again, what that costs, how far it is from the best, and what other budgets would buy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from checkpointing.bound_items import in_buffer
from checkpointing.bounds import Bounds
from checkpointing.choices import Choices, Setting, choices
from checkpointing.costs import Costs
from checkpointing.curve import gap
from checkpointing.operations import Drop, Fetch, Forward, Load, Loss, Operation, PlanError, Value, output, residuals
from checkpointing.plan import Plan
from framework.layers import BATCH
from framework.sizes import format_size

#: Budgets that are tried for what a little more or less would buy: parts of the way from the least to what storing everything takes.
_NEARBY = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Kept:
    """What is kept of one kind of layer when the first loss has run: how many values, in how many bytes."""

    kind: str
    count: int
    nbytes: int


@dataclass(frozen=True)
class Again:
    """What runs more than once of one kind of layer, in a step: how many forwards, and how long they take in seconds."""

    kind: str
    count: int
    seconds: float


@dataclass(frozen=True)
class Neighbour:
    """The plan for another budget, in bytes and seconds."""

    budget: int
    seconds: float
    policy: str


@dataclass(frozen=True)
class Explanation:
    """A plan explained; `str` tells it in words.

    Attributes:
        policy: How the plan was made.
        source: Where its times come from.
        budget: In bytes: the one it was made for, or its own peak.
        peak: In bytes.
        lasting: Bytes that live through the step.
        on_disk: Bytes that it holds on disk.
        stall: Seconds of a step in which it waits for the disk.
        least_memory: Bytes that no plan of the step goes below.
        seconds: Of its forwards, losses and backwards.
        once: The same where nothing runs twice.
        bound: Seconds that no plan within the budget goes below.
        forwards: How many forwards a step has at least.
        kept: What is kept for the backward, most bytes first.
        again: What is computed again, longest first.
        larger: The next larger budget that buys time; None where none is known to.
        smaller: The next smaller budget; None where there is no plan for one.
    """

    policy: str
    source: str
    budget: int
    peak: int
    lasting: int
    on_disk: int
    stall: float
    least_memory: int
    seconds: float
    once: float
    bound: float
    forwards: int
    kept: tuple[Kept, ...]
    again: tuple[Again, ...]
    larger: Neighbour | None
    smaller: Neighbour | None

    @property
    def gap(self) -> float:
        """By which part the plan takes longer than the lower bound."""
        return gap(self.seconds, self.bound)

    def __str__(self) -> str:
        return "\n".join(f"{name:>11}  {words}" for name, words in self.paragraphs())

    def paragraphs(self) -> list[tuple[str, str]]:
        """Returns what is told: a name and a sentence or two each."""
        kept = _listed(f"{each.count} of {each.kind} ({format_size(each.nbytes)})" for each in self.kept)
        nbytes = format_size(sum(each.nbytes for each in self.kept))
        count = sum(each.count for each in self.again)
        again = _listed(f"{each.count} {each.kind} ({format_seconds(each.seconds)})" for each in self.again)
        recomputes = f"{count} forwards besides the {self.forwards} that each plan has: {again}" if count else "nothing"
        longer, waited = bool(count or self.stall), " or waited" if self.stall else ""
        costs = f"{format_seconds(self.seconds)} a step, " + (
            f"{self.seconds / self.once - 1:.1%} more than if nothing ran twice{waited}"
            if longer
            else "the least there is"
        )
        room = f"within {format_size(self.budget)} no plan takes less"
        if self.gap >= 0.0005:  # else it would be told as nothing
            room += f" than {format_seconds(self.bound)}, so at most {self.gap:.1%} are left to win"
        disk = [
            (
                "disk",
                f"{format_size(self.on_disk)} lie on disk meanwhile; a step waits {format_seconds(self.stall)} for them",
            )
        ]
        return [
            ("plan", f"{self.policy}; times are {self.source}"),
            (
                "memory",
                f"{format_size(self.peak)} at the peak, {format_size(self.lasting)} of it last through the step; no plan needs less than "
                f"{format_size(self.least_memory)}",
            ),
            ("keeps", f"{nbytes} after the forward pass, for the backward; values: {kept or 'none'}"),
            *(disk if self.on_disk else []),
            ("recomputes", recomputes),
            ("costs", f"{costs}; {room}" if longer else costs),
            (
                "more memory",
                self._other(
                    self.larger,
                    "nothing runs twice, so it buys nothing" if not longer else "no larger budget is known to buy time",
                ),
            ),
            ("less memory", self._other(self.smaller, "there is no plan known for less")),
        ]

    def _other(self, found: Neighbour | None, otherwise: str) -> str:
        if found is None:
            return otherwise
        more, longer = found.budget / self.budget - 1, found.seconds / self.seconds - 1
        return f"with {format_size(found.budget)} ({more:+.1%}) a step takes {format_seconds(found.seconds)} ({longer:+.1%}), by {found.policy}"


def explain(plan: Plan, budget: int | None = None) -> Explanation:
    """Explains a plan of a training step.

    Plans for nearby budgets are made to see what these would buy.

    Args:
        plan: The plan.
        budget: The bytes it was made for; by default its own peak.

    Raises:
        PlanError: It is a plan of an evaluation, which keeps nothing.
        ValueError: The budget is below the plan's peak.
    """
    if plan.purpose == "evaluate":
        raise PlanError(
            "a plan of an evaluation keeps nothing and computes nothing again, so there is nothing to explain"
        )
    if budget is not None and budget < plan.peak:
        raise ValueError(
            f"the plan's peak, {plan.peak:,} bytes, is above the budget of {budget:,} that it is explained for"
        )
    costs, limit = plan.costs, plan.peak if budget is None else budget
    on_disk = plan.simulation.file_nbytes
    bounds = Bounds(costs, plan.shards, plan.world, plan.rank, disk=on_disk > 0)
    known = choices(Setting(costs, plan.shards, plan.world, plan.purpose))
    return Explanation(
        policy=plan.policy,
        source=costs.source,
        budget=limit,
        peak=plan.peak,
        lasting=plan.simulation.static,
        on_disk=on_disk,
        stall=plan.simulation.stall,
        least_memory=bounds.memory,
        seconds=plan.simulation.seconds,
        once=known.everything[plan.rank].simulation.seconds,
        bound=bounds.seconds(limit),
        forwards=len(costs.steps) * sum(isinstance(operation, Load) for operation in plan.operations),
        kept=_kept(plan.operations, costs),
        again=_again(plan.operations, costs),
        **_neighbours(plan, limit, known),
    )


def _kept(operations: Iterable[Operation], costs: Costs) -> tuple[Kept, ...]:
    """What is held of activations and residuals when the first loss has run, buffers once."""
    held: set[Value] = set()
    ended = False
    for operation in operations:
        if ended and not isinstance(operation, Drop):
            break
        match operation:
            case Forward(step, keep):
                held |= {output(step)} | ({residuals(step)} if keep is not None else set())
            case Fetch(value):
                held.add(value)
            case Drop(value):
                held.discard(value)
            case Loss():
                ended = True
    sizes: dict[str, Counter[Value]] = defaultdict(Counter)
    for value in {in_buffer(costs, value) for value in held}:
        if value.at != BATCH:
            made_by = costs.steps[value.at]
            own = made_by.footprint.own_nbytes
            sizes[made_by.kind][value] = own if value.kind == "r" else costs.output(value.at).nbytes
    found = [Kept(kind, len(each), each.total()) for kind, each in sizes.items()]
    return tuple(sorted(found, key=lambda kept: (-kept.nbytes, kept.kind)))


def _again(operations: Iterable[Operation], costs: Costs) -> tuple[Again, ...]:
    """The forwards that have run before in the same shard."""
    counts: Counter[int] = Counter()
    run: set[int] = set()
    for operation in operations:
        match operation:
            case Load():
                run.clear()
            case Forward(step):
                counts[step] += step in run
                run.add(step)
    kinds: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, count in counts.items():
        if count:
            kinds[costs.steps[step].kind].append((count, count * costs.seconds(step).forward))
    found = [Again(kind, sum(n for n, _ in each), sum(s for _, s in each)) for kind, each in kinds.items()]
    return tuple(sorted(found, key=lambda again: (-again.seconds, again.kind)))


def _neighbours(plan: Plan, budget: int, known: Choices) -> dict[str, Neighbour | None]:
    """The next larger budget that buys time, and the next smaller one, as far as a few budgets show."""

    offload = plan.simulation.file_nbytes > 0

    passes = sum(isinstance(operation, Load) for operation in plan.operations)

    def planned(other: int) -> Neighbour:
        every = [known.within(other), *(known.on_disk if offload else ())]
        fitting = [choice for choice in every if choice is not None and choice.peak <= other]
        best = min(fitting, key=lambda choice: choice.shard_seconds)
        return Neighbour(other, best.shard_seconds * passes, best.policy.name)

    most, least = known.store_all, min(known.least, known.least_on_disk) if offload else known.least
    span = max(0, most - least)
    larger = (
        planned(other)
        for other in _distinct(min(most, budget + int(part * span)) for part in _NEARBY)
        if other > budget and other >= least
    )
    smaller = _distinct(max(least, min(budget, plan.peak) - max(1, int(part * span))) for part in _NEARBY)
    below = [other for other in smaller if other < min(budget, plan.peak)]
    return {
        "larger": next((each for each in larger if each.seconds < plan.simulation.seconds), None),
        "smaller": planned(below[0]) if below else None,
    }


def _distinct(budgets: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(budgets))


def _listed(each: Iterable[str]) -> str:
    return ", ".join(each)


def format_seconds(seconds: float, digits: int = 3) -> str:
    """Writes a time for a person, in s, ms or µs.

    >>> format_seconds(0.0123456), format_seconds(12.3456, 4), format_seconds(98765.4)
    ('12.3 ms', '12.35 s', '98,765 s')
    """
    number, name = (
        (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "µs")
    )
    return f"{number:,.0f} {name}" if number >= 10**digits else f"{number:.{digits}g} {name}"
