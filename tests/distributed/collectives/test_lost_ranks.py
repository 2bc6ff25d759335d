"""Ranks in processes of their own, one of which is killed or stopped while all of them reduce."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.shared_memory import SharedMemory
from tests.distributed.collectives.worlds import descriptors

WORLD, LOST = 4, 2
#: Seconds after the system has told a process of another's death within which its collective raises.
NOTICED = 0.5
#: Seconds that a collective may take beyond its timeout, those aside in which its process had no part of the machine.
BEYOND = 1.0


def main(rank: int, timeout: float) -> None:
    """What a rank's process does."""
    communicator = SharedMemory(rank, WORLD, timeout=timeout, chunk=64 * 1024)
    print(json.dumps(asdict(communicator.address)), flush=True)
    addresses = [SegmentAddress(**address) for address in json.loads(input())]
    communicator.connect(addresses)
    idle = Idle()
    death = Death([address.pid for address in addresses if address.pid != os.getpid()])
    here, there, turns, started = communicator.empty(50_001), np.zeros(50_001), 0, 0.0
    here.fill(0)
    told: dict[str, Any] = {}
    try:
        while True:
            started, idle.late = time.monotonic(), 0.0
            communicator.all_reduce(here)
            communicator.all_reduce(there)
            turns += 1
            if turns == 20:
                print("running", flush=True)
    except CollectiveError as error:
        now = time.monotonic()
        told = {"late": error.late, "dead": error.dead, "words": str(error), "seconds": now - started}
        told["late_by_machine"] = idle.late
        told["noticed"] = now - death.at if error.dead and death.wait() else None
    communicator.close()
    del communicator, here
    told["descriptors"] = descriptors("retape") + descriptors("[pidfd]") - len(death.descriptors)
    print(json.dumps(told), flush=True)


class Idle(threading.Thread):
    """Sleeps again and again, and counts by how many seconds it wakes too late: what a busy machine keeps from its process.

    Attributes:
        late: These seconds.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late = 0.0
        self.start()

    def run(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(0.05)
            self.late += time.monotonic() - before - 0.05


class Death(threading.Thread):
    """Waits for the death of one of some processes, of which the system tells it at once.

    It has the same part of the machine as the thread that reduces, so between the two a busy machine makes no difference.

    Attributes:
        at: When the first one was known to be dead.
    """

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.at = 0.0
        self.descriptors = [os.pidfd_open(pid) for pid in pids]
        self.start()

    def run(self) -> None:
        poll = select.poll()
        for descriptor in self.descriptors:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        self.at = time.monotonic()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def wait(self) -> bool:
        """Returns when one has died."""
        self.join(60)
        return not self.is_alive()


@contextmanager
def running(timeout: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts the processes, and yields them when they reduce."""
    command = [sys.executable, __file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(timeout)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        addresses = [json.loads(read(process)) for process in processes]
        for process in processes:
            assert process.stdin
            process.stdin.write(json.dumps(addresses) + "\n")
            process.stdin.flush()
        assert [read(process) for process in processes] == ["running\n"] * WORLD
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_a_rank_that_is_killed_is_named_by_all_others_long_before_their_timeout() -> None:
    with running(timeout=120.0) as processes:
        processes[LOST].kill()
        told = [json.loads(read(process)) for rank, process in enumerate(processes) if rank != LOST]
        for each in told:
            assert f"rank {LOST} (pid {processes[LOST].pid}) died" in each["words"]
            assert each["dead"] == [LOST]
            assert each["noticed"] <= NOTICED
            assert each["descriptors"] == 0


def test_a_rank_that_is_stopped_is_named_by_all_others_when_their_timeout_has_passed() -> None:
    with running(timeout=1.0) as processes:
        processes[LOST].send_signal(signal.SIGSTOP)
        told = [json.loads(read(process)) for rank, process in enumerate(processes) if rank != LOST]
        for each in told:
            assert LOST in each["late"]
            assert f"{LOST}" in each["words"].partition("ranks [")[2].partition("]")[0]
            assert each["descriptors"] == 0
            assert each["seconds"] - each["late_by_machine"] <= 1.0 + BEYOND
        assert any(each["seconds"] >= 1.0 for each in told)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
