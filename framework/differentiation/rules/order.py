"""Order statistics: the sorted elements, and means of some of them. Ties keep the order in which they stood."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.rules.indexing import take_along_axis
from framework.differentiation.rules.reductions import axes_of
from framework.differentiation.table import DERIVED, as_dtype, dtype_of
from framework.differentiation.tracing import untraced

Axis = Any
#: Methods of np.quantile that take one element, at the rounded place.
_ROUND = {"lower": np.floor, "higher": np.ceil, "nearest": np.rint}


def _sort(a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    if axis is None:
        return _sort(np.ravel(a), 0)
    return take_along_axis(a, np.argsort(untraced(a), axis=axis, kind="stable"), axis)


def _partition(a: Any, kth: Any, axis: Any = -1, kind: Any = "introselect") -> Any:
    if axis is None:
        return _partition(np.ravel(a), kth, 0)
    return take_along_axis(a, np.argpartition(untraced(a), kth, axis=axis), axis)


def _sorted_first(a: Any, axis: Axis) -> Any:
    """The array with the reduced axes as one, which is the first, and sorted along it; NaN is last."""
    axes = axes_of(a, axis)
    moved = np.moveaxis(a, axes, tuple(range(len(axes))))
    rest = np.shape(moved)[len(axes) :]
    length = int(np.prod(np.shape(moved)[: len(axes)], dtype=int))
    return _sort(np.reshape(moved, (length, *rest)), 0)


def _between(ordered: Any, q: Any, count: Any, method: str, missing: Any) -> Any:
    """The element at the place q·(count − 1) along the first axis, between those on both sides of it; q has axes of its own."""
    rest = np.shape(ordered)[1:]
    place = np.reshape(q, np.shape(q) + (1,) * len(rest)) * np.maximum(np.asarray(count) - 1.0, 0).astype(dtype_of(q))
    grid = tuple(np.reshape(np.arange(n), (n,) + (1,) * (len(rest) - i - 1)) for i, n in enumerate(rest))
    if method in _ROUND:
        found = ordered[(_ROUND[method](untraced(place)).astype(int), *grid)]
    elif method in ("linear", "midpoint"):
        low, high = (np.asarray(f(place)).astype(int) for f in (np.floor, np.ceil))
        part: Any = place - low.astype(dtype_of(q)) if method == "linear" else np.asarray(0.5, dtype_of(q))
        below, above = ordered[(low, *grid)], ordered[(high, *grid)]
        found = below + part * (above - below)
    else:
        raise TypeError(
            f"np.quantile with method={method!r} has no derivative rule; use linear, lower, higher, midpoint or nearest"
        )
    return np.where(missing, np.asarray(np.nan, dtype_of(found)), found) if np.any(missing) else found


def _quantile(
    a: Any, q: Any, axis: Any = None, *, overwrite_input: bool = False, method: str = "linear", keepdims: Any = False,
    skip_nan: bool = False,
) -> Any:  # fmt: skip
    """Also differentiable in q where it interpolates. The result is NaN where an element is (or all are, if NaN is skipped)."""
    weak = type(q) in (int, float)  # such a q leaves the result in the dtype of the array
    q = q if hasattr(q, "dtype") else np.asarray(q)
    q = q if dtype_of(q).kind == "f" else as_dtype(q, np.dtype(float))
    ordered = _sorted_first(a, axis)
    length, rest = np.shape(ordered)[0], np.shape(ordered)[1:]
    nan = np.isnan(ordered)
    if length == 0:
        found = np.full(np.shape(q) + rest, np.nan, np.result_type(dtype_of(a), dtype_of(q)))
    elif skip_nan:
        found = _between(ordered, q, length - np.sum(nan, axis=0), method, np.all(nan, axis=0))
    else:
        found = _between(ordered, q, length, method, nan[-1])
    found = as_dtype(found, dtype_of(a)) if weak else found
    if not keepdims:
        return found
    axes = axes_of(a, axis)
    return np.reshape(found, np.shape(q) + tuple(1 if i in axes else n for i, n in enumerate(np.shape(a))))


def _median(a: Any, axis: Any = None, *, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    return _quantile(a, 0.5, axis, method="midpoint", keepdims=keepdims)


def _nanmedian(a: Any, axis: Any = None, *, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    return _quantile(a, 0.5, axis, method="midpoint", keepdims=keepdims, skip_nan=True)


def _per_hundred(q: Any) -> Any:
    return q / 100 if type(q) in (int, float) else np.divide(q, 100)


DERIVED |= {
    np.sort: _sort,
    np.partition: _partition,
    np.median: _median,
    np.quantile: _quantile,
    np.percentile: lambda a, q, axis=None, **options: _quantile(a, _per_hundred(q), axis, **options),
    np.nanmedian: _nanmedian,
    np.nanquantile: lambda a, q, axis=None, **options: _quantile(a, q, axis, skip_nan=True, **options),
    np.nanpercentile: lambda a, q, axis=None, **options: _quantile(a, _per_hundred(q), axis, skip_nan=True, **options),
}
