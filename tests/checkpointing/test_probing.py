"""What layers of one's own take from plain NumPy is measured beforehand, so that their plans are exact and budgets hold."""

from __future__ import annotations

import os
import threading
import tracemalloc
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from checkpointing import InfeasibleBudget, Plan, costs_of, hvp, probing, run_plans, value_and_grad
from checkpointing.probing import ROUNDING, Question, measure
from checkpointing.witness import TOLERANCE
from framework import (
    AdamW,
    BudgetExceeded,
    Chain,
    Dropout,
    Key,
    Layer,
    Ledger,
    Linear,
    MeanSquaredError,
    Parameters,
    Residual,
    Spec,
)
from framework.layers import Context, Footprint
from tests.checkpointing.cases import POLICIES, Case, nested
from tests.checkpointing.test_own_layers import Noise, Swish
from tests.checkpointing.test_witness import witnessed
from tests.framework.test_own_layers import Affine, AffineByRows

ROWS, WIDTH = 512, 64
NBYTES = ROWS * WIDTH * 4  # 128 KiB, above the witness's tolerance
X = Spec.of((ROWS, WIDTH), "float32")
SWITCH = {"on": False}


@pytest.fixture
def switch() -> Any:
    """Changes what layers do between planning and running, since their probe runs in another process."""
    yield SWITCH
    SWITCH["on"] = False


def case_of(*layers: Layer) -> Case:
    generator = Key(2).generator()
    x, targets = (generator.standard_normal((2 * ROWS, n)).astype(np.float32) for n in (8, 3))
    return Case("own", Chain(Linear(WIDTH), *layers, Linear(3)), MeanSquaredError(), x, targets)


OWN = case_of(Swish(), Residual(Chain(Affine(WIDTH), Noise(), Dropout(0.2))), AffineByRows(WIDTH), Swish())


@dataclass(frozen=True)
class Masked(Layer):
    """Makes an array whose size depends on the data."""

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return x + np.sum(x[x > 0])


class Bounded(Masked):
    """The same, with the most that it takes."""

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        return replace(
            super().footprint(x, training), unmeasured=False, forward_heap=4 * x.nbytes, backward_heap=6 * x.nbytes
        )


@dataclass(frozen=True)
class Switched(Layer):
    """Does more than it showed, once the switch is on."""

    how: str

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        if SWITCH["on"] and self.how == "more":
            assert len([np.ones(x.shape) for _ in range(5)]) == 5
        if SWITCH["on"] and self.how == "shape":
            return x[:-1] * 2
        if SWITCH["on"] and self.how == "dtype":
            return x.astype(np.float64)
        return x * 2


class CountedShape(Switched):
    """Has another shape each second time that it runs without a trace."""

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        if type(x) is np.ndarray:
            SWITCH["calls"] = SWITCH.get("calls", 0) + 1
            if SWITCH["on"] and SWITCH["calls"] % 2 == 0:
                return x[1:]
        return x * 2


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_ledger_is_as_simulated_at_and_inside_every_operation(policy: str, block: bool) -> None:
    plans = OWN.plans(policy, 2)
    ledger = Ledger(record=True)
    engine = OWN.engine(ledger, block=block)
    engine.train_step(plans.train[0], OWN.loader(2), 0, 1e-2)
    engine.evaluate(plans.evaluate[0], OWN.loader(2))
    told = [moment for plan in (plans.train[0], plans.evaluate[0]) for moment in plan.simulation.timeline]
    assert ledger.timeline is not None
    found = ledger.timeline[-len(told) :]
    assert [(m.label, m.live, m.inside, m.holders) for m in found] == [
        (m.label, m.live, m.inside, m.holders) for m in told
    ]


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
@pytest.mark.parametrize("policy", ["store-all", "every-k:1"])
def test_numpy_agrees_with_what_was_measured(policy: str, block: bool) -> None:
    found = witnessed(OWN, policy, shards=2, block=block, steps=2)
    assert found.faults == []
    assert found.largest_difference == 0
    assert found.largest_inside <= TOLERANCE // 2


def test_what_is_measured_is_what_numpy_arrays_of_the_definition_take() -> None:
    question = Question(Swish(), X, True, (True,))
    (heap,) = measure([question], ["it"])
    assert heap.spread == 0
    assert heap.forward % ROUNDING == heap.backward % ROUNDING == 0
    assert 2 * NBYTES <= heap.forward <= 2 * NBYTES + 2 * ROUNDING  # exp(-x) and the sum
    assert 4 * NBYTES <= heap.backward <= 7 * NBYTES
    (evaluated,) = measure([replace(question, training=False, wanted=None)], ["it"])
    assert (evaluated.forward, evaluated.backward) == (heap.forward, 0)


