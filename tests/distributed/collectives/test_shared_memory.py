"""Every collective gives the bits of one process in tree order. Ranks are threads of this process."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.collectives.communicator import CollectiveError, Communicator, Op, slices_of
from distributed.collectives.shared_memory import SharedMemory
from tests.distributed.collectives.worlds import descriptors, in_parallel, numbers, opened

worlds = st.integers(1, 8)
sizes = st.sampled_from([0, 1, 2, 1023, 4096, 4097, 20_001, 70_001])
dtypes = st.sampled_from(["float32", "float64", "int64"])
#: In place, and copied in pieces of several sizes.
ways = st.sampled_from([None, 64, 4096, 100_000, 1 << 21])

UFUNCS: dict[str, np.ufunc] = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}


def in_tree_order(arrays: list[np.ndarray], op: str = "sum") -> np.ndarray:
    """The reference, written anew: neighbours first, then neighbours of the results, an odd one carried."""
    if len(arrays) == 1:
        return arrays[0]
    pairs = [UFUNCS[op](a, b) for a, b in zip(arrays[::2], arrays[1::2], strict=False)]
    return in_tree_order(pairs + arrays[2 * len(pairs) :], op)


def open_way(world: int, size: int, way: int | None) -> Any:
    """Opens a world; a large array is not cut into thousands of pieces."""
    return opened(world) if way is None else opened(world, chunk=max(way, size // 2))


def array_of(rank: SharedMemory, values: np.ndarray, way: int | None) -> np.ndarray:
    array = rank.empty(values.shape, values.dtype) if way is None else np.empty_like(values)
    array[...] = values
    return array


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(world=worlds, size=sizes, dtype=dtypes, way=ways, op=st.sampled_from(sorted(UFUNCS)))
def test_an_all_reduce_has_the_bits_of_one_process(world: int, size: int, dtype: str, way: int | None, op: Op) -> None:
    given_ = numbers(world, size, dtype)
    with np.errstate(all="ignore"):
        expected = in_tree_order(given_, op)

    def work(rank: SharedMemory) -> list[np.ndarray]:
        results = []
        array = array_of(rank, given_[rank.rank], way)
        for _ in range(3):
            array[...] = given_[rank.rank]
            results.append(rank.all_reduce(array, op).copy())
            rank.barrier()
        return results

    with open_way(world, size, way) as ranks:
        for results in in_parallel(ranks, work):
            assert all(same_bits(result, expected) for result in results)


@given(world=worlds, size=sizes, dtype=dtypes, way=ways)
def test_a_reduce_scatter_gives_each_rank_its_slice_and_an_all_gather_puts_them_together(
    world: int, size: int, dtype: str, way: int | None
) -> None:
    given_ = numbers(world, size, dtype)
    expected = in_tree_order(given_)
    slices = slices_of(size, world)
    assert sum(len(range(size)[part]) for part in slices) == size

    def work(rank: SharedMemory) -> tuple[np.ndarray, np.ndarray]:
        array = array_of(rank, given_[rank.rank], way)
        mine = rank.reduce_scatter(array)
        assert np.shares_memory(mine, array) or not mine.size
        part = mine.copy()
        rest = np.ones(size, bool)
        rest[slices[rank.rank]] = False
        assert same_bits(array[rest], given_[rank.rank][rest])
        array[rest] = 0
        return part, rank.all_gather(array).copy()

    with open_way(world, size, way) as ranks:
        for rank, (part, whole) in enumerate(in_parallel(ranks, work)):
            assert same_bits(part, expected[slices[rank]])
            assert same_bits(whole, expected)


@given(world=worlds, size=sizes, dtype=dtypes, way=ways, root=st.integers(0, 7))
def test_a_broadcast_gives_all_the_numbers_of_one(
    world: int, size: int, dtype: str, way: int | None, root: int
) -> None:
    root %= world
    given_ = numbers(world, size, dtype)

    def work(rank: SharedMemory) -> list[np.ndarray]:
        results = []
        for turn in range(3):
            array = array_of(rank, given_[rank.rank] + np.asarray(turn, dtype), way)
            results.append(rank.broadcast(array, root).copy())
            rank.barrier()
        return results

    with open_way(world, size, way) as ranks:
        for results in in_parallel(ranks, work):
            for turn, result in enumerate(results):
                assert same_bits(result, given_[root] + np.asarray(turn, dtype))


@given(world=worlds, size=sizes, dtype=dtypes, chunk=st.sampled_from([64, 4096, 1 << 21]), root=st.integers(0, 7))
def test_calls_of_all_kinds_follow_each_other_without_a_barrier(
    world: int, size: int, dtype: str, chunk: int, root: int
) -> None:
    root %= world
    given_ = numbers(world, size, dtype)
    expected = in_tree_order(given_)

    def work(rank: SharedMemory) -> None:
        mine = given_[rank.rank]
        for _ in range(2):
            reduced = rank.reduce(mine.copy(), root)
            assert same_bits(reduced, expected if rank.rank == root else mine)
            gathered = [np.empty_like(mine) for _ in range(world)]
            rank.gather_parts(gathered, mine)
            assert all(same_bits(a, b) for a, b in zip(gathered, given_, strict=True))
            sent = rank.broadcast(mine.copy(), root)
            assert same_bits(sent, given_[root])
            out = np.empty_like(mine)
            rank.reduce_parts([mine] * world, out)
            assert same_bits(out, expected)
            assert same_bits(rank.all_reduce(mine.copy()), expected)

    with open_way(world, size, chunk) as ranks:
        in_parallel(ranks, work)


@pytest.mark.memory
@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_ten_million_numbers_have_the_bits_of_one_process(world: int, dtype: str) -> None:
    size = 10_000_000
    (some,) = numbers(1, size, dtype)
    given_ = [np.roll(some, 1001 * rank) for rank in range(world)]
    expected = in_tree_order(given_)

    def work(rank: SharedMemory) -> bool:
        here = array_of(rank, given_[rank.rank], None)
        in_place = same_bits(rank.all_reduce(here), expected)
        rank.barrier()
        return in_place and same_bits(rank.all_reduce(given_[rank.rank]), expected)

    with opened(world, capacity=10 * size) as ranks:
        assert in_parallel(ranks, work) == [True] * world


@pytest.mark.memory
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_ten_million_numbers_are_scattered_gathered_and_broadcast_bit_for_bit(world: int, dtype: str) -> None:
    size, root = 10_000_000, world - 1
    (some,) = numbers(1, size, dtype)
    given_ = [np.roll(some, 1001 * rank) for rank in range(world)]
    expected, roots = in_tree_order(given_), given_[root].copy()
    slices = slices_of(size, world)

    def work(rank: SharedMemory) -> None:
        for way in (None, 1):
            array = rank.empty(size, dtype) if way is None else given_[rank.rank]  # itself, to save memory
            array[...] = given_[rank.rank]
            assert same_numbers(rank.reduce_scatter(array), expected[slices[rank.rank]])
            assert same_numbers(rank.all_gather(array), expected)
            array[...] = roots if rank.rank == root else 0
            assert same_numbers(rank.broadcast(array, root), roots)
            rank.barrier()  # in place, what was compared is the root's array

    with opened(world, capacity=10 * size) as ranks:
        in_parallel(ranks, work)


def same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Compares the bits of large flat arrays without copying them."""
    bits = f"u{a.itemsize}"
    return a.dtype == b.dtype and np.array_equal(a.view(bits), b.view(bits))


