"""Elementwise functions: the Jacobian is diagonal, so a rule is a factor ∂y/∂x, which serves both modes.

Conventions where a derivative does not exist: |x| and sign have 0 at 0; maximum and minimum share a tie in halves; the square root
and logarithm give infinity or NaN as their formulas do; copysign has 0 in its second argument; x**p has p·x**(p-1), which is 0 for p = 0, and log(x)·y with 0 at x = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, MINUS_ONE, ONE, elementwise


def _share(a: Any, b: Any, y: Any) -> Any:
    """1 where a alone reaches y, 1/2 where both do, else 0."""
    return np.where(a == y, np.where(b == y, 0.5, 1.0), 0.0)


def _power_base(y: Any, x: Any, p: Any) -> Any:
    # Where p is 0 the result is constant; 0**-1 must not turn that into a NaN.
    return p * np.power(x, np.where(p == 0, 1, p - 1))


def _power_exponent(y: Any, x: Any, p: Any) -> Any:
    return y * np.log(np.where(x == 0, 1, x))


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
    (np.arctan2, lambda _y, a, b: b / (a * a + b * b), lambda _y, a, b: -a / (a * a + b * b)),
    (np.hypot, lambda y, a, _b: a / y, lambda y, _a, b: b / y),
    (np.logaddexp, lambda y, a, _b: np.exp(a - y), lambda y, _a, b: np.exp(b - y)),
    (np.logaddexp2, lambda y, a, _b: np.exp2(a - y), lambda y, _a, b: np.exp2(b - y)),
    (np.remainder, ONE, lambda _y, a, b: -np.floor(a / b)),
    (np.fmod, ONE, lambda _y, a, b: -np.trunc(a / b)),
    (np.copysign, lambda y, a, _b: np.sign(a) * np.sign(y), lambda _y, _a, _b: 0.0),
    (np.negative, MINUS_ONE),
    (np.positive, ONE),
    (np.absolute, lambda _y, x: np.sign(x)),
    (np.fabs, lambda _y, x: np.sign(x)),
    (np.square, lambda _y, x: 2 * x),
    (np.sqrt, lambda y, _x: 0.5 / y),
    (np.cbrt, lambda y, _x: 1 / (3 * y * y)),
    (np.reciprocal, lambda y, _x: -y * y),
    (np.exp, lambda y, _x: y),
    (np.exp2, lambda y, _x: y * np.log(2)),
    (np.expm1, lambda y, _x: y + 1),
    (np.log, lambda _y, x: 1 / x),
    (np.log2, lambda _y, x: 1 / (x * np.log(2))),
    (np.log10, lambda _y, x: 1 / (x * np.log(10))),
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
    (np.arcsinh, lambda _y, x: 1 / np.sqrt(x * x + 1)),
    (np.arccosh, lambda _y, x: 1 / np.sqrt(x * x - 1)),
    (np.arctanh, lambda _y, x: 1 / (1 - x * x)),
    (np.deg2rad, lambda _y, _x: np.pi / 180),
    (np.radians, lambda _y, _x: np.pi / 180),
    (np.rad2deg, lambda _y, _x: 180 / np.pi),
    (np.degrees, lambda _y, _x: 180 / np.pi),
    (np.sinc, lambda y, x: np.where(x == 0, 0, (np.cos(np.pi * x) - y) / np.where(x == 0, 1, x))),
    (np.nan_to_num, lambda _y, x, **options: np.isfinite(x) * 1),
]
for _function, *_factors in _TABLE:
    elementwise("elementwise", _function, *_factors)

CONSTANT |= {
    np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal, np.isfinite, np.isinf, np.isnan, np.signbit,
    np.sign, np.floor, np.ceil, np.trunc, np.rint, np.round, np.around, np.fix, np.floor_divide, np.heaviside,
    np.logical_and, np.logical_or, np.logical_not, np.logical_xor, np.isclose, np.allclose, np.array_equal, np.isin,
}  # fmt: skip
