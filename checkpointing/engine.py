"""The engine of one rank: parameters, optimizer state and the executor that runs plans on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpointing.budgets import parse_budget
from checkpointing.costs import Times, UpdateCost, costs_of
from checkpointing.executor import Executor, LayerParameters
from checkpointing.inspector import Finding, Inspector
from checkpointing.plan import Plan
from checkpointing.policies import Policy, StoreAll, parse_policy
from checkpointing.reduction import Reduction, Sharing, Sums
from checkpointing.reduction_tree import require_shards
from checkpointing.running import Job, Outcome
from checkpointing.runs import RunPlans, plan_run
from checkpointing.witness import Witness
from framework.keys import Key
from framework.layers import BATCH, Chain, Composite, Context, Layer, Spec, advance_state, flatten
from framework.losses import Loss
from framework.memory import Allocator, Array, Ledger
from framework.optimizers import Optimizer, clip_factor
from framework.parameters import Layout, Parameters

#: Writes a shard's inputs and targets into given arrays, and the weights of its examples where the plan has them.
Load = Callable[..., None]


class Engine:
    """Trains one replica of a model: holds its parameters and optimizer state, and runs plans.

    Args:
        layer: The model.
        loss: Its loss.
        layout: The layout of its parameters.
        optimizer: Updates them.
        seed: The run's seed: initial parameters and dropout derive from it.
        clip: The greatest norm of a mean gradient; None for no clipping.
        ledger: Counts every array.
        reduction: Adds across ranks; by default there is one.
        gradients: Where gradient buffers come from; by default where the others do.
        block: Whether the buffers of a step lie in one block; see `Executor`.
        offload_dir: The folder for values that a plan holds on disk; see `Executor`.
        sharing: Shares the optimizer's state out over ranks; None where this rank has all of it.
        parameters: The parameters to train; by default they are made here.

    Attributes:
        optimizer_state: Of the rank's part of the parameters: (slots, elements).
    """

    def __init__(
        self,
        layer: Layer,
        loss: Loss,
        layout: Layout,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        clip: float | None = None,
        ledger: Ledger | None = None,
        reduction: Reduction | None = None,
        gradients: Allocator | None = None,
        block: bool = False,
        offload_dir: Path | None = None,
        sharing: Sharing | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.parameters = Parameters.initialize(layout, Key(seed), self.ledger) if parameters is None else parameters
        self.optimizer = optimizer
        self._sharing = sharing
        self._part = slice(0, layout.size) if sharing is None else sharing.part
        self.optimizer_state = optimizer.initialize(layout, self.ledger, self._part)
        self._key = Key(seed).fold("layers")
        self._clip = clip
        self._layer = layer
        self._executor = Executor(layer, loss, self.parameters, self.ledger, reduction, gradients, block, offload_dir)

    def reserve(self, plans: Sequence[Plan]) -> None:
        """Takes the block that the largest of some plans needs, and room on disk, so that no later step takes any."""
        self._executor.reserve(plans)

    def close(self) -> None:
        """Lets go of the file of offloaded values."""
        self._executor.close()

    def train_step(
        self, plan: Plan, load: Load, step: int, learning_rate: float, witness: Witness | None = None
    ) -> Outcome:
        """Runs one training step; parameters and optimizer state change, unless the loss or the gradient is not finite."""

        def update(mean: Array, norm: float) -> None:
            gradient, statistics = self.parameters.layout.parts(mean)
            advance_state(self._layer, self.parameters, statistics)
            part, sharing = self._part, self._sharing
            self.optimizer.update(
                self.parameters.flat[part],
                gradient[part],
                self.optimizer_state,
                step=step,
                learning_rate=learning_rate,
                factor=clip_factor(norm, self._clip),
                ledger=self.ledger,
                first=part.start,
                out=None if sharing is None else sharing.begin(self.parameters),
            )
            if sharing is not None:
                sharing.publish(self.parameters, step)

        return self._executor.run(plan, Job(load, self._key.fold(step), update), witness)

    def evaluate(self, plan: Plan, load: Load, witness: Witness | None = None) -> Sums:
        """Returns the sums of losses over the rank's shards, without dropout and without derivatives."""
        return self._executor.run(plan, Job(load, self._key), witness).sums

    def inspect(self, plan: Plan, load: Load, step: int) -> Finding | None:
        """Runs a training step again that was not finite, or an evaluation (where the step is of no use), and changes nothing.

        Returns:
            The first value that is not finite, None if there is none.
        """
        inspector, key = Inspector(), self._key if plan.purpose == "evaluate" else self._key.fold(step)
        self._executor.run(plan, Job(load, key), make=inspector)
        return inspector.finding


