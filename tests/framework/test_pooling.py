"""What pools do with equal pixels, with pixels that are no numbers, and with windows that they do not take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework import AveragePool2d, GlobalAveragePool, Layer, Ledger, MaxPool2d, Spec
from framework.differentiation import grad
from framework.layers import Context


def pulled(layer: Layer, x: np.ndarray, cotangent: np.ndarray) -> Any:
    context = Context(Ledger())
    y, own = layer.forward({}, x, context)
    assert y.shape == cotangent.shape
    return layer.vjp({}, None, None, own, cotangent, {}, context)


@pytest.mark.parametrize("value", [0.0, 3.0, -np.inf])
def test_the_first_of_equal_pixels_has_all_of_the_cotangent_and_the_traced_rule_shares_it(value: float) -> None:
    layer, x = MaxPool2d(2), np.full((1, 1, 2, 2), value)
    np.testing.assert_array_equal(pulled(layer, x, np.ones((1, 1, 1, 1)))[0, 0], [[1, 0], [0, 0]])
    if np.isfinite(value):
        traced = grad(lambda x: np.sum(layer.apply({}, x, Context(Ledger()))))(x)
        assert traced.sum() == 1
        assert (traced > 0).all()


def test_padding_is_never_the_largest() -> None:
    x = np.full((1, 1, 3, 3), -np.inf)
    y, _ = (layer := MaxPool2d(3, 2, 1)).forward({}, x, Context(Ledger()))
    assert (y == -np.inf).all()
    # Each window's first pixel inside of the image: (0, 0), (0, 1), (1, 0) and (1, 1).
    np.testing.assert_array_equal(
        pulled(layer, x, np.arange(1.0, 5.0).reshape(1, 1, 2, 2))[0, 0], [[1, 2, 0], [3, 4, 0], [0, 0, 0]]
    )


def test_what_is_no_number_is_handed_on() -> None:
    x = np.arange(8.0).reshape(1, 2, 2, 2)
    x[0, 0, 1, 0] = np.nan
    y, _ = MaxPool2d(2).forward({}, x, Context(Ledger()))
    np.testing.assert_array_equal(y.ravel(), [np.nan, 7.0])


def test_the_residual_of_a_largest_pixel_is_one_byte_an_output() -> None:
    x = Spec.of((2, 3, 32, 32), "float32")
    for kernel, each in ((2, 1), (15, 1), (16, 2)):
        footprint = MaxPool2d(kernel).footprint(x)
        assert footprint.own_nbytes == footprint.output.size * each
        assert (footprint.needs_input, footprint.needs_output) == ((False,), False)
    for layer in (AveragePool2d(2), GlobalAveragePool()):
        assert layer.footprint(x).own_nbytes == 0
        assert layer.footprint(x).needs_input == (False,)


@pytest.mark.parametrize("kind", [MaxPool2d, AveragePool2d])
def test_windows_that_make_no_sense_are_refused(kind: Any) -> None:
    for arguments, message in (
        ((0,), "kernel"),
        ((2, 0), "stride"),
        ((3, 1, 2), "at most half"),
        ((2, 2, -1), "padding"),
    ):
        with pytest.raises(ValueError, match=f"{kind.__name__}'s.*{message}|{message}"):
            kind(*arguments)


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (MaxPool2d(2), Spec.of((2, 3, 4), "float32"), "MaxPool2d takes images"),
        (AveragePool2d(2), Spec.of((2, 3, 4, 4), np.int64), "floats"),
        (MaxPool2d(3), Spec.of((2, 3, 2, 4), "float32"), "3x3 pixels does not fit an image of 2x4"),
        (GlobalAveragePool(), Spec.of((2, 3, 0, 4), "float32"), "at least one pixel"),
    ],
)
def test_an_input_that_a_layer_does_not_take_is_a_clear_error(layer: Layer, x: Spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.footprint(x)
