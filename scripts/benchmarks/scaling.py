"""Two workers of one thread beside what they could be at best, beside PyTorch's DistributedDataParallel, and what a run costs besides.

- **Two workers**, which share a global batch and add their gradients, beside two independent processes that each train on half of
  the batch and never wait for each other: what is lost is communication, waiting, and Ray. V is the same: a process has half of the shards. Workers
  of one machine have one copy of the weights, of which each updates half; an independent process has to update all of its own, as workers do
  that have *a copy each* (`--share-weights no`).
  Workers wait for the slower one in each step, as independent processes would *in lockstep*: a step as long as the longer of the two.
- **Changing cores** (`distributed.core_rotation`), beside the same workers where each stays where it is.
- **DistributedDataParallel** over Gloo, two processes of one thread, with the AdamW that is the faster one there.
- **One worker** under the Trainer beside the plain loop of a process over the engine's steps.
- **The first step**: from the making of the Trainer, planning included, to the end of the first step, when Ray is up: its processes, which
  go on starting for half a second after `ray.init`, have come to rest. It is the median of launches, of which there is one a round.
- **Overlap** of reduction and backward: see `overlap`.
- **Snapshots**, one in 50 steps: see `snapshots`.

All configurations but the last two live at once, each in fresh processes, and take turns of a few steps (see `turns`), since speeds of a shared machine
move by more than what is compared. A time is the median over all steps. There are rows for all steps, whose tokens are divided by all their seconds: a core that
is slow for some steps holds up both workers, and in the median of independent processes it is the slower half of one of them; and rows for the shortest step. A
step of our workers is from one report of the Trainer to the next: what the driver does between steps is part of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
from benchmarks import overlap, snapshots
from benchmarks.engine_cases import CASES, Case, Configuration
from benchmarks.engine_sides import OPTIMIZER, RATE, step_of_ours, step_of_rank
from benchmarks.measure import Row, installed
from benchmarks.turns import Found, Over, Side, Turns, by_processes, in_turns
from threadpoolctl import threadpool_limits

from distributed import Trainer
from distributed.cluster import connect

PACKAGES = ("numpy", "torch", "ray")
WORKERS, SHARDS = 2, 8
DDP = "PyTorch DistributedDataParallel over Gloo"
#: Workers of whom each has weights of its own, and workers of whom each stays on a core.
APART, STAYING = "workers, a copy of the weights each", "workers, each on its core"
#: A run has as many steps as turns take.
ENDLESS = 10**6
AIM = "the aim, at most"
#: Seconds from launch to the end of the first step.
FIRST_STEP = 2.0

#: Seconds over which Ray's processes are to do nothing before, and that this may take to come.
MOMENT, PATIENCE = 0.2, 30.0

#: Told before each run: the runs done, all runs, and what runs now.
Tell = Callable[[int, int, str], None]


def rows(
    steps: int, rounds: int, only: str | None, tell: Tell, record: Callable[[dict[str, Any]], None]
) -> Iterator[Row]:
    """Yields the comparisons.

    Args:
        steps: Timed steps in a round.
        rounds: How many there are.
        only: The model; None for byte-gpt-small.
        tell: Told before each turn.
        record: Given what was measured of each configuration.
    """
    case = CASES[only or "byte-gpt-small"]
    # What is compared most closely takes its turns one after the other.
    sides: dict[str, tuple[Any, ...]] = {
        "workers": (workers_here, case.name, WORKERS, {}),
        "independent": (independent_here, case.name),
        APART: (workers_here, case.name, WORKERS, {"share_weights": "no"}),
        STAYING: (workers_here, case.name, WORKERS, {"rotate_cores": False}),
        "one worker": (workers_here, case.name, 1, {}),
        "loop": (loop_here, case.name),
    }
    if installed("torch"):
        for fused in (False, True):
            how = Configuration("pytorch", processes=WORKERS, fused=fused).to_json()
            sides[f"ddp{', fused' * fused}"] = ddp_here, case.name, how
    ready, found = in_turns(sides, rounds * steps, lambda done, total, name: tell(done, total, f"{case.name}: {name}"))
    found["workers"]["first"] = ready["workers"]["first"] + _launches(sides["workers"], rounds - 1, case.name, tell)
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


def _launches(side: tuple[Any, ...], count: int, case: str, tell: Tell) -> list[float]:
    """Returns the seconds to the end of the first step of more launches of a side, each in fresh processes."""
    found: list[float] = []
    for number in range(count):
        tell(number, count, f"{case}: launching")
        with Side(*side) as launched:
            found += launched.ready["first"]
    return found


def compared(case: Case, found: dict[str, Found]) -> Iterator[Row]:
    """Yields the comparisons of what was found."""
    shape = case.inputs.shape if case.inputs.dtype.kind in "iu" else ()
    tokens = case.batch * (shape[0] if shape else 1)
    unit = "tokens" if shape else "examples"
    alone = f"{WORKERS} independent processes of one thread"
    for of, timed, statistic in (
        ("", "time of a step", median),
        (" of all steps", "mean time of a step", mean),
        (" of the shortest step", "shortest step", min),
    ):
        step = {name: statistic(each["seconds"]) for name, each in found.items()}
        peers = [seconds for which, seconds in step.items() if which.startswith("ddp")]
        for which, told in (("workers", ""), (APART, ", a copy of the weights each")):
            ours, runs = tokens / step[which], len(found[which]["seconds"])
            name = f"{case.name}, {WORKERS} workers of one thread, V = {SHARDS}{told}: {unit} per second{of} beside"
            yield Row(f"{name} no communication", "1", ours, tokens / step["independent"], alone, runs, "higher")
            if not of:
                lockstep = tokens / median(found["independent"]["lockstep"])
                yield Row(f"{name} no communication, in lockstep", "1", ours, lockstep, alone, runs, "higher")
            peer = tokens / min(peers) if peers else None
            yield Row(f"{name} PyTorch", "1", ours, peer, DDP, runs, "higher", "torch")
        name = f"{case.name}, {WORKERS} workers that change cores: {timed}"
        yield Row(name, "s", step["workers"], step[STAYING], "each stays on its core", len(found["workers"]["seconds"]))
        name = f"{case.name}, one worker under the Trainer: {timed}"
        alike = len(found["one worker"]["seconds"])
        yield Row(name, "s", step["one worker"], step["loop"], "a loop in process", alike)
    first = found["workers"]["first"]
    name = f"{case.name}, {WORKERS} workers: from launch to the end of the first step, Ray being up"
    yield Row(name, "s", median(first), FIRST_STEP, AIM, len(first))


def workers_here(case: str, workers: int, options: dict[str, Any], turns: Turns) -> None:
    """Takes turns as a run on Ray workers with more options of the Trainer, told by this process, which is a fresh one."""
    import ray

    chosen, first = CASES[case], list[float]()
    data = chosen.dataset()
    connect(ray, None, workers)
    steps = turns.steps(first=first)
    next(steps)
    _come_to_rest()

    def ended(row: dict[str, Any]) -> None:
        if not first:
            first.append(time.perf_counter() - started)
        next(steps)

    try:
        started = time.perf_counter()
        with suppress(Over):
            Trainer(
                chosen.model(),
                optimizer=OPTIMIZER,
                data=data,
                workers=workers,
                threads_per_worker=1,
                shards=SHARDS,
                batch=chosen.batch,
                steps=ENDLESS,
                warmup_steps=0,
                learning_rate=RATE,
                clip_norm=None,
                validation_examples=chosen.batch,
                **options,
            ).fit(ended)
    finally:
        ray.shutdown()


def _come_to_rest() -> None:
    """Waits until what this process has started does nothing."""
    for _ in range(int(PATIENCE / MOMENT)):
        before = _busy_seconds()
        time.sleep(MOMENT)
        if _busy_seconds() - before <= MOMENT / 10:
            return
    raise RuntimeError(f"Ray's processes are still busy after {PATIENCE:.0f} s")


def _busy_seconds() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def independent_here(case: str, turns: Turns) -> None:
    """Takes turns with processes that each have a part of the batch and the shards."""
    by_processes(turns, WORKERS, _independent, case)


def _independent(number: int, case: str) -> Callable[[int], Any]:
    part = replace(CASES[case], batch=CASES[case].batch // WORKERS)
    return _step(part, Configuration("ours", shards=SHARDS // WORKERS))


def ddp_here(case: str, how: dict[str, Any], turns: Turns) -> None:
    """Takes turns with processes under DistributedDataParallel; both take as long over a step."""
    with tempfile.TemporaryDirectory() as folder:
        by_processes(turns, WORKERS, step_of_rank, case, Configuration(**how), f"file://{Path(folder) / 'store'}")


def loop_here(case: str, turns: Turns) -> None:
    """Takes turns in this process, which is a fresh one."""
    step = _step(CASES[case], Configuration("ours", shards=SHARDS))
    with suppress(Over):
        for number in turns.steps():
            step(number)


def _step(case: Case, how: Configuration) -> Callable[[int], Any]:
    threadpool_limits(how.threads)
    return step_of_ours(case, how)
