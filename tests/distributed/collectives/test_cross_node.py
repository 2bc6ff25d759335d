"""Gradients of several nodes have the bits of one process. Ranks are threads of this process, and so are messages between nodes."""

from __future__ import annotations

import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpointing.reduction import Totals
from checkpointing.reduction_tree import additions_between, in_hierarchy
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.gradient_memory import message_sizes
from distributed.collectives.gradients import GradientReduction
from distributed.collectives.ray_transport import MOST, PIECE, RayTransport
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Faults, Inbox, Message, PeerLost, Receipt, SlotSizes, Transport
from framework import Ledger
from framework.optimizers import NORM_BLOCK
from tests.distributed.collectives import reductions
from tests.distributed.collectives.reductions import PERFECT, all_reduce, gradients, in_parallel, open_world, reference

SIZES = st.sampled_from([0, 1, 4095, 4097, 20_000, 70_001])


@st.composite
def spreads(draw: Any, most: int = 8) -> Spread:
    """Any ranks on any nodes, not only neighbours."""
    return Spread.of(draw(st.lists(st.integers(0, 3), min_size=1, max_size=most)))


def results_of(
    spread: Spread, shards: int, size: int, dtype: str, chunk: int, buckets: int, faults: Faults = PERFECT, **how: Any
) -> tuple[list[np.ndarray], list[Any]]:
    parts = gradients(shards, size, dtype)
    world = len(spread.node_of)
    ranks = open_world(world, shards, size, dtype, faults=faults, spread=spread, chunk=chunk, **how)
    try:
        return parts, in_parallel(ranks, lambda rank: all_reduce(rank, parts, 3, buckets))
    finally:
        for rank in ranks:
            rank.close()


def require_bits(parts: list[np.ndarray], results: list[Any]) -> None:
    for step in range(3):
        assert {result[step][0] for result in results} == {reference(parts, step + 1)}
        assert len({result[step][1:] for result in results}) == 1
        assert results[0][step][2] == 2.0 * len(parts)


@given(
    spread=spreads(),
    shards=st.sampled_from([1, 2, 4, 8, 16]),
    size=SIZES,
    dtype=st.sampled_from(["float32", "float64"]),
    chunk=st.sampled_from([1 << 12, 40_000, 1 << 20]),
    buckets=st.integers(1, 4),
    overlap=st.booleans(),
)
def test_the_mean_gradient_has_the_bits_of_one_process_for_any_spread_and_chunk(
    spread: Spread, shards: int, size: int, dtype: str, chunk: int, buckets: int, overlap: bool
) -> None:
    shards = max(shards, 1 << (len(spread.node_of) - 1).bit_length())
    require_bits(*results_of(spread, shards, size, dtype, chunk, buckets, overlap=overlap))


@pytest.mark.parametrize(
    "spread", ["1+1", "3+1", *(pytest.param(each, marks=pytest.mark.memory) for each in ("2+1", "2+2"))]
)
def test_messages_that_come_late_or_never_change_no_bit(spread: str) -> None:
    world = sum(map(int, spread.split("+")))
    faults = Faults(delay=0.004, loss=0.2, seed=3)
    found = results_of(Spread.parse(spread, world), 4, 30_000, "float32", 1 << 14, 2, faults, retry=0.01)
    require_bits(*found)


class Unlucky:
    """Loses the first dozen of the messages that all leaders send."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.left = inner, 12

    def post(self, to: int, message: Message) -> Receipt:
        if message.number >= 0 and self.left:
            self.left -= 1
            return Lost()
        return self.inner.post(to, message)


class Lost:
    def arrived(self) -> None:
        return None


def test_bad_luck_leaves_tries_before_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that doubles with each of a dozen tries would come to 40 seconds."""
    monkeypatch.setattr(reductions, "Faulty", lambda inner, faults: Unlucky(inner))
    require_bits(*results_of(Spread.parse("1+1", 2), 2, 100, "float32", 1 << 12, 1, retry=0.01, timeout=10.0))


@pytest.mark.memory
@settings(max_examples=100)
@given(spread=spreads(6), size=SIZES, chunk=st.sampled_from([1 << 12, 40_000]), seed=st.integers(0, 10**6))
def test_any_messages_may_come_late_or_never(spread: Spread, size: int, chunk: int, seed: int) -> None:
    require_bits(*results_of(spread, 8, size, "float64", chunk, 2, Faults(0.003, 0.3, seed), retry=0.01))


