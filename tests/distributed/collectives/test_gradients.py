"""All-reduce in shared memory, ranks being threads of this process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.reduction import Totals
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.gradient_memory import header_nbytes
from distributed.collectives.gradients import GradientReduction
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.spread import Spread
from framework import Ledger
from framework.optimizers import NORM_BLOCK, global_norm, norm_blocks, norm_share
from tests.distributed.collectives.reductions import all_reduce, gradients, in_parallel, open_world, reference
from tests.shared_files import shared_files


@given(
    shards=st.sampled_from([1, 2, 4, 8]),
    world=st.integers(1, 8),
    size=st.sampled_from([0, 1, 2, 4095, 4096, 4097, 20_000, 70_001]),
    dtype=st.sampled_from(["float32", "float64"]),
    buckets=st.integers(1, 4),
    overlap=st.booleans(),
)
def test_the_mean_gradient_has_the_bits_of_one_process_in_tree_order(
    shards: int, world: int, size: int, dtype: str, buckets: int, overlap: bool
) -> None:
    world = min(world, shards)
    parts = gradients(shards, size, dtype)
    ranks = open_world(world, shards, size, dtype, overlap=overlap)
    results = in_parallel(ranks, lambda rank: all_reduce(rank, parts, 3, buckets))
    for rank in ranks:
        rank.close()
    for step in range(3):
        bits = {result[step][0] for result in results}
        assert bits == {reference(parts, step + 1)}
        assert len({result[step][1:] for result in results}) == 1
    assert results[0][0][2] == 2.0 * shards


def test_the_result_lies_in_the_buffer_of_shard_0_and_no_name_is_left_in_shared_memory() -> None:
    before = shared_files()
    one, two = open_world(2, 2, 10)
    buffers = [Ledger().empty((10,), np.float32, "gradients", allocator=rank) for rank in (one, two)]
    for buffer in buffers:
        buffer.fill(3)
    with ThreadPoolExecutor(2) as pool:
        for number, rank in enumerate((one, two)):
            rank.begin({number: buffers[number]}, [slice(0, 10)], {number: Totals(1.0, number + 1.0)})
        first, second = pool.submit(one.finish), pool.submit(two.finish)
    assert first.result()[0] is buffers[0]
    np.testing.assert_array_equal(second.result()[0], np.full(10, 2.0, np.float32))
    assert not shared_files() - before


def test_ranks_that_share_memory_see_how_far_each_is_and_give_up_all_the_same() -> None:
    ranks = open_world(4, 4, 10, spread=Spread.of([0, 0, 1, 1]))
    for rank in ranks:
        rank.progress[0] = 10**12 + rank.rank
    assert [[told - 10**12 for told in rank.progress_here()] for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    ranks[1].abort()
    with pytest.raises(CollectiveError, match="gave up"):
        ranks[0].barrier()
    for rank in ranks:
        rank.close()


def test_a_slot_is_free_again_when_the_last_view_of_it_has_died() -> None:
    rank = GradientReduction(0, 1, 1, 6, np.dtype("float32"), slots=1)
    ledger = Ledger()
    view = ledger.empty((6,), np.float32, "gradients", allocator=rank).reshape(2, 3)[1:]
    assert ledger.live == 24
    with pytest.raises(ValueError, match="no slot"):
        ledger.empty((6,), np.float32, "gradients", allocator=rank)
    del view
    assert ledger.live == 0
    ledger.empty((6,), np.float32, "gradients", allocator=rank)


def test_a_barrier_names_the_ranks_that_do_not_come_within_the_timeout() -> None:
    ranks = open_world(3, 4, 10, timeout=0.3)
    started = time.monotonic()
    with pytest.raises(CollectiveError, match=r"rank 1: ranks \[0, 2\] late, waited 0\.\d s in barrier"):
        ranks[1].barrier()
    assert 0.3 <= time.monotonic() - started < 1.3


def test_a_rank_that_gives_up_frees_the_others_at_once() -> None:
    ranks = open_world(2, 2, 10, timeout=60.0)
    threading.Timer(0.1, ranks[0].abort).start()
    started = time.monotonic()
    with pytest.raises(CollectiveError, match=r"rank 1: all-reduce given up after .* s, since rank 0 gave up"):
        ranks[1].barrier("all-reduce")
    assert time.monotonic() - started < 10


def test_no_rank_leaves_a_barrier_before_all_have_come() -> None:
    ranks = open_world(4, 4, 10)
    arrived: list[int] = []

    def work(rank: GradientReduction) -> list[int]:
        seen = []
        for turn in range(20):
            time.sleep(0.0005 * ((rank.rank + turn) % 3))
            arrived.append(turn)
            rank.barrier()
            seen.append(arrived.count(turn))
            rank.barrier()
        return seen

    assert in_parallel(ranks, work) == [[4] * 20] * 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_sum_the_squares_of_the_mean_together_and_have_the_bits_of_one(world: int, dtype: str) -> None:
    for size in (1, NORM_BLOCK, 2 * NORM_BLOCK + 1, 21 * NORM_BLOCK - 7):
        ranks = open_world(world, 8, size, dtype)
        means = [gradients(1, size, dtype)[0], np.full(size, 3.0, dtype)]
        expected = [global_norm(mean, Ledger()) for mean in means]
        touched: list[list[int]] = [[] for _ in ranks]

        def work(rank: GradientReduction, means: Any = means, touched: Any = touched) -> list[float]:
            found = []
            for mean in means:
                mine = mean.copy()
                blocks = norm_blocks(mean.size)
                share = norm_share(blocks, rank.rank, rank.world)
                # What is not this rank's share is not read: it would spoil the norm.
                mine[: share.start * NORM_BLOCK] = np.nan
                mine[share.stop * NORM_BLOCK :] = np.nan
                touched[rank.rank] = [*range(blocks)[share]]
                found.append(rank.norm(mine, Ledger()))
                rank.barrier()
            return found

        assert in_parallel(ranks, work) == [expected] * world
        assert sorted(block for blocks in touched for block in blocks) == [*range(norm_blocks(size))]


def test_the_header_holds_the_sums_of_any_number_of_shards() -> None:
    for shards in (1, 8, 256, 4096):
        assert header_nbytes(shards, 3) >= 64 + 32 * shards
        rank = GradientReduction(0, 1, shards, 3, np.dtype("float64"), slots=1)
        totals = rank.total(dict.fromkeys(range(shards), Totals(0.5, 1.0, 0.25)))
        assert totals == Totals(0.5 * shards, float(shards), 0.25 * shards)


def test_an_owner_that_is_gone_is_a_clear_error() -> None:
    rank, other = open_world(2, 2, 10)
    dead = SegmentAddress(pid=2**22 + 1, descriptor=3, nbytes=other.address.nbytes)
    with pytest.raises(CollectiveError, match="rank 0 cannot attach to the shared memory of rank 1"):
        rank.connect([rank.address, dead])
    assert Path(f"/proc/self/fd/{rank.address.descriptor}").exists()
