"""Runs a program inside a memory limit.

Where a memory control group is set aside for tests, the program runs in a new group below it and is ended by the system if it
passes the limit. Name its folder in RETAPE_TEST_CGROUP; it must be writable and hold no processes of its own, for example

    sudo mkdir /sys/fs/cgroup/retape && sudo chown -R $USER /sys/fs/cgroup/retape

Groups are made nowhere else: they belong to whoever started us. Without one the limit is RLIMIT_DATA, which refuses memory with a
MemoryError. It counts private address space instead of resident pages, so it is set to the limit plus the gap between both at
the baseline (`data_gap`), and it is for each process alone. `limits_from_outside.py` limits processes that a program starts.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RETAPE_TEST_CGROUP"
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class MemoryLimit:
    """A limit that programs can be run in.

    Attributes:
        nbytes: The limit.
        means: What holds it: cgroup v2, cgroup v1 or RLIMIT_DATA.
        prefix: Words to put before a command.
    """

    nbytes: int
    means: str
    prefix: tuple[str, ...]

    def run(
        self, command: Sequence[str], timeout: float = 120.0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside the limit and waits for it."""
        words = [*self.prefix, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)


@contextmanager
def memory_limit(nbytes: int, gap: int = 0) -> Iterator[MemoryLimit]:
    """Gives a limit on memory, by a control group where there is one for tests, else by RLIMIT_DATA.

    Args:
        nbytes: The most bytes.
        gap: What RLIMIT_DATA grants on top: see `data_gap`.
    """
    parent = os.environ.get(VARIABLE)
    if not parent:
        yield MemoryLimit(nbytes, "RLIMIT_DATA", after(f"ulimit -d {(nbytes + gap) // 1024}"))
        return
    group = Path(parent) / f"retape-test-{os.getpid()}-{next(_NUMBERS)}"
    means = make_group(group, nbytes)
    try:
        yield MemoryLimit(nbytes, means, after(f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))}"))
    finally:
        remove_group(group)


def make_group(group: Path, nbytes: int) -> str:
    """Makes a control group with a memory limit and no swap; returns its version."""
    if (group.parent / "memory.limit_in_bytes").exists():
        group.mkdir()
        limit_group(group, nbytes)
        return "cgroup v1"
    (group.parent / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    limit_group(group, nbytes)
    swap = group / "memory.swap.max"
    if swap.exists():
        swap.write_text("0")
    return "cgroup v2"


def limit_group(group: Path, nbytes: int) -> None:
    """Sets the limit of a group, or lowers it."""
    if (group.parent / "memory.limit_in_bytes").exists():
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
        with_swap = group / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            with_swap.write_text(str(nbytes))
    else:
        (group / "memory.max").write_text(str(nbytes))


def data_gap(imports: str = "numpy") -> int:
    """Returns how much more private address space than resident memory a fresh process has at its baseline, in bytes.

    Args:
        imports: Modules that it loads, separated by commas.
    """
    code = (
        f"import {imports}\n"
        "from checkpointing.process_memory import ProcessMemory, measure_baseline\n"
        "baseline = measure_baseline(rows=256, width=256)\n"
        "print(ProcessMemory.read().data - baseline)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return max(0, int(done.stdout))


def after(words: str) -> tuple[str, ...]:
    """A command that runs some words of the shell and then becomes the command that follows."""
    return ("sh", "-c", f'{words} && exec "$@"', "sh")


def remove_group(group: Path) -> None:
    """Removes a group, whose ended processes may take a moment to leave."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
    group.rmdir()
