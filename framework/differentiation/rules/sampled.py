"""Functions of samples along an axis: differences, integrals, interpolation, convolution, polynomials.

Conventions: at a node, interpolation has the slope of the interval on its right; before the first and after the last, 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, ONE, as_dtype, dtype_of, elementwise, rule


def _range(a: Any, start: Any, stop: Any, axis: int) -> Any:
    return a[(slice(None),) * (axis % np.ndim(a)) + (slice(start, stop),)]


def _diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if n and (prepend is not None or append is not None):
        edge = tuple(1 if i == axis % np.ndim(a) else length for i, length in enumerate(np.shape(a)))
        ends = [x if x is None or np.ndim(x) else np.broadcast_to(x, edge) for x in (prepend, append)]
        a = np.concatenate([part for part in (ends[0], a, ends[1]) if part is not None], axis=axis)
    for _ in range(n):
        a = _range(a, 1, None, axis) - _range(a, None, -1, axis)
    return a


def _ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    ends = [None if x is None else as_dtype(np.ravel(x), dtype_of(ary)) for x in (to_begin, to_end)]
    inner = _diff(np.ravel(ary))
    return np.concatenate([part for part in (ends[0], inner, ends[1]) if part is not None])


def _gradient(f: Any, *spacings: Any, axis: Any = None, edge_order: int = 1) -> Any:
    axes = (
        range(np.ndim(f)) if axis is None else [a % np.ndim(f) for a in (axis if isinstance(axis, tuple) else (axis,))]
    )
    steps = spacings if len(spacings) > 1 or len(axes) == 1 == len(spacings) else (spacings or (1.0,)) * len(axes)
    if len(steps) != len(axes):
        raise TypeError(f"np.gradient takes one spacing for each of the {len(axes)} axes, but got {len(steps)}")
    found = [_gradient_along(f, a, h, edge_order) for a, h in zip(axes, steps, strict=True)]
    return found[0] if len(found) == 1 else tuple(found)


def _gradient_along(f: Any, axis: int, h: Any, edge_order: int) -> Any:
    """Second-order differences inside, for unequal steps too, and one-sided ones of the order at the edges."""
    f = np.moveaxis(f, axis, 0)
    if len(f) < edge_order + 1 or edge_order not in (1, 2):
        raise ValueError(
            f"np.gradient with edge_order={edge_order} needs {edge_order + 1} elements, but an axis has {len(f)}"
        )
    steps = np.diff(np.asarray(h, float)) if np.ndim(h) else np.full(len(f) - 1, h, float)
    steps = np.reshape(steps.astype(dtype_of(f)), (-1,) + (1,) * (np.ndim(f) - 1))
    a, b = steps[:-1], steps[1:]
    slopes = (f[1:] - f[:-1]) / steps
    inner = (slopes[:-1] * b + slopes[1:] * a) / (a + b)
    first, last = slopes[:1], slopes[-1:]
    if edge_order == 2:
        first = first + (slopes[:1] - slopes[1:2]) * (a[:1] / (a[:1] + b[:1]))
        last = last + (slopes[-1:] - slopes[-2:-1]) * (b[-1:] / (a[-1:] + b[-1:]))
    return np.moveaxis(np.concatenate([first, inner, last]), 0, axis)


def _trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    y = y if hasattr(y, "dtype") else np.asarray(y)
    if x is not None and np.ndim(x) == 1:
        dx = np.reshape(np.diff(x), (-1,) + (1,) * (np.ndim(y) - 1 - axis % np.ndim(y)))
    elif x is not None:
        dx = np.diff(x, axis=axis)
    return np.sum(dx * (_range(y, 1, None, axis) + _range(y, None, -1, axis)) / 2, axis=axis)


def _interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    if period is not None:
        raise TypeError(
            "np.interp with a period has no derivative rule; give it x % period, and nodes that reach around"
        )
    x, xp, fp = (as_dtype(a if hasattr(a, "dtype") else np.asarray(a), np.dtype(float)) for a in (x, xp, fp))
    left, right = fp[0] if left is None else left, fp[-1] if right is None else right
    inside: Any = fp[0]
    if len(fp) > 1:
        i = np.clip(np.searchsorted(xp, x, side="right") - 1, 0, len(fp) - 2)
        inside = (fp[i + 1] - fp[i]) / (xp[i + 1] - xp[i]) * (x - xp[i]) + fp[i]
    return np.where(np.less(x, xp[0]), left, np.where(np.greater(x, xp[-1]), right, inside))


# -- convolution: bilinear, and the transpose by one factor is the correlation with the other ----------------------------------


def _whole(g: Any, a: Any, b: Any, mode: Any) -> Any:
    """The cotangent of a full convolution, from that of the part of it that the mode gives."""
    full, short = np.size(a) + np.size(b) - 1, min(np.size(a), np.size(b))
    start = {"f": 0, "s": short - 1 - short // 2, "v": short - 1}[str(mode)[0]]
    return np.pad(g, (start, full - start - np.shape(g)[0]))


def _convolve_left(g: Any, _y: Any, _a: Any, v: Any, mode: Any = "full") -> Any:
    return _transposed_by(v, _whole(g, _a, v, mode), _a)


def _convolve_right(g: Any, _y: Any, a: Any, _v: Any, mode: Any = "full") -> Any:
    return _transposed_by(a, _whole(g, a, _v, mode), _v)


def _transposed_by(factor: Any, g: Any, like: Any) -> Any:
    """The cotangent of one factor; NumPy lets a number be a factor, too."""
    return as_dtype(np.reshape(np.correlate(g, np.atleast_1d(factor), "valid"), np.shape(like)), dtype_of(like))


def _correlate(a: Any, v: Any, mode: Any = "valid") -> Any:
    if np.size(a) < np.size(v):  # NumPy exchanges them and reverses the result, which matters to "same"
        return np.flip(np.convolve(v, np.flip(a), mode))
    return np.convolve(a, np.flip(v), mode)


def _polyval(p: Any, x: Any) -> Any:
    """Horner's rule."""
    p, x = (a if hasattr(a, "dtype") else np.asarray(a) for a in (p, x))
    y: Any = np.zeros_like(x)
    for i in range(np.shape(p)[0]):
        y = y * x + p[i]
    return y


def _apply_along_axis(func1d: Any, axis: int, arr: Any, *args: Any, **kwargs: Any) -> Any:
    axis %= np.ndim(arr)
    rows = np.moveaxis(arr, axis, -1)
    shape = np.shape(rows)[:-1]
    found = np.stack([func1d(rows[i], *args, **kwargs) for i in np.ndindex(shape)])
    own = np.shape(found)[1:]
    places = tuple(range(len(shape), len(shape) + len(own)))
    return np.moveaxis(np.reshape(found, shape + own), places, tuple(range(axis, axis + len(own))))


elementwise("sampled", np.unwrap, ONE)
rule(
    "sampled", np.convolve, _convolve_left, _convolve_right,
    jvps=(lambda t, y, a, v, mode="full": np.convolve(t, v, mode), lambda t, y, a, v, mode="full": np.convolve(a, t, mode)),
)  # fmt: skip

DERIVED |= {
    np.diff: _diff,
    np.ediff1d: _ediff1d,
    np.gradient: _gradient,
    np.trapezoid: _trapezoid,
    np.interp: _interp,
    np.correlate: _correlate,
    np.polyval: _polyval,
    np.apply_along_axis: _apply_along_axis,
}
