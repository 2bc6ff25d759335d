"""Where the time of our training step goes, by kind of operation, beside what PyTorch spends on the same kinds.

Ours is what the executor itself tells the ledger: it begins each operation of the plan there but drops, so two such moments bound one with
all that the executor does for it and drops before it. PyTorch's is from torch.profiler, whose events are sorted by name into our kinds; what has no
kind is its rest, and the profiler's own work, which is much where operations are small, lies in all of it.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.engine_cases import CASES, Case, Configuration
from benchmarks.engine_sides import UNTIMED, initial_parameters, plan_of_ours, step_of_ours, step_of_twin
from benchmarks.measure import in_fresh_process, installed
from threadpoolctl import threadpool_limits

from checkpointing import Plan
from checkpointing.operations import Backward, Drop, Forward, Operation
from framework import Ledger
from framework.layers import flatten

REST = "rest"

#: Our kinds of operation by the names of PyTorch's events that do the same. No event of these is called within another one.
_EVENTS = {
    "aten::linear": "Forward Linear",
    "aten::layer_norm": "Forward LayerNorm",
    "aten::batch_norm": "Forward BatchNorm",
    "aten::gelu": "Forward GELU",
    "aten::relu": "Forward ReLU",
    "aten::conv2d": "Forward Conv2d",
    "aten::max_pool2d": "Forward MaxPool2d",
    "aten::mean": "Forward GlobalAveragePool",
    "aten::embedding": "Forward Embedding",
    "aten::scaled_dot_product_attention": "Forward CausalAttention",
    "aten::add": "Forward Add",
    "aten::cross_entropy_loss": "Loss",
    "Optimizer.step#AdamW.step": "Update",
}

#: The same for nodes of its backward pass.
_NODES = {
    "AddmmBackward0": "Backward Linear",
    "MmBackward0": "Backward Linear",
    "NativeLayerNormBackward0": "Backward LayerNorm",
    "NativeBatchNormBackward0": "Backward BatchNorm",
    "GeluBackward0": "Backward GELU",
    "ReluBackward0": "Backward ReLU",
    "ConvolutionBackward0": "Backward Conv2d",
    "MaxPool2DWithIndicesBackward0": "Backward MaxPool2d",
    "MeanBackward1": "Backward GlobalAveragePool",
    "EmbeddingBackward0": "Backward Embedding",
    "ScaledDotProductFlashAttentionForCpuBackward0": "Backward CausalAttention",
    "UnbindBackward0": "Backward CausalAttention",
    "AddBackward0": "Backward Add",
    "NllLossBackward0": "Loss",
    "LogSoftmaxBackward0": "Loss",
}


def profile(name: str, steps: int, threads: int) -> dict[str, Any]:
    """Profiles a model's step, each side in a fresh process.

    Returns:
        ``model, threads, steps``, ``step_seconds`` and ``peer_step_seconds`` (the latter under the profiler), and ``operations``, the
        slowest first: ``operation, count, seconds`` a step, ``share`` of our step, and ``peer_seconds``. What is missing on a side is null.
    """
    ours = in_fresh_process(ours_here, name, steps, threads)
    peer = in_fresh_process(pytorch_here, name, steps, threads) if installed("torch") else None
    kinds = dict.fromkeys([*ours["operations"], *(peer["operations"] if peer else ())])
    operations = []
    for kind in kinds:
        count, seconds = ours["operations"].get(kind, (None, None))
        operations.append(
            {
                "operation": kind,
                "count": count,
                "seconds": seconds,
                "share": None if seconds is None else seconds / ours["step_seconds"],
                "peer_seconds": peer["operations"].get(kind) if peer else None,
            }
        )
    operations.sort(key=lambda row: -max(row["seconds"] or 0.0, row["peer_seconds"] or 0.0))
    return {
        "model": name,
        "threads": threads,
        "steps": steps,
        "step_seconds": ours["step_seconds"],
        "peer_step_seconds": peer["step_seconds"] if peer else None,
        "operations": operations,
    }


class Clock(Ledger):
    """Notes when each operation of `timed_operations` begins, and when the last one ends."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[float] = []

    def begin(self) -> None:
        self.moments.append(time.perf_counter())
        super().begin()


def ours_here(name: str, steps: int, threads: int) -> dict[str, Any]:
    """Returns the median ``step_seconds``, and by kind of operation how many a step has and the median of their seconds together."""
    threadpool_limits(threads)
    case, how, clock = CASES[name], Configuration("ours", threads), Clock()
    step = step_of_ours(case, how, ledger=clock)
    kinds = _kinds(case, plan_of_ours(case.model(), *case.arrays(case.batch), how))
    whole: list[float] = []
    spent: dict[str, list[float]] = defaultdict(list)
    for number in range(UNTIMED + steps):
        clock.moments.clear()
        started = time.perf_counter()
        step(number)
        seconds = time.perf_counter() - started
        if number >= UNTIMED:
            whole.append(seconds)
            for kind, sum_of_kind in _by_kind(kinds, clock.moments, seconds).items():
                spent[kind].append(sum_of_kind)
    counts = Counter(kinds)
    return {
        "step_seconds": median(whole),
        "operations": {kind: (counts.get(kind, 1), median(found)) for kind, found in spent.items()},
    }


def _by_kind(kinds: Sequence[str], moments: Sequence[float], whole: float) -> dict[str, float]:
    """Sums the seconds of one step by kind; the rest is what the step takes outside of operations."""
    spent: dict[str, float] = defaultdict(float)
    for kind, start, end in zip(kinds, moments[:-1], moments[1:], strict=True):
        spent[kind] += end - start
    return {**spent, REST: whole - (moments[-1] - moments[0])}


def _kinds(case: Case, plan: Plan) -> list[str]:
    """The kind of each operation of a plan: its name, and that of the layer if it runs one."""
    steps = flatten(case.model().chain)
    return [
        f"{type(operation).__name__} {steps[operation.step].layer.kind}"
        if isinstance(operation, Forward | Backward)
        else type(operation).__name__
        for operation in timed_operations(plan)
    ]


def timed_operations(plan: Plan) -> list[Operation]:
    """The operations of which the executor tells the ledger: all but drops, each of which counts with what follows it."""
    return [operation for operation in plan.operations if not isinstance(operation, Drop)]


def pytorch_here(name: str, steps: int, threads: int) -> dict[str, Any]:
    """Returns the median ``step_seconds`` under torch.profiler, and by kind of operation the median of their seconds together."""
    import torch

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    case = CASES[name]
    step = step_of_twin(case, Configuration("pytorch", threads), initial_parameters(case))
    for number in range(UNTIMED):
        step(number)
    whole: list[float] = []
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(UNTIMED, UNTIMED + steps):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            started = time.perf_counter()
            step(number)
            whole.append(time.perf_counter() - started)
        spent: dict[str, float] = defaultdict(float)
        for event in profiler.key_averages():
            node = event.key.removeprefix("autograd::engine::evaluate_function: ")
            kind = _EVENTS.get(event.key) if node == event.key else _NODES.get(node)
            if kind is not None:
                spent[kind] += event.cpu_time_total * 1e-6
        for kind, seconds in {**spent, REST: whole[-1] - sum(spent.values())}.items():
            found[kind].append(seconds)
    return {"step_seconds": median(whole), "operations": {kind: median(some) for kind, some in found.items()}}
