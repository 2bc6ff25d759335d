"""Planning of a training run: from options and budget to the plans of all ranks, and the bytes that they come to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from checkpointing.budgets import HEAP_PERCENT, USUAL_GROWTH_NBYTES, MemoryBudget, ProcessBudget, ProcessUse
from checkpointing.costs import Times, UpdateCost, costs_of
from checkpointing.engine import run_plans
from checkpointing.offload import measure_disk
from checkpointing.plan import pack_together
from checkpointing.policies import Policy, StoreAll
from checkpointing.runs import InfeasibleBudget, RunPlans
from checkpointing.timing import Progress, measure_times
from distributed.collectives.spread import Spread
from distributed.groups import Group, RayGroup
from distributed.holding import Holding
from distributed.options import TrainingOptions
from distributed.padding import require_paddable
from distributed.sharded_state import across_nbytes
from distributed.worker_sizes import CHUNKS, chunk_nbytes, outside_nbytes, reserved_nbytes, shard_specs, static_nbytes
from framework.data import Batches, Dataset
from framework.layers import flatten, input_specs
from framework.models import Model
from framework.optimizers import Optimizer
from framework.parameters import Layout


@dataclass(frozen=True)
class Share:
    """What ranks of one budget have of a run's plans.

    Attributes:
        ranks: Which they are.
        budget: Theirs; None for none.
        limit: Of the engine's bytes in each of them, which follows from it; None for none.
        plans: Of the whole run within it.
    """

    ranks: tuple[int, ...]
    budget: MemoryBudget | None
    limit: int | None
    plans: RunPlans

    @property
    def peak(self) -> int:
        """The predicted peak of the rank that holds the most of these, in bytes."""
        return max(plan[rank].peak for plan in (self.plans.train, self.plans.evaluate) for rank in self.ranks)

    @property
    def told_ranks(self) -> str:
        """The ranks in words."""
        return f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"

    def to_json(self) -> dict[str, Any]:
        """Returns the share as JSON-ready data."""
        budget = self.budget
        return {
            "ranks": list(self.ranks),
            "budget_bytes": budget.nbytes if isinstance(budget, ProcessBudget) else self.limit,
            "reason": budget.reason if isinstance(budget, ProcessBudget) else "",
            "engine_budget_bytes": self.limit,
            "policy": self.plans.policy.name,
            "predicted_peak_bytes": self.peak,
        }


def together(shares: Sequence[Share]) -> RunPlans:
    """Returns the plans of all ranks, each from its own share."""
    if len(shares) == 1:
        return shares[0].plans
    by_rank = dict(sorted((rank, share.plans) for share in shares for rank in share.ranks))
    train, evaluate = (
        tuple(getattr(plans, what)[rank] for rank, plans in by_rank.items()) for what in ("train", "evaluate")
    )
    return replace(by_rank[0], train=train, evaluate=evaluate)


class RunPlanning:
    """Plans a run within its budget.

    Without a budget of the whole process `plans` and `budget` are there at once, else after `measure`; what comes of measuring is there after
    `take_measured`.

    Args:
        model: The model, of the data's sizes.
        optimizer: Updates it.
        data: The examples.
        options: How it is trained.
        batches: How the examples of a training epoch, and those of a validation, are cut into batches.
        on_measuring: Told how far it is when times are measured (see `checkpointing.timing.measure_times`).

    Attributes:
        layout: Where each parameter lies.
        plans: The plans of all ranks. Where ranks have budgets of their own, the policy is rank 0's; see `shares`.
        shares: The plans of ranks of equal budgets, for each of these; one where all have the same.
        budget: The limit of the engine's bytes in each worker, the largest where they differ; None for no limit.
        process: What a worker's process takes besides, once it has been measured.
        baselines: What each rank's process had before its first array, in bytes, once it has been measured.
        measured_how: By which arguments of `measure_baseline`.
        spread: Of the ranks over nodes: over one, until they are placed.

    Raises:
        ValueError: Something would see the padding of a batch.
        InfeasibleBudget: The policy does not fit the budget, or nothing does.
    """

    plans: RunPlans

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        data: Dataset,
        options: TrainingOptions,
        batches: tuple[Batches, Batches],
        on_measuring: Progress | None = None,
    ) -> None:
        self._model, self._optimizer, self._data, self._options = model, optimizer, data, options
        self._batches = batches
        self._specs = shard_specs(data, options.batch, options.shards)
        self.layout: Layout = model.chain.layout(self._specs[0])
        require_paddable(model, self.layout, data, self._specs, batches)
        self.budget: int | None = None
        self.process: ProcessUse | None = None
        self._baselines: Callable[[], list[int]] | None = None
        self.baselines: list[int] = []
        self.measured_how: tuple[Any, ...] = ()
        self.spread: Spread = options.spread or Spread.of([0] * options.world)
        self._budgets: tuple[MemoryBudget | None, ...] = (options.parsed_budget(),) * options.world
        self.shares: tuple[Share, ...] = ()
        folder = options.offload_dir
        self._disk_bandwidth = None if folder is None or options.address else measure_disk(folder)
        self._times: Times | None = self._measured_times(on_measuring) if options.measured_costs else None
        if self.process_budget is None:
            self.plan()

    @property
    def process_budget(self) -> ProcessBudget | None:
        """The budget, the largest where they differ, if it is one of the whole process; `auto` has its size once the workers have started."""
        found = [budget for budget in self._budgets if isinstance(budget, ProcessBudget)]
        return max(found, key=lambda budget: budget.nbytes or 0, default=None)

    def measure(self, group: Group) -> None:
        """Has the workers measure what their processes take, and plans within a budget of the whole process, for which it waits for them.

        Raises:
            InfeasibleBudget: What the processes take leaves too little for every plan.
        """
        if isinstance(group, RayGroup):
            self._budgets = group.budgets or self._budgets
            if group.spread != self.spread:
                self.spread = group.spread
                if self.process_budget is None:
                    self.plan()
        elif self.process_budget is not None:
            self._budgets = (self.process_budget.on_this_node(),) * self._options.world
        # A plan stays, and making it leaves gaps in the heap of this very process; so a first one is there when it is measured.
        rehearsal = self._planned(budget=2**62) if self.process_budget and not self._options.workers else None
        steps = flatten(self._model.chain)
        given = input_specs(steps, self._specs[0])
        specs = [spec for each in given for spec in (each if isinstance(each, tuple) else (each,))]
        rows, width = max(spec.rows for spec in specs), max(spec.shape[-1] for spec in specs)
        self.measured_how = (self.layout.dtype.name, self._options.threads_per_worker, rows, width)
        self._baselines, self.process = group.measure(*self.measured_how), None
        del rehearsal
        if self.process_budget is not None:
            self.take_measured()
            self.plan()

    def take_measured(self) -> None:
        """Takes what the workers have measured."""
        if self.process is not None or self._baselines is None:
            return
        options = self._options
        # In this process the data set is there already, and the ledger counts it.
        held = 0 if options.workers else self._data.nbytes
        self.baselines = [baseline - held for baseline in self._baselines()]
        outside = outside_nbytes(self.layout, options.shards, self.spread, options.network.chunk)
        # The largest counts for all.
        self.process = ProcessUse(
            max(self.baselines), outside + max(map(self.holding.others_nbytes, range(options.world)))
        )

    @contextmanager
    def packed_meanwhile(self) -> Iterator[None]:
        """Works out in a thread where arrays lie in the blocks of all ranks, while workers in other processes start: else all would do it at once.

        What is left of it is left to them where something fails, or plans are made again. In this process it comes after measuring, since it
        leaves gaps in the heap; and with a budget of the whole process plans come after that in any case.
        """
        options, left = self._options, threading.Event()
        if not options.workers or options.memory != "block" or self.process_budget is not None:
            yield
            return
        plans = self.plans

        def pack() -> None:
            for pair in zip(plans.train, plans.evaluate, strict=True):
                if not left.is_set():
                    pack_together(pair)

        with ThreadPoolExecutor(1, "packing") as meanwhile:
            packing = meanwhile.submit(pack)
            try:
                yield
            except BaseException:
                left.set()
                raise
            if self.plans is not plans:
                left.set()
            packing.result()

    def plan(self) -> None:
        """Makes `plans` within `budget`, the limit of the engine's bytes.

        Ranks of one budget take the fastest plan that fits it, chosen as if each of them held what the rank with the most holds. Which one
        changes no bit, so those of another budget may take another one.
        """
        self.shares = tuple(
            self._share(budget, tuple(rank for rank, own in enumerate(self._budgets) if own == budget))
            for budget in dict.fromkeys(self._budgets)
        )
        self.plans, self.budget = together(self.shares), max(share.limit or 0 for share in self.shares) or None

    def _share(self, budget: MemoryBudget | None, ranks: tuple[int, ...]) -> Share:
        """Plans for the ranks of a budget."""
        limit = budget.resolve(self._planned(StoreAll()), self.process) if budget is not None else None
        try:
            in_block = self.process_budget is not None and self._options.memory == "block"
            plans = (
                self._plans_with_room(limit)
                if in_block and limit is not None
                else self._planned(self._options.parsed_policy(), limit)
            )
        except InfeasibleBudget as error:
            if isinstance(budget, ProcessBudget) and self.process is not None:
                raise budget.explain(error, self.process) from error
            raise
        return Share(ranks, budget, limit, plans)

    def limit_of(self, rank: int) -> int | None:
        """The limit of the engine's bytes on a rank; None for no limit."""
        return next(share.limit for share in self.shares if rank in share.ranks)

    @property
    def policy(self) -> str:
        """The policy in words: its name, or each one's with its ranks, where ranks of different budgets have different ones."""
        if len({share.plans.policy.name for share in self.shares}) == 1:
            return self.plans.policy.name
        return ", ".join(f"{share.plans.policy.name} on {share.told_ranks}" for share in self.shares)

    @property
    def holding(self) -> Holding:
        """How ranks hold parameters and optimizer state."""
        options = self._options
        return Holding.chosen(
            self._optimizer, self.layout, self.spread, options.shard_optimizer, options.share_weights, self.process_budget is not None
        )  # fmt: skip

    @property
    def reserved_nbytes(self) -> int:
        """Bytes that the rank with the most takes for its arrays: in the block they are a little more than the peak."""
        return self._reserved_nbytes(self.plans)

    @property
    def predicted_process_nbytes(self) -> int | None:
        """The predicted peak of the resident memory of the worker with the most; None before the workers have started."""
        return None if self.process is None else max(map(self.predicted_process_of, range(self._options.world)))

    def predicted_process_of(self, rank: int) -> int:
        """The predicted peak of a worker's resident memory, once the workers have started."""
        assert self.process is not None
        return self.process.baseline + self.planned_growth_of(rank)

    def planned_growth_of(self, rank: int) -> int:
        """Bytes that a worker will take at most besides what its process had before its first array, once the workers have started."""
        assert self.process is not None
        plans, block = self.plans, self._options.memory == "block"
        reserved = reserved_nbytes(plans.train[rank], plans.evaluate[rank], block)
        return self.process.outside + reserved + USUAL_GROWTH_NBYTES

    def store_all(self) -> RunPlans:
        """Returns the plans of the same run by store-all, to compare with."""
        return self._planned(StoreAll())

    @property
    def updates(self) -> tuple[UpdateCost, ...]:
        """What the optimizer takes on each rank, and what each holds otherwise than others; nothing where all ranks hold alike."""
        options, holding = self._options, self.holding
        chunks = [
            chunk_nbytes(self.layout, options.shards, self.spread, options.network.chunk, rank)
            + (across_nbytes(self.spread, rank) if holding.sharded else 0)
            for rank in range(options.world)
        ]
        if not holding.sharded and not any(chunks):
            return ()
        return tuple(
            update._replace(held=(*update.held, (CHUNKS, nbytes)))
            for update, nbytes in zip(holding.updates, chunks, strict=True)
        )

    def _planned(self, policy: Policy | None = None, budget: int | None = None) -> RunPlans:
        options = self._options
        static = static_nbytes(self._data, options.shards, bool(options.workers), self.layout)
        return run_plans(
            self._model.chain,
            self._model.loss,
            *self._specs,
            self._optimizer,
            policy=policy,
            budget=budget,
            shards=options.shards,
            world=options.world,
            static={**static, **self.holding.communication},
            times=self._times,
            offload=options.offload_dir is not None,
            disk_bandwidth=self._disk_bandwidth,
            bucket_nbytes=options.bucket_nbytes,
            updates=self.updates,
            weighted=(self._batches[0].padded, self._batches[1].padded),
        )

    def _measured_times(self, progress: Progress | None) -> Times:
        chain, loss = self._model.chain, self._model.loss
        return measure_times(
            costs_of(chain, loss, *self._specs), chain, loss, self._options.threads_per_worker, progress
        )

    def _plans_with_room(self, limit: int) -> RunPlans:
        """Returns the plans of which the blocks, and what lies beside them, have room in the process.

        A plan's peak is that of one operation. But the block stays whole when a layer of one's own takes memory besides it, and
        when most gradients of the reduction tree are alive in shared memory, which may be at another one.
        """
        policy, target = self._options.parsed_policy(), limit
        enough: list[int] = []  # for each plan that was made, the limit that it needs
        while True:
            try:
                plans = self._planned(policy, target)
            except InfeasibleBudget as error:
                least = min(enough) if enough else self._engine_nbytes(self._planned(policy, error.smallest))
                raise error.at_least(least) from error
            enough.append(self._engine_nbytes(plans))
            if enough[-1] <= limit:
                return plans
            target = plans.peak - 1

    def _engine_nbytes(self, plans: RunPlans) -> int:
        """The least engine bytes of a process that has room for some plans in blocks: little more or less than their peak."""
        return -(-self._reserved_nbytes(plans) * 100 // (100 + HEAP_PERCENT))

    def _reserved_nbytes(self, plans: RunPlans) -> int:
        block = self._options.memory == "block"
        return max(
            reserved_nbytes(train, evaluate, block) for train, evaluate in zip(plans.train, plans.evaluate, strict=True)
        )
