"""Reductions and cumulative functions. `x` is the argument, `y` the result, `g` the cotangent and `t` the tangent.

Ties: max and min share the cotangent equally among the elements that reach the extremum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, DERIVED, as_dtype, dtype_of, linear, rule

Axis = Any


def _axes(x: Any, axis: Axis) -> tuple[int, ...]:
    if axis is None or np.ndim(x) == 0:  # NumPy lets a scalar be reduced by axis 0
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
    if np.size(x) == 0:
        return np.ones(np.shape(x), dtype_of(x))
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


def _prod_vjp(g: Any, _y: Any, x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return _spread(g, x, axis, keepdims) * _others(x, axis)


def _prod_jvp(t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    return np.sum(t * _others(x, axis), axis=axis, keepdims=keepdims)


def _cumsum_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None) -> Any:
    if axis is None:
        return np.reshape(np.flip(np.cumsum(np.flip(g))), np.shape(x))
    return np.reshape(np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis), np.shape(x))


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


def _cumprod(a: Any, axis: Axis = None, dtype: Any = None) -> Any:
    """Running products by the rule of a scan: y_i = y_{i-1}·x_i."""
    axis = None if np.ndim(a) == 0 else axis
    flat = np.moveaxis(a, axis, 0) if axis is not None else np.ravel(a)
    if len(flat) == 0:
        return np.copy(a) if axis is not None else flat
    parts = [flat[0]]
    for i in range(1, len(flat)):
        parts.append(parts[-1] * flat[i])
    whole = np.stack(parts)
    return np.moveaxis(whole, 0, axis) if axis is not None else whole


def _average(a: Any, axis: Axis = None, weights: Any = None) -> Any:
    if weights is None:
        return np.mean(a, axis=axis)
    return np.sum(a * weights, axis=axis) / np.sum(weights * np.ones(np.shape(a), dtype_of(a)), axis=axis)


def _filled(a: Any, value: float) -> Any:
    """The array with a number in place of NaN."""
    return np.where(np.isnan(a), np.asarray(value, dtype_of(a)), a)


def _nanmean(a: Any, axis: Axis = None, dtype: Any = None, keepdims: Any = False) -> Any:
    there = np.sum(np.logical_not(np.isnan(a)), axis=axis, keepdims=bool(keepdims), dtype=dtype_of(a))
    return np.sum(_filled(a, 0), axis=axis, keepdims=bool(keepdims)) / there


def _trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    y = np.moveaxis(y, axis, -1)
    if x is not None:
        dx = np.diff(x if np.ndim(x) == 1 else np.moveaxis(x, axis, -1))
    return np.sum(dx * (y[..., 1:] + y[..., :-1]) / 2, axis=-1)


def _cov(
    m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None, fweights: Any = None,
    aweights: Any = None, *, dtype: Any = None,
) -> Any:  # fmt: skip
    """Σ w (x − mean)(x − mean)ᵀ / norm, whose norm is Σw − ddof · Σw·aweights / Σw."""
    rows = [_as_rows(a, rowvar) for a in ((m,) if y is None else (m, y))]
    x = np.concatenate(rows, axis=0) if y is not None else rows[0]
    x = as_dtype(x, np.result_type(dtype_of(x), np.float64) if dtype is None else np.dtype(dtype))  # as np.cov does
    w = np.ones(np.shape(x)[1], dtype_of(x)) * (1 if fweights is None else fweights)
    frequencies, w = w, w * (1 if aweights is None else aweights)
    total = np.sum(w)
    ddof = (0 if bias else 1) if ddof is None else ddof
    norm = total - ddof * (np.sum(w * w / frequencies) / total if aweights is not None else 1)
    centered = x - (np.sum(x * w, axis=1) / total)[:, None]
    return np.squeeze(np.matmul(centered * w, np.swapaxes(centered, 0, 1)) / norm)


def _as_rows(a: Any, rowvar: bool) -> Any:
    """A variable a row."""
    a = a if np.ndim(a) == 2 else np.reshape(a, (1, -1))
    return a if rowvar or np.shape(a)[0] == 1 else np.transpose(a)


def _corrcoef(x: Any, y: Any = None, rowvar: bool = True) -> Any:
    c = _cov(x, y, rowvar)
    if np.ndim(c) == 0:
        return c / c
    size = np.sqrt(np.diagonal(c))
    return c / size[:, None] / size[None, :]


DERIVED |= {
    np.nansum: lambda a, axis=None, dtype=None, keepdims=False: np.sum(
        _filled(a, 0), axis=axis, keepdims=bool(keepdims)
    ),
    np.nanprod: lambda a, axis=None, dtype=None, keepdims=False: np.prod(
        _filled(a, 1), axis=axis, keepdims=bool(keepdims)
    ),
    np.nanmax: lambda a, axis=None, keepdims=False: np.max(_filled(a, -np.inf), axis=axis, keepdims=bool(keepdims)),
    np.nanmin: lambda a, axis=None, keepdims=False: np.min(_filled(a, np.inf), axis=axis, keepdims=bool(keepdims)),
    np.nanmean: _nanmean,
    np.trapezoid: _trapezoid,
    np.cov: _cov,
    np.corrcoef: _corrcoef,
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
