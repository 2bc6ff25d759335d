"""Retape's collectives as a backend of ray.util.collective, and how its groups form."""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util import collective
from ray.util.collective.types import ReduceOp

from distributed.collectives import ray_backend
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.group_forming import form_group
from distributed.collectives.shared_memory import SharedMemory
from framework import Key

ROOT = Path(__file__).parents[3]
WORLD = 3


def array_of(rank: int, size: int = 5001) -> np.ndarray:
    return Key(7).fold(rank).generator().standard_normal(size)


class Member:
    """A process that joins groups, as a Ray actor."""

    def join(self, rank: int, world: int, group: str, timeout: float) -> None:
        ray_backend.register(timeout)
        self.rank, self.group = rank, group
        collective.init_collective_group(world, rank, ray_backend.NAME, group)

    def everything(self) -> dict[str, Any]:
        """Calls each operation."""
        mine, found = array_of(self.rank), {}
        for op in ReduceOp:
            found[f"allreduce {op.name}"] = mine.copy()
            collective.allreduce(found[f"allreduce {op.name}"], self.group, op)
        found["reduce"] = mine.copy()
        collective.reduce(found["reduce"], 1, self.group, ReduceOp.MAX)
        found["broadcast"] = mine.copy()
        collective.broadcast(found["broadcast"], 2, self.group)
        found["allgather"] = [np.empty_like(mine) for _ in range(WORLD)]
        collective.allgather(found["allgather"], mine, self.group)
        found["reducescatter"] = np.empty_like(mine)
        collective.reducescatter(found["reducescatter"], [mine + other for other in range(WORLD)], self.group)
        collective.barrier(self.group)
        found["recv"] = np.empty_like(mine).reshape(3, -1)
        if self.rank == 0:
            collective.send(mine.reshape(3, -1), 2, self.group)
        if self.rank == 2:
            collective.recv(found["recv"], 0, self.group)
        return found

    def reduce_in_place(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what a sum and a broadcast of rank 1's array leave in arrays that live in shared memory."""
        communicator = collective.get_group_handle(self.group).communicator
        one, two = communicator.empty(4), communicator.empty(4)
        one.fill(self.rank + 1)
        two.fill(self.rank + 1)
        collective.allreduce(one, self.group)
        collective.broadcast(two, 1, self.group)
        return one.copy(), two.copy()

    def pid(self) -> int:
        return os.getpid()

    def wait(self) -> str:
        try:
            collective.barrier(self.group)
        except CollectiveError as error:
            return str(error)
        return "no error"

    def leave(self) -> None:
        collective.destroy_collective_group(self.group)


@pytest.fixture(scope="module")
def actors(ray_cluster: None) -> Iterator[list[Any]]:
    remote = ray.remote(num_cpus=0, max_restarts=-1)(Member)  # one is to be killed
    found = [remote.remote() for _ in range(WORLD)]
    yield found
    for actor in found:
        ray.kill(actor)


@contextmanager
def group_of(actors: list[Any], timeout: float = 60.0) -> Iterator[None]:
    """Makes a group of some actors, under a name of its own, which those that can leave."""
    group = f"test-{uuid.uuid4()}"
    ray.get([actor.join.remote(rank, len(actors), group, timeout) for rank, actor in enumerate(actors)])
    yield
    for actor in actors:
        with suppress(ray.exceptions.RayActorError):  # the one that was killed
            ray.get(actor.leave.remote())


def call(actors: list[Any], method: str) -> list[Any]:
    return ray.get([getattr(actor, method).remote() for actor in actors])


def test_every_operation_does_what_ray_says(actors: list[Any]) -> None:
    given = [array_of(rank) for rank in range(WORLD)]
    expected = {
        "allreduce SUM": (given[0] + given[1]) + given[2],
        "allreduce PRODUCT": (given[0] * given[1]) * given[2],
        "allreduce MIN": np.minimum.reduce(given),
        "allreduce MAX": np.maximum.reduce(given),
        "broadcast": given[2],
    }
    with group_of(actors):
        for rank, found in enumerate(call(actors, "everything")):
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name)
            np.testing.assert_array_equal(found["reduce"], expected["allreduce MAX"] if rank == 1 else given[rank])
            np.testing.assert_array_equal(found["allgather"], given)
            shifted = [array + rank for array in given]
            np.testing.assert_array_equal(found["reducescatter"], (shifted[0] + shifted[1]) + shifted[2])
            if rank == 2:
                np.testing.assert_array_equal(found["recv"], given[0].reshape(3, -1))


