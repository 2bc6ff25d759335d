"""Second derivatives: Hessian–vector products without the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings, difference, raveled
from framework.differentiation.reverse import grad
from framework.differentiation.transforms import HVP_MODES, hessian, hvp
from framework.measuring import median_seconds, peak_bytes


@dataclass(frozen=True)
class HessianProduct:
    """A Hessian–vector product in one of the modes.

    Attributes:
        mode: How the two transforms are nested.
        difference: The largest one from the dense Hessian times the vector.
        seconds: Of the product.
        ratio: seconds / seconds of the gradient.
        peak_bytes: The most bytes that it held.
    """

    mode: str
    difference: float
    seconds: float
    ratio: float
    peak_bytes: int


@dataclass(frozen=True)
class Hessian:
    """Hessian–vector products of a two-layer network's loss.

    Attributes:
        arguments: n, its parameters.
        hessian_bytes: Of the n × n matrix.
        product_bytes: Of a product: n numbers.
        largest_entry: Of the product, in absolute value.
        quotient_difference: The largest one of the product from a central difference of gradients along the vector.
        asymmetry: The largest difference between the dense Hessian and its transpose.
        gradient_seconds: Of the gradient.
        hessian_seconds: Of the dense Hessian.
        products: One for each mode.
    """

    arguments: int
    hessian_bytes: int
    product_bytes: int
    largest_entry: float
    quotient_difference: float
    asymmetry: float
    gradient_seconds: float
    hessian_seconds: float
    products: tuple[HessianProduct, ...]


def hessian_products(settings: Settings) -> Hessian:
    """Transforms nest: a derivative of a derivative times a vector is the Hessian times that vector."""
    generator = settings.generator("hessian")
    weights = [
        (generator.standard_normal((i, o)) / i**0.5, generator.standard_normal(o)) for i, o in ((8, 16), (16, 1))
    ]
    x, target = generator.standard_normal((4, 8)), generator.standard_normal((4, 1))
    flat, unravel = raveled(weights)
    v = generator.standard_normal(flat.size)

    def loss(flat: Any) -> Any:
        (W1, b1), (W2, b2) = unravel(flat)
        return np.mean((np.tanh(x @ W1 + b1) @ W2 + b2 - target) ** 2)

    dense = hessian(loss)(flat)
    expected = dense @ v
    calls = [partial(hvp, loss, (flat,), (v,), mode) for mode in HVP_MODES]
    once, *times = median_seconds([lambda: grad(loss)(flat), *calls], 10 * settings.repetitions)
    (whole,) = median_seconds([lambda: hessian(loss)(flat)], settings.repetitions)
    h = 1e-6
    quotient = (grad(loss)(flat + h * v) - grad(loss)(flat - h * v)) / (2 * h)
    return Hessian(
        arguments=flat.size,
        hessian_bytes=dense.nbytes,
        product_bytes=expected.nbytes,
        largest_entry=float(np.max(np.abs(expected))),
        quotient_difference=difference(quotient, expected),
        asymmetry=difference(dense, dense.T),
        gradient_seconds=once,
        hessian_seconds=whole,
        products=tuple(
            HessianProduct(mode, difference(call(), expected), seconds, seconds / once, peak_bytes(call))
            for mode, call, seconds in zip(HVP_MODES, calls, times, strict=True)
        ),
    )
