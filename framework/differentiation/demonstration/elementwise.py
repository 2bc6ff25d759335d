"""Elementwise functions: the Jacobian is diagonal, and a product is one multiplication an element."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings, difference
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.measuring import peak_bytes
from framework.memory import Array


@dataclass(frozen=True)
class Elementwise:
    """An elementwise function, whose Jacobian is diagonal.

    Attributes:
        name: The function.
        factor: The diagonal as a formula.
        elements: n.
        jvp_difference: The largest one of the JVP from factor · tangent.
        vjp_difference: The largest one of the VJP from factor · cotangent.
        peak_bytes: The most bytes that function and VJP held.
        peak_arrays: The same in arrays of n elements.
        matrix_bytes: Of the n × n Jacobian, which nobody forms.
    """

    name: str
    factor: str
    elements: int
    jvp_difference: float
    vjp_difference: float
    peak_bytes: int
    peak_arrays: float
    matrix_bytes: int


def elementwise(settings: Settings) -> tuple[Elementwise, ...]:
    """Products with diagonal Jacobians: one multiplication an element."""
    generator, n = settings.generator("elementwise"), settings.elements
    x, v, w = (generator.standard_normal(n) for _ in range(3))
    s = 1 / (1 + np.exp(-x))
    found = []
    functions: list[tuple[str, str, Any, Array]] = [
        ("ReLU", "x > 0", lambda x: np.maximum(x, 0), (x > 0).astype(float)),
        ("sigmoid", "s (1 - s)", lambda x: 1 / (1 + np.exp(-x)), s * (1 - s)),
        ("square", "2 x", lambda x: x**2, 2 * x),
    ]

    def pulled(function: Any) -> Any:
        return vjp(function, x)[1](w)[0]

    for name, written, function, factor in functions:
        peak = peak_bytes(partial(pulled, function))
        found.append(
            Elementwise(
                name=name,
                factor=written,
                elements=n,
                jvp_difference=difference(jvp(function, (x,), (v,))[1], factor * v),
                vjp_difference=difference(pulled(function), factor * w),
                peak_bytes=peak,
                peak_arrays=peak / x.nbytes,
                matrix_bytes=n * n * x.itemsize,
            )
        )
    return tuple(found)
