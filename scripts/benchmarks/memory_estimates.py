"""Memory of a training step as it is predicted beforehand and as it is measured: ours, and estimators of PyTorch's.

Each side is held against its own process: the peak of its resident memory in a fresh one, less its baseline. Baselines are what is
resident after one step of the same model on a tiny batch, which loads libraries (PyTorch's first step loads 90 MiB of them), and
after a product of the run's size; all that they took and freed is given back first.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from benchmarks.measure import Row, in_fresh_process, installed
from threadpoolctl import threadpool_limits

from checkpointing import Engine, parse_policy, run_plans
from checkpointing.process_memory import measure_baseline, peak_rss
from framework import AdamW, Ledger, Model, Spec, build
from framework.memory import Array

CASES = {"byte-gpt-tiny": 8, "byte-gpt-small": 4}
#: The process of PyTorch still grows in its second step, when the optimizer's state is there before the activations.
STEPS = 3
#: The peak of PyTorch's process differs by a few percent from one process to the next, so the median of several is taken.
PROCESSES = 3
RATE, CLIP = 1e-3, 1.0
TINY = 8
TRACKER = "PyTorch's MemTracker"


def rows() -> Iterator[Row]:
    """Yields the comparisons as they are measured."""
    torch = installed("torch")
    torchinfo = torch and installed("torchinfo")
    estimates = in_fresh_process(estimates_here, CASES, torchinfo) if torch else {}
    for model, batch in CASES.items():
        told, found = f"{model}, batch {batch}", estimates.get(model, {})
        tracked, summed = found.get("tracked"), found.get("summed")
        processes = [
            (in_fresh_process(ours_here, model, batch), in_fresh_process(pytorch_here, model, batch) if torch else None)
            for _ in range(PROCESSES)
        ]
        ours = processes[0][0]
        peak = median(mine["process_peak"] for mine, _ in processes)
        theirs = median(peers for _, peers in processes) if torch else None

        yield Row(
            f"{told}: predicted peak of the arrays, its error against the count while they live",
            "1",
            _off(ours["predicted_peak"], ours["ledger_peak"]),
            _off(tracked, found.get("counted")),
            TRACKER,
            1,
            package="torch",
        )
        process = f"{told}: predicted peak of the process over its baseline, its error"
        error = _off(ours["reserved"], peak)
        yield Row(process, "1", error, _off(tracked, theirs), TRACKER, PROCESSES, package="torch")
        # It estimates parameters and activations; what else a step holds is added, in its favour.
        name = "torchinfo, with gradients and AdamW's state added"
        missing = "torchinfo" if torch else "torch"
        yield Row(process, "1", error, _off(summed, theirs), name, PROCESSES, package=missing)
        held = f"{told}: measured peak of the process over its baseline"
        yield Row(held, "bytes", peak, theirs, "PyTorch", PROCESSES, package="torch")


def _off(predicted: Any, measured: Any) -> Any:
    """The relative error, without its sign; None where a side is missing."""
    return None if predicted is None or measured is None else abs(predicted - measured) / measured


def ours_here(name: str, batch: int) -> dict[str, int]:
    """Returns what a step under store-all is predicted to hold, in the block, and what this process and its ledger say."""
    threadpool_limits(1)
    _steps_of_ours(name, 1, 1, TINY)
    baseline = _baseline(build(name), batch)
    found = _steps_of_ours(name, batch, STEPS)
    return {**found, "process_peak": peak_rss() - baseline}


def _steps_of_ours(name: str, batch: int, steps: int, length: int | None = None) -> dict[str, int]:
    model, optimizer = build(name), AdamW()
    arrays = _batch(model, batch, length)
    specs = [Spec.of(array.shape, array.dtype) for array in arrays]
    policy = parse_policy("store-all")
    plan = run_plans(model.chain, model.loss, *specs, optimizer, policy=policy, validate=False).train[0]
    ledger = Ledger()
    layout = model.chain.layout(specs[0])
    engine = Engine(model.chain, model.loss, layout, optimizer, ledger=ledger, clip=CLIP, block=True)

    def load(shard: int, x: Array, targets: Array) -> None:
        x[...], targets[...] = arrays

    for step in range(steps):
        engine.train_step(plan, load, step, RATE)
    return {
        "predicted_peak": plan.peak,
        "ledger_peak": ledger.peak,
        "reserved": plan.simulation.static + plan.packing.nbytes,
    }


def pytorch_here(name: str, batch: int) -> int:
    """Returns the peak of this process over its baseline in steps of the model's twin."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1)
    _steps_of_twin(name, 1, 1, TINY)
    baseline = _baseline(build(name), batch)
    _steps_of_twin(name, batch, STEPS)
    return peak_rss() - baseline


