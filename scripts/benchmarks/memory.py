"""What exact memory costs: the ledger's part of a step, the block against the heap, packing, growth over steps; and what it gives:
predictions, beside those of public estimators, and what a node's workers take however they hold weights and state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from benchmarks import memory_estimates, node_memory
from benchmarks.measure import Row, in_fresh_process, times

from checkpointing import Engine, RunPlans, parse_policy, run_plans
from checkpointing.block import Block
from checkpointing.packing import Packing
from checkpointing.plan import Plan
from checkpointing.process_memory import ProcessMemory
from framework import AdamW, Ledger, Spec, build
from framework.memory import Allocation, Allocator, Array, Heap

PACKAGES = ("numpy", "torch", "torchinfo", "ray")
MODEL, BATCH = "byte-gpt-tiny", 8
#: Peers in words, where the other side is a bound.
AIM = "the aim, at most"


def rows(runs: int) -> Iterator[Row]:
    """Yields the comparisons as they are measured."""
    for shards in (1, 4):
        run = _Run("sqrt-n", shards)
        block, heap = run.engine(block=True), run.engine(block=False)
        steps = [partial(run.step, engine) for engine in (block, heap)]
        row = times(f"{MODEL}, {shards} shards: a step in the block", *steps, "the heap", runs)
        yield row
        assert row.peer is not None
        for where, seconds, plain, recorded in (("block", row.ours, 0.02, 0.05), ("heap", row.peer, 0.05, 0.08)):
            for record, aim in ((False, plain), (True, recorded)):
                part = _ledger_seconds(run, where == "block", record) / seconds
                told = ", timeline recorded" if record else ""
                name = f"{MODEL}, {shards} shards, {where}{told}: the ledger's part of a step"
                yield Row(name, "1", part, aim, AIM, runs)
    for model in ("mlp-small", "byte-gpt-tiny", "byte-gpt-small"):
        worst = max(_Run(policy, 1, model).plans.train[0].packing.overhead for policy in ("store-all", "every-k:1"))
        yield Row(f"{model}: packing over its bound", "1", worst, 0.03, AIM, 1)
    for where in ("block", "heap"):
        yield Row(
            f"{MODEL}, {where}: RSS after 50 steps over that after 2",
            "bytes",
            in_fresh_process(growth_here, where),
            2**20,
            AIM,
            1,
        )
    yield from memory_estimates.rows()
    yield from node_memory.rows()


class _Run:
    """A model, its plans, and a batch."""

    def __init__(self, policy: str, shards: int, model: str = MODEL) -> None:
        self.built = build(model)
        self.data = self.built.dataset(())
        self.rows, self.shards = BATCH // shards, shards
        self.specs = [Spec((self.rows, *s.shape), s.dtype) for s in (self.data.inputs, self.data.targets)]
        self.plans: RunPlans = run_plans(
            self.built.chain, self.built.loss, *self.specs, AdamW(), policy=parse_policy(policy), shards=shards
        )

    @property
    def plan(self) -> Plan:
        return self.plans.train[0]

    def engine(self, block: bool, ledger: Ledger | None = None) -> Engine:
        layout = self.built.chain.layout(self.specs[0])
        return Engine(self.built.chain, self.built.loss, layout, AdamW(), ledger=ledger, clip=1.0, block=block)

    def step(self, engine: Engine) -> None:
        engine.train_step(self.plan, self._load, 0, 1e-3)

    def _load(self, shard: int, x: Array, targets: Array) -> None:
        self.data.load("train", range(shard * self.rows, (shard + 1) * self.rows), x, targets)


class _Events(Ledger):
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[int, ...], Any, str, str]] = []
        self.marks = self.heights = 0

    def empty(self, shape: Any, dtype: Any, category: str, owner: str = "", allocator: Any = None) -> Array:
        self.asked.append((tuple(shape), np.dtype(dtype), category, owner))
        return super().empty(shape, dtype, category, owner, allocator)

    def mark(self, label: str) -> None:
        self.marks += 1
        super().mark(label)

    def _note_peak(self) -> None:
        self.heights += self._rising
        super()._note_peak()


class _Anywhere(Block):
    """The block with every array at its beginning: what it costs to make views of it."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.use(Packing(nbytes, nbytes, ({},), ""))

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocation: Allocation) -> Array:
        return self.view_at(0, shape, dtype, allocation)


def _ledger_seconds(run: _Run, block: bool, record: bool) -> float:
    """The time of a step's calls of the ledger, less that of taking the same arrays without one.

    It is a few hundredths of a step, less than steps differ, so it is measured alone, on the arrays of a real step.
    """
    events = _Events()
    engine = run.engine(block, events)
    run.step(engine)
    events.asked.clear()
    events.marks = 0
    events.start_recording()
    run.step(engine)
    events.stop_recording()
    largest = max(int(np.prod(shape, dtype=int)) * dtype.itemsize for shape, dtype, _, _ in events.asked)
    allocator: Allocator = _Anywhere(largest) if block else Heap()
    # What lives in the middle of a step, for the records of the timeline.
    holders = run.plan.simulation.timeline[len(run.plan.operations) // 2].holders
    ledger = Ledger(record=record, allocator=allocator)
    held = [ledger.count(nbytes, category, owner) for (category, owner), nbytes in holders.items()]

    def with_ledger() -> None:
        if record:
            ledger.start_recording()
        for shape, dtype, category, owner in events.asked:
            ledger.empty(shape, dtype, category, owner)
        for _ in range(events.marks):
            ledger.mark("operation")
        if record:  # arrays that die at once are never higher than those before, as they are in a forward
            for _ in range(events.heights):
                holders.copy()

    def without() -> None:
        for shape, dtype, _, _ in events.asked:
            np.empty(shape, dtype)

    seconds: dict[Any, list[float]] = {with_ledger: [], without: []}
    for _ in range(30):
        for call, found in seconds.items():
            started = time.perf_counter()
            call()
            found.append(time.perf_counter() - started)
    del held
    return median(seconds[with_ledger]) - median(seconds[without])


def growth_here(where: str) -> int:
    """Returns the growth of resident memory from the 2nd to the 50th step in this process."""
    run = _Run("sqrt-n", 4)
    engine = run.engine(where == "block")
    for number in range(50):
        run.step(engine)
        if number == 1:
            before = ProcessMemory.read().rss
    return ProcessMemory.read().rss - before