class PlannedGradient:
    """A chain and a loss whose gradient over a batch is computed by a plan: what `value_and_grad` and `hvp` have in common.

    Attributes:
        plan: The plan of the last call.
        ledger: Counts what a call holds. The parameters and what it returns are the caller's: they count during a call.
    """

    plan: Plan

    def __init__(
        self,
        layer: Composite,
        loss: Loss,
        policy: str | Policy | None,
        budget: str | None,
        shards: int,
        offload_dir: Path | str | None = None,
    ) -> None:
        require_shards(shards)
        self._offload_dir = Path(offload_dir) if offload_dir is not None else None
        self._layer, self._loss, self._shards = layer, loss, shards
        self._policy = parse_policy(policy) if isinstance(policy, str) else policy
        self._budget = parse_budget(budget) if budget is not None else None
        self._plans: dict[tuple[Spec, Spec], tuple[Plan, int | None]] = {}
        self.ledger = Ledger()

    def shard_specs(self, x: Array, targets: Array) -> tuple[Spec, Spec]:
        """Returns the specs of a shard's inputs and targets.

        Raises:
            ValueError: The batch does not divide into the shards.
        """
        if len(x) != len(targets) or len(x) % self._shards or not len(x):
            raise ValueError(
                f"{len(x)} inputs and {len(targets)} targets do not divide into {self._shards} equal shards"
            )
        rows = len(x) // self._shards
        return Spec.of((rows, *x.shape[1:]), x.dtype), Spec.of((rows, *targets.shape[1:]), targets.dtype)

    def run(self, parameters: LayerParameters, x: Array, targets: Array, key: Key | None) -> Outcome:
        """Runs the plan for such a batch. The outcome's gradient is the caller's, and no longer counted."""
        specs = self.shard_specs(x, targets)
        rows = len(x) // self._shards
        if specs not in self._plans:
            self._plans[specs] = self._plan(*specs)
        self.plan, self.ledger.limit = self._plans[specs]

        def load(shard: int, into_x: Array, into_targets: Array) -> None:
            self.write_batch(into_x, x[shard * rows : (shard + 1) * rows])
            into_targets[...] = targets[shard * rows : (shard + 1) * rows]

        held = [
            self.ledger.count(layout.nbytes, "parameters", owner)
            for layout, owner in ((parameters.layout, "model"), (parameters.layout.state, "state"))
            if layout.size
        ]
        executor = Executor(self._layer, self._loss, parameters, self.ledger, offload_dir=self._offload_dir)
        try:
            outcome = executor.run(self.plan, Job(load, key or Key(0)))
        finally:
            executor.close()
        del held
        assert outcome.gradient is not None
        self.ledger.hand_over(outcome.gradient)
        return outcome

    def batch_spec(self, x: Spec) -> Spec:
        """The spec of what the chain reads for a shard's inputs of spec `x`."""
        return x

    def write_batch(self, into: Array, x: Array) -> None:
        """Writes what the chain reads for the inputs `x`."""
        into[...] = x

    def _plan(self, x: Spec, targets: Spec) -> tuple[Plan, int | None]:
        """Returns the plan for such shards, and the limit of the ledger for it."""
        costs = costs_of(self._layer, self._loss, self.batch_spec(x), targets)
        store_all = plan_run(costs, policy=StoreAll(), shards=self._shards, purpose="gradient")
        limit = self._budget.resolve(store_all) if self._budget is not None else None
        disk = self._offload_dir is not None
        plans = plan_run(
            costs, policy=self._policy, budget=limit, shards=self._shards, purpose="gradient", offload=disk
        )
        return plans.train[0], limit


class ValueAndGrad(PlannedGradient):
    """The mean loss and its gradient as a function; made by `value_and_grad`."""

    def __call__(
        self, parameters: Parameters, x: Array, targets: Array, key: Key | None = None
    ) -> tuple[float, Parameters]:
        x, targets = np.asarray(x), np.asarray(targets)
        require_parameters(self._layer, self.shard_specs(x, targets)[0], parameters)
        outcome = self.run(parameters, x, targets, key)
        assert outcome.gradient is not None
        gradient, statistics = parameters.layout.parts(outcome.gradient)
        advance_state(self._layer, parameters, statistics)
        return outcome.loss, Parameters(parameters.layout, gradient)


