"""Indexing of every kind, and its transpose: adding into places."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, dtype_of, linear
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


def _take(a: Any, indices: Any, axis: Any = None, mode: str = "raise") -> Any:
    if axis is None:
        return np.ravel(a)[np.asarray(indices)]
    return a[(slice(None),) * (axis % np.ndim(a)) + (np.asarray(indices),)]


def _along(shape: tuple[int, ...], indices: Any, axis: int) -> tuple[Any, ...]:
    """The full index of np.take_along_axis."""
    grid = list(np.ogrid[tuple(slice(n) for n in np.shape(indices))])
    grid[axis] = indices
    return tuple(grid)


def _take_along_axis(a: Any, indices: Any, axis: int = -1) -> Any:
    return a[_along(np.shape(a), np.asarray(indices), axis)]


def _sort(a: Any, axis: Any = -1, **options: Any) -> Any:
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


DERIVED |= {
    np.take: _take,
    np.take_along_axis: _take_along_axis,
    np.sort: _sort,
    np.repeat: _repeat,
    np.diagonal: _diagonal,
    np.diag: _diag,
    np.trace: lambda a, offset=0, axis1=0, axis2=1: np.sum(_diagonal(a, offset, axis1, axis2), axis=-1),
    np.median: lambda a, axis=None, keepdims=False: _median(a, axis, keepdims),
}


def _median(a: Any, axis: Any, keepdims: bool) -> Any:
    """The mean of the middle elements of the sorted ones."""
    flat = np.ravel(a) if axis is None else np.moveaxis(a, axis, -1)
    length = np.shape(flat)[-1]
    middle = np.mean(_sort(flat)[..., (length - 1) // 2 : length // 2 + 1], axis=-1)
    if not keepdims:
        return middle
    return np.reshape(middle, (1,) * np.ndim(a)) if axis is None else np.expand_dims(middle, axis)
