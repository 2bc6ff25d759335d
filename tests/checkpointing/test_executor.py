"""The executor: gradients, errors in the middle, and what is alive afterwards."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checkpointing import predict, value_and_grad
from checkpointing.plan import PARTS
from checkpointing.reduction import LocalReduction
from framework import (
    BudgetExceeded,
    Chain,
    CrossEntropy,
    Key,
    Ledger,
    Linear,
    MeanSquaredError,
    Parameters,
    ReLU,
    Residual,
    Spec,
)
from framework.layers import Footprint, Layer
from framework.memory import Array
from tests.checkpointing.cases import POLICIES, Case, all_cases, mlp, tokens


@pytest.mark.parametrize("case", [case for case in all_cases() if case.name.endswith("float64")], ids=lambda c: c.name)
@pytest.mark.parametrize("policy", ["store-all", "every-k:1"])
def test_the_gradient_of_a_whole_chain_is_that_of_central_differences(case: Case, policy: str) -> None:
    layout = case.chain.layout(case.specs(1)[0])
    parameters = Parameters.initialize(layout, Key(1))
    run = value_and_grad(case.chain, case.loss, policy, shards=2)
    loss, gradient = run(parameters, case.x, case.targets, Key(4))
    generator, size = Key(9).generator(), 1e-6
    for _ in range(5):
        direction = generator.standard_normal(layout.size)
        sides = []
        for sign in (1, -1):
            moved = Parameters(layout, parameters.flat + sign * size * direction)
            sides.append(run(moved, case.x, case.targets, Key(4))[0])
        difference = (sides[0] - sides[1]) / (2 * size)
        # Central differences are right to O(size²) and rounding of about 1e-15/size.
        assert difference == pytest.approx(float(gradient.flat @ direction), rel=1e-6, abs=1e-8)
    assert np.isfinite(loss)


def test_a_residual_of_a_residual_of_the_identity_has_the_gradient_three() -> None:
    """y = (x + x) + x: a sum in place into a cotangent that others name would give 4."""
    chain = Chain(Linear(1, bias=False), Residual(Residual(Chain())))
    x, targets = np.ones((1, 1)), np.zeros((1, 1))
    parameters = Parameters.initialize(chain.layout(Spec.of((1, 1), np.float64)), Key(0))
    parameters.flat[:] = 1.0
    loss, gradient = value_and_grad(chain, MeanSquaredError())(parameters, x, targets)
    assert loss == 9.0
    assert gradient.flat[0] == 2 * 3.0 * 3.0


@pytest.mark.parametrize("policy", [*POLICIES])
def test_value_and_grad_gives_the_mean_and_the_same_bits_for_any_policy(policy: str) -> None:
    case = tokens("float32")
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    one = value_and_grad(case.chain, case.loss, shards=4)(parameters, case.x, case.targets, Key(3))
    two = value_and_grad(case.chain, case.loss, policy, shards=4)(parameters, case.x, case.targets, Key(3))
    assert one[0] == two[0]
    assert one[1].flat.tobytes() == two[1].flat.tobytes()


def test_the_mean_over_shards_is_the_mean_of_their_means() -> None:
    case = tokens("float64", dropout=0.0)
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    loss, gradient = value_and_grad(case.chain, case.loss, shards=4)(parameters, case.x, case.targets)
    quarter = value_and_grad(case.chain, case.loss)
    parts = [quarter(parameters, case.x[i : i + 2], case.targets[i : i + 2]) for i in (0, 2, 4, 6)]
    assert np.mean([part for part, _ in parts]) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(np.mean([g.flat for _, g in parts], axis=0), gradient.flat, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_batch_of_which_no_target_counts_has_no_loss_and_no_gradient(shards: int) -> None:
    chain, x, ignored = Chain(Linear(3)), np.ones((4, 2)), np.full(4, -100)
    parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
    loss, gradient = value_and_grad(chain, CrossEntropy(ignore=-100), shards=shards)(parameters, x, ignored)
    assert loss == 0
    assert not gradient.flat.any()


def test_value_and_grad_keeps_to_its_budget_and_predicts_its_peak_call_after_call() -> None:
    case = tokens(dropout=0.0)
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    run = value_and_grad(case.chain, case.loss, budget="engine:70%")
    kept = [run(parameters, case.x, case.targets)[1] for _ in range(5)]  # gradients of earlier calls are the caller's
    assert run.ledger.peak == run.plan.peak <= (run.ledger.limit or 0)
    assert run.ledger.live == 0
    assert len({gradient.flat.tobytes() for gradient in kept}) == 1
    assert run.plan.policy != "store-all"


def test_value_and_grad_refuses_what_is_not_the_models() -> None:
    case, other = tokens(dropout=0.0), tokens("float64")
    layout = case.chain.layout(case.specs(1)[0])
    parameters = Parameters.initialize(layout, Key(1))
    with pytest.raises(ValueError, match="do not divide into 4 equal shards"):
        value_and_grad(case.chain, case.loss, shards=4)(parameters, case.x[:6], case.targets[:6])
    with pytest.raises(ValueError, match="power of two"):
        value_and_grad(case.chain, case.loss, shards=3)
    with pytest.raises(ValueError, match=r"model's 0.token is float64\[17, 8\], but the parameters given have float32"):
        value_and_grad(other.chain, other.loss)(parameters, case.x, case.targets)
    with pytest.raises(ValueError, match=r"model's 0\.token is float64"):
        predict(other.chain, parameters, case.x)


@dataclass(frozen=True)
class Faulty(Layer):
    """The identity, computed by a copy; its VJP fails or lies about its bytes when told."""

    fails: bool = False
    hidden: int = 0

    def forward(self, params: Any, x: Any, context: Any) -> tuple[Array, tuple[Array, ...]]:
        y = context.empty(x.shape, x.dtype, "activations")
        y[...] = x
        return y, ()

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Array, grads: Any, context: Any) -> Any:
        scratch = context.empty((self.hidden,), np.uint8, "workspace")
        if self.fails:
            raise ArithmeticError(f"planted, with {scratch.nbytes} bytes of scratch")
        copy = context.empty(cotangent.shape, cotangent.dtype, "cotangents")
        copy[...] = cotangent
        return copy

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        return Footprint(output=x)


def faulty_case(**fault: Any) -> Case:
    generator = Key(2).generator()
    x, targets = generator.standard_normal((8, 4)), generator.standard_normal((8, 3))
    return Case("faulty", Chain(Linear(6), ReLU(), Faulty(**fault), Linear(3)), MeanSquaredError(), x, targets)


def test_after_an_exception_nothing_of_the_step_is_alive_and_the_next_step_has_the_right_bits() -> None:
    good, bad = faulty_case(), faulty_case(fails=True, hidden=100)
    plan = good.plans("every-k:1", shards=2).train[0]
    ledger = Ledger()
    engine = good.engine(ledger)
    idle = ledger.live
    broken = bad.engine(Ledger())
    gc.disable()
    try:
        with pytest.raises(ArithmeticError, match="planted") as caught:
            broken.train_step(plan, bad.loader(2), 0, 1e-2)
        # The exception itself is still held here.
        assert caught.value is not None
        assert broken.ledger.live == idle
    finally:
        gc.enable()
    engine.train_step(plan, good.loader(2), 0, 1e-2)
    fresh = good.engine()
    fresh.train_step(plan, good.loader(2), 0, 1e-2)
    assert engine.parameters.sha256() == fresh.parameters.sha256()


class Noted(list[int]):
    """Progress as a rank tells it."""

    def __init__(self) -> None:
        super().__init__([0])
        self.told = list[int]()

    def __setitem__(self, at: Any, value: Any) -> None:
        self.told.append(value)
        super().__setitem__(at, value)


def test_a_rank_tells_after_each_operation_how_much_of_the_planned_time_has_passed() -> None:
    good, bad, reduction, noted = faulty_case(), faulty_case(fails=True), LocalReduction(), Noted()
    reduction.progress = noted
    plan = good.plans("every-k:1", shards=2).train[0]
    engines = [case.engine(reduction=reduction) for case in (good, bad)]
    engines[0].train_step(plan, good.loader(2), 0, 1e-2)
    moments, seconds = plan.simulation.timeline, plan.simulation.seconds
    assert len(noted.told) == len(moments) and noted.told == sorted(noted.told) and noted.told[-1] == PARTS
    half = noted.told[len(moments) // 2]
    assert half == pytest.approx(PARTS * sum(m.seconds for m in moments[: len(moments) // 2 + 1]) / seconds, abs=1)
    noted.told.clear()
    with pytest.raises(ArithmeticError, match="planted"):
        engines[1].train_step(plan, bad.loader(2), 0, 1e-2)
    assert PARTS < noted.told[-1] < 2 * PARTS
    noted.told.clear()
    engines[0].train_step(plan, good.loader(2), 0, 1e-2)
    assert noted.told[0] == PARTS and noted.told[-1] == 2 * PARTS  # the load takes no time


def test_no_array_of_a_step_outlives_it_without_the_cycle_collector() -> None:
    case = tokens()
    plan = case.plans("sqrt-n", shards=4).train[0]
    seen: list[weakref.ref[Array]] = []

    class Watching(Ledger):
        def empty(self, *args: Any, **kwargs: Any) -> Array:
            array = super().empty(*args, **kwargs)
            seen.append(weakref.ref(array if array.base is None else array.base))
            return array

    ledger = Watching()
    engine = case.engine(ledger)
    idle, lasting = ledger.live, len(seen)
    gc.disable()
    try:
        for step in range(3):
            engine.train_step(plan, case.loader(4), step, 1e-2)
            assert ledger.live == idle
            assert all(reference() is None for reference in seen[lasting:])
    finally:
        gc.enable()
    assert len(seen) > lasting + 100


def test_a_layer_that_lies_about_its_bytes_is_stopped_by_the_hard_limit() -> None:
    honest, lying = faulty_case(), faulty_case(hidden=10**6)
    plans = honest.plans("store-all")
    ledger = Ledger(limit=plans.peak)
    engine = lying.engine(ledger)
    idle = ledger.live
    with pytest.raises(BudgetExceeded, match=r"2 asked for 1,000,000 bytes of workspace"):
        engine.train_step(plans.train[0], lying.loader(1), 0, 1e-2)
    assert ledger.peak <= plans.peak
    assert ledger.live == idle


def test_an_honest_run_is_never_stopped_by_a_limit_of_its_predicted_peak() -> None:
    for case in all_cases():
        for policy in POLICIES:
            plans = case.plans(policy, shards=2)
            engine = case.engine(Ledger(limit=plans.peak))
            engine.train_step(plans.train[0], case.loader(2), 0, 1e-2)
            engine.evaluate(plans.evaluate[0], case.loader(2))
            assert engine.ledger.peak == plans.peak


def test_evaluation_has_no_dropout_and_the_loss_of_the_training_pass_without_it() -> None:
    case, dry = tokens(dropout=0.5), tokens(dropout=0.0)
    engine, plain = case.engine(), dry.engine()
    sums = engine.evaluate(case.plans("store-all", 2).evaluate[0], case.loader(2))
    outcome = plain.train_step(dry.plans("store-all", 2).train[0], dry.loader(2), 0, 1e-2)
    assert {shard: totals[:2] for shard, totals in sums.items()} == {
        s: totals[:2] for s, totals in outcome.sums.items()
    }


def test_an_evaluation_scores_what_predict_gets_right_and_training_does_not() -> None:
    case = mlp()
    engine = case.engine()
    right = np.argmax(predict(case.chain, engine.parameters, case.x), axis=1) == case.targets
    sums = engine.evaluate(case.plans("store-all", 2).evaluate[0], case.loader(2))
    assert [sums[shard].score for shard in (0, 1)] == [right[:4].sum(), right[4:].sum()]
    assert 0 < right.sum() < 8
    outcome = engine.train_step(case.plans("store-all", 2).train[0], case.loader(2), 0, 1e-2)
    assert {totals.score for totals in outcome.sums.values()} == {0.0}


def test_a_chain_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        Case("idle", Chain(ReLU()), MeanSquaredError(), np.zeros((2, 2)), np.zeros((2, 2))).plans("store-all")


def test_value_and_grad_keeps_the_budget_of_each_shape_of_batch() -> None:
    chain = Chain(Linear(16), ReLU(), Linear(3))
    run = value_and_grad(chain, MeanSquaredError(), budget="engine:100%")
    limits = []
    for rows in (64, 8, 64):
        x, targets = np.ones((rows, 5)), np.zeros((rows, 3))
        parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
        run(parameters, x, targets)
        limits.append(run.ledger.limit)
    assert limits[0] == limits[2] != limits[1]


def test_what_dies_during_a_step_besides_is_no_fault_and_chained_exceptions_hold_nothing() -> None:
    case, bad = faulty_case(), faulty_case(fails=True)
    plan, ledger = case.plans("store-all", shards=2).train[0], Ledger()
    engine = case.engine(ledger, block=True)
    kept = [ledger.empty((100,), "float64", "data", "somebody's")]
    load = case.loader(2)

    def forgetful(shard: int, x: Array, targets: Array) -> None:
        kept.clear()
        load(shard, x, targets)

    engine.train_step(plan, forgetful, 0, 1e-2)
    broken = bad.engine(Ledger(), block=True)
    idle = broken.ledger.live

    def chained(shard: int, x: Array, targets: Array) -> None:
        try:
            raise KeyError(shard)
        except KeyError as error:
            raise RuntimeError("chained") from error

    with pytest.raises(RuntimeError, match="chained") as caught:
        broken.train_step(plan, chained, 0, 1e-2)
    assert caught.value.__cause__ is not None
    assert broken.ledger.live == idle
