"""The engine of one rank: parameters, optimizer state and the executor that runs plans on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from checkpointing.costs import costs_of
from checkpointing.executor import Executor, Job, Outcome, Reduction, Sums
from checkpointing.plan import Plan
from checkpointing.policies import Policy, RunPlans, parse_policy, plan_run
from framework.keys import Key
from framework.layers import BATCH, Context, Layer, Spec, flatten, input_specs
from framework.layers.chain import Composite
from framework.losses import Loss
from framework.memory import Allocator, Array, Ledger
from framework.optimizers import Optimizer, clip_factor
from framework.parameters import Layout, Parameters
from framework.sizes import parse_size

#: Writes a shard's inputs and targets into given arrays.
Load = Callable[[int, Array, Array], None]


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
        gradients: Where gradient buffers come from; by default the ledger's allocator.
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
    ) -> None:
        self.ledger = ledger or Ledger()
        self.parameters = Parameters.initialize(layout, Key(seed), self.ledger)
        self.optimizer = optimizer
        self.optimizer_state = optimizer.initialize(layout, self.ledger)
        self._key = Key(seed).fold("layers")
        self._clip = clip
        self._executor = Executor(layer, loss, self.parameters, self.ledger, reduction, gradients)

    def train_step(self, plan: Plan, load: Load, step: int, learning_rate: float) -> Outcome:
        """Runs one training step; parameters and optimizer state change in place."""

        def update(gradient: Array, norm: float) -> None:
            self.optimizer.update(
                self.parameters.flat,
                gradient,
                self.optimizer_state,
                step=step,
                learning_rate=learning_rate,
                factor=clip_factor(norm, self._clip),
                ledger=self.ledger,
            )

        return self._executor.run(plan, Job(load, self._key.fold(step), update))

    def evaluate(self, plan: Plan, load: Load) -> Sums:
        """Returns the sums of losses over the rank's shards, without dropout and without derivatives."""
        return self._executor.run(plan, Job(load, self._key)).sums


def value_and_grad(
    layer: Composite,
    loss: Loss,
    policy: str | Policy | None = None,
    *,
    budget: int | str | None = None,
    shards: int = 1,
    ledger: Ledger | None = None,
) -> Callable[..., tuple[float, Parameters]]:
    """Returns a function that computes the mean loss and its gradient, for a training loop of one's own.

    Args:
        layer: The model.
        loss: Its loss.
        policy: What to keep and what to recompute; the gradient's bits do not depend on it.
        budget: The most bytes the engine may hold ("64MiB"); the ledger enforces it.
        shards: Virtual shards that a batch is cut into.
        ledger: Counts every array.

    Returns:
        A function of ``(parameters, x, targets, key=Key(0))`` with x (B, ...) and targets (B, ...), B divisible by the shards,
        that returns the mean loss and its gradient, each divided once by the count of targets. Dropout is drawn from
        the key: give another one each step. Its attribute `plan` is the last plan it ran.

    Raises:
        InfeasibleBudget: When called: the policy does not fit the budget, or nothing does.

    >>> import numpy as np
    >>> from framework import Chain, Key, Linear, MeanSquaredError, Parameters, Spec
    >>> chain, x, y = Chain(Linear(1)), np.ones((4, 3)), np.zeros((4, 1))
    >>> parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    >>> value, gradient = value_and_grad(chain, MeanSquaredError())(parameters, x, y)
    >>> bool(np.isclose(gradient["0.bias"][0], 2 * np.sqrt(value)) or np.isclose(gradient["0.bias"][0], -2 * np.sqrt(value)))
    True
    """
    book = ledger or Ledger(limit=parse_size(budget) if budget is not None else None)
    chosen = parse_policy(policy) if isinstance(policy, str) else policy
    plans: dict[tuple[Spec, Spec], Plan] = {}

    def plan_of(x: Spec, targets: Spec) -> Plan:
        costs = costs_of(layer, loss, x, targets)
        limit = parse_size(budget) if budget is not None else None
        return plan_run(costs, policy=chosen, budget=limit, shards=shards, purpose="gradient").train[0]

    def run(parameters: Parameters, x: Array, targets: Array, key: Key | None = None) -> tuple[float, Parameters]:
        if len(x) != len(targets) or len(x) % shards or not len(x):
            raise ValueError(f"{len(x)} inputs and {len(targets)} targets do not divide into {shards} equal shards")
        rows = len(x) // shards
        specs = Spec.of((rows, *x.shape[1:]), x.dtype), Spec.of((rows, *targets.shape[1:]), targets.dtype)
        if specs not in plans:
            plans[specs] = plan_of(*specs)
        function.plan = plans[specs]  # type: ignore[attr-defined]

        def load(shard: int, into_x: Array, into_targets: Array) -> None:
            into_x[...] = x[shard * rows : (shard + 1) * rows]
            into_targets[...] = targets[shard * rows : (shard + 1) * rows]

        executor = Executor(layer, loss, parameters, book)
        outcome = executor.run(plans[specs], Job(load, key or Key(0)))
        assert outcome.gradient is not None
        return outcome.loss, Parameters(parameters.layout, outcome.gradient)

    function = run
    return function


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
    input_specs(steps, Spec.of(x.shape, x.dtype), training=False)
    params = parameters.layout.grouped_views(parameters.flat)
    last_reader = {source: number for number, step in enumerate(steps) for source in step.inputs}
    values: dict[int, Any] = {BATCH: np.ascontiguousarray(x)}
    for number, step in enumerate(steps):
        inputs = tuple(values[source] for source in step.inputs)
        context = Context(book, step.path, training=False)
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
        static: More bytes that live through the run, by category.
        validate: Whether validation is planned too.
    """
    made: Sequence[Any] = [
        costs_of(layer, loss, batch, targets, optimizer, static, training)
        for training in ((True, False) if validate else (True,))
    ]
    return plan_run(made[0], made[1] if validate else None, policy, budget, shards, world)
