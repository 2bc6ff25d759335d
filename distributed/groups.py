"""Groups of workers: one in process, or several Ray actors on one node. Both answer the same calls."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from distributed.cluster import ClusterError, connect
from distributed.collectives.shared_memory import CollectiveError
from distributed.worker import Worker, WorkerTask

_START_SECONDS = 60.0


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

    def close(self) -> None:
        """Ends the workers."""
        ...


class LocalGroup:
    """One worker in this process, without Ray."""

    def __init__(self, task: WorkerTask) -> None:
        self._worker: Worker | None = Worker(task)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [self.call_first(method, *arguments)]

    def call_first(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class RayGroup:
    """Ray actors on one node, one a rank.

    Args:
        tasks: What each rank is told.
        address: A running cluster to join; None starts Ray on this machine for the time of the run.

    Raises:
        ClusterError: Ray cannot be reached, has no room for the workers, or put them on several nodes.
    """

    def __init__(self, tasks: Sequence[WorkerTask], address: str | None) -> None:
        import ray  # importing Ray takes a second that in-process runs need not wait

        self._ray = ray
        self._actors: list[Any] = []
        threads = tasks[0].threads
        self._started = connect(ray, address, len(tasks) * threads)
        try:
            remote = ray.remote(num_cpus=threads, max_restarts=0)(_Actor)
            self._actors = [remote.remote(task) for task in tasks]
            where = self._get([actor.where.remote() for actor in self._actors], _START_SECONDS)
            if len(set(where)) > 1:
                raise ClusterError(
                    f"Ray put the workers on {len(set(where))} nodes, but workers share memory and must be on one; "
                    "give fewer workers, or a node with more CPUs"
                )
            addresses = self.call("address")
            self.call("connect", addresses)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return self._get([getattr(actor, method).remote(*arguments) for actor in self._actors])

    def call_first(self, method: str, *arguments: Any) -> Any:
        (result,) = self._get([getattr(self._actors[0], method).remote(*arguments)])
        return result

    def close(self) -> None:
        # A second Ctrl-C must not leave half of the workers behind.
        with _no_interrupts():
            for actor in self._actors:
                self._ray.kill(actor)
            self._actors = []
            if self._started:
                self._ray.shutdown()
                self._started = False

    def _get(self, calls: list[Any], timeout: float | None = None) -> list[Any]:
        """Waits for all calls, noticing a worker's death at once.

        The first real error is raised: a collective that was given up is only its consequence.
        """
        ranks = {call: rank for rank, call in enumerate(calls)}
        results: list[Any] = [None] * len(calls)
        errors: list[Exception] = []
        pending = list(calls)
        while pending:
            done, pending = self._ray.wait(pending, num_returns=1, timeout=timeout)
            if not done:
                raise ClusterError(self._no_room(len(calls)))
            for call in done:
                try:
                    results[ranks[call]] = self._ray.get(call)
                except self._ray.exceptions.RayTaskError as error:
                    errors.append(error.cause if isinstance(error.cause, Exception) else error)
                except self._ray.exceptions.RayActorError as error:
                    reason = str(error).strip().splitlines()[0]
                    raise WorkerLost(f"worker {ranks[call]} of {len(calls)} died: {reason}") from error
        for worst in sorted(errors, key=lambda error: isinstance(error, CollectiveError)):
            raise worst
        return results

    def _no_room(self, workers: int) -> str:
        free = self._ray.available_resources().get("CPU", 0)
        return (
            f"Ray did not start {workers} workers within {_START_SECONDS:.0f} s: the cluster has {free:g} free CPUs of "
            f"{self._ray.cluster_resources().get('CPU', 0):g}; lower --workers or --threads-per-worker"
        )


class _Actor(Worker):
    """A worker as a Ray actor."""

    def where(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


@contextmanager
def _no_interrupts() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, which alone gets the signal
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
