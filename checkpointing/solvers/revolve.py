"""Revolve: the fewest forwards for a chain of equal steps where so many states are kept, and one step's tape at a time.

With s snapshots, the first state among them, and r the least number for which C(s + r, s) ≥ l, l steps need r·l - C(s + r, s + 1) forwards
that save nothing, besides the one that each step's backward needs.

Source: Griewank and Walther 2000, Algorithm 799 (doi 10.1145/347837.347846).
"""

from __future__ import annotations

from functools import cache
from math import comb

from checkpointing.solvers.chain import Action, StageBackward, StageForward


@cache
def extra_forwards(length: int, snapshots: int) -> int:
    """The number of forwards besides those that save what the backward needs.

    Args:
        length: l, the number of steps.
        snapshots: s, how many states are kept at once, the first included.

    Raises:
        ValueError: One of them is less than 1.

    >>> extra_forwards(10, 3)
    15
    """
    if length < 1 or snapshots < 1:
        raise ValueError(f"{length} steps with {snapshots} snapshots cannot be planned; give at least one of each")
    if snapshots == 1:
        return length * (length - 1) // 2  # from the start for each step; r would be l - 1
    repetitions = 0
    while comb(snapshots + repetitions, snapshots) < length:
        repetitions += 1
    return repetitions * length - comb(snapshots + repetitions, snapshots + 1)


def revolve(length: int, snapshots: int, first: int = 1, loss: bool = True) -> list[Action]:
    """Returns the schedule of fewest forwards.

    Args:
        length: The number of stages.
        snapshots: How many outputs of stages are kept at once, the batch included.
        first: The number of the first stage.
        loss: Whether the loss is stage ``first + length``, which runs after the first forward of the last stage.

    Returns:
        Forwards and backwards; a stage is saved as option 0 directly before its backward.

    >>> sum(isinstance(action, StageForward) and action.option is None for action in revolve(10, 3))
    15
    """
    extra_forwards(length, snapshots)  # refuses what cannot be planned
    last, found = first + length - 1, list[Action]()
    todo = [(first, last, snapshots)]
    while todo:
        s, t, free = todo.pop()
        if s == t:
            found.append(StageForward(s, 0))
            if loss and s == last:
                found += [StageForward(s + 1, 0), StageBackward(s + 1)]
            found.append(StageBackward(s))
            continue
        advance = _advance(t - s + 1, free)
        found += [StageForward(k, None, keeps_input=k == s) for k in range(s, s + advance)]
        todo += [(s, s + advance - 1, free), (s + advance, t, max(1, free - 1))]
    return found


@cache
def _advance(length: int, snapshots: int) -> int:
    """How many steps to run before the next snapshot; with one snapshot to the last step, whose state is not kept."""
    if snapshots == 1:
        return length - 1
    costs = [j + extra_forwards(length - j, snapshots - 1) + extra_forwards(j, snapshots) for j in range(1, length)]
    return 1 + costs.index(min(costs))
