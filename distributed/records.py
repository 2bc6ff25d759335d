"""What a run's records say: `config.json`, what it was told, and `summary.json`, what came of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import platform
import uuid
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.data import ByteText
from framework.schedules import Schedule

if TYPE_CHECKING:
    from distributed.trainer import Trainer


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "ray": importlib.metadata.version("ray"),
    }


def config_of(trainer: Trainer) -> dict[str, Any]:
    """Returns what a run was told, ready for JSON. Its name tells it from all others, also from such of the same options."""
    return {
        "run": uuid.uuid4().hex,
        "model": trainer.model.name,
        "build": dict(trainer.model.arguments),
        "loss": type(trainer.model.loss).__name__,
        "optimizer": repr(trainer.optimizer),
        "schedule": _words(trainer.schedule),
        "dtype": trainer.layout.dtype.name,
        "data": trainer.data.describe(),
        "options": trainer.options.to_json(),
        "versions": versions(),
        "fingerprint": trainer.fingerprint,
        "same_bits": trainer.same_bits,
    }


def _words(schedule: Schedule) -> str:
    """What a schedule is known by: a function's `repr` would be another in each process."""
    if inspect.isfunction(schedule):
        return f"{schedule.__module__}.{schedule.__qualname__}"
    return repr(schedule)


def losses_sha256(history: list[dict[str, Any]]) -> str:
    """Returns the SHA-256 of the losses of all steps, as little-endian float64."""
    return hashlib.sha256(np.array([row["loss"] for row in history], "<f8").tobytes()).hexdigest()


def summary_of(trainer: Trainer, history: list[dict[str, Any]], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what came of a run, ready for JSON.

    Args:
        trainer: The run.
        history: The metrics of each step.
        reports: What each worker says at the end; see `Worker.finish`.
    """
    options, planning = trainer.options, trainer.planning
    plans, process = planning.plans, planning.process
    here = history[trainer.first_step :]  # in this process, if the run was resumed
    seconds, peaks = median(row["step_seconds"] for row in here), [row["rss_peak_bytes"] for row in here]
    resumed = trainer.resumed
    summary: dict[str, Any] = {
        "model": trainer.model.name,
        "parameters": trainer.layout.size,
        "steps": options.steps,
        "batch": options.batch,
        "seed": options.seed,
        "loss_unit": trainer.model.loss.unit or type(trainer.model.loss).__name__,
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "validation_loss": history[-1]["validation_loss"],
        "validation_accuracy": history[-1].get("validation_accuracy"),
        "unigram_entropy": None,
        "bigram_cross_entropy": None,
        "tokens_per_second": trainer.targets_of(0) / seconds,
        "step_seconds_median": seconds,
        "workers": options.workers,
        "nodes": str(planning.spread),
        "optimizer_shared_out": planning.holding.sharded,
        "weights_shared": planning.holding.weights,
        "shards": options.shards,
        "threads_per_worker": options.threads_per_worker,
        "policy": planning.policy,
        "costs": plans.train[0].costs.source,
        "planned_step_seconds": max(plan.simulation.seconds for plan in plans.train),
        "budget_bytes": planning.process_budget.nbytes if planning.process_budget else planning.budget,
        "budget_scope": None if planning.budget is None else "process" if planning.process_budget else "engine",
        "engine_budget_bytes": planning.budget,
        "shares": [share.to_json() for share in planning.shares] if len(planning.shares) > 1 else None,
        "memory": options.memory,
        "reserved_bytes": planning.reserved_nbytes,
        "process_baseline_bytes": process.baseline if process else None,
        "predicted_process_peak_bytes": planning.predicted_process_nbytes,
        "verified": [asdict(found) for found in trainer.verification] if trainer.verification else None,
        "offload_file_bytes": max(plan.simulation.file_nbytes for plan in plans.train),
        "offloaded_bytes": max(plan.simulation.disk_nbytes for plan in plans.train),
        "store_all_activation_bytes": plans.store_all_activation_nbytes,
        "activation_bytes": plans.activation_nbytes,
        "predicted_peak_bytes": plans.peak,
        "ledger_peak_bytes": max(report["ledger_peak_bytes"] for report in reports),
        "rss_peak_bytes": max(report["process"]["peak_rss"] for report in reports),
        "rss_drift_bytes": peaks[-1] - peaks[min(1, len(peaks) - 1)],
        "parameters_sha256": reports[0]["parameters_sha256"],
        "optimizer_sha256": reports[0]["optimizer_sha256"],
        "losses_sha256": losses_sha256(history),
        "same_bits": trainer.same_bits,
        "resumed_after_step": resumed.step if resumed else None,
        "damaged_snapshots": resumed.damaged if resumed else [],
        "ranks": reports,
    }
    if isinstance(trainer.data, ByteText):
        unigram, bigram = trainer.data.entropies(trainer.validation)
        summary.update(unigram_entropy=unigram, bigram_cross_entropy=bigram)
    return summary
