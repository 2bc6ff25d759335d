"""What one JVP and one VJP cost, in forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.measuring import median_seconds


@dataclass(frozen=True)
class Cost:
    """Times of a network of tanh(x W + b) layers, and of products with its Jacobian.

    Attributes:
        layers: Their number.
        width: Of each.
        batch: Examples.
        by: What is differentiated by: the input, or the parameters.
        forward_seconds: The function alone.
        jvp_seconds: Function and JVP.
        vjp_seconds: Function and VJP.
        pullback_seconds: The VJP alone, after the function has run.
        jvp_ratio: jvp_seconds / forward_seconds.
        vjp_ratio: vjp_seconds / forward_seconds.
        pullback_ratio: pullback_seconds / forward_seconds.
        matrix_products: Matrix products of function and JVP, and as many of function and VJP, for each of the function alone.
    """

    layers: int
    width: int
    batch: int
    by: str
    forward_seconds: float
    jvp_seconds: float
    vjp_seconds: float
    pullback_seconds: float
    jvp_ratio: float
    vjp_ratio: float
    pullback_ratio: float
    matrix_products: float


def cost(settings: Settings) -> tuple[Cost, ...]:
    """What one product costs, in forward passes."""
    return tuple(_cost(*size, by, settings) for size in settings.networks for by in ("input", "parameters"))


def _cost(layers: int, width: int, batch: int, by: str, settings: Settings) -> Cost:
    generator = settings.generator(f"cost {layers}x{width}x{batch}")
    weights = [
        (generator.standard_normal((width, width)) / width**0.5, generator.standard_normal(width))
        for _ in range(layers)
    ]
    x = generator.standard_normal((batch, width))

    def run(weights: Any, x: Any) -> Any:
        for W, b in weights:
            x = np.tanh(x @ W + b)
        return x

    function: Any = (lambda x: run(weights, x)) if by == "input" else (lambda weights: run(weights, x))
    primal: Any = x if by == "input" else weights
    tangent: Any = np.ones_like(x) if by == "input" else [(np.ones_like(W), np.ones_like(b)) for W, b in weights]
    g = np.ones((batch, width))
    _, pullback = vjp(function, primal)
    calls = [
        lambda: function(primal),
        lambda: jvp(function, (primal,), (tangent,)),
        lambda: vjp(function, primal)[1](g, last=True),
        lambda: pullback(g),
    ]
    # Small networks are quick and noisy.
    forward, forth, back, alone = median_seconds(calls, settings.repetitions * (4 if width * batch > 10_000 else 40))
    # By the parameters each layer has one product for W and one for its input, which the first layer's does not need.
    products = 2.0 if by == "input" else (3 * layers - 1) / layers
    ratios = (forth / forward, back / forward, alone / forward)
    return Cost(layers, width, batch, by, forward, forth, back, alone, *ratios, products)
