"""Ranks in processes of their own, one of which is killed or stopped while all of them reduce."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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


def main(rank: int, timeout: float) -> None:
    """What a rank's process does."""
    communicator = SharedMemory(rank, WORLD, timeout=timeout, chunk=64 * 1024)
    print(json.dumps(asdict(communicator.address)), flush=True)
    communicator.connect([SegmentAddress(**address) for address in json.loads(input())])
    here, there, turns, started = communicator.empty(50_001), np.zeros(50_001), 0, 0.0
    here.fill(0)
    told: dict[str, Any] = {}
    try:
        while True:
            started = time.monotonic()
            communicator.all_reduce(here)
            communicator.all_reduce(there)
            turns += 1
            if turns == 20:
                print("running", flush=True)
    except CollectiveError as error:
        told = {"late": error.late, "dead": error.dead, "words": str(error), "seconds": time.monotonic() - started}
    communicator.close()
    del communicator, here
    told["descriptors"] = descriptors("retape") + descriptors("[pidfd]")
    print(json.dumps(told), flush=True)


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
            assert each["seconds"] < 60  # it is 0.1 s on a machine with nothing else to do
            assert each["descriptors"] == 0


def test_a_rank_that_is_stopped_is_named_by_all_others_when_their_timeout_has_passed() -> None:
    with running(timeout=1.0) as processes:
        processes[LOST].send_signal(signal.SIGSTOP)
        told = [json.loads(read(process)) for rank, process in enumerate(processes) if rank != LOST]
        for each in told:
            assert LOST in each["late"]
            assert f"{LOST}" in each["words"].partition("ranks [")[2].partition("]")[0]
            assert each["descriptors"] == 0
        assert any(each["seconds"] >= 1.0 for each in told)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
