"""One hash for any number of workers, any policy and budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpointing.reduction_tree import shards_of
from distributed import Trainer
from framework import ArrayDataset, BatchNorm, Chain, CrossEntropy, Dropout, Key, Ledger, Linear, ReLU, build
from framework.data import Batches, EpochOrder, clusters
from tests.pairwise import pairwise, require_all_pairs

ONE_HASH: set[tuple[Any, ...]] = set()
RUN: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 6, "clip_norm": 0.5, "validation_examples": 16, "seed": 7}


def train(workers: int, **options: Any) -> dict[str, Any]:
    model = build("byte-gpt-tiny", dropout=0.1)
    summary = Trainer(model, workers=workers, **{**RUN, **options}).fit().summary
    for rank in summary["ranks"]:
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]
        assert summary["budget_bytes"] is None or rank["ledger_peak_bytes"] <= summary["budget_bytes"]
    return summary


def hashes(summary: dict[str, Any]) -> tuple[Any, ...]:
    names = ("parameters_sha256", "optimizer_sha256", "losses_sha256", "validation_loss")
    return tuple(summary[name] for name in names)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train(0)


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {"memory_budget": "engine:50%"}),
        (1, {"policy": "recompute-all", "memory": "heap"}),
        (2, {"memory_budget": "engine:60%", "bucket_size": "64KiB"}),
        (2, {"policy": "offload", "overlap": False, "share_weights": "no"}),
        (2, {"bucket_size": "1MB", "memory": "heap"}),
        (3, {"policy": "sqrt-n", "bucket_size": "1B"}),
        (4, {}),  # with one copy of the weights, as by default
        (4, {"bucket_size": "300kB", "overlap": False, "shard_optimizer": True}),
    ],
)
def test_any_number_of_workers_gives_the_bits_of_one_process(
    alone: dict[str, Any], ray_cluster: None, workers: int, options: dict[str, Any]
) -> None:
    summary = train(workers, **options)
    assert summary["workers"] == workers
    assert hashes(summary) == hashes(alone)


FACTORS: dict[str, tuple[Any, ...]] = {
    "workers": tuple(range(9)),
    "bucket_size": ("1B", "64KiB", "4MiB"),
    "how": ({"policy": "store-all"}, {"policy": "sqrt-n"}, {"memory_budget": "engine:60%"}),
    "overlap": (True, False),
    "memory": ("block", "heap"),
    "held": ({"shard_optimizer": True}, {"share_weights": "no"}, {}),
}


COVERING = pairwise(FACTORS)


def test_the_covering_set_has_every_pair_and_is_small() -> None:
    assert len(COVERING) <= 40
    require_all_pairs(COVERING, FACTORS)


@pytest.fixture(scope="module")
def alone_in_eight() -> dict[str, Any]:
    return train(0, shards=8, steps=20)


@pytest.mark.memory
@pytest.mark.parametrize("combination", COVERING, ids=lambda each: "-".join(map(str, each.values())))
def test_one_hash_whatever_buckets_overlap_policies_memory_and_sharding(
    alone_in_eight: dict[str, Any], ray_cluster: None, combination: dict[str, Any]
) -> None:
    options = dict(combination)
    workers, more = options.pop("workers"), options.pop("how") | options.pop("held")
    assert hashes(train(workers, shards=8, steps=20, **more, **options)) == hashes(alone_in_eight)


@pytest.mark.soak
@pytest.mark.parametrize("workers", range(9))
def test_two_hundred_steps_have_one_hash_for_0_to_8_workers(ray_cluster: None, workers: int) -> None:
    policy = ("store-all", "sqrt-n", "every-k:1")[workers % 3]
    summary = train(workers, shards=8, steps=200, policy=policy)
    ONE_HASH.add(hashes(summary))
    print(workers, policy, *hashes(summary))
    assert len(ONE_HASH) == 1


def test_ranks_with_more_shards_hold_more_gradients_and_each_peak_is_predicted(ray_cluster: None) -> None:
    trainer = Trainer(build("mlp-small"), workers=3, shards=8, batch=16, steps=2, validation_examples=16)
    ranks = trainer.fit().summary["ranks"]
    assert [rank["shards"] for rank in ranks] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    peaks = [rank["ledger_peak_bytes"] for rank in ranks]
    assert peaks == [plan.peak for plan in trainer.plans.train]
    # Shards 0-1, and 2 besides; 3, and 4-5 besides; 6-7. An odd shard takes scratch for the cotangents of one layer.
    layer = max(map(trainer.layout.own_nbytes, trainer.layout.own))
    assert trainer.layout.nbytes - layer <= peaks[0] - peaks[2] <= trainer.layout.nbytes
    assert 0 <= peaks[1] - peaks[0] <= layer


def test_two_seeds_differ_and_the_same_seed_repeats(alone: dict[str, Any]) -> None:
    assert hashes(train(0)) == hashes(alone)
    other = train(0, seed=8)
    assert other["parameters_sha256"] != alone["parameters_sha256"]
    assert other["losses_sha256"] != alone["losses_sha256"]


def test_workers_take_a_script_s_own_chain_and_arrays(ray_cluster: None) -> None:
    generator = Key(1).generator()
    x = generator.standard_normal((64, 5)).astype(np.float32)
    data = ArrayDataset(x, (x.sum(axis=1) > 0).astype(np.int64), validation=0.25)
    chain = Chain(Linear(16), ReLU(), Dropout(0.1), Linear(2))
    options = {"batch": 16, "shards": 2, "steps": 30, "learning_rate": 1e-2}
    results = [Trainer(chain, CrossEntropy(), data=data, workers=w, **options).fit() for w in (0, 2)]
    assert results[0].parameters.flat.tobytes() == results[1].parameters.flat.tobytes()
    assert results[0].summary["loss_last"] < results[0].summary["loss_first"]


@pytest.mark.parametrize(("workers", "policy"), [(2, "every-k:1"), (3, "store-all")])
def test_running_statistics_have_the_same_bits_for_any_number_of_workers_and_any_policy(
    ray_cluster: None, workers: int, policy: str
) -> None:
    chain, data = Chain(Linear(16), BatchNorm(), ReLU(), Linear(10)), clusters(160, 8, 10)
    options = {"batch": 16, "shards": 4, "steps": 12, "learning_rate": 1e-2, "validation_examples": 32}
    alone = Trainer(chain, CrossEntropy(), data=data, **options).fit()
    shared = Trainer(chain, CrossEntropy(), data=data, workers=workers, policy=policy, **options).fit()
    assert hashes(alone.summary) == hashes(shared.summary)
    for state in (alone.parameters.state, shared.parameters.state):
        assert state is not None and np.ptp(state["1.running_var"]) > 0
    assert alone.parameters.sha256() == shared.parameters.sha256() == alone.summary["parameters_sha256"]


@pytest.mark.parametrize("world", range(1, 9))
def test_each_example_of_an_epoch_goes_to_one_shard_of_one_rank_and_the_next_epoch_has_another_order(
    world: int,
) -> None:
    order, rows = EpochOrder(Batches(168, 16), 3, Ledger()), 2
    epochs = []
    for epoch in range(2):
        seen = [
            order.indices(step, shard * rows, rows)
            for step in range(10 * epoch, 10 * (epoch + 1))
            for rank in range(world)
            for shard in shards_of(8, world, rank)
        ]
        epochs.append([example for some in seen for example in some])
    for examples in epochs:
        assert len(examples) == len(set(examples)) == 160  # of 168, in whole batches
    assert epochs[0] != epochs[1]


def test_the_order_of_examples_and_the_learning_rate_do_not_depend_on_the_workers(ray_cluster: None) -> None:
    """More steps than an epoch has, so that the order is drawn again."""
    chain, data = Chain(Linear(10)), clusters(80, 8, 10)
    options = {"batch": 8, "shards": 4, "steps": 25}
    one, two = (Trainer(chain, CrossEntropy(), data=data, workers=w, **options).fit().history for w in (0, 4))
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert [row[name] for row in one] == [row[name] for row in two]
