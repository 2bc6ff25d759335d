"""Measuring two sides fairly on a shared, noisy machine: alternating, medians, and a peer that may be absent."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What was measured.
        unit: s, bytes, GB/s or 1.
        ours: Median of our side.
        peer: Median of the other side; None where it is not installed.
        peer_name: Who that is.
        runs: How many runs the medians are of.
        better: lower or higher.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    runs: int
    better: str = "lower"

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's."""
        return self.ours / self.peer if self.peer else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "better": self.better,
            "runs": self.runs,
        }


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def times(name: str, ours: Run, peer: Run | None, peer_name: str, runs: int) -> Row:
    """Times both sides in turn, after one call of each that is not timed."""
    sides = [ours] if peer is None else [ours, peer]
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(runs + 1):
        for side, found in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if number:
                found.append(time.perf_counter() - started)
    medians = [median(found) for found in seconds]
    return Row(name, "s", medians[0], medians[1] if peer is not None else None, peer_name, runs)


def peak_bytes(run: Run) -> int:
    """Returns the most bytes that a call had allocated at once, NumPy's arrays and Python's objects, results included."""
    run()  # what stays from a first call is not the call's
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def peaks(name: str, ours: Run, peer: Run | None, peer_name: str) -> Row:
    """Compares the peak memory of two calls."""
    return Row(name, "bytes", peak_bytes(ours), peak_bytes(peer) if peer is not None else None, peer_name, 1)


def machine() -> dict[str, Any]:
    """Describes the machine, for the reader of a saved comparison."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and of packages; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        found[package] = version(package) if installed(package) else None
    return found
