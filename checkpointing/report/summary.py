"""`summary`: a model as a table, layer by layer, with what a training step of it holds, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from checkpointing.budgets import parse_budget
from checkpointing.costs import Costs, StepCost, costs_of, step_costs
from checkpointing.policies import Policy, StoreAll, parse_policy
from checkpointing.report.build import parameters_by_step
from checkpointing.report.tables import html_table, text_table
from checkpointing.runs import RunPlans, plan_run
from framework.layers import Chain, Composite, Layer, Spec, flatten, input_specs
from framework.layers.steps import layout_of
from framework.losses import Loss, MeanSquaredError
from framework.memory import Array
from framework.models import Model
from framework.optimizers import AdamW, Optimizer
from framework.parameters import Layout
from framework.sizes import format_size

_HEADINGS = ("layer", "kind", "output", "parameters", "output bytes", "residuals", "workspace", "FLOPs")


@dataclass(frozen=True)
class Row:
    """One leaf step, for one shard of the batch.

    Attributes:
        path: Its name.
        kind: Its layer's class.
        output_shape: Shape of its output.
        parameters: How many numbers it learns; shared ones count at the first step that uses them.
        output, residuals, workspace: Bytes of its output, of what it keeps for its VJP besides input and output, and the larger
            scratch of forward and backward.
        forward_flops, backward_flops: Floating-point operations.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    output: int
    residuals: int
    workspace: int
    forward_flops: int
    backward_flops: int


@dataclass(frozen=True)
class Totals:
    """The whole model, and a training step of it.

    Attributes:
        parameters: How many numbers it learns.
        parameter_bytes, state_bytes: Of the parameters, and of what layers keep from step to step (BatchNorm's statistics).
        gradient_bytes: Of one gradient.
        optimizer_bytes: Of the optimizer's state.
        forward_flops, backward_flops: Of one forward and backward of each layer over the whole batch; without recomputation.
        batch: What the model reads, as ``float32[8, 64]``.
        shards: Into how many equal parts a step cuts the batch.
        loss: The loss that the step is planned with; None where nothing is trained.
        optimizer: The optimizer that it is planned with.
        policy: What is kept and recomputed.
        peak_bytes: The most bytes alive in a training step, as planned; the ledger counts the same. None where nothing is trained.
        activation_bytes: Those of them that are neither parameters, gradients nor optimizer state.
        store_all_activation_bytes: The same where nothing is recomputed.
        step_flops: Of a training step, recomputation included.
    """

    parameters: int
    parameter_bytes: int
    state_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    forward_flops: int
    backward_flops: int
    batch: str
    shards: int
    loss: str | None = None
    optimizer: str | None = None
    policy: str | None = None
    peak_bytes: int | None = None
    activation_bytes: int | None = None
    store_all_activation_bytes: int | None = None
    step_flops: int | None = None


