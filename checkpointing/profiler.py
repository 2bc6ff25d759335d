"""Measuring policies: predicted peak, the ledger's, the process's, and the time of a step, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from threadpoolctl import threadpool_limits

from checkpointing.costs import Times, costs_of
from checkpointing.engine import Engine, run_plans
from checkpointing.policies import parse_policy
from checkpointing.process_memory import measure_baseline, peak_rss
from checkpointing.timing import Progress, measure_times
from framework.layers import Spec
from framework.memory import Array, Ledger
from framework.models import Model, build
from framework.optimizers import AdamW


@dataclass(frozen=True)
class PolicyProfile:
    """One policy, measured.

    Attributes:
        policy: As it is spelled.
        predicted_peak_bytes: What the simulator says.
        ledger_peak_bytes: What the ledger saw.
        rss_peak_bytes: The process's peak resident memory less that before the first array.
        step_seconds: Median time of a step.
        step_flops: Floating-point operations of a step, recomputation included.
        planned_seconds: The time of its forwards and backwards as the plan has it.
    """

    policy: str
    predicted_peak_bytes: int
    ledger_peak_bytes: int
    rss_peak_bytes: int
    step_seconds: float
    step_flops: int
    planned_seconds: float


def measure_policy(
    model: str,
    policy: str,
    batch: int,
    shards: int = 1,
    steps: int = 3,
    dtype: str = "float32",
    dropout: float = 0.0,
    threads: int = 1,
    measured_costs: bool = False,
) -> PolicyProfile:
    """Runs training steps of a named model on its data in a fresh process and measures them.

    Args:
        model: A name that `framework.models.build` knows.
        policy: A policy as it is spelled.
        batch: Examples of a global batch.
        shards: Virtual shards.
        steps: Timed steps, after one that is not.
        dtype: Of the model.
        dropout: Of the model.
        threads: BLAS threads.
        measured_costs: Whether planned times come from measured ones instead of FLOPs.

    Raises:
        RuntimeError: The process failed; its last words are in the message.
    """
    task = json.dumps([model, policy, batch, shards, steps, dtype, dropout, threads, measured_costs])
    command = [sys.executable, "-m", "checkpointing.profiler", task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"measuring {model} under {policy} failed: {last}")
    return PolicyProfile(**json.loads(done.stdout.splitlines()[-1]))


def _measure_here(
    model: str,
    policy: str,
    batch: int,
    shards: int,
    steps: int,
    dtype: str,
    dropout: float,
    threads: int,
    measured_costs: bool,
) -> PolicyProfile:
    threadpool_limits(threads)
    built = build(model, dtype, dropout)
    data, optimizer, rows = built.dataset(()), AdamW(), batch // shards
    x = Spec((rows, *data.inputs.shape), data.inputs.dtype)
    targets = Spec((rows, *data.targets.shape), data.targets.dtype)
    times = model_times(built, x, targets, threads) if measured_costs else None
    plans = run_plans(
        built.chain,
        built.loss,
        x,
        targets,
        optimizer,
        policy=parse_policy(policy),
        shards=shards,
        static={"data/data set": data.nbytes},
        validate=False,
        times=times,
    )
    plan = plans.train[0]

    def load(shard: int, into_x: Array, into_targets: Array) -> None:
        data.load("train", range(shard * rows, (shard + 1) * rows), into_x, into_targets)

    assert plan.packing  # planning is not the policy's memory
    baseline = measure_baseline(dtype, threads)
    ledger = Ledger()
    held = ledger.count(data.nbytes, "data", "data set")
    engine = Engine(built.chain, built.loss, built.chain.layout(x), optimizer, ledger=ledger, clip=1.0, block=True)
    engine.reserve([plan])
    seconds = []
    for step in range(steps + 1):
        started = time.perf_counter()
        engine.train_step(plan, load, step, 1e-3)
        seconds.append(time.perf_counter() - started)
    del held
    return PolicyProfile(
        policy,
        plans.peak,
        ledger.peak,
        peak_rss() - baseline,
        median(seconds[1:]),
        plan.simulation.flops,
        plan.simulation.seconds,
    )


def model_times(model: Model, x: Spec, targets: Spec, threads: int, progress: Progress | None = None) -> Times:
    """Returns the measured times of a model's training pass over a shard; see `timing.measure_times`."""
    costs = costs_of(model.chain, model.loss, x, targets)
    return measure_times(costs, model.chain, model.loss, threads, progress)


def _main(task: str) -> dict[str, Any]:
    return asdict(_measure_here(*json.loads(task)))


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1])))
