"""Which rank adds which elements of a bucket, in whole blocks: all as many, or those more that are ahead.

Ranks of a node make a bucket one after the other, since cores are not equally fast. Who made it first will wait in the end for who made it last, so it
has time to add for both, and the last one goes on with its backward at once. Blocks are shared out so that after them all ranks are as little apart as
possible. It changes no bit which rank adds an element.
"""

from __future__ import annotations

from collections.abc import Sequence

from checkpointing.reduction_tree import shards_of
from framework.optimizers import NORM_BLOCK

#: Bytes a second that a core reads and writes while it adds, about.
BANDWIDTH = 8e9


def share_of(places: Sequence[slice], world: int, rank: int) -> list[slice]:
    """Returns a rank's share of some elements where all have as many, cut at multiples of 4,096.

    >>> share_of([slice(0, 8192), slice(10000, 14096)], 3, 1)
    [slice(4096, 8192, None)]
    """
    return _cut(places, shards_of(_blocks(places), world, rank))


def share_by_lead(places: Sequence[slice], made: Sequence[float], rank: int, nbytes: int) -> list[slice]:
    """Returns a rank's share of some elements where ranks made them at different times, cut as in `share_of`.

    Args:
        places: The elements.
        made: When each rank made them, in seconds; the same on all ranks.
        rank: This one.
        nbytes: Bytes that are read and written of each element.

    >>> made = [0.0, 2e-5]  # the second is late by what two blocks take, so the first adds two more of the four
    >>> [share_by_lead([slice(0, 16384)], made, rank, 20) for rank in (0, 1)]
    [[slice(0, 12288, None)], [slice(12288, 16384, None)]]
    """
    blocks, last = _blocks(places), max(made)
    each = NORM_BLOCK * nbytes / BANDWIDTH
    wanted = _filled([(last - time) / each for time in made], blocks)
    start, stop = (round(sum(wanted[:edge])) for edge in (rank, rank + 1))
    return _cut(places, range(start, blocks if rank + 1 == len(made) else stop))


def _filled(leads: Sequence[float], total: float) -> list[float]:
    """Returns parts of a total, one a rank, after which what is left of the leads is as equal as can be: who is ahead by more has none less.

    Args:
        leads: How many parts each could do before the last one has come as far; none is negative.
        total: All parts.
    """
    level, order = 0.0, sorted(leads, reverse=True)
    for count in range(1, len(order) + 1):  # the so many ranks that are ahead most
        level = (sum(order[:count]) - total) / count
        if count == len(order) or level >= order[count]:
            break
    return [max(0.0, lead - level) for lead in leads]


def _blocks(places: Sequence[slice]) -> int:
    size: int = sum(place.stop - place.start for place in places)
    return -(-size // NORM_BLOCK)


def _cut(places: Sequence[slice], blocks: range) -> list[slice]:
    """Returns the elements of some of the blocks into which places are cut one behind the other."""
    found, before = [], 0
    for place in places:
        start, stop = (
            min(max(place.start + edge * NORM_BLOCK - before, place.start), place.stop)
            for edge in (blocks.start, blocks.stop)
        )
        if stop > start:
            found.append(slice(start, stop))
        before += place.stop - place.start
    return found
