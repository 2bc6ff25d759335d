"""Compares Retape with its peers, both sides measured in this run: medians, and ratios of ours over theirs.

Suites:
  derivatives   gradients of plain NumPy code, with HIPS autograd: time and peak memory
  memory        what exact memory costs: the ledger's part of a step, the block against the heap, packing, growth over steps;
                and how far predictions are off, ours and those of MemTracker (PyTorch) and torchinfo
  engine        a training step, with PyTorch: time and peak memory, on one thread and on two cores; it takes about half an hour
  planner       how long planning takes: the persistent program at two sizes, every named model, and tables of equal steps beside
                checkpoint-schedules

Examples:
  python scripts/benchmark.py derivatives
  python scripts/benchmark.py derivatives --runs 50 --json
  python scripts/benchmark.py engine --only tiny-chain --rounds 1
  python scripts/benchmark.py engine --profile byte-gpt-small
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import _console
import tyro
from _console import console, errors
from benchmarks import engine, engine_profile
from benchmarks.engine_cases import chosen
from benchmarks.measure import Row, machine, versions
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from framework import format_size


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    suite: tyro.conf.Positional[Literal["derivatives", "memory", "engine", "planner"]] = "derivatives"
    """What to compare."""
    runs: int = 20
    """Timed runs that a median is of; the suite engine has steps and rounds."""
    threads: int = 1
    """Threads of matrix products, of both sides; the suite engine measures one and two, and profiles with so many."""
    only: str | None = None
    """The one model that the suite engine measures: byte-gpt-small, mlp, resnet-small or tiny-chain."""
    steps: int = 10
    """Timed steps in each process of the suite engine."""
    rounds: int = 3
    """Processes of each configuration in the suite engine."""
    profile: str | None = None
    """Instead of comparing, tell where the time of a step of this model of the suite engine goes."""
    quiet: bool = False
    """Print only errors (and the JSON line)."""
    json: bool = False
    """Print the comparison as one JSON object on the last line."""
    debug: bool = False
    """Show tracebacks of errors."""


def main(options: Benchmark) -> dict[str, Any]:
    console.quiet = options.quiet
    for name in ("runs", "threads", "steps", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, but got {getattr(options, name)}")
    if options.suite != "engine" and (options.only or options.profile):
        raise ValueError(f"--only and --profile are for the suite engine, but the suite is {options.suite}")
    suite = importlib.import_module(f"benchmarks.{options.suite}")
    told = {
        "suite": options.suite,
        "machine": {**machine(), "threads": options.threads},
        "versions": versions(suite.PACKAGES),
    }
    if options.profile is not None:
        return {**told, "profile": _profile(options.profile, options.steps, options.threads)}
    found: list[Row] = []
    configurations: list[dict[str, Any]] = []
    with threadpool_limits(options.threads), _progress(options) as tell:
        for row in (
            engine.rows(options.steps, options.rounds, options.only, tell, configurations.append)
            if options.suite == "engine"
            else suite.rows(options.runs)
        ):
            found.append(row)
            if options.suite != "engine":
                tell(len(found), None, f"measured {row.name}")
    console.print(table(options.suite, found))
    for name in sorted({row.package or row.peer_name for row in found if row.peer is None}):
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
    with errors.status(f"profiling {name}"):
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
