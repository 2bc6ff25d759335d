"""Elementwise functions: the Jacobian is diagonal, so a rule is a factor ∂y/∂x, which serves both modes.

Conventions where a derivative does not exist: |x| and copysign have 0 at 0; maximum, minimum, fmax and fmin share a tie in halves, and
so does logaddexp where both arguments are the same infinity; hypot has 0 at the origin; copysign has 0 in its second argument; x**p has
0 in x for p = 0, and 0 in p for x = 0. Roots, logarithms and inverse functions have infinity or NaN where their formulas do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, MINUS_ONE, ONE, dtype_of, elementwise

# Constants are Python floats, which do not make float64 of float32.
_LOG2, _LOG10 = math.log(2), math.log(10)


def _share(a: Any, b: Any, y: Any) -> Any:
    """1 where a alone reaches y, 1/2 where both do, else 0."""
    hit = np.equal(a, y)
    tie = hit & np.equal(b, y)
    return np.where(tie, 0.5, hit) if np.any(tie) else hit


def _portion(exp: Any, a: Any, b: Any, y: Any) -> Any:
    """exp(a) / (exp(a) + exp(b)), where y is the logarithm of the sum; halves where both are the same infinity."""
    whole = np.equal(a, y)
    if not np.any(whole):
        return exp(a - y)
    return np.where(whole, _share(a, b, y), exp(np.where(whole, 0, a) - np.where(whole, 0, y)))


def _power_base(y: Any, x: Any, p: Any) -> Any:
    if isinstance(p, int | float):
        return p * x ** (p - 1) if p else np.zeros((), dtype_of(y))
    # 0**-1 must not make a NaN of what is constant.
    return p * np.power(np.where((p == 0) & (x == 0), 1, x), p - 1)


def _power_exponent(y: Any, x: Any, p: Any) -> Any:
    return y * np.log(np.where(x == 0, 1, x))


def _over(a: Any, y: Any) -> Any:
    """a / y; 0 where y is 0, in derivatives of all orders."""
    zero = np.equal(y, 0)
    return a / (np.where(zero, np.inf, y) if np.any(zero) else y)


#: Of the derivative of sinc at 0, the factors of x, x³, x⁵, …
_SINC = [(-1) ** k * 2 * k * math.pi ** (2 * k) / math.factorial(2 * k + 1) for k in range(1, 10)]


def _sinc(y: Any, x: Any) -> Any:
    """(cos πx − sinc x) / x, and its series near 0, where that cancels."""
    near = np.less(np.abs(x), 0.2)
    inner, outer = np.where(near, x, 0), np.where(near, 1, x)
    series: Any = 0
    for coefficient in reversed(_SINC):
        series = series * (inner * inner) + coefficient
    return np.where(near, series * inner, (np.cos(np.pi * outer) - y) / outer)


def _arctan2(of: Any, a: Any, b: Any) -> Any:
    size = np.hypot(a, b)  # squares would overflow
    return of / size / size


_TABLE = [
    (np.add, ONE, ONE),
    (np.subtract, ONE, MINUS_ONE),
    (np.multiply, lambda _y, _a, b: b, lambda _y, a, _b: a),
    (np.divide, lambda _y, _a, b: 1 / b, lambda y, _a, b: -y / b),
    (np.power, _power_base, _power_exponent),
    (np.float_power, _power_base, _power_exponent),
    (np.maximum, lambda y, a, b: _share(a, b, y), lambda y, a, b: _share(b, a, y)),
    (np.minimum, lambda y, a, b: _share(a, b, y), lambda y, a, b: _share(b, a, y)),
    (np.fmax, lambda y, a, b: _share(a, b, y), lambda y, a, b: _share(b, a, y)),
    (np.fmin, lambda y, a, b: _share(a, b, y), lambda y, a, b: _share(b, a, y)),
    (np.arctan2, lambda _y, a, b: _arctan2(b, a, b), lambda _y, a, b: -_arctan2(a, a, b)),
    (np.hypot, lambda y, a, _b: _over(a, y), lambda y, _a, b: _over(b, y)),
    (np.logaddexp, lambda y, a, b: _portion(np.exp, a, b, y), lambda y, a, b: _portion(np.exp, b, a, y)),
    (np.logaddexp2, lambda y, a, b: _portion(np.exp2, a, b, y), lambda y, a, b: _portion(np.exp2, b, a, y)),
    (np.remainder, ONE, lambda _y, a, b: -np.floor_divide(a, b)),
    (np.fmod, ONE, lambda y, a, b: -np.rint((a - y) / b)),
    (np.copysign, lambda y, a, _b: np.sign(a) * np.sign(y), lambda _y, _a, _b: 0.0),
    (np.heaviside, lambda _y, _x, _h: 0.0, lambda _y, x, _h: np.equal(x, 0)),
    (np.ldexp, lambda _y, _x, n: np.ldexp(np.ones((), dtype_of(_x)), n), None),
    (np.negative, MINUS_ONE),
    (np.positive, ONE),
    (np.conjugate, ONE),
    (np.absolute, lambda _y, x: np.sign(x)),
    (np.fabs, lambda _y, x: np.sign(x)),
    (np.square, lambda _y, x: 2 * x),
    (np.sqrt, lambda y, _x: 0.5 / y),
    (np.cbrt, lambda y, _x: 1 / (3 * y * y)),
    (np.reciprocal, lambda y, _x: -y * y),
    (np.exp, lambda y, _x: y),
    (np.exp2, lambda y, _x: y * _LOG2),
    (np.expm1, lambda y, _x: y + 1),
    (np.log, lambda _y, x: 1 / x),
    (np.log2, lambda _y, x: 1 / (x * _LOG2)),
    (np.log10, lambda _y, x: 1 / (x * _LOG10)),
    (np.log1p, lambda _y, x: 1 / (1 + x)),
    (np.sin, lambda _y, x: np.cos(x)),
    (np.cos, lambda _y, x: -np.sin(x)),
    (np.tan, lambda y, _x: 1 + y * y),
    (np.arcsin, lambda _y, x: 1 / np.sqrt(1 - x * x)),
    (np.arccos, lambda _y, x: -1 / np.sqrt(1 - x * x)),
    (np.arctan, lambda _y, x: 1 / (1 + x * x)),
    (np.sinh, lambda _y, x: np.cosh(x)),
    (np.cosh, lambda _y, x: np.sinh(x)),
    (np.tanh, lambda y, _x: 1 - y * y),
    (np.arcsinh, lambda _y, x: 1 / np.hypot(x, 1)),
    (np.arccosh, lambda _y, x: 1 / (np.sqrt(x - 1) * np.sqrt(x + 1))),
    (np.arctanh, lambda _y, x: 1 / (1 - x * x)),
    (np.deg2rad, lambda _y, _x: np.pi / 180),
    (np.radians, lambda _y, _x: np.pi / 180),
    (np.rad2deg, lambda _y, _x: 180 / np.pi),
    (np.degrees, lambda _y, _x: 180 / np.pi),
    (np.sinc, _sinc),
]
for _function, *_factors in _TABLE:
    elementwise("elementwise", _function, *_factors)

CONSTANT |= {
    np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal, np.isfinite, np.isinf, np.isnan, np.signbit,
    np.sign, np.floor, np.ceil, np.trunc, np.rint, np.round, np.around, np.fix, np.floor_divide, np.spacing,
    np.logical_and, np.logical_or, np.logical_not, np.logical_xor, np.isclose, np.allclose, np.array_equal, np.array_equiv,
    np.isin, np.isposinf, np.isneginf, np.isreal, np.iscomplex,
}  # fmt: skip
