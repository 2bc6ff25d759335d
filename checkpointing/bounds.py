"""Lower bounds on the memory and on the time of a step: valid for every plan of its leaf steps, whatever it keeps and recomputes.

What a plan holds on disk it neither holds in memory nor computes again, so there are bounds for plans without a disk, and lower ones for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from checkpointing.bound_items import Items, in_buffer, nbytes_of
from checkpointing.bound_knapsack import MOST, Knapsacks
from checkpointing.costs import Costs
from checkpointing.operations import Value, output
from checkpointing.reduction_tree import added_by_layer, shards_of
from checkpointing.simulation import backward_needs
from framework.layers import BATCH
from framework.memory import Array


@dataclass(frozen=True)
class _Cut:
    """What some moment of a plan says: only so much has room at it of what later backwards read.

    Attributes:
        taken: Bytes that are held at the moment besides, whatever the plan.
        over: With parts 0, 1, 2, … of the items not held, cheapest per byte first: their bytes.
        seconds: What it takes to run those again.
        nbytes: Of all items.
        whole: The same for items that are held whole or not at all: a table of `knapsacks`, if there are not too many of them.
    """

    taken: int
    over: Array
    seconds: Array
    nbytes: int
    knapsacks: Knapsacks
    whole: Array | None

    @classmethod
    def of(cls, taken: int, nbytes: Array, seconds: Array, knapsacks: Knapsacks) -> _Cut:
        order = np.argsort(seconds / nbytes, kind="stable")
        over, again = (np.concatenate(([0.0], np.cumsum(each[order], dtype=np.float64))) for each in (nbytes, seconds))
        whole = knapsacks.table(nbytes, seconds) if len(nbytes) <= MOST else None
        return cls(taken, over, again, int(nbytes.sum()), knapsacks, whole)

    def again(self, room: int) -> float:
        """The least seconds of forwards that must run again where so many bytes have room, all that is held included."""
        over = self.nbytes + self.taken - room
        if over <= 0:
            return 0.0
        parts = float(np.interp(over, self.over, self.seconds))
        return parts if self.whole is None else max(parts, self.knapsacks.least(self.whole, over))


class Bounds:
    """Lower bounds for all plans of a rank.

    Time: all forwards, backwards and losses run once. While a Backward runs, or when the loss has run, only so much has room of what later
    backwards will read. A step whose output or residuals are read later and are not held runs again, and so do
    those before it whose outputs no backward reads. The cheapest choice of what is not held is a knapsack: of whole values in units of
    bytes, and relaxed to parts of values (Dantzig 1957), of which the larger counts; the moment that asks for most decides.

    Memory: what some forward, backward or loss needs alone.

    Args:
        costs: Costs of a shard's training pass.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        rank: Whose plans.
        disk: Whether plans may hold values on disk. Then time is bounded by what runs once.

    Attributes:
        memory: Bytes that no plan's peak goes below.
    """

    def __init__(self, costs: Costs, shards: int = 1, world: int = 1, rank: int = 0, disk: bool = False) -> None:
        self._lasting = sum(costs.static.values())
        mine = shards_of(shards, world, rank)
        # While a shard is at work its own gradient is there, and the sums of those before.
        self._gradients = [(costs.held_gradients(mine, shard), added_by_layer(mine, shard)) for shard in mine]
        once = [*costs.loss_seconds]
        for number, step in enumerate(costs.steps):
            once += costs.seconds(number)[: 2 if step.trains else 1]
        self._once = once
        steps = range(len(costs.steps))
        trained = [step for step in steps if costs.steps[step].trains]
        # Whether cotangents are added layer by layer, for which each backward has scratch.
        backwards = {
            by_layer: {step: _backward(with_scratch, step, disk) for step in trained}
            for by_layer, with_scratch in ((False, costs), (True, costs.layer_by_layer()))
        }
        # The targets wait for the loss, which comes after a forward of each step.
        forwards = [_forward(costs, step, disk) + (0 if disk else costs.targets_nbytes) for step in steps]
        self.memory = self._lasting + max(
            gradients + max(*forwards, *backwards[by_layer].values(), _loss(costs, disk))
            for gradients, by_layer in self._gradients
        )
        self._cuts: dict[bool, list[_Cut]] = {False: [], True: []}
        if disk:
            return
        last, items, moments = steps[-1], Items(costs), []
        for number in trained:
            items.hold(backward_needs(costs, number))
            moments.append(items.arrays())
            items.read(number)
        items.hold(())
        moments.append(items.arrays())
        knapsacks = Knapsacks([moment for moment in moments if len(moment[0]) <= MOST])
        *cuts, after_loss = [_Cut.of(0, *moment, knapsacks) for moment in moments]
        after_loss = replace(after_loss, taken=costs.output(last).nbytes + _batch_if_read(costs, last))
        for by_layer in {by_layer for _, by_layer in self._gradients}:
            taken = backwards[by_layer]
            self._cuts[by_layer] = [
                *(replace(cut, taken=taken[step]) for step, cut in zip(trained, cuts, strict=True)),
                after_loss,
            ]

    def seconds(self, budget: int) -> float:
        """Returns seconds that no plan within a budget in bytes goes below; infinite where no plan is within it."""
        if budget < self.memory:
            return math.inf
        total = []
        for gradients, by_layer in self._gradients:
            room = budget - self._lasting - gradients
            total += [*self._once, max((cut.again(room) for cut in self._cuts[by_layer]), default=0.0)]
        return math.fsum(total)


def _forward(costs: Costs, step: int, disk: bool) -> int:
    footprint = costs.steps[step].footprint
    own_place = not (footprint.output_aliases_input or footprint.forward_in_place)
    return (
        _held(costs, map(output, costs.steps[step].inputs), step, disk)
        + (footprint.output.nbytes if own_place else 0)
        + footprint.own_nbytes
        + footprint.forward_workspace
        + footprint.forward_heap
    )


def _backward(costs: Costs, step: int, disk: bool) -> int:
    cost = costs.steps[step]
    footprint = cost.footprint
    made = 0
    for number, (wanted, aliases) in enumerate(zip(cost.wanted, footprint.cotangent_aliases, strict=True)):
        if wanted and not aliases and not footprint.backward_in_place:
            made += costs.cotangent(step, number).nbytes
    held = _held(costs, backward_needs(costs, step), step, disk)
    return held + costs.output(step).nbytes + made + footprint.backward_workspace + footprint.backward_heap


def _loss(costs: Costs, disk: bool) -> int:
    loss, last = costs.loss, len(costs.steps) - 1
    y = costs.output(last).nbytes
    inside = max(loss.forward_workspace, (0 if loss.in_place else y) + loss.backward_workspace)
    return _held(costs, [output(last)], last, disk) + costs.targets_nbytes + loss.own_nbytes + inside


def _held(costs: Costs, values: Iterable[Value], step: int, disk: bool) -> int:
    """Bytes of the buffers of some values, and of the batch where a backward up to a step reads it and it cannot be on disk."""
    buffers = {in_buffer(costs, value) for value in values}
    more = 0 if disk or output(BATCH) in buffers else _batch_if_read(costs, step)
    return more + sum(nbytes_of(costs, value) for value in buffers)


def _batch_if_read(costs: Costs, last: int) -> int:
    """The bytes of the batch if a backward of steps 0..last reads it: no operation but Load makes it."""
    read = (value for step in range(last + 1) if costs.steps[step].trains for value in backward_needs(costs, step))
    return costs.batch.nbytes if any(in_buffer(costs, value) == output(BATCH) for value in read) else 0