def value_and_grad(
    layer: Composite,
    loss: Loss,
    policy: str | Policy | None = None,
    *,
    budget: str | None = None,
    shards: int = 1,
    offload_dir: Path | str | None = None,
) -> ValueAndGrad:
    """Returns a function that computes the mean loss and its gradient, for a training loop of one's own.

    Args:
        layer: The model.
        loss: Its loss.
        policy: What to keep and what to recompute; the gradient's bits do not depend on it.
        budget: The most bytes that a call may hold, parameters and gradient included: "engine:64MiB".
        shards: Virtual shards that a batch is cut into.
        offload_dir: The folder for values that a plan holds on disk; a budget offloads only where one is named.

    Returns:
        A function of ``(parameters, x, targets, key=Key(0))`` with x (B, ...) and targets (B, ...), B divisible by the shards,
        that returns the mean loss and its gradient, each divided once by the count of targets. Dropout is drawn from
        the key: give another one each step. A call also moves the running statistics of BatchNorm, which are the parameters' state.

    Raises:
        InfeasibleBudget: When called: the policy does not fit the budget, or nothing does.
        ValueError: When called: the parameters, inputs or targets are not the model's.

    >>> import numpy as np
    >>> from framework import Chain, Key, Linear, MeanSquaredError, Parameters, Spec
    >>> chain, x, y = Chain(Linear(1)), np.ones((4, 3)), np.zeros((4, 1))
    >>> parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    >>> value, gradient = value_and_grad(chain, MeanSquaredError())(parameters, x, y)
    >>> bool(np.isclose(abs(gradient["0.bias"][0]), 2 * np.sqrt(value)))
    True

    A loop of one's own:

    >>> from framework import AdamW
    >>> optimizer, run = AdamW(weight_decay=0.0), value_and_grad(chain, MeanSquaredError())
    >>> state = optimizer.initialize(parameters.layout)
    >>> for step in range(300):
    ...     loss, gradient = run(parameters, x, y, Key(0).fold(step))
    ...     optimizer.update(parameters.flat, gradient.flat, state, step=step, learning_rate=0.01)
    >>> loss < 1e-4
    True
    """
    return ValueAndGrad(layer, loss, policy, budget, shards, offload_dir)


def require_parameters(layer: Layer, x: Spec, parameters: Parameters) -> None:
    """Raises unless the parameters are those that the layer has for such an input."""
    chain = layer if isinstance(layer, Composite) else Chain(layer)
    expected, given = chain.layout(x).specs, parameters.layout.specs
    for name in {**expected, **given}:
        wanted, got = (specs.get(name) for specs in (expected, given))
        if wanted is None or got is None or (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
            told = [f"{s.dtype.name}{list(s.shape)}" if s else "none" for s in (wanted, got)]
            raise ValueError(
                f"for an input {x} the model's {name} is {told[0]}, but the parameters given have {told[1]}"
            )


def predict(layer: Layer, parameters: Parameters, x: Array, ledger: Ledger | None = None) -> Array:
    """Returns the model's output for x in evaluation, keeping no more than each step's last reader needs.

    Args:
        layer: The model.
        parameters: Its parameters.
        x: Shape (B, ...).
        ledger: Counts every array.
    """
    book = ledger or Ledger()
    steps = flatten(layer)
    require_parameters(layer, Spec.of(x.shape, x.dtype), parameters)
    params, states = parameters.by_layer(), parameters.state_by_layer()
    last_reader = {source: number for number, step in enumerate(steps) for source in step.inputs}
    values: dict[int, Any] = {BATCH: np.ascontiguousarray(x)}
    for number, step in enumerate(steps):
        inputs = tuple(values[source] for source in step.inputs)
        context = Context(book, step.path, training=False, states=states)
        values[number], _ = step.layer.forward(
            params.get(step.path, {}), inputs[0] if len(inputs) == 1 else inputs, context
        )
        for source in set(step.inputs):
            if last_reader[source] == number:
                del values[source]
    result: Array = values[len(steps) - 1]
    return result


def run_plans(
    layer: Layer,
    loss: Loss,
    batch: Spec,
    targets: Spec,
    optimizer: Optimizer,
    *,
    policy: Policy | None = None,
    budget: int | None = None,
    shards: int = 1,
    world: int = 1,
    static: dict[str, int] | None = None,
    validate: bool = True,
    times: Times | None = None,
    offload: bool = False,
    disk_bandwidth: int | None = None,
    weighted: tuple[bool, bool] = (False, False),
    bucket_nbytes: int | None = None,
    updates: tuple[UpdateCost, ...] = (),
) -> RunPlans:
    """Plans a training run: see `plan_run`.

    Args:
        layer: The model.
        loss: Its loss.
        batch: Spec of a shard's input.
        targets: Spec of a shard's targets.
        optimizer: Updates the parameters.
        policy: The policy; None lets the budget choose.
        budget: The most bytes of any rank.
        shards: V, the virtual shards.
        world: W, the number of ranks.
        static: More bytes that live through the run, by "category/owner".
        validate: Whether validation is planned too.
        times: Measured times of a training pass; None where they are modelled.
        offload: Whether a budget may choose plans that hold values on disk.
        disk_bandwidth: Bytes a second of that disk; by default it is assumed.
        weighted: Whether examples come with weights, in training and in validation.
        bucket_nbytes: Of how many bytes of gradients a reduction across ranks begins at once; None for one of all at the end.
        updates: What the optimizer takes on each rank, where its state is shared out; empty where every rank holds all of it.
    """
    made: Sequence[Any] = [
        costs_of(layer, loss, batch, targets, optimizer, static, training, weights)
        for training, weights in list(zip((True, False), weighted, strict=True))[: 1 + validate]
    ]
    training = replace(made[0], times=times, disk_bandwidth=disk_bandwidth or made[0].disk_bandwidth)
    return plan_run(
        training,
        made[1] if validate else None,
        policy,
        budget,
        shards,
        world,
        offload=offload,
        bucket_nbytes=bucket_nbytes,
        updates=updates,
    )
