"""Files and limits: where runs are written, temporary files, and how many files and processes there may be."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from checkpointing.memory_limits import control_groups
from checkpointing.offload import lies_in_memory
from distributed.doctor.finding import Finding, Surroundings, error, ok, warning
from distributed.doctor.machine import nearest
from framework.durable import write_all, written_aside
from framework.sizes import format_size

#: Free bytes: the least that a small run writes, and what a few snapshots of a model of 40 million parameters take.
_LEAST, _FEW = 64 * 2**20, 2**30
_FEW_INODES = 1_000
#: From this part on Ray takes a disk for full, and writes no objects to it.
_RAY_FULL = 0.95
#: Longest path of a socket, and what Ray puts behind its folder.
_SOCKET, _BEHIND = 107, len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1")
_PROBE = bytes(2**16)


def runs(given: Surroundings) -> Finding:
    """Room, and the right to write, where runs are written."""
    near = nearest(given.runs)
    if not near.is_dir():
        return error("runs", f"{near} is no folder", "name another with --runs (train.py --run-dir)", folder=str(near))
    if not os.access(near, os.W_OK | os.X_OK):
        return error(
            "runs", f"{near} is not writable", "name another with --runs (train.py --run-dir)", folder=str(near)
        )
    usage = shutil.disk_usage(near)
    inodes = os.statvfs(near)
    told = f"{format_size(usage.free)} free in {near}"
    data = {"folder": str(near), "free": usage.free, "total": usage.total, "free_inodes": inodes.f_favail}
    remedy = "remove old runs, keep fewer snapshots (--keep-snapshots), or write elsewhere (--run-dir)"
    if usage.free < _LEAST:
        return error("runs", told, remedy, **data)
    if inodes.f_files and inodes.f_favail < _FEW_INODES:
        return warning("runs", f"{told}, but room for {inodes.f_favail} more files alone", remedy, **data)
    if usage.free < _FEW:
        return warning("runs", told, remedy, **data)
    return ok("runs", told, **data)


def durable_files(given: Surroundings) -> Finding:
    """Whether files can be synced, renamed and locked there, as snapshots need it, and whether they survive a restart."""
    near = nearest(given.runs)
    name, elsewhere = "snapshots", "write runs to a local disk (--run-dir)"
    try:
        with tempfile.TemporaryDirectory(dir=near, prefix=".doctor-") as folder:
            started = time.perf_counter()
            with written_aside(Path(folder) / "probe") as descriptor:
                write_all(descriptor, _PROBE)
            seconds = time.perf_counter() - started
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(lock)
    except OSError as fault:
        return error(
            name, f"files in {near} cannot be written, synced or locked: {fault.strerror}", elsewhere, folder=str(near)
        )
    told = f"written, synced and locked in {seconds * 1e3:.1f} ms in {near}"
    data = {"seconds": seconds, "folder": str(near)}
    if lies_in_memory(near, given.root / "proc/self/mountinfo"):
        return warning(name, f"{near} lies in memory: snapshots there do not survive a restart", elsewhere, **data)
    return ok(name, told, **data)


def temporary_files(given: Surroundings) -> Finding:
    """The folder of temporary files, where Ray keeps sockets and logs, and plans may hold values."""
    folder = Path(given.environ.get("RAY_TMPDIR") or given.temporary)
    name, remedy = (
        "temporary files",
        "remove old files, as ray/session_* of programs that have ended, or name another folder with TMPDIR and RAY_TMPDIR",
    )
    try:
        usage = shutil.disk_usage(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
            file.flush()
    except OSError as fault:
        return error(name, f"nothing can be written to {folder}: {fault.strerror}", remedy, folder=str(folder))
    part = 1 - usage.free / usage.total if usage.total else 1.0
    told = f"{format_size(usage.free)} free in {folder}"
    data = {"folder": str(folder), "free": usage.free, "total": usage.total}
    if usage.free < _LEAST:
        return error(name, told, remedy, **data)
    if part > _RAY_FULL:
        return warning(name, f"{told}, {part:.0%} full, which Ray takes for full", remedy, **data)
    if usage.free < _FEW:
        return warning(name, told, remedy, **data)
    if len(str(folder)) + _BEHIND > _SOCKET:
        remedy = f"name a folder of at most {_SOCKET - _BEHIND} characters with RAY_TMPDIR"
        return error(name, f"{folder} is too long for paths of Ray's sockets", remedy, **data)
    return ok(name, told, **data)


def open_files(given: Surroundings) -> Finding:
    """How many files, sockets and pipes a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told, data = f"{_count(soft)} at once in a process", {"soft": soft, "hard": hard}
    remedy = f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536}"
    if soft != resource.RLIM_INFINITY and soft < 256:
        return error("open files", told, f"{remedy}: Ray does not start with so few", **data)
    if soft != resource.RLIM_INFINITY and soft < 1024:
        return warning(
            "open files", told, f"{remedy}: Ray opens many, and connections fail when there are no more", **data
        )
    return ok("open files", told, **data)


def file_size(given: Surroundings) -> Finding:
    """How large a file may be."""
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if soft != resource.RLIM_INFINITY and soft < _FEW:
        return warning(
            "file size", f"at most {format_size(soft)}", "ulimit -f unlimited: snapshots may be larger", soft=soft
        )
    return ok("file size", "no limit" if soft == resource.RLIM_INFINITY else f"at most {format_size(soft)}", soft=soft)


def new_processes(given: Surroundings) -> Finding:
    """How many processes and threads there may be: Ray takes a few hundred threads on a node."""
    found = []
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY and os.geteuid():  # root has no such limit
        found.append((soft, "of this user", "ulimit -u 8192"))
    for folder, top in control_groups(given.root, "pids"):
        for place in (folder, *folder.parents):
            here = place.relative_to(given.root)
            most, now = given.read(f"{here}/pids.max"), given.read(f"{here}/pids.current")
            if most is not None and most.isdecimal():
                taken = int(now) if now is not None and now.isdecimal() else 0
                found.append(
                    (int(most) - taken, f"more in the container ({place / 'pids.max'})", "raise its --pids-limit")
                )
            if place == top:
                break
    if not found:
        return ok("processes", "no limit of processes and threads")
    left, where, remedy = min(found)
    told, data = f"{_count(left)} processes and threads {where}", {"left": left}
    if left < 256:
        return error("processes", told, f"{remedy}: Ray does not start with so few", **data)
    if left < 1024:
        return warning("processes", told, f"{remedy}: Ray takes some hundreds for itself", **data)
    return ok("processes", told, **data)


def _count(number: int) -> str:
    return "any number" if number == resource.RLIM_INFINITY else f"{number:,}"


CHECKS = (runs, durable_files, temporary_files, open_files, file_size, new_processes)
