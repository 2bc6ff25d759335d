"""The tables of derivative rules, one file a family."""

from framework.differentiation.rules import (
    elementwise,
    indexing,
    joining,
    matrices,
    order,
    products,
    reductions,
    sampled,
    selection,
    shapes,
    statistics,
)

__all__ = [
    "elementwise",
    "indexing",
    "joining",
    "matrices",
    "order",
    "products",
    "reductions",
    "sampled",
    "selection",
    "shapes",
    "statistics",
]
