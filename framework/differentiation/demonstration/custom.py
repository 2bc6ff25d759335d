"""A rule of one's own, and a cotangent that is not 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.custom import custom_rule
from framework.differentiation.demonstration.common import Product, Settings, product
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad, vjp


@custom_rule
def my_square(x: Any) -> Any:
    """x², as a function that the tables do not know."""
    return x**2


@my_square.vjp
def _my_square_vjp(cotangent: Any, y: Any, x: Any) -> tuple[Any, ...]:
    return (2 * x * cotangent,)


def custom(settings: Settings) -> tuple[Product, ...]:
    """A function with a rule of its own, and the pullback of a polynomial with a cotangent that is not 1."""
    x, v = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    z = settings.generator("custom").standard_normal(3)
    return (
        product("gradient of Σ my_square(x)", grad(lambda x: np.sum(my_square(x)))(x), 2 * x),
        product("JVP of my_square, from its VJP", jvp(my_square, (x,), (v,))[1], 2 * x * v),
        product("VJP of x² + 2x", vjp(lambda x: x**2 + 2 * x, z)[1](v)[0], (2 * z + 2) * v),
    )
