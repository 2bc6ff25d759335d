"""What a node of four workers takes: each with all weights and optimizer state, with the state shared out, and with one copy of the weights
besides; beside four processes of PyTorch's DistributedDataParallel.

Memory is that of the processes at their peaks over their baselines (see `engine_sides`), pages that they share counted once. Our workers
store everything, as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.engine_cases import CASES, Configuration
from benchmarks.engine_sides import memory_of_workers, run_here, trained_on_workers
from benchmarks.measure import Row, in_fresh_process, installed
from benchmarks.scaling import DDP

CASE, WORKERS, SHARDS, STEPS = "byte-gpt-small", 4, 8, 1
#: Ways to hold weights and state, and the Trainer's options for them.
WAYS: dict[str, dict[str, Any]] = {
    "each all of it": {"share_weights": "no"},
    "state shared out": {"shard_optimizer": True},
    "weights shared too": {"share_weights": "yes"},
}


def rows() -> Iterator[Row]:
    """Yields for each way what the node takes beside PyTorch, and what the ledgers count beside what was predicted."""
    peer = None
    if installed("torch"):
        how = Configuration("pytorch", processes=WORKERS).to_json()
        peer = in_fresh_process(run_here, CASE, how, STEPS)["peak"]
    for way, options in WAYS.items():
        found = in_fresh_process(node_here, CASE, options)
        name = f"{CASE}, a node of {WORKERS} workers, {way}"
        yield Row(f"{name}: memory", "bytes", found["memory"], peer, f"{DDP}, {WORKERS} processes", 1, package="torch")
        yield Row(f"{name}: bytes in ledgers", "bytes", found["ledgers"], found["predicted"], "predicted", 1)


def node_here(case: str, options: dict[str, Any]) -> dict[str, int]:
    """Returns what workers of this machine take together: measured, as their ledgers count it, and as it was predicted."""
    how = Configuration("ours", processes=WORKERS, shards=SHARDS)
    trainer, _, reports = trained_on_workers(CASES[case], how, STEPS, **options)
    return {
        "memory": memory_of_workers(trainer, reports),
        "ledgers": sum(report["ledger_peak_bytes"] for report in reports),
        "predicted": sum(report["predicted_peak_bytes"] for report in reports),
    }
