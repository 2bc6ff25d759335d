"""The laws of layers on images: definition, derivatives by hand and by tracing, bytes, dtypes, purity."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import Conv2d, Ledger
from framework.layers import correlations
from framework.layers.traced import traced_vjp_with_tangent
from tests.framework import images
from tests.framework.images import CALLS, LAYERS, ImageCall, assert_bytes_are_exact
from tests.framework.test_layer_tangents import (
    assert_adjoint,
    assert_jvp_is_the_traced_one,
    assert_vjp_is_the_traced_one,
    vjp_with_tangent,
)
from tests.framework.test_layers import (
    Shape,
    assert_forward_is_the_definition,
    assert_near,
    assert_vjp_is_the_derivative,
    same_bits,
)

TOLERANCE = 1e-12
#: Convolutions are tried once more with blocks of a row or two, so that all ways of cutting are met on small images.
CUT = [(90, name, shape) for name, shape in CALLS if isinstance(LAYERS[name][0], Conv2d)]
EACH = [(correlations.COLUMNS, name, shape) for name, shape in CALLS] + CUT
IDS = [f"{name} {shape}{' cut' * (columns == 90)}" for columns, name, shape in EACH]

each_call = pytest.mark.parametrize(("columns", "name", "shape"), EACH, ids=IDS, indirect=["columns"])
each_curved = pytest.mark.parametrize(
    ("columns", "name", "shape"),
    curved := [call for call in EACH if not LAYERS[call[1]][0].piecewise_linear],
    ids=[IDS[EACH.index(call)] for call in curved],
    indirect=["columns"],
)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlations, "COLUMNS", request.param)


def call_of(name: str, shape: Shape, dtype: str = "float64") -> ImageCall:
    return ImageCall(LAYERS[name][0], shape, dtype)


@each_call
def test_rules_by_hand_are_those_traced_from_the_definition(columns: None, name: str, shape: Shape) -> None:
    call = call_of(name, shape)
    assert_forward_is_the_definition(call)
    assert_vjp_is_the_traced_one(call)
    assert_jvp_is_the_traced_one(call)
    assert_adjoint(call)


@settings(max_examples=150)
@given(data=st.data())
def test_rules_and_bytes_of_drawn_layers_on_drawn_images(data: st.DataObject) -> None:
    layer, shape = data.draw(images.ANY_IMAGES, "layer and shape")
    call = ImageCall(layer, shape)
    assert_forward_is_the_definition(call)
    assert_vjp_is_the_traced_one(call)
    assert_jvp_is_the_traced_one(call)
    assert_adjoint(call)
    assert_bytes_are_exact(ImageCall(layer, shape, data.draw(st.sampled_from(["float32", "float64"]), "dtype")))


@each_call
def test_the_vjp_is_the_derivative_by_differences(columns: None, name: str, shape: Shape) -> None:
    assert_vjp_is_the_derivative(call_of(name, shape))


@each_curved
def test_the_tangent_of_a_vjp_by_hand_is_the_traced_one(columns: None, name: str, shape: Shape) -> None:
    call = call_of(name, shape)
    for wanted in (True, False):
        found, ledger = vjp_with_tangent(call, call.layer.vjp_with_tangent, wanted)
        expected, _ = vjp_with_tangent(call, lambda *args: traced_vjp_with_tangent(call.layer, *args), wanted)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, TOLERANCE)
        assert (ledger.live, ledger.peak) == (0, call.footprint.hvp_workspace)


@each_dtype
@each_call
def test_the_footprint_is_exact_to_the_byte(columns: None, name: str, shape: Shape, dtype: str) -> None:
    assert_bytes_are_exact(call_of(name, shape, dtype))


@each_call
def test_calls_are_pure_and_keep_the_dtype(columns: None, name: str, shape: Shape) -> None:
    call = call_of(name, shape, "float32")
    (y, own), (y2, own2) = call.forward(), call.forward()
    (xs, grads), (xs2, grads2) = call.vjp(), call.vjp(fill=0.0, only_needed=False)
    first, second = [y, *own, *xs, *grads.values()], [y2, *own2, *xs2, *grads2.values()]
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    assert same_bits(call.jvp()[0], y)
    assert {a.dtype.name for a in (y, *xs, *grads.values(), call.apply())} == {"float32"}
    double = call_of(name, shape)
    for found, expected in zip((*xs, *grads.values()), (*double.vjp()[0], *double.vjp()[1].values()), strict=True):
        assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_is_not_contiguous_is_refused_or_read_right(name: str) -> None:
    call = call_of(name, LAYERS[name][1][0])
    expected = call.forward()[0]
    call.inputs = tuple(np.asfortranarray(x) for x in call.inputs)
    try:
        found = call.forward()[0]
    except ValueError as error:
        assert "contiguous" in str(error)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


#: NumPy's buffers, and the interpreter's objects.
BUFFERS = 48 * 1024
#: Of a size at which a copy of any array would be seen.
LARGE = {
    "convolution": (24, 8, 48, 48),
    "stride below the kernel": (24, 8, 48, 48),
    "grouped convolution": (24, 9, 48, 48),
    "convolution of one pixel": (24, 8, 48, 48),
    "largest of windows that overlap": (24, 8, 64, 64),
    "mean of windows that overlap": (24, 8, 64, 64),
    "mean of all": (24, 8, 64, 64),
    "upsampling": (24, 8, 48, 48),
    "flatten": (24, 8, 48, 48),
    "join": (24, 8, 48, 48),
}


@pytest.mark.parametrize("name", LARGE)
def test_numpy_allocates_nothing_behind_the_ledger(name: str) -> None:
    call, ledger = call_of(name, LARGE[name]), Ledger()
    y, own = call.forward()
    grads = {local: np.empty_like(parameter) for local, parameter in call.params.items()}
    rules: list[Any] = [
        lambda: call.layer.forward(call.params, call.x, call.context(ledger)),
        lambda: call.layer.vjp(call.params, call.x, y, own, call.cotangent, grads, call.context(ledger)),
        lambda: call.jvp(ledger),
    ]
    for rule in rules:
        ledger.reset_peak()
        tracemalloc.start()
        try:
            rule()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert ledger.peak <= peak <= ledger.peak + BUFFERS
