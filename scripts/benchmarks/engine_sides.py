"""What each side runs in a process of its own for the suite `engine`: untimed steps, then timed ones, and its memory.

A step is forward, backward and AdamW on the whole batch, without clipping; our side also copies the batch and takes the norm of the
gradient, as all its plans do. Both sides start from the same parameters.

**Memory** is the peak resident memory of the process (VmHWM) less the resident memory of that same process at its baseline: after all
imports, a step of the same model on the least batch (which loads libraries: PyTorch's first step 90 MiB of them), and a matrix
product of the run's size (which makes BLAS take its scratch), when what these took and freed is given back, and before the model, our
plan, or any other array of the run. Of two processes it is the sum over both, pages that they share counted once. Our workers
have no least step before their baseline, and the larger baseline counts for both. It is read after the steps on either side.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.engine_cases import CASES, Case, Configuration
from threadpoolctl import threadpool_limits

from checkpointing import Engine, Plan, RunPlans, parse_budget, parse_policy, run_plans
from checkpointing.process_memory import measure_baseline, peak_rss
from distributed import Trainer
from framework import AdamW, Key, Ledger, Model, Parameters, Spec
from framework.memory import Array

OPTIMIZER, RATE = AdamW(), 1e-4
#: Steps before the timed ones: the first takes the optimizer's state and loads code, the second takes the memory of later ones.
UNTIMED = 2
#: Seconds that a process of PyTorch waits for the other.
PATIENCE = 120

#: Runs a step and returns its mean loss.
Step = Callable[[int], float]


def run_here(case: str, configuration: dict[str, Any], steps: int) -> dict[str, Any]:
    """Runs a case in this process, which is a fresh one.

    Returns:
        ``seconds`` of each timed step, ``peak`` bytes over the baseline, and the ``loss`` of the first step.
    """
    how = Configuration(**configuration)
    if how.side == "ours":
        return _on_workers(CASES[case], how, steps) if how.processes > 1 else _ours(CASES[case], how, steps)
    return _in_ddp(CASES[case], how, steps) if how.processes > 1 else _pytorch(CASES[case], how, steps)


def _measured(step: Step, steps: int, baseline: int) -> dict[str, Any]:
    """Runs and times steps; what they hold lives in `step`."""
    losses, seconds = [], []
    for number in range(UNTIMED + steps):
        started = time.perf_counter()
        losses.append(step(number))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[UNTIMED:], "peak": peak_rss() - baseline, "loss": losses[0]}


def _ours(case: Case, how: Configuration, steps: int) -> dict[str, Any]:
    threadpool_limits(how.threads)
    rows, width = case.widest()
    step_of_ours(case, how, tiny=True)(0)
    baseline = measure_baseline(threads=how.threads, rows=rows, width=width)
    return _measured(step_of_ours(case, how), steps, baseline)


def step_of_ours(case: Case, how: Configuration, tiny: bool = False, ledger: Ledger | None = None) -> Step:
    """Returns our step in this process, in the block, as the Trainer has it by default."""
    model = case.model()
    examples = how.shards if tiny else case.batch
    arrays = case.arrays(examples, tiny)
    plan = plan_of_ours(model, *arrays, how, tiny)
    rows = examples // how.shards
    layout = model.chain.layout(plan.costs.batch)
    engine = Engine(model.chain, model.loss, layout, OPTIMIZER, ledger=ledger, block=True)
    engine.reserve([plan])

    def load(shard: int, x: Array, targets: Array) -> None:
        some = slice(shard * rows, (shard + 1) * rows)
        x[...], targets[...] = arrays[0][some], arrays[1][some]

    return lambda number: engine.train_step(plan, load, number, RATE).loss


def plan_of_ours(model: Model, x: Array, targets: Array, how: Configuration, tiny: bool = False) -> Plan:
    """Returns the plan of a step: store-all, or the fastest within the budget."""
    specs = [Spec.of((len(array) // how.shards, *array.shape[1:]), array.dtype) for array in (x, targets)]

    def planned(**limits: Any) -> RunPlans:
        return run_plans(model.chain, model.loss, *specs, OPTIMIZER, shards=how.shards, validate=False, **limits)

    plans = planned(policy=parse_policy("store-all"))
    if how.budget is not None and not tiny:
        plans = planned(budget=parse_budget(how.budget).resolve(plans))
    return plans.train[0]


def _on_workers(case: Case, how: Configuration, steps: int) -> dict[str, Any]:
    """Our step on Ray workers of one thread, timed by the process that asks for it."""
    trainer, rows, reports = trained_on_workers(case, how, steps, share_weights="yes" if how.shares else "no")
    return {
        "seconds": [row["step_seconds"] for row in rows[UNTIMED:]],
        "peak": memory_of_workers(trainer, reports),
        "loss": rows[0]["loss"],
    }


def memory_of_workers(trainer: Trainer, reports: list[dict[str, Any]]) -> int:
    """Returns the bytes that workers of one machine took together at their peaks over their baselines, shared pages counted once."""
    assert trainer.planning.process is not None
    return sum(
        each["peak_rss"] - trainer.planning.process.baseline - each["shared"] + each["shared_part"]
        for each in (report["process"] for report in reports)
    )


def trained_on_workers(
    case: Case, how: Configuration, steps: int, **options: Any
) -> tuple[Trainer, list[dict[str, Any]], list[dict[str, Any]]]:
    """Trains on Ray workers with more options of the Trainer, and returns it, what it told of each step, and what each worker reports."""
    trainer = Trainer(
        case.model(),
        optimizer=OPTIMIZER,
        data=case.dataset(),
        workers=how.processes,
        threads_per_worker=how.threads,
        shards=how.shards,
        batch=case.batch,
        steps=UNTIMED + steps,
        warmup_steps=0,
        learning_rate=RATE,
        clip_norm=None,
        validation_examples=case.batch,
        **options,
    )
    rows: list[dict[str, Any]] = []
    return trainer, rows, trainer.fit(rows.append).summary["ranks"]


def _pytorch(case: Case, how: Configuration, steps: int) -> dict[str, Any]:
    return _steps_of_twin(case, how, steps, slice(None), lambda module: module)


def _in_ddp(case: Case, how: Configuration, steps: int) -> dict[str, Any]:
    """PyTorch's step on processes that each have a part of the batch, timed by the first."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(how.processes, get_context("spawn")) as pool:
        store = f"file://{Path(folder) / 'store'}"
        ranks = [pool.submit(_rank, case.name, how, steps, store, rank) for rank in range(how.processes)]
        found = [rank.result() for rank in ranks]
    return {
        "seconds": found[0]["seconds"],
        "peak": sum(rank["peak"] for rank in found),
        "loss": sum(rank["loss"] for rank in found) / len(found),
    }


