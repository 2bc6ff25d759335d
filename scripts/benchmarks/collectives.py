"""All-reduce between processes of this machine, compared with Gloo and with a plain copy: algorithm bandwidth; and between two nodes.

The algorithm bandwidth of an all-reduce is the bytes of one rank's array over the seconds from the start of the first rank to the end of
the last. Ours is measured for arrays that live in shared memory ("in place") and for arrays anywhere ("copied"); Gloo through
`ray.util.collective`, between the very same Ray actors of one thread. All sides take turns. A megabyte has 10⁶ bytes.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import ray
from benchmarks import cross_node
from benchmarks.measure import Row, installed

from distributed.cluster import connect
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.shared_memory import SharedMemory
from framework.memory import Array

PACKAGES = ("numpy", "ray", "torch")
WORLDS, MEGABYTES = (2, 4), (1, 10, 100)
#: Calls that are not timed, after which all pages are there.
_WARM_UP = 2
#: Turns in which the timed calls are made: what else runs on the machine meets all sides.
_TURNS = 5
_GLOO = "Gloo through ray.util.collective"
_OURS = ("in place", "copied")


class Rank:
    """One worker, as a Ray actor."""

    def __init__(self, rank: int, world: int, most: int, gloo: str | None) -> None:
        self._rank = rank
        self._shared = SharedMemory(rank, world, capacity=2 * most * np.dtype(np.float32).itemsize)
        self._gloo = gloo
        self._arrays: dict[str, Array] = {}
        if gloo is not None:
            import torch
            from ray.util import collective

            torch.set_num_threads(1)
            # One machine: nothing need be found out about its network.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            collective.init_collective_group(world, rank, "GLOO", gloo, gloo_timeout=120_000)

    def address(self) -> SegmentAddress:
        return self._shared.address

    def connect(self, addresses: list[SegmentAddress]) -> None:
        self._shared.connect(addresses)

    def prepare(self, size: int) -> None:
        """Makes arrays of `size` numbers, and proves each side's result on them.

        Raises:
            RuntimeError: A result is not the sum over ranks.
        """
        self._arrays.clear()
        self._arrays = {side: np.empty(size, np.float32) for side in ("copied", "gloo")}
        self._arrays["in place"] = self._shared.empty(size, np.float32)
        sides = [*_OURS, *(["gloo"] if self._gloo else [])]
        for side in sides:
            self._arrays[side].fill(self._rank + 1)
            found = self._all_reduce(side)
            expected = sum(range(1, self._shared.world + 1))
            if not np.all(found == expected):
                raise RuntimeError(f"{side}: rank {self._rank} has {found} instead of {expected} everywhere")
            self._shared.barrier()
            self._arrays[side].fill(0)  # sums of zeros stay finite however often they are added
            self._all_reduce(side)

    def times(self, side: str, calls: int) -> list[tuple[float, float]]:
        """Returns when calls began and ended, on a clock that all processes share."""
        found = []
        for _ in range(calls):
            self._shared.barrier()
            started = time.monotonic()
            self._all_reduce(side)
            found.append((started, time.monotonic()))
        return found

    def _all_reduce(self, side: str) -> Array:
        array = self._arrays[side]
        if side != "gloo":
            return self._shared.all_reduce(array)
        from ray.util import collective

        collective.allreduce(array, self._gloo)
        return array


def rows(
    runs: int, worlds: tuple[int, ...] = WORLDS, megabytes: tuple[float, ...] = MEGABYTES, gloo: bool | None = None
) -> Iterator[Row]:
    """Yields the comparisons as they are measured.

    Args:
        runs: Timed calls that a median is of, at least 5.
        worlds: Numbers of workers.
        megabytes: Sizes of the arrays.
        gloo: Whether to measure Gloo; None if PyTorch is installed.
    """
    runs = max(5, runs)
    sides = [*_OURS, *(["gloo"] if (installed("torch") if gloo is None else gloo) else [])]
    with _ray(max(worlds)):
        for world in worlds:
            sizes = [int(size * 1e6) // 4 for size in megabytes]
            with _ranks(world, max(sizes), "gloo" in sides) as call:
                for megabyte, size in zip(megabytes, sizes, strict=True):
                    call("prepare", size)
                    yield from _compared(call, sides, runs, world, megabyte, size)
    yield from cross_node.rows(runs, megabytes, "gloo" in sides)


def _compared(
    call: Callable[..., list[Any]], sides: list[str], runs: int, world: int, megabyte: float, size: int
) -> Iterator[Row]:
    source, target = np.zeros(size, np.float32), np.zeros(size, np.float32)
    seconds: dict[str, list[float]] = {side: [] for side in (*sides, "copyto")}
    for turn in range(_TURNS):
        calls = len(range(turn, runs, _TURNS))
        for side in sides:
            times = call("times", side, _WARM_UP + calls)
            spans = [max(end for _, end in once) - min(start for start, _ in once) for once in zip(*times, strict=True)]
            seconds[side] += spans[_WARM_UP:]
        for _ in range(calls):
            started = time.perf_counter()
            np.copyto(target, source)
            seconds["copyto"].append(time.perf_counter() - started)
    bandwidth = {side: 4 * size / median(spans) / 1e9 for side, spans in seconds.items() if spans}
    where = f"{world} workers, {megabyte:g} MB"
    for side in _OURS:
        yield Row(f"{side}, {where}", "GB/s", bandwidth[side], bandwidth.get("gloo"), _GLOO, runs, "higher", "torch")
    copy = bandwidth["copyto"]
    yield Row(f"in place against copyto, {where}", "GB/s", bandwidth["in place"], copy, "np.copyto", runs, "higher")


@contextmanager
def _ray(cpus: int) -> Iterator[None]:
    started = connect(ray, None, cpus)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _ranks(world: int, most: int, gloo: bool) -> Iterator[Callable[..., list[Any]]]:
    """Yields what calls a method of all ranks and returns their results."""
    remote = ray.remote(num_cpus=1, max_restarts=0)(Rank)
    group = f"benchmark-{uuid.uuid4()}" if gloo else None  # a fresh name: Ray keeps what it knows of a used one
    actors = [remote.remote(rank, world, most, group) for rank in range(world)]

    def call(method: str, *arguments: Any) -> list[Any]:
        return ray.get([getattr(actor, method).remote(*arguments) for actor in actors])

    try:
        call("connect", call("address"))
        yield call
    finally:
        for actor in actors:
            ray.kill(actor)
