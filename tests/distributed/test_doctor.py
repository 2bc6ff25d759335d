"""Each fault is planted, and exactly its line changes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from distributed import doctor
from distributed.doctor import CHECKS, Finding, Surroundings, examine, memory, packages, worst
from tests.distributed.answering import SETTINGS, answering

ROOT = Path(__file__).parents[2]
#: As it is, before a test replaces it.
RUN = subprocess.run
GIB = 2**30
UNLIMITED = resource.RLIM_INFINITY
V2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
V1 = "".join(f"3{n} 20 0:3{n} / /sys/fs/cgroup/{each} rw - cgroup cgroup rw,{each}\n" for n, each in enumerate(("cpu", "pids", "memory")))  # fmt: skip
MEMBER = {V2: "0::/box\n", V1: "1:cpu:/box\n2:pids:/box\n3:memory:/box\n"}


@dataclasses.dataclass
class Machine:
    """A healthy machine, and hands to break it with."""

    given: Surroundings
    patch: pytest.MonkeyPatch
    limits: dict[int, tuple[int, int]]

    def file(self, path: str, text: str) -> None:
        place = self.given.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def group(self, mount: str, files: dict[str, str]) -> None:
        """A container: the control group /box, of version 1 or 2, with these files."""
        self.file("proc/self/mountinfo", mount)
        self.file("proc/self/cgroup", MEMBER[mount])
        for name, text in files.items():
            controller = "" if mount == V2 else name.split(".")[0] + "/"
            self.file(f"sys/fs/cgroup/{controller}box/{name}", text)

    def environ(self, **named: str) -> None:
        self.given = dataclasses.replace(self.given, environ=named)

    def limit(self, name: str, soft: int) -> None:
        self.limits[getattr(resource, name)] = (soft, UNLIMITED)

    def disk(self, folder: Path, free: int, total: int = 100 * GIB) -> None:
        """Lets the disk of a folder have so much room."""
        before = psutil.disk_usage

        def usage(path: Any) -> Any:
            if Path(path) != folder or not folder.exists():
                return before(str(path))
            return SimpleNamespace(total=total, used=total - free, free=free)

        self.patch.setattr("shutil.disk_usage", usage)
        self.patch.setattr(psutil, "disk_usage", usage)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    folders = {name: tmp_path / name for name in ("root", "runs", "t")}
    for folder in folders.values():
        folder.mkdir()
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits.get(which, (UNLIMITED, UNLIMITED)))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, available=12 * GIB))
    monkeypatch.setattr("distributed.doctor.files._BEHIND", 0)  # the test's folder is long
    given = Surroundings(
        runs=folders["runs"],
        homes=dict.fromkeys(("framework", "checkpointing", "distributed"), ROOT),
        source=ROOT,
        constraints=None,
        root=folders["root"],
        environ={},
        temporary=folders["t"],
    )
    made = Machine(given, monkeypatch, limits)
    made.file("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n")
    made.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    made.file("proc/sys/vm/overcommit_memory", "0\n")
    made.file("dev/shm/keep", "")
    blas = {"user_api": "blas", "internal_api": "openblas", "filepath": "numpy", "num_threads": 1, "architecture": "X"}
    monkeypatch.setattr("distributed.doctor.machine.threadpool_info", lambda: [blas])
    monkeypatch.setattr(psutil, "process_iter", lambda names: iter(()))
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: SimpleNamespace(returncode=memory._MARK))
    for folder in (folders["runs"], folders["t"], folders["root"] / "dev/shm"):
        made.disk(folder, 50 * GIB)
    return made


def findings(machine: Machine) -> dict[str, Finding]:
    found = {finding.name: finding for finding in examine(machine.given)}
    assert all(bool(finding.remedy) == (finding.level != "ok") for finding in found.values())
    return found


def raising(kind: type[Exception], *arguments: Any) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        raise kind(*arguments)

    return call


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def no_fork(machine: Machine) -> None:
    done = SimpleNamespace(returncode=1, stderr="Traceback ...\nPermissionError: [Errno 13] Permission denied")
    machine.patch.setattr(subprocess, "run", lambda *given, **named: done)


def dask(machine: Machine) -> None:
    there = importlib.metadata.version
    machine.patch.setattr(
        importlib.metadata, "version", lambda name: "2026.1.0" if name == "distributed" else there(name)
    )


def without(machine: Machine, *absent: str) -> None:
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    machine.patch.setattr(importlib.metadata, "version", version)


def homes(machine: Machine, **named: Path | None) -> None:
    machine.given = dataclasses.replace(machine.given, homes={**machine.given.homes, **named})


def constraints(machine: Machine, text: str) -> None:
    machine.file("constraints.txt", text)
    machine.given = dataclasses.replace(machine.given, constraints=machine.given.root / "constraints.txt")


def free(machine: Machine, available: int, total: int = 16 * GIB) -> None:
    machine.patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=available))


def few_inodes(machine: Machine) -> None:
    machine.patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_files=10**6, f_favail=12))


def skewed(machine: Machine) -> None:
    machine.patch.setattr("distributed.doctor.machine._skew", lambda folder: 3600.0)


def two_blas(machine: Machine) -> None:
    from distributed.doctor import machine as module

    one = module.threadpool_info()
    machine.patch.setattr(module, "threadpool_info", lambda: [*one, {**one[0], "internal_api": "mkl"}])


def in_memory(machine: Machine) -> None:
    device = machine.given.runs.stat().st_dev
    machine.file("proc/self/mountinfo", f"9 1 {os.major(device)}:{os.minor(device)} / / rw - tmpfs tmpfs rw\n")


def user_limit(machine: Machine) -> None:
    machine.limit("RLIMIT_NPROC", 100)
    machine.patch.setattr(os, "geteuid", lambda: 1000)


def not_ray(machine: Machine) -> None:
    machine.patch.setitem(sys.modules, "ray", SimpleNamespace(__file__="/home/me/ray.py"))


Plant = Callable[[Machine], Any]
#: What is planted, the one line that changes, its level, what it says, and what its remedy says.
FAULTS: dict[str, tuple[Plant, str, str, str, str]] = {
    "another system": (lambda m: m.patch.setattr(sys, "platform", "darwin"), "system", "warning", "", "--workers 0"),
    "32 bits": (lambda m: m.patch.setattr(sys, "maxsize", 2**31 - 1), "python", "error", "of 32 bits", "64 bits"),
    "a quota, v2": (lambda m: m.group(V2, {"cpu.max": "150000 100000"}), "cores", "warning", "1.5 of 4 usable: the container's quota is 1.5", "at most 1"),
    "a quota, v1": (lambda m: m.group(V1, {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}), "cores", "warning", "0.5 of 4", "--cpus"),
    "busy cores": (lambda m: m.patch.setattr(os, "getloadavg", lambda: (9.0, 1, 1)), "load", "warning", "9.0 processes", "steps will be slow"),
    "no BLAS": (lambda m: m.patch.setattr("distributed.doctor.machine.threadpool_info", list), "blas", "warning", "no BLAS", "pip install"),
    "two BLAS": (two_blas, "blas", "warning", "mkl", "environment with one"),
    "threads: a word": (lambda m: m.environ(OMP_NUM_THREADS="many"), "blas threads", "warning", "OMP_NUM_THREADS=many: OMP_NUM_THREADS is no", "unset OMP_NUM_THREADS"),
    "threads: none": (lambda m: m.environ(OPENBLAS_NUM_THREADS="0"), "blas threads", "warning", "is no number of threads", "unset OPENBLAS"),
    "threads: too many": (lambda m: m.environ(MKL_NUM_THREADS="64"), "blas threads", "warning", "more than the 4", "unset MKL"),
    "threads: two": (lambda m: m.environ(OMP_NUM_THREADS="1", MKL_NUM_THREADS="2"), "blas threads", "warning", "contradict", "unset"),
    "other kernels": (lambda m: m.environ(OPENBLAS_CORETYPE="Haswell"), "kernels", "warning", "OPENBLAS_CORETYPE=Haswell", "other bits"),
    "a slow clock": (lambda m: m.file("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"), "clock", "warning", "slow to read", "tsc"),
    "a wrong clock": (lambda m: m.patch.setattr(time, "time", lambda: 1e9), "clock", "error", "before this release", "set the clock"),
    "two clocks": (skewed, "clock", "warning", "+3600 s apart", "one server"),
    "huge pages": (lambda m: m.file("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never"), "huge pages", "warning", "2 MiB", "madvise"),
    "no memory": (lambda m: free(m, 100 * 2**20), "memory", "error", "100.0 MiB free of 16.0 GiB", "the least"),
    "little memory": (lambda m: free(m, 600 * 2**20, total=2 * GIB), "memory", "warning", "600.0 MiB", "--memory-budget auto"),
    "Ray would end workers": (lambda m: free(m, 2 * GIB, total=64 * GIB), "memory", "warning", "2.0 GiB", "95% are taken"),
    "a full container, v2": (lambda m: m.group(V2, {"memory.max": str(GIB), "memory.current": str(GIB)}), "container", "error", "0 B left of 1.0 GiB", "--memory"),
    "a small container, v1": (lambda m: m.group(V1, {"memory.limit_in_bytes": str(GIB), "memory.usage_in_bytes": str(GIB // 2)}), "container", "warning", "512.0 MiB left of 1.0 GiB", "--memory"),
    "few addresses": (lambda m: m.limit("RLIMIT_AS", 4 * GIB), "address space", "warning", "ulimit -v is 4.0 GiB", "ulimit -v unlimited"),
    "no overcommitment": (lambda m: m.file("proc/sys/vm/overcommit_memory", "2"), "address space", "warning", "vm.overcommit_memory=2", "engine:SIZE"),
    "no memfd": (lambda m: m.patch.delattr(os, "memfd_create"), "shared memory", "error", "memfd", "--workers 0"),
    "memfd is forbidden": (lambda m: m.patch.setattr(os, "memfd_create", raising(OSError, 1, "Operation not permitted")), "shared memory", "error", "Operation not permitted", "--workers 0"),
    "no other process maps it": (no_fork, "shared memory", "error", "Permission denied", "one process namespace"),
    "a small /dev/shm": (lambda m: m.disk(m.given.root / "dev/shm", 60 * 2**20, 64 * 2**20), "shared files", "warning", "60.0 MiB free of 64.0 MiB", "--shm-size"),
    "no /dev/shm": (lambda m: (m.given.root / "dev/shm/keep").unlink() or (m.given.root / "dev/shm").rmdir(), "shared files", "warning", "no /dev/shm", "tmpfs"),
    "a full disk": (lambda m: m.disk(m.given.runs, 2**20), "runs", "error", "1.0 MiB free", "--run-dir"),
    "a fuller disk": (lambda m: m.disk(m.given.runs, GIB // 2), "runs", "warning", "512.0 MiB free", "--keep-snapshots"),
    "few inodes": (few_inodes, "runs", "warning", "12 more files alone", "old runs"),
    "no sync": (lambda m: m.patch.setattr(os, "fsync", raising(OSError, 5, "Input/output error")), "snapshots", "error", "Input/output error", "local disk"),
    "no locks": (lambda m: m.patch.setattr("fcntl.flock", raising(OSError, 37, "No locks available")), "snapshots", "error", "No locks", "local disk"),
    "runs in memory": (in_memory, "snapshots", "warning", "do not survive", "local disk"),
    "a full /tmp": (lambda m: m.disk(m.given.temporary, 2**20), "temporary files", "error", "1.0 MiB free", "RAY_TMPDIR"),
    "a nearly full /tmp": (lambda m: m.disk(m.given.temporary, 2 * GIB, 100 * GIB), "temporary files", "warning", "98% full", "ray/session_*"),
    "a folder that is not there": (lambda m: m.environ(RAY_TMPDIR="/nowhere"), "temporary files", "error", "/nowhere: No such file", "RAY_TMPDIR"),
    "a long path": (lambda m: m.patch.setattr("distributed.doctor.files._BEHIND", 100), "temporary files", "error", "too long for paths", "at most 7"),
    "few files": (lambda m: m.limit("RLIMIT_NOFILE", 64), "open files", "error", "64 at once", "ulimit -n"),
    "some files": (lambda m: m.limit("RLIMIT_NOFILE", 512), "open files", "warning", "512 at once", "ulimit -n 65536"),
    "small files": (lambda m: m.limit("RLIMIT_FSIZE", 2**20), "file size", "warning", "at most 1.0 MiB", "ulimit -f"),
    "few processes, v2": (lambda m: m.group(V2, {"pids.max": "300", "pids.current": "100"}), "processes", "error", "200 processes", "--pids-limit"),
    "few processes, v1": (lambda m: m.group(V1, {"pids.max": "900"}), "processes", "warning", "900 processes", "--pids-limit"),
    "few processes of a user": (user_limit, "processes", "error", "100 processes and threads of this user", "ulimit -u"),
    "a foreign distributed": (lambda m: homes(m, distributed=Path("/dask")), "own packages", "error", "distributed from /dask; one of them is foreign", "take /dask out of PYTHONPATH"),
    "a package that is missing": (lambda m: homes(m, framework=None), "own packages", "error", "framework cannot be imported", "pip install -e ."),
    "another copy": (lambda m: homes(m, **dict.fromkeys(m.given.homes, Path("/other"))), "own packages", "warning", "those of /other", "/other/scripts/doctor.py"),
    "Dask beside": (dask, "foreign packages", "warning", "distributed 2026.1.0 of Dask", "pip uninstall distributed"),
    "another version": (lambda m: constraints(m, "psutil==0.0.1\n"), "versions", "warning", "tested with 0.0.1", "--constraint"),
    "no psutil": (lambda m: without(m, "psutil"), "versions", "error", "psutil not installed", "pip install"),
    "a cluster that is gone": (lambda m: m.environ(RAY_ADDRESS=f"127.0.0.1:{closed_port()}"), "RAY_ADDRESS", "warning", "nothing answers", "unset RAY_ADDRESS"),
    "a client's address": (lambda m: m.environ(RAY_ADDRESS="ray://head:10001"), "RAY_ADDRESS", "warning", "Ray's client", "unset RAY_ADDRESS"),
    "not Ray": (not_ray, "ray", "error", "from /home/me, is not Ray", "rename"),
    "a broken Ray": (lambda m: m.patch.setitem(sys.modules, "ray", None), "ray", "error", "cannot be imported", "--workers 0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def _ray_is_imported() -> None:
    import ray  # noqa: F401  (before a test hides it)


@pytest.mark.usefixtures("_ray_is_imported")
def test_on_a_healthy_machine_all_is_well(machine: Machine) -> None:
    found = findings(machine)
    assert {name: finding.told for name, finding in found.items() if finding.level != "ok"} == {}
    assert len(found) == sum(map(len, CHECKS.values())) - 1  # Ray is started only if somebody asks for it
    assert {finding.group for finding in found.values()} == set(CHECKS)
    json.dumps([dataclasses.asdict(finding) for finding in found.values()], allow_nan=False)


@pytest.mark.usefixtures("_ray_is_imported")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_its_own_line_alone(machine: Machine, fault: str) -> None:
    plant, name, level, told, remedy = FAULTS[fault]
    plant(machine)
    found = findings(machine)
    assert {each: finding.level for each, finding in found.items() if finding.level != "ok"} == {name: level}
    assert told in found[name].told
    assert remedy in found[name].remedy


def test_every_check_that_can_find_fault_has_a_planted_one(machine: Machine) -> None:
    """What is only told, and never a fault, is listed here."""
    told = {"fingerprint", "training", "extras", "clusters"}
    assert {name for _, name, *_ in FAULTS.values()} == set(findings(machine)) - told


def test_versions_below_the_least_are_errors(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packages, "needed", lambda: [packages.Requirement("psutil>=999"), packages.Requirement("numpy>=1")]
    )
    found = packages.versions(machine.given)
    assert (found.level, found.told) == ("error", f"too old: psutil {psutil.__version__} (needs >=999)")


def test_a_cluster_that_answers_is_well(machine: Machine) -> None:
    with answering(SETTINGS) as address:
        machine.environ(RAY_ADDRESS=address)
        assert doctor.ray_state.address(machine.given).level == "ok"


def test_a_check_that_fails_itself_hides_no_other(machine: Machine) -> None:
    def broken(given: Surroundings) -> Finding:
        raise KeyError("cpu")

    found = list(examine(machine.given, {"one": [broken], "two": [doctor.machine.system]}))
    assert [(each.name, each.level) for each in found] == [("broken", "warning"), ("system", "ok")]
    assert "KeyError: 'cpu'" in found[0].told
    assert worst(found) == "warning"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory that has no room left."""
    folder = tmp_path / "full"
    folder.mkdir()
    if RUN(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False).returncode:  # fmt: skip
        pytest.skip("no right to mount a file system")
    try:
        with (folder / "filler").open("wb", 0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        yield folder
    finally:
        RUN(["umount", folder], check=True)


def test_a_disk_that_is_really_full(machine: Machine, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    given = dataclasses.replace(machine.given, runs=full, temporary=full)
    files = {finding.name: finding for finding in examine(given, {"files": CHECKS["files and limits"]})}
    levels = {
        name: finding.level for name, finding in files.items() if name in ("runs", "snapshots", "temporary files")
    }
    assert levels == {"runs": "error", "snapshots": "error", "temporary files": "error"}
    assert "No space left on device" in files["snapshots"].told
    assert [path.name for path in full.iterdir()] == ["filler"]
