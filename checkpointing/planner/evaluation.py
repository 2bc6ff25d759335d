"""What a schedule costs, fast: the simulator's peak and time of one shard, in integers.

The planner looks at thousands of schedules. Here one of 500 operations takes about a millisecond: nothing is named, nobody keeps a
timeline by holder. The arithmetic is `simulation.py`'s, and a test holds the two equal; what the planner returns is simulated
there in any case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from checkpointing.costs import Costs
from checkpointing.operations import Backward, Forward, Loss, Value
from checkpointing.schedules import Schedule
from checkpointing.simulation import backward_needs

#: A schedule in integers: s is the forward of step s, n the loss, n + 1 + s the backward of step s, n being the number of steps.
Codes = tuple[int, ...]

#: A value in integers: 0 is the batch, 1 + s the output of step s, 1 + n + s its residuals, 1 + 2 n + s its cotangent, 1 + 3 n the targets.
Id = int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a schedule costs.

    Attributes:
        codes: The schedule, without forwards of which nothing is used.
        peak: Most bytes at once of batch, targets, activations, residuals, cotangents and scratch.
        seconds: Its time, measured or modelled; the same for the same operations in any order.
        inside: For each operation the most bytes during it.
        gaps: For each value that lies idle for a while, (value, place of the operation before, place of the next that uses it).
    """

    codes: Codes
    peak: int
    seconds: float
    inside: list[int]
    gaps: list[tuple[Id, int, int]]

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
        self.targets = 1 + 3 * n
        feet = [step.footprint for step in costs.steps]
        times = [costs.seconds(number) for number in range(n)]
        # The loss's are two numbers, added apart, so that the sum is the simulator's.
        self.seconds = [*(time.forward for time in times), 0.0, *(time.backward for time in times)]
        self.inputs = [tuple(1 + source for source in step.inputs) for step in costs.steps]
        self.firsts = [inputs[0] for inputs in self.inputs]
        self.size = [costs.batch.nbytes, *(foot.output.nbytes for foot in feet), *(foot.own_nbytes for foot in feet)]
        self.has_own = [bool(foot.own) for foot in feet]
        self.own = [1 + n + number if foot.own else 3 * n + 2 for number, foot in enumerate(feet)]
        self.aliases = [foot.output_aliases_input for foot in feet]
        self.forward_in_place = [foot.forward_in_place for foot in feet]
        self.forward_extra = [foot.forward_workspace + foot.forward_heap for foot in feet]
        self.backward_extra = [foot.backward_workspace + foot.backward_heap for foot in feet]
        self.backward_in_place = [step.footprint.backward_in_place and step.wanted == (True,) for step in costs.steps]
        # For each wanted input of a step: its cotangent's id, the bytes of what the VJP makes, whether that is the output's
        # cotangent, whether it is a part, and the bytes of the whole.
        self.cotangents: list[list[tuple[Id, int, bool, bool, int]]] = []
        self.uses: list[list[Id]] = []
        self.makes: list[tuple[Id, ...]] = []
        for number, step in enumerate(costs.steps):
            self.uses.append(list(dict.fromkeys(self.inputs[number])))
            self.makes.append((1 + number, 1 + n + number) if self.has_own[number] else (1 + number,))
            self.cotangents.append([
                (
                    1 + 2 * n + source,
                    costs.cotangent(number, place).nbytes,
                    step.footprint.cotangent_aliases[place],
                    step.footprint.extent(place) is not None,
                    costs.output(source).nbytes,
                )
                for place, (source, wanted) in enumerate(zip(step.inputs, step.wanted, strict=True))
                if wanted
            ])  # fmt: skip
        self.backward_makes = [sum(made for _, made, aliases, *_ in each if not aliases) for each in self.cotangents]
        self.uses.append([n, self.targets])
        self.makes.append((1 + 2 * n + n - 1,))
        for number in range(n):
            needs = [self.id_of(value) for value in backward_needs(costs, number)]
            self.uses.append(list(dict.fromkeys([1 + 2 * n + number, *needs])))
            self.makes.append(tuple(dict.fromkeys(made for made, *_ in self.cotangents[number])))
        self.touched = [list(dict.fromkeys((*u, *m))) for u, m in zip(self.uses, self.makes, strict=True)]

    def id_of(self, value: Value) -> Id:
        """The integer of a[s], r[s] or d[s]."""
        return {"a": 1, "r": 1 + self.steps, "d": 1 + 2 * self.steps}[value.kind] + value.at

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
                schedule.append(Forward(code, 0 if self.has_own[code] else None))
            else:
                schedule.append(Loss() if code == n else Backward(code - n - 1))
        return schedule

    def evaluate(self, codes: Sequence[int], limit: float = math.inf) -> Evaluation:
        """Returns the cost of a schedule.

        Args:
            codes: The schedule.
            limit: Bytes above which a peak is of no use: it ends at the first operation that takes more, and its peak is that one's.
        """
        kept, keeps, drops, gaps, unread = self._liveness(codes)
        inside = _Run(self).run(kept, keeps, drops, unread, limit)
        return Evaluation(tuple(kept), max(inside), math.fsum(self.times(kept)), inside, gaps)

    def times(self, codes: Sequence[int]) -> list[float]:
        """The seconds of each operation of a schedule, those of the loss being two."""
        return [*map(self.seconds.__getitem__, codes), *self.costs.loss_seconds]

    def _liveness(
        self, codes: Sequence[int]
    ) -> tuple[list[int], list[bool], list[list[Id]], list[tuple[Id, int, int]], list[Id]]:
        """As `schedules.shard_operations`: what runs, whether it keeps residuals, what is dropped after it, gaps, and what is never read."""
        n, first_cotangent = self.steps, 1 + 2 * self.steps
        # Of each value the next use, counted from the end; -1 where it is not needed. The last is of steps without residuals.
        next_use = [-1] * (3 * n + 3)
        kept: list[int] = []
        keeps: list[bool] = []
        drops: list[list[Id]] = []
        gaps: list[tuple[Id, int, int]] = []
        place, all_uses, all_own = 0, self.uses, self.own
        for code in reversed(codes):
            if code < n:
                made, own = 1 + code, all_own[code]
                after, later = next_use[made], next_use[own]
                if later < 0 and after < 0:
                    continue
                keeps.append(later >= 0)
                if later >= 0:
                    next_use[own] = -1
                    if place - later > 1:
                        gaps.append((own, place, later))
                if after >= 0:
                    next_use[made] = -1
                    dropped = []
                    if place - after > 1:
                        gaps.append((made, place, after))
                else:
                    dropped = [made]
            else:
                keeps.append(False)
                dropped = []
                for value in self.makes[code]:
                    if next_use[value] < 0:
                        dropped.append(value)
                    else:
                        next_use[value] = place
            for value in all_uses[code]:
                after = next_use[value]
                if after < 0:
                    dropped.append(value)
                elif place - after > 1 and value < first_cotangent:
                    gaps.append((value, place, after))
                next_use[value] = place
            kept.append(code)
            drops.append(dropped)
            place += 1
        last = place - 1
        gaps = [(value, last - before, last - after) for value, before, after in gaps]
        kept.reverse()
        keeps.reverse()
        drops.reverse()
        return kept, keeps, drops, gaps, [value for value in (0, self.targets) if next_use[value] < 0]


