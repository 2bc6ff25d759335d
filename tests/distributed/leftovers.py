"""What runs leave behind on the nodes of a cluster, all of which are on this machine.

`left` is for tests that use the Ray of this process, and `Leftovers` a callback for programs that train on one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray

from distributed import Callback, Trainer
from distributed.groups import RayGroup

#: Seconds in which processes that were ended are gone, also those of a node that was.
_SECONDS = 20.0


#: What `Leftovers.found` gives where nothing is left.
NOTHING: dict[str, list[str]] = {"processes": [], "shared memory": [], "files": [], "set aside": []}


def with_own_temporary_files(words: list[str], folder: Path) -> dict[str, Any]:
    """Runs a program that prints JSON, with a folder for temporary files of its own, on all nodes that it starts."""
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}  # Ray's sockets take a short path
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Leftovers(Callback):
    """Notes the processes of runs while they go on, and says afterwards what of them is still there.

    Attributes:
        most: The most shared memory that a process of the cluster had at once, in files: what is looked for can be found.
    """

    def __init__(self) -> None:
        self._workers: set[int] = set()
        self._cluster: set[int] = set()
        self.most = 0

    def on_start(self, trainer: Trainer) -> None:
        group = trainer._group
        assert isinstance(group, RayGroup)
        workers = ray.get([actor.pid.remote() for actor in group._actors])
        assert all(map(_alive, workers))
        self._workers |= {*workers}

    def on_step(self, row: dict[str, Any]) -> None:
        tree = {process.pid for process in psutil.Process().children(recursive=True)}
        self._cluster |= tree | {os.getpid()}
        self.most = max(self.most, *(len(_shared(pid)) for pid in self._workers))

    def found(self) -> dict[str, list[str]]:
        """Returns what is left of all runs so far: workers' processes, shared memory in any process of any node, files, what is set aside.

        This process must be connected to the cluster. Temporary files are looked for where Python puts them, which should be a folder of the test's own.
        """
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and any(map(_alive, self._workers)):
            time.sleep(0.1)
        table = ray.util.placement_group_table().values()
        return {
            "processes": [f"{pid}: {psutil.Process(pid).cmdline()}" for pid in self._workers if _alive(pid)],
            "shared memory": [f"{pid}: {name}" for pid in self._cluster for name in _shared(pid)],
            "files": [str(path) for path in Path(tempfile.gettempdir()).rglob("*")],
            "set aside": [str(group) for group in table if group["state"] != "REMOVED"],
        }


def left() -> list[str]:
    """Returns what is left by runs on this process's Ray, when it has had time to go: workers, shared memory, what is set aside."""
    deadline = time.monotonic() + _SECONDS
    while (found := _left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _left() -> list[str]:
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            if "WorkerActor" in (words := " ".join(process.cmdline()).strip()):
                found.append(f"{process.pid}: {words}")
        except psutil.Error:  # gone, or a zombie, which is gone as well
            continue
        found += [f"{process.pid}: {name}" for name in _shared(process.pid)]
    table = ray.util.placement_group_table().values()
    return found + [str(group) for group in table if group["state"] != "REMOVED"]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _shared(pid: int) -> list[str]:
    """Retape's shared memory that a process has open or mapped."""
    found = []
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.append(str(link.readlink()))
            except FileNotFoundError:
                continue  # closed meanwhile
        found += [
            line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd" in line
        ]
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it is gone, or a zombie
        return []
    return [name for name in found if name.startswith("/memfd:retape")]
