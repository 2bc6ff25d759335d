"""The machine: system, Python, cores, BLAS, what bits depend on, clock."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from threadpoolctl import threadpool_info

from checkpointing.memory_limits import control_groups
from distributed.doctor.finding import Finding, Surroundings, error, ok, warning
from distributed.fingerprint import fingerprint

#: What sets the threads of a BLAS, or of what it is built on, before a program can.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
)
#: What chooses other kernels than those of the CPU.
_KERNELS = (
    "OPENBLAS_CORETYPE",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
)
#: Clocks that take microseconds to read, or tick rarely.
_SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
#: Before this release no clock was right.
_RELEASE = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
#: Seconds by which the clocks of a file system and of the machine may differ.
_SKEW = 2.0


def system(given: Surroundings) -> Finding:
    """Workers need Linux."""
    told = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if sys.platform != "linux":
        return warning("system", told, "workers need Linux; elsewhere train with --workers 0", system=sys.platform)
    return ok("system", told, system=sys.platform, release=platform.release())


def python(given: Surroundings) -> Finding:
    """The Python, which must be one of 64 bits; programs refuse old ones themselves."""
    told = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    data = {"version": platform.python_version(), "executable": sys.executable, "prefix": sys.prefix}
    if sys.maxsize < 2**32:
        return error("python", f"{told}, of 32 bits", "use a Python of 64 bits: arrays pass 2 GiB", **data)
    return ok("python", told, **data)


def cores(given: Surroundings) -> Finding:
    """How many cores this process may use: by its affinity, and by the container's quota of their time."""
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = _quota(given)
    usable = min(allowed, quota) if quota is not None else allowed
    data = {"cores": there, "affinity": allowed, "quota": quota, "usable": usable}
    told = f"{usable:g} of {there} usable"
    if quota is not None and quota < allowed:
        told += f": the container's quota is {quota:g}, and Ray and BLAS see {allowed}"
        return warning(
            "cores", told, f"give --workers times --threads-per-worker at most {max(1, int(quota))}, or raise the container's --cpus", **data
        )  # fmt: skip
    if allowed < there:
        told += " by this process's affinity"
    return ok("cores", told, **data)


def _quota(given: Surroundings) -> float | None:
    """Cores' worth of time that the control group and those above it give; None for no limit."""
    found = []
    for folder, top in control_groups(given.root, "cpu"):
        for place in (folder, *folder.parents):
            words = (given.read(str((place / "cpu.max").relative_to(given.root))) or "").split()
            if not words:
                words = [
                    given.read(str((place / f"cpu.cfs_{what}_us").relative_to(given.root))) or ""
                    for what in ("quota", "period")
                ]
            if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
                found.append(int(words[0]) / int(words[1]))
            if place == top:
                break
    return min(found, default=None)


def load(given: Surroundings) -> Finding | None:
    """Whether others use the cores."""
    if not hasattr(os, "getloadavg"):
        return None
    busy, there = os.getloadavg()[0], os.cpu_count() or 1
    told = f"{busy:.1f} processes ran or waited for {there} cores in the last minute"
    if busy > 1.5 * there:
        remedy = "wait for the others, or end them: steps will be slow, and measured times too long"
        return warning("load", told, remedy, load=busy)
    return ok("load", told, load=busy)


def blas(given: Surroundings) -> Finding:
    """What computes matrix products."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    words = [
        f"{library['internal_api']} {library.get('version') or ''} for {library.get('architecture') or 'an unknown core'}, "
        f"{library['num_threads']} threads"
        for library in found
    ]
    data = {"libraries": [{key: library.get(key) for key in ("internal_api", "version", "architecture", "num_threads", "filepath")} for library in found]}  # fmt: skip
    if not found:
        return warning(
            "blas",
            "NumPy has no BLAS that can be told how many threads to use: products are slow, and their bits may change",
            "install NumPy's own wheel, which has OpenBLAS: pip install --force-reinstall numpy",
            **data,
        )
    if len(found) > 1:
        return warning(
            "blas",
            "; ".join(words),
            "several libraries compete for the cores; use an environment with one, as make install makes it",
            **data,
        )
    return ok("blas", words[0], **data)


def blas_threads(given: Surroundings) -> Finding:
    """What the environment says of BLAS's threads. Programs set those of their products themselves, as long as that is allowed."""
    told = {name: given.environ[name] for name in _THREADS if given.environ.get(name)}
    words = ", ".join(f"{name}={value}" for name, value in told.items())
    remedy = f"unset {' '.join(told)}: programs set the threads of their products themselves (--threads-per-worker)"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if odd := [name for name, value in told.items() if not (value.isdecimal() and int(value))]:
        return warning("blas threads", f"{words}: {', '.join(odd)} is no number of threads", remedy, **told)
    if len(set(told.values())) > 1:
        return warning("blas threads", f"{words}: they contradict each other", remedy, **told)
    if any(int(value) > usable for value in told.values()):
        return warning("blas threads", f"{words}: more than the {usable} usable cores", remedy, **told)
    return ok("blas threads", words or "as many as a program says; the environment sets none", **told)