class _Run:
    """One pass over the operations, in buffers."""

    __slots__ = ("buffer", "evaluator", "live", "names", "peak", "sizes")

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.buffer: dict[Id, int] = {}
        self.names: list[int] = []
        self.sizes: list[int] = []
        self.live = self.peak = 0

    def run(
        self, codes: list[int], keeps: list[bool], drops: list[list[Id]], unread: list[Id], limit: float
    ) -> list[int]:
        """Returns the most bytes during each operation, up to the first of more than a limit."""
        ev, n, inside = self.evaluator, self.evaluator.steps, []
        self.bind(0, self.new(ev.size[0]))
        self.bind(ev.targets, self.new(ev.costs.targets_nbytes))
        for value in unread:
            self.forget(self.buffer.pop(value))
        buffer, names, sizes, size, own_at = self.buffer, self.names, self.sizes, ev.size, 1 + n
        aliases, in_place, firsts, extra = ev.aliases, ev.forward_in_place, ev.firsts, ev.forward_extra
        for code, keep, dropped in zip(codes, keeps, drops, strict=True):
            if code < n:  # most are forwards, so they have no call of their own
                own, live = size[own_at + code], self.live
                if aliases[code] or (in_place[code] and self.alone(firsts[code], dropped)):
                    inside.append(live + own + extra[code])
                    number = buffer[1 + code] = buffer[firsts[code]]
                    names[number] += 1
                else:
                    made = size[1 + code]
                    inside.append(live + made + own + extra[code])
                    buffer[1 + code] = len(names)
                    names.append(1)
                    sizes.append(made)
                    live += made
                if keep:
                    buffer[own_at + code] = len(names)
                    names.append(1)
                    sizes.append(own)
                    live += own
                self.live = live
            else:
                self.peak = self.live
                if code == n:
                    self.loss(dropped)
                else:
                    self.backward(code - n - 1, dropped)
                inside.append(self.peak)
            if inside[-1] > limit:
                break
            for value in dropped:
                number = buffer.pop(value)
                if names[number] == 1:
                    self.live -= sizes[number]
                names[number] -= 1
        return inside

    def loss(self, dropped: list[Id]) -> None:
        ev, loss = self.evaluator, self.evaluator.costs.loss
        last = ev.steps
        over = loss.in_place and self.alone(last, dropped)
        size = 0 if over else ev.size[last]
        self.inside(loss.own_nbytes + max(loss.forward_workspace, size + loss.backward_workspace))
        self.bind(3 * last, self.buffer[last] if over else self.new(size))

    def backward(self, step: int, dropped: list[Id]) -> None:
        ev = self.evaluator
        made, mine = ev.cotangents[step], 1 + 2 * ev.steps + step
        over = ev.backward_in_place[step] and self.alone(mine, dropped)
        self.inside((0 if over else ev.backward_makes[step]) + ev.backward_extra[step])
        if (
            len(made) == 1 and made[0][0] not in self.buffer and not made[0][3]
        ):  # the first for its value, and all of it
            value, nbytes, aliases, _, _ = made[0]
            number = self.buffer[value] = self.buffer[mine] if aliases or over else self.new(nbytes)
            self.names[number] += 1
            return
        new = []
        for _, nbytes, aliases, _, _ in made:
            buffer = self.buffer[mine] if aliases or over else self.new(nbytes)
            self.names[buffer] += 1
            new.append(buffer)
        for (value, _, _, partial, whole), buffer in zip(made, new, strict=True):
            self.merge(value, buffer, over, partial, whole)

    def merge(self, value: Id, new: int, stale: bool, partial: bool, whole: int) -> None:
        """See `simulation._Simulator.merge`."""
        names, old = self.names, self.buffer.get(value)
        if old is None and not partial:
            self.buffer[value] = new
        elif old is not None and names[old] == 1:
            self.forget(new)
        elif old is not None and not partial and names[new] - stale == 1:
            self.forget(old)
            self.buffer[value] = new
        else:
            fresh = self.new(whole)
            names[fresh] += 1
            self.forget(new)
            self.buffer[value] = fresh
            if old is not None:
                self.forget(old)

    def alone(self, value: Id, dropped: list[Id]) -> bool:
        return value in dropped and self.names[self.buffer[value]] == 1

    def inside(self, more: int) -> None:
        if self.live + more > self.peak:
            self.peak = self.live + more

    def new(self, nbytes: int) -> int:
        self.names.append(0)
        self.sizes.append(nbytes)
        self.live += nbytes
        if self.live > self.peak:
            self.peak = self.live
        return len(self.names) - 1

    def bind(self, value: Id, buffer: int) -> None:
        self.buffer[value] = buffer
        self.names[buffer] += 1

    def forget(self, buffer: int) -> None:
        self.names[buffer] -= 1
        if not self.names[buffer]:
            self.live -= self.sizes[buffer]
