"""Functions that join arrays and cut them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, as_dtype, dtype_of, rule


def _concatenate_vjp(
    g: Any,
    y: Any,
    places: list[int],
    arrays: Any,
    axis: Any = 0,
    out: Any = None,
    *,
    dtype: Any = None,
    casting: Any = None,
) -> Any:
    sizes = [int(np.size(a)) if axis is None else np.shape(a)[axis] for a in arrays]
    ends = list(itertools.accumulate(sizes))
    before = () if axis is None else (slice(None),) * (axis % np.ndim(g))
    parts = [g[(*before, slice(ends[place] - sizes[place], ends[place]))] for place in places]
    like = [arrays[place] for place in places]
    if axis is None:
        parts = [np.reshape(part, np.shape(a)) for part, a in zip(parts, like, strict=True)]
    return [as_dtype(part, dtype_of(a)) for part, a in zip(parts, like, strict=True)]


def _concatenate_jvp(
    tangents: dict[int, Any],
    y: Any,
    arrays: Any,
    axis: Any = 0,
    out: Any = None,
    *,
    dtype: Any = None,
    casting: Any = None,
) -> Any:
    parts = [tangents[i] if i in tangents else np.zeros(np.shape(a), dtype_of(y)) for i, a in enumerate(arrays)]
    return as_dtype(np.concatenate(parts, axis=axis), dtype_of(y))


def _concatenate_options(
    g: Any, y: Any, arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = None
) -> None:
    """What the two above take."""


rule(
    "joining", np.concatenate, _concatenate_vjp, jvps=(_concatenate_jvp,), sequence=True, options=_concatenate_options
)  # fmt: skip


def _stack(arrays: Any, axis: int = 0, **options: Any) -> Any:
    return np.concatenate([np.expand_dims(a, axis) for a in arrays], axis=axis, **options)


def _joined(by: Any, axis: Any) -> Any:
    def join(arrays: Any, **options: Any) -> Any:
        parts = [by(a) for a in arrays]
        return np.concatenate(parts, axis=axis if axis is not None else (0 if np.ndim(parts[0]) == 1 else 1), **options)

    return join


def _block(arrays: Any) -> Any:
    """Lists in lists: the innermost are joined along the last axis, those around them along the one before."""
    depth, axes = _depth(arrays)
    axes = max(depth, axes)

    def join(item: Any, axis: int) -> Any:
        if isinstance(item, list):
            return np.concatenate([join(part, axis + 1) for part in item], axis=axis)
        return np.reshape(item, (1,) * (axes - np.ndim(item)) + np.shape(item))

    return join(arrays, -depth)


def _depth(item: Any) -> tuple[int, int]:
    """How deep lists are nested, and the most axes of an array in them."""
    if not isinstance(item, list):
        return 0, np.ndim(item)
    inner = [_depth(part) for part in item]
    return 1 + inner[0][0], max(axes for _, axes in inner)


def _split_by(function: Any) -> Any:
    def split(a: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
        # NumPy itself says where it cuts.
        places = function(np.arange(np.shape(a)[axis]), indices_or_sections)
        before = (slice(None),) * (axis % np.ndim(a))
        return [a[(*before, slice(int(p[0]), int(p[0]) + len(p)) if len(p) else slice(0))] for p in places]

    return split


_split, _array_split = _split_by(np.split), _split_by(np.array_split)


def _unstack(x: Any, *, axis: int = 0) -> Any:
    moved = np.moveaxis(x, axis, 0)
    return tuple(moved[i] for i in range(np.shape(moved)[0]))


DERIVED |= {
    np.stack: _stack,
    np.vstack: _joined(np.atleast_2d, 0),
    np.hstack: _joined(np.atleast_1d, None),
    np.dstack: _joined(np.atleast_3d, 2),
    np.column_stack: _joined(lambda a: a if np.ndim(a) > 1 else np.reshape(a, (-1, 1)), 1),
    np.append: lambda a, values, axis=None: np.concatenate([a, values], axis=axis),
    np.block: _block,
    np.split: _split,
    np.array_split: _array_split,
    np.hsplit: lambda a, parts: _split(a, parts, 0 if np.ndim(a) == 1 else 1),
    np.vsplit: lambda a, parts: _split(a, parts, 0),
    np.dsplit: lambda a, parts: _split(a, parts, 2),
    np.unstack: _unstack,
}
