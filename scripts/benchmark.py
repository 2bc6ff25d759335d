"""Compares Retape with its peers, both sides measured in this run: medians, and ratios of ours over theirs.

Suites:
  derivatives   gradients of plain NumPy code, with HIPS autograd: time and peak memory
  memory        what exact memory costs: the ledger's part of a step, the block against the heap, packing, growth over steps;
                and how far predictions are off, ours and those of MemTracker (PyTorch) and torchinfo

Examples:
  python scripts/benchmark.py derivatives
  python scripts/benchmark.py derivatives --runs 50 --json
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import _console
import tyro
from _console import console
from benchmarks.measure import Row, machine, versions
from rich import box
from rich.table import Table
from threadpoolctl import threadpool_limits

from framework import format_size


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    suite: tyro.conf.Positional[Literal["derivatives", "memory"]] = "derivatives"
    """What to compare."""
    runs: int = 20
    """Timed runs that a median is of."""
    threads: int = 1
    """Threads of matrix products, of both sides."""
    quiet: bool = False
    """Print only errors (and the JSON line)."""
    json: bool = False
    """Print the comparison as one JSON object on the last line."""
    debug: bool = False
    """Show tracebacks of errors."""


def main(options: Benchmark) -> dict[str, Any]:
    console.quiet = options.quiet
    if options.runs < 1 or options.threads < 1:
        raise ValueError(f"runs and threads must be positive, but got {options.runs} and {options.threads}")
    suite = importlib.import_module(f"benchmarks.{options.suite}")
    found: list[Row] = []
    with threadpool_limits(options.threads), console.status("") as status:
        status.update(f"measuring {options.suite}")
        for row in suite.rows(options.runs):
            found.append(row)
            status.update(f"measured {row.name} ({len(found)})")
    console.print(table(options.suite, found))
    for name in sorted({row.package or row.peer_name for row in found if row.peer is None}):
        console.print(f"{name} is not installed, so there is nothing to compare with: pip install {name}")
    return {
        "suite": options.suite,
        "machine": {**machine(), "threads": options.threads},
        "versions": versions(suite.PACKAGES),
        "rows": [row.to_json() for row in found],
    }


def table(suite: str, rows: list[Row]) -> Table:
    """Draws the comparisons."""
    drawn = Table(title=f"{suite}: Retape and its peers in one run", box=box.SIMPLE_HEAD, collapse_padding=True)
    drawn.add_column("measured")
    for name in ("ours", "peer", "ratio"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("peer is")
    for row in rows:
        told = [_tell(value, row.unit) for value in (row.ours, row.peer)]
        drawn.add_row(row.name, *told, "-" if row.ratio is None else f"{row.ratio:.2f}", row.peer_name)
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
