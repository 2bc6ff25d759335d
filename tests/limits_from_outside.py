"""Puts each process that a program starts, such as a Ray worker, in a hard memory limit of its own, from outside.

A thread looks for processes below the program's whose title has some words, every 10 ms, limits each as soon as it is seen, and looks at
those every millisecond:

- by a control group of its own where one is set aside for tests (see `tests/limits.py`). Version 1 takes along the charges of the
  process's anonymous pages; its file and shared pages, and in version 2 all its pages, stay charged where they were, so
  the group's limit is lowered by them;
- else by RLIMIT_DATA, set with prlimit(2). It counts private address space, which a process has more of than resident memory, but no
  shared memory. How much more, and how much is shared, an unlimited run of the same program tells: `Unlimited`.

Stacks of threads are private address space that is hardly touched, and a Ray worker has twenty threads; so programs are run with
stacks of 1 MiB, else the gap would be 200 MiB and not 60.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from checkpointing.process_memory import ProcessMemory
from tests.limits import VARIABLE, after, limit_group, make_group, remove_group

#: Seconds between searches for processes, and between looks at those that were found.
_SEARCH_SECONDS, _LOOK_SECONDS = 0.01, 0.001
_STACK_KIB = 1024
_NUMBERS = itertools.count()


class Unlimited:
    """Limits nothing: measures what RLIMIT_DATA has to know of such processes.

    Attributes:
        gaps: By process, the most private address space that it had, less the most of it that was resident, in bytes. (Not at one
            moment: what is mapped for some milliseconds, as while a task is read, would be seen in one run and missed in the next.)
        shared: By process, the most bytes of shared memory that were resident.
    """

    def __init__(self) -> None:
        self.gaps: dict[int, int] = {}
        self.shared: dict[int, int] = {}
        self._most: dict[int, tuple[int, int]] = {}

    def see(self, pid: int) -> None:
        """Looks at a process again."""
        held = _status(pid)
        if "VmData" not in held:  # it has ended
            return
        data, private = self._most.get(pid, (0, 0))
        data, private = self._most[pid] = (
            max(data, held["VmData"]),
            max(private, held["VmRSS"] - held["RssShmem"]),
        )
        self.gaps[pid] = data - private
        self.shared[pid] = max(self.shared.get(pid, 0), held["RssShmem"])

    def close(self) -> None:
        pass


@dataclass
class Limited:
    """A process in a limit.

    Attributes:
        means: What holds it: cgroup v2, cgroup v1 or RLIMIT_DATA.
        nbytes: The limit that was set, in bytes of what `means` counts.
        read_back: The limit as the system says it.
        most: The most bytes that were seen of what `means` counts.
    """

    means: str
    nbytes: int
    read_back: int
    most: int


class LimitEach:
    """Gives each process that is seen a limit of its own.

    Args:
        nbytes: The most resident bytes of each.
        unlimited: What an unlimited run of the same program measured.

    Attributes:
        limited: By process, its limit.
    """

    def __init__(self, nbytes: int, unlimited: Unlimited) -> None:
        self._nbytes = nbytes
        # The larger gap and the smaller share let every process reach `nbytes`, and one of them little more.
        self._private = nbytes + max(unlimited.gaps.values()) - min(unlimited.shared.values())
        self.limited: dict[int, Limited] = {}
        self._groups: dict[int, Path] = {}

    def see(self, pid: int) -> None:
        """Limits a process, or reads its limit and use again."""
        parent = os.environ.get(VARIABLE)
        if pid in self._groups:
            self._read_group(pid)
        elif pid in self.limited:
            self._read_process(pid)
        elif parent:
            self._move(pid, Path(parent))
        else:
            nbytes = self._private // resource.getpagesize() * resource.getpagesize()
            resource.prlimit(pid, resource.RLIMIT_DATA, (nbytes, nbytes))
            self.limited[pid] = Limited("RLIMIT_DATA", nbytes, 0, 0)
            self._read_process(pid)

    def close(self) -> None:
        """Reads the groups a last time and removes them: their processes have ended."""
        for pid, group in self._groups.items():
            self._read_group(pid)
            remove_group(group)

    def _move(self, pid: int, parent: Path) -> None:
        group = parent / f"retape-test-{os.getpid()}-{next(_NUMBERS)}"
        means, held = make_group(group, self._nbytes), ProcessMemory.read(pid)
        self._groups[pid] = group
        stays = held.rss
        if means == "cgroup v1":
            with suppress(OSError):  # refused from Linux 6.14 on, so all stays
                (group / "memory.move_charge_at_immigrate").write_text("1")
                stays = held.file + held.shared
        nbytes = (self._nbytes - stays) // resource.getpagesize() * resource.getpagesize()
        limit_group(group, nbytes)
        (group / "cgroup.procs").write_text(str(pid))
        self.limited[pid] = Limited(means, nbytes, 0, 0)
        self._read_group(pid)

    def _read_group(self, pid: int) -> None:
        group, found = self._groups[pid], self.limited[pid]
        v1 = found.means == "cgroup v1"
        found.read_back = int((group / ("memory.limit_in_bytes" if v1 else "memory.max")).read_text())
        names = ("memory.max_usage_in_bytes",) if v1 else ("memory.peak", "memory.current")
        for name in names:  # the peak is there from Linux 5.19 on
            if (group / name).exists():
                found.most = max(found.most, int((group / name).read_text()))

    def _read_process(self, pid: int) -> None:
        found, held = self.limited[pid], _status(pid)
        told = re.search(r"^Max data size +(\d+) ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
        if told:
            found.read_back, found.most = int(told[1]), max(found.most, held.get("VmData", 0))


def _status(pid: int) -> dict[str, int]:
    """Returns the sizes that the system tells of a process, in bytes; that takes some microseconds."""
    told = Path(f"/proc/{pid}/status").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", told, re.MULTILINE)}


def run_watched(
    command: Sequence[str],
    watcher: Unlimited | LimitEach,
    cwd: Path | None = None,
    title: str = "ray::WorkerActor",
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Runs a command; a watcher sees each process below it whose title has some words, about every millisecond.

    Raises:
        Exception: What the watcher raised, other than that a process has just ended.
    """
    words = [*after(f"ulimit -S -s {_STACK_KIB}"), *command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd) as program:
        try:
            with _watching(program.pid, watcher, title):
                stdout, stderr = program.communicate(timeout=timeout)
        except BaseException:
            program.kill()
            raise
        finally:
            watcher.close()
    return subprocess.CompletedProcess(words, program.returncode, stdout, stderr)


def _below(program: int, title: str) -> Iterator[int]:
    """Yields the processes below a program whose title has some words."""
    with suppress(psutil.NoSuchProcess):  # the program has ended
        for process in psutil.Process(program).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    yield process.pid


@contextmanager
def _watching(program: int, watcher: Unlimited | LimitEach, title: str) -> Iterator[None]:
    over, errors = threading.Event(), list[BaseException]()

    def watch() -> None:
        try:
            found: list[int] = []
            for turn in itertools.count():
                if over.wait(_LOOK_SECONDS):
                    break
                if turn % round(_SEARCH_SECONDS / _LOOK_SECONDS) == 0:
                    found = list(_below(program, title))
                for pid in found:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                        watcher.see(pid)
        except BaseException as error:  # it is raised where the program is waited for
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
