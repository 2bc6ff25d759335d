"""Rules at points where a derivative is easily got wrong: kinks, zeros, NaN, infinity, huge numbers, singular matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework.differentiation import DifferentiationError, check_grads, grad, hessian, jvp, vjp

INF, NAN = np.inf, np.nan


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, float)


#: Function, point, and the gradient that docs/differentiation.md promises there.
CONVENTIONS: dict[str, tuple[Any, Any, Any]] = {
    "abs at 0": (np.abs, 0.0, 0),
    "copysign at 0": (lambda x: np.copysign(x, -1.0), 0.0, 0),
    "maximum shares a tie": (lambda x: np.maximum(x, 0.0), 0.0, 0.5),
    "max shares a tie": (np.max, vector(1, 3, 3), [0, 0.5, 0.5]),
    "max shares a tie with initial": (lambda x: np.max(x, initial=3.0), vector(1, 3, 2), [0, 0.5, 0]),
    "max where initial wins": (lambda x: np.max(x, initial=9.0), vector(1, 3), [0, 0]),
    "max of some": (lambda x: np.max(x, initial=0, where=np.array([True, False])), vector(1, 3), [1, 0]),
    "max of NaN": (np.max, vector(1, NAN, 3), [0, 1, 0]),
    "max of NaNs and initial": (lambda x: np.max(x, initial=0.0), vector(1, NAN, NAN), [0, 0.5, 0.5]),
    "max of infinities": (np.max, vector(INF, 1, INF), [0.5, 0, 0.5]),
    "nanmax": (np.nanmax, vector(1, NAN, 3), [0, 0, 1]),
    "norm at 0": (np.linalg.norm, vector(0, 0, 0), [0, 0, 0]),
    "norm of order 3 with a 0": (lambda x: np.linalg.norm(x, 3), vector(0, 2), [0, 1]),
    "norm of order 1/2 with a 0": (lambda x: np.linalg.norm(x, 0.5), vector(0, 2), [0, 1]),
    "norm of order ∞ at 0": (lambda x: np.linalg.norm(x, INF), vector(0, 0), [0, 0]),
    "norm of order ∞ shares a tie": (lambda x: np.linalg.norm(x, INF), vector(-2, 2, 1), [-0.5, 0.5, 0]),
    "hypot at 0": (lambda x: np.hypot(x[0], x[1]), vector(0, 0), [0, 0]),
    "std of equal elements": (np.std, vector(2, 2, 2), [0, 0, 0]),
    "x**0 at 0": (lambda x: x**0, 0.0, 0),
    "x**0.0 at 0, as arrays": (lambda x: np.power(x, np.array(0.0)), 0.0, 0),
    "x**2 at 0": (lambda x: x**2, 0.0, 0),
    "0**p": (lambda p: np.power(0.0, p), 2.0, 0),
    "heaviside at 0, in the value there": (lambda h: np.heaviside(0.0, h), 2.0, 1),
    "heaviside elsewhere": (lambda x: np.sum(np.heaviside(x, 0.5)), vector(0, 1, -1), [0, 0, 0]),
    "where of numbers as conditions": (lambda x: np.sum(np.where(x, x * x, 7.0)), vector(3, 0, -1), [6, 0, -2]),
    "clip at its border": (lambda x: np.clip(x, 0.0, 1.0), 0.0, 1),
    "sort keeps the order of ties": (lambda x: np.sort(x)[0], vector(2, 2), [1, 0]),
    "logaddexp of zeros' logarithms": (lambda x: np.exp(np.logaddexp(x[0], x[1])), vector(-INF, -INF), [0, 0]),
    "logaddexp with one zero's logarithm": (lambda x: np.logaddexp(x[0], x[1]), vector(-INF, 1), [0, 1]),
    "logaddexp at the same infinity": (lambda x: np.logaddexp(x[0], x[1]), vector(-INF, -INF), [0.5, 0.5]),
    "nan_to_num": (lambda x: np.sum(np.nan_to_num(x)), vector(NAN, 1, -INF), [0, 1, 0]),
    "interp at a node": (lambda x: np.interp(x, [0.0, 1.0, 2.0], [0.0, 1.0, 5.0]), 1.0, 4),
    "interp outside": (lambda x: np.interp(x, [0.0, 1.0], [0.0, 1.0]), 2.0, 0),
    "prod with a 0": (np.prod, vector(0, 2, 3), [6, 0, 0]),
    "prod with two": (np.prod, vector(0, 2, 0), [0, 0, 0]),
    "arctan2 of huge numbers": (lambda x: np.arctan2(x[0], x[1]) * 1e200, vector(1e200, 1e200), [0.5, -0.5]),
    "arcsinh of a huge number": (lambda x: np.arcsinh(x) * 1e200, 1e200, 1),
    "arccosh of a huge number": (lambda x: np.arccosh(x) * 1e200, 1e200, 1),
    "sinc near 0": (lambda x: np.sinc(x) * 1e12, 1e-12, -(np.pi**2) / 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: str) -> None:
    function, x, expected = CONVENTIONS[name]
    np.testing.assert_allclose(grad(function)(x), expected, rtol=1e-14, atol=1e-300)
    _, moved = jvp(function, (x,), (np.ones(np.shape(x)),))
    np.testing.assert_allclose(moved, np.sum(expected), rtol=1e-14, atol=1e-300)


def test_second_derivatives_are_finite_where_the_first_is_a_convention() -> None:
    for function in (np.linalg.norm, np.std, lambda x: np.hypot(x[0], x[1])):
        assert hessian(function)(np.zeros(2)).tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(grad(grad(np.sinc))(0.0), -(np.pi**2) / 3)


def test_the_mixed_derivative_of_a_power_at_the_exponent_0() -> None:
    """∂²(x^p)/∂x∂p is 1/x at p = 0."""
    np.testing.assert_allclose(grad(lambda p: grad(lambda x: np.power(x, p))(2.0))(0.0), 0.5)
    np.testing.assert_allclose(grad(lambda x: grad(lambda p: np.power(x, p))(0.0))(2.0), 0.5)


SINGULAR = {
    "of rank 2": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0], [7.0, 8.0, 15.0]]),
    "of rank 1": np.outer([1.0, 2.0, 4.0], [1.0, 3.0, 5.0]),
    "zero": np.zeros((3, 3)),
    "stacked with a regular one": np.stack([np.zeros((2, 2)), np.array([[2.0, 1.0], [0.0, 3.0]]), np.ones((2, 2))]),
    "a zero": np.zeros((1, 1)),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_the_determinant_is_differentiable_at_singular_matrices(name: str) -> None:
    check_grads(np.linalg.det, (SINGULAR[name],))


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: np.cumprod(x), vector(2, 0, 3, 0, 5)),
        (lambda x: np.cumprod(x, axis=1), np.array([[0.0, 2.0, 3.0], [3.0, 0.0, 1.0]])),
        (lambda x: np.prod(x, axis=0), np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 5.0]])),
        (lambda x: np.nanmean(x, axis=1), np.array([[NAN, 2.0], [3.0, 1.0]])),
        (lambda x: np.nanmedian(x, axis=1), np.array([[NAN, 2.0, 4.0, 9.0], [3.0, 1.0, 5.0, 7.0]])),
        (lambda x: np.sinc(x), vector(-0.2, -1e-4, 0, 1e-9, 0.19, 0.21)),
        (lambda x: np.linalg.norm(x, 4, axis=1), np.array([[0.0, 2.0], [3.0, 0.0]])),
        (lambda x: np.unwrap(x), vector(0, 3, 6.5, 13)),
        (lambda x: np.einsum("ij,jk,kl,lm->im", x, x, x, x), np.arange(4.0).reshape(2, 2)),
        (lambda x: np.average(x, axis=(1, 0), weights=np.array([[1.0, 2], [0, 3], [1, 4]])), np.ones((2, 3, 2))),
    ],
)  # fmt: skip
def test_awkward_points_agree_with_differences(function: Any, x: np.ndarray) -> None:
    there = ~np.isnan(x)

    def of_those_there(values: Any) -> Any:
        return function(np.reshape(np.insert(values, np.cumsum(there)[~there.ravel()], NAN), x.shape))

    check_grads(
        of_those_there if not there.all() else function, (x[there] if not there.all() else x,), size=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.full_like(x, x[0]) * x, lambda x: np.full_like(x, x[1], shape=(2, 2)) ** 2,
        lambda x: x @ [1.0, 2.0, 3.0] * x, lambda x: [[1, 2, 0], [0, 1, 3]] @ x, lambda x: np.divide(x, [1, 2, 4]),
        lambda x: x ** [1, 2, 3], lambda x: np.float_power([1, 2, 3], x), lambda x: np.dot(x, [1.0, 2, 3]) * x,
        lambda x: np.trapezoid([1.0, 2, 4], x**2), lambda x: np.linalg.multi_dot([[1.0, 2, 3], np.outer(x, x), x]),
        lambda x: np.subtract.outer(x, x[:2]) ** 3, lambda x: np.power.outer(x, [1, 2]),
        lambda x: np.repeat(x[0], 3, axis=0) ** 2, lambda x: np.convolve(x[0], x[1:]) ** 2, lambda x: np.convolve(x, x[1]),
        lambda x: divmod(5.0, x)[1] * x, lambda x: x.flat[0] * x.flat[1:] + x[0], lambda x: x.compress([True, False, True]) ** 2,
        lambda x: np.outer(x, x).trace() * x, lambda x: x[x.nonzero()] ** 2, lambda x: np.outer(x, x[:2]).mT ** 2,
        lambda x: x.real * np.real(x), lambda x: np.outer(x, x)[np.triu_indices_from(np.outer(x, x), 1)] ** 2,
        lambda x: np.hypot(np.array([x[0], x[1]]), 1.0) + np.arctan2(np.array([x[1], x[2]]), 2.0),
        lambda x: np.nan_to_num(x, posinf=3.0) ** 2, lambda x: x.argpartition(1)[0] * x**2, lambda x: x.searchsorted(1.0) * x**2,
        lambda x: round(x[0], 1) * 0 + x**2, lambda x: (x * x.itemsize * x.nbytes) ** 2,
    ],
)  # fmt: skip
def test_what_people_write_besides_agrees_with_numpy_and_with_differences(function: Any) -> None:
    x = vector(0.7, 1.1, 1.9)
    np.testing.assert_allclose(vjp(function, x)[0], function(x), rtol=1e-14)
    check_grads(function, (x,))


def test_telling_a_number_cuts_nothing() -> None:
    told: list[str] = []

    def f(x: Any) -> Any:
        told.extend((f"{x[0]:.2f}", f"{x}", str(np.array2string(x))))
        return np.sum(x * x)

    assert grad(f)(vector(1.5, 2)).tolist() == [3, 4]
    assert told == ["1.50", "Traced(array([1.5, 2. ]))", "[1.5 2. ]"]


@pytest.mark.parametrize("function", [np.median, np.max, np.mean, lambda x: np.quantile(x, 0.3), np.sum, np.std])
def test_nan_is_not_lost(function: Any) -> None:
    x = vector(1, NAN, 3)
    value, _ = vjp(function, x)
    assert np.isnan(value) and np.isnan(jvp(function, (x,), (x,))[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x**3, lambda x: np.sum(x * np.pi), np.log2, np.exp2, np.log10, lambda x: np.mean(x, axis=0), np.ravel,
        lambda x: np.multiply(x, np.arange(3)), lambda x: np.add(x, np.ones(3)), lambda x: np.sum(x, dtype=np.float64),
    ],
)  # fmt: skip
def test_mixed_dtypes_leave_gradients_in_that_of_the_argument(function: Any) -> None:
    x = np.ones((2, 3), np.float32)
    y, pullback = vjp(function, x)
    assert y.dtype == function(x).dtype
    (g,) = pullback(np.ones_like(y))
    assert g.dtype == np.float32
    assert jvp(function, (x,), (x,))[1].dtype == y.dtype


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.exp(x, where=x > 0), "np.exp cannot be differentiated with these options"),
        (lambda x: np.reshape(x, 4, order="A"), "order='A' depends on the layout"),
        (lambda x: np.ravel(x, order="K"), "order='K' depends on the layout"),
        (lambda x: np.pad(x, 1, mode="reflect", reflect_type="odd"), "reflect_type='odd' has no derivative rule"),
        (lambda x: np.pad(x, 1, mode="mean"), "mode='mean' has no derivative rule"),
        (lambda x: np.linalg.norm(x, 2), "ord=2 of matrices has no derivative rule"),
        (lambda x: np.linalg.norm(x, "nuc"), "ord='nuc' of matrices has no derivative rule"),
        (lambda x: np.quantile(x, 0.3, method="hazen"), "method='hazen' has no derivative rule"),
        (lambda x: np.interp(x, [0.0, 1.0], [0.0, 1.0], period=1.0), "np.interp with a period has no derivative rule"),
        (lambda x: np.ldexp(1.0, x), "ldexp"),
        (lambda x: x.astype(int), r"x.astype\(\) gives int64 here, which would cut the derivative.*stop_gradient"),
        (lambda x: np.sum(x, dtype=bool), "np.sum gives bool here"),
        (lambda x: np.abs(x * 1j), "np.multiply gives complex128 here, and complex numbers have no derivatives"),
        (lambda x: x.astype(complex), r"x.astype\(\) gives complex128 here"),
        (lambda x: np.concatenate([x, 1j * np.ones((2, 2))]), "np.concatenate gives complex128 here"),
        (lambda x: np.fft.rfft(x), "np.fft.rfft has no derivative rule"),
        (lambda x: np.emath.sqrt(x), "np.emath.sqrt has no derivative rule"),
        (lambda x: x.sort(), r"x.sort\(\) writes into a traced array.*x = np.sort\(x\)"),
        (lambda x: (x * 2).partition(1), "np.partition"),
        (lambda x: x.fill(0), "np.full_like"),
        (lambda x: np.fill_diagonal(x, 0), "np.fill_diagonal writes into an array.*np.where"),
        (lambda x: np.copyto(np.zeros((2, 2)), x), "np.copyto writes into an array"),
        (lambda x: np.add.at(np.zeros(2), [0], x[0]), "np.add.at writes into an array"),
        (lambda x: np.nan_to_num(x, copy=False), "np.nan_to_num with copy=False writes into its argument"),
        (lambda x: np.full_like(np.ones(2), x[0, 0]), "np.copyto writes into an array"),
        (lambda x: np.full_like(x, x[0, 0], dtype=int), "gives int64 here"),
    ],
)
def test_options_without_a_rule_are_errors_in_both_modes(function: Any, message: str) -> None:
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises((TypeError, DifferentiationError), match=message):
        jvp(function, (x,), (x,))
    with pytest.raises((TypeError, DifferentiationError), match=message):
        y, pullback = vjp(function, x)
        pullback(y)


def test_slogdet_is_numpys_named_pair() -> None:
    assert float(grad(lambda x: np.linalg.slogdet(x).logabsdet)(np.eye(2) * 2)[0, 0]) == 0.5


def test_rules_leave_the_primal_as_it_is() -> None:
    x = vector(1, NAN)
    with pytest.raises(DifferentiationError, match="copy=False"):
        jvp(lambda x: np.nan_to_num(x, copy=False), (x,), (x,))
    assert np.isnan(x[1])


def test_arrays_of_another_order_of_bytes_have_derivatives() -> None:
    x = vector(1, 3, 2).astype(">f8")
    assert grad(np.max)(x).tolist() == [0, 1, 0]
    assert jvp(lambda x: np.max(x) * np.sum(x), (x,), (x,))[1] == 36
