"""The Jacobian as a black box, in the hands of scipy's sparse solvers, which know its products alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework import Key
from framework.differentiation import jacobian, jacobian_operator

pytestmark = pytest.mark.peers

linalg = pytest.importorskip("scipy.sparse.linalg")


def f(x: Any) -> Any:
    return np.concatenate([np.sin(x) * np.roll(x, 1), x[::2] ** 2])


@pytest.fixture
def x() -> Any:
    return Key(1).generator().standard_normal(12)


def test_scipy_takes_the_operator_and_its_transpose(x: Any) -> None:
    dense, operator = jacobian(f)(x), jacobian_operator(f, x)
    for ours, matrix in ((operator, dense), (operator.T, dense.T)):
        taken = linalg.aslinearoperator(ours)
        assert taken.shape == matrix.shape and taken.dtype == matrix.dtype
        np.testing.assert_allclose(taken @ np.eye(matrix.shape[1]), matrix, rtol=1e-12)
        np.testing.assert_allclose(taken.H @ np.eye(matrix.shape[0]), matrix.T, rtol=1e-12)


def test_least_squares_and_singular_values_need_products_alone(x: Any) -> None:
    dense, operator = jacobian(f)(x), linalg.aslinearoperator(jacobian_operator(f, x))
    b = Key(2).generator().standard_normal(18)
    found = linalg.lsqr(operator, b, atol=1e-13, btol=1e-13)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(dense, b)[0], rtol=1e-7)
    largest = linalg.svds(operator, k=3, return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(largest), np.sort(np.linalg.svd(dense)[1])[-3:], rtol=1e-9)