def test_arrays_that_live_in_shared_memory_hold_the_result_as_others_do(actors: list[Any]) -> None:
    with group_of(actors):
        for one, two in call(actors, "reduce_in_place"):
            assert one.tolist() == [6.0] * 4
            assert two.tolist() == [2.0] * 4


def test_a_peer_that_is_stopped_is_named_after_the_timeout(actors: list[Any]) -> None:
    pids = call(actors[:2], "pid")
    with group_of(actors[:2], timeout=2.0):
        os.kill(pids[1], signal.SIGSTOP)
        try:
            told = ray.get(actors[0].wait.remote())
        finally:
            os.kill(pids[1], signal.SIGCONT)
    assert re.search(r"rank 0: ranks \[1\] late, waited [2-9]\.\d s in barrier\(\)", told)


def test_a_peer_that_is_killed_is_named(actors: list[Any]) -> None:
    with group_of(actors):
        (pid,) = call(actors[2:], "pid")
        waiting = [actor.wait.remote() for actor in actors[:2]]
        os.kill(pid, signal.SIGKILL)
        told = ray.get(waiting)
    assert any(f"rank 2 (pid {pid}) died" in words for words in told)
    for rank, words in enumerate(told):  # the other may have said so first
        assert words.startswith(f"rank {rank}: ")
        assert "died" in words or "given up" in words


def test_the_documented_example_runs(ray_cluster: None) -> None:
    page = (ROOT / "docs" / "collectives.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(program, names)
    assert f"`totals` is `{names['totals']!r}`" in page
    for worker in names["workers"]:
        ray.kill(worker)


class Words:
    """A store in this process."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self._lock = threading.Lock()

    def put(self, key: str, value: str) -> None:
        with self._lock:
            self.words[key] = value

    def get(self, key: str) -> str | None:
        return self.words.get(key)

    def delete(self, key: str) -> None:
        self.words.pop(key, None)


def form(store: Words, world: int, nodes: str, timeout: float = 30.0, absent: int | None = None) -> list[Any]:
    """Returns each rank's communicator, or its error, where `nodes` has a letter for each rank's node."""

    def rank(number: int) -> Any:
        communicator = SharedMemory(number, world, timeout=timeout)
        try:
            form_group(store, "group", communicator, nodes[number], timeout)
        except CollectiveError as error:
            return str(error)
        return communicator

    ranks = [number for number in range(world) if number != absent]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(rank, ranks))


def test_a_group_forms_and_leaves_nothing_in_the_store_also_where_a_former_one_has_left_its_places() -> None:
    store = Words()
    form(store, 3, "aaa")
    assert store.words == {}
    stale = '{"node": "a", "nonce": "0", "address": {"pid": 1, "descriptor": 3, "nbytes": 4096}}'
    for rank in range(3):
        store.put(f"retape/group/{rank}/place", stale)
        store.put(f"retape/group/{rank}/view", "stale")
    ranks = form(store, 3, "aaa")
    assert store.words == {}
    with ThreadPoolExecutor(3) as pool:
        assert [a[0] for a in pool.map(lambda rank: rank.all_reduce(np.full(1, 2.0)), ranks)] == [6.0] * 3


def test_a_group_on_several_nodes_is_refused_with_what_to_do() -> None:
    store = Words()
    told = form(store, 3, "aab")
    for rank, words in enumerate(told):
        assert words.startswith(
            f"rank {rank}: group 'group' is on several nodes (rank 0 on a, rank 1 on a, rank 2 on b)"
        )
        assert words.endswith("STRICT_PACK")
    assert store.words == {}


def test_a_rank_that_does_not_come_is_named() -> None:
    store = Words()
    for rank, words in zip((0, 2), form(store, 3, "aaa", timeout=0.2, absent=1), strict=True):
        assert re.fullmatch(
            rf"rank {rank}: ranks \[(0, )?1(, 2)?\] late, waited 0\.\d s to form group 'group' of 3", words
        )
    assert store.words == {}
