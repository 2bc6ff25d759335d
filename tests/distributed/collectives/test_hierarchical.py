"""Collectives of ranks on several nodes give the bits of one process in tree order. Ranks are threads, and messages between nodes calls."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.collectives.communicator import CollectiveError, Communicator, Op, reduced, slices_of
from distributed.collectives.hierarchical import Hierarchical
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Faults, Faulty, InProcess, Network
from tests.distributed.collectives.worlds import descriptors, in_parallel, numbers

spreads = st.lists(st.integers(0, 3), min_size=1, max_size=8).map(Spread.of)
sizes = st.sampled_from([0, 1, 2, 4097, 20_001, 70_001])
dtypes = st.sampled_from(["float32", "float64", "int64"])
networks = st.sampled_from([Network(chunk) for chunk in (5000, 1 << 16, 1 << 20)])
windows = st.sampled_from([40_000, 1 << 20])


@contextmanager
def opened(spread: Spread, network: Network | None = None, **options: Any) -> Iterator[list[Hierarchical]]:
    """Yields the communicators of all ranks, connected."""
    network = network or Network()
    ranks = [
        Hierarchical(rank, spread, network=network, **{"timeout": 30.0, **options})
        for rank in range(len(spread.node_of))
    ]
    inboxes: list[Any] = [ranks[leader].inbox for leader in spread.leaders]
    try:
        for rank in ranks:
            rank.connect([other.address for other in ranks], Faulty(InProcess(inboxes), network.faults))
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def everything(rank: Communicator, given_: Sequence[np.ndarray], op: Op, root: int) -> None:
    """Calls every operation twice, and compares with one process."""
    mine, size = given_[rank.rank], given_[0].size
    with np.errstate(all="ignore"):
        expected = reduced(given_, op)
    slices = slices_of(size, rank.world)
    for _ in range(2):
        assert same_bits(rank.all_reduce(mine.copy(), op), expected)
        array = mine.copy()
        part = rank.reduce_scatter(array, op)
        assert same_bits(part, expected[slices[rank.rank]])
        assert np.shares_memory(part, array) or not part.size
        rest = np.ones(size, bool)
        rest[slices[rank.rank]] = False
        assert same_bits(array[rest], mine[rest])
        array[rest] = 0
        assert same_bits(rank.all_gather(array), expected)
        assert same_bits(rank.broadcast(mine.copy(), root), given_[root])
        rank.barrier()


@settings(max_examples=12)
@given(
    spread=spreads, size=sizes, dtype=dtypes, network=networks, window=windows,
    op=st.sampled_from(["sum", "product", "min", "max"]), root=st.integers(0, 7),
)  # fmt: skip
def test_all_operations_have_the_bits_of_one_process_for_any_spread(
    spread: Spread, size: int, dtype: str, network: Network, window: int, op: Op, root: int
) -> None:
    world = len(spread.node_of)
    given_ = numbers(world, size, dtype)
    with opened(spread, network, window=window) as ranks:
        in_parallel(ranks, lambda rank: everything(rank, given_, op, root % world))


@pytest.mark.parametrize(
    "spread", ["2+1", *(pytest.param(each, marks=pytest.mark.memory) for each in ("1+1", "2+2", "3+1"))]
)
def test_late_and_lost_messages_change_no_bit(spread: str) -> None:
    found = Spread.parse(spread, sum(map(int, spread.split("+"))))
    network = Network(20_000, faults=Faults(delay=0.002, loss=0.1, seed=5))
    given_ = numbers(len(found.node_of), 30_000, "float32")
    with opened(found, network) as ranks:
        in_parallel(ranks, lambda rank: everything(rank, given_, "sum", 1))


@pytest.mark.memory
@pytest.mark.parametrize("spread", ["1+1", "2+1", "2+3"])
def test_ten_million_numbers_have_the_bits_of_one_process(spread: str) -> None:
    found = Spread.parse(spread, sum(map(int, spread.split("+"))))
    (some,) = numbers(1, 10_000_000, "float32")
    given_ = [np.roll(some, 1001 * rank) for rank in range(len(found.node_of))]
    expected = reduced(given_)
    with opened(found) as ranks:
        results = in_parallel(ranks, lambda rank: rank.all_reduce(given_[rank.rank]))
    assert all(np.array_equal(result.view(np.uint32), expected.view(np.uint32)) for result in results)


CALLS: dict[str, tuple[Callable[[Communicator], Any], str]] = {
    "within a node": (
        lambda rank: rank.barrier() if rank.rank == 1 else rank.all_reduce(np.zeros(3)),
        r"ranks \[0\] call all_reduce\(sum, float64\[3\]\); ranks \[1\] call barrier\(\)",
    ),
    "across nodes": (
        lambda rank: rank.broadcast(np.zeros(3), 1 if rank.rank == 2 else 0),
        r"ranks \[0, 1\] call broadcast\(root 0, .*; ranks \[2\] call broadcast\(root 1",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_ranks_that_do_not_call_the_same_are_told_so(what: str) -> None:
    call, expected = CALLS[what]

    def work(rank: Hierarchical) -> str:
        with pytest.raises(CollectiveError) as error:
            call(rank)
        return str(error.value)

    with opened(Spread.parse("2+1", 3)) as ranks:
        told = in_parallel(ranks, work)
    assert any(pytest.RaisesExc(CollectiveError, match=expected).matches(CollectiveError(words)) for words in told)


def test_a_rank_that_does_not_come_is_named_on_all_nodes() -> None:
    def work(rank: Hierarchical) -> str:
        rank.barrier()  # so that all threads have begun
        if rank.rank == 3:
            return ""
        with pytest.raises(CollectiveError) as error:
            rank.all_reduce(np.zeros(5), timeout=0.4)
        return str(error.value)

    with opened(Spread.parse("2+2", 4)) as ranks:
        told = in_parallel(ranks, work)
        assert all("ranks [3] late" in words for words in (told[0], told[2]))
        with pytest.raises(CollectiveError, match="not possible, since an operation failed before"):
            ranks[0].barrier()


def test_abort_frees_all_ranks_of_all_nodes() -> None:
    with opened(Spread.parse("2+1", 3)) as ranks:
        threading.Timer(0.05, ranks[2].abort, ["enough"]).start()
        started = time.monotonic()

        def work(rank: Hierarchical) -> str:
            with pytest.raises(CollectiveError) as error:
                rank.all_reduce(np.zeros(5), timeout=60.0)
            return str(error.value)

        told = in_parallel(ranks[:2], work)
        assert time.monotonic() - started < 30
        assert any("the node of ranks [2] gave up: enough" in words for words in told)


def test_nothing_is_left_open_and_what_is_wrong_is_said() -> None:
    gc.collect()
    spread = Spread.parse("1+1", 2)
    with pytest.raises(CollectiveError, match="connect comes first"):
        Hierarchical(0, spread).barrier()
    with opened(spread) as ranks:
        in_parallel(ranks, lambda rank: rank.all_reduce(np.zeros(5)))
        with pytest.raises(ValueError, match=r"a rank lies in 0\.\.1, but got 2"):
            ranks[0].broadcast(np.zeros(1), 2)
        with pytest.raises(ValueError, match="contiguous"):
            ranks[0].all_reduce(np.zeros((2, 4))[:, ::2])
    with pytest.raises(CollectiveError, match="since it is closed"):
        ranks[0].barrier()
    ranks.clear()
    del ranks
    assert descriptors("retape-hierarchy") == 0
