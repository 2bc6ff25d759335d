"""The canonical binary tree over virtual shards, in which gradients and losses are summed.

The tree depends on the number of shards V alone: shards 2k and 2k+1 are added first, then neighbouring pairs, and so on. Whoever
computes which shards, the same additions happen in the same order, so the sum has the same bits.
A node is written (first, count): the sum over shards first..first+count-1.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def roots_of(shards: range) -> list[Node]:
    """Returns the roots of the largest subtrees inside a rank's shards.

    >>> roots_of(range(3, 6))
    [(3, 1), (4, 2)]
    """
    roots: list[Node] = []
    for shard in shards:
        roots.append((shard, 1))
        for _ in additions_after(roots):
            pass
    return roots


def additions_across(shards: int, world: int) -> list[Node]:
    """Returns the additions (i, n) of g[i,n] += g[i+n,n] that lead from all ranks' roots to the sum over all shards."""
    roots: list[Node] = []
    additions: list[Node] = []
    for rank in range(world):
        for root in roots_of(shards_of(shards, world, rank)):
            roots.append(root)
            additions.extend(additions_after(roots))
    assert roots == [(0, shards)], roots
    return additions
