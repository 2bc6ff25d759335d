"""Planning: the persistent dynamic program at two sizes, a plan for every named model, and tables of equal steps beside checkpoint-schedules.

Each plan, and each size of the program, is made in a fresh process, since what is planned once is remembered. Memory is what resident memory
grew by at its peak; where a process held more before than when the work began, that is more than the work took.
"""

from __future__ import annotations

import importlib
import random
import resource
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import psutil
from benchmarks.measure import Row, in_fresh_process, installed, times

from checkpointing import costs_of, parse_budget, plan_run
from checkpointing.curve import least_budget
from checkpointing.solvers.chain import Stage, StageChain
from checkpointing.solvers.disk import HRevolve, Level, UnlimitedDisk
from checkpointing.solvers.mixed import mixed_forwards
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.revolve import extra_forwards
from framework import AdamW, Spec, build
from framework.models import MODELS

PACKAGES = ("numpy", "checkpoint_schedules")
AIM = "the aim, at most"
PEER = "checkpoint-schedules"

#: Stages and steps of memory of a chain, and how many seconds its table may take.
SIZES = ((100, 1000, 1.0), (1000, 100, 60.0))
PLAN_SECONDS = 2.0
#: The part of store-all's activations that a model is planned for, and then the least that is possible.
BUDGET = "engine:60%"


def rows(runs: int) -> Iterator[Row]:
    """Yields the comparisons as they are measured."""
    for stages, steps, aim in SIZES:
        some = min(runs, 3) if stages < 1000 else 1
        found = [in_fresh_process(table_here, stages, steps) for _ in range(some)]
        name = f"persistent program, {stages} stages, {steps} steps of memory"
        yield Row(name, "s", median(each[0] for each in found), aim, AIM, some)
        table = 8 * (steps + 1) * (stages + 1) * (stages + 2) // 2
        yield Row(f"{name}: peak memory", "bytes", median(each[1] for each in found), table, "its table", some)
    for model in MODELS:
        some = min(runs, 3)
        found = [in_fresh_process(plan_here, model) for _ in range(some)]
        yield Row(f"{model}: plans for {BUDGET} and the least budget", "s", median(found), PLAN_SECONDS, AIM, some)
    yield from _tables(min(runs, 5))


def table_here(stages: int, steps: int) -> tuple[float, int]:
    """Returns the seconds that the table of a random chain and its schedule take, and by how many bytes resident memory grew."""
    draw = random.Random(stages)
    some = tuple(
        Stage.simple(draw.randint(1000, 9000), draw.randint(9000, 30_000), draw.uniform(1, 9), draw.uniform(1, 9))
        for _ in range(stages)
    )
    chain = StageChain(5000, some)
    memory = sum(stage.options[0].nbytes for stage in some) // 4
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    PersistentTable(chain, memory, steps).solution()
    return time.perf_counter() - started, _peak_rss() - before


def plan_here(name: str) -> float:
    """Returns the seconds from a named model to its plans, costs included, for the shards and the batch that suit it."""
    model = build(name)
    data = model.dataset(())
    model, shards = model.fitted(data), model.training.get("shards", 8)
    rows = max(1, model.training.get("batch", 8) // shards)
    specs = [Spec((rows, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets)]
    started = time.perf_counter()
    costs = costs_of(model.chain, model.loss, *specs, AdamW())
    budget = parse_budget(BUDGET).resolve(plan_run(costs, shards=shards))
    least = least_budget(costs, shards)
    for each in (max(budget, least), least):
        plan_run(costs, budget=each, shards=shards)
    return time.perf_counter() - started


def _tables(runs: int) -> Iterator[Row]:
    """Tables of equal steps, both sides from nothing."""

    def anew(make: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def call() -> Any:
            extra_forwards.cache_clear()
            return make(*arguments)

        return call

    compared: list[tuple[str, Callable[[], Any], str, str, tuple[Any, ...]]] = [
        ("mixed, 250 steps, 50 units", anew(mixed_forwards, 250, 50), "mixed", "mixed_steps_tabulation", (250, 50)),
        (
            "disk without a limit, 250 steps, 5 states in RAM",
            anew(UnlimitedDisk, 250, 5, 5, 5),
            "hrevolve_sequences.disk_revolve",
            "get_opt_inf_table",
            (249, 5, 1, 1, 5, 5, False),
        ),
        (
            "H-Revolve, 100 steps, 3 states in RAM, 10 on disk",
            anew(HRevolve, 100, 3, [Level(10, 5, 5)]),
            "hrevolve_sequences.hrevolve",
            "get_hopt_table",
            (99, (3, 10), (0, 5), (0, 5), 1, 1),
        ),
    ]
    for name, ours, module, function, arguments in compared:
        peer = None
        if installed("checkpoint_schedules"):
            peer = anew(getattr(importlib.import_module(f"checkpoint_schedules.{module}"), function), *arguments)
        yield times(f"table of {name}", ours, peer, PEER, runs)


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
