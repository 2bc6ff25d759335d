"""All-reduce between two nodes, compared with Gloo, and what a message costs: t(n) = latency + n / bandwidth.

The nodes are Ray's own, two of them on this machine, with one worker each (`ray.cluster_utils.Cluster`), in a process of their own. Both sides take turns
between the very same actors. Between such nodes there is no network, so this tells what the way through Ray costs, not what a network does.
What a simulator of larger clusters needs of it are the rows "latency" and "bandwidth"; "largest error of the fit" says how far they are to be believed.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from benchmarks.measure import Row, in_fresh_process

from distributed.cluster import OBJECT_STORE_NBYTES
from distributed.collectives.hierarchical import Hierarchical
from distributed.collectives.ray_transport import ACTOR_OPTIONS, RayTransport
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Message
from framework.memory import Array

#: Also measured, so that the latency is found: it is little of the time of a megabyte.
_SMALL = 0.001
_WARM_UP, _TURNS = 2, 5
_GLOO = "Gloo through ray.util.collective"


class Node:
    """The one worker of a node, as a Ray actor."""

    def __init__(self, rank: int, world: int, gloo: str | None) -> None:
        self._rank, self._world, self._gloo = rank, world, gloo
        self._ours = Hierarchical(rank, Spread.of(range(world)))
        self._array = np.empty(0, np.float32)
        if gloo is not None:
            import torch
            from ray.util import collective

            torch.set_num_threads(1)
            collective.init_collective_group(world, rank, "GLOO", gloo, gloo_timeout=120_000)

    def where(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def address(self) -> SegmentAddress:
        return self._ours.address

    def connect(self, addresses: list[SegmentAddress], nodes: list[Any]) -> None:
        self._ours.connect(addresses, RayTransport(nodes))

    def deliver(self, message: Message, *numbers: Array) -> list[int]:
        assert self._ours.inbox is not None
        return self._ours.inbox.deliver(message.with_numbers(numbers))

    def prepare(self, size: int) -> None:
        """Makes an array of `size` numbers, and proves each side's result on it.

        Raises:
            RuntimeError: A result is not the sum over workers.
        """
        for side in ["ours", *(["gloo"] if self._gloo else [])]:
            self._array = np.full(size, self._rank + 1, np.float32)
            self._all_reduce(side)
            if not np.all(self._array == sum(range(1, self._world + 1))):
                raise RuntimeError(f"{side}: worker {self._rank} has a wrong sum: {self._array}")
        self._array.fill(0)  # sums of zeros stay finite however often they are added

    def times(self, side: str, calls: int) -> list[tuple[float, float]]:
        """Returns when calls began and ended, on a clock that all processes share."""
        found = []
        for _ in range(calls):
            self._ours.barrier()
            started = time.monotonic()
            self._all_reduce(side)
            found.append((started, time.monotonic()))
        return found

    def _all_reduce(self, side: str) -> Array:
        if side == "ours":
            return self._ours.all_reduce(self._array)
        from ray.util import collective

        collective.allreduce(self._array, self._gloo)
        return self._array


def rows(runs: int, megabytes: Sequence[float], gloo: bool) -> Iterator[Row]:
    """Yields the comparisons.

    Args:
        runs: Timed calls that a median is of, at least 5.
        megabytes: Sizes of the arrays, of 10⁶ bytes.
        gloo: Whether to measure Gloo.
    """
    runs, sizes = max(5, runs), [_SMALL, *megabytes]
    seconds = in_fresh_process(measured, runs, sizes, gloo)
    where = "across nodes, 2 workers"
    for number, size in enumerate(sizes):
        if size != _SMALL:
            ours, peer = (size / 1e3 / seconds[side][number] if side in seconds else None for side in ("ours", "gloo"))
            assert ours is not None
            yield Row(f"{where}, {size:g} MB", "GB/s", ours, peer, _GLOO, runs, "higher", "torch")
    fits = {side: fit([size * 1e6 for size in sizes], times) for side, times in seconds.items()}
    ours, of_gloo = fits["ours"], fits.get("gloo")
    for name, unit, better, value in (
        ("latency", "s", "lower", lambda found: found.latency),
        ("bandwidth", "GB/s", "higher", lambda found: found.bandwidth / 1e9),
        ("largest error of the fit", "1", "lower", lambda found: found.error),
    ):
        yield Row(f"{where}: {name}", unit, value(ours), of_gloo and value(of_gloo), _GLOO, runs, better, "torch")


@dataclass(frozen=True)
class Fit:
    """t(n) = latency + n / bandwidth, as measured times have it.

    Attributes:
        latency: Seconds.
        bandwidth: Bytes a second.
        error: The largest difference of a measured time from that, as a part of the measured one.
    """

    latency: float
    bandwidth: float
    error: float


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fits t(n) = latency + n / bandwidth by least squares of relative errors, so that small sizes count as much as large ones. Neither is negative.

    Args:
        sizes: Bytes.
        seconds: How long they take.

    Raises:
        ValueError: Larger sizes take no longer, so there is no bandwidth to be found.

    >>> fit([0.0, 1e6, 1e7], [0.001, 0.002, 0.011])
    Fit(latency=0.001, bandwidth=1000000000.0, error=0.0)
    """
    times, nbytes = np.array(seconds), np.array(sizes)
    columns = np.stack([np.ones_like(times), nbytes], axis=1) / times[:, None]
    latency, inverse = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)[0]
    if latency < 0:
        latency, inverse = 0.0, np.linalg.lstsq(columns[:, 1:], np.ones_like(times), rcond=None)[0][0]
    if inverse <= 0:
        raise ValueError(f"arrays of {[*sizes]} bytes took {[*seconds]} s: no bandwidth fits; measure larger ones")
    error = np.max(np.abs((latency + nbytes * inverse) / times - 1))
    return Fit(float(round(latency, 12)), float(round(1 / inverse, 3)), float(round(error, 9)))


def measured(runs: int, megabytes: Sequence[float], gloo: bool) -> dict[str, list[float]]:
    """Returns the median seconds of an all-reduce of each size, for each side; for a process of its own.

    Raises:
        RuntimeError: The workers are not on two nodes.
    """
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no path to the scripts
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_NBYTES}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        group = f"benchmark-{uuid.uuid4()}" if gloo else None  # a fresh name: Ray keeps what it knows of a used one
        remote = ray.remote(num_cpus=1, max_restarts=0, **ACTOR_OPTIONS)(Node)
        actors = [remote.remote(rank, 2, group) for rank in range(2)]

        def call(method: str, *arguments: Any) -> list[Any]:
            return ray.get([getattr(actor, method).remote(*arguments) for actor in actors])

        if len(set(call("where"))) != 2:
            raise RuntimeError("both workers are on one node")
        call("connect", call("address"), actors)
        return _medians(call, runs, megabytes, ["ours", *(["gloo"] if gloo else [])])
    finally:
        ray.shutdown()
        cluster.shutdown()


def _medians(call: Any, runs: int, megabytes: Sequence[float], sides: list[str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {side: [] for side in sides}
    for megabyte in megabytes:
        call("prepare", int(megabyte * 1e6) // 4)
        spans: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(_TURNS):
            calls = len(range(turn, runs, _TURNS))
            for side in sides:
                times = call("times", side, _WARM_UP + calls)
                both = [max(end for _, end in once) - min(start for start, _ in once) for once in zip(*times, strict=True)]  # fmt: skip
                spans[side] += both[_WARM_UP:]
        for side in sides:
            found[side].append(median(spans[side]))
    return found
