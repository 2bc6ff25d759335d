"""Averages, covariances, and reductions that skip NaN. All are written with other functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.rules.reductions import axes_of
from framework.differentiation.table import DERIVED, as_dtype, dtype_of

Axis = Any


# -- skipping NaN: 0 or the like in its place -------------------------------------------------------------------------------


def _filled(a: Any, value: float) -> Any:
    """The array with a number in place of NaN."""
    missing = np.isnan(a)
    return np.where(missing, np.asarray(value, dtype_of(a)), a) if np.any(missing) else a


def _with_neutral(function: Any, value: float) -> Any:
    """A reduction in which NaN counts as a number that leaves it alone."""
    return lambda a, axis=None, dtype=None, **options: function(_filled(a, value), axis=axis, dtype=dtype, **options)


def _of_those_there(function: Any) -> Any:
    """A reduction of the elements that are no NaN."""

    def call(a: Any, axis: Axis = None, dtype: Any = None, *, where: Any = True, **options: Any) -> Any:
        there = np.logical_not(np.isnan(a)) & where
        return function(_filled(a, 0), axis=axis, dtype=dtype, where=there, **options)

    return call


def _nan_extremum(function: Any, value: float) -> Any:
    """Where all are NaN, the result is NaN."""

    def call(a: Any, axis: Axis = None, *, keepdims: Any = False, **options: Any) -> Any:
        y = function(_filled(a, value), axis=axis, keepdims=keepdims, **options)
        missing = np.all(np.isnan(a), axis=axis, keepdims=keepdims)
        return (
            np.where(missing, np.asarray(np.nan, dtype_of(a)), y) if "initial" not in options and np.any(missing) else y
        )

    return call


# -- averages and covariances -----------------------------------------------------------------------------------------------


def _average(a: Any, axis: Axis = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    if weights is None:
        y: Any = np.mean(a, axis=axis, keepdims=keepdims)
        total: Any = np.full((), np.size(a) / max(1, np.size(y)), dtype_of(y))
    else:
        if np.shape(weights) != np.shape(a):  # weights have the axes that are averaged, in their order
            axes = axes_of(a, axis)
            order = np.argsort(axes)
            shape = tuple(n if i in axes else 1 for i, n in enumerate(np.shape(a)))
            weights = np.reshape(np.transpose(weights, tuple(int(i) for i in order)), shape)
        weighted = a * weights
        weights = as_dtype(np.broadcast_to(weights, np.shape(a)), dtype_of(weighted))
        total = np.sum(weights, axis=axis, keepdims=keepdims)
        if np.any(np.equal(total, 0)):
            raise ZeroDivisionError("np.average: weights sum to zero, so they cannot be normalized")
        y = np.sum(weighted, axis=axis, keepdims=keepdims) / total
    return (y, np.broadcast_to(total, np.shape(y))) if returned else y


def _cov(
    m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None, fweights: Any = None,
    aweights: Any = None, *, dtype: Any = None,
) -> Any:  # fmt: skip
    """Σ w (x − mean)(x − mean)ᵀ / norm, whose norm is Σw − ddof · Σw·aweights / Σw."""
    if dtype is None:  # as np.cov does
        dtype = np.result_type(dtype_of(m), np.float64, *(() if y is None else (dtype_of(y),)))
    rows = [as_dtype(_as_rows(a, rowvar), np.dtype(dtype)) for a in ((m,) if y is None else (m, y))]
    x = np.concatenate(rows, axis=0) if y is not None else rows[0]
    w: Any = np.ones(np.shape(x)[1], dtype_of(x))
    for weights in (fweights, aweights):
        w = w if weights is None else w * as_dtype(np.asarray(weights), dtype_of(x))
    total = np.sum(w)
    ddof = (0 if bias else 1) if ddof is None else ddof
    norm = total - ddof * (1 if aweights is None else np.sum(w * aweights) / total)
    centered = x - (np.sum(x * w, axis=1) / total)[:, None]
    return as_dtype(np.squeeze(np.matmul(centered * w, np.swapaxes(centered, 0, 1)) / norm), np.dtype(dtype))


def _as_rows(a: Any, rowvar: bool) -> Any:
    """A variable a row."""
    a = a if np.ndim(a) == 2 else np.reshape(a, (1, -1))
    return a if rowvar or np.shape(a)[0] == 1 else np.transpose(a)


def _corrcoef(x: Any, y: Any = None, rowvar: bool = True, *, dtype: Any = None) -> Any:
    c = _cov(x, y, rowvar, dtype=dtype)
    if np.ndim(c) == 0:
        return c / c
    size = np.sqrt(np.diagonal(c))
    return c / size[:, None] / size[None, :]


DERIVED |= {
    np.nansum: _with_neutral(np.sum, 0),
    np.nanprod: _with_neutral(np.prod, 1),
    np.nancumsum: lambda a, axis=None, dtype=None: np.cumsum(_filled(a, 0), axis=axis, dtype=dtype),
    np.nancumprod: lambda a, axis=None, dtype=None: np.cumprod(_filled(a, 1), axis=axis, dtype=dtype),
    np.nanmax: _nan_extremum(np.max, -np.inf),
    np.nanmin: _nan_extremum(np.min, np.inf),
    np.nanmean: _of_those_there(np.mean),
    np.nanvar: _of_those_there(np.var),
    np.nanstd: _of_those_there(np.std),
    np.average: _average,
    np.cov: _cov,
    np.corrcoef: _corrcoef,
}
