"""LSTM: the laws of its leaf steps, and of the whole against its definition."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import LSTM, Chain, Key, Ledger, Linear, Parameters, Residual, Spec, Tanh
from framework.differentiation import jvp, vjp
from framework.layers import Context, Extent, Layer, LSTMChunk, flatten, input_specs
from framework.layers.sharing import Adding
from tests.framework.images import assert_bytes_are_exact
from tests.framework.recurrent import CALLS, STEPS, StepCall, any_step
from tests.framework.test_layer_tangents import (
    assert_adjoint,
    assert_jvp_is_the_traced_one,
    assert_vjp_is_the_traced_one,
)
from tests.framework.test_layers import (
    Shape,
    assert_forward_is_the_definition,
    assert_near,
    assert_vjp_is_the_derivative,
    same_bits,
)

each_call = pytest.mark.parametrize(("name", "shape"), CALLS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def call_of(name: str, shape: Shape, dtype: str = "float64") -> StepCall:
    return StepCall(STEPS[name][0], shape, dtype)


@each_call
def test_rules_by_hand_are_those_traced_from_the_definition(name: str, shape: Shape) -> None:
    call = call_of(name, shape)
    assert_forward_is_the_definition(call)
    assert_vjp_is_the_traced_one(call)
    assert_jvp_is_the_traced_one(call)
    assert_adjoint(call)
    assert_vjp_is_the_derivative(call)


@settings(max_examples=80)
@given(step=any_step(), dtype=st.sampled_from(["float32", "float64"]))
def test_rules_and_bytes_of_drawn_steps(step: tuple[Layer, Shape], dtype: str) -> None:
    call = StepCall(*step)
    assert_forward_is_the_definition(call)
    assert_vjp_is_the_traced_one(call)
    assert_jvp_is_the_traced_one(call)
    assert_adjoint(call)
    assert_bytes_are_exact(StepCall(*step, dtype))


@each_dtype
@each_call
def test_the_footprint_is_exact_to_the_byte(name: str, shape: Shape, dtype: str) -> None:
    assert_bytes_are_exact(call_of(name, shape, dtype))


@each_call
def test_calls_are_pure_and_keep_the_dtype(name: str, shape: Shape) -> None:
    call = call_of(name, shape, "float32")
    (y, own), (y2, own2) = call.forward(), call.forward()
    (xs, grads), (xs2, grads2) = call.vjp(), call.vjp(fill=0.0, only_needed=False)
    first, second = [y, *own, *xs, *grads.values()], [y2, *own2, *xs2, *grads2.values()]
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert same_bits(call.jvp()[0], y)
    assert {a.dtype.name for a in (*first, call.apply())} == {"float32"}
    double = call_of(name, shape)
    for found, expected in zip((*xs, *grads.values()), (*double.vjp()[0], *double.vjp()[1].values()), strict=True):
        assert_near(found, expected, 1e-4)


@each_call
def test_an_unwanted_cotangent_is_none_and_the_gradient_the_same(name: str, shape: Shape) -> None:
    call = call_of(name, shape)
    cotangents, grads = call.vjp(wanted=False)
    assert cotangents == (None,) * len(call.inputs)
    assert all(same_bits(grads[local], found) for local, found in call.vjp()[1].items())


@pytest.mark.parametrize("rule", ["forward", "vjp", "jvp"])
def test_numpy_allocates_nothing_behind_the_ledger(rule: str) -> None:
    call, ledger = StepCall(LSTMChunk(120, 1, 2), (40, 20, 90)), Ledger()
    y, own = call.forward()
    grads = {local: np.empty_like(parameter) for local, parameter in call.params.items()}
    rules: dict[str, Any] = {
        "forward": lambda: call.layer.forward(call.params, call.x, call.context(ledger)),
        "vjp": lambda: call.layer.vjp(call.params, call.x, y, own, call.cotangent, grads, call.context(ledger)),
        "jvp": lambda: call.jvp(ledger),
    }
    tracemalloc.start()
    try:
        rules[rule]()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ledger.peak <= peak <= ledger.peak + 48 * 1024


WHOLE = [
    (1, (2, 5, 3)),
    (3, (2, 7, 3)),
    (4, (1, 3, 2)),
    (8, (3, 1, 4)),
    (5, (2, 12, 1)),
    (7, (2, 7, 3)),
    (2, (0, 3, 2)),
]
each_whole = pytest.mark.parametrize(("chunks", "shape"), WHOLE)


def made(layer: LSTM, x: Spec) -> Parameters:
    return Parameters.initialize(layer.layout(x), Key(1))


@each_whole
def test_the_chunks_together_are_the_definition_of_the_whole(chunks: int, shape: Shape) -> None:
    layer, generator = LSTM(4, chunks), np.random.default_rng(2)
    x, moved = generator.standard_normal((2, *shape))
    parameters = made(layer, Spec.of(shape, "float64"))
    direction = {local: generator.standard_normal(p.shape) for local, p in parameters.items()}
    params, values = parameters.by_layer(), {-1: x}
    for number, step in enumerate(flatten(layer)):
        inputs = tuple(values[source] for source in step.inputs)
        given = inputs if len(inputs) > 1 else inputs[0]
        values[number], _ = step.layer.forward(params.get(step.path, {}), given, Context(Ledger()))
    context = Context(Ledger())
    assert_near(values[chunks], layer.apply(dict(parameters), x, context), 1e-12)
    found = layer.jvp(dict(parameters), x, direction, moved, context)
    expected = jvp(lambda p, x: layer.apply(p, x, context), (dict(parameters), x), (direction, moved))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-12)


@each_whole
def test_cutting_time_changes_the_numbers_by_rounding_alone(chunks: int, shape: Shape) -> None:
    x = np.random.default_rng(3).standard_normal(shape)
    one, other = LSTM(4, 1), LSTM(4, chunks)
    parameters = made(one, Spec.of(shape, "float64"))
    assert made(other, Spec.of(shape, "float64")).flat.tobytes() == parameters.flat.tobytes()
    still = {local: np.zeros_like(p) for local, p in parameters.items()}
    outputs = [layer.jvp(dict(parameters), x, still, np.zeros_like(x), Context(Ledger()))[0] for layer in (one, other)]
    assert_near(outputs[0], outputs[1], 1e-12)


def test_names_paths_and_stages() -> None:
    x = Spec.of((2, 7, 3), "float32")
    chain = Chain(up=Linear(4), rnn=LSTM(5, 3), mid=Tanh(), deep=Residual(Chain(inner=LSTM(5, 2))), head=Linear(2))
    steps = flatten(chain)
    assert [(step.path, step.inputs, step.stage) for step in steps] == [
        ("up", (-1,), 0),
        ("rnn.chunk0", (0,), 1),
        ("rnn.chunk1", (0, 1), 2),
        ("rnn.chunk2", (0, 2), 3),
        ("rnn.output", (1, 2, 3), 3),
        ("mid", (4,), 4),
        ("deep.inner.chunk0", (5,), 5),
        ("deep.inner.chunk1", (5, 6), 5),
        ("deep.inner.output", (6, 7), 5),
        ("deep.add", (8, 5), 5),
        ("head", (9,), 6),
    ]
    shapes = {name: spec.shape for name, spec in chain.parameters(x).items()}
    assert shapes == {
        "up.weight": (4, 3),
        "up.bias": (4,),
        "rnn.weight_ih": (20, 4),
        "rnn.weight_hh": (20, 5),
        "rnn.bias": (20,),
        "deep.inner.weight_ih": (20, 5),
        "deep.inner.weight_hh": (20, 5),
        "deep.inner.bias": (20,),
        "head.weight": (2, 5),
        "head.bias": (2,),
    }
    assert [isinstance(step.layer, Adding) for step in steps[1:4]] == [True, True, False]
    assert [*LSTM(5, 2).parameters(x)] == ["weight_ih", "weight_hh", "bias"]
    outputs = [step.layer.footprint(spec).output for step, spec in zip(steps, input_specs(steps, x), strict=True)]
    assert [spec.shape for spec in outputs[1:5]] == [(5, 2, 5), (5, 2, 5), (3, 2, 5), (2, 7, 5)]


def test_a_single_lstm_is_a_chain_of_its_chunks() -> None:
    steps = flatten(LSTM(2, 3))
    assert [(s.path, s.stage) for s in steps] == [("chunk0", 0), ("chunk1", 1), ("chunk2", 2), ("output", 2)]


def test_a_chunk_keeps_the_gates_and_its_start_alone_and_tells_which_cotangents_are_not_zero() -> None:
    x, before = Spec.of((2, 7, 4), "float32"), Spec.of((5, 2, 6), "float32")
    footprint = LSTMChunk(6, 1, 3).footprint((x, before))
    assert [spec.shape for spec in footprint.own] == [(3, 2, 24), (2, 2, 6)]
    assert (footprint.needs_input, footprint.needs_output) == ((True, False), False)
    assert footprint.cotangent_extents == (Extent(1, 3, 6), Extent(0, 3, 5))
    assert footprint.cotangent(0, x).shape == (2, 3, 4)
    assert footprint.cotangent(1, before).shape == (2, 2, 6)
    assert LSTMChunk(6, 0, 1).footprint(x).cotangent_extents == ()


def test_it_starts_uniform_within_one_over_the_root_of_its_features() -> None:
    parameters = made(LSTM(100), Spec.of((1, 9, 30), "float64"))
    for view in parameters.values():
        assert np.abs(view).max() <= 0.1
        # Six standard deviations of the mean of independent draws.
        assert abs(view.mean()) < 6 * 0.1 / np.sqrt(3 * view.size)
    assert np.abs(parameters.flat).max() > 0.0999


@each_dtype
def test_nothing_overflows_at_ten_thousand(dtype: str) -> None:
    call = StepCall(LSTMChunk(3, 1, 2), (2, 4, 5), dtype)
    call.inputs = tuple((1e4 * x).astype(dtype) for x in call.inputs)
    y, own = call.forward()
    cotangents, grads = call.vjp()
    moved = call.jvp()[1]
    for found in (y, *own, *cotangents, *grads.values(), moved):
        assert np.isfinite(found).all()
    assert_near(y, call.apply(), 1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Spec.of((2, 3), "float32"), r"shape \(batch, time, features\).*float32\[2, 3\]"),
        (Spec.of((2, 0, 3), "float32"), "at least one step of time"),
        (Spec.of((2, 4, 3), "int64"), "floats.*int64"),
    ],
)
def test_what_an_lstm_does_not_take_is_a_clear_error(x: Spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(4).layout(x)


@pytest.mark.parametrize("options", [{"features": 0}, {"features": 3, "chunks": 0}])
def test_sizes_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one feature and one chunk"):
        LSTM(**options)


def test_the_vjp_of_the_whole_is_the_one_traced_from_its_definition_through_any_element() -> None:
    """The VJP of one element of the output alone, so that no cotangent hides in another's sum."""
    call = StepCall(LSTMChunk(2, 1, 2), (1, 4, 2))
    _, pull = vjp(lambda p, *x: call.apply(x, p), call.params, *call.inputs)
    for place in np.ndindex(call.cotangent.shape):
        call.cotangent = np.zeros(call.cotangent.shape)
        call.cotangent[place] = 1.0
        assert_vjp_is_the_traced_one(call)
        assert pull(call.cotangent)[1][:, :2].any() == False  # noqa: E712  (the chunk before reads these)
