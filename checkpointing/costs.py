"""Costs: the bytes, FLOPs and times that a plan is made from, known without an array."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from checkpointing import costs_schema
from checkpointing.probing import Question, measure
from checkpointing.reduction_tree import added_by_layer, shards_of, sums_at
from framework.layers import BATCH, Footprint, Layer, Spec, Step, flatten, input_specs, layout_of
from framework.losses import Loss, LossFootprint
from framework.optimizers import Optimizer, norm_workspace_nbytes
from framework.parameters import Layout

#: The speed that the time model assumes. It scales all times alike and changes no choice.
MODELLED_FLOPS_PER_SECOND = 50e9
#: What a disk is assumed to write or read, in bytes a second, where nobody measured it: a plain SSD.
ASSUMED_DISK_BANDWIDTH = 500_000_000


class Seconds(NamedTuple):
    """The times of one operation, in seconds."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Times:
    """Measured times; bytes never depend on them.

    Attributes:
        source: Where they were measured, in words.
        steps: Of each leaf step.
        loss: Of the loss.
    """

    source: str
    steps: tuple[Seconds, ...]
    loss: Seconds


@dataclass(frozen=True)
class StepCost:
    """A leaf step as the planner sees it.

    Attributes:
        path: Its name.
        kind: The layer's kind.
        inputs: For each input, the step that makes it, or `BATCH`.
        stage: The element of the outermost chain it belongs to.
        footprint: Its bytes and FLOPs.
        trains: Whether it or a step before it has parameters, so that it has a Backward.
        wanted: For each input, whether its cotangent is needed.
        gradient_nbytes: Bytes of the cotangents of parameters that this step alone uses.
    """

    path: str
    kind: str
    inputs: tuple[int, ...]
    stage: int
    footprint: Footprint
    trains: bool
    wanted: tuple[bool, ...]
    gradient_nbytes: int = 0


class UpdateCost(NamedTuple):
    """What an optimizer takes on a rank, and what the rank holds otherwise than others.

    Attributes:
        holder: Who holds its state, as in `Costs.static`.
        state: Bytes of its state.
        workspace: Bytes of scratch of an update.
        held: Bytes that live throughout instead of what `Costs.static` says, by "category/owner".
    """

    holder: str
    state: int
    workspace: int
    held: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, optimizer: Optimizer, layout: Layout, part: slice | None = None) -> UpdateCost:
        """Returns what it takes for some elements of the parameters; for all, if nothing is said."""
        holder = f"optimizer/{type(optimizer).__name__}"
        return cls(holder, optimizer.state_nbytes(layout, part), optimizer.workspace_nbytes(layout, part))


