"""The tables of derivative rules, one file a family."""

from framework.differentiation.rules import elementwise, indexing, linear_algebra, reductions, shapes

__all__ = ["elementwise", "indexing", "linear_algebra", "reductions", "shapes"]
