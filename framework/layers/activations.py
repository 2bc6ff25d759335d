"""Activations that do the same with each element: ReLU, LeakyReLU, GELU, SiLU, Tanh, Sigmoid and Softplus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.layers.elementwise import Elementwise, Scheme
from framework.layers.layer import Context, Params
from framework.memory import Array
from framework.special import ERF_ROWS, erf, write_erf, write_sigmoid


@dataclass(frozen=True)
class Tanh(Elementwise):
    """y = tanh x, any shape. The VJP needs the output alone: x̄ = ȳ·(1 - y²)."""

    scheme = Scheme(reads_output=True, slope_flops=3)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.tanh(x)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        np.tanh(x, out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        np.multiply(a, a, out=slope)
        np.subtract(1, slope, out=slope)
        if second is not None:
            np.multiply(a, -2, out=second)
            second *= slope


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """y = 1 / (1 + exp(-x)), any shape. The VJP needs the output alone: x̄ = ȳ·y·(1 - y)."""

    scheme = Scheme(reads_output=True, slope_flops=3)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return _sigmoid(x)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        write_sigmoid(x, out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        _write_sigmoid_slope(a, slope, second)


@dataclass(frozen=True)
class SiLU(Elementwise):
    """y = x·σ(x) with σ(x) = 1 / (1 + exp(-x)), any shape (Elfwing et al. 2017, arXiv 1702.03118; also called Swish).

    The VJP needs x and computes σ again: x̄ = ȳ·σ·(1 + x·(1 - σ)).
    """

    scheme = Scheme(value_rows=1, slope_rows=1, slope_flops=15)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return x * _sigmoid(x)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        write_sigmoid(x, spare[0])
        np.multiply(x, spare[0], out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        share = spare[0]
        write_sigmoid(a, share)
        if second is not None:  # σ·(1 - σ)·(2 + x·(1 - 2σ))
            np.multiply(share, -2, out=second)
            second += 1
            second *= a
            second += 2
            _write_sigmoid_slope(share, slope, None)
            second *= slope
        np.subtract(1, share, out=slope)
        slope *= a
        slope += 1
        slope *= share


#: By whether the derivative is read off the output.
_SOFTPLUS = {
    reads: Scheme(reads_output=reads, value_rows=2, slope_rows=1, value_flops=25, slope_flops=15)
    for reads in (False, True)
}


@dataclass(frozen=True)
class Softplus(Elementwise):
    """y = log(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold, any shape (Dugas et al. 2001).

    The VJP needs the output alone: x̄ = ȳ·(1 - exp(-beta·y)), or ȳ above the threshold. The output jumps at the threshold, so there
    are x just above it whose y is also that of an x below it, and which count as below it: an error of exp(-threshold) at most.
    Below a threshold of 20 this would be more than 2.1e-9, and the VJP needs x.

    Attributes:
        beta: Above 0: how sharp the bend is.
        threshold: From where on y is x.
    """

    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"Softplus takes a finite beta above 0, but got {self.beta}")
        if math.isnan(self.threshold):
            raise ValueError("Softplus takes a number as threshold, but got NaN")

    @property
    def scheme(self) -> Scheme:
        return _SOFTPLUS[self.threshold >= 20]

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        scaled = self.beta * x
        return np.where(scaled > self.threshold, x, np.logaddexp(0, scaled) / self.beta)

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        """max(x, 0) + log(1 + exp(-|beta·x|)) / beta, which does not overflow; above the threshold x."""
        rest, below = spare[0], spare[1]
        np.multiply(x, self.beta, out=below)
        np.absolute(below, out=rest)
        np.negative(rest, out=rest)
        np.exp(rest, out=rest)
        np.log1p(rest, out=rest)
        np.subtract(self.threshold, below, out=below)
        np.heaviside(below, 1, out=below)
        rest *= below
        rest /= self.beta
        least: Any = 0
        if self.threshold < 0:  # then there are negative x above it, which stay
            below -= 1
            below *= np.finfo(below.dtype).max
            least = below
        np.maximum(x, least, out=out)
        out += rest

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        above = spare[0]
        np.multiply(a, self.beta, out=above)
        edge = self.threshold
        if self.scheme.reads_output:
            edge += math.log1p(math.exp(-edge))  # of the output
            np.negative(above, out=slope)
            np.expm1(slope, out=slope)
            np.negative(slope, out=slope)
        else:
            write_sigmoid(above, slope)
        above -= edge
        np.heaviside(above, 0, out=above)
        np.maximum(slope, above, out=slope)
        if second is not None:
            _write_sigmoid_slope(slope, second, None)
            second *= self.beta


@dataclass(frozen=True)
class Mish(Elementwise):
    """y = x·tanh(log(1 + exp x)), any shape (Misra 2019, arXiv 1908.08681).

    With n = exp(x)·(exp(x) + 2) the tanh is t = n/(n + 2). The VJP needs x and computes it again: x̄ = ȳ·(t + x·(1 - t²)·σ(x)).
    """

    scheme = Scheme(value_rows=2, slope_rows=2, value_flops=20, slope_flops=35)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return x * np.tanh(np.logaddexp(0, x))

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        _write_tanh_of_softplus(x, spare[0], spare[1])
        np.multiply(x, spare[0], out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        tanh, share = spare[0], spare[1]
        _write_tanh_of_softplus(a, tanh, share)
        np.divide(2, share, out=slope)  # 1 - t
        np.add(1, tanh, out=share)
        slope *= share
        write_sigmoid(a, share)
        slope *= share  # t' = (1 - t²)·σ
        if second is not None:  # t'·(2 + x·(1 - σ - 2tσ))
            np.multiply(tanh, 2, out=second)
            second += 1
            second *= share
            np.subtract(1, second, out=second)
            second *= a
            second += 2
            second *= slope
        slope *= a
        slope += tanh


_C = math.sqrt(2 / math.pi)
_A = 0.044715

#: By whether it is approximated.
_GELU = {
    True: Scheme(slope_rows=2, value_flops=20, slope_flops=30, in_place=False),
    False: Scheme(value_rows=1 + ERF_ROWS, slope_rows=ERF_ROWS, value_flops=90, slope_flops=105),
}


@dataclass(frozen=True)
class GELU(Elementwise):
    """y = x/2 · (1 + tanh u) with u = √(2/π)·(x + 0.044715 x³), any shape (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    The exact form is y = x·Φ(x) with Φ(x) = (1 + erf(x/√2))/2, the normal distribution, and φ its density. The VJP needs x and computes
    the tanh or Φ again: x̄ = ȳ/2 · (1 + tanh u + x·(1 - tanh² u)·u'), or ȳ·(Φ + x·φ).

    Attributes:
        approximate: Whether it is the form with tanh; else the exact one.
    """

    approximate: bool = True

    @property
    def scheme(self) -> Scheme:
        return _GELU[self.approximate]

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        if self.approximate:
            return 0.5 * x * (1 + np.tanh(_C * (x + _A * x * x * x)))
        return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))

    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        if self.approximate:
            _write_tanh_of_u(x, out)
            out += 1
            out *= x
            out *= 0.5
        else:
            share = spare[0]
            _write_normal(x, share, spare[1:])
            np.multiply(x, share, out=out)

    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        if self.approximate:
            _write_tanh_slope(a, slope, second, spare[0], spare[1])
            return
        _write_normal(a, slope, spare)
        density, product = spare[0], spare[1]
        np.multiply(a, a, out=density)
        if second is not None:  # φ·(2 - x²)
            np.subtract(2, density, out=second)
        density *= -0.5
        np.exp(density, out=density)
        density *= 1 / math.sqrt(2 * math.pi)
        if second is not None:
            second *= density
        np.multiply(a, density, out=product)
        slope += product


def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) in functions whose derivatives of all orders are finite wherever x is."""
    return np.exp(-np.logaddexp(0, -x))


def _write_sigmoid_slope(y: Array, slope: Array, second: Array | None) -> None:
    """Writes y·(1 - y), the derivative of y = σ(x), and y·(1 - y)·(1 - 2y), its derivative."""
    np.subtract(1, y, out=slope)
    slope *= y
    if second is not None:
        np.multiply(y, -2, out=second)
        second += 1
        second *= slope


def _write_tanh_of_softplus(x: Array, tanh: Array, rest: Array) -> None:
    """Writes t = tanh(log(1 + exp x)) = n/(n + 2) with n = exp(x)·(exp(x) + 2), and n + 2 into `rest`."""
    np.minimum(x, 20, out=tanh)  # from where on t is 1
    np.exp(tanh, out=tanh)
    np.add(tanh, 2, out=rest)
    tanh *= rest
    np.add(tanh, 2, out=rest)
    tanh /= rest


def _write_normal(x: Array, out: Array, spare: Array) -> None:
    """Writes Φ(x) into `out`; `spare` has ERF_ROWS rows."""
    np.multiply(x, math.sqrt(0.5), out=out)
    write_erf(out, spare)
    out += 1
    out *= 0.5


def _write_tanh_of_u(x: Array, out: Array) -> None:
    """Writes tanh(√(2/π)·(x + 0.044715 x³)) into `out`."""
    np.multiply(x, x, out=out)
    out *= _A * _C
    out += _C
    out *= x
    np.tanh(out, out=out)


def _write_tanh_slope(x: Array, slope: Array, second: Array | None, tanh: Array, rest: Array) -> None:
    """Writes the derivatives of GELU with tanh.

    The first is (1 + tanh u)·(1 + x·(1 - tanh u)·u')/2, the second (1 - tanh² u)·(u' + x·(u''/2 - tanh u·u'²)).
    """
    np.multiply(x, x, out=slope)
    np.multiply(slope, _A * _C, out=tanh)
    tanh += _C
    tanh *= x
    np.tanh(tanh, out=tanh)
    slope *= 3 * _A * _C
    slope += _C
    slope *= x
    np.subtract(1, tanh, out=rest)
    slope *= rest
    slope += 1
    tanh += 1
    slope *= tanh
    slope *= 0.5
    if second is None:
        return
    rest *= tanh  # 1 - tanh²
    tanh -= 1
    np.multiply(x, x, out=second)
    second *= 3 * _A * _C
    second += _C  # u'
    tanh *= second
    tanh *= second
    tanh *= x
    second -= tanh
    np.multiply(x, x, out=tanh)
    tanh *= 3 * _A * _C  # x·u''/2
    second += tanh
    second *= rest
