"""What is not finite in a step is found where it is made first, and the step changes nothing."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checkpointing import Engine, parse_policy, run_plans
from checkpointing.inspector import Finding, Statistics
from framework import AdamW, BatchNorm, Chain, Dropout, Ledger, Linear, MeanSquaredError, ReLU, Residual, Spec, Tanh
from framework.losses import Loss
from framework.memory import Array
from tests.checkpointing.cases import POLICIES

SHARDS, ROWS, WIDTH = 4, 8, 6
RNG = np.random.default_rng(0)
X = RNG.standard_normal((SHARDS * ROWS, WIDTH)).astype(np.float32)
T = RNG.standard_normal((SHARDS * ROWS, 3)).astype(np.float32)


@dataclass(frozen=True)
class Amplify(Tanh):
    """Tanh, of which the output where x is above a threshold is multiplied by so much."""

    threshold: float = 1.0
    factor: float = 1e39

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        above = x > self.threshold
        y, own = super().forward(params, x, context)
        y[above] *= np.float32(self.factor)
        return y, own


@dataclass(frozen=True)
class Derail(Linear):
    """A Linear that writes something else into the cotangent of its weight."""

    value: float = math.inf

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Any, grads: Any, context: Any) -> Any:
        found = super().vjp(params, x, y, own, cotangent, grads, context)
        grads["weight"][0, :2] = self.value
        return found


def run(
    chain: Chain,
    x: Array = X,
    policy: str = "store-all",
    block: bool = True,
    loss: Loss | None = None,
    **changed: float,
) -> tuple[Engine, Any, Any]:
    """Runs one step; returns the engine, the outcome, and what the inspection of the same step finds."""
    spec, targets = Spec.of((ROWS, WIDTH), np.float32), Spec.of((ROWS, 3), np.float32)
    loss, optimizer = loss or MeanSquaredError(), AdamW()
    plan = run_plans(chain, loss, spec, targets, optimizer, policy=parse_policy(policy), shards=SHARDS).train[0]
    engine = Engine(chain, loss, chain.layout(spec), optimizer, ledger=Ledger(plan.peak), block=block)
    for name, value in changed.items():
        engine.parameters[name.replace("__", ".")][0, 0] = value

    def load(shard: int, into_x: Array, into_targets: Array) -> None:
        into_x[...], into_targets[...] = (a[shard * ROWS : (shard + 1) * ROWS] for a in (x, T))

    before = engine.parameters.sha256(), engine.optimizer_state.copy()
    with np.errstate(all="ignore"):
        outcome = engine.train_step(plan, load, 3, 0.1)
        finite = math.isfinite(outcome.loss) and math.isfinite(outcome.gradient_norm)
        assert (engine.parameters.sha256() == before[0]) == (not finite)
        changes = engine.parameters.sha256()
        found = engine.inspect(plan, load, 3)
    assert engine.parameters.sha256() == changes
    if not finite:
        np.testing.assert_array_equal(engine.optimizer_state, before[1])
    assert engine.ledger.peak <= plan.peak  # the ledger would refuse more
    return engine, outcome, found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("block", [True, False])
def test_a_forward_that_overflows_is_named_with_its_shard_and_counts(policy: str, block: bool) -> None:
    chain = Chain(Linear(5), Residual(Chain(Dropout(0.2), Amplify())), Linear(3))
    x = np.clip(X, -1, 1) * np.float32(0.1)
    x[2 * ROWS + 1] = 30  # in shard 2 alone Linear's output passes the threshold
    engine, outcome, found = run(chain, x, policy, block)
    assert not math.isfinite(outcome.loss)
    assert isinstance(found, Finding)
    assert (found.what, found.operation, found.shard) == ("the output of 1.1", "forward 1.1", 2)
    assert found.statistics.size == ROWS * 5
    assert 0 < found.statistics.infinite <= 5
    assert found.statistics.nan == 0
    assert found.statistics.largest <= 1
    y = x[2 * ROWS : 3 * ROWS] @ engine.parameters["0.weight"].T
    ((what, read),) = [each for each in found.before if each[1].size]
    assert what == "its input"  # before the operation, which may write over it
    assert read.finite
    assert float(np.abs(y).max()) <= read.largest * 1.0001 <= float(np.abs(y).max()) / 0.8 * 1.0002  # dropout scales it


def test_a_residual_network_is_found_at_the_same_place_whatever_is_recomputed() -> None:
    chain = Chain(Linear(5), BatchNorm(), Amplify(threshold=1.5), ReLU(), Linear(3))
    found = [run(chain, policy=policy, block=block)[2] for policy in POLICIES for block in (True, False)]
    assert found[0] is not None
    assert found[0].what == "the output of 2"
    assert all(each == found[0] for each in found)


def test_a_backward_that_overflows_names_the_cotangent_and_nothing_has_changed() -> None:
    _, outcome, found = run(Chain(Linear(5), Tanh(), Derail(3), Tanh()))
    assert math.isfinite(outcome.loss)
    assert outcome.gradient_norm == math.inf
    assert (found.what, found.operation, found.shard) == ("the cotangent of 2.weight", "backward 2", 0)
    assert (found.statistics.size, found.statistics.infinite) == (15, 2)
    assert [what for what, read in found.before if read.size] == [
        "its parameters",
        "its input",
        "its output's cotangent",
    ]
    assert "of 15 numbers 0 are NaN and 2 infinite" in str(found)
    assert "(backward 2, shard 0)" in str(found)
    assert "the largest magnitude of its parameters 0." in str(found)


def test_gradients_that_overflow_only_in_their_sum_are_found_there() -> None:
    _, outcome, found = run(Chain(Linear(5), Derail(3, value=2e38)))
    assert not math.isfinite(outcome.gradient_norm)
    assert found.what == "the sum over shards of the cotangents of 1.weight"
    assert (found.operation, found.statistics.infinite) == ("backward 1", 2)
    assert math.isclose(dict(found.before)["what its parameters' are added to"].largest, 2e38, rel_tol=1e-6)


def test_parameters_and_batches_that_were_bad_before_are_named() -> None:
    chain = Chain(Linear(5), ReLU(), Linear(3))
    _, _, found = run(chain, **{"2__weight": math.nan})
    assert found == Finding("the parameter 2.weight", "", None, found.statistics)
    assert (found.statistics.size, found.statistics.nan) == (15, 1)
    assert str(found).startswith("the parameter 2.weight was not finite before the step: of 15 numbers 1 are NaN")
    x = X.copy()
    x[ROWS, 3] = -math.inf
    _, _, found = run(chain, x)
    assert (found.what, found.operation, found.shard, found.statistics.infinite) == ("the batch", "load 1", 1, 1)


@dataclass(frozen=True)
class InfiniteError(MeanSquaredError):
    """Its sum is infinite where an output passes a threshold; its derivative is not."""

    def forward(self, y: Any, targets: Any, weights: Any, context: Any) -> Any:
        total, count, own = super().forward(y, targets, weights, context)
        return (math.inf if np.abs(y).max() > 1000 else total), count, own


def test_a_loss_that_overflows_is_named_and_nothing_has_changed_although_the_gradient_is_finite() -> None:
    x = X.copy()
    x[3 * ROWS :] *= np.float32(1e4)
    _, outcome, found = run(Chain(Linear(5), ReLU(), Linear(3)), x, loss=InfiniteError())
    assert outcome.loss == math.inf
    assert math.isfinite(outcome.gradient_norm)
    assert (found.what, found.operation, found.shard) == ("the loss", "loss", 3)
    ((what, read),) = found.before
    assert what == "the model's output"
    assert read.largest > 1000
    assert (
        "the loss is the first value that is not finite (loss, shard 3): it is infinite; the largest magnitude of the model's output"
        in str(found)
    )


def test_nothing_is_found_in_a_step_that_is_finite() -> None:
    _, outcome, found = run(Chain(Linear(5), ReLU(), Linear(3)))
    assert math.isfinite(outcome.loss)
    assert found is None


def test_statistics_are_those_of_the_array_whatever_its_strides() -> None:
    a = RNG.standard_normal((130, 97, 3))
    a[3, 5], a[7, 0, 1], a[100, 50] = math.nan, -math.inf, 7
    views: list[Any] = [a, a[::2, ::-1], a.transpose(2, 0, 1), a[:0], np.array(math.nan), a.astype(np.float32)]
    for view in views:
        finite = view[np.isfinite(view)]
        expected = Statistics(
            view.size, int(np.isnan(view).sum()), int(np.isinf(view).sum()), float(np.abs(finite).max(initial=0))
        )
        assert Statistics.of(view) == expected
    assert Statistics.of({"a": a, "b": (a, np.arange(5))}) == Statistics(2 * a.size, 6, 2, 7.0)
    assert Statistics.of(np.ones(3, int)).finite


def test_statistics_take_little_memory() -> None:
    a = np.ones((1000, 1000), np.float32)
    tracemalloc.start()
    try:
        Statistics.of(a.T)
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()
