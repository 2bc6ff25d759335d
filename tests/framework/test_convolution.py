"""Convolutions of any sizes, the way that they are cut, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import Chain, Conv2d, Key, Layer, Ledger, Parameters, Spec, Upsample2d
from framework.layers import Context, correlations, shifts
from framework.layers.windows import Windows
from framework.parameters import Constant, Normal
from tests.framework.images import ImageCall, assert_bytes_are_exact
from tests.framework.test_layer_tangents import assert_adjoint
from tests.framework.test_layers import assert_forward_is_the_definition, assert_vjp_is_the_derivative

two = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def convolutions(draw: st.DrawFn) -> ImageCall:
    """Convolutions of all options on images of up to 7x7 pixels."""
    groups = draw(st.integers(1, 3))
    channels, features = (groups * draw(st.integers(1, 3)) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    layer = Conv2d(features, draw(two), draw(two), padding, draw(two), groups, draw(st.booleans()))
    kernel, dilation = layer.kernel, layer.dilation
    assert isinstance(kernel, tuple)
    assert isinstance(dilation, tuple)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    image = (draw(st.integers(size, size + 5)) for size in least)
    return ImageCall(layer, (draw(st.integers(0, 3)), channels, *image))


@settings(max_examples=40)
@given(call=convolutions(), size=st.sampled_from([2**18, 300, 60]), least=st.sampled_from([1, 1, 8]))
def test_any_convolution_is_its_definition_its_derivative_and_its_bytes(call: ImageCall, size: int, least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlations, "COLUMNS", size)
        patch.setattr(shifts, "STACK", size)
        patch.setattr(shifts, "LEAST", least)
        fresh = ImageCall(call.layer, call.inputs[0].shape)
        assert_forward_is_the_definition(fresh)
        assert_vjp_is_the_derivative(fresh)
        assert_adjoint(fresh)
        assert_bytes_are_exact(fresh)


@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), padding=st.integers(0, 3), dilation=st.integers(1, 3), data=st.data()
)  # fmt: skip
def test_taps_name_each_pixel_that_a_window_meets(
    kernel: int, stride: int, padding: int, dilation: int, data: st.DataObject
) -> None:
    windows = Windows((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    size = data.draw(st.integers(max(1, windows.reach[0] - 2 * padding), 12))
    count = windows.count((size, 1))[0]
    first = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(first + 1, count))
    for tap in windows.over((size, 1), slice(first, stop)):
        expected = [
            (window - first, pixel)
            for window in range(first, stop)
            if 0 <= (pixel := window * stride + tap.number * dilation - padding) < size
        ]
        met = zip(range(stop - first)[tap.windows[0]], range(size)[tap.pixels[0]], strict=True)
        assert list(met) == expected
        left_out = sorted(w for rows, _ in tap.outside for w in range(stop - first)[rows])
        assert left_out == sorted(set(range(stop - first)) - {window for window, _ in expected})


def test_scratch_does_not_grow_with_the_batch() -> None:
    for layer in (Conv2d(8, 3, padding=1), Conv2d(8, 1), Conv2d(8, 3, groups=8)):
        small, large = (layer.footprint(Spec.of((n, 8, 16, 16), "float32")) for n in (64, 640))
        assert small.forward_workspace == large.forward_workspace
        assert small.backward_workspace == large.backward_workspace


def test_scratch_is_bounded_however_large_the_image() -> None:
    footprint = Conv2d(16, 3).footprint(Spec.of((2, 16, 1000, 1000), "float32"))
    assert footprint.backward_workspace <= 4 * (shifts.STACK + 2 * 16 * 16 * 9)
    assert footprint.output.nbytes > 50 * footprint.backward_workspace


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(4, 0), "kernel is a whole number from 1.*got 0"),
        (lambda: Conv2d(4, (3, 0)), r"kernel.*\(3, 0\)"),
        (lambda: Conv2d(4, 3, stride=0), "stride"),
        (lambda: Conv2d(4, 3, padding=-1), "padding is a whole number from 0"),
        (lambda: Conv2d(4, 3, dilation=(1, 2, 3)), "dilation"),  # type: ignore[arg-type]
        (lambda: Conv2d(4, 2.0), "kernel"),  # type: ignore[arg-type]
        (lambda: Conv2d(5, 3, groups=2), "5 features and 2 groups"),
        (lambda: Conv2d(0, 3), "0 features"),
        (lambda: Upsample2d(0), "scale"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Conv2d(4, 3), Spec.of((2, 3, 5), "float32"), "batch, channels, height, width"),
        (Conv2d(4, 3), Spec.of((2, 3, 5, 5), np.uint8), "floats"),
        (Conv2d(4, 3), Spec.of((2, 0, 5, 5), "float32"), "channels"),
        (Conv2d(4, 3, groups=2), Spec.of((2, 3, 5, 5), "float32"), "2 groups.*divisible"),
        (Conv2d(4, 3, padding=1, dilation=3), Spec.of((2, 3, 4, 9), "float32"), "7x7 pixels.*4x9.*6x11"),
        (Upsample2d(2), Spec.of((3, 5, 5), "float32"), "batch, channels"),
    ],
)
def test_an_input_that_a_layer_does_not_take_is_a_clear_error(layer: Layer, x: Spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.footprint(x)
    if isinstance(layer, Conv2d) and "pixels" not in message:
        with pytest.raises(ValueError, match=message):
            layer.parameters(x)


def test_parameters_have_the_shapes_and_bounds_of_pytorchs() -> None:
    x = Spec.of((1, 6, 9, 9), "float32")
    found = Conv2d(64, (3, 2), groups=2).parameters(x)
    assert {name: spec.shape for name, spec in found.items()} == {"weight": (64, 3, 3, 2), "bias": (64,)}
    weight = Parameters.initialize(Chain(Conv2d(64, (3, 2), groups=2)).layout(x), Key(0))["0.weight"]
    assert 0.98 / np.sqrt(18) < np.abs(weight).max() <= 1 / np.sqrt(18)
    own = Conv2d(4, 3, initializer=Normal(0.1)).parameters(x)
    assert (own["weight"].initializer, own["bias"].initializer) == (Normal(0.1), Constant(0.0))


def test_rules_leave_numpys_buffers_as_they_were() -> None:
    before = np.getbufsize()
    call = ImageCall(Conv2d(2, 3), (1, 1, 4, 4))
    call.vjp()
    assert np.getbufsize() == before
    with pytest.raises(ValueError, match="one dtype"):
        call.layer.forward({"weight": np.zeros((2, 1, 3, 3), "f"), "bias": np.zeros(2)}, call.x, Context(Ledger()))
    assert np.getbufsize() == before
