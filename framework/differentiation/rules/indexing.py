"""Indexing of every kind, and its transpose: adding into places."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, DERIVED, as_dtype, dtype_of, linear
from framework.differentiation.tracing import primitive, untraced


@primitive
def take_items(x: Any, key: Any) -> Any:
    """x[key]."""
    return np.asarray(x)[untraced(key)]


@primitive
def put_items(g: Any, key: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with g added at [key], places named twice getting both."""
    whole = np.zeros(shape, dtype_of(g))
    if _names_none_twice(key):
        whole[key] = g
    else:
        np.add.at(whole, key, g)
    return whole


def _names_none_twice(key: Any) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(
        isinstance(part, int | np.integer | slice | type(None) | type(...))
        or (isinstance(part, np.ndarray) and part.dtype == bool)
        for part in parts
    )


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


def take_along_axis(a: Any, indices: Any, axis: Any = -1) -> Any:
    flat, along = (np.ravel(a), 0) if axis is None else (a, axis)
    return flat[_along(np.shape(flat), np.asarray(indices), along)]


def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    flat = np.ravel(a) if axis is None or np.ndim(a) == 0 else a
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


def _trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None) -> Any:
    return np.sum(_diagonal(a, offset, axis1, axis2), axis=-1, dtype=dtype)


def _insert(arr: Any, obj: Any, values: Any, axis: Any = None) -> Any:
    """The elements and the values in one array, in the order that NumPy itself gives their numbers."""
    arr, axis = (np.ravel(arr), 0) if axis is None else (arr, axis % np.ndim(arr))
    length, dtype = np.shape(arr)[axis], dtype_of(arr)
    where = np.arange(length)[obj] if isinstance(obj, slice) else np.asarray(obj)
    where = np.flatnonzero(where) if where.dtype == bool else where.astype(int)
    values = values if hasattr(values, "dtype") else np.asarray(values)
    if where.size == 1:  # NumPy puts all values at one place then
        values = np.reshape(values, (1,) * (np.ndim(arr) - np.ndim(values)) + np.shape(values))
        values = np.moveaxis(values, 0, axis) if where.ndim == 0 else values
    count = where.size if where.size != 1 else np.shape(values)[axis]
    shape = (*np.shape(arr)[:axis], count, *np.shape(arr)[axis + 1 :])
    both = np.concatenate([arr, as_dtype(np.broadcast_to(values, shape), dtype)], axis=axis)
    return _take(both, np.insert(np.arange(length), where, np.arange(length, length + count)), axis)


def _delete(arr: Any, obj: Any, axis: Any = None) -> Any:
    arr, axis = (np.ravel(arr), 0) if axis is None else (arr, axis)
    return _take(arr, np.delete(np.arange(np.shape(arr)[axis]), obj), axis)


def _resize(a: Any, new_shape: Any) -> Any:
    size = int(np.prod(new_shape, dtype=int))
    if np.size(a) == 0:
        return np.zeros(new_shape, dtype_of(a))
    return np.reshape(np.ravel(a)[np.arange(size) % np.size(a)], new_shape)


DERIVED |= {
    np.take: _take,
    np.take_along_axis: take_along_axis,
    np.compress: lambda condition, a, axis=None: _take(a, np.flatnonzero(condition), axis),
    np.extract: lambda condition, arr: np.ravel(arr)[np.flatnonzero(condition)],
    np.repeat: _repeat,
    np.resize: _resize,
    np.insert: _insert,
    np.delete: _delete,
    np.diagonal: _diagonal,
    np.diag: _diag,
    np.diagflat: lambda v, k=0: _diag(np.ravel(v), k),
    np.trace: _trace,
    np.linalg.diagonal: lambda x, *, offset=0: _diagonal(x, offset, -2, -1),
    np.linalg.trace: lambda x, *, offset=0, dtype=None: _trace(x, offset, -2, -1, dtype),
}
CONSTANT |= {np.diag_indices_from, np.tril_indices_from, np.triu_indices_from}
