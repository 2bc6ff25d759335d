"""From the order in which steps run to the operations of a plan.

A policy says only in which order forwards and backwards run (a `Schedule`). What is kept, and for how long, follows: a value
lives from where it is made to its last use before it is made again. So every policy drops each value at the first
possible moment, and a Forward of which nothing is used is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from checkpointing.costs import Costs
from checkpointing.operations import (
    TARGETS,
    Accumulate,
    Backward,
    Drop,
    Fetch,
    Forward,
    Load,
    Loss,
    Norm,
    Offload,
    Operation,
    Reduce,
    Update,
    Value,
    Wait,
    cotangent,
    gradient,
    output,
    residuals,
)
from checkpointing.plan import Plan
from checkpointing.reduction_tree import Node, additions_after, roots_of, shards_of
from checkpointing.simulation import backward_needs
from framework.layers import BATCH

#: Forwards (with all residuals), one Loss, and Backwards of one shard in the order in which they run; and what goes to disk, and when.
Schedule = Sequence[Forward | Loss | Backward | Offload | Fetch | Wait]

#: What runs a step of the chain.
StepOperation = Forward | Backward


def forwards(costs: Costs, steps: Iterable[int]) -> list[Forward]:
    """Forwards of steps in order, each keeping its residuals as far as they are used."""
    return [Forward(step, 0 if costs.steps[step].footprint.own else None) for step in steps]


def backwards(costs: Costs, steps: range) -> list[Backward]:
    """Backwards of a run of steps, last to first, those without anything to train left out."""
    return [Backward(step) for step in reversed(steps) if costs.steps[step].trains]


def evaluation(costs: Costs) -> Schedule:
    """A forward pass and the loss."""
    return [*forwards(costs, range(len(costs.steps))), Loss()]


def make_plan(
    schedule: Schedule,
    costs: Costs,
    policy: str,
    purpose: str = "train",
    shards: int = 1,
    world: int = 1,
    rank: int = 0,
    bucket_nbytes: int | None = None,
) -> Plan:
    """Returns the plan of a rank that runs every shard by one schedule.

    Args:
        schedule: What runs for one shard.
        costs: Costs of a shard's pass.
        policy: How the policy is spelled.
        purpose: One of `plan.PURPOSES`.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        rank: Whose plan.
        bucket_nbytes: Of how many bytes of gradients a reduction begins, as soon as the last shard has made them; None for one at the end.
    """
    body = shard_operations(schedule, costs, training=purpose != "evaluate")
    mine = shards_of(shards, world, rank)
    operations: list[Operation] = []
    sums: list[Node] = []
    for shard in mine:
        last = shard == mine[-1] and purpose != "evaluate"
        operations += [Load(shard), *(_with_reductions(body, costs, bucket_nbytes) if last else body)]
        if purpose == "evaluate":
            continue
        sums.append((shard, 1))
        for first, count in additions_after(sums):
            if not last or count == 1:  # the reduction does the others
                operations += [Accumulate(first, count), Drop(gradient(first + count, count))]
        if last:
            operations.append(Reduce(sum(isinstance(operation, Reduce) for operation in operations)))
            # The sum takes the place of the lowest root, shard 0's; the others have been read.
            operations += [Drop(gradient(*root)) for root in roots_of(mine) if root[0] != 0]
    if purpose == "train":
        operations += [Norm(), Update(0), Drop(gradient(0, shards))]
    return Plan(tuple(operations), costs, policy, purpose, shards, world, rank)


def _with_reductions(body: Sequence[Operation], costs: Costs, bucket_nbytes: int | None) -> list[Operation]:
    """Returns a shard's operations with a Reduce wherever backwards have made a bucket of gradients, but for the last one."""
    if bucket_nbytes is None:
        return list(body)
    backwards = [operation.step for operation in body if isinstance(operation, Backward)]
    more = {
        step: sum(costs.steps[after].gradient_nbytes for after in backwards[number + 1 :])
        for number, step in enumerate(backwards)
    }
    found: list[Operation] = []
    full, nbytes, bucket = False, 0, 0
    for operation in body:
        if full and not isinstance(
            operation, Drop
        ):  # which belong to the Backward before: it may overwrite what they drop
            found.append(Reduce(bucket))
            full, nbytes, bucket = False, 0, bucket + 1
        found.append(operation)
        if isinstance(operation, Backward):
            nbytes += costs.steps[operation.step].gradient_nbytes
            full = nbytes >= bucket_nbytes and more[operation.step] > 0
    return found


def shard_operations(
    schedule: Schedule, costs: Costs, training: bool = True, read_later: Iterable[Value] = ()
) -> list[Operation]:
    """Returns the operations of one shard after its Load, with Drops, and without forwards that nothing uses.

    Args:
        schedule: What runs, or a part of it.
        costs: Costs of the shard's pass.
        training: False for an evaluation.
        read_later: Values that are read after this part, so they are left.
    """
    needed: set[Value] = set(read_later)
    reverse: list[Operation] = []
    for operation in reversed(schedule):
        uses, makes = uses_and_makes(operation, costs, training)
        if isinstance(operation, Forward):
            if needed.isdisjoint(makes):
                continue
            kept = residuals(operation.step) in needed
            operation = replace(operation, keep=operation.keep if kept else None)
            makes = makes if kept else makes[:1]
        touched = dict.fromkeys([*uses, *makes])
        reverse += [Drop(value) for value in reversed(touched) if value not in needed]
        reverse.append(operation)
        # A cotangent is made once or in parts; it is needed from its first part on.
        needed.difference_update(value for value in makes if value.kind != "d")
        needed.update(uses)
    operations = reverse[::-1]
    # What Load made and nothing read.
    unread = [Drop(value) for value in (output(BATCH), TARGETS) if value not in needed]
    return [*unread, *operations]


def uses_and_makes(operation: Operation, costs: Costs, training: bool = True) -> tuple[list[Value], list[Value]]:
    """The values that an operation of a schedule reads, and those that it makes."""
    match operation:
        case Offload(value) | Wait(value):
            return [value], []
        case Fetch(value):
            return [], [value]
        case Forward(step, keep):
            made = [output(step)] + ([residuals(step)] if keep is not None else [])
            return [output(source) for source in costs.steps[step].inputs], made
        case Backward(step):
            cost = costs.steps[step]
            each = zip(cost.inputs, cost.wanted, strict=True)
            made = [cotangent(source) for source, wanted in each if wanted]
            return [cotangent(step), *backward_needs(costs, step)], made
        case _:
            last = len(costs.steps) - 1
            return [output(last), TARGETS], [cotangent(last)] if training else []