@given(places=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_additions_within_nodes_and_across_are_those_of_the_tree_in_another_order(places: list[int]) -> None:
    def added(additions: list[tuple[int, int]]) -> str:
        words = [str(first) for first in range(len(places))]  # sums as words, which tell the order of their additions
        for to, other in additions:
            words[to] = f"({words[to]}+{words[other]})"
        return words[0]

    hierarchy = in_hierarchy(dict(enumerate(places)))
    within = [addition for additions in hierarchy.within.values() for addition in additions]
    assert added([*within, *hierarchy.across]) == added(additions_between(range(len(places))))
    for node, additions in hierarchy.within.items():
        assert {places[first] for addition in additions for first in addition} <= {node}
    for to, other in hierarchy.across:  # nothing that could have been added within a node is sent apart
        last = min(other + (other & -other), len(places))
        assert len(set(places[to:last])) > 1


def test_an_inbox_takes_each_message_once_and_no_more_than_it_has_room_for() -> None:
    inbox = Inbox(SlotSizes(1, {1: 64}))
    one, two = Message(1, 0, "one", [np.arange(3)]), Message(1, 1, "two", [np.arange(4.0), np.zeros(0)])
    inbox.deliver(two)
    assert not inbox.wait(1, 0.0)
    inbox.deliver(one)
    inbox.deliver(Message(1, 0, "again", [np.zeros(3)]))
    assert inbox.wait(1, 0.0)
    words, data = inbox.look(1)
    assert (words, data.view(np.int64).tolist()) == ("one", [0, 1, 2])
    with pytest.raises(RuntimeError, match="no room for message 2 of 8 bytes from node 1"):
        inbox.deliver(Message(1, 2, "three", [np.zeros(1)]))
    inbox.take(1)
    inbox.deliver(one)
    assert inbox.look(1)[1].view(np.float64).tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="no room for message 2 of 72 bytes"):
        inbox.deliver(Message(1, 2, "three", [np.zeros(9)]))


@pytest.mark.parametrize(
    "sizes", [(), (0, 5), (PIECE // 8, PIECE // 8 + 1), (100_000, 3), (MOST // 8,), (MOST // 8, 1)]
)
def test_what_a_call_of_ray_brings_are_the_numbers_of_the_message(sizes: tuple[int, ...]) -> None:
    """In arguments that Ray sends with the call, up to so many bytes in all, and else one for each array."""
    calls: list[tuple[Any, ...]] = []
    method = SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *given: calls.append(given)))
    arrays = [np.random.default_rng(size).random(size) for size in sizes]
    message = Message(1, 0, "words", arrays)
    RayTransport([SimpleNamespace(deliver=method)]).post(0, message)
    ((head, *numbers),) = calls
    assert head.nbytes == 0
    if message.nbytes <= MOST:
        assert all(0 < each.nbytes <= PIECE for each in numbers)
    else:
        assert [each.nbytes for each in numbers] == [array.nbytes for array in arrays]
    inbox = Inbox(SlotSizes(1, {1: message.nbytes}))
    inbox.deliver(head.with_numbers(numbers))
    words, data = inbox.look(1)
    assert words == "words"
    assert data.tobytes() == b"".join(array.tobytes() for array in arrays)


@given(spread=spreads(), size=SIZES, chunk=st.sampled_from([100, 4096, 1 << 20]))
def test_the_memory_for_messages_is_known_beforehand(spread: Spread, size: int, chunk: int) -> None:
    for rank in range(len(spread.node_of)):
        sizes = message_sizes(rank, 8, spread, size, 4, chunk)
        assert (sizes is None) == (len(spread.nodes) == 1 or rank not in spread.leaders)
        if sizes is not None:
            most = 8 * 24 + 8 * min(chunk, 4 * (size + NORM_BLOCK)) + 64
            assert sizes.nbytes <= 2 * sizes.lead * most * (len(spread.nodes) - 1) + 4 * most


