"""What a schedule holds, buffer by buffer, as `simulation.py` counts: of chains some of whose outputs are views, and of cotangents.

A pass over a schedule in integers; see `evaluation.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checkpointing.planner.evaluation import Evaluator, Id


def inside(evaluator: Evaluator, codes: Sequence[int]) -> list[int]:
    """Returns the most bytes during each operation of a schedule in which every forward is used."""
    run, n = _Run(evaluator), evaluator.steps
    unread, drops = _dropped(evaluator, codes)
    run.bind(0, run.new(evaluator.size[0]))
    run.bind(evaluator.targets, run.new(evaluator.size[evaluator.targets]))
    run.drop(unread)
    found = []
    for code, dropped in zip(codes, drops, strict=True):
        run.peak = run.live
        if code < n:
            run.forward(code, dropped)
        elif code == n:
            run.loss(dropped)
        else:
            run.backward(code - n - 1, dropped)
        found.append(run.peak)
        run.drop(dropped)
    return found


def cotangents(evaluator: Evaluator) -> int:
    """Fills `more` and `less` of the loss and the backwards, whose cotangents are the same in every schedule; returns what is left at the end."""
    run, n = _Run(evaluator), evaluator.steps
    codes = [*range(n), n, *(n + 1 + step for step in reversed(range(n)) if evaluator.costs.steps[step].trains)]
    _, drops = _dropped(evaluator, codes)
    for code, dropped in zip(codes[n:], drops[n:], strict=True):
        before = run.peak = run.live
        if code == n:
            run.bind(evaluator.targets - 1, run.new(evaluator.size[n]))
        else:
            run.backward(code - n - 1, dropped)
            evaluator.more[code] = run.peak - before
        run.drop(value for value in dropped if value in run.buffer)
        evaluator.less[code] = before - run.live
    return run.live


def _dropped(evaluator: Evaluator, codes: Sequence[int]) -> tuple[list[Id], list[list[Id]]]:
    """As `schedules.shard_operations`: what is never read, and what is dropped after each operation."""
    needed: set[Id] = {1 + 2 * evaluator.steps}  # the batch's cotangent, if it has one, is for others
    drops = []
    for code in reversed(codes):
        drops.append([value for value in evaluator.touched[code] if value not in needed])
        if code <= evaluator.steps:  # a cotangent is needed from its first part on
            needed.difference_update(evaluator.makes[code])
        needed.update(evaluator.uses[code])
    return [value for value in (0, evaluator.targets) if value not in needed], drops[::-1]


class _Run:
    """One pass over the operations, in buffers."""

    __slots__ = ("buffer", "evaluator", "live", "names", "peak", "sizes")

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.buffer: dict[Id, int] = {}
        self.names: list[int] = []
        self.sizes: list[int] = []
        self.live = self.peak = 0

    def forward(self, step: int, dropped: list[Id]) -> None:
        ev, out = self.evaluator, 1 + step
        first = ev.firsts[step]
        over = ev.aliases[step] or (ev.forward_in_place[step] and self.alone(first, dropped))
        self.inside(ev.more[step] - (ev.size[out] if over else 0))
        self.bind(out, self.buffer[first] if over else self.new(ev.size[out]))
        for own in ev.makes[step][1:]:
            self.bind(own, self.new(ev.size[own]))

    def loss(self, dropped: list[Id]) -> None:
        ev, last = self.evaluator, self.evaluator.steps
        over = ev.costs.loss.in_place and self.alone(last, dropped)
        self.inside(ev.during_loss(over))
        self.bind(ev.targets - 1, self.buffer[last] if over else self.new(ev.size[last]))

    def backward(self, step: int, dropped: list[Id]) -> None:
        ev = self.evaluator
        made, mine = ev.cotangents[step], 2 + 2 * ev.steps + step
        over = ev.backward_in_place[step] and self.alone(mine, dropped)
        taken = 0 if over else sum(each.nbytes for each in made if not each.aliases)
        self.inside(taken + ev.backward_extra[step])
        new = [self.buffer[mine] if each.aliases or over else self.new(each.nbytes) for each in made]
        for buffer in new:
            self.names[buffer] += 1
        for each, buffer in zip(made, new, strict=True):
            self.merge(each.value, buffer, over, each.partial, each.whole)

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

    def drop(self, values: Iterable[Id]) -> None:
        for value in values:
            self.forget(self.buffer.pop(value))

    def bind(self, value: Id, buffer: int) -> None:
        self.buffer[value] = buffer
        self.names[buffer] += 1

    def forget(self, buffer: int) -> None:
        self.names[buffer] -= 1
        if not self.names[buffer]:
            self.live -= self.sizes[buffer]
