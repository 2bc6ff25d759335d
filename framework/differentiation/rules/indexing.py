"""Indexing of every kind, and its transpose: adding into places."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, as_dtype, dtype_of, linear
from framework.differentiation.tracing import primitive, untraced


@primitive
def take_items(x: Any, key: Any) -> Any:
    """x[key]."""
    return np.asarray(x)[untraced(key)]


@primitive
def put_items(g: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with g added at [key], places named twice getting both."""
    whole = np.zeros(shape, dtype_of(g))
    if _is_basic(key):
        whole[key] = g
    else:
        np.add.at(whole, key, g)
    return whole


def _is_basic(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(isinstance(part, int | np.integer | slice | type(None) | type(...)) for part in parts)


linear("indexing", take_items, lambda g, y, x, key: put_items(g, untraced(key), np.shape(x)))
linear("indexing", put_items, lambda g, y, x, key, shape: take_items(g, key))


def _take(a: Any, indices: Any, axis: Any = None, mode: Any = "raise") -> Any:
    flat = np.ravel(a) if axis is None or np.ndim(a) == 0 else a
    along = 0 if axis is None or np.ndim(a) == 0 else axis % np.ndim(a)
    # NumPy itself says what mode does to an index that is out of bounds.
    places = np.take(np.arange(np.shape(flat)[along]), indices, mode=mode)
    return flat[(slice(None),) * along + (places,)]


def _along(shape: tuple[int, ...], indices: Any, axis: int) -> tuple[Any, ...]:
    """The full index of np.take_along_axis; the other axes of array and indices are broadcast to each other."""
    grid = list(np.ogrid[tuple(slice(n) for n in shape)])
    grid[axis] = indices
    return tuple(grid)


def _take_along_axis(a: Any, indices: Any, axis: Any = -1) -> Any:
    flat, along = (np.ravel(a), 0) if axis is None else (a, axis)
    return flat[_along(np.shape(flat), np.asarray(indices), along)]


def _sort(a: Any, axis: Any = -1, kind: Any = None, **options: Any) -> Any:
    if axis is None:
        return _sort(np.ravel(a), 0)
    return _take_along_axis(a, np.argsort(untraced(a), axis=axis, kind="stable"), axis)


def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    flat = np.ravel(a) if axis is None else a
    along = 0 if axis is None else axis
    return _take(flat, np.repeat(np.arange(np.shape(flat)[along]), repeats), along)


def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    moved = np.moveaxis(a, (axis1, axis2), (-2, -1))
    rows, columns = np.shape(moved)[-2:]
    i = np.arange(max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns)))
    return moved[..., i + max(0, -offset), i + max(0, offset)]


def _diag(v: Any, k: int = 0) -> Any:
    if np.ndim(v) == 2:
        return _diagonal(v, k)
    i, size = np.arange(np.shape(v)[0]), np.shape(v)[0] + abs(k)
    return put_items(v, (i + max(0, -k), i + max(0, k)), (size, size))


def _reduced_first(a: Any, axis: Any) -> Any:
    """The array with the reduced axes as one, which is the first."""
    axes = range(np.ndim(a)) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    if not len(axes) or np.ndim(a) == 0:
        return np.reshape(a, (1, *np.shape(a)))
    moved = np.moveaxis(a, tuple(axes), tuple(range(len(axes))))
    rest = np.shape(moved)[len(axes) :]
    return np.reshape(moved, (int(np.prod(np.shape(moved)[: len(axes)], dtype=int)), *rest))


def _as_kept(result: Any, a: Any, axis: Any, keepdims: Any, extra: int = 0) -> Any:
    """Gives a result the reduced axes again, after `extra` axes of its own."""
    if not keepdims:
        return result
    axes = range(np.ndim(a)) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    gone = {x % max(1, np.ndim(a)) for x in axes}
    return np.reshape(
        result, np.shape(result)[:extra] + tuple(1 if i in gone else n for i, n in enumerate(np.shape(a)))
    )


def _median(a: Any, axis: Any = None, overwrite_input: bool = False, keepdims: Any = False) -> Any:
    """The mean of the middle elements of the sorted ones."""
    ordered = _sort(_reduced_first(a, axis), 0)
    length = np.shape(ordered)[0]
    return _as_kept(np.mean(ordered[(length - 1) // 2 : length // 2 + 1], axis=0), a, axis, keepdims)


def _quantile(
    a: Any, q: Any, axis: Any = None, overwrite_input: bool = False, method: str = "linear", keepdims: Any = False
) -> Any:
    """Between the sorted elements on both sides of the place q·(n − 1); also differentiable in q where it interpolates."""
    ordered = _sort(_reduced_first(a, axis), 0)
    place = np.multiply(q, np.shape(ordered)[0] - 1.0)
    low, high = (np.asarray(f(place)).astype(int) for f in (np.floor, np.ceil))
    if method == "linear":
        part: Any = place - low
    elif method in ("lower", "higher", "midpoint", "nearest"):
        part = {"lower": 0.0, "higher": 1.0, "midpoint": 0.5, "nearest": np.rint(place) - low}[method]
    else:
        raise TypeError(
            f"np.quantile with method={method!r} has no derivative rule; use linear, lower, higher or nearest"
        )
    part = as_dtype(np.reshape(part, np.shape(part) + (1,) * (np.ndim(ordered) - 1)), dtype_of(ordered))
    return _as_kept(ordered[low] + part * (ordered[high] - ordered[low]), a, axis, keepdims, np.ndim(q))


DERIVED |= {
    np.take: _take,
    np.take_along_axis: _take_along_axis,
    np.sort: _sort,
    np.repeat: _repeat,
    np.diagonal: _diagonal,
    np.diag: _diag,
    np.diagflat: lambda v, k=0: _diag(np.ravel(v), k),
    np.trace: lambda a, offset=0, axis1=0, axis2=1: np.sum(_diagonal(a, offset, axis1, axis2), axis=-1),
    np.linalg.diagonal: lambda x, *, offset=0: _diagonal(x, offset, -2, -1),
    np.linalg.trace: lambda x, *, offset=0: np.sum(_diagonal(x, offset, -2, -1), axis=-1),
    np.median: _median,
    np.quantile: _quantile,
    np.percentile: lambda a, q, axis=None, **options: _quantile(a, np.divide(q, 100), axis, **options),
}
