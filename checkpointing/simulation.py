"""The simulator: what a plan holds after and inside every operation, counted in buffers.

A value is a name; a buffer is memory. Several values may name one buffer (the input and output of a Flatten, the
cotangents that an Add passes on), and a buffer's bytes count once, until its last value is dropped. The executor does what
is decided here, so prediction and measurement are one thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from checkpointing.costs import Costs
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
    Operation,
    PlanError,
    Reduce,
    Update,
    Value,
    Wait,
    cotangent,
    gradient,
    label,
    output,
    residuals,
)
from checkpointing.packing import Buffer
from framework.layers import BATCH
from framework.memory import Moment

#: Values begin at multiples of it in the file of offloaded values: a page.
_FILE_ALIGNMENT = 4096

#: What holds bytes: a category of the ledger, and an owner.
Holder = tuple[str, str]


class Merge(Enum):
    """What becomes of a cotangent that a Backward made for an input."""

    NONE = "nobody reads it"
    BIND = "it is the first for this value"
    SPREAD = "it is the first for this value and only a part of it, and is added to zeros"
    INTO_OLD = "it is added into the buffer of the earlier ones"
    INTO_NEW = "the earlier ones are added into its buffer"
    FRESH = "both are added into a fresh buffer, since others name theirs"


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found.

    Attributes:
        timeline: A `Moment` for each operation, as the ledger records them.
        static: Bytes that live throughout.
        before: What holds them.
        at_peak: What holds the most bytes at once, when they first live; in an operation all that is not its output, cotangents or own
            residuals counts as its workspace.
        merges: For each Backward, by its place in the plan, what becomes of its cotangents.
        in_place: The places of operations that overwrite what they read: their output lies where their input lay, or the
            input's cotangent where the output's lay.
        left: The values that are left at the end.
        roots: The rank's sums of gradients when its last Reduce begins.
        heap: For each operation that has some, by its place in the plan: bytes that a layer's rule takes in passing from plain NumPy. They
            count inside the operation, but are no buffers: they lie on the heap, wherever the buffers do.
        buffers: All buffers that the plan makes, scratch included, and their lives, in the order in which they are made.
        flops: Floating-point operations of all Forwards, Losses and Backwards.
        seconds: Their time, measured or modelled as `Costs.source` says, and what the disk makes them wait; but for that the same for the
            same operations in any order.
        on_disk: Where each offloaded value lies in the file, in bytes from its start.
        file_nbytes: Bytes of the file.
        disk_nbytes: Bytes that are written and read.
        stall: Of the seconds, those that Waits take.
    """

    timeline: tuple[Moment, ...]
    static: int
    before: dict[Holder, int]
    at_peak: dict[Holder, int]
    merges: dict[int, tuple[Merge, ...]]
    in_place: frozenset[int]
    left: tuple[Value, ...]
    roots: tuple[Value, ...]
    buffers: tuple[Buffer, ...]
    flops: int
    heap: dict[int, int]
    seconds: float
    on_disk: dict[Value, int]
    file_nbytes: int
    disk_nbytes: int
    stall: float

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max((moment.inside for moment in self.timeline), default=self.static)

    @cached_property
    def gradient_nbytes(self) -> int:
        """The most bytes of gradients alive at once, all buffers of the reduction tree together."""
        return max(
            sum(nbytes for (category, _), nbytes in moment.holders.items() if category == "gradients")
            for moment in self.timeline
        )

    @property
    def most_on_heap(self) -> int:
        """The most bytes that a layer's rule takes from plain NumPy: what comes on top of a block."""
        return max(self.heap.values(), default=0)

    @property
    def activation_nbytes(self) -> int:
        """The bytes at the peak that are not parameters, gradients, optimizer state, or what ranks pass these on by."""
        moment = max(self.timeline, key=lambda moment: moment.inside)
        lasting = ("parameters", "gradients", "optimizer", "communication")
        return moment.inside - sum(moment.categories.get(category, 0) for category in lasting)


