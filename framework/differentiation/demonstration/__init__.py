"""What Jacobian products are and what they cost, computed and measured: the data of `scripts/differentiate.py`.

A section is a function of the `Settings` that returns a frozen dataclass of plain numbers, strings and tuples, or a tuple of
these, so that `dataclasses.asdict` gives what JSON takes. Nothing in a section is written down beforehand: results are computed,
times are medians, and bytes are counted by `tracemalloc`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework.differentiation.demonstration import (
    cost,
    crossover,
    custom,
    depth,
    elementwise,
    example,
    hessian,
    network,
    sizes,
)
from framework.differentiation.demonstration.common import Settings, Weights
from framework.differentiation.demonstration.example import steps
from framework.differentiation.demonstration.network import FiveLayers

#: The sections by name, in order.
SECTIONS: dict[str, Callable[[Settings], Any]] = {
    "example": example.example,
    "sizes": sizes.sizes,
    "crossover": crossover.crossover,
    "elementwise": elementwise.elementwise,
    "network": network.network,
    "cost": cost.cost,
    "depth": depth.depth,
    "gradient": network.gradient,
    "custom": custom.custom,
    "hessian": hessian.hessian_products,
}

__all__ = ["SECTIONS", "FiveLayers", "Settings", "Weights", "steps"]
