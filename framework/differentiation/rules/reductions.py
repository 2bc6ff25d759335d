"""Reductions and cumulative functions. `x` is the argument, `y` the result, `g` the cotangent and `t` the tangent.

`where` says which elements take part, and `initial` is one more element; both are constants.

Conventions: max and min share the cotangent equally among the elements that reach the extremum (`initial` is one of them) or, if there
are any, among the NaNs. The standard deviation of equal elements has the derivative 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, DERIVED, as_dtype, dtype_of, linear, rule

Axis = Any


def axes_of(x: Any, axis: Axis) -> tuple[int, ...]:
    """The reduced axes as numbers from 0."""
    if axis is None or np.ndim(x) == 0:  # NumPy lets a scalar be reduced by axis 0
        return tuple(range(np.ndim(x)))
    return tuple(a % np.ndim(x) for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def spread(g: Any, x: Any, axis: Axis, keepdims: Any) -> Any:
    """Gives a reduced array the reduced axes again, of length 1, where that is needed to broadcast it."""
    if keepdims or np.ndim(g) == 0:
        return g
    axes = axes_of(x, axis)
    return np.reshape(g, tuple(1 if i in axes else length for i, length in enumerate(np.shape(x))))


def _to_all(g: Any, x: Any, where: Any) -> Any:
    """A spread cotangent for each element that takes part, and 0 for the others."""
    g = as_dtype(np.broadcast_to(g, np.shape(x)), dtype_of(x))
    return g if where is True else np.where(where, g, np.zeros((), dtype_of(x)))


def _masked(a: Any, where: Any, value: Any = 0) -> Any:
    """The array with a number in place of the elements that take no part."""
    return a if where is True else np.where(where, a, np.asarray(value, dtype_of(a)))


def count_of(x: Any, axis: Axis, where: Any = True) -> Any:
    """How many elements take part in each result: a number, or with `where` an array with the axes kept."""
    if where is True:
        shape = np.shape(x)
        count = 1
        for a in axes_of(x, axis):
            count *= shape[a]
        return count
    return np.sum(np.broadcast_to(where, np.shape(x)), axis=axis, keepdims=True, dtype=int)


# -- sums and means ----------------------------------------------------------------------------------------------------------


def _sum_vjp(
    g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, keepdims: Any = False, initial: Any = 0,
    where: Any = True,
) -> Any:  # fmt: skip
    return _to_all(spread(g, x, axis, keepdims), x, where)


def _sum_jvp(
    t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, keepdims: Any = False, initial: Any = 0,
    where: Any = True,
) -> Any:  # fmt: skip
    return np.sum(t, axis=axis, dtype=dtype, keepdims=keepdims, where=where)


def _mean_vjp(
    g: Any,
    y: Any,
    x: Any,
    axis: Axis = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    where: Any = True,
) -> Any:
    count = count_of(x, axis, where)
    return _to_all(spread(g, x, axis, keepdims) / (max(count, 1) if where is True else np.maximum(count, 1)), x, where)


linear("reductions", np.sum, _sum_vjp, _sum_jvp)
linear("reductions", np.mean, _mean_vjp)


# -- variances ---------------------------------------------------------------------------------------------------------------


def _centered(x: Any, axis: Axis, where: Any, dtype: Any) -> Any:
    """Elements less their mean; 0 for those that take no part."""
    x = x if dtype is None else as_dtype(x, np.dtype(dtype))
    return _masked(x - np.mean(x, axis=axis, keepdims=True, where=where), where)


def _per_degree(x: Any, axis: Axis, ddof: Any, correction: Any, where: Any) -> Any:
    """1 / degrees of freedom, NaN where there are none."""
    free = count_of(x, axis, where) - (ddof if correction is None else correction)
    if where is True:
        return 1 / free if free > 0 else np.nan
    return np.where(free > 0, 1 / np.maximum(free, 1), np.nan)


def _var_vjp(
    g: Any, _y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, *,
    where: Any = True, correction: Any = None,
) -> Any:  # fmt: skip
    scaled = spread(g, x, axis, keepdims) * (2 * _per_degree(x, axis, ddof, correction, where))
    return as_dtype(scaled * _centered(x, axis, where, dtype), dtype_of(x))


def _var_jvp(
    t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, *,
    where: Any = True, correction: Any = None,
) -> Any:  # fmt: skip
    moved = t * _centered(x, axis, where, dtype) * (2 * _per_degree(x, axis, ddof, correction, where))
    return as_dtype(np.sum(moved, axis=axis, keepdims=keepdims), dtype_of(y))


def nonzero(y: Any) -> Any:
    """The result with infinity in place of 0, so that dividing by it gives 0 in derivatives of all orders."""
    zero = np.equal(y, 0)
    return np.where(zero, np.asarray(np.inf, dtype_of(y)), y) if zero.any() else y


# std = √var: both derivatives are those of the variance, over 2 std.
def _std_vjp(g: Any, y: Any, x: Any, *args: Any, **options: Any) -> Any:
    return _var_vjp(g / (2 * nonzero(y)), y, x, *args, **options)


def _std_jvp(t: Any, y: Any, x: Any, *args: Any, **options: Any) -> Any:
    return _var_jvp(t, y, x, *args, **options) / (2 * nonzero(y))


rule("reductions", np.var, _var_vjp, jvps=(_var_jvp,))
rule("reductions", np.std, _std_vjp, jvps=(_std_jvp,), options=_var_vjp)


# -- extrema -----------------------------------------------------------------------------------------------------------------


def _reached(y: Any, x: Any, axis: Axis, keepdims: Any, initial: Any, where: Any) -> tuple[Any, Any]:
    """Which elements reach the extremum, and how many they are, with the axes kept."""
    y = spread(y, x, axis, keepdims)
    hit = np.equal(x, y)
    hit = hit if where is True else hit & where
    count = np.sum(hit, axis=axis, keepdims=True, dtype=dtype_of(x))
    if initial is not None:
        count = count + np.equal(y, initial)
    if not count.all():  # NaN equals nothing
        lost = np.equal(count, 0)
        nan = np.isnan(x) & lost & where
        hit = hit | nan
        count = np.where(lost, np.maximum(np.sum(nan, axis=axis, keepdims=True, dtype=dtype_of(x)), 1), count)
    return hit, count


def _extremum_vjp(
    g: Any,
    y: Any,
    x: Any,
    axis: Axis = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = None,
    where: Any = True,
) -> Any:
    hit, count = _reached(y, x, axis, keepdims, initial, where)
    return np.where(hit, spread(g, x, axis, keepdims) / count, np.zeros((), dtype_of(x)))


def _extremum_jvp(
    t: Any,
    y: Any,
    x: Any,
    axis: Axis = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = None,
    where: Any = True,
) -> Any:
    hit, count = _reached(y, x, axis, keepdims, initial, where)
    moved = np.sum(np.where(hit, t, np.zeros((), dtype_of(x))), axis=axis, keepdims=keepdims)
    return moved / np.reshape(count, np.shape(y))


rule("reductions", np.max, _extremum_vjp, jvps=(_extremum_jvp,))
rule("reductions", np.min, _extremum_vjp, jvps=(_extremum_jvp,))


# -- products ----------------------------------------------------------------------------------------------------------------


def _others(y: Any, x: Any, axis: Axis, initial: Any, where: Any, dtype: Any) -> Any:
    """For each element the product of the others along the reduced axes, zeros included; y has the axes kept."""
    x = _masked(x if dtype is None else as_dtype(x, np.dtype(dtype)), where, 1)
    if np.size(x) == 0:
        return np.ones(np.shape(x), dtype_of(x))
    if np.all(np.isfinite(y) & np.not_equal(y, 0)):
        return _masked(y / x, where)
    axes = axes_of(x, axis)
    kept = [i for i in range(np.ndim(x)) if i not in axes]
    moved = np.transpose(x, (*kept, *axes))
    shape = np.shape(moved)
    flat = np.reshape(moved, (*shape[: len(kept)], count_of(x, axis)))
    one = np.ones((*shape[: len(kept)], 1), dtype_of(x))
    before = np.cumprod(np.concatenate([one, flat[..., :-1]], axis=-1), axis=-1)
    after = np.flip(np.cumprod(np.concatenate([one, np.flip(flat[..., 1:], -1)], axis=-1), axis=-1), -1)
    whole = np.transpose(np.reshape(before * after, shape), tuple(int(i) for i in np.argsort((*kept, *axes))))
    return _masked(whole if initial is None else whole * initial, where)


def _prod_vjp(
    g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, keepdims: Any = False,
    initial: Any = None, where: Any = True,
) -> Any:  # fmt: skip
    others = _others(spread(y, x, axis, keepdims), x, axis, initial, where, dtype)
    return as_dtype(spread(g, x, axis, keepdims) * others, dtype_of(x))


def _prod_jvp(
    t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None, keepdims: Any = False,
    initial: Any = None, where: Any = True,
) -> Any:  # fmt: skip
    others = _others(spread(y, x, axis, keepdims), x, axis, initial, where, dtype)
    return as_dtype(np.sum(t * others, axis=axis, keepdims=keepdims), dtype_of(y))


rule("reductions", np.prod, _prod_vjp, jvps=(_prod_jvp,))


# -- cumulative functions ----------------------------------------------------------------------------------------------------


def _cumsum_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None) -> Any:
    axis = 0 if axis is None else axis  # the result is flat then
    return as_dtype(np.reshape(np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis), np.shape(x)), dtype_of(x))


def _recurrence(a: Any, b: Any) -> Any:
    """s with s_i = a_i·s_{i−1} + b_i along the first axis, in a number of steps that is logarithmic in its length."""
    step = 1
    while step < len(b):
        b = np.concatenate([b[:step], b[step:] + a[step:] * b[:-step]])
        a = np.concatenate([a[:step], a[step:] * a[:-step]])
        step *= 2
    return b


def _along_first(x: Any, y: Any, axis: Axis) -> tuple[Any, Any]:
    """The argument in the result's dtype, and the result shifted by one, both with the axis as the first."""
    x = as_dtype(x, dtype_of(y))
    x, y = (np.ravel(x), y) if axis is None else (np.moveaxis(np.atleast_1d(x), axis, 0), np.moveaxis(y, axis, 0))
    return x, np.concatenate([np.ones((1, *np.shape(y)[1:]), dtype_of(y)), y[:-1]]) if len(y) else y


