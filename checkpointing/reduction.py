"""How a rank's sums of gradients become the mean over all shards: in one process here, across ranks in `distributed.collectives`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from checkpointing.reduction_tree import additions_between
from framework import kernels
from framework.memory import Array, Ledger
from framework.optimizers import global_norm, tree_sum
from framework.parameters import Parameters


class Totals(NamedTuple):
    """Sums over the targets of a shard or of many.

    Attributes:
        loss: The sum of losses.
        targets: The count of targets.
        score: The sum of what the loss's metric is the mean of; 0 in training.
    """

    loss: float
    targets: float
    score: float = 0.0

    @property
    def divisor(self) -> float:
        """What makes means of sums: the count of targets, or 1 where none counts (all are ignored), since the sums are zero then."""
        return self.targets or 1.0


#: The totals of each shard.
Sums = dict[int, Totals]


class Word(Protocol):
    """One number, as the first of a list."""

    def __getitem__(self, at: int) -> int: ...

    def __setitem__(self, at: int, number: int) -> None: ...


class Reduction(Protocol):
    """Adds gradients and losses across ranks.

    Attributes:
        progress: One number, of how far this rank is: `checkpointing.plan.PARTS` for each plan that it has run, and as many of them as have
            passed of the present one. Other ranks may see it.
    """

    progress: Word

    def begin(self, sums: Mapping[int, Array], places: Sequence[slice], totals: Sums) -> None:
        """Begins to reduce some elements of the gradient, and may return before that is done.

        Args:
            sums: The rank's sums of gradients, by the first shard of each.
            places: Which elements.
            totals: The rank's own totals by shard.
        """
        ...

    def finish(self) -> tuple[Array, Totals]:
        """Waits for all that was begun; returns the mean gradient in place of shard 0's buffer, and the totals over all shards."""
        ...

    def norm(self, mean: Array, ledger: Ledger) -> float:
        """Returns the norm of the mean gradient, or of a part of it; see `global_norm`. All ranks call it."""
        ...


class Sharing(Protocol):
    """Shares the optimizer's state out over ranks: each updates its part of the parameters, and is given the others'.

    Attributes:
        part: The elements of the flat buffer whose state this rank holds.
    """

    part: slice

    def begin(self, parameters: Parameters) -> Array | None:
        """Returns where this rank writes the new values of its part, (elements of the part,); None for where the present ones are.

        Called where all ranks have computed with the present parameters, and none will any more.
        """
        ...

    def publish(self, parameters: Parameters, step: int) -> None:
        """Makes the parameters those after a step, as all ranks have updated their parts."""
        ...


class LocalReduction:
    """One rank: its sums are added and divided by the count of targets."""

    def __init__(self) -> None:
        self.progress: Word = [0]
        self._found: tuple[Array, Totals] | None = None

    def begin(self, sums: Mapping[int, Array], places: Sequence[slice], totals: Sums) -> None:
        over_all = total_of(totals)
        reduce_in_tree(sums, places, over_all.divisor)
        self._found = sums[0], over_all

    def finish(self) -> tuple[Array, Totals]:
        assert self._found is not None
        found, self._found = self._found, None
        return found

    def norm(self, mean: Array, ledger: Ledger) -> float:
        return global_norm(mean, ledger)


def reduce_in_tree(sums: Mapping[int, Array], places: Sequence[slice], divisor: float) -> None:
    """Adds sums of gradients up the tree, in place, into that of shard 0, and divides it; block by block, so that each stays in the cache.

    Args:
        sums: All of them, by the first shard of each: (size,).
        places: The elements for which that is done.
        divisor: The count of targets.
    """
    add_in_tree(sums, places, additions_between(sums), divisor=divisor)


def add_in_tree(
    sums: Mapping[int, Array],
    places: Sequence[slice],
    additions: Sequence[tuple[int, int]],
    ufunc: np.ufunc = np.add,
    divisor: float | None = None,
) -> None:
    """Does some of the tree's additions in place, block by block, so that each block stays in the cache.

    Args:
        sums: By the first shard of each: (size,).
        places: The elements for which that is done.
        additions: Pairs (to, from) of first shards, in order.
        ufunc: What is done instead of adding.
        divisor: What the sum that begins with shard 0 is divided by afterwards; None for nothing.
    """
    for place in places:
        for block in kernels.row_blocks(place.stop - place.start, 1):
            here = slice(place.start + block.start, place.start + block.stop)
            for first, second in additions:
                ufunc(sums[first][here], sums[second][here], out=sums[first][here])
            if divisor is not None:
                sums[0][here] /= divisor


def total_of(sums: Sums) -> Totals:
    """Returns the sums over all shards, added in the canonical tree."""
    return Totals(*(tree_sum(list(column)) for column in zip(*(sums[shard] for shard in sorted(sums)), strict=True)))