def test_bytes_grow_with_the_batch_as_the_arrays_do() -> None:
    sizes = [Spec.of((ROWS * n, WIDTH), "float32") for n in (4, 8, 12)]
    heaps = measure([Question(Swish(), x, True, (True,)) for x in sizes], ["it"] * 3)
    for part in ("forward", "backward"):
        steps = [getattr(b, part) - getattr(a, part) for a, b in pairwise(heaps)]
        assert abs(steps[1] - steps[0]) <= ROUNDING


def test_a_limit_of_the_peak_is_kept_and_one_byte_less_is_refused_before_and_during_the_run() -> None:
    plan = OWN.plans("every-k:1", 2).train[0]
    most = max(range(len(plan.operations)), key=lambda place: plan.simulation.timeline[place].inside)
    assert most in plan.simulation.heap  # the peak lies in a layer of one's own
    for block in (False, True):
        OWN.engine(Ledger(plan.peak), block=block).train_step(plan, OWN.loader(2), 0, 1e-2)
        ledger = Ledger(plan.peak - 1)
        engine = OWN.engine(ledger, block=block)
        held = ledger.live
        with pytest.raises(BudgetExceeded, match=r"asked for"):
            engine.train_step(plan, OWN.loader(2), 0, 1e-2)
        assert ledger.live == held
    with pytest.raises(InfeasibleBudget, match="too small"):
        OWN.plans("every-k:1", 2, budget=plan.peak - 1)


def test_every_budget_from_the_smallest_on_is_kept() -> None:
    smallest = min(OWN.plans(policy, 2).peak for policy in POLICIES)
    for budget in np.linspace(smallest, OWN.plans("store-all", 2).peak, 4).astype(int).tolist():
        plans = OWN.plans(shards=2, budget=budget)
        ledger = Ledger(budget)
        OWN.engine(ledger).train_step(plans.train[0], OWN.loader(2), 0, 1e-2)
        assert ledger.peak == plans.train[0].peak <= budget


def test_heap_bytes_are_in_no_block_and_in_the_plan_as_saved() -> None:
    plan = OWN.plans("store-all", 1).train[0]
    steps = tuple(
        replace(step, footprint=replace(step.footprint, forward_heap=0, backward_heap=0)) for step in plan.costs.steps
    )
    without = replace(plan, costs=replace(plan.costs, steps=steps))
    assert plan.packing.nbytes == without.packing.nbytes
    assert plan.simulation.most_on_heap > 2 * NBYTES
    assert plan.peak > without.peak
    assert not any(step.footprint.unmeasured for step in plan.costs.steps)
    assert Plan.from_json(plan.to_json()) == plan


def test_bytes_that_depend_on_the_data_are_refused_under_a_budget_and_allowed_without() -> None:
    case = case_of(Masked())
    specs, optimizer = case.specs(2), AdamW()
    run_plans(case.chain, case.loss, *specs, optimizer, shards=2)
    told = (
        r"no memory budget can be promised: what step '1' \(Masked\) takes .* differed by [\d,]{6,} bytes .*footprint"
    )
    with pytest.raises(ValueError, match=told):
        run_plans(case.chain, case.loss, *specs, optimizer, shards=2, budget=2**30)
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    value_and_grad(case.chain, case.loss)(parameters, case.x, case.targets)
    with pytest.raises(ValueError, match="can be promised"):
        value_and_grad(case.chain, case.loss, budget="engine:1GiB")(parameters, case.x, case.targets)


def test_a_footprint_that_says_the_most_is_taken_at_its_word() -> None:
    case = case_of(Bounded())
    plan = case.plans("store-all", 2, budget=2**30).train[0]
    assert plan.costs.steps[1].footprint.backward_heap == 6 * NBYTES
    ledger = Ledger(plan.peak)
    case.engine(ledger).train_step(plan, case.loader(2), 0, 1e-2)
    assert ledger.peak == plan.peak


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
def test_a_layer_that_takes_more_than_was_measured_is_found(switch: Any, block: bool) -> None:
    case = case_of(Switched("more"))
    case.plans("store-all", 2)  # measured, and remembered
    assert witnessed(case, "store-all", 2, block, steps=1).faults == []
    switch["on"] = True
    faults = witnessed(case, "store-all", 2, block, steps=1).faults
    assert any(fault.startswith("forward 1: +") and "made in passing" in fault for fault in faults), faults


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (Switched("shape"), r"Switched gave float32\[511, 64\] where its footprint says float32\[512, 64\]"),
        (Switched("dtype"), r"Switched gave float64\[512, 64\] where its footprint says float32\[512, 64\]"),
        (CountedShape(""), r"CountedShape gave float32\[511, 64\] where .* recomputation included"),
    ],
    ids=["shape", "dtype", "recomputed"],
)
def test_another_shape_or_dtype_than_before_names_the_layer(switch: Any, layer: Layer, told: str, block: bool) -> None:
    case = case_of(layer)
    plan = case.plans("every-k:1", 2).train[0]
    engine = case.engine(block=block)
    switch.update(on=True, calls=0)
    with pytest.raises(ValueError, match=told) as caught:
        engine.train_step(plan, case.loader(2), 0, 1e-2)
    assert any("forward 1" in note for note in caught.value.__notes__)


