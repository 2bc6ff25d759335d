"""Functions that move, join, repeat or cut elements: all linear, so the tangent goes through the function itself."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from framework.differentiation.rules.indexing import put_items
from framework.differentiation.table import CONSTANT, DERIVED, dtype_of, linear, rule, unbroadcast
from framework.differentiation.tracing import primitive


@primitive
def cast(x: Any, dtype: Any) -> Any:
    """x.astype(dtype)."""
    return np.asarray(x).astype(dtype)


@primitive
def array_of(items: Any, shape: tuple[int, ...]) -> Any:
    """np.array of scalars, in a shape."""
    return np.reshape(np.stack(items), shape)


def _array_of_vjp(g: Any, y: Any, places: list[int], items: Any, shape: Any) -> Any:
    flat = np.reshape(g, -1)
    return [flat[place] for place in places]


def _array_of_jvp(tangents: dict[int, Any], y: Any, items: Any, shape: Any) -> Any:
    zero = np.zeros((), dtype_of(y))
    return array_of([tangents.get(i, zero) for i in range(len(items))], shape)


def _inverse(axes: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort([a % len(axes) for a in axes]))


def _transpose_vjp(g: Any, y: Any, x: Any, axes: Any = None) -> Any:
    return np.transpose(g) if axes is None else np.transpose(g, _inverse(axes))


def _tile_vjp(g: Any, y: Any, x: Any, reps: Any) -> Any:
    reps = tuple(reps) if isinstance(reps, tuple | list) else (reps,)
    shape = (1,) * (len(reps) - np.ndim(x)) + np.shape(x)
    reps = (1,) * (len(shape) - len(reps)) + reps
    split = [length for pair in zip(reps, shape, strict=True) for length in pair]
    return np.reshape(np.sum(np.reshape(g, split), axis=tuple(range(0, len(split), 2))), np.shape(x))


def _roll_vjp(g: Any, y: Any, x: Any, shift: Any, axis: Any = None) -> Any:
    back = tuple(-s for s in shift) if isinstance(shift, tuple | list) else -shift
    return np.roll(g, back, axis)


def _concatenate_vjp(g: Any, y: Any, places: list[int], arrays: Any, axis: Any = 0) -> Any:
    sizes = [int(np.size(a)) if axis is None else np.shape(a)[axis] for a in arrays]
    ends = list(itertools.accumulate(sizes))
    before = () if axis is None else (slice(None),) * (axis % np.ndim(g))
    parts = [g[(*before, slice(ends[place] - sizes[place], ends[place]))] for place in places]
    return parts if axis is not None else [
        np.reshape(part, np.shape(arrays[place])) for part, place in zip(parts, places, strict=True)
    ]  # fmt: skip


def _concatenate_jvp(tangents: dict[int, Any], y: Any, arrays: Any, axis: Any = 0) -> Any:
    parts = [tangents[i] if i in tangents else np.zeros(np.shape(a), dtype_of(y)) for i, a in enumerate(arrays)]
    return np.concatenate(parts, axis=axis)


_PAD_BY_COPYING = ("edge", "reflect", "symmetric", "wrap")


def _pad_vjp(g: Any, _y: Any, _x: Any, pad_width: Any, mode: str = "constant", **options: Any) -> Any:
    if mode in _PAD_BY_COPYING:
        # NumPy itself says which element stands at each place.
        places = np.pad(np.arange(np.size(_x)).reshape(np.shape(_x)), pad_width, mode=mode, **options)  # type: ignore[call-overload]
        return np.reshape(put_items(np.ravel(g), np.ravel(places), (int(np.size(_x)),)), np.shape(_x))
    if mode != "constant":
        raise TypeError(f"np.pad with mode={mode!r} has no derivative rule; pad with np.concatenate and indexing")
    before = np.broadcast_to(np.asarray(pad_width), (np.ndim(_x), 2))[:, 0]
    return g[tuple(slice(int(b), int(b) + n) for b, n in zip(before, np.shape(_x), strict=True))]


def _pad_jvp(t: Any, y: Any, x: Any, pad_width: Any, mode: str = "constant", **options: Any) -> Any:
    if mode in _PAD_BY_COPYING:
        return np.pad(t, pad_width, mode=mode, **options)  # type: ignore[call-overload]
    return np.pad(t, pad_width)


def _where_vjp(first: bool) -> Any:
    def vjp(g: Any, _y: Any, condition: Any, _a: Any, _b: Any) -> Any:
        zero = np.zeros((), dtype_of(_y))
        return unbroadcast(np.where(condition, g, zero) if first else np.where(condition, zero, g), _a if first else _b)

    return vjp


def _where_jvp(first: bool) -> Any:
    def jvp(t: Any, y: Any, condition: Any, a: Any, b: Any) -> Any:
        zero = np.zeros((), dtype_of(y))
        return np.where(condition, t, zero) if first else np.where(condition, zero, t)

    return jvp


_LIKE_X = [np.reshape, np.ravel, np.squeeze, np.expand_dims]
for _function in _LIKE_X:
    linear("shapes", _function, lambda g, y, x, *args, **kwargs: np.reshape(g, np.shape(x)))
linear("shapes", cast, lambda g, y, x, dtype: cast(g, dtype_of(x)))
linear("shapes", np.copy, lambda g, y, x, *args, **kwargs: g)
linear("shapes", np.transpose, _transpose_vjp)
linear("shapes", np.swapaxes, lambda g, y, x, a, b: np.swapaxes(g, a, b))
linear("shapes", np.moveaxis, lambda g, y, x, source, destination: np.moveaxis(g, destination, source))
linear("shapes", np.flip, lambda g, y, x, axis=None: np.flip(g, axis))
linear("shapes", np.roll, _roll_vjp)
linear("shapes", np.rot90, lambda g, y, x, k=1, axes=(0, 1): np.rot90(g, -k, axes))
linear("shapes", np.broadcast_to, lambda g, y, x, shape: unbroadcast(g, x))
linear("shapes", np.tile, _tile_vjp)
linear("shapes", np.tril, lambda g, y, x, k=0: np.tril(g, k))
linear("shapes", np.triu, lambda g, y, x, k=0: np.triu(g, k))
rule("shapes", np.concatenate, _concatenate_vjp, jvps=(_concatenate_jvp,), sequence=True)
rule("shapes", array_of, _array_of_vjp, jvps=(_array_of_jvp,), sequence=True)
rule("shapes", np.pad, _pad_vjp, jvps=(_pad_jvp,))
rule("shapes", np.where, None, _where_vjp(True), _where_vjp(False), jvps=(None, _where_jvp(True), _where_jvp(False)))


def _stack(arrays: Any, axis: int = 0) -> Any:
    return np.concatenate([np.expand_dims(a, axis) for a in arrays], axis=axis)


def _joined(by: Any, axis: Any) -> Any:
    def join(arrays: Any) -> Any:
        parts = [by(a) for a in arrays]
        return np.concatenate(parts, axis=axis if axis is not None else (0 if np.ndim(parts[0]) == 1 else 1))

    return join


def _split(a: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    # NumPy itself says where it cuts.
    places = np.split(np.arange(np.shape(a)[axis]), indices_or_sections)
    return [_range(a, int(p[0]) if len(p) else 0, len(p), axis) for p in places]


def _array_split(a: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
    places = np.array_split(np.arange(np.shape(a)[axis]), indices_or_sections)
    return [_range(a, int(p[0]) if len(p) else 0, len(p), axis) for p in places]


def _range(a: Any, start: int, count: int, axis: int) -> Any:
    where: list[Any] = [slice(None)] * np.ndim(a)
    where[axis] = slice(start, start + count)
    return a[tuple(where)]


def _diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    if n and (prepend is not None or append is not None):
        edge = tuple(1 if i == axis % np.ndim(a) else length for i, length in enumerate(np.shape(a)))
        ends = [x if x is None or np.ndim(x) else np.broadcast_to(x, edge) for x in (prepend, append)]
        a = np.concatenate([part for part in (ends[0], a, ends[1]) if part is not None], axis=axis)
    for _ in range(n):
        length = np.shape(a)[axis]
        a = _range(a, 1, length - 1, axis) - _range(a, 0, length - 1, axis)
    return a


def _atleast(shape_of: Any) -> Any:
    def call(*arrays: Any) -> Any:
        found = tuple(np.reshape(a, shape_of(np.shape(a))) for a in arrays)
        return found[0] if len(found) == 1 else found

    return call


def _unstack(x: Any, *, axis: int = 0) -> Any:
    moved = np.moveaxis(x, axis, 0)
    return tuple(moved[i] for i in range(np.shape(moved)[0]))


def _broadcast_arrays(*arrays: Any, subok: bool = False) -> Any:
    shape = np.broadcast_shapes(*map(np.shape, arrays))
    return tuple(np.broadcast_to(a, shape) for a in arrays)


def _meshgrid(*arrays: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    order = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        order[:2] = [1, 0]
    grid = [np.reshape(a, tuple(-1 if i == axis else 1 for i in order)) for axis, a in enumerate(arrays)]
    return tuple(grid) if sparse else _broadcast_arrays(*grid)


def _vander(x: Any, N: Any = None, increasing: bool = False) -> Any:
    powers = np.arange(np.shape(x)[0] if N is None else N)
    return np.power(x[:, None], powers if increasing else powers[::-1])


DERIVED |= {
    np.atleast_1d: _atleast(lambda shape: shape or (1,)),
    np.atleast_2d: _atleast(lambda shape: (1,) * (2 - len(shape)) + shape),
    np.atleast_3d: _atleast(lambda s: s if len(s) > 2 else (*s, 1) if len(s) == 2 else (1, *(s or (1,)), 1)),
    np.unstack: _unstack,
    np.broadcast_arrays: _broadcast_arrays,
    np.meshgrid: _meshgrid,
    np.vander: _vander,
    np.stack: _stack,
    np.vstack: _joined(np.atleast_2d, 0),
    np.hstack: _joined(np.atleast_1d, None),
    np.dstack: _joined(np.atleast_3d, 2),
    np.column_stack: _joined(lambda a: a if np.ndim(a) > 1 else np.reshape(a, (-1, 1)), 1),
    np.append: lambda a, values, axis=None: np.concatenate([a, values], axis=axis),
    np.split: _split,
    np.array_split: _array_split,
    np.hsplit: lambda a, parts: _split(a, parts, 0 if np.ndim(a) == 1 else 1),
    np.vsplit: lambda a, parts: _split(a, parts, 0),
    np.dsplit: lambda a, parts: _split(a, parts, 2),
    np.diff: _diff,
    np.fliplr: lambda a: np.flip(a, 1),
    np.flipud: lambda a: np.flip(a, 0),
    np.rollaxis: lambda a, axis, start=0: np.moveaxis(a, axis, start if start <= axis else start - 1),
    np.matrix_transpose: lambda a: np.swapaxes(a, -1, -2),
    np.linalg.matrix_transpose: lambda a: np.swapaxes(a, -1, -2),
    np.clip: lambda a, a_min=None, a_max=None, *, min=None, max=None: _clip(
        a, a_min if min is None else min, a_max if max is None else max
    ),
}


def _clip(a: Any, low: Any, high: Any) -> Any:
    """At a border the element itself keeps the derivative."""
    if low is not None:
        a = np.where(np.less(a, low), low, a)
    return a if high is None else np.where(np.greater(a, high), high, a)


CONSTANT |= {
    np.zeros_like,
    np.ones_like,
    np.empty_like,
    np.full_like,
    np.result_type,
    np.can_cast,
    np.iscomplexobj,
    np.isrealobj,
}
