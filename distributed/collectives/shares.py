"""Which rank adds which elements of a bucket, in whole blocks: all as many, or of two the one more that is ahead.

Ranks of a node make a bucket one after the other, since cores are not equally fast. Who made it first will wait in the end for who made it last. So of two ranks the
first adds for both as far as it has time, and the second goes on with its backward at once. It changes no bit which rank adds an element.

In the course of a run each rank then reads every element of the other's sums, so these become resident in its process as a whole, and not by its share alone. With
two ranks that is little; with more it would be the memory of all of them, so more than two share equally.
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
    """Returns a rank's share of some elements that ranks made at different times: after it two are as little apart as can be. Cut as in `share_of`.

    Args:
        places: The elements.
        made: When each rank made them, in seconds; the same on all ranks.
        rank: This one.
        nbytes: Bytes that are read and written of each element.

    >>> made = [0.0, 2e-5]  # the second is late by what two blocks take, so the first adds two more of the four
    >>> [share_by_lead([slice(0, 16384)], made, rank, 20) for rank in (0, 1)]
    [[slice(0, 12288, None)], [slice(12288, 16384, None)]]
    """
    if len(made) != 2:
        return share_of(places, len(made), rank)
    blocks = _blocks(places)
    lead = (made[1] - made[0]) * BANDWIDTH / (NORM_BLOCK * nbytes)
    edge = round(min(max(0.0, (blocks + lead) / 2), blocks))
    return _cut(places, range(edge, blocks) if rank else range(edge))


def read_nbytes(nbytes: int, ranks: int) -> int:
    """Returns how many bytes of another's sum a rank reads in the course of a run.

    Args:
        nbytes: Of the sum.
        ranks: How many there are on the node.
    """
    return nbytes if ranks == 2 else -(-nbytes // ranks)


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