def _rank(case: str, how: Configuration, steps: int, store: str, rank: int) -> dict[str, Any]:
    import torch

    _join(store, rank, how.processes)
    try:
        return _steps_of_twin(CASES[case], how, steps, *_of_rank(CASES[case], how, rank))
    finally:
        torch.distributed.destroy_process_group()


def step_of_rank(rank: int, case: str, how: Configuration, store: str) -> Step:
    """Returns PyTorch's step of a rank, which is this process, fresh and ended when the step is of no more use."""
    import torch

    torch.set_num_threads(how.threads)
    threadpool_limits(how.threads)
    _join(store, rank, how.processes)
    return step_of_twin(CASES[case], how, initial_parameters(CASES[case]), *_of_rank(CASES[case], how, rank))


def _join(store: str, rank: int, world: int) -> None:
    import torch

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing need be found out about its network
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE)
    )


def _of_rank(case: Case, how: Configuration, rank: int) -> tuple[slice, Callable[[Any], Any]]:
    """Returns a rank's part of the batch, and what makes a module one of several replicas."""
    from torch.nn.parallel import DistributedDataParallel

    share = case.batch // how.processes
    # Views of the buckets save it a second buffer of gradients.
    return slice(rank * share, (rank + 1) * share), partial(DistributedDataParallel, gradient_as_bucket_view=True)


def _steps_of_twin(
    case: Case, how: Configuration, steps: int, part: slice, wrapped: Callable[[Any], Any]
) -> dict[str, Any]:
    import torch

    torch.set_num_threads(how.threads)
    threadpool_limits(how.threads)
    rows, width = case.widest()
    start = initial_parameters(case)
    step_of_twin(case, how, wrapped=wrapped, tiny=True)(0)
    _warm_up_torch(rows, width)
    baseline = measure_baseline(threads=how.threads, rows=rows, width=width)
    return _measured(step_of_twin(case, how, start, part, wrapped), steps, baseline)


def step_of_twin(
    case: Case,
    how: Configuration,
    start: Parameters | None = None,
    part: slice = slice(None),
    wrapped: Callable[[Any], Any] = lambda module: module,
    tiny: bool = False,
) -> Step:
    """Returns PyTorch's step on a part of the batch, from given parameters or, where they do not matter, its own."""
    from benchmarks import pytorch_models

    model = case.model()
    arrays = case.arrays(2 if tiny else case.batch, tiny)
    x, targets = (array if tiny else array[part] for array in arrays)
    module = pytorch_models.twin(model, Spec.of(x.shape, x.dtype))
    if start is not None:
        pytorch_models.load_parameters(module, start)
    tensors = pytorch_models.tensors(x, targets)
    replica = wrapped(module)
    optimizer = pytorch_models.optimizer_of(module, OPTIMIZER, how.fused)
    return lambda number: pytorch_models.train_step(replica, optimizer, *tensors, RATE).item()


def initial_parameters(case: Case) -> Parameters:
    """Returns the parameters from which our engine starts, in memory of their own that lives on: part of a baseline."""
    x = Spec((case.batch, *case.inputs.shape), case.inputs.dtype)
    parameters = Parameters.initialize(case.model().chain.layout(x), Key(0))
    kept = np.frombuffer(mmap.mmap(-1, parameters.layout.nbytes), parameters.layout.dtype)
    kept[...] = parameters.flat
    return Parameters(parameters.layout, kept)


def _warm_up_torch(rows: int, width: int) -> None:
    """Makes PyTorch's BLAS take its scratch; `measure_baseline` does it for NumPy's."""
    import torch

    torch.mm(torch.ones(rows, width), torch.ones(width, width))