@pytest.mark.parametrize("dtype", ["float16", "complex64", "complex128", "int8", "uint16", "uint64"])
def test_other_numbers_can_be_added_too(dtype: str) -> None:
    given_ = [array.astype(dtype) for array in numbers(3, 5001, "int64")]
    expected = in_tree_order(given_)
    with opened(3, chunk=4096) as ranks:
        for result in in_parallel(ranks, lambda rank: rank.all_reduce(given_[rank.rank].copy())):
            assert same_bits(result, expected)


def test_in_place_the_result_is_rank_0s_array_and_the_others_are_unchanged() -> None:
    with opened(3) as ranks:
        arrays = [rank.empty(10) for rank in ranks]
        for rank, array in enumerate(arrays):
            array.fill(10**rank)
        results = in_parallel(ranks, lambda rank: rank.all_reduce(arrays[rank.rank]))
        assert [array[0] for array in arrays] == [111, 10, 100]
        arrays[0].fill(5)
        assert all(np.all(result == 5) and not result.flags.writeable for result in results)


def test_messages_between_two_ranks_arrive_in_order() -> None:
    messages = [*numbers(1, 200_001, "float64"), np.arange(6, dtype=np.int8).reshape(2, 3), np.empty(0, np.float32)]

    def work(rank: SharedMemory) -> list[np.ndarray]:
        if rank.rank == 1:
            for message in messages:
                rank.send(message, to=2)
            return []
        if rank.rank == 2:
            return [rank.receive(np.empty_like(message), source=1) for message in messages]
        return []  # takes no part

    with opened(3) as ranks:
        received = in_parallel(ranks, work)[2]
    assert all(same_bits(a, b) for a, b in zip(received, messages, strict=True))


