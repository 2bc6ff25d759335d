"""One copy of the weights for a node's workers, in two versions. Ranks are threads of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing import InfeasibleBudget
from distributed import Trainer
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.spread import Spread
from distributed.collectives.transport import InProcess, Network
from distributed.sharded_state import ShardedState, StateCarrier, across_nbytes
from distributed.shared_weights import UNFINISHED, SharedWeights, held_nbytes, others_versions_nbytes
from framework import SGD, Key, Ledger, Parameters, build
from framework.parameters import Layout, ParameterSpec, Uniform
from tests.distributed.collectives.worlds import in_parallel
from tests.distributed.saved_runs import hashes
from tests.distributed.test_sharded_state import layout_of_sizes, spreads, trainer
from tests.distributed.thread_group import threads

__all__ = ["threads"]  # the fixture

KEY = Key(3)


class Rank:
    """A worker's weights, and what shares the state of plain SGD out."""

    def __init__(self, rank: int, spread: Spread, layout: Layout) -> None:
        self.rank, self.ledger = rank, Ledger()
        self.weights = SharedWeights(rank, spread, layout, KEY, self.ledger)
        self.carrier = StateCarrier(rank, spread, 30.0, Network(), Ledger())
        self.state = ShardedState(self.carrier.communicator, layout, Ledger(), spread)

    def step(self, step: int) -> None:
        """Adds the step's number to all parameters."""
        self.write(step)
        self.state.publish(self.weights, step)

    def write(self, more: int) -> None:
        """Adds a number to its part of the parameters."""
        present = self.weights.flat[self.state.part]
        coming = self.state.begin(self.weights)
        np.add(present, present.dtype.type(more), out=present if coming is None else coming)


@contextmanager
def opened(spread: Spread, layout: Layout) -> Iterator[list[Rank]]:
    ranks = [Rank(rank, spread, layout) for rank in range(len(spread.node_of))]
    inboxes: list[Any] = [getattr(ranks[leader].carrier.communicator, "inbox", None) for leader in spread.leaders]
    try:
        for rank in ranks:
            rank.carrier.connect([other.carrier.communicator.address for other in ranks], InProcess(inboxes))
            rank.weights.connect([other.weights.address for other in ranks])
        yield ranks
    finally:
        for rank in ranks:
            rank.weights.close()
            rank.carrier.communicator.close()


def shared_bytes(ranks: Sequence[Rank]) -> list[int]:
    """The kernel's word for the memory of versions that was touched."""
    addresses = [rank.weights.address for rank in ranks]
    return [os.fstat(each.descriptor).st_blocks * 512 if each else 0 for each in addresses]


