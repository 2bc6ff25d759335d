"""Which way of holding parameters and optimizer state is chosen, and that by default it costs no rank memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed import Trainer
from distributed.collectives.spread import Spread
from distributed.holding import Holding
from framework import SGD, AdamW, build
from framework.optimizers import Optimizer
from framework.parameters import Layout
from tests.distributed.saved_runs import hashes
from tests.distributed.test_sharded_state import layout_of_sizes, spreads
from tests.distributed.thread_group import threads

__all__ = ["threads"]  # the fixture

OPTIMIZERS = (AdamW(), SGD(0.9), SGD())
RUN: dict[str, Any] = {"batch": 8, "shards": 8, "steps": 2, "validation_examples": 8}


def chosen(optimizer: Optimizer, layout: Layout, spread: Spread, asked: Any = "auto", **more: bool) -> Holding:
    options = {"shard_optimizer": False, "whole_process": False, **more}
    return Holding.chosen(optimizer, layout, spread, share_weights=asked, **options)


@given(
    st.sampled_from(OPTIMIZERS), st.integers(1, 3_000_000), spreads, st.sampled_from(["auto", "yes", "no"]),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_what_is_asked_for_is_done_and_auto_shares_on_one_node_alone(
    optimizer: Optimizer, size: int, spread: Spread, asked: str, sharded: bool, whole: bool
) -> None:
    found = chosen(
        optimizer, layout_of_sizes([size], "float32"), spread, asked, shard_optimizer=sharded, whole_process=whole
    )
    several = len(spread.node_of) > 1
    assert found.sharded >= found.weights
    if asked != "auto":
        assert found.weights == (several and asked == "yes")
        assert found.sharded == (several and (asked == "yes" or sharded))
    elif sharded:
        assert (found.sharded, found.weights) == (several, False)
    else:
        assert found.sharded == found.weights
        assert not found.weights or (several and len(spread.nodes) == 1 and not whole)


@given(st.sampled_from(OPTIMIZERS), st.integers(1, 3_000_000), st.integers(2, 8))
def test_auto_shares_where_no_rank_holds_more_by_it(optimizer: Optimizer, size: int, world: int) -> None:
    layout, spread = layout_of_sizes([size], "float32"), Spread.of([0] * world)
    alike, shared = (chosen(optimizer, layout, spread, asked) for asked in ("no", "yes"))

    def held(holding: Holding, rank: int) -> int:
        update = holding.updates[rank]
        weights = sum(nbytes for of, nbytes in update.held if of.startswith("parameters/"))
        return (weights if holding.weights else layout.nbytes) + update.state + sum(holding.communication.values())

    most = [max(held(holding, rank) for rank in range(world)) for holding in (alike, shared)]
    assert most[0] == layout.nbytes + optimizer.state_nbytes(layout)
    assert chosen(optimizer, layout, spread) == (shared if most[1] <= most[0] else alike)


@pytest.mark.parametrize(
    ("model", "optimizer", "workers", "shares"),
    [
        ("mlp-deep", AdamW(), 2, True),
        ("mlp-deep", AdamW(), 4, True),
        ("mlp-deep", SGD(0.9), 2, True),
        ("mlp-deep", SGD(), 2, False),  # there is no state to share out
        ("lenet", AdamW(), 2, False),  # what brings the state together takes more
        ("lenet", AdamW(), 8, True),
        ("byte-gpt-tiny", AdamW(), 2, True),
    ],
)
def test_by_default_no_rank_s_predicted_peak_is_higher_than_with_a_copy_each(
    model: str, optimizer: Optimizer, workers: int, shares: bool
) -> None:
    made = {
        asked: Trainer(build(model), optimizer=optimizer, workers=workers, share_weights=asked, **RUN)
        for asked in ("auto", "yes", "no")
    }
    assert made["auto"].plans == made["yes" if shares else "no"].plans
    assert made["yes"].plans != made["no"].plans
    for auto, apart in zip(made["auto"].plans.train, made["no"].plans.train, strict=True):
        assert auto.peak <= apart.peak


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_by_default_the_least_budget_of_whole_processes_is_that_of_a_copy_each(workers: int) -> None:
    """There each would count both versions."""
    options = {"workers": workers, "memory_budget": "1GiB", **RUN}
    made = [Trainer(build("mlp-deep"), share_weights=asked, **options) for asked in ("auto", "no", "yes")]
    assert [trainer.planning.holding.weights for trainer in made] == [False, False, True]


def test_a_run_that_shares_by_default_has_the_bits_of_one_process(threads: None) -> None:
    made = Trainer(build("mlp-deep"), workers=2, **RUN)
    assert made.planning.holding.weights
    summary = made.fit().summary
    assert hashes(summary) == hashes(Trainer(build("mlp-deep"), **RUN).fit().summary)
    for rank, plan in zip(summary["ranks"], made.plans.train, strict=True):
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]
        assert plan.peak <= rank["predicted_peak_bytes"]


def test_something_else_than_auto_yes_or_no_is_refused() -> None:
    with pytest.raises(ValueError, match="--share-weights is auto, yes or no, but got True"):
        Trainer(build("mlp-small"), workers=2, share_weights=True, **RUN)
