"""Where workers go, what is told when there is no room, and that nothing stays set aside."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import ray

from distributed import ClusterError, Trainer, placement
from distributed.nodes import Node
from distributed.placement import Room, missing
from framework import Chain, CrossEntropy, Linear
from framework.data import clusters

MIB = 2**20


def trainer(**options: Any) -> Trainer:
    data = clusters(128, 8, 10)
    run: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 2, "validation_examples": 16}
    return Trainer(Chain(Linear(10)), CrossEntropy(), data=data, **{**run, **options})


def set_aside() -> list[str]:
    """The states of placement groups that still hold something, or want to."""
    return [group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def node(address: str, cpus: float, all_cpus: float, memory: int = 0, all_memory: int = 0) -> Node:
    return Node(address, f"node:{address}", cpus, memory * MIB, all_memory * MIB, all_cpus, address)


def test_what_is_missing_is_told_node_by_node() -> None:
    nodes = [node("10.0.0.1", 1, 4, 100, 900), node("10.0.0.2", 2, 2, 500, 500)]
    told = missing(Room(4, 1), nodes, 7.5)
    assert "no room for 4 workers of 1 CPU each on its nodes within 7.5 s" in told
    assert "10.0.0.1: 1 of 4 CPUs: room for 1" in told
    assert "10.0.0.2: 2 of 2 CPUs: room for 2" in told
    assert "missing is room for 1 of them: 1 CPU" in told
    assert "others use it; wait for them with a longer --placement-timeout" in told
    told = missing(Room(2, 1, 300 * MIB, together=True), nodes, 60)
    assert "1 CPU and 300.0 MiB of memory each on one node" in told
    assert "10.0.0.2: 2 of 2 CPUs, 500.0 MiB of 500.0 MiB of memory: room for 1" in told
    assert "room for 1 of them: 1 CPU and 300.0 MiB" in told
    assert "others use it" in told  # the first node has room for both when they are gone
    told = missing(Room(4, 3), nodes, 60)
    assert "even with nobody else it has room for 1: add nodes, or lower --workers" in told
    assert "lower --workers, --threads-per-worker" in missing(Room(1, 8), nodes, 60)


def test_workers_take_several_nodes_only_where_none_could_ever_have_all() -> None:
    nodes = [node("10.0.0.1", 1, 4, 100, 900), node("10.0.0.2", 2, 2, 500, 500)]
    assert not Room(4, 1).takes_several(nodes)  # the first has room for all when others have gone
    assert Room(5, 1).takes_several(nodes)
    assert Room(3, 1, 400 * MIB).takes_several(nodes)  # by memory: two on the first, one on the second
    assert not Room(7, 1).takes_several(nodes)  # nor would several do


def test_workers_without_room_are_an_error_in_time_and_nothing_stays_set_aside(ray_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"(?s)for 2 workers of 5 CPUs each .*8 of 8 CPUs.*add nodes"):
        trainer(workers=2, threads_per_worker=5, placement_timeout=0.5).fit()
    assert set_aside() == []


def test_memory_that_others_have_taken_meanwhile_is_told_and_nothing_stays_set_aside(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = placement.Placement(ray, Room(2, 1), "pack")
    try:
        places.wait(20.0)
        ((where, workers),) = places.workers_by_node()
        assert workers == 2
        places.set_aside({where: MIB})
        assert set_aside() == ["CREATED", "CREATED"]
        monkeypatch.setattr(placement, "_SET_ASIDE_SECONDS", 0.5)
        with pytest.raises(ClusterError, match=rf"others have taken .*: 1024\.0 TiB on {where.address}; start again"):
            places.set_aside({where: 2**50})
    finally:
        places.remove()
    assert set_aside() == []


def test_ctrl_c_ends_the_waiting_and_nothing_stays_set_aside(ray_cluster: None) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # it is ignored in programs that were started behind a shell
    threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(workers=2, threads_per_worker=5, placement_timeout=100.0).start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert set_aside() == []
    run = trainer(workers=2)
    run.start()
    assert set_aside() == ["CREATED"]
    run.close()
    assert set_aside() == []


def test_what_contradicts_a_spread_over_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="pack or spread, but got 'wide'"):
        trainer(workers=2, placement="wide")
    with pytest.raises(ValueError, match=r"--cross-node forced only pretends"):
        trainer(workers=2, placement="spread", cross_node="forced")
    with pytest.raises(ValueError, match=r"--placement-timeout must be positive"):
        trainer(workers=2, placement_timeout=0.0)
