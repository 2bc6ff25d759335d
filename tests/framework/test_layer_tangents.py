"""JVPs of layers and tangents of their VJPs: those by hand are those traced from the definition, and their bytes are as said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import (
    Attention,
    CausalAttention,
    Chain,
    Dropout,
    Embedding,
    Key,
    Layer,
    Ledger,
    Linear,
    Parameters,
    ReLU,
    Residual,
)
from framework.differentiation import jvp, vjp
from framework.layers import Add, Context, LayerNorm
from framework.layers.traced import traced_vjp_with_tangent
from tests.framework.test_chain import NETWORKS, X
from tests.framework.test_layers import (
    EXTREMES,
    FAMILIES,
    LARGE,
    OF_ONE,
    Call,
    assert_near,
    drawn,
    locked,
    numbers,
    same_bits,
    spread,
)

TOLERANCE = 1e-12
FLAT = [name for name, family in FAMILIES.items() if family.make("float64").piecewise_linear]
CURVED = [name for name in FAMILIES if name not in FLAT]

few = settings(max_examples=15)
each_layer = pytest.mark.parametrize("name", FAMILIES)
each_large = pytest.mark.parametrize(("name", "shape"), LARGE)


class Moving(Call):
    """A call with tangents of all that it takes."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str = "float64") -> None:
        super().__init__(name, shape, dtype)
        generator = np.random.default_rng([5, *shape])
        self.tangents = tuple(None if x.dtype.kind != "f" else numbers(generator, x.shape, dtype) for x in self.inputs)
        self.params_tangent = {local: numbers(generator, p.shape, dtype) for local, p in self.params.items()}
        self.cotangent_tangent = numbers(generator, self.cotangent.shape, dtype)

    @property
    def fixed(self) -> bool:
        """Whether the input is integers, which do not move."""
        return self.tangents[0] is None

    @property
    def tangent(self) -> Any:
        return self.joined(self.tangents)

    def jvp(self, ledger: Ledger | None = None) -> tuple[np.ndarray, np.ndarray]:
        return self.layer.jvp(self.params, self.x, self.params_tangent, self.tangent, self.context(ledger))

    def traced_jvp(self) -> tuple[Any, Any]:
        """By tracing `apply` over the whole input."""
        if self.fixed:
            return jvp(lambda params: self.apply(params=params), (self.params,), (self.params_tangent,))
        return jvp(lambda params, x: self.apply(x, params), (self.params, self.x), (self.params_tangent, self.tangent))


def moving(name: str, data: st.DataObject, dtype: str = "float64") -> Moving:
    return Moving(name, drawn(name, data, dtype).inputs[0].shape, dtype)


def assert_jvp_is_the_traced_one(call: Moving) -> None:
    (y, tangent), (value, expected) = call.jvp(), call.traced_jvp()
    assert_near(y, value, TOLERANCE)
    assert_near(tangent, expected, TOLERANCE)


@each_layer
@few
@given(data=st.data())
def test_a_jvp_by_hand_is_the_one_traced_from_the_definition(name: str, data: st.DataObject) -> None:
    assert_jvp_is_the_traced_one(moving(name, data))


@each_large
def test_a_jvp_is_the_one_traced_from_the_definition_over_several_blocks(name: str, shape: tuple[int, ...]) -> None:
    assert_jvp_is_the_traced_one(Moving(name, shape))


def assert_vjp_is_the_traced_one(call: Moving) -> None:
    cotangents, grads = call.vjp()
    if call.fixed:
        (expected,) = vjp(lambda params: call.apply(params=params), call.params)[1](call.cotangent)
        assert cotangents == (None,)
    else:
        _, pull = vjp(lambda params, *x: call.apply(call.joined(x), params), call.params, *call.inputs)
        expected, *others = pull(call.cotangent)
        for found, one in zip(spread(call, cotangents), others, strict=True):
            assert_near(found, one, TOLERANCE)
    for name, one in expected.items():
        assert_near(grads[name], one, TOLERANCE)


@each_layer
@few
@given(data=st.data())
def test_a_vjp_by_hand_is_the_one_traced_from_the_definition(name: str, data: st.DataObject) -> None:
    assert_vjp_is_the_traced_one(moving(name, data))


@each_large
def test_a_vjp_is_the_one_traced_from_the_definition_over_several_blocks(name: str, shape: tuple[int, ...]) -> None:
    assert_vjp_is_the_traced_one(Moving(name, shape))


