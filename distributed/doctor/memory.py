"""Memory: what is free, what a container leaves, and whether processes can share it."""

from __future__ import annotations

import resource
import subprocess
import sys

import psutil

from checkpointing.memory_limits import available_memory, container_limit
from distributed.cluster import OBJECT_STORE_NBYTES
from distributed.collectives.segment import Segment
from distributed.doctor.finding import Finding, Surroundings, error, ok, warning
from framework.sizes import format_size

#: A process of a worker takes about 130 MiB before its first array, Ray's own processes 340 MiB on a node.
_LEAST, _FEW = 256 * 2**20, 2**30
#: From this part of the memory on Ray ends workers (its RAY_memory_usage_threshold).
_RAY_ENDS_WORKERS = 0.95
#: Part of the memory by which that is near.
_NEAR = 0.05
#: What a new process reads of memory that this one shares.
_MARK = 7


def memory(given: Surroundings) -> Finding:
    """What is free on the machine."""
    total, free = int(psutil.virtual_memory().total), available_memory()
    told = f"{format_size(free)} free of {format_size(total)}"
    data = {"total": total, "available": free, "swap": int(psutil.swap_memory().total)}
    if free < _LEAST:
        return error(
            "memory", told, f"end other programs: {format_size(_LEAST)} are the least that a run takes", **data
        )
    if free < _FEW:
        return warning(
            "memory", told, "end other programs, or give a budget (--memory-budget auto) and --workers 0", **data
        )
    threshold = _threshold(given)
    if 1 - free / total > threshold - _NEAR:
        remedy = f"end other programs: Ray ends workers when {threshold:.0%} are taken (RAY_memory_usage_threshold)"
        return warning("memory", told, remedy, **data)
    return ok("memory", told, **data)


def _threshold(given: Surroundings) -> float:
    try:
        return float(given.environ.get("RAY_memory_usage_threshold", _RAY_ENDS_WORKERS))
    except ValueError:
        return _RAY_ENDS_WORKERS


def container(given: Surroundings) -> Finding:
    """What the container lets its processes take, by control groups of version 1 or 2."""
    limit = container_limit(given.root)
    if limit is None:
        return ok("container", "no limit of memory")
    told = f"{format_size(limit.left)} left of {format_size(limit.nbytes)} ({limit.source})"
    data = {"limit": limit.nbytes, "left": limit.left, "source": str(limit.source)}
    remedy = "raise the container's limit (docker run --memory, resources.limits.memory)"
    if limit.left < _LEAST:
        return error("container", told, f"{remedy}: {format_size(_LEAST)} are the least that a run takes", **data)
    if limit.left < _FEW:
        return warning("container", told, f"{remedy}, or give a budget (--memory-budget auto) and --workers 0", **data)
    return ok("container", told, **data)


def limits(given: Surroundings) -> Finding:
    """Limits of this process's address space, and a system that grants no more memory than it has."""
    found = {}
    for name, what in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY:
            found[what] = soft
    if found:
        words = ", ".join(f"ulimit {what} is {format_size(soft)}" for what, soft in found.items())
        remedy = f"ulimit {' unlimited; ulimit '.join(found)} unlimited: Ray reserves far more addresses than it uses"
        return warning("address space", words, remedy, **{f"ulimit{what}": soft for what, soft in found.items()})
    if given.read("proc/sys/vm/overcommit_memory") == "2":
        remedy = (
            "sudo sysctl vm.overcommit_memory=0, or give an engine:SIZE budget: what is reserved counts as taken here"
        )
        return warning(
            "address space", "the system grants no more than it has (vm.overcommit_memory=2)", remedy, overcommit=2
        )
    return ok("address space", "no limit")


def shared_memory(given: Surroundings) -> Finding:
    """Whether another process can map memory of this one, as workers do."""
    name, remedy = "shared memory", "workers cannot run here; train with --workers 0"
    try:
        segment = Segment.create("retape-doctor", 4096)
        segment.bytes(0, 1)[0] = _MARK
        path = f"/proc/{segment.address.pid}/fd/{segment.address.descriptor}"
        code = f"import sys; sys.exit(open({path!r}, 'r+b', 0).read(1)[0])"
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
        finally:
            segment.close()
    except OSError as fault:
        return error(name, f"this system shares no memory through memfd: {fault.strerror or fault}", remedy)
    if child.returncode != _MARK:
        last = (child.stderr.strip().splitlines() or ["it read something else"])[-1]
        return error(
            name,
            f"another process could not map this one's memory: {last}",
            f"run all as one user in one process namespace, without hidepid or a sandbox such as gVisor; until then {remedy}",
        )
    return ok(name, "a second process maps this one's (memfd)")


def shared_files(given: Surroundings) -> Finding:
    """The size of /dev/shm, where Ray keeps its object store; gradients do not pass there."""
    folder = given.root / "dev/shm"
    try:
        usage = psutil.disk_usage(str(folder))
    except OSError:
        return warning("shared files", "there is no /dev/shm, so Ray keeps its objects in files", "mount a tmpfs there")
    told = f"{format_size(usage.free)} free of {format_size(usage.total)} in /dev/shm"
    data = {"total": usage.total, "free": usage.free}
    if usage.free < OBJECT_STORE_NBYTES:
        least = format_size(OBJECT_STORE_NBYTES)
        remedy = f"start the container with --shm-size=256m, or remove what lies there: Ray wants {least} and takes files in /tmp instead"
        return warning("shared files", told, remedy, **data)
    return ok("shared files", told, **data)


CHECKS = (memory, container, limits, shared_memory, shared_files)
