"""A worker as a Ray actor."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpointing.process_memory import measure_baseline
from checkpointing.reduction_tree import shards_of
from distributed.collectives.gloo_transport import GlooTransport
from distributed.collectives.hierarchical import Hierarchical
from distributed.collectives.ray_transport import RayTransport
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.transport import Faults, Faulty, Message, Transport
from distributed.core_rotation import CoreRotation, cores_to_change
from distributed.logs import log_warnings
from distributed.ray_metrics import RayMetrics
from distributed.readiness import Needs, State, look
from distributed.worker import StateAddress, Worker, WorkerTask
from framework.memory import Array


class WorkerActor(Worker):
    """A worker as a Ray actor. It is built by a call, since Ray would lose the reason of a failing constructor."""

    _rotation: CoreRotation | None = None

    def __init__(self) -> None:
        pass

    def where(self) -> str:
        """The node, once Ray has placed the actor."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def look(self, needs: Needs) -> State:
        """What this process sees of its node."""
        return look(self.where(), needs)

    def deliver(self, message: Message, *numbers: Array) -> list[int]:
        """Takes a message from another node; see `Inbox.deliver`. Ray calls it in a thread of its own."""
        return self._take(message.with_numbers(numbers))

    def deliver_state(self, message: Message, *numbers: Array) -> list[int]:
        """Takes a message with parameters or state, likewise."""
        return self._take_state(message.with_numbers(numbers))

    def pid(self) -> int:
        """The process."""
        return os.getpid()

    def measure(self, *how: Any) -> int:
        """What this process takes before its first array."""
        gc.freeze()  # what was imported stays, so no collection has to look at it
        return measure_baseline(*how)

    def connect(  # type: ignore[override]
        self,
        addresses: Sequence[SegmentAddress],
        threads: Sequence[int],
        leaders: Sequence[Any] | None = None,
        group: str = "",
    ) -> None:
        """Also connects a leader with those of other nodes, all of which are given, in a group of such a name, and has its node's ranks change cores.

        Args:
            addresses: See `Worker.connect`.
            threads: What each rank computes in; see `start`.
            leaders: The actors of the nodes' leaders, where there are several nodes.
            group: What the leaders' group is called.
        """
        task = self._task
        transport: Transport | None = None
        if leaders is not None and task.rank in task.spread.leaders:
            assert self._shared is not None and self._shared.inbox is not None
            node, inbox = task.spread.node_of[task.rank], self._shared.inbox
            self._take = inbox.deliver
            transport = self._faulty(RayTransport(leaders))
            if task.network.carrier == "gloo":
                transport = gloo = GlooTransport(node, len(leaders), transport, inbox, group, task.timeout)
                self._take = gloo.deliver
        super().connect(addresses, transport)
        if task.rotate_cores and task.rank in task.spread.leaders:
            here = [threads[rank] for rank in task.spread.nodes[task.spread.node_of[task.rank]]]
            if cores := cores_to_change(here, task.threads):
                assert self._shared is not None
                rotation = CoreRotation(here, cores, self._progress, lambda why: self._log.warning("%s", why))
                self._rotation, self._shared.progress = rotation, rotation.watch(self._shared.progress)

    def _progress(self) -> dict[int, int]:
        """How far the ranks of this node are that have the most shards, by their place on it: the others have time."""
        task = self._task
        assert self._shared is not None
        here = task.spread.nodes[task.spread.node_of[task.rank]]
        shards = [len(shards_of(task.shards, task.world, rank)) for rank in here]
        told = self._shared.progress_here()
        return {at: told[at] for at, own in enumerate(shards) if own == max(shards)}

    def connect_state(  # type: ignore[override]
        self, addresses: Sequence[StateAddress], leaders: Sequence[Any] | None = None
    ) -> None:
        """Also connects a leader with those of other nodes, by Ray whatever carries gradients."""
        transport: Transport | None = None
        communicator = self._carrier.communicator if self._carrier is not None else None
        if leaders is not None and isinstance(communicator, Hierarchical) and communicator.inbox is not None:
            self._take_state = communicator.inbox.deliver
            transport = self._faulty(RayTransport(leaders, "deliver_state"))
        super().connect_state(addresses, transport)

    def _faulty(self, transport: Transport) -> Transport:
        """The transport with the faults that are wanted in it."""
        faults = self._task.network.faults
        return (
            transport if faults == Faults() else Faulty(transport, replace(faults, seed=faults.seed + self._task.rank))
        )

    def start(self, task: WorkerTask) -> int:
        """Builds the worker.

        Returns:
            The native id of the thread that computes: Ray calls an actor's methods in one thread, not always the first.
        """
        super().__init__(task)
        return threading.get_native_id()

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> str | None:
        """Also counts for Ray, and logs Python's warnings, which nobody would see else."""
        self._metrics = RayMetrics(run, self._task.rank)
        fault = super().begin(run, logs, mark)
        if logs is not None:
            log_warnings(self._log)
            if self._rotation is not None:
                self._log.info("the ranks of this node change cores where one falls behind")
        return fault

    def step(self, step: int) -> dict[str, float]:
        row = super().step(step)
        self._metrics.add(row)
        return row
