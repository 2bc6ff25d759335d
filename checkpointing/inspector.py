"""The inspector: runs a step again and finds the first value in it that is not finite.

A step whose loss or gradient is not finite changes nothing (see `running.Job`), so it can be run again on the same
parameters, batch and random numbers, by the same plan. This time each value is looked at when it has been made. It is the only run
that pays for this.

Under a budget the plan is the one that fits. What the inspector takes itself are blocks of 32 KiB of Python's own, no array of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from checkpointing.executor import Executor
from checkpointing.leaves import Leaf
from checkpointing.operations import (
    TARGETS,
    Accumulate,
    Backward,
    Forward,
    Load,
    Loss,
    Norm,
    Reduce,
    Update,
    cotangent,
    gradient,
    label,
    output,
)
from checkpointing.plan import Plan
from checkpointing.running import Job, Run
from checkpointing.witness import Witness, arrays_of
from framework.layers import BATCH
from framework.memory import Allocator, Array

_BLOCK = 4096
_SUM = "the sum over shards of the cotangents of "


@dataclass(frozen=True)
class Statistics:
    """What an array holds.

    Attributes:
        size: Numbers.
        nan: How many are NaN.
        infinite: How many are infinite.
        largest: The largest finite magnitude; 0 if there is none.
    """

    size: int = 0
    nan: int = 0
    infinite: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, arrays: Any) -> Statistics:
        """Counts in an array, or in all arrays of a nested structure, block by block; integers are always finite.

        >>> Statistics.of(np.array([1.0, -2.0, np.inf, np.nan]))
        Statistics(size=4, nan=1, infinite=1, largest=2.0)
        """
        size = nan = infinite = 0
        largest = 0.0
        for a in arrays_of(arrays):
            if not np.issubdtype(a.dtype, np.inexact):
                continue
            # Buffered, it gives blocks of an array of any strides without a copy of the whole.
            for block in np.nditer(a, ["external_loop", "buffered", "zerosize_ok"], order="K", buffersize=_BLOCK):
                magnitudes = np.abs(block)
                bad = ~np.isfinite(magnitudes)
                size, nan = size + magnitudes.size, nan + int(np.isnan(magnitudes).sum())
                infinite += int(np.isinf(magnitudes).sum())
                magnitudes[bad] = 0
                largest = max(largest, float(magnitudes.max(initial=0)))
        return cls(size, nan, infinite, largest)

    @property
    def finite(self) -> bool:
        return not (self.nan or self.infinite)

    def __str__(self) -> str:
        if self.size == 1 and not self.finite:
            return "it is NaN" if self.nan else "it is infinite"
        largest = f", and the largest finite magnitude is {self.largest:.3g}" if self.largest else ""
        return f"of {self.size:,} numbers {self.nan:,} are NaN and {self.infinite:,} infinite{largest}"


@dataclass(frozen=True)
class Finding:
    """The first value of a step that is not finite.

    Attributes:
        what: Its name, such as "the output of 2.inner.1".
        operation: The operation that made it; empty if it was there before the step.
        shard: The virtual shard at work (for a sum over some of them, the last); None before the first and after the last.
        statistics: Of the value.
        before: What the operation read, with its statistics before the operation.
    """

    what: str
    operation: str
    shard: int | None
    statistics: Statistics
    before: tuple[tuple[str, Statistics], ...] = ()

    @property
    def of_all_ranks(self) -> bool:
        """Whether every rank has it: it is a parameter, or the sum over all shards."""
        return self.shard is None

    def __str__(self) -> str:
        if not self.operation:
            return f"{self.what} was not finite before the step: {self.statistics}"
        where = f"{self.operation}, shard {self.shard}" if self.shard is not None else self.operation
        read = [f"of {what} {statistics.largest:.3g}" for what, statistics in self.before if statistics.size]
        magnitudes = f"; the largest magnitude {', '.join(read)}" if read else ""
        return f"{self.what} is the first value that is not finite ({where}): {self.statistics}{magnitudes}"


class Inspector:
    """Looks at each value of one run of a plan: `Executor.run(plan, job, make=inspector)`.

    Attributes:
        finding: What was found, None if all is finite.
    """

    def __init__(self) -> None:
        self.finding: Finding | None = None

    def __call__(self, executor: Executor, plan: Plan, job: Job, heap: Allocator, witness: Witness | None) -> Run:
        return _InspectedRun(self, executor, plan, job, heap, witness)


class _InspectedRun(Run):
    """A run that looks at what each operation reads and makes, until something is found."""

    def __init__(self, inspector: Inspector, executor: Executor, *how: Any) -> None:
        super().__init__(executor, *how)
        self.inspector = inspector
        self.before: list[tuple[str, Statistics]] = []
        for kind, groups in (("parameter", executor.params), ("state", executor.states)):
            for path, arrays in groups.items():
                self.find((f"the {kind} {path}.{name}", a) for name, a in arrays.items())

    def load(self, operation: Load) -> None:
        super().load(operation)
        table = self.table
        self.find([("the batch", table[output(BATCH)]), ("the targets", table[TARGETS])], operation)

    def forward(self, operation: Forward) -> None:
        leaf = self.leaves[operation.step]
        self.look("its parameters", leaf.params)
        self.look("its input", self.gathered(leaf.inputs))
        super().forward(operation)
        own = self.table.get(leaf.residuals) if operation.keep is not None else ()
        made = [(f"the output of {leaf.path}", self.table[leaf.output]), (f"the residuals of {leaf.path}", own)]
        self.find(made, operation)

    def loss(self, operation: Loss) -> None:
        last = len(self.steps) - 1
        self.look("the model's output", self.table[output(last)])
        super().loss(operation)
        made = [("the loss", np.array(self.sums[self.shard][0]))]
        if self.training:
            made.append(("the loss's derivative", self.table[cotangent(last)]))
        self.find(made, operation)

    def backward(self, operation: Backward) -> None:
        leaf, table = self.leaves[operation.step], self.table
        self.look("its parameters", leaf.params)
        self.look("its input", self.gathered(leaf.read))
        self.look("its output", table[leaf.output] if leaf.footprint.needs_output else ())
        self.look("its residuals", table[leaf.residuals] if leaf.footprint.own else ())
        self.look("its output's cotangent", table[leaf.cotangent])
        self.look("what that is added to", [table.get(source.cotangent, ()) for source in leaf.sources])
        if self.sibling is not None:
            places = self.executor.finished(leaf.path).places
            self.look("what its parameters' are added to", [self.sibling[there] for there, _ in places])
        super().backward(operation)
        self.find(((f"the cotangent of {self.named(n)}", table.get(value, ())) for n, value in leaf.sources), operation)

    def written(self, leaf: Leaf, grads: Mapping[str, Array]) -> None:
        made = ((f"the cotangent of {leaf.path}.{name}", a) for name, a in grads.items())
        self.find_in(made, self.plan.operations[self.place])

    def added(self, leaf: Leaf, total: Array) -> None:
        names = self.executor.layout.own[leaf.path]
        made = ((name, a) for name, a in self.sums_of(total) if name.removeprefix(_SUM) in names)
        self.find_in(made, self.plan.operations[self.place])

    def accumulate(self, operation: Accumulate) -> None:
        value = gradient(operation.first, operation.count)
        self.look("the sums so far", [self.table[value], self.table[gradient(value.at + value.span, value.span)]])
        super().accumulate(operation)
        self.find(self.sums_of(self.table[gradient(value.at, 2 * value.span)]), operation)

    def reduce(self, operation: Reduce) -> None:
        self.look("the rank's sums", [a for value, a in self.table.items() if value.kind == "g"])
        super().reduce(operation)
        if gradient(0, self.plan.shards) not in self.table:  # it has only begun
            self.before = []
            return
        mean = self.table[gradient(0, self.plan.shards)]
        self.find([*self.sums_of(mean), ("the mean loss", np.array(self.mean))], operation)

    def norm(self, operation: Norm) -> None:
        self.look("the mean gradient", self.table[gradient(0, self.plan.shards)])
        super().norm(operation)
        self.find([("the gradient's norm", np.array(self.gradient_norm))], operation)

    def update(self, operation: Update) -> None:
        """Changes nothing: the step is run for its values alone."""

    def named(self, step: int) -> str:
        return "the batch" if step == BATCH else f"the output of {self.steps[step].path}"

    def sums_of(self, flat: Array) -> Iterator[tuple[str, Array]]:
        """The parts of a gradient buffer, named by their parameters, and the statistics behind them."""
        cotangents, statistics = self.executor.layout.parts(flat)
        for name, a in self.executor.layout.views(cotangents).items():
            yield f"{_SUM}{name}", a
        for name, a in self.executor.layout.statistics.views(statistics).items():
            yield f"the sum over shards of the statistics {name}", a

    def look(self, what: str, arrays: Any) -> None:
        """Takes the statistics of what an operation is going to read, and may overwrite."""
        if self.inspector.finding is None:
            self.before.append((what, Statistics.of(arrays)))

    def find(self, made: Iterable[tuple[str, Any]], operation: Any = None) -> None:
        """Looks at what an operation has made, or at what was there before the first."""
        self.find_in(made, operation)
        self.before = []

    def find_in(self, made: Iterable[tuple[str, Any]], operation: Any) -> None:
        """Looks at a part of what an operation has made."""
        if self.inspector.finding is None:
            for what, arrays in made:
                statistics = Statistics.of(arrays)
                if not statistics.finite:
                    self.inspector.finding = self.told(what, operation, statistics)
                    break

    def told(self, what: str, operation: Any, statistics: Statistics) -> Finding:
        if operation is None:
            return Finding(what, "", None, statistics)
        name = label(operation, [step.path for step in self.steps])
        shard = None if isinstance(operation, Reduce | Norm) else self.shard
        return Finding(what, name, shard, statistics, tuple(self.before))