@given(
    spread=spreads,
    sizes=st.lists(st.sampled_from([1, 7, 4095, 4096, 4097, 30_000]), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_all_ranks_read_what_all_have_written_and_hold_what_is_predicted(
    spread: Spread, sizes: list[int], dtype: str
) -> None:
    layout = layout_of_sizes(sizes, dtype)
    alone = Parameters.initialize(layout, KEY)
    with opened(spread, layout) as ranks:
        for step in range(3):
            in_parallel(ranks, lambda rank, step=step: rank.step(step))
        for rank in ranks:
            assert (rank.weights.flat == alone.flat + 3).all()
            assert all((rank.weights[name] == alone[name] + 3).all() for name in layout.specs)
            assert rank.weights.published == 3
            assert rank.ledger.live == sum(held_nbytes(layout, spread, rank.rank).values())
        held, page = shared_bytes(ranks), 4096
        for rank, nbytes in zip(ranks, held, strict=True):
            assert rank.ledger.live <= nbytes + page if rank.ledger.live else nbytes == 0
            assert nbytes <= rank.ledger.live + page  # the last is touched in part
        for here in spread.nodes:
            whole = sum(ranks[rank].ledger.live for rank in here)
            assert whole == min(2, len(here)) * (layout.nbytes + page)
            for rank in here:
                assert ranks[rank].ledger.live + others_versions_nbytes(layout, spread, rank) == whole


@given(spread=spreads, sizes=st.lists(st.sampled_from([1, 7, 4097, 30_000]), min_size=1, max_size=6))
def test_ranks_begin_with_the_values_of_one_process_whoever_has_drawn_them(spread: Spread, sizes: list[int]) -> None:
    specs = {f"p{n}.weight": ParameterSpec((size,), np.dtype("float32"), Uniform(1.0)) for n, size in enumerate(sizes)}
    layout = Layout(specs)
    alone = Parameters.initialize(layout, KEY)
    with opened(spread, layout) as ranks:
        for rank in ranks:
            assert rank.weights.flat.tobytes() == alone.flat.tobytes()
            assert rank.weights.published == 0


def test_until_a_step_is_finished_the_weights_before_it_are_whole() -> None:
    layout, spread = layout_of_sizes([30_000], "float32"), Spread.of([0, 0, 0])
    with opened(spread, layout) as ranks:
        in_parallel(ranks, lambda rank: rank.step(1))
        before = ranks[0].weights.flat.copy()
        for rank in ranks[:2]:  # the third dies before it has written its part
            rank.write(2)
        for rank in ranks:
            assert (rank.weights.flat == before).all()
            assert rank.weights.published == 2
            assert rank.weights.coming[0] == before[0] + 2
        numbers = [rank.weights._number((rank.weights.version + 1) % 2)[0] for rank in ranks]
        assert numbers == [UNFINISHED] * 3  # a newcomer is told that it is not to be read
        ranks[2].carrier.communicator.abort()
        with pytest.raises(CollectiveError, match="rank 2 gave up"):
            ranks[0].state.publish(ranks[0].weights, 2)
        assert (ranks[0].weights.flat == before).all()


def test_a_rank_alone_on_its_node_updates_its_one_version_in_place() -> None:
    layout, spread = layout_of_sizes([20_000], "float32"), Spread.parse("2+1", 3)
    with opened(spread, layout) as ranks:
        assert ranks[2].weights.begin(slice(3, 9)) is None
        coming = ranks[0].weights.begin(slice(3, 9))
        assert coming is not None and not np.shares_memory(coming, ranks[0].weights.flat)
        assert across_nbytes(spread, 2) == across_nbytes(spread, 0) > across_nbytes(spread, 1) == 0


@pytest.mark.parametrize("world", [2, 4, *(pytest.param(world, marks=pytest.mark.memory) for world in (3, 5, 8))])
def test_a_run_has_the_bits_of_one_process_and_each_rank_s_bytes_are_predicted(threads: None, world: int) -> None:
    optimizer = SGD(0.9, weight_decay=0.1, nesterov=True)
    alone = trainer(optimizer=optimizer).fit().summary
    made = trainer(optimizer=optimizer, workers=world, share_weights="yes", policy="sqrt-n", bucket_size="1KiB")
    summary = made.fit().summary
    assert hashes(summary) == hashes(alone)
    state = made.layout.state.nbytes  # each rank has BatchNorm's statistics
    for rank, plan in zip(summary["ranks"], made.plans.train, strict=True):
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]
        held = plan.simulation.timeline[-1].categories["parameters"]
        assert held == state + (made.layout.nbytes + 4096 if rank["rank"] < 2 else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_with_one_rank_the_option_changes_nothing(threads: None, workers: int) -> None:
    plain, shared = (trainer(workers=workers, share_weights=on, steps=3) for on in ("no", "yes"))
    assert plain.plans == shared.plans
    assert hashes(plain.fit().summary) == hashes(shared.fit().summary)


def test_a_budget_is_met_by_every_rank_and_the_least_is_no_more_than_with_the_state_alone_shared_out(
    threads: None,
) -> None:
    options = {"batch": 8, "shards": 4, "steps": 2, "validation_examples": 8, "workers": 4}
    least = []
    for how in ({"shard_optimizer": True}, {"share_weights": "yes"}):
        with pytest.raises(InfeasibleBudget) as error:
            Trainer(build("mlp-deep"), memory_budget="engine:1KiB", **how, **options)
        least.append(error.value.smallest)
    assert least[1] <= least[0] + 4096
    summary = (
        Trainer(build("mlp-deep"), memory_budget=f"engine:{least[1]}", share_weights="yes", **options).fit().summary
    )
    assert summary["ledger_peak_bytes"] <= least[1]
