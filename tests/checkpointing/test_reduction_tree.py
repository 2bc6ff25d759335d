"""The canonical tree: the same additions, whoever computes which shards."""

import pytest

from checkpointing.reduction_tree import (
    added_by_layer,
    additions_after,
    additions_between,
    require_shards,
    roots_of,
    shards_of,
    sums_at,
)

SIZES = [1, 2, 4, 8, 16]


def balanced(first: int, count: int) -> str:
    """The sum over shards as a balanced tree would write it."""
    if count == 1:
        return str(first)
    half = count // 2
    return f"({balanced(first, half)}+{balanced(first + half, half)})"


@pytest.mark.parametrize("shards", SIZES)
def test_every_world_adds_the_same_tree(shards: int) -> None:
    for world in range(1, shards + 1):
        terms = {shard: str(shard) for shard in range(shards)}
        for rank in range(world):
            mine = shards_of(shards, world, rank)
            roots: list[tuple[int, int]] = []
            for shard in mine:
                assert sums_at(mine, shard) == len(roots) + (not added_by_layer(mine, shard))
                roots.append((shard, 1))
                for first, count in additions_after(roots):
                    assert added_by_layer(mine, shard)
                    if shard != mine[-1] or count == 1:  # the others are left to the reduction
                        terms[first] = f"({terms[first]}+{terms.pop(first + count)})"
            kept = roots_of(mine)
            assert [first for first, _ in kept] == [first for first in terms if first in mine]
            assert sum(count for _, count in kept) == len(mine)
        for first, second in additions_between(terms):
            terms[first] = f"({terms[first]}+{terms[second]})"
        assert terms[0] == balanced(0, shards)


@pytest.mark.parametrize("shards", SIZES)
def test_shards_are_dealt_in_contiguous_ranges_the_first_ranks_getting_one_more(shards: int) -> None:
    for world in range(1, shards + 1):
        ranges = [shards_of(shards, world, rank) for rank in range(world)]
        assert [shard for some in ranges for shard in some] == list(range(shards))
        sizes = [len(some) for some in ranges]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


def test_roots_of_eight_shards_over_three_ranks() -> None:
    assert [roots_of(shards_of(8, 3, rank)) for rank in range(3)] == [[(0, 2), (2, 1)], [(3, 1), (4, 2)], [(6, 2)]]


@pytest.mark.parametrize("shards", [0, -1, 3, 6, 12])
def test_shards_must_be_a_power_of_two(shards: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        require_shards(shards)


def test_more_workers_than_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="5 workers cannot share 4 virtual shards"):
        require_shards(4, 5)