def _cumprod_vjp(g: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None) -> Any:
    """z_j = g_j + x_{j+1}·z_{j+1}, from the end; then x̄_j = y_{j−1}·z_j."""
    flat, before = _along_first(x, y, axis)
    g = np.flip(g if axis is None else np.moveaxis(g, axis, 0), 0)
    factors = (
        np.concatenate([np.ones((1, *np.shape(flat)[1:]), dtype_of(y)), np.flip(flat, 0)[:-1]]) if len(flat) else flat
    )
    whole = before * np.flip(_recurrence(factors, g), 0)
    return as_dtype(np.reshape(whole if axis is None else np.moveaxis(whole, 0, axis), np.shape(x)), dtype_of(x))


def _cumprod_jvp(t: Any, y: Any, x: Any, axis: Axis = None, dtype: Any = None, out: Any = None) -> Any:
    """ẏ_i = x_i·ẏ_{i−1} + y_{i−1}·t_i."""
    flat, before = _along_first(x, y, axis)
    t = as_dtype(t, dtype_of(y))
    t = np.ravel(t) if axis is None else np.moveaxis(np.atleast_1d(t), axis, 0)
    moved = _recurrence(flat, before * t)
    return moved if axis is None else np.moveaxis(moved, 0, axis)


def _cumulative(function: Any, start: float) -> Any:
    def call(x: Any, /, *, axis: Any = None, dtype: Any = None, include_initial: bool = False) -> Any:
        x = np.atleast_1d(x)
        axis = 0 if axis is None and np.ndim(x) == 1 else axis
        if axis is None:
            raise ValueError(f"an array of {np.ndim(x)} axes needs an axis to accumulate along")
        y = function(x, axis=axis, dtype=dtype)
        first = np.full([1 if i == axis % np.ndim(y) else n for i, n in enumerate(np.shape(y))], start, dtype_of(y))
        return np.concatenate([first, y], axis=axis) if include_initial else y

    return call


linear("reductions", np.cumsum, _cumsum_vjp)
rule("reductions", np.cumprod, _cumprod_vjp, jvps=(_cumprod_jvp,))

DERIVED |= {
    np.cumulative_sum: _cumulative(np.cumsum, 0),
    np.cumulative_prod: _cumulative(np.cumprod, 1),
    np.amax: lambda a, *args, **options: np.max(a, *args, **options),
    np.amin: lambda a, *args, **options: np.min(a, *args, **options),
    np.ptp: lambda a, axis=None, out=None, keepdims=False: (
        np.max(a, axis=axis, keepdims=keepdims) - np.min(a, axis=axis, keepdims=keepdims)
    ),
}
CONSTANT |= {
    np.argmax, np.argmin, np.nanargmax, np.nanargmin, np.argsort, np.argpartition, np.lexsort, np.all, np.any, np.count_nonzero,
    np.nonzero, np.flatnonzero, np.argwhere, np.searchsorted, np.digitize, np.shape, np.ndim, np.size,
}  # fmt: skip
