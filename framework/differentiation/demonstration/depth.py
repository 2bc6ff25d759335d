"""The peak memory of both modes by the depth of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad
from framework.measuring import peak_bytes

#: Rows and columns of W and of what goes through it.
WIDTH = 64


@dataclass(frozen=True)
class Depth:
    """Peak memory of `depth` layers x ↦ tanh(W x).

    Attributes:
        depth: Layers.
        function_peak_bytes: Of the function alone.
        forward_peak_bytes: Of function and JVP.
        reverse_peak_bytes: Of function and VJP.
    """

    depth: int
    function_peak_bytes: int
    forward_peak_bytes: int
    reverse_peak_bytes: int


@dataclass(frozen=True)
class Depths:
    """Peak memory by depth.

    Attributes:
        activation_bytes: Of one layer's output.
        depths: Measured ones.
        forward_bytes_per_layer: Growth of forward mode's peak from the shallowest to the deepest, for each layer more.
        reverse_bytes_per_layer: The same of reverse mode's.
    """

    activation_bytes: int
    depths: tuple[Depth, ...]
    forward_bytes_per_layer: float
    reverse_bytes_per_layer: float


def depth(settings: Settings) -> Depths:
    """Forward mode keeps nothing of the layers behind it; reverse mode keeps what their rules will read."""
    generator = settings.generator("depth")
    W = generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    x, v = generator.standard_normal((WIDTH, WIDTH)), generator.standard_normal((WIDTH, WIDTH))

    def layers(x: Any, number: int) -> Any:
        for _ in range(number):
            x = np.tanh(W @ x)
        return np.sum(x)

    def measured(number: int) -> Depth:
        def function(x: Any) -> Any:
            return layers(x, number)

        return Depth(
            depth=number,
            function_peak_bytes=peak_bytes(lambda: function(x)),
            forward_peak_bytes=peak_bytes(lambda: jvp(function, (x,), (v,))),
            reverse_peak_bytes=peak_bytes(lambda: grad(function)(x)),
        )

    if list(settings.depths) != sorted(set(settings.depths)) or len(settings.depths) < 2 or settings.depths[0] < 1:
        raise ValueError(f"depths must be two or more positive numbers that grow, but got {settings.depths}")
    found = tuple(measured(number) for number in settings.depths)
    more = found[-1].depth - found[0].depth
    return Depths(
        activation_bytes=x.nbytes,
        depths=found,
        forward_bytes_per_layer=(found[-1].forward_peak_bytes - found[0].forward_peak_bytes) / more,
        reverse_bytes_per_layer=(found[-1].reverse_peak_bytes - found[0].reverse_peak_bytes) / more,
    )
