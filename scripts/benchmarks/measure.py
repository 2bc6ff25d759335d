"""Measuring two sides fairly on a shared, noisy machine: alternating, medians, and a peer that may be absent."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from framework.measuring import median_seconds, peak_bytes

Run = Callable[[], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What was measured.
        unit: s, bytes, GB/s or 1.
        ours: Median of our side.
        peer: Median of the other side; None where it is not installed, or there is none.
        peer_name: Who that is; empty where there is none.
        runs: How many runs the medians are of.
        better: lower or higher.
        package: What to install for the other side to be measured, if that is not its name.
        ours_name: How ours was run, where there are several ways; JSON has it only then.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    runs: int
    better: str = "lower"
    package: str = ""
    ours_name: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's."""
        return self.ours / self.peer if self.peer else None

    def to_json(self) -> dict[str, Any]:
        told = {"ours_name": self.ours_name} if self.ours_name else {}
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "better": self.better,
            "runs": self.runs,
            **told,
        }


def picked(cases: Mapping[str, T], only: str | None, suite: str) -> list[T]:
    """Returns all cases of a suite, or the one of a name.

    Raises:
        ValueError: There is none of that name.
    """
    if only is None:
        return list(cases.values())
    if only not in cases:
        raise ValueError(f"the suite {suite} has no model {only!r}; it has {', '.join(cases)}")
    return [cases[only]]


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def in_fresh_process(function: Run, *arguments: Any) -> Any:
    """Returns what a function of a suite returns in a process of its own; arguments and result go through JSON.

    Raises:
        RuntimeError: It failed; its last words are in the message.
    """
    command = [
        sys.executable,
        "-c",
        program_of(function, "", "print(json.dumps(function(*arguments)))"),
        json.dumps(arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise failure(f"{function.__name__}{arguments}", done.stderr, done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def program_of(function: Run, imports: str, call: str) -> str:
    """Returns a program that calls a function of a suite with the arguments in its command line, which are JSON."""
    return (
        f"import sys, json; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        f"from {function.__module__} import {function.__name__} as function\n{imports}\n"
        f"if __name__ == '__main__':\n    arguments = json.loads(sys.argv[1])\n    {call}"
    )


def failure(what: str, errors: str, code: int) -> RuntimeError:
    """Returns what is raised where a process has failed that printed such errors."""
    last = (errors.strip() or f"exit code {code}").splitlines()[-1]
    return RuntimeError(f"{what} failed in its process: {last}")


def times(name: str, ours: Run, peer: Run | None, peer_name: str, runs: int) -> Row:
    """Times both sides in turn, after one call of each that is not timed."""
    medians = median_seconds([ours] if peer is None else [ours, peer], runs)
    return Row(name, "s", medians[0], medians[1] if peer is not None else None, peer_name, runs)


def peaks(name: str, ours: Run, peer: Run | None, peer_name: str) -> Row:
    """Compares the peak memory of two calls."""
    return Row(name, "bytes", peak_bytes(ours), peak_bytes(peer) if peer is not None else None, peer_name, 1)


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and of packages; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        found[package] = version(package) if installed(package) else None
    return found
