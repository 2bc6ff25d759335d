"""What later backwards read at the moments of a step, and what it takes to make it again: what the time bounds weigh against each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from math import fsum

import numpy as np

from checkpointing.costs import Costs
from checkpointing.operations import Value, output
from checkpointing.simulation import backward_needs
from framework.layers import BATCH
from framework.memory import Array


class Items:
    """For each step the bytes of what some backwards read of it, beside what is held in any case, and the seconds to make them once more.

    To run a step again, its inputs must be there. Those that no backward reads are made again as well, or held: where that takes as many
    bytes as what it is for, holding the latter would have been no worse. Each is charged to the first step that asks for it, in the order in
    which the backwards first read of them.

    From one moment to the next few steps change, mostly late ones, so what comes before all of them is kept: all moments of a chain of n
    steps take little more than n items, where nothing is read from afar.

    Args:
        costs: The chain; no backward reads anything yet.
    """

    def __init__(self, costs: Costs) -> None:
        count = len(costs.steps)
        self._costs = costs
        self._forward = [costs.seconds(step).forward for step in range(count)]
        #: By step the values that are read, each with its place among all in the order in which they were first read; and those held.
        self._read: dict[int, dict[Value, int]] = {}
        self._values = 0
        self._held: set[Value] = set()
        self._changed: set[int] = set()
        #: Steps of which something is read that is not held, in their order; bytes and seconds of each.
        self._order: list[tuple[int, int]] = []
        self._place: dict[int, int] = {}
        self._nbytes, self._seconds = np.zeros(count, np.int64), np.zeros(count)
        #: Of the steps worked out: at which other steps each looked first, and which are charged to it.
        self._looked: list[list[int]] = []
        self._charged: list[list[int]] = []
        self._first_look: dict[int, int] = {}
        self._all_charged: set[int] = set()

    def read(self, step: int) -> None:
        """Adds what a step's backward reads."""
        for value in backward_needs(self._costs, step):
            found = in_buffer(self._costs, value)
            if found.at == BATCH:
                continue
            values = self._read.setdefault(found.at, {})
            if found not in values:
                values[found] = self._values
                self._values += 1
                self._changed.add(found.at)

    def hold(self, values: Iterable[Value]) -> None:
        """Takes some values for held in any case, and no others."""
        held = {in_buffer(self._costs, value) for value in values}
        self._changed.update(value.at for value in held ^ self._held)
        self._held = held

    def arrays(self) -> tuple[Array, Array]:
        """Returns bytes and seconds of the items, those without bytes left out."""
        self._reorder()
        for place in range(len(self._looked), len(self._order)):
            self._work_out(place, self._order[place][1])
        count = len(self._order)
        some = self._nbytes[:count] > 0
        return self._nbytes[:count][some], self._seconds[:count][some]

    def _reorder(self) -> None:
        """Puts changed steps in their places, and forgets all from the first that may come out otherwise."""
        first = len(self._looked)
        for step in self._changed:
            first = min(first, self._first_look.get(step, first))
            if (place := self._place.pop(step, None)) is not None:
                at = bisect_left(self._order, (place, step))
                first = min(first, at)
                del self._order[at]
        for step in self._changed:
            places = [place for value, place in self._read.get(step, {}).items() if value not in self._held]
            if places:
                self._place[step] = min(places)
                insort(self._order, (min(places), step))
                first = min(first, bisect_left(self._order, (min(places), step)))
        self._changed.clear()
        for looked, charged in zip(self._looked[first:], self._charged[first:], strict=True):
            for step in looked:
                del self._first_look[step]
            self._all_charged.difference_update(charged)
        del self._looked[first:], self._charged[first:]

    def _work_out(self, place: int, step: int) -> None:
        costs = self._costs
        nbytes = sum(nbytes_of(costs, value) for value in self._read[step] if value not in self._held)
        again, looked = [step], [step]
        for made in again if nbytes else ():
            for source in costs.steps[made].inputs:
                if source == BATCH or costs.steps[source].footprint.output_aliases_input:
                    continue
                looked.append(source)
                if source in self._place or source in self._all_charged or output(source) in self._held:
                    continue
                if costs.output(source).nbytes >= nbytes:
                    self._all_charged.add(source)
                    again.append(source)
        self._nbytes[place] = nbytes
        self._seconds[place] = fsum(self._forward[each] for each in again)
        self._charged.append(again[1:])
        new = [each for each in dict.fromkeys(looked) if each not in self._first_look]
        self._first_look.update(dict.fromkeys(new, place))
        self._looked.append(new)


def in_buffer(costs: Costs, value: Value) -> Value:
    """Returns the value by which a buffer is called: of an output that is a view, that of which it is one."""
    step = value.at
    while value.kind == "a" and step != BATCH and costs.steps[step].footprint.output_aliases_input:
        step = costs.steps[step].inputs[0]
    return value._replace(at=step)


def nbytes_of(costs: Costs, value: Value) -> int:
    """Returns the bytes of an output or of own residuals."""
    return costs.steps[value.at].footprint.own_nbytes if value.kind == "r" else costs.output(value.at).nbytes
