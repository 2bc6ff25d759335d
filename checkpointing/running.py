"""A run of a plan: the table of values, and a method for each kind of operation.

It keeps values in one table and nowhere else. Each operation is a method, so its locals are gone when it returns, and layers'
rules are called directly, since wrappers would keep their arguments alive. So an array dies exactly at its Drop.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from checkpointing.leaves import Leaf
from checkpointing.offload import OffloadFile, Transfer
from checkpointing.operations import (
    TARGETS,
    Accumulate,
    Backward,
    Drop,
    Fetch,
    Forward,
    Load,
    Loss,
    Norm,
    Offload,
    Reduce,
    Update,
    Value,
    Wait,
    cotangent,
    gradient,
    output,
)
from checkpointing.plan import PARTS, Plan
from checkpointing.reduction import Sums, Totals
from checkpointing.simulation import Merge, holder_of
from checkpointing.witness import Witness
from framework import kernels
from framework.keys import Key
from framework.layers import BATCH, Context
from framework.layers.layer import Extent, require_output
from framework.memory import Allocation, Allocator, Array, Moment

if TYPE_CHECKING:
    from checkpointing.executor import Executor


@dataclass
class Job:
    """What a plan is run on.

    Attributes:
        load: Writes a shard's inputs and targets, and the weights of its examples where the plan has them, into given arrays.
        key: For random numbers; each operation folds its shard and path into it.
        update: Changes the parameters and the state, given the mean gradient (with the statistics behind it) and its norm. It is not
            called where the loss or the norm is not finite.
    """

    load: Callable[..., None]
    key: Key
    update: Callable[[Array, float], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run of a plan gave.

    Attributes:
        sums: The rank's own totals by shard; in an evaluation with the score.
        loss: The mean loss over all shards; NaN in an evaluation, whose sums the caller adds.
        gradient_norm: The norm of the mean gradient; NaN where no Norm ran.
        gradient: The mean gradient, where the plan's purpose is that.
    """

    sums: Sums
    loss: float
    gradient_norm: float
    gradient: Array | None


class NotAsPlanned(RuntimeError):  # noqa: N818  (the name that callers act on)
    """Not what the plan holds is alive, so places in the block cannot be given to others."""


