"""Functions that move or repeat elements: all linear, so the tangent goes through the function itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.rules.indexing import put_items
from framework.differentiation.table import CONSTANT, DERIVED, as_dtype, dtype_of, linear, rule, unbroadcast
from framework.differentiation.tracing import Traced, lift, primitive


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
    reps = tuple(int(n) for n in np.ravel(reps))
    shape = (1,) * (len(reps) - np.ndim(x)) + np.shape(x)
    reps = (1,) * (len(shape) - len(reps)) + reps
    split = [length for pair in zip(reps, shape, strict=True) for length in pair]
    return np.reshape(np.sum(np.reshape(g, split), axis=tuple(range(0, len(split), 2))), np.shape(x))


def _roll_vjp(g: Any, y: Any, x: Any, shift: Any, axis: Any = None) -> Any:
    back = tuple(-s for s in shift) if isinstance(shift, tuple | list) else -shift
    return np.roll(g, back, axis)


def _fixed(order: Any) -> Any:
    """An order of elements that does not depend on how an array lies in memory: a cotangent lies otherwise."""
    if order not in ("C", "F"):
        raise TypeError(
            f"order={order!r} depends on the layout of memory and has no derivative rule; use order='C' or 'F'"
        )
    return order


def _ravel_vjp(g: Any, y: Any, x: Any, order: Any = "C") -> Any:
    return np.reshape(g, np.shape(x), order=_fixed(order))


def _reshape_vjp(g: Any, y: Any, x: Any, shape: Any = None, order: Any = "C", *, copy: Any = None) -> Any:
    return np.reshape(g, np.shape(x), order=_fixed(order))


def _reshape_jvp(t: Any, y: Any, x: Any, shape: Any = None, order: Any = "C", *, copy: Any = None) -> Any:
    return np.reshape(t, np.shape(y), order=_fixed(order))


_PAD_BY_COPYING = ("edge", "reflect", "symmetric", "wrap")


def _require_pad(mode: Any, options: Any) -> None:
    if mode not in ("constant", *_PAD_BY_COPYING) or options.get("reflect_type", "even") != "even":
        of = f"mode={mode!r}" + (f" and reflect_type={options['reflect_type']!r}" if "reflect_type" in options else "")
        raise TypeError(f"np.pad with {of} has no derivative rule; pad with np.concatenate and indexing")


def _before(pad_width: Any, ndim: int) -> list[int]:
    """How many elements stand before the array along each axis."""
    if isinstance(pad_width, dict):  # {axis: width, or (before, after)}
        widths = {axis % ndim: int(np.ravel(width)[0]) for axis, width in pad_width.items()}
        return [widths.get(axis, 0) for axis in range(ndim)]
    return [int(b) for b in np.broadcast_to(np.asarray(pad_width), (ndim, 2))[:, 0]]


def _pad_vjp(g: Any, _y: Any, _x: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    _require_pad(mode, options)
    if mode == "constant":
        return g[tuple(slice(b, b + n) for b, n in zip(_before(pad_width, np.ndim(_x)), np.shape(_x), strict=True))]
    # NumPy itself says which element stands at each place.
    places = np.pad(np.arange(np.size(_x)).reshape(np.shape(_x)), pad_width, mode=mode, **options)
    return np.reshape(put_items(np.ravel(g), np.ravel(places), (int(np.size(_x)),)), np.shape(_x))


def _pad_jvp(t: Any, y: Any, x: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    _require_pad(mode, options)
    return np.pad(t, pad_width) if mode == "constant" else np.pad(t, pad_width, mode=mode, **options)


for _function in (np.squeeze, np.expand_dims):
    linear("shapes", _function, lambda g, y, x, axis=None: np.reshape(g, np.shape(x)))
linear("shapes", np.reshape, _reshape_vjp, _reshape_jvp)
linear("shapes", np.ravel, _ravel_vjp, lambda t, y, x, order="C": np.ravel(t, order=_fixed(order)))
linear("shapes", cast, lambda g, y, x, dtype: cast(g, dtype_of(x)))
linear("shapes", np.copy, lambda g, y, x, order="K", subok=False: g)
linear("shapes", np.transpose, _transpose_vjp)
linear("shapes", np.swapaxes, lambda g, y, x, a, b: np.swapaxes(g, a, b))
linear("shapes", np.moveaxis, lambda g, y, x, source, destination: np.moveaxis(g, destination, source))
linear("shapes", np.flip, lambda g, y, x, axis=None: np.flip(g, axis))
linear("shapes", np.roll, _roll_vjp)
linear("shapes", np.rot90, lambda g, y, x, k=1, axes=(0, 1): np.rot90(g, -k, axes))
linear("shapes", np.broadcast_to, lambda g, y, x, shape, subok=False: unbroadcast(g, x))
linear("shapes", np.tile, _tile_vjp)
linear("shapes", np.tril, lambda g, y, x, k=0: unbroadcast(np.tril(g, k), x))  # of a vector it makes a matrix
linear("shapes", np.triu, lambda g, y, x, k=0: unbroadcast(np.triu(g, k), x))
rule("shapes", array_of, _array_of_vjp, jvps=(_array_of_jvp,), sequence=True)
rule("shapes", np.pad, _pad_vjp, jvps=(_pad_jvp,))


def _atleast(shape_of: Any) -> Any:
    def call(*arrays: Any) -> Any:
        found = tuple(np.reshape(a, shape_of(np.shape(a))) for a in arrays)
        return found[0] if len(found) == 1 else found

    return call


def _broadcast_arrays(*arrays: Any, subok: bool = False) -> Any:
    shape = np.broadcast_shapes(*map(np.shape, arrays))
    return tuple(np.broadcast_to(a, shape) for a in arrays)


def _meshgrid(*arrays: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    order = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        order[:2] = [1, 0]
    grid = [np.reshape(a, tuple(-1 if i == axis else 1 for i in order)) for axis, a in enumerate(arrays)]
    return tuple(grid) if sparse else _broadcast_arrays(*grid)


def _rollaxis(a: Any, axis: int, start: int = 0) -> Any:
    axis, start = axis % np.ndim(a), start + (np.ndim(a) if start < 0 else 0)
    return np.moveaxis(a, axis, start if start <= axis else start - 1)


def _vander(x: Any, N: Any = None, increasing: bool = False) -> Any:
    powers = np.arange(np.shape(x)[0] if N is None else N)
    return np.power(x[:, None], powers if increasing else powers[::-1])


def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: Any = "K", subok: bool = True, shape: Any = None, *, device: Any = None
) -> Any:  # fmt: skip
    """An array of one number, which may be differentiated; of a it reads shape and dtype."""
    shape, dtype = np.shape(a) if shape is None else shape, np.dtype(dtype or dtype_of(a))
    fill = lift(fill_value)
    return np.broadcast_to(as_dtype(fill, dtype), shape) if isinstance(fill, Traced) else np.full(shape, fill, dtype)


DERIVED |= {
    np.full_like: _full_like,
    np.real: lambda val: np.positive(val),
    np.atleast_1d: _atleast(lambda shape: shape or (1,)),
    np.atleast_2d: _atleast(lambda shape: (1,) * (2 - len(shape)) + shape),
    np.atleast_3d: _atleast(lambda s: s if len(s) > 2 else (*s, 1) if len(s) == 2 else (1, *(s or (1,)), 1)),
    np.broadcast_arrays: _broadcast_arrays,
    np.meshgrid: _meshgrid,
    np.vander: _vander,
    np.fliplr: lambda a: np.flip(a, 1),
    np.flipud: lambda a: np.flip(a, 0),
    np.rollaxis: _rollaxis,
    np.matrix_transpose: lambda a: np.swapaxes(a, -1, -2),
    np.linalg.matrix_transpose: lambda a: np.swapaxes(a, -1, -2),
    np.astype: lambda x, dtype, copy=True, device=None: cast(x, np.dtype(dtype)),
}
CONSTANT |= {
    np.zeros_like, np.ones_like, np.empty_like, np.result_type, np.can_cast, np.iscomplexobj, np.isrealobj,
    np.array_repr, np.array_str, np.array2string,
}  # fmt: skip