def assert_adjoint(call: Moving) -> None:
    """⟨ȳ, ẏ⟩ = ⟨x̄, ẋ⟩ + ⟨p̄, ṗ⟩ with the hand-written VJP."""
    left = call.cotangent * call.jvp()[1]
    cotangents, grads = call.vjp()
    cotangents = spread(call, cotangents)
    right = [c * t for c, t in zip(cotangents, call.tangents, strict=True) if c is not None]
    right += [grads[local] * call.params_tangent[local] for local in grads]
    scale = 1 + float(np.abs(left).sum()) + sum(float(np.abs(part).sum()) for part in right)
    assert abs(float(left.sum()) - sum(float(part.sum()) for part in right)) <= TOLERANCE * scale


@each_layer
@few
@given(data=st.data())
def test_jvp_and_vjp_are_adjoint(name: str, data: st.DataObject) -> None:
    assert_adjoint(moving(name, data))


@each_large
def test_jvp_and_vjp_are_adjoint_over_several_blocks(name: str, shape: tuple[int, ...]) -> None:
    assert_adjoint(Moving(name, shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_layer
@few
@given(data=st.data())
def test_a_jvp_makes_two_outputs_of_the_ledger_and_what_the_footprint_says(
    name: str, dtype: str, data: st.DataObject
) -> None:
    call, ledger = moving(name, data, dtype), Ledger()
    y, tangent = call.jvp(ledger)
    outputs = 0 if call.footprint.output_aliases_input else 2 * call.footprint.output.nbytes
    assert y.dtype == tangent.dtype == dtype
    assert same_bits(y, call.forward()[0])
    assert ledger.by_category() == ({"activations": outputs} if outputs else {})
    assert ledger.peak == outputs + call.footprint.jvp_workspace
    del y, tangent
    assert ledger.live == 0


def vjp_with_tangent(call: Moving, rule: Any, wanted: bool = True, in_place: bool = False) -> tuple[list[Any], Ledger]:
    """Returns what a rule writes, starting from NaN, and the ledger that counted its scratch.

    An input whose cotangent nobody reads does not move.
    """
    ledger, (x,), (tangent,) = Ledger(), call.inputs, call.tangents
    if not wanted:
        tangent = np.zeros_like(x)
    grads = tuple({local: np.full_like(p, np.nan) for local, p in call.params.items()} for _ in range(2))
    cotangents = (call.cotangent.copy(), call.cotangent_tangent.copy())
    found: Any = cotangents if in_place else (np.full_like(x, np.nan), np.full_like(x, np.nan))
    into = found if wanted else None
    rule((call.params, call.params_tangent), (x, tangent), cotangents, grads, into, call.context(ledger, wanted))
    return [*grads[0].values(), *grads[1].values(), *(into or ())], ledger


@pytest.mark.parametrize("name", CURVED)
@few
@given(data=st.data())
def test_the_tangent_of_a_vjp_by_hand_is_the_traced_one(name: str, data: st.DataObject) -> None:
    call = moving(name, data)
    layer = call.layer
    for wanted in (True, False):
        if not wanted and not call.params:
            continue  # has no backward then
        found, ledger = vjp_with_tangent(call, layer.vjp_with_tangent, wanted)
        expected, _ = vjp_with_tangent(call, lambda *args: traced_vjp_with_tangent(layer, *args), wanted)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, TOLERANCE)
        assert ledger.live == 0
        assert ledger.peak == call.footprint.hvp_workspace


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shape in LARGE if name in CURVED])
def test_the_tangent_of_a_vjp_is_the_derivative_of_the_vjp_over_several_blocks(
    name: str, shape: tuple[int, ...]
) -> None:
    call = Moving(name, shape)
    found, ledger = vjp_with_tangent(call, call.layer.vjp_with_tangent)
    assert ledger.peak == call.footprint.hvp_workspace

    def pull(params: Any, x: Any, g: Any) -> Any:
        return vjp(lambda params, x: call.apply(x, params), params, x)[1](g)

    primals = call.params, call.x, call.cotangent
    values, tangents = jvp(pull, primals, (call.params_tangent, call.tangent, call.cotangent_tangent))
    expected = [*values[0].values(), *tangents[0].values(), values[1], tangents[1]]
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, TOLERANCE)


