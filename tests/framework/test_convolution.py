"""Convolutions of any sizes, the way that they are cut, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import Chain, Conv2d, Key, Layer, Ledger, Parameters, Spec, Upsample2d
from framework.layers import Context, correlations, shifts, winograd
from framework.layers.convolution import correlation
from framework.layers.correlations import ByColumns, Correlation, Joint, Shapes
from framework.layers.shifts import ByShifts
from framework.layers.windows import Windows
from framework.layers.winograd import Winograd
from framework.parameters import Constant, Normal
from tests.framework.images import ImageCall, assert_bytes_are_exact
from tests.framework.test_layer_tangents import assert_adjoint, assert_vjp_is_the_traced_one
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
        patch.setattr(winograd, "STACK", size)
        patch.setattr(winograd, "LEAST", least)
        fresh = ImageCall(call.layer, call.inputs[0].shape)
        assert_forward_is_the_definition(fresh)
        assert_vjp_is_the_derivative(fresh)
        assert_adjoint(fresh)
        assert_bytes_are_exact(fresh)


@st.composite
def three_rows(draw: st.DrawFn) -> ImageCall:
    """Convolutions of three rows of taps with stride 1, on images of up to 9x9 pixels: odd and even, smaller than the kernel, of none."""
    groups, across, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels, features = (groups * draw(st.integers(1, 3)) for _ in range(2))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, dilation * (across - 1)))
    layer = Conv2d(features, (3, across), 1, padding, (1, dilation), groups, draw(st.booleans()))
    least = max(1, 3 - 2 * padding[0]), max(1, dilation * (across - 1) + 1 - 2 * padding[1])
    image = (draw(st.integers(size, size + 6)) for size in least)
    return ImageCall(layer, (draw(st.integers(0, 5)), channels, *image))


def shapes_of(call: ImageCall) -> Shapes:
    assert isinstance(call.layer, Conv2d)
    return call.layer._shapes(call.x)


@settings(max_examples=60)
@given(call=three_rows(), size=st.sampled_from([2**18, 1000, 300, 60]))
def test_three_rows_by_two_products_a_row_are_the_definition_and_its_derivative(call: ImageCall, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "STACK", size)
        patch.setattr(winograd, "LEAST", 1)
        assert isinstance(correlation(shapes_of(call)), Winograd) or call.layer.kernel == (1, 1)
        fresh = ImageCall(call.layer, call.inputs[0].shape)
        assert_forward_is_the_definition(fresh)
        assert_vjp_is_the_traced_one(fresh)
        assert_vjp_is_the_derivative(fresh)
        assert_adjoint(fresh)
        assert_bytes_are_exact(fresh)


def maps(way: Correlation, call: ImageCall, dtype: str, fill: float = np.nan) -> list[np.ndarray]:
    """An output and both cotangents, each made in scratch of just the size that it says and full of a number."""
    x, weight, g = (a.astype(dtype) for a in (call.inputs[0], call.params["weight"], call.cotangent))
    y, weight_target, x_target = np.empty_like(g), np.empty_like(weight), np.empty_like(x)
    scratch = [np.full(size, fill, dtype) for size in way.sizes(add=False)]
    way.correlate(weight, x, y, scratch[0])
    way.weight_cotangent(x, g, weight_target, scratch[1])
    way.input_cotangent(weight, g, x_target, scratch[2])
    return [y, weight_target, x_target]


@given(call=three_rows(), size=st.sampled_from([2**18, 300]))
def test_ways_agree_alone_and_together_and_read_nothing_of_their_scratch(call: ImageCall, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "STACK", size)
        patch.setattr(shifts, "STACK", size)
        ways: list[Joint] = [Winograd(shapes_of(call)), ByShifts(shapes_of(call))]
        expected = maps(ByColumns(shapes_of(call)), call, "float64")
        for way in ways:
            found = maps(way, call, "float64")
            weight_target, x_target = np.empty_like(found[1]), np.empty_like(found[2])
            scratch = np.full(way.size_of_both(), np.nan)
            way.cotangents(call.params["weight"], call.inputs[0], call.cotangent, weight_target, x_target, scratch)
            for one, other in zip([*found, weight_target, x_target], expected + expected[1:], strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 8, 16, 16), (1, 40, 2, 1)])
def test_no_scratch_is_told_that_is_not_taken(shape: tuple[int, ...]) -> None:
    call = ImageCall(Conv2d(6, 3, padding=1), shape)
    way = Winograd(shapes_of(call))
    x, weight, g = call.inputs[0], call.params["weight"], call.cotangent
    y, weight_target, x_target = np.empty_like(g), np.empty_like(weight), np.empty_like(x)
    calls = (
        lambda scratch: way.correlate(weight, x, y, scratch),
        lambda scratch: way.weight_cotangent(x, g, weight_target, scratch),
        lambda scratch: way.input_cotangent(weight, g, x_target, scratch),
        lambda scratch: way.cotangents(weight, x, g, weight_target, x_target, scratch),
    )
    for call_with, size in zip(calls, (*way.sizes(add=False), way.size_of_both()), strict=True):
        call_with(np.empty(size))
        with pytest.raises(ValueError, match="reshape"):
            call_with(np.empty(size - 1))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (4, 32, 16, 16), (2, 128, 5, 7)])
def test_fewer_products_lose_at_most_a_bit_of_float32(shape: tuple[int, ...]) -> None:
    call = ImageCall(Conv2d(32, 3, padding=1, bias=False), shape)
    call.inputs = tuple(x.astype(np.float32) for x in call.inputs)
    call.params["weight"], call.cotangent = call.params["weight"].astype("f"), call.cotangent.astype("f")
    exact = maps(ByColumns(shapes_of(call)), call, "float64")
    errors = {}
    for way in (ByShifts, Winograd):
        found = maps(way(shapes_of(call)), call, "float32")
        pairs = zip(found, exact, strict=True)
        errors[way] = [np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) / np.finfo("f").eps for a, b in pairs]
    # Measured: 0.5 to 2.9 roundings by shifts, 0.8 to 3.9 with Winograd's products, which are 1.0 to 1.8 times as many.
    assert max(errors[Winograd]) <= 4
    for few, many in zip(errors[Winograd], errors[ByShifts], strict=True):
        assert few <= 2 * many


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
    layer, x = Conv2d(16, 3), Spec.of((2, 16, 1000, 1000), "float32")
    footprint, weights = layer.footprint(x), 16 * 16 * 9
    assert footprint.backward_workspace <= 4 * (winograd.STACK + 3 * weights)
    assert footprint.output.nbytes > 50 * footprint.backward_workspace
    assert ByShifts(layer._shapes(x)).size_of_both() <= shifts.STACK + 2 * weights


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
