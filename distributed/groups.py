"""Groups of workers: one in process, or several Ray actors. Both answer the same calls."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from checkpointing.budgets import ProcessBudget
from checkpointing.process_memory import measure_baseline
from distributed.cluster import ClusterError, connect
from distributed.collectives.communicator import CollectiveError
from distributed.collectives.ray_transport import ACTOR_OPTIONS
from distributed.collectives.spread import Spread
from distributed.interrupts import deferred_interrupts, ignored_interrupts
from distributed.logs import log_file
from distributed.nodes import Node, alive, choose, resolve
from distributed.placement import Placement, PlacementKind, Room
from distributed.sources import own_modules
from distributed.worker import Worker, WorkerTask
from distributed.worker_actor import WorkerActor

#: Seconds that Ray may take to place the workers, and that a worker may lag behind one that has failed.
START_SECONDS, _MOMENT = 60.0, 5.0


class WorkerLost(RuntimeError):  # noqa: N818  (the name that callers act on)
    """A worker died."""


class Group(Protocol):
    """The workers of a run."""

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Calls a method of every worker and returns the results by rank."""
        ...

    def call_first(self, method: str, *arguments: Any) -> Any:
        """Calls a method of rank 0."""
        ...

    def measure(self, *how: Any) -> Callable[[], list[int]]:
        """Has each worker measure what its process takes before its first array (see `process_memory.measure_baseline`).

        Returns:
            What waits for the answers.
        """
        ...

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        """Builds the workers, given what each rank is told."""
        ...

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> list[str | None]:
        """Tells all workers that the run begins; see `Worker.begin`."""
        ...

    def ask(self, method: str) -> list[Any]:
        """Calls a method of every worker when something has failed: what those give who answer in a moment, None for the others."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...


class LocalGroup:
    """One worker in this process, without Ray."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def measure(self, *how: Any) -> Callable[[], list[int]]:
        found = measure_baseline(*how)
        return lambda: [found]

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        (task,) = tasks
        self._worker = Worker(task)

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> list[str | None]:
        return self.call("begin", run, logs, mark)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [self.call_first(method, *arguments)]

    def call_first(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)

    def ask(self, method: str) -> list[Any]:
        return self.call(method)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class RayGroup:
    """Ray actors, one a rank: on one node, if one has room for all.

    Args:
        workers: How many.
        threads: BLAS threads of each.
        timeout: Seconds that a worker may lag behind the others.
        address: A running cluster to join; None starts Ray on this machine for the time of the run.
        budget: Of each worker's process, which Ray sets aside for it; None for none.
        spread: How they are taken to be spread over nodes; None for how they are.
        placement: Whether they are packed on few nodes of a cluster, or spread over many.
        placement_timeout: Seconds to wait until a cluster has room for them.

    Attributes:
        joined: Whether the workers are on a cluster that was named.
        own: A person's own modules that were sent there, by their outermost names.
        spread: Of the workers over nodes.
        budgets: Of each worker, in terms of the node that it is on, so that `auto` has a size; empty where there is none.

    Raises:
        ClusterError: Ray cannot be reached, or no node has room for the workers.
        ValueError: The node could never give the budget.
    """

    def __init__(
        self, workers: int, threads: int, timeout: float, address: str | None,
        budget: ProcessBudget | None = None, spread: Spread | None = None,
        placement: PlacementKind = "pack", placement_timeout: float = START_SECONDS,
    ) -> None:  # fmt: skip
        import ray  # importing Ray takes a second that in-process runs need not wait

        self._ray = ray
        self._actors: list[Any] = []
        self._placement: Placement | None = None
        self._started = self._running = False
        self.joined = address is not None
        self.own = own_modules() if self.joined else ()
        self._patience = timeout
        self._logs: list[Path | None] = [None] * workers
        self._kept = [False] * workers  # whose logs get there when they are asked for them
        self._hosts: list[str] = []
        try:
            # An interrupt while Ray starts would leave half of it behind.
            with deferred_interrupts():
                self._started = connect(ray, address, workers * threads, self.own, threads)
                room, by_node = Room(workers, threads, budget.nbytes or 0 if budget else 0), dict[str, ProcessBudget]()
                shared = not self._started or self.joined  # else it has one node, with room for all in any case
                several = shared and spread is None and (placement == "spread" or room.takes_several(alive(ray)))
                if budget is not None and not several:
                    node = choose(ray, workers, threads, budget.nbytes or 0)
                    by_node[node.id] = found = resolve(ray, budget, workers, node, joined=self.joined)
                    # On this machine alone Ray may have less to set aside than is free.
                    room = replace(room, memory=min(found.nbytes or 0, node.memory // workers), pin=node.pin)
                if shared:
                    together = not several and (budget is not None or spread is not None)
                    self._placement = Placement(
                        ray, replace(room, together=together), "pack" if together else placement
                    )
            if self._placement is not None:
                self._placement.wait(placement_timeout)
                if budget is not None and several:
                    by_node = self._resolve_by_node(budget, self._placement)
            with deferred_interrupts():
                options = self._placement.options if self._placement is not None else {}
                apart = self._placement is not None and self._placement.strategy != "STRICT_PACK"
                if apart or (spread and len(spread.nodes) > 1):
                    options |= ACTOR_OPTIONS
                memory = room.memory or None
                remote = ray.remote(num_cpus=threads, max_restarts=0, memory=memory, **options)(WorkerActor)
                self._actors = [remote.remote() for _ in range(workers)]
            where = self._get([actor.where.remote() for actor in self._actors], START_SECONDS)
            # Neighbours share a node, so that fewer sums have to travel. The node with the most workers has rank 0, which writes snapshots;
            # of equal ones that of this process, whose run folder is there.
            here = ray.get_runtime_context().get_node_id()
            key = [(-where.count(node), node != here, where.index(node)) for node in where]
            order = sorted(range(workers), key=key.__getitem__)
            self._actors = [self._actors[at] for at in order]
            if self.joined:
                addresses = {node.id: node.address for node in alive(ray)}
                self._hosts = [addresses.get(where[at], where[at]) for at in order]
            self.spread = spread or Spread.of([where[at] for at in order])
            self.budgets = tuple(by_node[where[at]] for at in order) if by_node else ()
            self._running = True
        except BaseException:
            self.close()
            raise

    def _resolve_by_node(self, budget: ProcessBudget, placement: Placement) -> dict[str, ProcessBudget]:
        """Returns the budget of each worker of a node, by node; what `auto` comes to is set aside."""
        found, memory = dict[str, ProcessBudget](), dict[Node, int]()
        for node, workers in placement.workers_by_node():
            there = resolve(self._ray, budget, workers, node, joined=self.joined)
            found[node.id] = replace(there, reason=f"on {node.address}: {there.reason}" if there.reason else "")
            memory[node] = min(node.memory, workers * (there.nbytes or 0))
        if budget.nbytes is None:
            placement.set_aside(memory)
        return found

    def measure(self, *how: Any) -> Callable[[], list[int]]:
        calls = [actor.measure.remote(*how) for actor in self._actors]
        return lambda: self._get(calls)

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        threads = self._get([actor.start.remote(task) for actor, task in zip(self._actors, tasks, strict=True)])
        leaders = [self._actors[rank] for rank in self.spread.leaders]
        group = f"retape-{uuid.uuid4().hex}"  # a name of its own: Ray keeps what it knows of a used one
        self.call("connect", self.call("address"), threads, leaders if len(leaders) > 1 else None, group)
        if any(task.shard_optimizer for task in tasks):
            self.call("connect_state", self.call("state_address"), leaders if len(leaders) > 1 else None)

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> list[str | None]:
        faults = self.call("begin", run, logs, mark)
        if logs is not None:
            self._logs = [log_file(logs, rank) for rank in range(len(faults))]
            self._kept = [fault is not None for fault in faults]
        return faults

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._get([getattr(actor, method).remote(*arguments) for actor in self._actors])

    def call_first(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._actors[0], method).remote(*arguments)
        (result,) = self._get([call], self._patience + _MOMENT)  # it waits for nobody
        return result

    def ask(self, method: str) -> list[Any]:
        calls = [getattr(actor, method).remote() for actor in self._actors]
        done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=_MOMENT)
        found: list[Any] = [None] * len(calls)
        for call in done:
            with contextlib.suppress(self._ray.exceptions.RayError):
                found[calls.index(call)] = self._ray.get(call)
        return found

    def close(self) -> None:
        with ignored_interrupts():  # a second Ctrl-C must not leave half of the workers behind
            for actor in self._actors:
                self._ray.kill(actor)
            self._actors = []
            if self._placement is not None:
                self._placement.remove()
                self._placement = None
            if self._started:
                self._ray.shutdown()
                self._started = False

    def _get(self, calls: list[Any], timeout: float | None = None) -> list[Any]:
        """Waits for all calls.

        A worker's death is noticed at once. When one worker has answered, the others, who work in step with it, must answer
        within the time that a collective waits; when one has failed, within a moment. The first real error is raised: a
        collective that was given up is only its consequence.
        """
        ranks = {call: rank for rank, call in enumerate(calls)}
        results: list[Any] = [None] * len(calls)
        errors: list[Exception] = []
        pending = list(calls)
        while pending:
            done, pending = self._ray.wait(pending, num_returns=1, timeout=timeout)
            if not done:
                break
            for call in done:
                try:
                    results[ranks[call]] = self._ray.get(call)
                except self._ray.exceptions.RayTaskError as error:
                    errors.append(error.cause if isinstance(error.cause, Exception) else error)
                    if self._logs[ranks[call]]:
                        errors[-1].add_note(f"worker {ranks[call]} failed; its log is {self._logs[ranks[call]]}")
                except self._ray.exceptions.RuntimeEnvSetupError as error:
                    raise ClusterError(f"a node could not take the code that was sent to it: {error}") from error
                except self._ray.exceptions.RayActorError as error:
                    raise self._lost(ranks[call], error) from error
            timeout = _MOMENT if errors else self._patience + _MOMENT
        for worst in sorted(errors, key=lambda error: isinstance(error, CollectiveError)):
            if pending and isinstance(worst, CollectiveError):
                break  # the one who does not answer is the reason
            raise worst
        if len(pending) == len(calls) and not self._running:
            raise ClusterError(
                f"Ray has room for {len(calls)} workers, but did not start them within {START_SECONDS:.0f} s; the newest folder of "
                "/tmp/ray/session_*/logs on their nodes says why"
            )
        if pending:
            silent = [ranks[call] for call in pending]
            raise WorkerLost(
                f"workers {silent} of {len(self._actors)} are alive but did not answer for {timeout:.0f} s"
            )
        return results

    def _lost(self, rank: int, error: Exception) -> Exception:
        """What is raised where a worker has died: which, on which node, and why."""
        told = str(error).strip()
        if not self._running and "ModuleNotFoundError" in told:
            return ClusterError(
                f"a node of the cluster cannot import the code: {told.splitlines()[-1]}; submit the job with --working-dir, or install Retape there"
            )
        host = f", on {self._hosts[rank]}," if self._hosts else ""
        unreachable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        gone = "its node has left the cluster: " if "node has died" in told or "node died" in told else ""
        gone = "its node cannot be reached any more: " if unreachable else gone
        log = f"; its log is {self._logs[rank]}" if self._logs[rank] and not self._kept[rank] else ""
        return WorkerLost(f"worker {rank} of {len(self._actors)}{host} died: {gone}{told.splitlines()[0]}{log}")
