"""What each side runs in a process of its own for the suite `policies`: steps of several configurations in turn, on one thread.

A step is what it is in the suite `engine`: forward, backward and AdamW on the whole batch, both sides from the same parameters. The
first configuration is the one that the others are held against, so it runs more often: before every few of the others. All of a
side share parameters and optimizer state, and ours one block as large as the largest needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_profile import Clock, timed_operations
from benchmarks.engine_sides import OPTIMIZER, RATE, Step, initial_parameters
from benchmarks.policies_cases import CASES
from threadpoolctl import threadpool_limits

from checkpointing import Engine, Plan
from checkpointing.operations import Backward, Load
from framework.memory import Array

#: After so many others the first configuration runs again.
OTHERS = 3

#: For each of the steps that are asked for so many seconds are spent in any case: of short steps there are more.
LEAST_SECONDS = 2.0

#: The seconds of each configuration's timed steps.
Seconds = list[list[float]]


def ours_here(case: str, files: Sequence[str], steps: int, folder: str | None) -> dict[str, Any]:
    """Runs steps by some plans in this process.

    Args:
        case: Whose.
        files: The plans, each of one shard.
        steps: Timed steps of each plan, at least.
        folder: For what they hold on disk.

    Returns:
        ``seconds`` of the steps, those of the first plan's last step before each (``beside``), ``cpu_seconds`` of the process, ``pass_seconds``
        of their forwards, losses and backwards, and the ``loss`` of the first step.
    """
    threadpool_limits(1)
    it, plans, clock = CASES[case], [Plan.load(Path(file)) for file in files], Clock()
    model, arrays = it.model(), it.arrays(it.batch)
    layout = model.chain.layout(plans[0].costs.batch)
    where = Path(folder) if folder else None
    engine = Engine(model.chain, model.loss, layout, OPTIMIZER, ledger=clock, block=True, offload_dir=where)
    engine.reserve(plans)

    def load(shard: int, x: Array, targets: Array) -> None:
        x[...], targets[...] = arrays

    def step_of(plan: Plan) -> Step:
        return lambda number: engine.train_step(plan, load, number, RATE).loss

    passes: Seconds = [[] for _ in plans]
    borders = [_borders(plan) for plan in plans]

    def timed(which: int) -> None:
        start, end = borders[which]
        passes[which].append(clock.moments[end] - clock.moments[start])

    found = _in_turn([step_of(plan) for plan in plans], steps, clock.moments.clear, timed)
    engine.close()
    return {**found, "pass_seconds": passes}


def _borders(plan: Plan) -> tuple[int, int]:
    """The moments at which the pass begins, behind the Load, and ends, behind the last Backward."""
    last = {type(operation): place for place, operation in enumerate(timed_operations(plan))}
    return last[Load] + 1, last[Backward] + 1


def pytorch_here(case: str, some: Sequence[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Runs steps of PyTorch's configurations in this process; returns ``seconds, beside, cpu_seconds, loss`` as above."""
    import torch
    from benchmarks.policies_pytorch import Configuration, Twin

    torch.set_num_threads(1)
    threadpool_limits(1)
    twin = Twin.of(CASES[case], initial_parameters(CASES[case]))
    return _in_turn(twin.steps([Configuration(**each) for each in some]), steps)


def pytorch_bytes_here(case: str) -> list[dict[str, Any]]:
    """Returns PyTorch's configurations of a case, store-all first.

    Each has ``kind, segments``, its ``name``, ``nbytes`` that it saves at its worst moment, and ``again``, how many children run twice.
    """
    from benchmarks.policies_pytorch import Saved, Twin, configurations

    twin = Twin.of(CASES[case])
    saved, children = Saved.of(twin), list(twin.module)
    found = []
    for each in configurations(twin.module):
        segments = each.checkpointed(children)
        told = {"kind": each.kind, "segments": each.segments, "name": str(each)}
        found.append({**told, "nbytes": saved.nbytes(segments), "again": sum(map(len, segments))})
    return found


def _in_turn(
    configurations: Sequence[Step],
    steps: int,
    before: Callable[[], None] = lambda: None,
    timed: Callable[[int], None] = lambda which: None,
) -> dict[str, Any]:
    """Runs all configurations in turn, once untimed and then timed.

    Args:
        configurations: Their steps.
        steps: Timed steps of each at least, but of the first, which has more.
        before: Called before each step.
        timed: Called after each timed step with the number of its configuration.
    """
    seconds: Seconds = [[] for _ in configurations]
    beside: Seconds = [[] for _ in configurations]
    of_cpu: Seconds = [[] for _ in configurations]
    loss = configurations[0](0)  # which takes the optimizer's state and loads code
    number, turn, began = 1, 0, time.perf_counter()
    while turn <= steps or time.perf_counter() - began < LEAST_SECONDS * steps:
        for which in _order(len(configurations)):
            before()
            started, of_process = time.perf_counter(), time.process_time()
            configurations[which](number)
            took, worked = time.perf_counter() - started, time.process_time() - of_process
            number += 1
            if turn:
                seconds[which].append(took)
                beside[which].append(seconds[0][-1])
                of_cpu[which].append(worked)
                timed(which)
        turn += 1
    return {"seconds": seconds, "beside": beside, "cpu_seconds": of_cpu, "loss": loss}


def _order(count: int) -> Iterator[int]:
    """0, a few others, 0, a few others, …"""
    yield 0
    for which in range(1, count):
        yield which
        if which % OTHERS == 0 and which < count - 1:
            yield 0
