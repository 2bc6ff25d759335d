"""A small function, with its Jacobian by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import (
    Matrix,
    Product,
    Settings,
    Vector,
    product,
    vector,
)
from framework.differentiation.explain import trace_operations
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.memory import Array

POINT, DIRECTION, COTANGENT = (1.5, 2.0), (0.3, -0.2), (1.0, 0.5, 0.3)


@dataclass(frozen=True)
class Example:
    """f(x) = [x1² + x2, x1 x2, sin x1] at one point.

    Attributes:
        point: x.
        direction: v, how x moves.
        cotangent: w, the weights of the results.
        value: f(x).
        jvp: J v.
        difference_quotient: (f(x + h v) - f(x - h v)) / 2h, which J v is the limit of.
        vjp: Jᵀ w.
        columns: Those of J, each a JVP with a basis vector.
        rows: Those of J, each a VJP with a basis vector.
        jacobian: J by its formula.
        largest_difference: Of all products from their formulas.
    """

    point: Vector
    direction: Vector
    cotangent: Vector
    value: Vector
    jvp: Product
    difference_quotient: Vector
    vjp: Product
    columns: tuple[Product, ...]
    rows: tuple[Product, ...]
    jacobian: Matrix
    largest_difference: float


def example_function(x: Any) -> Any:
    """f(x) = [x1² + x2, x1 x2, sin x1]."""
    x1, x2 = x
    return np.array([x1**2 + x2, x1 * x2, np.sin(x1)])


def example_jacobian(x: Any) -> Array:
    """The Jacobian of `example_function`, differentiated by hand; shape (3, 2)."""
    x1, x2 = x
    return np.array([[2 * x1, 1.0], [x2, x1], [np.cos(x1), 0.0]])


def example(settings: Settings) -> Example:
    """JVPs and VJPs of a small function beside its exact Jacobian."""
    x, v, w = (np.array(numbers) for numbers in (POINT, DIRECTION, COTANGENT))
    exact = example_jacobian(x)
    value, pullback = vjp(example_function, x)
    forth = product("J v", jvp(example_function, (x,), (v,))[1], exact @ v)
    back = product("Jᵀ w", pullback(w)[0], exact.T @ w)
    columns = tuple(
        product(f"column {j + 1}", jvp(example_function, (x,), (e,))[1], exact[:, j]) for j, e in enumerate(np.eye(2))
    )
    rows = tuple(product(f"row {i + 1}", pullback(e)[0], exact[i]) for i, e in enumerate(np.eye(3)))
    h = 1e-6  # about the cube root of the rounding error, where the quotient is best
    quotient = (example_function(x + h * v) - example_function(x - h * v)) / (2 * h)
    return Example(
        point=POINT,
        direction=DIRECTION,
        cotangent=COTANGENT,
        value=vector(value),
        jvp=forth,
        difference_quotient=vector(quotient),
        vjp=back,
        columns=columns,
        rows=rows,
        jacobian=tuple(vector(row) for row in exact),
        largest_difference=max(p.difference for p in (forth, back, *columns, *rows)),
    )


@dataclass(frozen=True)
class Step:
    """One operation of the example, as `Operation`, with plain numbers for arrays."""

    output: str
    name: str
    inputs: tuple[str, ...]
    value: Vector
    tangent: Vector
    cotangent: Vector


def steps() -> tuple[Step, ...]:
    """The operations of the example in order, each with value, tangent and cotangent; scalars are vectors of length 1."""
    found = trace_operations(example_function, (np.array(POINT),), (np.array(DIRECTION),), np.array(COTANGENT))
    return tuple(
        Step(o.output, o.name, o.inputs, vector(o.value), vector(o.tangent), vector(o.cotangent)) for o in found
    )
