"""The exact optimum over all schedules of a short chain, by best-first search over what can be held.

A state is what is held and which backward is next. Nothing is assumed of the order of operations: any forward whose input is held
may run, saving or not, and anything may be dropped at any moment. The bound that guides the search (each backward that is left takes its
fastest option, and each stage that is not saved now runs forward once more) never falls along an edge by more than its cost.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import NamedTuple

from checkpointing.solvers.chain import StageChain


class State(NamedTuple):
    """What is held: a[i] alone, r[i] by option (None: not); the next backward; and, if schedules are persistent, an a[i] just passed."""

    alone: frozenset[int]
    saved: tuple[int | None, ...]  # by stage - 1
    following: int
    passing: int = 0


def optimum(chain: StageChain, memory: int, persistent: bool = False) -> float:
    """Returns the least time of any schedule that never holds more than `memory` bytes, infinite if there is none.

    Args:
        chain: A short chain: states grow as 4^L.
        memory: Bytes, the batch included.
        persistent: Only schedules that keep each value until its use, but for the output of a forward that the next one drops.
    """
    last = chain.length + 1
    fastest = [min(o.backward_seconds for o in stage.options) for stage in chain.all]

    def bound(state: State) -> float:
        total = 0.0
        for stage, option, least in zip(chain.all[: state.following], state.saved, fastest, strict=False):
            anew = stage.forward_seconds + least  # it may be dropped, and saved in a faster way
            total += anew if option is None else min(anew, stage.options[option].backward_seconds)
        return total

    start = State(frozenset(), (None,) * last, last)
    queue = [(bound(start), 0, 0.0, start)]
    known, number = {start: 0.0}, 0
    while queue:
        _, _, seconds, state = heapq.heappop(queue)
        if seconds > known[state]:
            continue
        if state.following == 0:
            return seconds
        for cost, reached in _edges(chain, state, memory, persistent):
            total = seconds + cost
            if total < known.get(reached, math.inf):
                known[reached] = total
                number += 1
                heapq.heappush(queue, (total + bound(reached), number, total, reached))
    return math.inf


def _live(chain: StageChain, state: State) -> int:
    held = chain.input_nbytes + sum(map(chain.nbytes, state.alone)) + chain.nbytes(state.following)
    return held + sum(chain.all[i].options[o].nbytes for i, o in enumerate(state.saved) if o is not None)


def _edges(chain: StageChain, state: State, memory: int, persistent: bool) -> Iterator[tuple[float, State]]:
    alone, saved, following, passing = state
    live = _live(chain, state)

    def held(i: int) -> bool:
        return i == 0 or i in alone or saved[i - 1] is not None

    for i in range(1, following + 1):
        stage = chain.stage(i)
        if not held(i - 1) or saved[i - 1] is not None:
            continue
        if i not in alone and i <= chain.length and live + stage.nbytes + stage.forward_temporary <= memory:
            more = alone | {i}
            yield stage.forward_seconds, State(more, saved, following, i if persistent else 0)
            if persistent and passing and passing == i - 1:
                yield stage.forward_seconds, State(more - {i - 1}, saved, following, i)
        before = live - (stage.nbytes if i in alone else 0)
        for number, option in enumerate(stage.options):
            if before + option.nbytes + option.forward_temporary <= memory:
                kept = (*saved[: i - 1], number, *saved[i:])
                yield stage.forward_seconds, State(alone - {i}, kept, following)
    if (number := saved[following - 1]) is not None and held(following - 1):
        option = chain.stage(following).options[number]
        if live + chain.cotangent_nbytes(following - 1) + option.backward_temporary <= memory:
            kept = (*saved[: following - 1], *(None,) * (len(saved) - following + 1))
            yield option.backward_seconds, State(alone - {following - 1}, kept, following - 1)
    if not persistent:
        for i in alone:
            yield 0.0, State(alone - {i}, saved, following)
        for i, kept_option in enumerate(saved):
            if kept_option is not None:
                yield 0.0, State(alone, (*saved[:i], None, *saved[i + 1 :]), following)
