"""Two workers of one thread beside what they could be at best, beside PyTorch's DistributedDataParallel, and what a run costs besides.

- **Two workers**, which share a global batch and add their gradients, beside two independent processes that each train on half of
  the batch and never wait for each other: what is lost is communication, waiting, and Ray. V is the same: a process has half of the shards. With
  shared weights (`--share-weights`) each worker updates half of the parameters; an independent process has to update all of its own.
  Workers wait for the slower one in each step, as independent processes would *in lockstep*: a step as long as the longer of the two.
- **DistributedDataParallel** over Gloo, two processes of one thread, with the AdamW that is the faster one there.
- **The first step**: from the call of the Trainer's `fit`, planning included, to the end of the first step, when Ray is up.
- **One worker** under the Trainer beside the plain loop of a process over the engine's steps.
- **Overlap** of reduction and backward: see `overlap`.
- **Snapshots**, one in 50 steps: see `snapshots`.

Every configuration runs in fresh processes, all in turn, and that in several rounds; a time is the median over all steps of all rounds, and there are
rows for the shortest step, since other work on the machine only ever lengthens one. A
step of our workers is from one report of the Trainer to the next: what the driver does between steps is part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from statistics import median
from typing import Any

from benchmarks import overlap, snapshots
from benchmarks.engine_cases import CASES, Case, Configuration
from benchmarks.engine_sides import OPTIMIZER, RATE, UNTIMED, run_here, step_of_ours
from benchmarks.measure import Row, in_fresh_process, installed
from threadpoolctl import threadpool_limits

from distributed import Trainer
from distributed.cluster import connect

PACKAGES = ("numpy", "torch", "ray")
WORKERS, SHARDS = 2, 8
DDP = "PyTorch DistributedDataParallel over Gloo"
#: Workers that have the weights once.
SHARING = "workers, weights shared"
AIM = "the aim, at most"
#: Seconds from launch to the end of the first step.
FIRST_STEP = 2.0

#: Told before each run: the runs done, all runs, and what runs now.
Tell = Callable[[int, int, str], None]
#: What a run gives: lists of seconds by name.
Found = dict[str, list[float]]


def rows(
    steps: int, rounds: int, only: str | None, tell: Tell, record: Callable[[dict[str, Any]], None]
) -> Iterator[Row]:
    """Yields the comparisons.

    Args:
        steps: Timed steps of a process.
        rounds: Runs of each configuration.
        only: The model; None for byte-gpt-small.
        tell: Told before each run.
        record: Given what was measured of each configuration.
    """
    case = CASES[only or "byte-gpt-small"]
    runs: dict[str, Callable[[], Found]] = {
        "workers": lambda: in_fresh_process(workers_here, case.name, WORKERS, steps),
        SHARING: lambda: in_fresh_process(workers_here, case.name, WORKERS, steps, True),
        "independent": lambda: in_fresh_process(independent_here, case.name, steps),
        "one worker": lambda: in_fresh_process(workers_here, case.name, 1, steps),
        "loop": lambda: in_fresh_process(loop_here, case.name, steps),
    }
    if installed("torch"):
        for fused in (False, True):
            how = Configuration("pytorch", processes=WORKERS, fused=fused).to_json()
            runs[f"ddp{', fused' * fused}"] = lambda how=how: in_fresh_process(run_here, case.name, how, steps)
    found: dict[str, Found] = {name: {"seconds": [], "first": [], "lockstep": []} for name in runs}
    for turn in range(rounds):
        for number, (name, run) in enumerate(runs.items()):
            tell(turn * len(runs) + number, rounds * len(runs), f"{case.name}: {name}")
            result = run()
            for what, values in found[name].items():
                values += result.get(what, [])
    for name, each in found.items():
        record(
            {
                "model": case.name,
                "configuration": name,
                "seconds_median": median(each["seconds"]),
                "runs": len(each["seconds"]),
            }
        )
    yield from compared(case, found)
    if only is None:
        yield from overlap.rows(steps, rounds, tell)
        yield from snapshots.rows(rounds + 2, WORKERS, case.batch, SHARDS)


def compared(case: Case, found: dict[str, Found]) -> Iterator[Row]:
    """Yields the comparisons of what was found."""
    shape = case.inputs.shape if case.inputs.dtype.kind in "iu" else ()
    tokens = case.batch * (shape[0] if shape else 1)
    unit = "tokens" if shape else "examples"
    alone = f"{WORKERS} independent processes of one thread"
    for of, statistic in (("", median), (" of the shortest step", min)):
        step = {name: statistic(each["seconds"]) for name, each in found.items()}
        peers = [seconds for which, seconds in step.items() if which.startswith("ddp")]
        for which, told in (("workers", ""), (SHARING, ", weights shared")):
            ours, runs = tokens / step[which], len(found[which]["seconds"])
            name = f"{case.name}, {WORKERS} workers of one thread, V = {SHARDS}{told}: {unit} per second{of} beside"
            yield Row(f"{name} no communication", "1", ours, tokens / step["independent"], alone, runs, "higher")
            if not of:
                lockstep = tokens / median(found["independent"]["lockstep"])
                yield Row(f"{name} no communication, in lockstep", "1", ours, lockstep, alone, runs, "higher")
            peer = tokens / min(peers) if peers else None
            yield Row(f"{name} PyTorch", "1", ours, peer, DDP, runs, "higher", "torch")
        name = f"{case.name}, one worker under the Trainer: {'shortest step' if of else 'time of a step'}"
        alike = len(found["one worker"]["seconds"])
        yield Row(name, "s", step["one worker"], step["loop"], "a loop in process", alike)
    first = found["workers"]["first"]
    name = f"{case.name}, {WORKERS} workers: from launch to the end of the first step, Ray being up"
    yield Row(name, "s", median(first), FIRST_STEP, AIM, len(first))


def workers_here(case: str, workers: int, steps: int, shares: bool = False) -> Found:
    """Returns what a run on Ray workers takes, with shared weights or not, measured in this process, which is a fresh one."""
    import ray

    chosen, ends = CASES[case], []
    data = chosen.dataset()
    connect(ray, None, workers)
    try:
        started = time.perf_counter()
        Trainer(
            chosen.model(),
            optimizer=OPTIMIZER,
            data=data,
            workers=workers,
            threads_per_worker=1,
            shards=SHARDS,
            batch=chosen.batch,
            steps=UNTIMED + steps,
            warmup_steps=0,
            learning_rate=RATE,
            clip_norm=None,
            validation_examples=chosen.batch,
            share_weights=shares,
        ).fit(lambda row: ends.append(time.perf_counter()))
    finally:
        ray.shutdown()
    return {"seconds": _differences(ends)[UNTIMED - 1 : -1], "first": [ends[0] - started]}


def independent_here(case: str, steps: int) -> Found:
    """Returns the seconds of steps of processes that each have a part of the batch and the shards, all running at once."""
    context = get_context("spawn")
    barrier = context.Barrier(WORKERS)
    with ProcessPoolExecutor(WORKERS, context, _take_barrier, (barrier,)) as pool:
        parts = [pool.submit(_independent, case, steps) for _ in range(WORKERS)]
        each = [part.result() for part in parts]
    return {"seconds": [seconds for part in each for seconds in part], "lockstep": [*map(max, zip(*each, strict=True))]}


def loop_here(case: str, steps: int) -> Found:
    """Returns the seconds of steps in this process, which is a fresh one."""
    return {"seconds": _steps(CASES[case], Configuration("ours", shards=SHARDS), steps)}


_barrier: Any = None


def _take_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _independent(case: str, steps: int) -> list[float]:
    chosen = CASES[case]
    part = replace(chosen, batch=chosen.batch // WORKERS)
    return _steps(part, Configuration("ours", shards=SHARDS // WORKERS), steps, lambda: _barrier.wait())


def _steps(case: Case, how: Configuration, steps: int, begin: Callable[[], Any] = lambda: None) -> list[float]:
    threadpool_limits(how.threads)
    step = step_of_ours(case, how)
    for number in range(UNTIMED):
        step(number)
    begin()
    ends = [time.perf_counter()]
    for number in range(steps):
        step(UNTIMED + number)
        ends.append(time.perf_counter())
    return _differences(ends)


def _differences(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]
