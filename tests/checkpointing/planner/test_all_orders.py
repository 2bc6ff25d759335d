"""Plans and bounds beside the best of all orders of leaf steps, by best-first search over what can be held: chains of Linear and ReLU.

A ReLU writes over the Linear's output and keeps its own, which the next Linear reads as well, so a hidden layer has one value. A ReLU's VJP writes
over the cotangent and takes scratch.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator

import numpy as np

from checkpointing import Costs, costs_of, plan_run
from checkpointing.bounds import Bounds
from checkpointing.choices import Setting, choices
from framework import Chain, Linear, MeanSquaredError, ReLU, Spec, build

#: The values that are held, the hidden layer of which the backward is next (after the last: the head), and whether its ReLU's is done.
State = tuple[frozenset[int], int, bool]


class AllOrders:
    """Every order of the forwards and backwards of a chain Linear, ReLU, …, Linear: layers 1..n and the head."""

    def __init__(self, costs: Costs) -> None:
        self.layers = len(costs.steps) // 2
        places = range(0, len(costs.steps) - 1, 2)
        self.seconds = [math.inf, *(costs.seconds(i).forward + costs.seconds(i + 1).forward for i in places)]
        self.nbytes = [costs.batch.nbytes, *(costs.output(i).nbytes for i in places)]
        self.scratch = [0, *(costs.steps[i + 1].footprint.backward_workspace for i in places)]
        y, loss = costs.output(len(costs.steps) - 1).nbytes, costs.loss
        assert loss.in_place
        self.targets = costs.targets.nbytes
        # The forward of the head, the loss and the backward of the head, one after the other.
        cotangent = self.nbytes[self.layers]
        self.head = y + max(
            self.targets + loss.own_nbytes + max(loss.forward_workspace, loss.backward_workspace), cotangent
        )

    def least(self, room: int) -> float:
        """The least seconds of forwards of hidden layers within so many bytes, those that run once included."""
        start: State = frozenset(), self.layers + 1, False
        known, queue, number = {start: 0.0}, [(0.0, 0, start)], 0
        while queue:
            seconds, _, state = heapq.heappop(queue)
            if seconds > known[state]:
                continue
            if state[1] == 0:
                return seconds
            for more, reached in self._edges(state, room):
                if seconds + more < known.get(reached, math.inf):
                    known[reached] = seconds + more
                    number += 1
                    heapq.heappush(queue, (seconds + more, number, reached))
        return math.inf

    def _edges(self, state: State, room: int) -> Iterator[tuple[float, State]]:
        held, following, halfway = state
        nbytes, at_head = self.nbytes, following > self.layers
        live = nbytes[0] + sum(nbytes[i] for i in held) + (self.targets if at_head else nbytes[following])
        for i in held:
            yield 0.0, (held - {i}, following, halfway)
        for i in range(1, min(following, self.layers) + 1):
            if i not in held and (i == 1 or i - 1 in held) and live + nbytes[i] <= room:
                yield self.seconds[i], (held | {i}, following, halfway)
        if at_head:
            if self.layers in held and live - self.targets + self.head <= room:
                yield 0.0, (held, self.layers, False)
        elif not halfway:
            if following in held and live + self.scratch[following] <= room:
                yield 0.0, (held - {following}, following, True)
        elif following == 1 or (following - 1 in held and live + nbytes[following - 1] <= room):
            yield 0.0, (held, following - 1, False)


def compare(costs: Costs, budgets: int) -> list[tuple[float, float]]:
    """Returns for some budgets by how much the plan is slower than the best order, and the best order than the bound."""
    everything, orders = plan_run(costs, purpose="gradient"), AllOrders(costs)
    known, bounds = choices(Setting(costs, purpose="gradient")), Bounds(costs)
    lasting = costs.gradient_nbytes + sum(costs.static.values())
    found = []
    for number in range(budgets):
        budget = known.least + (everything.peak - known.least) * number // (budgets - 1)
        planned, bound = known.within(budget), bounds.seconds(budget)
        assert planned is not None
        best = orders.least(budget - lasting) - sum(orders.seconds[1:]) + everything.train[0].simulation.seconds
        # A plan that is faster than all orders, or an order than the bound, would be an error of one of them.
        assert bound <= best * (1 + 1e-12)
        assert best <= planned.seconds * (1 + 1e-12)
        found.append((planned.seconds / best - 1, best / bound - 1))
    assert orders.least(known.least - 1 - lasting) == math.inf
    return found


def test_plans_of_a_deep_mlp_are_the_best_there_are() -> None:
    model = build("mlp-deep")
    x = Spec.of((8, 64), np.float32)
    costs = costs_of(model.chain, model.loss, x, Spec.of((8,), np.int64))
    found = compare(costs, 25)
    assert max(above for above, _ in found) < 1e-9
    assert sum(loose < 1e-9 for _, loose in found) > 10


def unequal(seed: int) -> Costs:
    draw = random.Random(seed)
    widths = [draw.choice((8, 16, 24, 40, 64, 96)) for _ in range(draw.randint(3, 7))]
    x = Spec.of((4, draw.choice((8, 32))), np.float32)
    chain = Chain(*(layer for width in widths for layer in (Linear(width), ReLU())), Linear(4))
    return costs_of(chain, MeanSquaredError(), x, Spec.of((4, 4), np.float32))


def test_plans_of_unequal_layers_are_seldom_above_the_best() -> None:
    found = [each for seed in range(30) for each in compare(unequal(seed), 6)]
    above = [gap for gap, _ in found if gap > 1e-9]
    print(
        f"{len(found)} plans, {len(above)} above the best order, by {sum(above) / max(1, len(above)):.2%} in the mean"
    )
    assert len(above) <= len(found) / 100
