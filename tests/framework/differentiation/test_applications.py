"""Uncertainty, sensitivity, Newton steps and sharpness are those of closed forms and of dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import Key
from framework.differentiation import grad, hessian, jacobian
from framework.differentiation.applications import (
    conjugate_gradients,
    lanczos,
    largest_eigenvalue,
    newton_cg_step,
    propagate_covariance,
    sensitivity,
)

X = np.array([0.5, -1.2, 2.0, 0.7])


def f(x: Any) -> Any:
    return np.stack([x[0] * np.sin(x[1]), np.exp(x[2] / 3) + x[3], x[1] * x[3]])


def tree_f(x: Any) -> Any:
    """The same of a structure, to a structure."""
    y = f(np.concatenate([x["a"], np.ravel(x["b"][0])]))
    return {"first": y[0], "rest": y[1:]}


TREE = {"a": X[:2], "b": (X[2:].reshape(2, 1),)}


def symmetric(seed: int, n: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a + a.T


def test_covariance_is_j_sigma_jt_for_a_matrix_variances_and_a_factor() -> None:
    j = jacobian(f)(X)
    root = np.random.default_rng(0).standard_normal((4, 4))
    variances = np.array([0.1, 0.0, 2.0, 0.3])
    for given_, sigma in (
        ({"covariance": root @ root.T}, root @ root.T),
        ({"covariance": variances}, np.diag(variances)),
        ({"factor": root[:, :2]}, root[:, :2] @ root[:, :2].T),
    ):
        value, found = propagate_covariance(f, X, **given_)
        np.testing.assert_array_equal(value, f(X))
        np.testing.assert_allclose(found, j @ sigma @ j.T, rtol=1e-12, atol=1e-14)
    value, of_tree = propagate_covariance(tree_f, TREE, root @ root.T)
    np.testing.assert_allclose(of_tree, j @ root @ root.T @ j.T, rtol=1e-12, atol=1e-14)
    assert set(value) == {"first", "rest"}


def test_covariance_of_a_linear_function_is_that_of_drawn_samples() -> None:
    a, sigma = np.random.default_rng(1).standard_normal((2, 3)), np.array([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 0.3]])
    _, found = propagate_covariance(lambda x: a @ x, np.zeros(3), sigma)
    drawn = np.random.default_rng(2).multivariate_normal(np.zeros(3), sigma, 200_000) @ a.T
    # The relative error of a variance of N samples is √(2/N) = 0.3 %.
    np.testing.assert_allclose(np.cov(drawn.T), found, atol=0.02 * np.abs(found).max())


def test_a_covariance_of_low_rank_takes_as_many_jvps_as_its_rank() -> None:
    calls = []

    def counted(x: Any) -> Any:
        calls.append(1)
        return np.sum(x**2)

    x, factor = np.ones(1000), np.ones((1000, 1))
    _, found = propagate_covariance(counted, x, factor=factor)
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(2000.0**2)
    assert len(calls) == 1  # recorded once


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "either covariance or factor"),
        ({"covariance": np.eye(4), "factor": np.eye(4)}, "either covariance or factor"),
        ({"covariance": np.eye(3)}, r"shape \(4, 4\) or \(4,\), but got \(3, 3\)"),
        ({"covariance": np.array([1.0, -1, 1, 1])}, "variances are not negative"),
        ({"covariance": np.triu(np.ones((4, 4)))}, "symmetric"),
        ({"covariance": np.full((4, 4), np.nan)}, "symmetric and finite"),
        ({"covariance": -np.eye(4)}, "negative eigenvalue"),
        ({"factor": np.eye(3)}, r"each of the 4 numbers of x, but this one has shape \(3, 3\)"),
    ],
)
def test_what_is_no_covariance_is_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propagate_covariance(f, X, **given_)


def test_sensitivity_is_the_jacobian_along_the_direction() -> None:
    direction = np.array([1.0, 2.0, -1.0, 0.5])
    found = sensitivity(f, X, direction)
    moved = jacobian(f)(X) @ direction
    np.testing.assert_allclose(found.tangent, moved, rtol=1e-13)
    assert found.absolute == pytest.approx(np.linalg.norm(moved) / np.linalg.norm(direction))
    assert found.relative == pytest.approx(found.absolute * np.linalg.norm(X) / np.linalg.norm(f(X)))
    assert sensitivity(f, X, 1e-3 * direction).relative == pytest.approx(found.relative)
    of_tree = sensitivity(tree_f, TREE, {"a": direction[:2], "b": (direction[2:].reshape(2, 1),)})
    assert of_tree.absolute == pytest.approx(found.absolute)
    assert sensitivity(lambda x: x - x, X, direction).relative == 0
    assert sensitivity(lambda x: x - X, X, direction).relative == np.inf
    with pytest.raises(ValueError, match="direction is zero"):
        sensitivity(f, X, np.zeros(4))


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_conjugate_gradients_solve_a_positive_definite_system(n: int, seed: int) -> None:
    a = symmetric(seed, n)
    matrix = a @ a + np.eye(n)
    gradient = np.random.default_rng(seed + 1).standard_normal(n)
    found = conjugate_gradients(lambda v: matrix @ v, gradient, tolerance=1e-9, iterations=20 * n)
    assert found.stopped == "tolerance"
    assert np.linalg.norm(matrix @ found.step + gradient) <= 1e-7 * np.linalg.norm(gradient)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient))


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(0, 10**6), st.integers(1, 12))
def test_a_step_descends_whatever_the_curvature_and_never_raises_the_model(n: int, seed: int, most: int) -> None:
    matrix = symmetric(seed, n)
    gradient = np.random.default_rng(seed + 1).standard_normal(n)
    found = conjugate_gradients(lambda v: matrix @ v, gradient, tolerance=1e-9, iterations=most)
    assert found.products <= most
    assert gradient @ found.step < 0
    if found.stopped == "negative curvature" and found.products == 1:
        np.testing.assert_array_equal(found.step, -gradient)
    else:
        assert gradient @ found.step + found.step @ matrix @ found.step / 2 < 0
    assert found.residual_norm == pytest.approx(np.linalg.norm(matrix @ found.step + gradient), rel=1e-6, abs=1e-8)


def test_the_default_tolerance_is_that_of_nocedal_and_wright_and_a_zero_gradient_needs_no_product() -> None:
    matrix, gradient = np.diag(np.arange(1.0, 30)), np.full(29, 1e-3)
    found = conjugate_gradients(lambda v: matrix @ v, gradient)
    assert found.residual_norm <= np.linalg.norm(gradient) ** 1.5
    assert conjugate_gradients(lambda v: matrix @ v, np.zeros(29)).products == 0


def rosenbrock(x: Any) -> Any:
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_newton_steps_are_those_of_the_dense_hessian_and_find_the_minimum_of_rosenbrocks_function() -> None:
    x = np.array([1.05, 1.1, 1.21])
    exact = -np.linalg.solve(hessian(rosenbrock)(x), grad(rosenbrock)(x))
    assert np.all(np.linalg.eigvalsh(hessian(rosenbrock)(x)) > 0)
    np.testing.assert_allclose(newton_cg_step(rosenbrock, x, tolerance=1e-12, iterations=30).step, exact, rtol=1e-8)
    x = np.array([-1.2, 1.0, 0.5])
    for _ in range(100):
        found = newton_cg_step(rosenbrock, x)
        length = 1.0
        while rosenbrock(x + length * found.step) > rosenbrock(x) and length > 1e-12:
            length /= 2
        x = x + length * found.step
    np.testing.assert_allclose(x, 1, atol=1e-8)


def test_a_newton_step_has_the_form_of_its_argument() -> None:
    tree = {"a": np.ones(2), "b": [np.full((2, 1), 3.0)]}
    found = newton_cg_step(lambda t: np.sum(t["a"] ** 2) + np.sum((t["b"][0] - 1) ** 2 * 5), tree, tolerance=1e-12)
    np.testing.assert_allclose(found.step["a"], -1, rtol=1e-12)
    np.testing.assert_allclose(found.step["b"][0], np.full((2, 1), -2.0), rtol=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 15), st.integers(0, 10**6))
def test_lanczos_finds_the_largest_eigenvalue_not_the_one_of_largest_magnitude(n: int, seed: int) -> None:
    matrix = symmetric(seed, n) - 3 * np.eye(n)
    found = lanczos(lambda v: matrix @ v, np.random.default_rng(seed).standard_normal(n), tolerance=1e-10)
    values = np.linalg.eigvalsh(matrix)
    assert found.value == pytest.approx(values[-1], rel=1e-8, abs=1e-8)
    assert found.iterations <= n
    assert np.linalg.norm(found.vector) == pytest.approx(1)
    assert found.residual <= 1e-8 * np.abs(values).max()


def test_lanczos_stops_when_told_and_says_how_far_it_is() -> None:
    matrix = symmetric(0, 200)
    found = lanczos(lambda v: matrix @ v, np.ones(200), iterations=5)
    assert found.iterations == 5
    values = np.linalg.eigvalsh(matrix)
    assert np.abs(values - found.value).min() <= found.residual
    assert lanczos(lambda v: matrix @ v, np.ones(200), tolerance=1e-3).iterations < 100


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.eye(4), np.diag([2.0, 2, 1, 1])])
def test_lanczos_ends_where_the_start_spans_no_more_dimensions(matrix: np.ndarray) -> None:
    found = lanczos(lambda v: matrix @ v, np.ones(4))
    assert found.value == pytest.approx(matrix.max(), abs=1e-12)
    assert found.iterations <= 2


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian_and_the_same_for_the_same_key() -> None:
    weights = np.random.default_rng(3).standard_normal((6, 5))

    def loss(p: Any) -> Any:
        return np.sum(np.tanh(weights @ np.tanh(np.reshape(p[:15], (5, 3)) @ p[15:])) ** 2)

    x = np.random.default_rng(4).standard_normal(18)
    found = largest_eigenvalue(loss, x, Key(1), tolerance=1e-10)
    values, vectors = np.linalg.eigh(hessian(loss)(x))
    assert found.value == pytest.approx(values[-1], rel=1e-9)
    assert abs(found.vector @ vectors[:, -1]) == pytest.approx(1, abs=1e-7)
    again, other = largest_eigenvalue(loss, x, Key(1), tolerance=1e-10), largest_eigenvalue(loss, x, Key(2))
    assert again.value == found.value
    assert again.vector.tobytes() == found.vector.tobytes()
    assert other.value == pytest.approx(found.value, rel=1e-6)


def test_sharpness_of_a_structure_has_a_vector_of_its_form() -> None:
    found = largest_eigenvalue(lambda t: np.sum(t[0] ** 2) + 4 * np.sum(t[1] ** 2), (np.ones((2, 2)), np.ones(3)))
    assert found.value == pytest.approx(8)
    np.testing.assert_allclose(found.vector[0], 0, atol=1e-6)
    assert found.vector[1].shape == (3,)


def test_float32_stays_float32() -> None:
    x = np.array([1.0, 2.0], np.float32)
    assert newton_cg_step(lambda x: np.sum(x**4), x).step.dtype == np.float32
    assert largest_eigenvalue(lambda x: np.sum(x**4), x).vector.dtype == np.float32
