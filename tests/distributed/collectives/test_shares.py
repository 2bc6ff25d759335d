"""Which rank adds which elements of a bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.collectives import gradients as reductions
from distributed.collectives.shares import BANDWIDTH, share_by_lead, share_of
from framework.optimizers import NORM_BLOCK
from tests.distributed.collectives.reductions import all_reduce, bucketed, gradients, in_parallel, open_world, reference

#: Bytes that are read and written of an element, and the seconds that a rank takes for a block of them.
NBYTES = 20
EACH = NORM_BLOCK * NBYTES / BANDWIDTH

PLACES = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 90_000)), max_size=4).map(
    lambda runs: [slice(gap + 100_000 * at, gap + 100_000 * at + size) for at, (gap, size) in enumerate(runs)]
)


def elements(share: Sequence[slice]) -> list[int]:
    return [at for place in share for at in range(place.start, place.stop)]


def blocks(share: Sequence[slice]) -> int:
    return -(-len(elements(share)) // NORM_BLOCK)


@given(
    places=PLACES, made=st.lists(st.one_of(st.just(0.0), st.floats(0, 1e-3), st.floats(0, 1e6)), min_size=1, max_size=4)
)
def test_each_element_is_one_ranks(places: list[slice], made: list[float]) -> None:
    shares = [share_by_lead(places, made, rank, NBYTES) for rank in range(len(made))]
    assert [at for share in shares for at in elements(share)] == elements(places)
    if len(made) != 2:
        assert shares == [share_of(places, len(made), rank) for rank in range(len(made))]


@given(count=st.integers(1, 200), made=st.tuples(*[st.floats(0, 300 * EACH)] * 2))
def test_no_other_shares_let_the_later_of_two_be_ready_earlier(count: int, made: tuple[float, float]) -> None:
    shares = [blocks(share_by_lead([slice(0, count * NORM_BLOCK)], made, rank, NBYTES)) for rank in range(2)]
    every = (max(made[0] + first * EACH, made[1] + (count - first) * EACH) for first in range(count + 1))
    assert max(time + EACH * own for time, own in zip(made, shares, strict=True)) <= min(every) + EACH / 1000


def test_two_ranks_that_came_together_share_equally() -> None:
    places = [slice(0, 5 * NORM_BLOCK), slice(10 * NORM_BLOCK, 11 * NORM_BLOCK)]
    assert [share_by_lead(places, [7.0, 7.0], rank, NBYTES) for rank in range(2)] == [
        share_of(places, 2, rank) for rank in range(2)
    ]


@pytest.mark.parametrize(("late", "world"), [(0, 2), (1, 2), (1, 3)])
@pytest.mark.parametrize("overlap", [True, False])
def test_of_two_ranks_the_late_one_adds_nothing_but_of_the_last_bucket(
    late: int, world: int, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, count = 60 * NORM_BLOCK, 3
    added: dict[str, list[int]] = {}

    def add(sums: object, places: Sequence[slice], divisor: float) -> None:
        added.setdefault(threading.current_thread().name, []).append(sum(p.stop - p.start for p in places))
        plain(sums, places, divisor)  # type: ignore[arg-type]

    plain = reductions.reduce_in_tree
    monkeypatch.setattr(reductions, "reduce_in_tree", add)
    parts = gradients(4, size, "float32")
    ranks = open_world(world, 4, size, overlap=overlap)

    def work(rank: reductions.GradientReduction) -> list[tuple[bytes, float, float]]:
        threading.current_thread().name = f"rank {rank.rank}"
        begin = rank.begin

        def begin_late(*bucket: object) -> None:
            time.sleep(
                (0.5 if overlap else 0.1) * (rank.rank == late)
            )  # far longer than a machine under load halts a thread
            begin(*bucket)  # type: ignore[arg-type]

        monkeypatch.setattr(rank, "begin", begin_late)
        return all_reduce(rank, parts, buckets=count)

    results = in_parallel(ranks, work)
    for rank in ranks:
        rank.close()
    assert {result[0][0] for result in results} == {reference(parts, 1)}
    sizes = [sum(place.stop - place.start for place in places) for places in bucketed(size, count)]
    found = [next(each for name, each in added.items() if f"rank {rank.rank}" in name) for rank in ranks]
    assert [*map(sum, zip(*found, strict=True))] == sizes
    equal = np.array([sizes] * world) / world
    if overlap and world == 2:
        equal[late, :-1], equal[1 - late, :-1] = 0, sizes[:-1]
    np.testing.assert_allclose(found, equal, atol=NORM_BLOCK)
