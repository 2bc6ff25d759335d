"""Activations with a bend or an edge: ReLU and its kin. Each reads its output alone in the VJP, but for Hardswish."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.layers.elementwise import Elementwise, Scheme
from framework.layers.layer import Context, Params
from framework.memory import Array

#: Elements up to which the sign of a number is taken sooner than it is compared with zero.
_SMALL = 1024


@dataclass(frozen=True)
class ReLU(Elementwise):
    """y = max(x, 0), any shape. The VJP needs the output alone: x̄ = ȳ where y > 0, else 0."""

    piecewise_linear = True

    scheme = Scheme(reads_output=True, value_flops=1, slope_flops=2)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.maximum(x, 0)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        np.maximum(x, 0, out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        # The same of a ≥ 0, and which is faster depends on the size: a scalar to compare with costs a call, a sign more an element.
        if a.size <= _SMALL:
            np.sign(a, out=slope)
        else:
            np.not_equal(a, 0, out=slope)


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """y = x where x > 0, else slope·x, any shape (Maas et al. 2013). The VJP needs the output alone, whose sign is that of x.

    The derivative at x = 0 is the slope.

    Attributes:
        slope: Above 0; 0 would be ReLU.
    """

    slope: float = 0.01

    piecewise_linear = True

    def __post_init__(self) -> None:
        if not 0 < self.slope < math.inf:
            raise ValueError(f"LeakyReLU takes a finite slope above 0, but got {self.slope}; a slope of 0 is ReLU")

    scheme = Scheme(reads_output=True, value_rows=1, value_flops=2, slope_flops=3)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.where(x > 0, x, self.slope * x)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        np.multiply(x, self.slope, out=spare[0])
        pick = np.maximum if self.slope <= 1 else np.minimum
        pick(x, spare[0], out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        if self.slope <= 1:
            np.sign(a, out=slope)
            np.maximum(slope, self.slope, out=slope)
        else:
            np.negative(a, out=slope)
            np.heaviside(slope, 1, out=slope)
            slope *= self.slope
            np.maximum(slope, 1, out=slope)


@dataclass(frozen=True)
class ELU(Elementwise):
    """y = x where x > 0, else alpha·(exp(x) - 1), any shape (Clevert et al. 2015, arXiv 1511.07289).

    The VJP needs the output alone: x̄ = ȳ where y > 0, else ȳ·(y + alpha).

    Attributes:
        alpha: Above 0; -alpha is the limit on the left.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"ELU takes a finite alpha above 0, but got {self.alpha}")

    scheme = Scheme(reads_output=True, value_rows=1, slope_rows=1, value_flops=14, slope_flops=6)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.where(x > 0, x, self.alpha * np.expm1(np.where(x > 0, 0, x)))

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        np.minimum(x, 0, out=spare[0])
        np.expm1(spare[0], out=spare[0])
        spare[0] *= self.alpha
        np.maximum(x, 0, out=out)
        out += spare[0]

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        above = spare[0]
        np.heaviside(a, 0, out=above)
        np.minimum(a, 0, out=slope)
        slope += self.alpha
        if second is not None:  # y + alpha on the left, else 0
            np.subtract(1, above, out=second)
            second *= slope
        np.subtract(1, above, out=above)
        slope *= above
        np.subtract(1, above, out=above)
        slope += above


@dataclass(frozen=True)
class Hardtanh(Elementwise):
    """y = x cut to [low, high], any shape. Hardtanh(0, 6) is ReLU6 (Howard et al. 2017, arXiv 1704.04861).

    The VJP needs the output alone: x̄ = ȳ where low < y < high, else 0.

    Attributes:
        low: The least output.
        high: The greatest output.
    """

    low: float = -1.0
    high: float = 1.0

    piecewise_linear = True

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Hardtanh takes a low below its high, but got {self.low} and {self.high}")

    scheme = Scheme(reads_output=True, slope_rows=1, value_flops=2, slope_flops=5)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.clip(x, self.low, self.high)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        np.clip(x, self.low, self.high, out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        _write_inside(a, self.low, self.high, slope, spare[0])


@dataclass(frozen=True)
class Hardswish(Elementwise):
    """y = x·(x + 3)/6 with the fraction cut to [0, 1], any shape (Howard et al. 2019, arXiv 1905.02244).

    The VJP needs x: x̄ is 0 up to -3, ȳ·(2x + 3)/6 up to 3, then ȳ.
    """

    scheme = Scheme(value_rows=1, slope_rows=2, value_flops=5, slope_flops=10)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return x * np.clip(x / 6 + 0.5, 0, 1)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        _write_share(x, spare[0])
        np.multiply(x, spare[0], out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        inside = spare[0]
        _write_inside(a, -3, 3, inside, spare[1])
        if second is not None:
            np.divide(inside, 3, out=second)
        inside *= a
        inside /= 6
        _write_share(a, slope)
        slope += inside


def _write_inside(a: Array, low: float, high: float, out: Array, spare: Array) -> None:
    """Writes 1 where low < a < high, else 0."""
    np.subtract(a, low, out=out)
    np.heaviside(out, 0, out=out)
    np.subtract(high, a, out=spare)
    np.heaviside(spare, 0, out=spare)
    out *= spare


def _write_share(x: Array, out: Array) -> None:
    """Writes x/6 + 1/2 cut to [0, 1]."""
    np.divide(x, 6, out=out)
    out += 0.5
    np.clip(out, 0, 1, out=out)
