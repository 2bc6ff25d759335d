"""Search beyond persistent schedules: the exact optimum of short chains, and windows of it in long ones.

The persistent DP never drops a value before its use. It can pay to do so: a[j-1] goes early, and a later forward of stage j-1, which must run
anyway to save its residuals, brings it back in time for the backward of stage j. In general the problem is NP-hard. Chains of up to
`EXACT` stages are solved by A*; longer ones start from the DP's schedule, of which windows are solved again, each exactly,
from what is held when it begins to what is needed when it ends; up to `WHOLE` stages a search that hurries to the end may then find
better. So the result is never slower than the DP's.

A* (Hart, Nilsson and Raphael 1968) runs over what is held and which backward is next. Two things keep it small. Nothing is dropped before the
bytes are needed, and then no more than needed; that loses nothing, since holding is free. And what a state still takes is
bounded from below: each stage that is not saved runs forward once more, and each backward takes its fastest option.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from checkpointing.solvers.chain import Action, Solution, StageBackward, StageChain, StageForward, solution
from checkpointing.solvers.persistent import PersistentTable

#: The most stages that are searched at once.
EXACT = 8

#: How many states a search looks at before it gives up.
STATES = 200_000

#: The same in a window, and how often all windows are looked at.
WINDOW_STATES, PASSES = 5_000, 3

#: The most stages of which the whole is searched as well, by these weights (see `_Window.solve`), and for how many states.
WHOLE, WEIGHTS, WHOLE_STATES = 16, (2.0, 1.2), 6_000

#: What is held of a stage: nothing, its output alone, or its residuals by option.
NOTHING, ALONE, SAVED = 0, 1, 2

#: What is held of each stage 1..L+1.
Held = tuple[int, ...]

#: That, and the backward that is next.
_State = tuple[Held, int]


def search(chain: StageChain, memory: int, steps: int = 500) -> Solution:
    """Returns the fastest schedule known of a chain within a memory: the optimum for up to `EXACT` stages.

    Args:
        chain: The chain.
        memory: The limit in bytes, the batch included.
        steps: In how many units the persistent DP divides it, where the search starts.

    Raises:
        ValueError: There is none, or for a longer chain no persistent one.

    >>> from checkpointing.solvers.chain import Stage, StageChain
    >>> chain = StageChain(1, (Stage.simple(1, 3, 1.0, 1.0),) * 4)
    >>> search(chain, 12).seconds - chain.least_seconds  # the persistent DP runs two forwards again
    1.0
    """
    table = PersistentTable(chain, memory, steps) if memory >= chain.input_nbytes else None
    start = table.solution() if table is not None and table.seconds() < math.inf else None
    if chain.length > EXACT:
        if start is None:
            assert table is not None
            return table.solution()  # which says what is wrong
        best = _by_windows(chain, memory, start)
        for weight in WEIGHTS if chain.length <= WHOLE else ():
            found = _whole(chain, memory, drops=2).solve(best.seconds, WHOLE_STATES, weight)
            best = best if found is None else solution(chain, tidy(found))
        return best
    found = _whole(chain, memory).solve(start.seconds if start is not None else math.inf)
    if found is not None:
        return solution(chain, tidy(found))
    if start is None:
        raise ValueError(f"no schedule of the chain fits {memory} bytes")
    return start


def _whole(chain: StageChain, memory: int, drops: int = EXACT) -> _Window:
    last = chain.length + 1
    return _Window(chain, memory, (NOTHING,) * last, last, 0, (NOTHING,) * last, range(1, last + 1), drops)


def tidy(actions: Sequence[Action]) -> list[Action]:
    """Leaves out forwards of which nothing is used, saves only what a backward reads, and drops inputs after their last use."""
    outputs: set[int] = set()  # a[i] that are read later
    residuals: set[int] = set()  # r[i]
    kept: list[Action] = []
    for action in reversed(actions):
        number = action.stage
        if isinstance(action, StageBackward):
            residuals.add(number)
            kept.append(action)
        else:
            saves = number in residuals and action.option is not None
            if not saves and number not in outputs:
                continue
            kept.append(StageForward(number, action.option if saves else None, keeps_input=number - 1 in outputs))
            residuals -= {number} if saves else set()
            outputs.discard(number)
        outputs.add(number - 1)
    return kept[::-1]


class _Window:
    """A part of a schedule to solve: from what is held and the backward that is next to what is needed when others are.

    Args:
        chain: The chain.
        memory: The limit in bytes.
        held: What is held at first.
        following: The backward that is next then.
        until: That which is next at the end.
        needed: What must be held at the end: `ALONE` may be inside of residuals, others must be saved as they say.
        inside: The stages that may run forward or be dropped; what is held of others stays.
        drops: How many are dropped at once at most; the search is exact if that is all inside.
    """

    def __init__(
        self,
        chain: StageChain,
        memory: int,
        held: Held,
        following: int,
        until: int,
        needed: Held,
        inside: range,
        drops: int = EXACT,
    ) -> None:
        self.drops = drops
        self.chain, self.memory, self.needed, self.until, self.inside = chain, memory, needed, until, inside
        self.start = held, following
        self._sizes = [(0, stage.nbytes, *(option.nbytes for option in stage.options)) for stage in chain.all]
        # Of each stage whose backward runs in the window, by what is held of it: the least time that it still takes.
        self._least: dict[int, list[float]] = {}
        for number in range(until + 1, following + 1):
            stage = chain.stage(number)
            anew = stage.forward_seconds + min(option.backward_seconds for option in stage.options)
            self._least[number] = [anew, anew, *(min(anew, option.backward_seconds) for option in stage.options)]

    def solve(self, limit: float, states: int = STATES, weight: float = 1.0) -> list[Action] | None:
        """Returns actions that take less time than a limit, with weight 1 the fastest; None if there are none or too many states.

        A weight above 1 on what is left prefers states near the end (Pohl 1970), so that long chains come to one.
        """
        known = {self.start: 0.0}
        came: dict[_State, tuple[_State, Action]] = {}
        queue = [(self._bound(*self.start), 0, 0.0, self._live(*self.start), self.start)]
        number = 0
        while queue and number < states:
            _, _, seconds, live, state = heapq.heappop(queue)
            if seconds > known[state]:
                continue
            if state[1] == self.until and self._done(state[0]):
                return _actions(came, state)
            for cost, reached, action, bytes_then in self._edges(state, live):
                total = seconds + cost
                if total < known.get(reached, math.inf):
                    left = self._bound(*reached)
                    if total + left >= limit * (1 - 1e-12):
                        continue
                    known[reached] = total
                    came[reached] = state, action
                    number += 1
                    heapq.heappush(queue, (total + weight * left, -number, total, bytes_then, reached))
        return None

    def _done(self, held: Held) -> bool:
        return all(map(_serves, held, self.needed))

    def _live(self, held: Held, following: int) -> int:
        """The bytes that are held, the batch and the cotangent included."""
        held_nbytes = sum(sizes[have] for sizes, have in zip(self._sizes, held, strict=True))
        return self.chain.input_nbytes + self.chain.nbytes(following) + held_nbytes

    def _bound(self, held: Held, following: int) -> float:
        """A lower bound of the time that is left."""
        total = sum(self._least[number][held[number - 1]] for number in range(self.until + 1, following + 1))
        for number in range(self.inside.start, self.until + 1):
            if not _serves(held[number - 1], self.needed[number - 1]):
                total += self.chain.stage(number).forward_seconds
        return total

    def _edges(self, state: _State, live: int) -> Iterator[tuple[float, _State, Action, int]]:
        """From a state: the time, the state reached, the action, and the bytes held then."""
        held, following = state
        chain = self.chain
        for number in range(self.inside.start, min(following + 1, self.inside.stop)):
            have = held[number - 1]
            if have >= SAVED or not (number == 1 or held[number - 2]):
                continue
            stage, before = chain.stage(number), live - self._sizes[number - 1][have]
            ways = [] if have or number > chain.length else [(ALONE, stage.nbytes, stage.forward_temporary)]
            ways += [(SAVED + o, each.nbytes, each.forward_temporary) for o, each in enumerate(stage.options)]
            for way, nbytes, temporary in ways:
                option = way - SAVED if way >= SAVED else None
                over = before + nbytes + temporary - self.memory
                for left, freed in self._dropping(held, over, {number - 1, number}):
                    reached = (*left[: number - 1], way, *left[number:])
                    yield (
                        stage.forward_seconds,
                        (reached, following),
                        StageForward(number, option),
                        before + nbytes - freed,
                    )
        have = held[following - 1]
        if following > self.until and have >= SAVED and (following == 1 or held[following - 2]):
            used = chain.stage(following).options[have - SAVED]
            cotangent = chain.cotangent_nbytes(following - 1)
            over = live + cotangent + used.backward_temporary - self.memory
            for left, freed in self._dropping(held, over, {following - 1, following}):
                # Residuals may stay; an output alone is of no more use, unless it is asked for.
                beside = left[following - 2] if following > 1 else NOTHING
                gone = used.nbytes + chain.nbytes(following)
                after = [*left[: following - 1], *(NOTHING,) * (len(left) - following + 1)]
                if beside == ALONE and following - 1 in self.inside and not self.needed[following - 2]:
                    gone += self._sizes[following - 2][ALONE]
                    after[following - 2] = NOTHING
                then = live + cotangent - gone - freed
                yield used.backward_seconds, (tuple(after), following - 1), StageBackward(following), then

    def _dropping(self, held: Held, over: int, stay: set[int]) -> Iterator[tuple[Held, int]]:
        """The ways to free so many bytes and no more than needed, as what is left and the bytes that are free."""
        if over <= 0:
            yield held, 0
            return
        sizes = {i: self._sizes[i - 1][held[i - 1]] for i in self.inside if held[i - 1] and i not in stay}
        for count in range(1, min(self.drops, len(sizes)) + 1):
            for chosen in combinations(sizes, count):
                freed = sum(map(sizes.__getitem__, chosen))
                if freed >= over > freed - min(map(sizes.__getitem__, chosen)):
                    yield tuple(NOTHING if i in chosen else have for i, have in enumerate(held, 1)), freed


def _serves(have: int, need: int) -> bool:
    return have == need or need == NOTHING or (need == ALONE and have > NOTHING)


def _actions(came: dict[_State, tuple[_State, Action]], state: _State) -> list[Action]:
    found = []
    while state in came:
        state, action = came[state]
        found.append(action)
    return found[::-1]


def _by_windows(chain: StageChain, memory: int, start: Solution) -> Solution:
    """Solves windows of a schedule again, from the loss down, until no window of the last pass was solved better."""
    best = solution(chain, tidy(start.actions))
    for _ in range(PASSES):
        before = best.seconds
        for following in range(chain.length + 1, 0, -1):
            shorter = _window(chain, memory, best.actions, following)
            if shorter is not None:
                best = solution(chain, tidy(shorter))
        if best.seconds >= before:
            break
    return best


def _window(chain: StageChain, memory: int, actions: Sequence[Action], following: int) -> list[Action] | None:
    """A faster schedule with the largest window solved again that starts when the backward of `following` is next."""
    timeline = _timeline(chain, actions)
    undone = {action.stage: place for place, action in enumerate(actions) if isinstance(action, StageBackward)}
    for lowest in range(max(1, following - EXACT + 1), following + 1):
        if following <= chain.length:
            start = undone[following + 1] + 1
        else:  # the first pass, from where the window's input is there
            start = next((p for p, action in enumerate(actions) if action.stage == lowest), len(actions))
        held = timeline[start][0]
        if lowest > 1 and not held[lowest - 2]:
            continue
        for until in range(lowest - 1, following):
            stop = undone[until + 1] + 1
            part = actions[start:stop]
            if all(action.stage >= lowest for action in part):
                needed = timeline[stop][1]
                window = _Window(chain, memory, held, following, until, needed, range(lowest, following + 1))
                seconds = sum(_seconds(chain, action, timeline[start + n][0]) for n, action in enumerate(part))
                found = window.solve(seconds, WINDOW_STATES)
                return None if found is None else [*actions[:start], *found, *actions[stop:]]
    return None


def _seconds(chain: StageChain, action: Action, held: Held) -> float:
    stage = chain.stage(action.stage)
    if isinstance(action, StageForward):
        return stage.forward_seconds
    return stage.options[held[action.stage - 1] - SAVED].backward_seconds


def _timeline(chain: StageChain, actions: Sequence[Action]) -> list[tuple[Held, Held]]:
    """Before each action and at the end what a tidy schedule holds, and what of that is needed."""
    held, found = [NOTHING] * (chain.length + 1), []
    for action in actions:
        found.append(tuple(held))
        number = action.stage
        if isinstance(action, StageForward):
            held[number - 1] = ALONE if action.option is None else SAVED + action.option
            if number > 1 and not action.keeps_input and held[number - 2] == ALONE:
                held[number - 2] = NOTHING
        else:
            held[number - 1] = NOTHING
            if number > 1 and held[number - 2] == ALONE:
                held[number - 2] = NOTHING
    found.append(tuple(held))
    return [(each, each) for each in found]  # a tidy schedule holds nothing that is not needed