def test_another_shape_in_the_trace_names_the_layer() -> None:
    class Traced(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return x * 2 if type(x) is np.ndarray else x[1:] * 2

    x = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"Traced.apply gave shape \[2, 2\] .* but \[3, 2\]"):
        Traced().vjp({}, x, None, (), x, {}, Context(Ledger()))


def test_a_layer_that_fails_when_it_is_differentiated_is_named_with_the_original_error_before_any_step() -> None:
    class Failing(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            if type(x) is not np.ndarray:
                raise ZeroDivisionError("no derivative here")
            return x * 2

    case = case_of(Chain(fails=Failing()))
    with pytest.raises(
        ValueError, match=r"step '1.fails': Failing fails .* float32\[512, 64\]: ZeroDivisionError: no derivative here"
    ) as caught:
        case.plans("store-all", 2)
    assert "in apply" in "".join(caught.value.__notes__)


def test_a_draw_that_a_layer_does_not_take_is_left_out() -> None:
    class Positive(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            if type(x) is np.ndarray and not (x.max() > 0 and x.min() >= 0):
                raise ValueError("negative")
            return x * 2

    (heap,) = measure([Question(Positive(), X, True, (True,))], ["it"])
    assert (heap.spread, heap.forward // NBYTES) == (0, 1)


def test_a_layer_that_ends_its_process_is_an_error_with_its_last_words() -> None:
    class Ends(Layer):
        def apply(self, params: Any, x: Any, context: Context) -> Any:
            if os.getpid() != here:
                print("so be it", flush=True)
                os._exit(3)
            return x

    here = os.getpid()
    with pytest.raises(RuntimeError, match=r"\(Ends\) ended with code 3; .* so be it"):
        measure([Question(Ends(), X, True, (True,))], ["it"])


def test_what_cannot_be_pickled_is_measured_here_with_a_warning() -> None:
    @dataclass(frozen=True)
    class Locked(Layer):
        lock: Any = field(default_factory=threading.Lock)

        def apply(self, params: Any, x: Any, context: Context) -> Any:
            return x / (1 + np.exp(-x))

    assert not tracemalloc.is_tracing()
    question = Question(Locked(), X, True, (True,))
    with pytest.warns(
        UserWarning, match=r"step 1: what Locked takes .* in this process.* cannot be pickled \(TypeError"
    ):
        (here,) = measure([question], ["step 1"])
    assert not tracemalloc.is_tracing()
    assert measure([question], ["step 1"]) == [here]  # remembered
    (there,) = measure([Question(Swish(), X, True, (True,))], ["it"])
    assert abs(here.forward - there.forward) <= ROUNDING
    assert abs(here.backward - there.backward) <= ROUNDING


def test_all_layers_are_measured_in_one_process_and_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = probing._ask
    monkeypatch.setattr(probing, "_ask", lambda payloads, kinds: asked.append(len(payloads)) or ask(payloads, kinds))
    monkeypatch.setattr(probing, "_remembered", {})
    case = case_of(Swish(), Affine(WIDTH), Swish(), Residual(Affine(WIDTH)))
    for policy in ("store-all", "sqrt-n"):
        case.plans(policy, 2)  # training and validation
    assert asked == [4]  # two kinds, in training and in evaluation
    costs_of(nested().chain, nested().loss, *nested().specs(1))
    assert len(asked) == 1  # honest layers start no process


def test_second_derivatives_are_planned_with_what_tracing_takes() -> None:
    parameters = Parameters.initialize(OWN.chain.layout(OWN.specs(1)[0]), Key(1))
    direction = Parameters(parameters.layout, Key(2).generator().standard_normal(parameters.flat.size, np.float32))
    run = hvp(OWN.chain, OWN.loss, "every-k:1", shards=2)
    run(parameters, OWN.x, OWN.targets, direction, Key(3))
    swish = run.plan.costs.steps[1].footprint
    assert swish.forward_heap >= 4 * NBYTES
    assert swish.backward_heap >= 8 * NBYTES
    assert run.ledger.peak == run.plan.peak
    again = hvp(OWN.chain, OWN.loss, "every-k:1", shards=2, budget=f"engine:{run.plan.peak}")
    again(parameters, OWN.x, OWN.targets, direction, Key(3))
    assert again.ledger.peak == run.plan.peak