def _steps_of_twin(name: str, batch: int, steps: int, length: int | None = None) -> None:
    from benchmarks import pytorch_models

    model = build(name)
    arrays = _batch(model, batch, length)
    module = pytorch_models.twin(model, Spec.of(arrays[0].shape, arrays[0].dtype))
    optimizer = pytorch_models.optimizer_of(module, AdamW())
    tensors = pytorch_models.tensors(*arrays)
    for _ in range(steps):
        pytorch_models.train_step(module, optimizer, *tensors, RATE, CLIP)


def estimates_here(cases: dict[str, int], with_torchinfo: bool) -> dict[str, dict[str, int]]:
    """Returns for each model the bytes that estimators say a step of its twin holds at its peak.

    `tracked` is MemTracker's on fake tensors, which have no memory; `counted` its count on real ones; `summed` torchinfo's.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    estimates = {}
    for name, batch in cases.items():
        found = estimates[name] = {"counted": _tracked(name, batch)}
        with FakeTensorMode():
            found["tracked"] = _tracked(name, batch)
        if with_torchinfo:
            found["summed"] = _summed(name, batch)
    return estimates


def _tracked(name: str, batch: int) -> int:
    """The peak that MemTracker sees in two steps: only the second has the optimizer's state from its beginning."""
    import torch
    from benchmarks import pytorch_models
    from torch.distributed._tools.mem_tracker import MemTracker

    model = build(name)
    data = model.dataset(())
    x = Spec((batch, *data.inputs.shape), data.inputs.dtype)
    module = pytorch_models.twin(model, x)
    optimizer = pytorch_models.optimizer_of(module, AdamW())
    tensors = [torch.zeros(batch, *spec.shape, dtype=torch.int64) for spec in (data.inputs, data.targets)]
    tracker = MemTracker()
    tracker.track_external(module, optimizer, *tensors)
    with tracker:
        for _ in range(2):
            pytorch_models.train_step(module, optimizer, *tensors, RATE, CLIP)
            tracker.reset_mod_stats()  # it refuses a second call of a module else; the peak stays
    return sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


def _summed(name: str, batch: int) -> int:
    """What torchinfo sums up over layers, and the gradients and two moments of AdamW, which it leaves out."""
    import torchinfo
    from benchmarks import pytorch_models

    model = build(name)
    x, targets = _batch(model, batch)
    module = pytorch_models.twin(model, Spec.of(x.shape, x.dtype))
    tokens, _ = pytorch_models.tensors(x, targets)
    summary = torchinfo.summary(module, input_data=tokens, verbose=0)
    return int(summary.total_input + summary.total_output_bytes + 4 * summary.total_param_bytes)


def _batch(model: Model, examples: int, length: int | None = None) -> tuple[Array, Array]:
    """Examples of the model's own data, windows cut to a length."""
    data = model.dataset(())
    x, targets = (np.empty((examples, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
    data.load("train", range(examples), x, targets)
    return x[:, :length], targets[:, :length]


def _baseline(model: Model, batch: int) -> int:
    data = model.dataset(())
    specs = model.chain.parameters(Spec((batch, *data.inputs.shape), data.inputs.dtype)).values()
    widest = max(max(spec.shape) for spec in specs)
    return measure_baseline(rows=batch * int(np.prod(data.inputs.shape, dtype=int)), width=widest)
