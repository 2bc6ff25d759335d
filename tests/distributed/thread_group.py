"""Workers that are threads of this process instead of Ray actors: as many ranks as a test wants, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpointing.process_memory import measure_baseline
from distributed.collectives.communicator import CollectiveError
from distributed.worker import Worker, WorkerTask
from tests.distributed.collectives.worlds import in_parallel


class ThreadGroup:
    """A `Group`; all workers run a call at the same time, as they do on Ray."""

    joined = False  # there is no cluster

    def __init__(self, workers: int, *how: Any) -> None:
        self.workers: list[Worker] = []
        self._world = workers

    def measure(self, *how: Any) -> Callable[[], list[int]]:
        found = [measure_baseline(*how)] * self._world
        return lambda: found

    def start(self, tasks: Sequence[WorkerTask]) -> None:
        self.workers = [Worker(task) for task in tasks]
        self.call("connect", self.call("address"))
        self.call("connect_state", self.call("state_address"))

    def begin(self, run: str, logs: Path | None, mark: str | None = None) -> list[str | None]:
        return self.call("begin", run, logs, mark)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        def work(worker: Worker) -> Any:
            try:
                return getattr(worker, method)(*arguments)
            except Exception as error:
                return error

        results = in_parallel(self.workers, work)
        errors = [result for result in results if isinstance(result, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, CollectiveError)):
            raise error
        return results

    def call_first(self, method: str, *arguments: Any) -> Any:
        return getattr(self.workers[0], method)(*arguments)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers of this test have threads for workers."""
    monkeypatch.setattr("distributed.trainer.RayGroup", ThreadGroup)
