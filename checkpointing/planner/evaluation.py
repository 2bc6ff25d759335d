"""What a schedule costs, fast: the simulator's peak and time of one shard, in integers.

The planner looks at thousands of schedules. Here one of 500 operations takes a few tenths of a millisecond: nothing is named, nobody
keeps a timeline by holder. One pass from the end of a schedule to its start finds the last uses and the bytes together. It rests on two things.
Backwards run in one order, so what cotangents take is the same in all schedules of a chain, and is found once. And where no output
is a view, a value has a buffer of its own, so bytes can be counted without knowing which. Chains with views are counted buffer by buffer
(`buffers.py`). The arithmetic is `simulation.py`'s, and a test holds them equal; what the planner returns is simulated there in any case.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from checkpointing.costs import Costs
from checkpointing.operations import Backward, Forward, Loss, Value
from checkpointing.planner import buffers
from checkpointing.schedules import Schedule
from checkpointing.simulation import backward_needs

#: A schedule in integers: s is the forward of step s, n the loss, n + 1 + s the backward of step s, n being the number of steps.
Codes = tuple[int, ...]

#: A value in integers: 0 is the batch, 1 + s the output of step s, 1 + n + s its residuals, 2 + 2 n + s its cotangent, which the batch may
#: have, too (s = -1), 2 + 3 n the targets.
Id = int


class Cotangent(NamedTuple):
    """What a backward makes for one input.

    Attributes:
        value: The input's cotangent.
        nbytes: Of what the VJP makes.
        aliases: Whether that is the cotangent of the output.
        partial: Whether it is a part.
        whole: Bytes of the whole.
    """

    value: Id
    nbytes: int
    aliases: bool
    partial: bool
    whole: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a schedule costs.

    Attributes:
        codes: The schedule, without forwards of which nothing is used.
        peak: Most bytes at once of batch, targets, activations, residuals, cotangents and scratch.
        seconds: Its time, measured or modelled; the same for the same operations in any order.
        inside: For each operation the most bytes during it; none of a schedule that passed the limit.
    """

    codes: Codes
    peak: int
    seconds: float
    inside: list[int]

    @property
    def time(self) -> tuple[float, int]:
        """What schedules are compared by: seconds, then the number of operations."""
        return self.seconds, len(self.codes)


