"""Reductions and cumulative functions. `x` is the argument, `y` the result, `g` the cotangent and `t` the tangent.

Ties: max and min share the cotangent equally among the elements that reach the extremum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, DERIVED, as_dtype, dtype_of, linear, rule

Axis = Any


def _axes(x: Any, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(np.ndim(x)))
    return tuple(a % np.ndim(x) for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def _spread(g: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    """Gives a reduced array the reduced axes again, of length 1."""
    if keepdims:
        return g
    shape = tuple(1 if i in _axes(x, axis) else length for i, length in enumerate(np.shape(x)))
    return np.reshape(g, shape)


def _sum_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return as_dtype(np.broadcast_to(_spread(g, x, axis, keepdims), np.shape(x)), dtype_of(x))


def _reach(y: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    """For each element its share in the extremum."""
    hit = np.equal(x, _spread(y, x, axis, keepdims)) * np.ones((), dtype_of(x))
    return hit / np.sum(hit, axis=axis, keepdims=True)


def _extremum_vjp(g: Any, y: Any, x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    return _spread(g, x, axis, keepdims) * _reach(y, x, axis, keepdims)


def _extremum_jvp(t: Any, y: Any, x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    return np.sum(t * _reach(y, x, axis, keepdims), axis=axis, keepdims=keepdims)


def _others(x: Any, axis: Axis) -> Any:
    """For each element the product of the others along the reduced axes, zeros included."""
    axes = _axes(x, axis)
    kept = [i for i in range(np.ndim(x)) if i not in axes]
    moved = np.transpose(x, (*kept, *axes))
    shape = np.shape(moved)
    length = int(np.prod([np.shape(x)[a] for a in axes], dtype=int))
    flat = np.reshape(moved, (*shape[: len(kept)], length))
    one = np.ones((*shape[: len(kept)], 1), dtype_of(x))
    before = np.cumprod(np.concatenate([one, flat[..., :-1]], axis=-1), axis=-1)
    after = np.flip(np.cumprod(np.concatenate([one, np.flip(flat[..., 1:], -1)], axis=-1), axis=-1), -1)
    return np.transpose(np.reshape(before * after, shape), tuple(int(i) for i in np.argsort((*kept, *axes))))


def _prod_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return _spread(g, x, axis, keepdims) * _others(x, axis)


def _prod_jvp(t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return np.sum(t * _others(x, axis), axis=axis, keepdims=keepdims)


def _cumsum_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None) -> Any:
    if axis is None:
        return np.reshape(np.flip(np.cumsum(np.flip(g))), np.shape(x))
    return np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis)


linear("reductions", np.sum, _sum_vjp)
rule("reductions", np.max, _extremum_vjp, jvps=(_extremum_jvp,))
rule("reductions", np.min, _extremum_vjp, jvps=(_extremum_jvp,))
rule("reductions", np.prod, _prod_vjp, jvps=(_prod_jvp,))
linear("reductions", np.cumsum, _cumsum_vjp)


def _count(x: Any, axis: Axis) -> int:
    return int(np.prod([np.shape(x)[a] for a in _axes(x, axis)], dtype=int))


def _mean(a: Any, axis: Axis = None, dtype: Any = None, keepdims: Any = False) -> Any:
    return np.sum(a, axis=axis, keepdims=bool(keepdims)) / _count(a, axis)


def _var(a: Any, axis: Axis = None, dtype: Any = None, ddof: int = 0, keepdims: Any = False) -> Any:
    centered = a - np.mean(a, axis=axis, keepdims=True)
    return np.sum(centered * centered, axis=axis, keepdims=bool(keepdims)) / (_count(a, axis) - ddof)


def _cumprod(a: Any, axis: Axis = None) -> Any:
    """Running products by the rule of a scan: y_i = y_{i-1}·x_i."""
    flat = np.moveaxis(a, axis, 0) if axis is not None else np.ravel(a)
    parts = [flat[0]]
    for i in range(1, len(flat)):
        parts.append(parts[-1] * flat[i])
    whole = np.stack(parts)
    return np.moveaxis(whole, 0, axis) if axis is not None else whole


def _average(a: Any, axis: Axis = None, weights: Any = None) -> Any:
    if weights is None:
        return np.mean(a, axis=axis)
    return np.sum(a * weights, axis=axis) / np.sum(weights * np.ones(np.shape(a), dtype_of(a)), axis=axis)


DERIVED |= {
    np.mean: _mean,
    np.var: _var,
    np.std: lambda a, axis=None, dtype=None, ddof=0, keepdims=False: np.sqrt(_var(a, axis, dtype, ddof, keepdims)),
    np.cumprod: _cumprod,
    np.average: _average,
    np.amax: lambda a, axis=None, keepdims=False: np.max(a, axis=axis, keepdims=keepdims),
    np.amin: lambda a, axis=None, keepdims=False: np.min(a, axis=axis, keepdims=keepdims),
    np.ptp: lambda a, axis=None: np.max(a, axis=axis) - np.min(a, axis=axis),
}
CONSTANT |= {
    np.argmax,
    np.argmin,
    np.argsort,
    np.all,
    np.any,
    np.count_nonzero,
    np.nonzero,
    np.searchsorted,
    np.shape,
    np.ndim,
    np.size,
}
