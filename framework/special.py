"""What NumPy lacks: the error function, over blocks, without a branch, and with a derivative of every order; and the sigmoid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from framework import kernels
from framework.differentiation.custom import custom_rule
from framework.memory import Array

#: Rows of scratch that `write_erf` takes.
ERF_ROWS = 3

#: Below this the power series is taken, and from here on the quotient.
_NEAR = 0.46875
#: From here on erf is 1 to the last bit of a float64.
_FAR = 6.0
#: Of erf x / x, the factors of x²ᵏ (DLMF 7.6.1); what comes after the twelfth is below 2⁻⁵³.
_SERIES = [2 / math.sqrt(math.pi) * (-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(12)]
#: Of exp(x²)·(1 - erf x) for x from 0.46875, numerator and denominator, highest power first. Cody (1969), "Rational Chebyshev
#: approximations for the error function", Math. Comp. 23, with the coefficients of his program CALERF.
_NUMERATOR = [
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
    8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
]  # fmt: skip
_DENOMINATOR = [
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
]  # fmt: skip
#: The same for float32 alone: erf x / x by powers of x² for |x| up to 4, where erf is 1 to the last bit of a float32. The rational
#: approximation of Eigen and XLA.
_NUMERATOR32 = [
    -2.72614225801306e-10, 2.77068142495902e-8, -2.10102402082508e-6, -5.69250639462346e-5, -7.34990630326855e-4,
    -2.95459980854025e-3, -1.60960333262415e-2,
]  # fmt: skip
_DENOMINATOR32 = [
    -1.45660718464996e-5, -2.13374055278905e-4, -1.68282697438203e-3, -7.37332916720468e-3, -1.42647390514189e-2,
]  # fmt: skip
_SLOPE = 2 / math.sqrt(math.pi)


@custom_rule
def erf(x: Any) -> Any:
    """Returns 2/√π · ∫₀ˣ exp(-t²) dt for each element of an array of floats; in float64 within 4e-16 of it, in float32 within 5e-7.

    >>> from framework.differentiation import grad
    >>> round(float(erf(np.array([0.5]))[0]), 15), round(float(grad(lambda x: np.sum(erf(x)))(np.array([0.0]))[0]), 15)
    (0.520499877813047, 1.128379167095513)
    """
    y = np.array(x, order="C")
    flat = y.reshape(-1)
    spare = np.empty((ERF_ROWS, kernels.block_rows(flat.size, 1)), y.dtype)
    for block in kernels.row_blocks(flat.size, 1):
        write_erf(flat[block], spare[:, : block.stop - block.start])
    return y


@erf.vjp
def _erf_vjp(cotangent: Any, y: Any, x: Any) -> tuple[Any]:
    return (cotangent * (_SLOPE * np.exp(-x * x)),)


@erf.jvp
def _erf_jvp(tangents: tuple[Any], y: Any, x: Any) -> Any:
    return tangents[0] * (_SLOPE * np.exp(-x * x))


def write_erf(x: Array, spare: Array) -> None:
    """Replaces numbers by their error function.

    In float64 both formulas are computed for every number, each within its own range, and one is taken: which one depends on the numbers, but
    neither the bytes nor the time do.

    Args:
        x: Shape (n,), of floats.
        spare: Shape (ERF_ROWS, n), of the same dtype: scratch.
    """
    if x.dtype == np.float32:
        _write_erf32(x, spare)
        return
    far, a, b = spare
    np.absolute(x, out=a)
    np.clip(a, _NEAR, _FAR, out=a)
    _horner(a, _NUMERATOR, out=far)
    _horner(a, _DENOMINATOR, out=b)
    far /= b
    a *= a
    np.negative(a, out=a)
    np.exp(a, out=a)
    far *= a
    np.subtract(1, far, out=far)
    np.copysign(far, x, out=far)
    is_far = b.view(np.bool_)[: x.size]
    np.absolute(x, out=a)
    np.greater(a, _NEAR, out=is_far)
    np.copyto(x, far, where=is_far)
    # What is far is at most 1 now, where the series has a finite value that is not taken.
    np.multiply(x, x, out=a)
    _horner(a, _SERIES[::-1], out=far)
    far *= x
    np.logical_not(is_far, out=is_far)
    np.copyto(x, far, where=is_far)


def _write_erf32(x: Array, spare: Array) -> None:
    square, over, under = spare
    np.clip(x, -4, 4, out=x)
    np.multiply(x, x, out=square)
    _horner(square, _NUMERATOR32, out=over)
    _horner(square, _DENOMINATOR32, out=under)
    over /= under
    x *= over
    np.clip(x, -1, 1, out=x)


def _horner(x: Array, coefficients: list[float], out: Array) -> None:
    """Writes the polynomial with these coefficients, the highest power first, into `out`."""
    np.multiply(x, coefficients[0], out=out)
    for coefficient in coefficients[1:-1]:
        out += coefficient
        out *= x
    out += coefficients[-1]


def write_sigmoid(x: Array, out: Array) -> None:
    """Writes 1 / (1 + exp(-x)) into `out`, which may be x."""
    # np.negative gives wrong numbers (NumPy 2.4) where it writes over a column of a matrix of four columns of float32, or eight of float64.
    np.multiply(x, -1, out=out)
    with np.errstate(over="ignore"):  # of infinity the reciprocal is right
        np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)
