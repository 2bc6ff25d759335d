"""Mixed: the fewest forwards for a chain of equal steps where a unit of storage holds a state to restart from or one step's residuals.

T(n, s), the forwards of n steps with s free units, from a state in hand, those that save among them:

    T(n, s) = n                                                            if n ≤ s + 1
    T(n, s) = min of   1 + T(n-1, s-1)                                     the first step's residuals take a unit
                       i + T(n-i, s-1) + T(i, s)   for 2 ≤ i < n             the state takes one, and is restarted from
    T(n, 1) = n(n + 1)/2 - 1

Source: Maddison 2024, Step-based checkpointing with high-level algorithmic differentiation (doi 10.1016/j.jocs.2024.102405).
"""

from __future__ import annotations

import numpy as np

from checkpointing.solvers.chain import Action, StageBackward, StageForward
from framework.memory import Array


def mixed_forwards(length: int, units: int) -> Array:
    """The table of T.

    Args:
        length: The greatest n.
        units: The greatest s.

    Returns:
        T(n, s) at [s, n], shape (units + 1, length + 1), of int64; where s = 0 and n > 1, which cannot be, a number of about 2⁶².

    Raises:
        ValueError: There is no step or no unit.

    >>> int(mixed_forwards(10, 3)[3, 10])
    19
    """
    if length < 1 or units < 1:
        raise ValueError(f"{length} steps with {units} units of storage cannot be planned; give at least one of each")
    table = np.full((units + 1, length + 1), 2**62, np.int64)
    table[0, 1] = 1
    for s in range(1, units + 1):
        row, less = table[s], table[s - 1]
        row[: s + 2] = np.arange(s + 2)[: length + 1]
        row[0] = 2**62
        for n in range(s + 2, length + 1):
            ways = _ways(row, less, n)
            row[n] = ways.min()
    return table


def _ways(row: Array, less: Array, n: int) -> Array:
    """What each choice takes: to save the first step (at 0), or to restart after i steps (at i - 1)."""
    if n == 1:
        return np.ones(1, np.int64)
    advance = np.arange(2, n)
    restart = advance + row[2:n] + np.minimum(less[n - advance], 2**61)
    return np.concatenate([[1 + min(int(less[n - 1]), 2**61)], restart])


def mixed(length: int, units: int) -> list[Action]:
    """Returns the schedule of fewest forwards, the loss being stage ``length + 1``.

    Args:
        length: The number of stages.
        units: How many states and residuals are stored at once. What a backward reads at once needs no unit.

    Returns:
        Forwards, which save as option 0, and backwards.

    >>> len([action for action in mixed(10, 3) if isinstance(action, StageForward) and action.stage <= 10])
    19
    """
    table = mixed_forwards(length, units)
    found: list[Action] = []
    todo: list[Action | tuple[int, int, int]] = [(1, length, units)]
    while todo:
        item = todo.pop()
        if not isinstance(item, tuple):
            found.append(item)
            continue
        first, last, free = item
        n = last - first + 1
        # With n - 1 units every step is saved; more make no difference.
        free = min(free, max(1, n - 1))
        choice = int(np.argmin(_ways(table[free], table[free - 1], n)))
        if choice == 0:
            found.append(StageForward(first, 0))
            todo.append(StageBackward(first))
            if n > 1:
                todo.append((first + 1, last, free - 1))
            elif first == length:
                found += [StageForward(length + 1, 0), StageBackward(length + 1)]
        else:
            middle = first + choice + 1
            found += [StageForward(k, None, keeps_input=k == first) for k in range(first, middle)]
            todo += [(first, middle - 1, free), (middle, last, free - 1)]
    return found
