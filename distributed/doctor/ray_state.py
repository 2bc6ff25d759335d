"""Ray: whether it is there and can start, and which clusters run already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from distributed.cluster import ClusterError, connect, probe
from distributed.doctor.finding import Finding, Surroundings, error, ok, warning
from distributed.doctor.packages import installed, tested

_INSTALL = "pip install --constraint constraints.txt --editable ., or train with --workers 0, which needs no Ray"


def package(given: Surroundings) -> Finding:
    """Whether Ray is installed, can be imported, and which version that is."""
    version = installed(["ray"])["ray"]
    if version is None:
        return error("ray", "not installed, so there are no workers", _INSTALL)
    try:
        import ray
    except Exception as fault:  # whatever a broken installation raises
        return error(
            "ray", f"ray {version} cannot be imported: {type(fault).__name__}: {fault}", _INSTALL, version=version
        )
    known = tested(given.constraints).get("ray")
    where = str(Path(ray.__file__).parent)
    if not hasattr(ray, "init"):
        told = f"what is imported as ray, from {where}, is not Ray"
        return error("ray", told, "rename the file or folder of that name", path=where)
    told = f"ray {version}" + ("" if known in (None, version) else f"; {known} was tested")
    return ok("ray", told, version=version, tested=known, path=where)


def address(given: Surroundings) -> Finding:
    """Whether the environment names a cluster, and something answers there."""
    named = given.environ.get("RAY_ADDRESS")
    if not named:
        return ok("RAY_ADDRESS", "not set: train.py starts a Ray of its own, or joins that of --address")
    remedy = "unset RAY_ADDRESS, or start that cluster; train.py joins it with --address auto alone"
    if named.startswith("ray://"):
        return warning("RAY_ADDRESS", f"{named} is for Ray's client, which train.py is not", remedy, address=named)
    if named in ("auto", "local"):
        return ok("RAY_ADDRESS", named, address=named)
    try:
        probe(named)
    except ClusterError as fault:
        return warning("RAY_ADDRESS", f"{named}: {fault}", remedy, address=named)
    return ok("RAY_ADDRESS", f"{named} answers; train.py joins it with --address auto", address=named)


def clusters(given: Surroundings) -> Finding:
    """Which Ray clusters have their head on this machine, and which program each belongs to."""
    heads = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        words = process.info["cmdline"] or [process.info["name"] or ""]
        if words and Path(words[0]).name == "gcs_server":
            heads.append({"pid": int(process.info["pid"]), "program": _program(process)})
    told = [f"process {head['pid']} of {head['program']}" for head in heads]
    return ok(
        "clusters", f"heads here: {', '.join(told)}" if told else "no head of one runs on this machine", heads=heads
    )


def _program(process: psutil.Process) -> str:
    """The program that started a head, in a few words."""
    try:
        parent = process.parent()
        if parent is None or parent.pid == 1:
            return "ray start, or of a program that has ended"
        words = [Path(word).name for word in parent.cmdline()[:3] if not word.startswith("-")]
    except psutil.Error:
        return "a program that cannot be seen"
    return f"{' '.join(words)} ({parent.pid})"


def start(given: Surroundings) -> Finding | None:
    """Starts Ray as train.py does, lets a worker answer, and ends it; only where that is asked for."""
    if not given.start_ray:
        return None
    remedy = "look into the newest folder of /tmp/ray/session_*/logs; train with --workers 0 until then"
    try:
        import ray
    except ImportError as fault:
        return error("start of Ray", str(fault), _INSTALL)
    if ray.is_initialized():
        return ok("start of Ray", "this process has a Ray already")
    try:
        connect(ray, None, 1)
        pid, resources = ray.get(ray.remote(_where).remote(), timeout=120), ray.cluster_resources()
    except (ClusterError, ray.exceptions.RayError, OSError) as fault:
        return error("start of Ray", f"failed: {fault}", remedy)
    finally:
        ray.shutdown()
    data: dict[str, Any] = {"cpus": resources.get("CPU"), "memory": resources.get("memory"), "pid": pid}
    return ok("start of Ray", f"a worker answered, as process {pid}; {resources.get('CPU', 0):.0f} CPUs", **data)


def _where() -> int:
    import os

    return os.getpid()


CHECKS = (package, address, clusters, start)
