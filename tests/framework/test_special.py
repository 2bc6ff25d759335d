"""The error function: against the C library's, and its derivatives against the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from framework import Key, kernels
from framework.differentiation import grad, jvp
from framework.special import erf, write_sigmoid

#: Both sides of where another formula is taken (0.46875 and 6), tiny numbers and huge ones.
X = np.concatenate(
    [np.linspace(-7, 7, 40_001), np.geomspace(1e-300, 1e300, 2001), [0.46875, np.nextafter(0.46875, 1), 6.0, np.inf]]
)


def test_erf_is_that_of_the_c_library() -> None:
    for x in (X, -X):
        expected = np.array([math.erf(v) for v in x])
        found = erf(x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-16)
        near = np.abs(x) < 0.46875
        np.testing.assert_allclose(found[near], expected[near], rtol=1e-15)
        assert np.abs(found).max() <= 1
    assert math.copysign(1, erf(np.array(-0.0))) == -1
    assert np.isnan(erf(np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_erf_keeps_float32_and_is_right_there() -> None:
    x = X[np.abs(X) < 1e30].astype(np.float32)
    found = erf(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [math.erf(v) for v in x], rtol=5e-7, atol=1e-38)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 1, 3), (2, kernels.BLOCK // 2 + 3)])
def test_erf_takes_any_shape_and_changes_nothing(shape: tuple[int, ...]) -> None:
    x = Key(1).generator().standard_normal(shape)
    before = np.array(x)
    found = erf(x)
    assert np.shape(found) == shape
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(found, np.vectorize(math.erf, otypes=[float])(x), rtol=0, atol=4e-16)
    turned = np.asarray(x).T
    np.testing.assert_array_equal(erf(turned), np.asarray(found).T)


def test_erf_has_derivatives_of_every_order() -> None:
    x = np.linspace(-3, 3, 7)

    def first(x: np.ndarray) -> np.ndarray:
        return grad(lambda x: np.sum(erf(x)))(x)

    slope = 2 / math.sqrt(math.pi) * np.exp(-x * x)
    np.testing.assert_allclose(first(x), slope, rtol=1e-15)
    np.testing.assert_allclose(jvp(erf, (x,), (np.ones(7),))[1], slope, rtol=1e-15)
    np.testing.assert_allclose(grad(lambda x: np.sum(first(x)))(x), -2 * x * slope, rtol=1e-14)
    np.testing.assert_allclose(jvp(first, (x,), (np.ones(7),))[1], -2 * x * slope, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", range(1, 18))
def test_a_sigmoid_is_written_over_a_column_of_a_matrix(columns: int, dtype: str) -> None:
    x = Key(columns).generator().standard_normal((40, columns)).astype(dtype)
    for width in {1, 2, columns}:
        over = x.copy()
        write_sigmoid(over[:, :width], over[:, :width])
        np.testing.assert_allclose(over[:, :width], 1 / (1 + np.exp(-x[:, :width].astype(float))), rtol=1e-6)
        np.testing.assert_array_equal(over[:, width:], x[:, width:])