@pytest.mark.parametrize(
    "name", [name for name in CURVED if Call(name, FAMILIES[name].tiny).footprint.backward_in_place]
)
def test_the_tangent_of_a_vjp_in_place_has_the_same_bits(name: str) -> None:
    call = Moving(name, FAMILIES[name].large[0])
    apart, _ = vjp_with_tangent(call, call.layer.vjp_with_tangent)
    over, _ = vjp_with_tangent(call, call.layer.vjp_with_tangent, in_place=True)
    assert all(same_bits(a, b) for a, b in zip(apart, over, strict=True))


@pytest.mark.parametrize("name", [name for name in OF_ONE if name in CURVED])
def test_the_tangent_of_a_vjp_does_not_overflow_at_ten_thousand_in_float32(name: str) -> None:
    call = Moving(name, (len(EXTREMES),), "float32")
    call.inputs = (np.array(EXTREMES, np.float32),)
    found, _ = vjp_with_tangent(call, call.layer.vjp_with_tangent)
    assert all(np.isfinite(part).all() and part.dtype == np.float32 for part in found)


@pytest.mark.parametrize("name", FLAT)
@few
@given(data=st.data())
def test_the_vjp_of_a_piecewise_linear_layer_does_not_move_with_its_input_and_parameters(
    name: str, data: st.DataObject
) -> None:
    call = moving(name, data)
    still = call.params, *call.inputs

    def pull(*moving: Any) -> Any:
        if call.fixed:
            return vjp(lambda params: call.apply(params=params), moving[0])[1](call.cotangent)
        return vjp(lambda params, *x: call.apply(call.joined(x), params), *moving)[1](call.cotangent)

    moves = call.params_tangent, *call.tangents
    if call.fixed:
        still, moves = still[:1], moves[:1]
    for tangent in jvp(pull, still, moves)[1]:
        for part in tangent.values() if isinstance(tangent, dict) else (tangent,):
            assert not np.any(part)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jvp_of_a_composite_is_the_one_traced_from_its_definition(name: str) -> None:
    network, _ = NETWORKS[name]
    generator = np.random.default_rng(1)
    parameters = Parameters.initialize(network.layout(X), Key(1))
    direction = {local: generator.standard_normal(p.shape) for local, p in parameters.items()}
    x, x_tangent = generator.standard_normal((2, *X.shape))
    context = Context(Ledger(), key=Key(5).fold("shard", 0))
    found = network.jvp(dict(parameters), x, direction, x_tangent, context)
    expected = jvp(lambda p, x: network.apply(p, x, context), (dict(parameters), x), (direction, x_tangent))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_forward_mode_holds_the_same_at_any_depth() -> None:
    x = np.random.default_rng(0).standard_normal((16, 64))

    def peak(depth: int) -> int:
        block = Residual(Chain(LayerNorm(), Linear(64), ReLU()))
        chain, ledger = Chain(*[block] * depth), Ledger()
        parameters = dict(Parameters.initialize(chain.layout(Call("linear", x.shape).spec), Key(1)))
        y, tangent = chain.jvp(parameters, x, parameters, x, Context(ledger))
        assert ledger.live == y.nbytes + tangent.nbytes
        return ledger.peak

    assert peak(2) == peak(3) == peak(20)


def test_layers_keep_nothing_and_change_nothing_in_a_jvp() -> None:
    for layer, x in ((Dropout(0.5), locked(np.ones((3, 4)))), (Add(), (locked(np.ones(3)), locked(np.ones(3))))):
        context = Context(Ledger(), key=Key(1))
        first, second = (layer.jvp({}, x, {}, x, context) for _ in range(2))
        assert same_bits(first[1], second[1])
        assert same_bits(first[0], first[1])  # both are linear


@pytest.mark.parametrize("layer", [Embedding(4, 3, 2, "float64"), Attention(1), CausalAttention(1)])
def test_a_jvp_of_nothing_has_the_shape_of_nothing(layer: Layer) -> None:
    x: Any = np.zeros((0, 3), np.uint8) if isinstance(layer, Embedding) else np.zeros((0, 3, 6))
    params = {"token": np.ones((4, 2)), "position": np.ones((3, 2))} if isinstance(layer, Embedding) else {}
    y, tangent = layer.jvp(params, x, params, None if x.dtype.kind == "u" else x, Context(Ledger()))
    assert y.shape == tangent.shape == (0, 3, 2)