@dataclass(frozen=True)
class Costs:
    """All that a plan is made from.

    Attributes:
        steps: The leaf steps in order.
        batch: Spec of a shard's input.
        targets: Spec of a shard's targets.
        loss: Bytes and FLOPs of the loss.
        weights: Spec of the weights of a shard's examples; None where each counts as one, so that there is no such array.
        gradient_nbytes: Bytes of one gradient buffer.
        norm_workspace: Scratch of the global norm.
        update_workspace: Scratch of the optimizer.
        static: Bytes that live through the whole step, by "category/owner".
        times: Measured times; None where the time is modelled from FLOPs.
        disk_bandwidth: Bytes a second that offloaded values are written or read at; `checkpointing.offload.measure_disk` measures it.
    """

    steps: tuple[StepCost, ...]
    batch: Spec
    targets: Spec
    loss: LossFootprint
    weights: Spec | None = None
    gradient_nbytes: int = 0
    norm_workspace: int = 0
    update_workspace: int = 0
    static: Mapping[str, int] = field(default_factory=dict)
    times: Times | None = None
    disk_bandwidth: int = ASSUMED_DISK_BANDWIDTH

    @property
    def source(self) -> str:
        """Where times come from, in words: measured or modelled."""
        if self.times is None:
            return f"modelled: FLOPs at {MODELLED_FLOPS_PER_SECOND / 1e9:g} GFLOP/s"
        return f"measured: {self.times.source}"

    @property
    def target_specs(self) -> tuple[Spec, ...]:
        """Specs of the arrays of the value t: the targets, and the weights of their examples if there are any."""
        return (self.targets,) if self.weights is None else (self.targets, self.weights)

    @property
    def targets_nbytes(self) -> int:
        """Bytes of the value t."""
        return sum(spec.nbytes for spec in self.target_specs)

    def seconds(self, step: int) -> Seconds:
        """The times of a step, measured or modelled."""
        if self.times is not None:
            return self.times.steps[step]
        footprint = self.steps[step].footprint
        return _modelled(footprint.forward_flops, footprint.backward_flops)

    @property
    def loss_seconds(self) -> Seconds:
        """The times of the loss, measured or modelled."""
        return (
            self.times.loss if self.times is not None else _modelled(self.loss.forward_flops, self.loss.backward_flops)
        )

    @property
    def rest_nbytes(self) -> int:
        """Bytes of a gradient that no step finishes alone: of shared parameters, and statistics."""
        return self.gradient_nbytes - sum(step.gradient_nbytes for step in self.steps)

    def held_gradients(self, shards: range, shard: int) -> int:
        """Returns the bytes of gradients that a rank holds while it works on one of its shards."""
        rest = self.rest_nbytes if added_by_layer(shards, shard) else 0
        return sums_at(shards, shard) * self.gradient_nbytes + rest

    def of_the_pass(self, shards: int, world: int) -> Costs:
        """Returns the costs by which a shard's pass is planned: those of the shard beside which a rank holds most gradients.

        A pass that fits beside these fits beside all: where a shard's cotangents are added layer by layer, the scratch for it is never
        larger than the buffer that it saves.
        """
        each = (shards_of(shards, world, rank) for rank in range(world))
        _, by_layer = max(
            (self.held_gradients(mine, shard), added_by_layer(mine, shard)) for mine in each for shard in mine
        )
        return self.layer_by_layer() if by_layer else self

    def layer_by_layer(self) -> Costs:
        """Returns the costs of a shard whose cotangents are added layer by layer: each backward has scratch for its parameters'."""

        def with_scratch(step: StepCost) -> StepCost:
            workspace = step.footprint.backward_workspace + step.gradient_nbytes
            return replace(step, footprint=replace(step.footprint, backward_workspace=workspace))

        return replace(self, steps=tuple(map(with_scratch, self.steps)))

    @property
    def stages(self) -> int:
        return self.steps[-1].stage + 1

    def steps_of(self, first_stage: int, last_stage: int) -> range:
        """The steps of stages first..last."""
        return range(self._starts[first_stage], self._starts[last_stage + 1])

    @cached_property
    def _starts(self) -> list[int]:
        """The first step of each stage, and the number of steps."""
        stages = [step.stage for step in self.steps]
        return [*(stages.index(stage) for stage in range(self.stages)), len(stages)]

    def output(self, step: int) -> Spec:
        """Spec of the output of a step, or of the batch."""
        return self.batch if step == BATCH else self.steps[step].footprint.output

    def cotangent(self, step: int, number: int) -> Spec:
        """Spec of what the Backward of a step makes for one of its inputs: the cotangent or the part of it that is not zero."""
        cost = self.steps[step]
        return cost.footprint.cotangent(number, self.output(cost.inputs[number]))

    def with_times(self, times: Times | None) -> Costs:
        """Returns the same costs with other times; None for modelled ones."""
        return replace(self, times=times)

    def with_update(self, update: UpdateCost) -> Costs:
        """Returns the same costs on a rank on which the optimizer takes this: it holds the state of a part of the parameters."""
        # One without state is named all the same: its scratch is counted under its name.
        held = dict(update.held)
        static = {holder: nbytes for holder, nbytes in {**self.static, **held}.items() if nbytes or holder not in held}
        return replace(self, static={**static, update.holder: update.state}, update_workspace=update.workspace)

    def to_json(self) -> dict[str, Any]:
        """Returns the costs as JSON-ready data (docs/costs.md has the schema)."""
        return costs_schema.written(self)

    @classmethod
    def from_json(cls, data: Any) -> Costs:
        """Reads what `to_json` wrote, or what describes a chain profiled elsewhere in the same schema.

        Raises:
            ValueError: It is no such data; the message says where, what was received, and what to write.
        """
        read = costs_schema.read(data)
        steps = tuple(StepCost(**step) for step in read.steps)
        times = None
        if read.seconds is not None:
            times = Times(read.source, tuple(Seconds(*pair) for pair in read.seconds), Seconds(*read.loss_seconds))
        return cls(steps, times=times, **read.whole)

    def save(self, path: Path | str) -> None:
        """Writes the costs as a JSON file."""
        Path(path).write_text(json.dumps(self.to_json()) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Costs:
        """Reads a JSON file of costs.

        Raises:
            ValueError: See `from_json`.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON file: {error}") from error
        try:
            return cls.from_json(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _modelled(forward_flops: int, backward_flops: int) -> Seconds:
    return Seconds(forward_flops / MODELLED_FLOPS_PER_SECOND, backward_flops / MODELLED_FLOPS_PER_SECOND)


def costs_of(
    layer: Layer,
    loss: Loss,
    batch: Spec,
    targets: Spec,
    optimizer: Optimizer | None = None,
    static: Mapping[str, int] | None = None,
    training: bool = True,
    weighted: bool = False,
) -> Costs:
    """Returns the costs of one shard's pass and of a step's end.

    What layers of one's own take from plain NumPy is measured, in a process of its own; see `checkpointing.probing`.

    Args:
        layer: The model.
        loss: Its loss.
        batch: Spec of a shard's input.
        targets: Spec of a shard's targets.
        optimizer: Who updates the parameters; None where nothing does.
        static: More bytes that live through the step, by "category/owner" (data, communication).
        training: False for an evaluation pass.
        weighted: Whether examples come with weights, as those of a padded batch do.

    Raises:
        ValueError: A step does not take its input, or fails when it is measured (the message names it), or nothing has parameters.
    """
    steps = flatten(layer)
    specs = input_specs(steps, batch, training)
    layout = layout_of(steps, specs)
    if not layout.size:
        raise ValueError("the model has no parameters, so there is nothing to train")
    found = step_costs(steps, specs, training, layout)
    held = {"parameters/model": layout.nbytes, "parameters/state": layout.state.nbytes, **(static or {})}
    last = found[-1].footprint.output
    costs = Costs(
        steps=found,
        batch=batch,
        targets=targets,
        loss=loss.footprint(last, targets),
        # Of the outputs' dtype: a product of two dtypes would go through NumPy's buffers.
        weights=Spec((batch.shape[0],), last.dtype) if weighted else None,
        gradient_nbytes=layout.gradients.nbytes,
        norm_workspace=norm_workspace_nbytes(layout),
        static={holder: nbytes for holder, nbytes in held.items() if nbytes},
    )
    return costs if optimizer is None else costs.with_update(UpdateCost.of(optimizer, layout))


def step_costs(steps: tuple[Step, ...], specs: list[Any], training: bool, layout: Layout) -> tuple[StepCost, ...]:
    """Returns the costs of leaf steps, given their inputs' specs and the layout of their parameters; see `costs_of`."""
    trains: dict[int, bool] = {BATCH: False}
    found = []
    for number, (step, x) in enumerate(zip(steps, specs, strict=True)):
        inputs = x if isinstance(x, tuple) else (x,)
        wanted = tuple(
            trains[source] and spec.dtype.kind == "f" for source, spec in zip(step.inputs, inputs, strict=True)
        )
        trains[number] = bool(step.layer.parameters(x)) or any(wanted)
        footprint = step.layer.footprint(x, training)
        found.append(
            StepCost(
                step.path,
                step.layer.kind,
                step.inputs,
                step.stage,
                footprint,
                trains[number],
                wanted,
                layout.own_nbytes(step.path),
            )
        )
    return _measured(steps, specs, found, training)


def _measured(steps: tuple[Step, ...], specs: list[Any], costs: list[StepCost], training: bool) -> tuple[StepCost, ...]:
    """The costs with measured bytes in the footprints that leave them open."""
    questions = {
        number: Question(
            steps[number].layer, specs[number], training, cost.wanted if training and cost.trains else None
        )
        for number, cost in enumerate(costs)
        if cost.footprint.unmeasured
    }
    names = [f"step {costs[number].path!r}" for number in questions]
    for number, heap in zip(questions, measure(list(questions.values()), names), strict=True):
        footprint = replace(
            costs[number].footprint,
            forward_heap=heap.forward,
            backward_heap=heap.backward,
            heap_spread=heap.spread,
            unmeasured=False,
        )
        costs[number] = replace(costs[number], footprint=footprint)
    return tuple(costs)