def kernels(given: Surroundings) -> Finding:
    """Whether the environment chooses other kernels than the CPU's own."""
    told = {name: given.environ[name] for name in _KERNELS if given.environ.get(name)}
    if told:
        words = ", ".join(f"{name}={value}" for name, value in told.items())
        remedy = (
            f"unset {' '.join(told)} unless machines of different kinds have to compute the same bits: it may be slower, and runs "
            "with and without it have other bits"
        )
        return warning("kernels", f"{words} chooses other kernels than those for this CPU", remedy, **told)
    return ok("kernels", "those that NumPy and BLAS choose for this CPU")


def bits(given: Surroundings) -> Finding:
    """The fingerprint that workers of a run compare, short enough to be compared by eye."""
    found = fingerprint(1)
    digest = hashlib.sha256("\n".join(f"{name}={value}" for name, value in sorted(found.items())).encode()).hexdigest()
    return ok("fingerprint", f"{digest[:12]}: machines with the same one compute the same bits", fingerprint=found, sha256=digest)  # fmt: skip


def clock(given: Surroundings) -> Finding:
    """A clock that is right, quick to read, and that of the disk where runs are written."""
    source = given.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    now = time.time()
    told = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {source or 'unknown source'}"
    data = {"source": source, "resolution": time.get_clock_info("perf_counter").resolution}
    if now < _RELEASE:
        return error(
            "clock", f"{told}: before this release", "set the clock: folders of runs are named after it", **data
        )
    if source in _SLOW_CLOCKS:
        remedy = "boot with tsc or kvm-clock, if the machine has it: measured times (--measured-costs) are not exact with this one"
        return warning("clock", f"{told}: slow to read", remedy, **data)
    if (skew := _skew(given.runs)) is not None:
        data["skew"] = skew
        if abs(skew) > _SKEW:
            remedy = "let both machines take their time from one server (chrony, ntpd)"
            return warning("clock", f"{told}; the disk of {given.runs} is {skew:+.0f} s apart from it", remedy, **data)
    return ok("clock", told, **data)


def _skew(folder: Path) -> float | None:
    """Seconds by which a new file's time differs from the machine's; None where none can be made."""
    near = nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=near, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        return None


def nearest(folder: Path) -> Path:
    """Returns a folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def huge_pages(given: Surroundings) -> Finding | None:
    """Whether the system makes memory resident two megabytes at a time, which a budget of the whole process does not expect."""
    text = given.read("sys/kernel/mm/transparent_hugepage/enabled")
    if text is None or "[" not in text:
        return None
    mode = text.partition("[")[2].partition("]")[0]
    if mode == "always":
        return warning(
            "huge pages",
            "always: a process may hold up to 2 MiB more for each piece of memory than it uses",
            "for exact budgets of whole processes: echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled; "
            "budgets of the engine's bytes (engine:SIZE) do not depend on it",
            mode=mode,
        )
    return ok("huge pages", mode, mode=mode)


def processes(given: Surroundings) -> Finding:
    """Programs of this project that run already, which share cores, memory and perhaps folders."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["pid"] not in mine and any(Path(word).name == "train.py" for word in words[:3]):
            found.append(int(process.info["pid"]))
    told = f"train.py runs as {', '.join(map(str, found))}" if found else "no train.py runs now"
    return ok("training", told, pids=found)


CHECKS = (system, python, cores, load, blas, blas_threads, kernels, bits, clock, huge_pages, processes)