class Evaluator:
    """Evaluates schedules of one chain.

    Args:
        costs: Costs of a training pass over a shard.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        n = self.steps = len(costs.steps)
        self.targets = 2 + 3 * n
        feet = [step.footprint for step in costs.steps]
        times = [costs.seconds(number) for number in range(n)]
        # The loss's are two numbers, added apart, so that the sum is the simulator's.
        self.seconds = [*(time.forward for time in times), 0.0, *(time.backward for time in times)]
        self.inputs = [tuple(1 + source for source in step.inputs) for step in costs.steps]
        self.firsts = [inputs[0] for inputs in self.inputs]
        outputs, owns = [foot.output.nbytes for foot in feet], [foot.own_nbytes for foot in feet]
        self.size = [costs.batch.nbytes, *outputs, *owns, *[0] * (n + 1), costs.targets_nbytes]
        # Of each step the residuals, or a value that nothing reads.
        self.own = [1 + n + number if foot.own else 3 * n + 3 for number, foot in enumerate(feet)]
        self.aliases = [foot.output_aliases_input for foot in feet]
        self.root = list(range(1 + 2 * n))  # of each output and residuals: the value whose buffer it names
        for number, aliases in enumerate(self.aliases):
            if aliases:
                self.root[1 + number] = self.root[self.firsts[number]]
        self.forward_in_place = [foot.forward_in_place for foot in feet]
        self.forward_extra = [foot.forward_workspace + foot.forward_heap for foot in feet]
        self.backward_extra = [foot.backward_workspace + foot.backward_heap for foot in feet]
        self.backward_in_place = [step.footprint.backward_in_place and step.wanted == (True,) for step in costs.steps]
        self.cotangents = [self._cotangents(number) for number in range(n)]
        # By code: what it reads apart from cotangents, what it makes, and both with cotangents.
        self.reads = [tuple(dict.fromkeys(inputs)) for inputs in self.inputs]
        self.reads.append((n, self.targets))
        self.makes: list[tuple[Id, ...]] = [
            (1 + number, self.own[number])[: 1 + bool(foot.own)] for number, foot in enumerate(feet)
        ]
        self.makes.append((self.targets - 1,))
        for number in range(n):
            self.reads.append(tuple(dict.fromkeys(map(self.id_of, backward_needs(costs, number)))))
            self.makes.append(tuple(dict.fromkeys(made.value for made in self.cotangents[number])))
        mine = [(), *((2 + 2 * n + number,) for number in range(n))]
        self.uses = [*self.reads[:n], *map(operator.add, mine, self.reads[n:])]
        self.touched = [tuple(dict.fromkeys((*u, *m))) for u, m in zip(self.uses, self.makes, strict=True)]
        # By code: bytes during it besides what is live before, and by how much less of cotangents is live after it.
        self.more = [out + own + extra for out, own, extra in zip(outputs, owns, self.forward_extra, strict=True)]
        self.more += [0] * (n + 1)
        self.less = [0] * (2 * n + 1)
        self._end = buffers.cotangents(self)
        self._one_each = not any(self.aliases) and all(
            self.size[self.firsts[step]] == outputs[step] for step in range(n) if self.forward_in_place[step]
        )

    def during_loss(self, over: bool) -> int:
        """The bytes that the loss takes; `over` says whether it writes the cotangent over the last output."""
        loss = self.costs.loss
        size = 0 if over else self.size[self.steps]
        return loss.own_nbytes + max(loss.forward_workspace, size + loss.backward_workspace)

    def _cotangents(self, number: int) -> list[Cotangent]:
        """What the backward of a step makes: an entry for each wanted input."""
        costs, step = self.costs, self.costs.steps[number]
        return [
            Cotangent(
                2 + 2 * self.steps + source,
                costs.cotangent(number, place).nbytes,
                step.footprint.cotangent_aliases[place],
                step.footprint.extent(place) is not None,
                costs.output(source).nbytes,
            )
            for place, (source, wanted) in enumerate(zip(step.inputs, step.wanted, strict=True))
            if wanted
        ]

    def id_of(self, value: Value) -> Id:
        """The integer of a[s], r[s] or d[s]."""
        return {"a": 1, "r": 1 + self.steps, "d": 2 + 2 * self.steps}[value.kind] + value.at

    def step_of(self, value: Id) -> int:
        """The step whose forward makes an output or residuals; -1 for the batch."""
        return value - 1 if value <= self.steps else value - 1 - self.steps

    def codes_of(self, schedule: Schedule) -> Codes | None:
        """A schedule in integers; None if it does more than run steps (it moves values to disk)."""
        n, codes = self.steps, []
        for operation in schedule:
            match operation:
                case Forward(step):
                    codes.append(step)
                case Loss():
                    codes.append(n)
                case Backward(step):
                    codes.append(n + 1 + step)
                case _:
                    return None
        return tuple(codes)

    def schedule_of(self, codes: Codes) -> Schedule:
        """The schedule that some integers stand for."""
        n = self.steps
        schedule: list[Forward | Loss | Backward] = []
        for code in codes:
            if code < n:
                schedule.append(Forward(code, 0 if len(self.makes[code]) > 1 else None))
            else:
                schedule.append(Loss() if code == n else Backward(code - n - 1))
        return schedule

    def evaluate(self, codes: Sequence[int], limit: float = math.inf) -> Evaluation:
        """Returns the cost of a schedule.

        Args:
            codes: The schedule.
            limit: Bytes above which a peak is of no use: where some operation takes more, that is the peak, and nothing else is found.
        """
        counted = self._counted(codes, limit if self._one_each else math.inf)
        if isinstance(counted, int):
            return Evaluation(tuple(codes), counted, math.inf, [])
        kept, inside = counted
        if not self._one_each:
            inside = buffers.inside(self, kept)
        return Evaluation(tuple(kept), max(inside), math.fsum(self.times(kept)), inside)

    def times(self, codes: Sequence[int]) -> list[float]:
        """The seconds of each operation of a schedule, those of the loss being two."""
        return [*map(self.seconds.__getitem__, codes), *self.costs.loss_seconds]

    def _counted(self, codes: Sequence[int], limit: float) -> tuple[list[int], list[int]] | int:
        """What runs, and the most bytes during each operation if each value has a buffer of its own; or more than the limit.

        It goes from the end to the start, like `schedules.shard_operations`: `live` is what is held after an operation, then before it.
        """
        n, size, all_own, reads, more, less = self.steps, self.size, self.own, self.reads, self.more, self.less
        in_place, firsts = self.forward_in_place, self.firsts
        needed = [False] * (3 * n + 4)  # of each value whether it is used later; the last is of steps without residuals
        kept: list[int] = []
        inside: list[int] = []
        live = self._end
        for code in reversed(codes):
            if code < n:
                made, own = 1 + code, all_own[code]
                if needed[own]:
                    needed[own] = False
                    live -= size[own]
                elif not needed[made]:
                    continue
                if needed[made]:
                    needed[made] = False
                    live -= size[made]
                taken = more[code]
                if in_place[code] and not needed[firsts[code]]:
                    taken -= size[made]
            elif code > n:
                taken = more[code]
                live += less[code]
            else:
                taken = self.during_loss(over=self.costs.loss.in_place and not needed[n])
                live += less[code]
            for value in reads[code]:
                if not needed[value]:
                    needed[value] = True
                    live += size[value]
            taken += live
            if taken > limit:
                return taken
            inside.append(taken)
            kept.append(code)
        kept.reverse()
        inside.reverse()
        return kept, inside