class Run:
    """One run of a plan: the table of values, and a method an operation."""

    def __init__(self, executor: Executor, plan: Plan, job: Job, heap: Allocator, witness: Witness | None) -> None:
        self.executor, self.plan, self.job = executor, plan, job
        self.simulation = plan.simulation
        self.block, self.witness = executor.block, witness
        # A gradient that is handed to the caller outlives the plan.
        self.gradients = executor.gradients or (heap if plan.purpose == "gradient" else None)
        self.costs, self.ledger, self.steps = plan.costs, executor.ledger, executor.steps
        self.training = plan.purpose != "evaluate"
        self.table: dict[Value, Any] = {}
        self.grads: dict[str, dict[str, Array]] = {}  # views of the gradient of the shard at work
        self.sibling: Array | None = None  # the gradient that the shard's cotangents are added to layer by layer
        self.statistics: dict[
            str, dict[str, Array]
        ] = {}  # views of its end, until a step's first forward has written there
        self.shard, self.place = -1, 0
        self.key = job.key
        self.sums: Sums = {}
        self.mean = self.gradient_norm = float("nan")
        self.leaves = executor.leaves(plan)
        self.moving: dict[Value, tuple[Transfer, Any]] = {}  # and what a Fetch will have read

    def execute(self) -> Outcome:
        methods: dict[type, Callable[[Any], None]] = {
            Load: self.load,
            Forward: self.forward,
            Loss: self.loss,
            Backward: self.backward,
            Drop: self.drop,
            Offload: self.offload,
            Fetch: self.fetch,
            Wait: self.wait,
            Accumulate: self.accumulate,
            Reduce: self.reduce,
            Norm: self.norm,
            Update: self.update,
        }
        ledger, block, witness = self.ledger, self.block, self.witness
        record = ledger.mark if ledger.timeline is not None else None
        timeline, passed, progress = self.simulation.timeline, self.plan.passed, self.executor.reduction.progress
        begun = progress[0] // PARTS * PARTS
        held = ledger.live - self.simulation.static  # besides what the plan makes
        for place, (operation, label) in enumerate(zip(self.plan.operations, self.plan.labels, strict=True)):
            self.place, kind = place, type(operation)
            if kind is not Drop and block is not None:
                block.begin(place)
            try:
                methods[kind](operation)
                if witness is not None:
                    witness.after(place, label)
                if block is not None and ledger.live != held + timeline[place].live:
                    held = self.require_dead(held, timeline[place])
            except BaseException as error:
                if record is not None:
                    record(label)  # what lives now led to it
                if not isinstance(error, Exception):
                    raise
                error.add_note(f"in operation {place} of the step, {label}, shard {self.shard}")
                for fault in witness.found.faults[:10] if witness is not None else ():
                    error.add_note(f"the witness saw: {fault}")
                raise
            if record is not None:
                record(label)
            elif kind is not Drop or witness is not None:  # of a drop nobody else asks what lived at most
                ledger.begin()
            progress[0] = begun + passed[place]
        left = self.table.pop(gradient(0, self.plan.shards), None)
        return Outcome(self.sums, self.mean, self.gradient_norm, left)

    def clear(self) -> None:
        self.table.clear()
        self.moving.clear()
        self.let_go_of_views()

    def let_go_of_views(self) -> None:
        """The shard's backward is done, and views of its gradient must not outlive the buffer."""
        self.grads, self.statistics, self.sibling = {}, {}, None

    def require_dead(self, held: int, moment: Moment) -> int:
        """Raises if more is alive than the plan holds, and what was `held` besides; returns what is held besides now."""
        gc.collect()  # a cycle in a layer of somebody's
        if self.ledger.live <= held + moment.live:
            return self.ledger.live - moment.live  # something else of the ledger's has died meanwhile
        rows = [
            f"{nbytes - moment.holders.get((category, owner), 0):,} bytes of {category} of {owner or 'the engine'}"
            for category, owner, nbytes in self.ledger.holders(10**9)
            if nbytes > moment.holders.get((category, owner), 0)
        ]
        if not rows:
            raise NotAsPlanned(
                f"{self.ledger.live - held - moment.live:,} bytes more are alive than the plan holds: a layer returned an array that it "
                "had not from context.empty or context.like, so the plan drops what nobody counted; take arrays from there, or run "
                "with the heap"
            )
        raise NotAsPlanned(
            f"still alive although the plan has dropped it: {'; '.join(rows[:10])}. A layer keeps an array, or a small view of a large "
            "one, in a global, a cache or its residuals; return what the VJP needs as own residuals of their true size, or run with "
            "the heap"
        )

    def load(self, operation: Load) -> None:
        costs, table, shard = self.costs, self.table, operation.shard
        self.shard, self.key = shard, self.job.key.fold(shard)
        x = table[output(BATCH)] = self.ledger.empty(costs.batch.shape, costs.batch.dtype, "batch", "batch")
        t = tuple(self.ledger.empty(spec.shape, spec.dtype, "batch", "targets") for spec in costs.target_specs)
        table[TARGETS] = t
        if self.training:
            self.load_gradient(shard)
        self.job.load(shard, x, *t)

    def load_gradient(self, shard: int) -> None:
        layout, owner = self.executor.layout, f"shard {shard}"
        self.sibling = self.table.get(gradient(shard - 1, 1)) if shard % 2 else None
        own = layout if self.sibling is None else layout.rest
        size = own.gradients.size
        if self.sibling is None:
            g = self.ledger.empty((size,), layout.dtype, "gradients", owner, self.gradients)
        else:
            g = self.ledger.empty((size,), layout.dtype, "cotangents", owner) if size else self.sibling[:0]
        self.table[gradient(shard, 1)] = g
        of_parameters, of_statistics = own.parts(g)
        self.grads = own.grouped_views(of_parameters)
        self.statistics = layout.statistics.grouped_views(of_statistics)

    def forward(self, operation: Forward) -> None:
        leaf = self.leaves[operation.step]
        inputs, context = self.gathered(leaf.inputs), self.context(leaf)
        if self.witness is not None:
            self.witness.watch("a parameter", leaf.params)
            self.witness.watch("its input", () if context.in_place else inputs)
        heap = self.on_heap(leaf.path)
        if self.statistics:
            context.statistics = self.statistics.pop(leaf.path, None)
        y, own = leaf.layer.forward(leaf.params, inputs, context)
        context.statistics = None
        del heap
        require_output(leaf.layer, y, context.output)
        self.table[leaf.output] = y
        if operation.keep is not None:
            self.table[leaf.residuals] = own

    def loss(self, operation: Loss) -> None:
        last, loss = len(self.steps) - 1, self.executor.loss
        y, (targets, weights) = self.table[output(last)], (*self.table[TARGETS], None)[:2]
        context = Context(self.ledger, "loss", in_place=self.place in self.plan.simulation.in_place)
        total, count, own = loss.forward(y, targets, weights, context)
        if self.training:
            self.table[cotangent(last)] = loss.vjp(y, targets, weights, own, context)
        score = 0.0 if self.training or loss.metric is None else loss.score(y, targets, weights, context)
        self.sums[self.shard] = Totals(total, count, score)

    def backward(self, operation: Backward) -> None:
        leaf = self.leaves[operation.step]
        footprint, context, given = leaf.footprint, self.context(leaf), self.table[leaf.cotangent]
        inputs = self.gathered(leaf.read)
        y = self.table[leaf.output] if footprint.needs_output else None
        own = self.table[leaf.residuals] if footprint.own else ()
        if self.witness is not None:
            self.witness.watch("a parameter", leaf.params)
            self.witness.watch("an input", inputs if footprint.needs_input != (False,) else ())
            self.witness.watch("its output", () if y is None else y)
            self.witness.watch("its residuals", own)
            self.witness.watch("its output's cotangent", () if context.in_place else given)
        grads, scratch = self.grads.get(leaf.path, {}), None
        if self.sibling is not None and (finished := self.executor.finished(leaf.path)).size:
            scratch = self.ledger.empty((finished.size,), self.sibling.dtype, "workspace", leaf.path)
            grads = {**grads, **finished.views_of(scratch)}
        heap = self.on_heap(leaf.path)
        cotangents = leaf.layer.vjp(leaf.params, inputs, y, own, given, grads, context)
        del heap
        self.written(leaf, grads)
        if scratch is not None and self.sibling is not None:
            finished.add(self.sibling, scratch)
            self.added(leaf, self.sibling)
        del grads, scratch
        each = cotangents if len(leaf.sources) > 1 else (cotangents,)
        merges = zip(leaf.sources, self.simulation.merges[self.place], each, strict=True)
        for i, (source, merge, new) in enumerate(merges):
            if merge is Merge.BIND:  # nearly always
                self.table[source.cotangent] = new
            else:
                self.merge(source.number, merge, new, footprint.extent(i))

    def on_heap(self, path: str) -> Allocation | None:
        """Counts what the operation's rule will take from plain NumPy, for as long as the entry lives.

        Raises:
            BudgetExceeded: It would pass the limit.
        """
        if not self.simulation.heap:
            return None
        nbytes = self.simulation.heap.get(self.place)
        return self.ledger.count(nbytes, "workspace", path) if nbytes else None

    def merge(self, source: int, merge: Merge, new: Array, extent: Extent | None) -> None:
        """Adds a cotangent, or a part of one, to what is there, as the simulator decided."""
        value, table = cotangent(source), self.table
        match merge:
            case Merge.INTO_NEW:
                new += table[value]
                table[value] = new
            case Merge.INTO_OLD:
                add_part(table[value], new, extent)
            case Merge.SPREAD | Merge.FRESH:
                spec = self.costs.output(source)
                fresh = self.ledger.empty(spec.shape, spec.dtype, "cotangents", "sum")
                fresh[...] = 0 if merge is Merge.SPREAD else table[value]
                add_part(fresh, new, extent)
                table[value] = fresh

    def drop(self, operation: Drop) -> None:
        del self.table[operation.value]

    @property
    def disk(self) -> OffloadFile:
        assert self.executor.disk is not None
        return self.executor.disk

    def offload(self, operation: Offload) -> None:
        value = operation.value
        held = self.table[value]
        start = self.simulation.on_disk[value]
        arrays = held if value.kind == "r" else (held,)
        self.moving[value] = self.disk.write(value, self.in_words(value), arrays, start), None

    def fetch(self, operation: Fetch) -> None:
        value = operation.value
        category, owner = holder_of(value, self.costs)
        empty = partial(self.ledger.empty, category=category, owner=owner)
        transfer, arrays = self.disk.read(value, self.in_words(value), empty)
        self.moving[value] = transfer, arrays if value.kind == "r" else arrays[0]

    def wait(self, operation: Wait) -> None:
        transfer, fetched = self.moving.pop(operation.value)
        self.disk.wait(transfer)
        if transfer.reading:
            self.table[operation.value] = fetched

    def in_words(self, value: Value) -> str:
        """Names an output or residuals, for people."""
        if value == output(BATCH):
            return "the batch"
        kind = "the output" if value.kind == "a" else "the residuals"
        return f"{kind} of {self.steps[value.at].path} ({value})"

    def written(self, leaf: Leaf, grads: Mapping[str, Array]) -> None:
        """Told what a VJP has written of its parameters' cotangents."""

    def added(self, leaf: Leaf, total: Array) -> None:
        """Told that they have been added to another shard's gradient."""

    def accumulate(self, operation: Accumulate) -> None:
        layer_by_layer = self.sibling is not None and operation.first + 1 == self.shard and operation.count == 1
        self.let_go_of_views()
        first, count = operation.first, operation.count
        total = self.table.pop(gradient(first, count))
        more = self.table[gradient(first + count, count)]
        if layer_by_layer:
            layout = self.executor.layout
            for name, part in layout.rest.gradients.slices.items():
                target = total[layout.gradients.slices[name]]
                target += more[part]
        else:
            total += more
        self.table[gradient(first, 2 * count)] = total

    def reduce(self, operation: Reduce) -> None:
        buckets = self.executor.buckets(self.plan)
        last = operation.bucket + 1 == len(buckets)
        sums = {value.at: array for value, array in self.table.items() if value.kind == "g"}
        if not last and self.sibling is not None:
            del sums[self.shard]  # it is not one of the sums, but what is added to its sibling's in the end
        self.executor.reduction.begin(sums, buckets[operation.bucket], self.sums)
        if not last:
            return
        self.let_go_of_views()
        total, totals = self.executor.reduction.finish()
        self.mean = totals.loss / totals.divisor
        for value in [value for value in self.table if value.kind == "g" and value.at == 0]:
            del self.table[value]  # the sum took its place
        self.table[gradient(0, self.plan.shards)] = total

    def norm(self, operation: Norm) -> None:
        cotangents, _ = self.executor.layout.parts(self.table[gradient(0, self.plan.shards)])
        self.gradient_norm = self.executor.reduction.norm(cotangents, self.ledger)

    def update(self, operation: Update) -> None:
        if self.job.update is None:
            raise ValueError("the plan updates parameters, but the job says not how")
        if not (math.isfinite(self.mean) and math.isfinite(self.gradient_norm)):
            return  # the same on all ranks; parameters, optimizer and state stay as they are
        self.job.update(self.table[gradient(0, self.plan.shards)], self.gradient_norm)

    def gathered(self, values: tuple[Value | None, ...]) -> Any:
        """The arrays of some values, None where there is none, a tuple where there are several values."""
        if len(values) == 1:
            (value,) = values
            return None if value is None else self.table[value]
        return tuple(None if value is None else self.table[value] for value in values)

    def context(self, leaf: Leaf) -> Context:
        context = leaf.context
        context.in_place = self.place in self.simulation.in_place
        context.draw_from(self.key)
        return context


def add_part(whole: Array, part: Array, extent: Extent | None) -> None:
    """Adds to a part of an array, or to all of it, in place."""
    if extent is None:
        whole += part
    else:
        with kernels.small_buffers():
            target = extent.of(whole)
            target += part