def simulate(operations: Sequence[Operation], costs: Costs, purpose: str, shards: int, rank: int) -> Simulation:
    """Runs a plan on names and bytes alone.

    Raises:
        PlanError: An operation lacks a value, makes one that exists, or drops one that does not.
    """
    return _Simulator(costs, purpose, shards, rank).run(operations)


def simulate_parts(parts: Sequence[tuple[Sequence[Value], Sequence[Operation]]], costs: Costs) -> list[tuple[int, int]]:
    """Runs parts of a shard's pass one after the other, as if nothing else were held.

    Args:
        parts: For each part, outputs and cotangents that appear before it, each in a buffer of its own, and its operations.
        costs: The chain; what lives throughout is not counted.

    Returns:
        For each part the most bytes at once, and the bytes that are live after it.
    """
    simulator = _Simulator(replace(costs, static={}), "gradient", 1, 0)
    found = []
    for values, operations in parts:
        for value in values:
            nbytes = costs.targets_nbytes if value == TARGETS else costs.output(value.at).nbytes
            simulator.make(value, nbytes, "cotangents" if value.kind == "d" else "activations", "border")
        timeline = simulator.run(operations).timeline
        found.append((max((moment.inside for moment in timeline), default=simulator.live), simulator.live))
    return found


class _Simulator:
    def __init__(self, costs: Costs, purpose: str, shards: int, rank: int) -> None:
        self.costs, self.purpose, self.shards, self.rank = costs, purpose, shards, rank
        self.buffer_of: dict[Value, int] = {}
        self.names: dict[int, int] = {}  # buffer -> number of values that name it
        self.bytes_of: dict[int, tuple[int, Holder]] = {}
        self.held = {static_holder(name): nbytes for name, nbytes in costs.static.items() if nbytes}
        owners = (owner for category, owner in map(static_holder, costs.static) if category == "optimizer")
        self.optimizer = next(owners, "optimizer")
        self.live = self.inside = self.highest = sum(costs.static.values())
        self.at_peak = self.held.copy()
        self.flops = 0
        self.times: list[float] = []  # of each operation that takes some
        self.merges: dict[int, tuple[Merge, ...]] = {}
        self.in_place: set[int] = set()
        self.heap: dict[int, int] = {}
        self.dropped_next: set[Value] = set()  # by the Drops that follow the operation at once
        self.roots: tuple[Value, ...] = ()
        self.buckets = 0  # that this plan reduces
        self.trained = {number for number, step in enumerate(costs.steps) if step.trains}
        self.shard = -1
        self.layer_by_layer = False  # whether the cotangents of the shard at work are added to its sibling's at once
        self.next_buffer = self.place = 0
        self.lives: list[Buffer] = []
        self.life_of: dict[int, int] = {}  # buffer -> its place in lives
        self.undone: set[int] = set()  # steps of the shard at work whose Backward has run
        self.written: set[Value] = set()  # of the shard at work, to the end
        self.moving: dict[Value, float] = {}  # values that are being written or read, and when that ends, in seconds
        self.arriving: set[Value] = set()  # those that are being read
        self.on_disk: dict[Value, int] = {}
        self.file_nbytes = self.disk_nbytes = 0
        self.clock = self.stall = self.disk_free = 0.0  # seconds

    def run(self, operations: Sequence[Operation]) -> Simulation:
        static, before, timeline = self.live, self.held.copy(), []
        paths = [step.path for step in self.costs.steps]
        self.buckets = sum(isinstance(operation, Reduce) for operation in operations)
        for place, operation in enumerate(operations):
            self.inside, self.place, began = self.live, place, self.clock
            self.dropped_next = _drops_after(operations, place)
            try:
                self.do(place, operation)
            except (PlanError, IndexError) as error:
                raise PlanError(f"operation {place} ({label_or_repr(operation, paths)}): {error}") from error
            timeline.append(
                Moment(label(operation, paths), self.live, self.inside, self.held.copy(), self.clock - began)
            )
        if self.moving:
            raise PlanError(
                f"the plan ends while {', '.join(map(str, self.moving))} are written or read; wait for them"
            )
        for number, buffer in enumerate(self.lives):
            if buffer.last < 0:  # it outlives the plan
                self.lives[number] = replace(buffer, last=len(operations) - 1)
        left, in_place = tuple(self.buffer_of), frozenset(self.in_place)
        buffers = tuple(self.lives)
        return Simulation(
            tuple(timeline), static, before, self.at_peak, self.merges, in_place, left, self.roots, buffers, self.flops, self.heap,
            math.fsum(self.times) + self.stall, self.on_disk, self.file_nbytes, self.disk_nbytes, self.stall,
        )  # fmt: skip

    def do(self, place: int, operation: Operation) -> None:
        match operation:
            case Load(shard):
                if stale := [str(value) for value in self.buffer_of if value.kind != "g"]:
                    raise PlanError(f"still holds {', '.join(stale)} of the shard before")
                self.undone.clear()
                self.written.clear()
                self.make(output(BATCH), self.costs.batch.nbytes, "batch", "batch")
                pieces = tuple(spec.nbytes for spec in self.costs.target_specs)
                self.make(TARGETS, self.costs.targets_nbytes, "batch", "targets", pieces)
                if self.purpose != "evaluate":
                    self.load_gradient(shard)
            case Forward(step, keep):
                self.forward(step, keep)
            case Loss():
                self.loss()
            case Backward(step):
                self.merges[place] = self.backward(step)
            case Drop(value):
                if value.kind == "d" and value.at not in self.undone:
                    raise PlanError(f"drops {value} before Backward({value.at}), which loses a part of the gradient")
                self.drop(value)
            case Offload(value):
                self.offload(value)
            case Fetch(value):
                self.fetch(value)
            case Wait(value):
                self.wait(value)
            case Accumulate(first, count):
                self.need(gradient(first + count, count))
                if self.layer_by_layer and count == 1 and self.undone != self.trained:
                    raise PlanError("comes before the shard's last Backward, so a part of the gradient is lost")
                self.rename(gradient(first, count), gradient(first, 2 * count))
            case Reduce(bucket):
                self.reduce(bucket)
            case Norm():
                self.need(gradient(0, self.shards))
                self.peak_at(("workspace", "norm", self.costs.norm_workspace))
                self.scratch("norm", self.costs.norm_workspace)
            case Update():
                self.need(gradient(0, self.shards))
                self.peak_at(("workspace", self.optimizer, self.costs.update_workspace))
                self.scratch("optimizer", self.costs.update_workspace)

    def load_gradient(self, shard: int) -> None:
        """Makes g[shard,1]: a whole gradient, or, where the sibling's is there to be added to, what no step finishes alone."""
        self.shard = shard
        self.layer_by_layer = shard % 2 == 1 and gradient(shard - 1, 1) in self.buffer_of
        if self.layer_by_layer:
            self.make(gradient(shard, 1), self.costs.rest_nbytes, "cotangents", f"shard {shard}")
        else:
            self.make(gradient(shard, 1), self.costs.gradient_nbytes, "gradients", f"shard {shard}")

    def forward(self, step: int, keep: int | None) -> None:
        cost = self.costs.steps[step]
        footprint = cost.footprint
        self.need(*map(output, cost.inputs))
        if keep is not None and (keep != 0 or not footprint.own):
            raise PlanError(f"keep is {keep}, but the step has {'one option' if footprint.own else 'nothing to keep'}")
        self.flops += footprint.forward_flops
        self.took(self.costs.seconds(step).forward)
        first = output(cost.inputs[0])
        over = footprint.forward_in_place and self.may_overwrite(first)
        made = 0 if footprint.output_aliases_input or over else footprint.output.nbytes
        self.peak_at(
            ("activations", cost.path, made),
            ("residuals", cost.path, footprint.own_nbytes),
            ("workspace", cost.path, footprint.forward_workspace + self.on_heap(footprint.forward_heap)),
        )
        if footprint.output_aliases_input or over:
            self.alias(output(step), first)
        else:
            self.make(output(step), footprint.output.nbytes, "activations", cost.path)
        pieces = tuple(spec.nbytes for spec in footprint.own)
        if keep is not None:
            self.make(residuals(step), footprint.own_nbytes, "residuals", cost.path, pieces)
        elif pieces:
            self.lives.append(Buffer("residuals", cost.path, pieces, self.place, self.place))
        self.scratch(cost.path, footprint.forward_workspace)

    def may_overwrite(self, value: Value) -> bool:
        """Whether a value has its buffer alone and is dropped at once; notes that it is overwritten then."""
        if self.names[self.buffer_of[value]] != 1 or value not in self.dropped_next:
            return False
        self.in_place.add(self.place)
        return True

    def loss(self) -> None:
        last, loss = len(self.costs.steps) - 1, self.costs.loss
        self.need(output(last), TARGETS)
        own = ("residuals", "loss", loss.own_nbytes)
        self.peak_at(own, ("workspace", "loss", loss.forward_workspace))
        if loss.own:
            pieces = tuple(spec.nbytes for spec in loss.own)
            self.lives.append(Buffer("residuals", "loss", pieces, self.place, self.place))
        score = loss.score_workspace if self.purpose == "evaluate" else 0
        self.peak_at(own, ("workspace", "loss", score))
        self.scratch("loss", max(loss.forward_workspace, loss.backward_workspace, score))
        self.flops += loss.forward_flops
        self.took(self.costs.loss_seconds.forward)
        if self.purpose != "evaluate":
            over = loss.in_place and self.may_overwrite(output(last))
            size = 0 if over else self.costs.output(last).nbytes
            self.peak_at(own, ("cotangents", "loss", size), ("workspace", "loss", loss.backward_workspace))
            self.flops += loss.backward_flops
            self.took(self.costs.loss_seconds.backward)
            if over:
                self.alias(cotangent(last), output(last))
            else:
                self.make(cotangent(last), size, "cotangents", "loss")

    def backward(self, step: int) -> tuple[Merge, ...]:
        cost = self.costs.steps[step]
        footprint = cost.footprint
        if not cost.trains:
            raise PlanError("neither the step nor one before it has parameters, so it has no Backward")
        self.need(cotangent(step), *backward_needs(self.costs, step))
        self.undone.add(step)
        self.flops += footprint.backward_flops
        self.took(self.costs.seconds(step).backward)
        made: list[int | None] = []  # the new cotangents' buffers
        over = footprint.backward_in_place and cost.wanted == (True,) and self.may_overwrite(cotangent(step))
        new = [0 if aliases or over else nbytes for nbytes, aliases in self._cotangents(step)]
        scratch = footprint.backward_workspace
        if self.layer_by_layer:
            self.need(gradient(self.shard - 1, 1))
            scratch += cost.gradient_nbytes
        self.peak_at(
            ("cotangents", cost.path, sum(new)),
            ("workspace", cost.path, scratch + self.on_heap(footprint.backward_heap)),
        )
        self.scratch(cost.path, scratch)
        for number, (wanted, aliases) in enumerate(zip(cost.wanted, footprint.cotangent_aliases, strict=True)):
            if not wanted:
                made.append(None)
            elif aliases or over:
                made.append(self.buffer_of[cotangent(step)])
            else:
                made.append(self.allocate(self.costs.cotangent(step, number).nbytes, "cotangents", cost.path))
        # Each new cotangent is a name of its own until it is merged.
        for buffer in made:
            if buffer is not None:
                self.names[buffer] += 1
        # What was overwritten is still named by the value that is dropped next, which does not count.
        return tuple(
            self.merge(source, buffer, int(over), footprint.extent(number) is not None)
            for number, (source, buffer) in enumerate(zip(cost.inputs, made, strict=True))
        )

    def _cotangents(self, step: int) -> list[tuple[int, bool]]:
        """The bytes of the inputs' cotangents that are wanted, and whether each is the output's cotangent itself."""
        cost = self.costs.steps[step]
        each = enumerate(zip(cost.footprint.cotangent_aliases, cost.wanted, strict=True))
        return [(self.costs.cotangent(step, number).nbytes, aliases) for number, (aliases, wanted) in each if wanted]

    def merge(self, source: int, new: int | None, stale: int, partial: bool) -> Merge:
        """Makes buffer `new` the cotangent of a[source] or, if it holds only a part, of that; or adds it to the earlier one."""
        if new is None:
            return Merge.NONE
        value = cotangent(source)
        old = self.buffer_of.get(value)
        if old is None and not partial:
            self.buffer_of[value] = new
            return Merge.BIND
        if old is not None and self.names[old] == 1:
            self.forget(new)
            return Merge.INTO_OLD
        if old is not None and not partial and self.names[new] - stale == 1:
            self.forget(old)
            self.buffer_of[value] = new
            return Merge.INTO_NEW
        fresh = self.allocate(self.costs.output(source).nbytes, "cotangents", "sum")
        self.names[fresh] += 1
        self.forget(new)
        self.buffer_of[value] = fresh
        if old is None:
            return Merge.SPREAD
        self.forget(old)
        return Merge.FRESH

    def offload(self, value: Value) -> None:
        if value.kind not in "ar":
            raise PlanError(f"only outputs and residuals are offloaded, and {value} is neither")
        self.need(value)
        if value in self.written or value in self.moving:
            raise PlanError(f"{value} is on disk already")
        # While it is written it has a name more: nobody may overwrite it.
        self.names[self.buffer_of[value]] += 1
        nbytes = sum(self.pieces_of(value))
        if value not in self.on_disk:
            self.on_disk[value] = self.file_nbytes
            self.file_nbytes += -(-nbytes // _FILE_ALIGNMENT) * _FILE_ALIGNMENT
        self.move(value, nbytes)

    def fetch(self, value: Value) -> None:
        if value not in self.written:
            raise PlanError(f"{value} is not on disk; offload it and wait for that")
        pieces = self.pieces_of(value)
        self.make(value, sum(pieces), *holder_of(value, self.costs), pieces)
        self.arriving.add(value)
        self.move(value, sum(pieces))

    def wait(self, value: Value) -> None:
        if value not in self.moving:
            raise PlanError(f"{value} is neither being written nor read")
        late = max(0.0, self.moving.pop(value) - self.clock)
        self.stall += late
        self.clock += late
        if value in self.arriving:
            self.arriving.remove(value)
        else:
            self.written.add(value)
            self.forget(self.buffer_of[value])

    def move(self, value: Value, nbytes: int) -> None:
        """The disk does one thing after the other."""
        self.moving[value] = self.disk_free = max(self.clock, self.disk_free) + nbytes / self.costs.disk_bandwidth
        self.disk_nbytes += nbytes

    def pieces_of(self, value: Value) -> tuple[int, ...]:
        """The bytes of each array of an output or of residuals."""
        specs = (self.costs.output(value.at),) if value.kind == "a" else self.costs.steps[value.at].footprint.own
        return tuple(spec.nbytes for spec in specs)

    def reduce(self, bucket: int) -> None:
        if bucket + 1 != self.buckets:
            return  # it has begun; the last one waits for all
        self.roots = tuple(sorted(value for value in self.buffer_of if value.kind == "g"))
        if not self.roots:
            raise PlanError("there is no gradient to reduce")
        if self.rank == 0:
            self.rename(self.roots[0], gradient(0, self.shards))
        else:
            # It lies in the memory of rank 0, whose ledger counts it.
            self.make(gradient(0, self.shards), 0, "gradients", "rank 0")

    def need(self, *values: Value) -> None:
        missing = [str(value) for value in values if value not in self.buffer_of]
        if missing:
            raise PlanError(f"needs {', '.join(missing)}, which is not held")
        if self.arriving and (early := [str(value) for value in values if value in self.arriving]):
            raise PlanError(f"needs {', '.join(early)}, which is still being read; wait for it")

    def make(self, value: Value, nbytes: int, category: str, owner: str, pieces: tuple[int, ...] = ()) -> None:
        self.bind(value, self.allocate(nbytes, category, owner, pieces))

    def alias(self, value: Value, other: Value) -> None:
        self.bind(value, self.buffer_of[other])

    def bind(self, value: Value, buffer: int) -> None:
        if value in self.buffer_of:
            raise PlanError(f"makes {value}, which is still held; drop it first")
        self.buffer_of[value] = buffer
        self.names[buffer] += 1

    def rename(self, value: Value, name: Value) -> None:
        self.need(value)
        if name != value:
            self.bind(name, self.buffer_of[value])
            self.drop(value)

    def drop(self, value: Value) -> None:
        if value in self.moving:
            raise PlanError(f"drops {value} while it is being written or read; wait for it first")
        self.need(value)
        self.forget(self.buffer_of.pop(value))

    def allocate(self, nbytes: int, category: str, owner: str, pieces: tuple[int, ...] = ()) -> int:
        self.next_buffer += 1
        self.names[self.next_buffer] = 0
        holder = (category, owner)
        self.bytes_of[self.next_buffer] = nbytes, holder
        self.life_of[self.next_buffer] = len(self.lives)
        self.lives.append(Buffer(category, owner, pieces or (nbytes,), self.place, -1))
        if nbytes:
            self.held[holder] = self.held.get(holder, 0) + nbytes
        self.live += nbytes
        self.peak_at()
        return self.next_buffer

    def forget(self, buffer: int) -> None:
        """Takes one name from a buffer, which dies with its last."""
        self.names[buffer] -= 1
        if not self.names[buffer]:
            nbytes, holder = self.bytes_of.pop(buffer)
            del self.names[buffer]
            number = self.life_of.pop(buffer)
            self.lives[number] = replace(self.lives[number], last=self.place)
            self.live -= nbytes
            if nbytes:
                self.held[holder] -= nbytes
                if not self.held[holder]:
                    del self.held[holder]

    def scratch(self, owner: str, nbytes: int) -> None:
        """Notes scratch that lives during the operation."""
        if nbytes:
            self.lives.append(Buffer("workspace", owner, (nbytes,), self.place, self.place))

    def on_heap(self, nbytes: int) -> int:
        """Notes what the operation's rule takes from plain NumPy, and returns it."""
        if nbytes:
            self.heap[self.place] = nbytes
        return nbytes

    def took(self, seconds: float) -> None:
        """Notes what an operation takes."""
        self.times.append(seconds)
        self.clock += seconds

    def peak_at(self, *more: tuple[str, str, int]) -> None:
        """What is held and some (category, owner, bytes) more live at once."""
        live = self.live
        for _, _, nbytes in more:
            live += nbytes
        if live > self.inside:
            self.inside = live
        if live > self.highest:
            self.highest, self.at_peak = live, self.held.copy()
            for category, owner, nbytes in more:
                if nbytes:
                    self.at_peak[category, owner] = self.at_peak.get((category, owner), 0) + nbytes


def _drops_after(operations: Sequence[Operation], place: int) -> set[Value]:
    """The values that are dropped right after an operation."""
    found: set[Value] = set()
    place += 1
    while place < len(operations) and isinstance(drop := operations[place], Drop):
        found.add(drop.value)
        place += 1
    return found


def static_holder(name: str) -> Holder:
    """Reads "category/owner"."""
    category, _, owner = name.partition("/")
    return category, owner


def holder_of(value: Value, costs: Costs) -> Holder:
    """Under which category and owner the ledger has an output or residuals that are fetched."""
    if value == output(BATCH):
        return "batch", "batch"
    return "activations" if value.kind == "a" else "residuals", costs.steps[value.at].path


def backward_needs(costs: Costs, step: int) -> list[Value]:
    """The values besides d[step] that Backward(step) reads."""
    cost = costs.steps[step]
    footprint = cost.footprint
    each = zip(cost.inputs, footprint.needs_input, strict=True)
    needs = [output(source) for source, needed in each if needed]
    if footprint.needs_output:
        needs.append(output(step))
    if footprint.own:
        needs.append(residuals(step))
    return needs


def label_or_repr(operation: Operation, paths: Sequence[str]) -> str:
    """Names an operation even where its step does not exist."""
    try:
        return label(operation, paths)
    except IndexError:
        return repr(operation)