def errors_of(ranks: list[GradientReduction], absent: int) -> dict[int, CollectiveError]:
    """Lets all ranks but one reduce a gradient; returns what they raise."""

    def work(rank: GradientReduction) -> CollectiveError | None:
        if rank.rank == absent:
            return None
        buffer = Ledger().empty((rank.size,), rank.dtype, "gradients", allocator=rank)
        buffer.fill(0)
        rank.begin({rank.rank: buffer}, [slice(0, rank.size)], {rank.rank: Totals(0.0, 1.0)})
        with pytest.raises(CollectiveError) as error:
            rank.finish()
        rank.abort(str(error.value))
        return error.value

    try:
        return {rank: error for rank, error in enumerate(in_parallel(ranks, work)) if error is not None}
    finally:
        for rank in ranks:
            rank.close()


def test_a_rank_that_is_late_on_another_node_is_named() -> None:
    """Also where it is no leader, and where its own leader has not noticed yet."""
    started = time.monotonic()
    errors = errors_of(open_world(4, 4, 10_000, timeout=0.5, spread=Spread.parse("2+2", 4)), absent=3)
    assert time.monotonic() - started < 20
    assert {error.operation for error in errors.values()} == {"all-reduce"}
    assert "ranks [3] late" in str(errors[0])  # it says so itself, or tells why the other leader gave up
    assert "ranks [3] late" in str(errors[2]) or "ranks [3] are late" in str(errors[2])
    assert any(error.late == (3,) and error.seconds >= 0.5 for error in errors.values())


def test_a_whole_node_that_is_late_is_named() -> None:
    spread = Spread.parse("1+1", 2)
    errors = errors_of(open_world(2, 2, 10_000, timeout=0.3, spread=spread), absent=1)
    assert str(errors[0]).startswith("rank 0: ranks [1] late, on another node, waited 0.")
    assert errors[0].late == (1,)


def test_a_network_that_loses_everything_is_an_error_within_the_timeout() -> None:
    spread = Spread.parse("1+1", 2)
    lossy = Faults(loss=1.0)
    errors = errors_of(open_world(2, 2, 10_000, timeout=0.4, spread=spread, faults=lossy, retry=0.05), absent=-1)
    assert {error.late for error in errors.values()} == {(0,), (1,)}
    assert all(0.4 <= error.seconds < 20 for error in errors.values())


def test_a_rank_that_gives_up_frees_all_ranks_of_all_nodes_at_once() -> None:
    ranks = open_world(4, 4, 10_000, timeout=60.0, spread=Spread.parse("2+2", 4))
    timer = threading.Timer(0.1, ranks[2].abort)
    timer.start()
    started = time.monotonic()
    errors = errors_of(ranks, absent=2)
    assert time.monotonic() - started < 30
    assert sorted(errors) == [0, 1, 3]
    assert any("since the node of ranks [2, 3] gave up: it could not go on" in str(e) for e in errors.values())


def test_nodes_that_do_not_do_the_same_are_told_who_does_what() -> None:
    ranks = open_world(2, 2, 10, timeout=30.0, spread=Spread.parse("1+1", 2))

    def work(rank: GradientReduction) -> str:
        with pytest.raises(CollectiveError) as error:
            if rank.rank:
                rank.total({1: Totals(0.0, 1.0)})
            else:
                rank.begin({0: rank._slot(rank._own, 0)}, [], {0: Totals(0.0, 1.0)})
                rank.finish()
        return str(error.value)

    ranks[0]._slot_at[ranks[0]._slot(ranks[0]._own, 0).__array_interface__["data"][0]] = 0
    assert in_parallel(ranks, work) == [
        "rank 0: all ranks must call the same, but ranks [0] call all-reduce; ranks [1] call exchange of losses",
        "rank 1: all ranks must call the same, but ranks [1] call exchange of losses; ranks [0] call all-reduce",
    ]
    for rank in ranks:
        rank.close()


class Gone:
    """A transport to a process that has ended."""

    def post(self, to: int, message: Message) -> Gone:
        return self

    def arrived(self) -> list[int] | None:
        raise PeerLost("it was killed")


def test_a_leader_that_is_dead_is_named_long_before_the_timeout() -> None:
    ranks = open_world(2, 2, 10_000, timeout=60.0, spread=Spread.parse("1+1", 2))
    assert ranks[0]._cross is not None
    ranks[0]._cross._transport = Gone()
    started = time.monotonic()
    errors = errors_of(ranks, absent=1)
    assert time.monotonic() - started < 30
    assert re.match(r"rank 0: rank 1 died \(it was killed\), waited \d\.\d s in all-reduce", str(errors[0]))
    assert errors[0].dead == (1,)
