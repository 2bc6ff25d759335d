"""Compares Retape with its peers, both sides measured in this run: medians, and ratios of ours over theirs.

Suites:
  derivatives   gradients of plain NumPy code, with HIPS autograd: time and peak memory
  memory        what exact memory costs: the ledger's part of a step, the block against the heap, packing, growth over steps;
                and how far predictions are off, ours and those of MemTracker (PyTorch) and torchinfo; and a node of four workers, however
                they hold weights and optimizer state, beside PyTorch's DistributedDataParallel
  engine        a training step, with PyTorch: time and peak memory, on one thread and on two cores; it takes about half an hour
  planner       how long planning takes: the persistent program at two sizes, every named model, and tables of equal steps beside
                checkpoint-schedules
  policies      steps by plans within a budget over store-all's, with PyTorch's checkpointing at equal activation bytes; how far plans are
                from lower bounds, and measured steps from planned ones; values on disk
  collectives   all-reduce in shared memory, with Gloo through ray.util.collective and with a plain copy: bandwidth; and between two nodes, with the
                latency and bandwidth that fit
  scaling       two workers beside two processes that do not communicate and PyTorch's DistributedDataParallel; what a launch costs, and a snapshot

Examples:
  python scripts/benchmark.py derivatives
  python scripts/benchmark.py derivatives --runs 50 --json
  python scripts/benchmark.py engine --only tiny-chain --rounds 1
  python scripts/benchmark.py engine --profile byte-gpt-small
  python scripts/benchmark.py policies --only byte-gpt-small --rounds 1
  python scripts/benchmark.py scaling --only mlp --steps 3 --rounds 1
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import _console
import tyro
from _console import console, errors, waiting
from benchmarks import engine_profile
from benchmarks.engine_cases import chosen
from benchmarks.measure import Row, installed, versions
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from checkpointing.report.machine import machine
from framework import format_size

#: Suites that go through models in processes of their own, and how many steps each takes.
_BY_MODEL = {"engine": 10, "policies": 3, "scaling": 10}


@dataclass(frozen=True, kw_only=True)
class Benchmark(_console.Common):
    suite: Annotated[
        Literal["derivatives", "memory", "engine", "planner", "policies", "collectives", "scaling"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SUITE"),
    ] = "derivatives"
    """What to compare: derivatives, memory, engine, planner, policies, collectives or scaling."""
    runs: int = 20
    """Timed runs that a median is of; the suites engine, policies and scaling have steps and rounds."""
    threads: int = 1
    """Threads of matrix products, of both sides; the suite engine measures one and two, and profiles with so many; policies has one."""
    only: str | None = None
    """The one model that a suite measures: byte-gpt-small, mlp, resnet-small or tiny-chain of engine and scaling; byte-gpt-small, mlp-50,
    byte-gpt-tiny, mlp-deep or resnet-small of policies."""
    steps: int | None = None
    """Timed steps in each process, in scaling in each round: 10 in the suites engine and scaling; 3 of each configuration in policies, or more where they are short."""
    rounds: int = 3
    """Processes of each configuration in the suite engine, of each side in policies; rounds of steps in scaling, whose processes live at once and take turns, and launches."""
    profile: str | None = None
    """Instead of comparing, tell where the time of a step of this model of the suite engine goes."""


def main(options: Benchmark) -> dict[str, Any]:
    for name in ("runs", "threads", "steps", "rounds"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise ValueError(f"--{name} must be at least 1, but got {given}")
    if options.suite not in _BY_MODEL and options.only:
        raise ValueError(f"--only is for the suites {', '.join(_BY_MODEL)}, but the suite is {options.suite}")
    if options.suite != "engine" and options.profile:
        raise ValueError(f"--profile is for the suite engine, but the suite is {options.suite}")
    suite = importlib.import_module(f"benchmarks.{options.suite}")
    told = {
        "suite": options.suite,
        "machine": {**machine(), "threads": options.threads},
        "versions": versions(suite.PACKAGES),
    }
    if options.profile is not None:
        return {**told, "profile": _profile(options.profile, options.steps or _BY_MODEL["engine"], options.threads)}
    steps = _BY_MODEL.get(options.suite)
    found: list[Row] = []
    configurations: list[dict[str, Any]] = []
    with threadpool_limits(options.threads), _progress(options) as tell:
        for row in (
            suite.rows(options.steps or steps, options.rounds, options.only, tell, configurations.append)
            if steps is not None
            else suite.rows(options.runs)
        ):
            found.append(row)
            if steps is None:
                tell(len(found), None, f"measured {row.name}")
    console.print(table(options.suite, found))
    absent = {row.package or row.peer_name for row in found if row.peer is None and row.peer_name}
    for name in sorted(each for each in absent if not installed(each)):
        console.print(f"{name} is not installed, so there is nothing to compare with: pip install {name}")
    rows = {"rows": [row.to_json() for row in found]}
    return {**told, **rows, **({"configurations": configurations} if configurations else {})}


@contextmanager
def _progress(options: Benchmark) -> Iterator[Callable[[int, int | None, str], None]]:
    """Yields what shows on standard error how far the measuring is: what is done, of how much if that is known, and words."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    where = errors if not options.quiet else Console(stderr=True, quiet=True)
    # Drawn when told alone: a thread that draws would take time and memory from what is measured in this process.
    with Progress(*columns, console=where, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(f"measuring {options.suite}", total=None)
        yield lambda done, total, words: progress.update(
            task, completed=done, total=total, description=words, refresh=True
        )


def _profile(name: str, steps: int, threads: int) -> dict[str, Any]:
    """Profiles a step of a model, and draws the table."""
    chosen(name)  # refuses an unknown one
    with waiting(f"profiling {name}"):
        found = engine_profile.profile(name, steps, threads)
    drawn = Table(title=f"{name}: where the time of a step goes", box=box.SIMPLE_HEAD)
    drawn.add_column("operation")
    for column in ("a step", "ours", "of our step", "PyTorch"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for row in found["operations"]:
        count, share = row["count"], row["share"]
        drawn.add_row(
            row["operation"],
            "-" if count is None else str(count),
            _tell(row["seconds"], "s"),
            "-" if share is None else f"{share:.1%}",
            _tell(row["peer_seconds"], "s"),
        )
    drawn.add_section()
    drawn.add_row("whole", "", _tell(found["step_seconds"], "s"), "", _tell(found["peer_step_seconds"], "s"))
    console.print(drawn)
    return found


def table(suite: str, rows: list[Row]) -> Table:
    """Draws the comparisons."""
    drawn = Table(title=f"{suite}: Retape and its peers in one run", box=box.SIMPLE_HEAD, collapse_padding=True)
    drawn.add_column("measured")
    for name in ("ours", "peer", "ratio"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("peer is")
    for row in rows:
        told = [_tell(value, row.unit) for value in (row.ours, row.peer)]
        peer = f"{row.peer_name}; ours: {row.ours_name}" if row.ours_name else row.peer_name
        drawn.add_row(row.name, *told, "-" if row.ratio is None else f"{row.ratio:.2f}", peer)
    return drawn


def _tell(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bytes":
        return format_size(int(value))
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    return f"{value:.3g}" + ("" if unit == "1" else f" {unit}")


if __name__ == "__main__":
    _console.run(main, Benchmark(), __doc__ or "")
