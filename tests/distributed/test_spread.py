"""Workers on several nodes: the same bits, and the bytes that were predicted."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from distributed import Trainer
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.ray_transport import ACTOR_OPTIONS, MOST, RayTransport
from distributed.collectives.transport import Message
from distributed.groups import RayGroup
from framework import Chain, CrossEntropy, Dropout, Linear, ReLU
from framework.data import clusters
from framework.memory import Array
from tests.distributed.leftovers import NOTHING, with_own_temporary_files
from tests.pairwise import pairwise, require_all_pairs

RUN: dict[str, Any] = {"batch": 16, "shards": 4, "steps": 6, "clip_norm": 0.5, "validation_examples": 32, "seed": 7}
SAME = ("parameters_sha256", "optimizer_sha256", "losses_sha256", "validation_loss")


def trainer(workers: int, **options: Any) -> Trainer:
    chain = Chain(Linear(300), ReLU(), Dropout(0.1), Linear(200), ReLU(), Linear(10))
    return Trainer(chain, CrossEntropy(), data=clusters(256, 64, 10), workers=workers, **{**RUN, **options})


def require_as_predicted(summary: dict[str, Any]) -> None:
    for rank in summary["ranks"]:
        assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return trainer(0).fit().summary


FORCED = [
    (2, {"cross_node": "forced", "verify_memory": True, "shard_optimizer": True}),
    (3, {"cross_node": "2+1", "bucket_size": "64KiB", "chunk_size": "10KB", "memory": "heap", "pretend_loss": 0.05}),
    (4, {"share_weights": "yes", "verify_memory": True, "memory_budget": "engine:100%"}),
    (3, {"cross_node": "2+1", "share_weights": "yes", "chunk_size": "1MB"}),
    (4, {"cross_node": "2+2", "share_weights": "yes", "policy": "sqrt-n", "chunk_size": "10KB"}),
]
FACTORS: dict[str, tuple[Any, ...]] = {
    "where": ((4, "auto"), (2, "forced"), (3, "2+1"), (4, "2+2"), (4, "3+1")),
    "state": ({"share_weights": "no"}, {"shard_optimizer": True}, {"share_weights": "yes"}),
    "chunk_size": ("1KB", "64KiB", "512KiB"),
    "policy": ("store-all", "sqrt-n"),
    "memory": ("block", "heap"),
    "pretend_loss": (None, 0.1),
}
COVERING = pairwise(FACTORS)
MORE = [
    (4, {"cross_node": "2+2", "overlap": False, "pretend_delay": 0.01, "pretend_loss": 0.1}),
    (4, {"cross_node": "3+1", "chunk_size": "100B", "bucket_size": "1MiB", "steps": 2}),
    (4, {"cross_node": "forced", "bucket_size": "1B", "policy": "sqrt-n"}),
    (3, {"cross_node": "2+1", "verify_memory": True, "memory_budget": "engine:100%"}),
    (3, {"cross_node": "1+2", "pretend_loss": 0.3, "memory": "heap"}),
]


def test_the_covering_set_has_every_pair_and_is_small() -> None:
    assert len(COVERING) <= 30
    require_all_pairs(COVERING, FACTORS)


@pytest.mark.memory
@pytest.mark.parametrize("combination", COVERING, ids=lambda each: "-".join(map(str, each.values())))
def test_one_hash_whatever_nodes_state_weights_chunks_policies_and_memory(
    alone: dict[str, Any], ray_cluster: None, combination: dict[str, Any]
) -> None:
    options = dict(combination)
    workers, spread = options.pop("where")
    if spread == "auto":
        del options["pretend_loss"]  # there is nothing between nodes
    summary = trainer(workers, cross_node=spread, **options.pop("state"), **options).fit().summary
    assert [summary[name] for name in SAME] == [alone[name] for name in SAME]
    require_as_predicted(summary)


@pytest.mark.parametrize(("workers", "options"), FORCED)
def test_the_path_across_nodes_changes_no_bit_on_one_machine(
    alone: dict[str, Any], ray_cluster: None, workers: int, options: dict[str, Any]
) -> None:
    summary = trainer(workers, **options).fit().summary
    assert [summary[name] for name in SAME] == [alone[name] for name in SAME]
    require_as_predicted(summary)


@pytest.mark.memory
@pytest.mark.parametrize(("workers", "options"), MORE)
def test_more_ways_across_nodes_change_no_bit(ray_cluster: None, workers: int, options: dict[str, Any]) -> None:
    steps = options.get("steps", RUN["steps"])
    summary, alone = trainer(workers, **options).fit().summary, trainer(0, steps=steps).fit().summary
    assert [summary[name] for name in SAME] == [alone[name] for name in SAME]
    require_as_predicted(summary)


@pytest.mark.parametrize(
    "cpus",
    [
        pytest.param((1, 1), marks=pytest.mark.memory),
        pytest.param((2, 1), marks=pytest.mark.memory),
        pytest.param((2, 2), marks=pytest.mark.soak),
        pytest.param((3, 1), marks=pytest.mark.soak),
    ],
)
def test_a_cluster_of_two_nodes_gives_the_bits_of_one_process(cpus: tuple[int, int], tmp_path: Path) -> None:
    """In a process of its own, which is connected to no other cluster."""
    words = [sys.executable, "-m", "tests.distributed.spread_cluster", str(tmp_path), *map(str, cpus)]
    found = with_own_temporary_files(words, tmp_path / "temporary")
    assert found["seen"] > 0 and found["left"] == NOTHING
    assert len(found["spread"]) == 3
    for alone, others in ((each["alone"], each["spread"]) for each in (found, found["command"])):
        for summary in others:
            assert [summary[name] for name in SAME] == [alone[name] for name in SAME]
            assert summary["nodes"] == "+".join(map(str, cpus))
            require_as_predicted(summary)


class Taker:
    """Takes messages, and tells how many arrays came with one, and how many of them lie in Ray's object store."""

    def deliver(self, message: Message, *numbers: Array) -> list[int]:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        stores = [[int(end, 16) for end in line[0].split("-")] for line in lines if "plasma" in line[-1] + line[-2]]
        at = [each.__array_interface__["data"][0] for each in numbers]
        return [len(at), sum(any(start <= place < stop for start, stop in stores) for place in at)]


