"""The canonical binary tree over virtual shards, in which gradients and losses are summed.

The tree depends on the number of shards V alone: shards 2k and 2k+1 are added first, then neighbouring pairs, and so on. Whoever
computes which shards, the same additions happen in the same order, so the sum has the same bits.
A node is written (first, count): the sum over shards first..first+count-1.

A rank saves a buffer where it can. The sibling of a shard that is at work may be there already: then each layer's cotangents
are added to the sibling's as soon as they are known, and the shard needs no buffer of its own (`added_by_layer`). And what would be added
when the rank's last shard is done is left to the reduction across ranks, which does it slice by slice (`roots_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

Node = tuple[int, int]


def require_shards(shards: int, world: int = 1) -> None:
    """Raises a clear error unless `shards` is a power of two and gives each of `world` workers at least one."""
    if shards < 1 or shards & (shards - 1):
        raise ValueError(f"the number of virtual shards must be a power of two, but got {shards}; write 1, 2, 4, 8, …")
    if world > shards:
        raise ValueError(
            f"{world} workers cannot share {shards} virtual shards: each needs at least one; lower the number of workers "
            "or raise the number of shards"
        )


def shards_of(shards: int, world: int, rank: int) -> range:
    """Returns the contiguous shards of a rank; the first V mod W ranks get one more.

    >>> [shards_of(8, 3, rank) for rank in range(3)]
    [range(0, 3), range(3, 6), range(6, 8)]
    """
    share, more = divmod(shards, world)
    first = rank * share + min(rank, more)
    return range(first, first + share + (rank < more))


def additions_after(roots: list[Node]) -> Iterator[Node]:
    """Merges the last roots as a binary counter carries, yielding each (i, n) of g[i,n] += g[i+n,n].

    Args:
        roots: Sums in the order of their shards, the newest last; changed in place.
    """
    while len(roots) >= 2:
        (first, count), (second, other) = roots[-2:]
        if count != other or first % (2 * count) or second != first + count:
            return
        roots[-2:] = [(first, 2 * count)]
        yield first, count


def added_by_layer(shards: range, shard: int) -> bool:
    """Whether a rank adds a shard's cotangents layer by layer to those of its sibling, shard - 1.

    >>> [added_by_layer(range(3, 8), shard) for shard in range(3, 8)]
    [False, False, True, False, True]
    """
    return shard % 2 == 1 and shard - 1 in shards


def sums_at(shards: range, shard: int) -> int:
    """How many whole gradient buffers a rank holds while it works on a shard, the shard's own included.

    >>> [sums_at(range(8), shard) for shard in range(8)]
    [1, 1, 2, 2, 2, 2, 3, 3]
    """
    before = sum(1 for _ in _merged(range(shards.start, shard)))
    return before + (not added_by_layer(shards, shard))


def roots_of(shards: range) -> list[Node]:
    """Returns the sums that a rank ends with: the largest subtrees inside its shards, where the last merges are left to the reduction.

    >>> roots_of(range(3, 6))
    [(3, 1), (4, 2)]
    >>> roots_of(range(8))
    [(0, 4), (4, 2), (6, 2)]
    """
    last = shards[-1]
    if added_by_layer(shards, last):
        return [*_merged(range(shards.start, last - 1)), (last - 1, 2)]
    return [*_merged(range(shards.start, last)), (last, 1)]


def _merged(shards: range) -> list[Node]:
    """The roots of the largest subtrees inside some shards."""
    roots: list[Node] = []
    for shard in shards:
        roots.append((shard, 1))
        for _ in additions_after(roots):
            pass
    return roots


def additions_between(firsts: Iterable[int]) -> list[tuple[int, int]]:
    """Returns the additions that lead from sums to the sum over all shards, as pairs (to, from) of their first shards.

    Args:
        firsts: The first shard of each sum, 0 included. Where their number is no power of two, an odd one is carried, as in
            `framework.optimizers.tree_sum`.

    >>> additions_between([0, 4, 6])
    [(4, 6), (0, 4)]
    >>> additions_between(range(5))
    [(0, 1), (2, 3), (0, 2), (0, 4)]
    """
    found = []
    # The sum that begins at shard s is a right child, and its sibling begins where s has one trailing binary one less. Those of the lower
    # levels of the tree are added first.
    for first in sorted((first for first in firsts if first), key=lambda first: (first & -first, first)):
        found.append((first & (first - 1), first))
    return found


class Hierarchy(NamedTuple):
    """The additions that lead from sums at several places to the sum over all shards, as pairs (to, from) of their first shards.

    Attributes:
        within: For each place those of which all is there: the roots of the largest subtrees there come of them.
        across: The rest, in order; they come after all of `within`.
        roots: For each place the first shards of what its own additions leave.
    """

    within: dict[int, list[tuple[int, int]]]
    across: list[tuple[int, int]]
    roots: dict[int, list[int]]


def in_hierarchy(places: Mapping[int, int]) -> Hierarchy:
    """Cuts the additions of `additions_between` into those within places and those across, so that no sum is added in another order.

    Args:
        places: For the first shard of each sum, 0 included, where it is.

    >>> in_hierarchy({0: 0, 2: 0, 4: 0, 6: 1})
    Hierarchy(within={0: [(0, 2)], 1: []}, across=[(4, 6), (0, 4)], roots={0: [0, 4], 1: [6]})
    """
    where: dict[int, int | None] = dict(places)
    found = Hierarchy({place: [] for place in places.values()}, [], {place: [] for place in places.values()})
    added: set[int] = set()
    for to, other in additions_between(places):
        place = where[to]
        if place is not None and place == where[other]:
            found.within[place].append((to, other))
            added.add(other)
        else:
            found.across.append((to, other))
            where[to] = None  # the sum is of several places now
    for first in sorted(places):
        if first not in added:
            found.roots[places[first]].append(first)
    return found
