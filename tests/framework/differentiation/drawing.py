"""Draws valid calls of functions: shapes, memory layouts, dtypes and options, by families of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

Shape = tuple[int, ...]
Domain = Callable[[np.ndarray], np.ndarray]
#: A function of arrays, and the arrays.
Call = tuple[Any, ...]


def real(u: np.ndarray) -> np.ndarray:
    return 4 * u - 2


def positive(u: np.ndarray) -> np.ndarray:
    return 0.3 + 2 * u


def unit(u: np.ndarray) -> np.ndarray:
    return 1.8 * u - 0.9


def above_one(u: np.ndarray) -> np.ndarray:
    return 1.2 + 2 * u


def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The array in a layout of memory; a number has but one."""
    if not a.ndim:
        return a
    if layout == "F":
        return np.asfortranarray(a)
    if layout == "strided":
        whole = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        whole[..., ::2] = a
        return whole[..., ::2]
    return np.flip(np.flip(a).copy()) if layout == "reversed" else a


class Draw:
    """Draws the parts of one call. Elements of an array are all different, so that no kink is near."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))
        self._dtypes = draw(st.sampled_from([(np.float64,), (np.float64,), (np.float32,), (np.float32, np.float64)]))

    def of(self, *options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def flag(self) -> bool:
        return bool(self._draw(st.booleans()))

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def shape(self, low: int = 0, high: int = 3, least: int = 0) -> Shape:
        return tuple(self._draw(st.lists(st.integers(least, 3), min_size=low, max_size=high)))

    def axis(self, shape: Shape) -> int:
        return self.integer(-len(shape), len(shape) - 1)

    def dtype(self) -> Any:
        return self.of(*self._dtypes)

    def array(self, shape: Shape, domain: Domain = real, dtype: Any = None) -> np.ndarray:
        size = int(np.prod(shape, dtype=int))
        levels = (self.random.permutation(size) + self.random.uniform(0.3, 0.7, size)) / max(1, size)
        return self.laid_out(domain(levels).reshape(shape).astype(dtype or self.dtype()), "broadcast")

    def laid_out(self, a: np.ndarray, *more: str) -> np.ndarray:
        """The array in any layout of memory."""
        layout = self.of("C", "F", "strided", "reversed", *more) if a.ndim else "C"
        if layout == "broadcast" and a.size:  # strides of 0, so that some elements are equal
            axis = self.axis(a.shape)
            return np.broadcast_to(np.take(a, [0], axis), a.shape)
        return laid_out(a, layout)

    def mask(self, shape: Shape) -> np.ndarray:
        return np.asarray(self.random.uniform(size=shape) < 0.7)

    def broadcast(self, shape: Shape) -> Shape:
        """A shape that is broadcast to the shape."""
        kept = shape[self.integer(0, len(shape)) :]
        return tuple(1 if self.flag() else n for n in kept)


# -- families of calls -------------------------------------------------------------------------------------------------------


def unary(function: Any, domain: Domain = real) -> Callable[[Draw], Call]:
    return lambda d: (function, d.array(d.shape(), domain))


def binary(function: Any, domain: Domain = real) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        shape = d.shape()
        shapes = [shape, d.broadcast(shape)]
        return function, *(d.array(s, domain) for s in (shapes if d.flag() else shapes[::-1]))

    return call


def shaped(function: Any, low: int = 0, high: int = 3, least: int = 0, domain: Domain = real) -> Callable[[Draw], Call]:
    """function(d, a) gives the function of one array; the array has `low` to `high` axes of at least `least` elements."""

    def call(d: Draw) -> Call:
        a = d.array(d.shape(low, high, least), domain)
        return function(d, a), a

    return call


def plain(function: Any, low: int = 0, high: int = 3, least: int = 0, domain: Domain = real) -> Callable[[Draw], Call]:
    return shaped(lambda d, a: function, low, high, least, domain)


def along(function: Any, low: int = 1, high: int = 3, least: int = 0, **options: Any) -> Callable[[Draw], Call]:
    """A function with an axis, and options of which each is drawn from some."""

    def of(d: Draw, a: np.ndarray) -> Any:
        axis = d.axis(a.shape)
        drawn = {name: d.of(*values) for name, values in options.items()}
        return lambda x: function(x, axis=axis, **drawn)

    return shaped(of, low, high, least)


def reduction(
    function: Any, *, empty: bool = True, tuples: bool = True, dtype: bool = False, where: bool = False,
    initial: Any = (), always: bool = False, keepdims: bool = True, domain: Domain = real, nan: bool = False, least: int = 0, **options: Any,
) -> Callable[[Draw], Call]:  # fmt: skip
    """Any axes of any array, with the options that the function has; `always` gives it an initial value in each call."""

    def call(d: Draw) -> Call:
        shape = d.shape(least=least)
        several = [tuple(range(len(shape)))[1:]] if tuples and (empty or len(shape) > 1) else []
        axis = d.of(None, *range(-len(shape), len(shape)), *several)
        reduced = [
            i % len(shape)
            for i in (range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,))
        ]
        if not empty:
            shape = tuple(max(1, n) if i in reduced else n for i, n in enumerate(shape))
        given: dict[str, Any] = {name: d.of(*values) for name, values in options.items()}
        if axis is not None or d.flag():
            given["axis"] = axis
        if keepdims and d.flag():
            given["keepdims"] = d.flag()
        if dtype and d.flag():
            given["dtype"] = d.of(np.float32, np.float64)
        if initial and (always or d.flag()):
            given["initial"] = d.of(*initial)
        first = tuple(slice(0, 2) if i in reduced else slice(None) for i in range(len(shape)))
        if where and d.flag():
            mask = d.mask(shape)
            mask[first] = True
            given["where"] = mask
        a = d.array(shape, domain)
        if nan and a.size and d.flag():
            a = np.where(d.mask(shape), a, np.asarray(np.nan, a.dtype))
            a[first] = 0.5 + d.random.uniform(size=a[first].shape)
        return lambda x: function(x, **given), a

    return call


def joined(function: Any, low: int, high: int = 3, equal: bool = True) -> Callable[[Draw], Call]:
    """Up to three arrays, of one shape but for a joining axis: function(d, shape) gives the axis and the function."""

    def call(d: Draw) -> Call:
        shape = d.shape(low, high)
        axis, join = function(d, shape)
        lengths = [shape] * 3
        if not equal and axis is not None and shape:
            lengths = [
                tuple(d.integer(0, 3) if i == axis % len(shape) else n for i, n in enumerate(shape)) for _ in range(3)
            ]
        arrays = [d.array(s) for s in lengths[: d.integer(1, 3)]]
        return lambda *xs: join(list(xs)), *arrays

    return call


def by_axis(function: Any) -> Any:
    def of(d: Draw, shape: Shape) -> Any:
        axis = d.axis(shape)
        return axis, lambda xs: function(xs, axis=axis)

    return of


def by_new_axis(d: Draw, shape: Shape) -> Any:
    axis = d.integer(-len(shape) - 1, len(shape))
    return None, lambda xs: np.stack(xs, axis=axis)


def without_axis(function: Any, axis: int = 0) -> Any:
    return lambda d, shape: (axis, function)


def flat_or_by_axis(d: Draw, shape: Shape) -> Any:
    axis = d.of(None, d.axis(shape))
    dtype = d.of(None, np.float64)
    return axis, lambda xs: np.concatenate(xs, axis=axis, dtype=dtype)


def matrices(function: Any, *others: Any, definite: bool = True, least: int = 0) -> Callable[[Draw], Call]:
    """Stacks of square matrices, well conditioned."""

    def call(d: Draw) -> Call:
        n = d.integer(least, 3)
        return function, d.laid_out(well_conditioned(d, d.shape(0, 1), n))

    return call


def well_conditioned(d: Draw, stack: Shape, n: int, dtype: Any = None) -> np.ndarray:
    a = d.random.uniform(-0.4, 0.4, (*stack, n, n)) + np.diag(d.random.uniform(1, 2, n))
    return a.astype(dtype or d.dtype())


def product(function: Any, shapes: Callable[[Draw], tuple[Shape, Shape]]) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        a, b = shapes(d)
        return function, d.array(a), d.array(b)

    return call


def matmul_shapes(d: Draw) -> tuple[Shape, Shape]:
    n, m, k = (d.integer(0, 3) for _ in range(3))
    stack = d.shape(0, 1)
    a = d.of((m,), (n, m), (*stack, n, m), (*d.broadcast(stack), n, m))
    b = d.of((m,), (m, k), (*stack, m, k), (2, *stack, m, k))
    return a, b


def dot_shapes(d: Draw) -> tuple[Shape, Shape]:
    m = d.integer(0, 3)
    return d.of((), (m,), (2, m), (2, 1, m)), d.of((), (m,), (m, 2), (2, m, 1))


def vectors(d: Draw) -> tuple[Shape, Shape]:
    shape = (*d.shape(0, 1), d.integer(1, 3))
    return shape, d.of(shape, shape[-1:])


def indexable(d: Draw) -> Shape:
    """The shape of an array for `chosen_key`."""
    return d.of((), (d.integer(1, 3), *d.shape(0, 2)))


def chosen_key(d: Draw, shape: Shape) -> Any:
    """Any kind of index into an array whose first axis, if there is one, is not empty."""
    if not shape:
        return d.of((), ..., None, (..., None), True, d.mask(()))
    rows = np.asarray([d.integer(-shape[0], shape[0] - 1) for _ in range(d.integer(0, 3))], int)
    return d.of(
        d.integer(-shape[0], shape[0] - 1), slice(None, None, -1), slice(1, None, 2), (None, slice(0, 2)), (..., None), rows,
        rows.tolist() or [0], rows[:, None], d.mask(shape), d.mask(shape[:1]), (rows, ...), (d.mask(shape[:1]), None), True,
    )  # fmt: skip