def test_only_messages_that_are_too_large_for_a_call_pass_the_object_store(ray_cluster: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know no module of tests
    taker = ray.remote(num_cpus=0, **ACTOR_OPTIONS)(Taker).remote()
    transport = RayTransport([taker])
    small, large = np.zeros(512 * 1024, np.uint8), np.zeros(MOST // 2 + 8, np.uint8)
    for arrays, found in (((small, small), [12, 0]), ((large, large), [2, 2])):
        receipt = transport.post(0, Message(0, 0, "words", arrays))
        deadline = time.monotonic() + 60
        while (arrived := receipt.arrived()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert arrived == found
    ray.kill(taker)


def test_a_leader_that_is_killed_ends_the_run_with_its_name(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others must say so before Ray's driver does: it is asked for what the survivor of another node raises."""
    run = trainer(2, cross_node="forced", timeout=60.0)
    run.start()
    group = run._group
    assert isinstance(group, RayGroup)
    survivor, lost = group._actors
    (pid,) = ray.get([lost.pid.remote()])
    call = survivor.step.remote(0)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    try:
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            ray.get(call, timeout=60)
        assert isinstance(error.value.cause, CollectiveError)
        assert error.value.cause.dead == (1,)
        assert "rank 0: rank 1 died" in str(error.value.cause)
    finally:
        run.close()


def test_what_is_no_spread_or_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--cross-node .*'2\+2' does not spread 3 ranks over nodes"):
        trainer(3, cross_node="2+2")
    with pytest.raises(ValueError, match="--chunk-size"):
        trainer(2, chunk_size="much")
    with pytest.raises(ValueError, match=r"a loss a part of all messages, but got 0\.0 and 2"):
        trainer(2, cross_node="1+1", pretend_loss=2.0)