@dataclass(frozen=True)
class Summary:
    """A model as plain data: `str` and a notebook show it as a table.

    Attributes:
        name: The model's name, or its layer's class.
        rows: Its leaf steps, in the order in which they run.
        totals: The whole.
    """

    name: str
    rows: tuple[Row, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """Returns the same as JSON-ready data."""
        rows = [{**asdict(row), "output_shape": list(row.output_shape)} for row in self.rows]
        return {"name": self.name, "rows": rows, "totals": asdict(self.totals)}

    def told(self) -> list[tuple[str, str]]:
        """Returns the totals in words: a name and a value each."""
        totals = self.totals
        told = [
            ("input", totals.batch + (f" in {totals.shards} shards" if totals.shards > 1 else "")),
            ("parameters", f"{totals.parameters:,}, {_bytes(totals.parameter_bytes)}"),
        ]
        if totals.state_bytes:
            told.append(("state", _bytes(totals.state_bytes)))
        told.append(("FLOPs", f"{totals.forward_flops:,} forward, {totals.backward_flops:,} backward"))
        if totals.peak_bytes is None:
            return [*told, ("training", "nothing to train: the model has no parameters")]
        assert totals.activation_bytes is not None and totals.store_all_activation_bytes is not None
        part = totals.activation_bytes / max(1, totals.store_all_activation_bytes)
        return [
            *told,
            ("gradient", _bytes(totals.gradient_bytes)),
            ("optimizer", f"{_bytes(totals.optimizer_bytes)} of {totals.optimizer}"),
            ("policy", f"{totals.policy}, with the loss {totals.loss}"),
            ("peak", f"{_bytes(totals.peak_bytes)} in a training step"),
            ("activations", f"{_bytes(totals.activation_bytes)} of that, {part:.0%} of store-all's"),
        ]

    def __str__(self) -> str:
        cells = [_cells(row) for row in self.rows]
        table = text_table(_HEADINGS, cells, left=3)
        width = max(map(len, table))
        told = [f"{name:>11}  {value}" for name, value in self.told()]
        return "\n".join([self.name, *table, "─" * width, *told])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return (
            html_table(_HEADINGS, [_cells(row) for row in self.rows], left=3, caption=self.name)
            + html_table((), self.told(), left=2)
        )  # fmt: skip


def summary(
    model: Model | Layer,
    x: Array | Spec | Sequence[int],
    dtype: DTypeLike | None = None,
    *,
    policy: str | Policy | None = None,
    budget: str | None = None,
    loss: Loss | None = None,
    targets: Array | Spec | None = None,
    optimizer: Optimizer | None = None,
    shards: int = 1,
) -> Summary:
    """Returns a model as a table: its layers, what they hold, and the peak of a training step, without making an array.

    Args:
        model: A `Model`, or a chain or layer.
        x: What it reads: an array or a `Spec`, or a shape; its first axis counts the examples.
        dtype: Of a shape; float32 by default.
        policy: What to keep and what to recompute, as in `checkpointing.parse_policy`; by default everything is kept, unless there is a budget.
        budget: The most bytes of a training step, "engine:64MiB" or "engine:60%"; see `checkpointing.parse_budget`.
        loss: By default the model's own, or the mean squared error where it has none.
        targets: What the loss compares with, as an array or a spec; by default what the loss takes.
        optimizer: By default AdamW.
        shards: Equal parts of the batch that a step works on one after the other; rows are of one of them.

    Returns:
        Rows and totals in bytes and FLOPs. The peak is that of the engine's arrays: parameters, gradients, optimizer state, the batch and
        all that the step makes.

    Raises:
        TypeError: `model` is no model, or `x` is neither an array, nor a spec, nor a shape.
        ValueError: A layer does not take its input, the loss does not take the output, or the batch does not divide into the shards.
        InfeasibleBudget: The policy does not fit the budget, or nothing does.

    >>> from framework import Chain, CrossEntropy, Linear, ReLU
    >>> table = summary(Chain(Linear(256), ReLU(), Linear(10)), (64, 784), loss=CrossEntropy())
    >>> table.totals.parameters, table.totals.peak_bytes
    (203530, 3653792)
    >>> summary(Chain(Linear(3)), (4, 8))
    Chain
    layer  kind    output  parameters  output bytes  residuals  workspace  FLOPs
    ─────  ──────  ──────  ──────────  ────────────  ─────────  ─────────  ─────
    0      Linear  4×3             27            48          0          0    576
    ────────────────────────────────────────────────────────────────────────────
          input  float32[4, 8]
     parameters  27, 108 bytes (108 B)
          FLOPs  192 forward, 384 backward
       gradient  108 bytes (108 B)
      optimizer  216 bytes (216 B) of AdamW
         policy  store-all, with the loss MeanSquaredError
           peak  33,208 bytes (32.4 KiB) in a training step
    activations  32,776 bytes (32.0 KiB) of that, 100% of store-all's
    """
    layer, name = _layer_of(model)
    batch = _shard(_spec_of(x, dtype), shards)
    steps = flatten(layer)
    specs = input_specs(steps, batch)
    layout = layout_of(steps, specs)
    optimizer = optimizer or AdamW()
    if not layout.size:
        found = step_costs(steps, specs, True, layout)
        return Summary(name, _rows(found, layout), _totals(found, layout, batch, shards, 0))
    loss = loss or (model.loss if isinstance(model, Model) else MeanSquaredError())
    wanted = _shard(_spec_of(targets), shards) if targets is not None else None
    output = steps[-1].layer.footprint(specs[-1]).output
    costs = costs_of(layer, loss, batch, wanted or _targets_of(loss, output), optimizer)
    plans = _planned(costs, policy, budget, shards)
    rows = _rows(costs.steps, layout)
    state = optimizer.state_nbytes(layout)
    return Summary(name, rows, _totals(costs.steps, layout, batch, shards, state, loss, optimizer, plans))


def _planned(costs: Costs, policy: str | Policy | None, budget: str | None, shards: int) -> RunPlans:
    chosen = parse_policy(policy) if isinstance(policy, str) else policy
    limit = None
    if budget is not None:
        limit = parse_budget(budget).resolve(plan_run(costs, policy=StoreAll(), shards=shards))
    return plan_run(costs, policy=chosen, budget=limit, shards=shards)


def _layer_of(model: Model | Layer) -> tuple[Composite, str]:
    if isinstance(model, Model):
        return model.chain, model.name
    if not isinstance(model, Layer):
        raise TypeError(f"a summary is of a Model, a Chain or a layer, but got {type(model).__name__}")
    return (model if isinstance(model, Composite) else Chain(model)), model.kind


def _spec_of(x: Array | Spec | Sequence[int], dtype: DTypeLike | None = None) -> Spec:
    if isinstance(x, Spec):
        found = x
    elif isinstance(x, np.ndarray):
        found = Spec.of(x.shape, x.dtype)
    elif isinstance(x, Sequence) and all(isinstance(length, int | np.integer) for length in x):
        return Spec.of([int(length) for length in x], dtype or np.float32)
    else:
        raise TypeError(f"what the model reads is an array, a Spec, or a shape as (8, 64), but got {x!r}")
    if dtype is not None and np.dtype(dtype) != found.dtype:
        raise ValueError(f"the dtype {np.dtype(dtype).name} is for a shape, but {found} has one of its own")
    return found


def _shard(x: Spec, shards: int) -> Spec:
    """The spec of one of the equal parts of a batch."""
    if shards < 1 or not x.shape or not x.shape[0] or x.shape[0] % shards:
        raise ValueError(f"{x} does not divide into {shards} equal shards of one example or more")
    return Spec((x.shape[0] // shards, *x.shape[1:]), x.dtype)


def _targets_of(loss: Loss, output: Spec) -> Spec:
    """What a loss compares such an output with: floats like it, or a class for each row."""
    classes = Spec.of(output.shape[:-1], np.int64)
    refused = []
    for targets in (output, classes):
        try:
            loss.footprint(output, targets)
        except ValueError as error:
            refused.append(str(error))
        else:
            return targets
    raise ValueError(
        f"{type(loss).__name__} takes neither {output} nor {classes} as targets of the output {output} ({refused[-1]}); give targets=Spec.of(shape, "
        "dtype), or another loss"
    )


def _rows(costs: Sequence[StepCost], layout: Layout) -> tuple[Row, ...]:
    learned = parameters_by_step(layout, costs)
    rows = []
    for cost in costs:
        made = cost.footprint
        workspace = max(made.forward_workspace + made.forward_heap, made.backward_workspace + made.backward_heap)
        rows.append(
            Row(
                path=cost.path,
                kind=cost.kind,
                output_shape=made.output.shape,
                parameters=learned[cost.path],
                output=made.output.nbytes,
                residuals=made.own_nbytes,
                workspace=workspace,
                forward_flops=made.forward_flops,
                backward_flops=made.backward_flops,
            )
        )
    return tuple(rows)


def _totals(
    costs: Sequence[StepCost],
    layout: Layout,
    batch: Spec,
    shards: int,
    optimizer_bytes: int,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    plans: RunPlans | None = None,
) -> Totals:
    whole = Totals(
        parameters=layout.size,
        parameter_bytes=layout.nbytes,
        state_bytes=layout.state.nbytes,
        gradient_bytes=layout.gradients.nbytes,
        optimizer_bytes=optimizer_bytes,
        forward_flops=shards * sum(cost.footprint.forward_flops for cost in costs),
        backward_flops=shards * sum(cost.footprint.backward_flops for cost in costs if cost.trains),
        batch=str(Spec((batch.shape[0] * shards, *batch.shape[1:]), batch.dtype)),
        shards=shards,
    )
    if plans is None:
        return whole
    return replace(
        whole,
        loss=type(loss).__name__,
        optimizer=type(optimizer).__name__,
        policy=plans.policy.name,
        peak_bytes=plans.peak,
        activation_bytes=plans.activation_nbytes,
        store_all_activation_bytes=plans.store_all_activation_nbytes,
        step_flops=plans.train[0].simulation.flops,
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.parameters, row.output, row.residuals, row.workspace, row.forward_flops + row.backward_flops)
    return row.path, row.kind, "×".join(map(str, row.output_shape)), *(f"{number:,}" for number in numbers)


def _bytes(nbytes: int) -> str:
    return f"{nbytes:,} bytes ({format_size(nbytes)})"
