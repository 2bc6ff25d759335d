"""What ranks can do together, whatever carries their bytes: errors, and the order in which numbers of ranks are added."""

from __future__ import annotations

from collections.abc import Sequence


class CollectiveError(RuntimeError):
    """A collective did not complete on this rank: others are late or dead, or somebody gave it up.

    Args:
        message: For the reader.
        operation: What was to be done.
        late: Ranks that did not come, as far as this rank knows.
        dead: Those of them whose process has ended.
        seconds: How long this rank waited.
    """

    def __init__(
        self,
        message: str,
        operation: str = "",
        late: Sequence[int] = (),
        dead: Sequence[int] = (),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(message, operation, tuple(late), tuple(dead), seconds)  # so that it can be pickled
        self.operation, self.late, self.dead, self.seconds = operation, tuple(late), tuple(dead), seconds

    def __str__(self) -> str:
        return str(self.args[0])


def additions(world: int) -> list[tuple[int, int]]:
    """Returns the additions (i, j) of x[i] += x[j] that lead from one value a rank to their sum in x[0], in a binary tree.

    Neighbours are added first, then neighbours of the sums; an odd one is carried: the order of `framework.optimizers.tree_sum`.

    >>> additions(5)
    [(0, 1), (2, 3), (0, 2), (0, 4)]
    """
    found = []
    alive = list(range(world))
    while len(alive) > 1:
        found += list(zip(alive[::2], alive[1::2], strict=False))
        alive = alive[::2]
    return found