def test_a_message_of_another_kind_is_refused_by_name() -> None:
    def work(rank: SharedMemory) -> str:
        try:
            if rank.rank == 0:
                rank.send(np.zeros((2, 3), np.float32), to=1)
                rank.barrier()
            else:
                rank.receive(np.zeros(6, np.float32), source=0)
        except CollectiveError as error:
            return str(error)
        return "no error"

    with opened(2) as ranks:
        sender, receiver = in_parallel(ranks, work)
    assert receiver == "rank 1: expects float32[6] of rank 0, who sent float32[2, 3]"
    assert sender.startswith("rank 0: barrier() given up")


DISAGREEMENTS: dict[str, tuple[Callable[[SharedMemory], Any], str]] = {
    "size": (
        lambda rank: rank.all_reduce(np.zeros(3 + (rank.rank == 1), np.float32)),
        r"ranks \[0, 2\] call all_reduce\(sum, float32\[3\]\); ranks \[1\] call all_reduce\(sum, float32\[4\]\)",
    ),
    "shape": (
        lambda rank: rank.broadcast(np.zeros((2, 3) if rank.rank else 6)),
        r"ranks \[0\] call broadcast\(root 0, float64\[6\]\); ranks \[1, 2\] call broadcast\(root 0, float64\[2, 3\]\)",
    ),
    "dtype": (lambda rank: rank.all_gather(np.zeros(3, "f4" if rank.rank else "f8")), "float64.*float32"),
    "op": (lambda rank: rank.all_reduce(np.zeros(3), "min" if rank.rank else "max"), "max.*min"),
    "root": (lambda rank: rank.broadcast(np.zeros(3), rank.rank), "root 0.*root 1.*root 2"),
    "operation": (lambda rank: rank.barrier() if rank.rank else rank.all_reduce(np.zeros(3)), "all_reduce.*barrier"),
    "place": (
        lambda rank: rank.all_reduce(rank.empty(3) if rank.rank == 2 else np.zeros(3, np.float32)),
        r"ranks \[2\] call all_reduce\(sum, float32\[3\], in place\)",
    ),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_do_not_call_the_same_are_told_who_calls_what(what: str) -> None:
    call, expected = DISAGREEMENTS[what]

    def work(rank: SharedMemory) -> None:
        with pytest.raises(CollectiveError, match=f"rank {rank.rank}: all ranks must call the same, but .*{expected}"):
            call(rank)

    with opened(3) as ranks:
        in_parallel(ranks, work)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4))[:, 0], r"contiguous arrays, but got float64\[4\] with strides \(32,\)"),
        (np.array(["a"]), "numbers of this machine's formats, but got <U1"),
        (np.zeros(3, ">f4"), "numbers of this machine's formats, but got >f4"),
        (np.zeros(3, bool), "reduce numbers of this machine's formats, but got bool"),
        (np.broadcast_to(np.float32(1), (1,)), "read-only; give a copy"),
    ],
)
def test_arrays_that_cannot_be_carried_are_refused_before_anybody_is_told(array: np.ndarray, message: str) -> None:
    with opened(2) as ranks:
        with pytest.raises(ValueError, match=message):
            ranks[0].all_reduce(array)
        with pytest.raises(TypeError, match="NumPy arrays, but got list"):
            ranks[0].all_reduce([1.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one of sum, product, min, max, but got 'mean'"):
            ranks[0].all_reduce(np.zeros(3), "mean")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"a rank lies in 0\.\.1, but got 2"):
            ranks[0].broadcast(np.zeros(3), 2)
        assert in_parallel(ranks, lambda rank: rank.all_reduce(np.ones(1))[0]) == [2.0, 2.0]


def test_a_collective_that_waited_too_long_names_the_late_and_frees_the_others() -> None:
    def work(rank: SharedMemory) -> str:
        if rank.rank == 2:
            return ""
        with pytest.raises(CollectiveError) as error:
            rank.all_reduce(np.zeros(5, np.float32), timeout=0.2 if rank.rank == 0 else 60.0)
        assert error.value.operation == "all_reduce(sum, float32[5])"
        return str(error.value)

    with opened(3) as ranks:
        first, second, _ = in_parallel(ranks, work)
        assert first.startswith("rank 0: ranks [2] late, waited 0.")
        assert first.endswith(" s in all_reduce(sum, float32[5])")
        assert second.startswith("rank 1: all_reduce(sum, float32[5]) given up after ")
        assert second.endswith(" s, since rank 0 gave up; ranks [2] are late")
        with pytest.raises(CollectiveError, match="not possible, since an operation failed before: CollectiveError"):
            ranks[0].barrier()
        with pytest.raises(CollectiveError, match=r"rank 2: barrier\(\) given up after .* since rank 0 gave up"):
            ranks[2].barrier()


def test_abort_from_another_thread_ends_a_running_collective() -> None:
    with opened(2) as ranks:
        threading.Timer(0.05, ranks[0].abort).start()
        started = time.monotonic()
        with pytest.raises(CollectiveError, match="given up"):
            ranks[0].all_reduce(np.zeros(5), timeout=60.0)
        assert time.monotonic() - started < 30


def test_memory_in_place_is_free_again_when_its_last_view_has_died() -> None:
    with opened(1, capacity=3 * 4096) as (rank,):
        one, two, three = (rank.empty(1024) for _ in range(3))
        with pytest.raises(MemoryError, match=r"no room for 4.0 KiB .* of 12.0 KiB, the largest free piece has 0 B"):
            rank.empty(1)
        view = two[3:]
        del two
        with pytest.raises(MemoryError):
            rank.empty(1)
        del view, one
        both = rank.empty((2, 1024))
        both.fill(1)
        three.fill(2)
        assert np.all(both == 1)
        del both, three
        assert rank.empty(3 * 1024).size == 3 * 1024


def test_a_communicator_leaves_no_descriptor_open_and_is_of_no_use_when_it_is_closed() -> None:
    gc.collect()  # errors of other tests
    with opened(4) as ranks:
        in_parallel(ranks, lambda rank: rank.all_reduce(np.zeros(5)))
        assert descriptors("retape-collectives") >= 4
    with pytest.raises(CollectiveError, match="since it is closed"):
        ranks[0].barrier()
    ranks.clear()
    del ranks
    assert descriptors("retape-collectives") == 0


def test_shared_memory_is_a_communicator() -> None:
    rank: Communicator = SharedMemory(0, 1)
    with pytest.raises(CollectiveError, match="connect comes first"):
        SharedMemory(0, 2).barrier()
    assert rank.all_reduce(np.ones(1))[0] == 1
