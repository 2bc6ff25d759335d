"""For every function of the rule tables a family of valid calls, which the laws are checked on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from framework.differentiation.rules.indexing import put_items, take_items
from framework.differentiation.rules.matrices import log_abs_det, norm_of
from framework.differentiation.rules.shapes import array_of, cast
from tests.framework.differentiation.drawing import (
    Call,
    Draw,
    above_one,
    along,
    binary,
    by_new_axis,
    chosen_key,
    dot_shapes,
    flat_or_by_axis,
    indexable,
    joined,
    matmul_shapes,
    matrices,
    plain,
    positive,
    product,
    reduction,
    shaped,
    unary,
    unit,
    vectors,
    well_conditioned,
    without_axis,
)

_UNARY = [
    np.absolute, np.fabs, np.negative, np.positive, np.conjugate, np.square, np.exp, np.exp2, np.expm1, np.sin, np.cos, np.arctan,
    np.sinh, np.cosh, np.tanh, np.arcsinh, np.deg2rad, np.radians, np.rad2deg, np.degrees, np.sinc,
]  # fmt: skip
_POSITIVE = [np.sqrt, np.cbrt, np.reciprocal, np.log, np.log2, np.log10, np.log1p]
_UNIT = [np.tan, np.arcsin, np.arccos, np.arctanh]
_BINARY = [
    np.add, np.subtract, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin, np.arctan2, np.hypot, np.logaddexp, np.logaddexp2,
    np.heaviside,
]  # fmt: skip
_BINARY_POSITIVE = [np.divide, np.power, np.float_power, np.remainder, np.fmod]


def _copysign(d: Draw) -> Call:
    shape = d.shape()
    sign = d.array(d.broadcast(shape))
    return lambda x: np.copysign(x, sign), d.array(shape)


def _ldexp(d: Draw) -> Call:
    shape = d.shape()
    powers = d.random.integers(-3, 3, d.broadcast(shape))
    return lambda x: np.ldexp(x, powers), d.array(shape)


def _full_like(d: Draw) -> Call:
    """Of the first array it reads shape and dtype alone."""
    shape = d.shape()
    options = d.of({}, {"shape": (2, 3)}, {"dtype": np.float64})
    return lambda x, fill: np.full_like(x, fill, **options), d.array(shape), d.array(())


def _nan_to_num(d: Draw) -> Call:
    a = d.array(d.shape())
    return lambda x: np.nan_to_num(x, nan=3.0), np.where(d.mask(a.shape), a, np.asarray(np.inf, a.dtype))


def _index(d: Draw) -> Call:
    shape = indexable(d)
    key = chosen_key(d, shape)
    return lambda x: x[key], d.array(shape)


def _put(d: Draw) -> Call:
    shape = indexable(d)
    key = chosen_key(d, shape)
    return lambda g: put_items(g, key, shape), d.array(np.zeros(shape)[key].shape)


def _take(d: Draw) -> Call:
    shape = d.of((), d.shape(1))
    axis, mode = d.of(None, *range(-len(shape), len(shape))), d.of("raise", "wrap", "clip")
    n = int(np.prod(shape)) if axis is None else shape[axis]
    if n == 0:
        return lambda x: np.take(x, np.zeros(0, int), axis=axis, mode=mode), d.array(shape)
    index = d.random.integers(*((-n, n) if mode == "raise" else (-9, 9)), d.of((), (2,), (2, 1), (0,)))
    return lambda x: np.take(x, index, axis=axis, mode=mode), d.array(shape)


def _take_along_axis(d: Draw) -> Call:
    shape = d.shape(1)
    axis = d.axis(shape)
    most = 3 if shape[axis] else 0
    count = [d.integer(0, most) if i == axis % len(shape) else d.of(1, n) for i, n in enumerate(shape)]
    index = d.random.integers(0, max(1, shape[axis]), count)
    return lambda x: np.take_along_axis(x, index, axis=axis), d.array(shape)


def _repeat(d: Draw) -> Call:
    shape = d.shape()
    axis = d.of(None, *range(-len(shape), max(1, len(shape))))
    n = int(np.prod(shape)) if axis is None or not shape else shape[axis]
    repeats = d.of(2, 0, d.random.integers(0, 3, n))
    return lambda x: np.repeat(x, repeats, axis=axis), d.array(shape)


def _compress(d: Draw) -> Call:
    shape = d.shape(1)
    axis = d.of(None, d.axis(shape))
    mask = d.mask((int(np.prod(shape)) if axis is None else shape[axis],))
    return lambda x: np.compress(mask, x, axis=axis), d.array(shape)


def _extracted(d: Draw, a: np.ndarray) -> Any:
    mask = d.mask(a.shape)
    return lambda x: np.extract(mask, x)


def _cast(function: Any) -> Callable[[Draw], Call]:
    def of(d: Draw, a: np.ndarray) -> Any:
        dtype = np.dtype(d.dtype())
        return lambda x: function(x, dtype)

    return shaped(of)


def _insert(d: Draw) -> Call:
    shape = d.shape(1, 3, 1)
    axis = d.of(None, d.axis(shape))
    n = int(np.prod(shape)) if axis is None else shape[axis]
    key = d.of(d.integer(-n, n), [d.integer(0, n)], [0, n, 0], slice(0, n, 2), [])
    count = 1 if isinstance(key, int) else 2 if isinstance(key, list) and len(key) == 1 else len(np.arange(n + 1)[key])
    rest = () if axis is None else tuple(m for i, m in enumerate(shape) if i != axis % len(shape))
    whole = (count,) if axis is None else tuple(count if i == axis % len(shape) else m for i, m in enumerate(shape))
    values = d.of((), rest if isinstance(key, int) else whole)
    return lambda x, v: np.insert(x, key, v, axis=axis), d.array(shape), d.array(values)


def _delete(d: Draw) -> Call:
    shape = (d.integer(1, 3), *d.shape(0, 2))
    axis = d.of(None, d.axis(shape)) if 0 not in shape else 0
    n = int(np.prod(shape)) if axis is None else shape[axis]
    key = d.of(0, -1, [0, n - 1], slice(None, None, 2), d.mask((n,)))
    return lambda x: np.delete(x, key, axis=axis), d.array(shape)


def _resized(d: Draw, a: np.ndarray) -> Any:
    shape = d.of(5, (2, 3), (0, 2), ())
    return lambda x: np.resize(x, shape)


def _diagonal(function: Any) -> Callable[[Draw], Call]:
    def of(d: Draw, a: np.ndarray) -> Any:
        first = d.axis(a.shape)
        second = d.of(*(i for i in range(a.ndim) if i != first % a.ndim))
        offset = d.integer(-2, 2)
        return lambda x: function(x, offset, first, second)

    return shaped(of, 2)


def _offset(function: Any, low: int = 2, high: int = 3) -> Callable[[Draw], Call]:
    def of(d: Draw, a: np.ndarray) -> Any:
        offset = d.integer(-2, 2)
        return lambda x: function(x, offset)

    return shaped(of, low, high)


def _linalg_offset(function: Any) -> Callable[[Draw], Call]:
    return _offset(lambda x, offset: function(x, offset=offset))


def _sorted(d: Draw, a: np.ndarray) -> Any:
    axis, weight = d.of(None, d.axis(a.shape)), d.random.uniform()
    return lambda x: np.sort(x, axis=axis) ** 2 * weight


def _partitioned(d: Draw) -> Call:
    shape = (d.integer(1, 3), *d.shape(0, 2))
    a = d.array(shape)
    axis = d.of(None, d.axis(shape)) if a.size else 0
    k = d.integer(0, (a.size if axis is None else a.shape[axis]) - 1)
    # What else stands on both sides of the place, NumPy leaves open.
    return lambda x: np.take(np.partition(x, k, axis=axis), k, axis=0 if axis is None else axis), a


def _ordered(function: Any, nan: bool = False) -> Callable[[Draw], Call]:
    """NumPy's own functions fail over several axes of an array without elements, and some of them over one."""

    def call(d: Draw) -> Call:
        full = nan or d.flag()
        return reduction(function, empty=False, tuples=full, least=int(full), nan=nan)(d)

    return call


def _quantile(function: Any, scale: float) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        nan = "nan" in function.__name__
        reduced, a = _ordered(lambda x, **given: given, nan)(d)
        given = reduced(a) | {"method": d.of("linear", "lower", "higher", "midpoint", "nearest")}
        q = np.asarray(d.random.uniform(0.05, 0.95, d.of((), (2,), (2, 1), (0,))) * scale)
        if given["method"] == "linear" and d.flag():
            return lambda x, p: function(x, p, **given), a, q
        q = d.of(q, float(0.3 * scale))
        return lambda x: function(x, q, **given), a

    return call


def _average(d: Draw) -> Call:
    shape = (d.integer(1, 3), *d.shape(0, 2))
    axis = d.of(None, d.axis(shape)) if 0 not in shape else 0
    weights = d.array(shape if axis is None else d.of(shape, (shape[axis],)), positive)
    keepdims, returned = d.flag(), d.flag()
    return (
        lambda x, w: np.average(x, axis=axis, weights=w, keepdims=keepdims, returned=returned),
        d.array(shape),
        weights,
    )


def _cov(d: Draw) -> Call:
    shape = (d.integer(1, 3), d.integer(2, 4))
    options = d.of(
        {},
        {"bias": True},
        {"ddof": 0},
        {"fweights": [1, 3, 2, 0][: shape[1]]},
        {"aweights": [1.0, 0.5, 2.0, 1.5][: shape[1]]},
    )
    if d.flag():
        return lambda x, y: np.cov(x, y, **options), d.array(shape), d.array(d.of(shape, shape[1:]))
    return lambda x: np.cov(x.T, rowvar=False, **options), d.array(shape)


def _corrcoef(d: Draw) -> Call:
    a = np.asarray(d.random.standard_normal((d.integer(1, 3), d.integer(3, 5))), d.dtype())
    rowvar = d.flag()
    return lambda x: np.corrcoef(x if rowvar else np.transpose(x), rowvar=rowvar), a


def _transposed(d: Draw, a: np.ndarray) -> Any:
    axes = d.of(None, tuple(int(i) - d.of(0, a.ndim) for i in d.random.permutation(a.ndim)))
    return lambda x: np.transpose(x, axes)


def _two_axes(function: Any) -> Callable[[Draw], Call]:
    def of(d: Draw, a: np.ndarray) -> Any:
        first, second = d.axis(a.shape), d.axis(a.shape)
        return lambda x: function(x, first, second)

    return shaped(of, 1)


def _moved(d: Draw, a: np.ndarray) -> Any:
    order = [int(i) for i in d.random.permutation(a.ndim)]
    source, destination = d.of((0, -1), (tuple(range(a.ndim)), tuple(order)), (-1, 0))
    return lambda x: np.moveaxis(x, source, destination)


def _reshaped(d: Draw, a: np.ndarray) -> Any:
    shape = d.of(a.shape[::-1], (a.size,), (1, a.size, 1), *([-1, (-1, 1)] if a.size else []))
    order = d.of("C", "F")
    return lambda x: np.reshape(x, shape, order=order)


def _raveled(d: Draw, a: np.ndarray) -> Any:
    order = d.of("C", "F")
    return lambda x: np.ravel(x, order=order)


def _expanded(d: Draw, a: np.ndarray) -> Any:
    axis = d.of(0, -1, (0, 1), (0, -1))
    return lambda x: np.expand_dims(x, axis)


def _squeezed(d: Draw, a: np.ndarray) -> Any:
    axis = d.of(None, *(i for i, n in enumerate(a.shape) if n == 1))
    return lambda x: np.squeeze(x, axis)


def _flipped(d: Draw, a: np.ndarray) -> Any:
    axis = d.of(None, tuple(range(a.ndim))[1:], *range(-a.ndim, a.ndim))
    return lambda x: np.flip(x, axis)


def _rolled(d: Draw, a: np.ndarray) -> Any:
    shift, axis = d.of((2, None), (1, -1), ((1, -2), (0, -1)), (np.array([1, 2]), (0, 0)))
    return lambda x: np.roll(x, shift, axis)


def _turned(d: Draw, a: np.ndarray) -> Any:
    k, axes = d.integer(-2, 5), d.of((0, 1), (1, 0), (-1, 0))
    return lambda x: np.rot90(x, k, axes)


def _broadcast(d: Draw) -> Call:
    shape = d.shape()
    return lambda x: np.broadcast_to(x, shape), d.array(d.broadcast(shape))


def _tiled(d: Draw, a: np.ndarray) -> Any:
    reps = d.of(2, (2, 1), (0, 2), (), (2, 1, 3), np.array([2, 2]))
    return lambda x: np.tile(x, reps)


def _padded(d: Draw) -> Call:
    mode = d.of("constant", "edge", "reflect", "symmetric", "wrap")
    a = d.array(d.shape(1, 3, 0 if mode == "constant" else 2))
    width = d.of(1, (1, 0), [(0, 1)] * a.ndim, {-1: (0, 1)}, {0: 1})
    options = {"constant_values": 3.0} if mode == "constant" and d.flag() else {}
    return lambda x: np.pad(x, width, mode=mode, **options), a


def _cut(function: Any, axis: int | None = None, low: int = 1, equal: bool = False) -> Callable[[Draw], Call]:
    def of(d: Draw, a: np.ndarray) -> Any:
        along = d.axis(a.shape) if axis is None else axis if a.ndim > 1 else 0
        parts = d.of([1, 3], [2], [], *(n for n in (1, 2, 3) if not equal or a.shape[along] % n == 0))
        return lambda x: function(x, parts) if axis is not None else function(x, parts, axis=along)

    return shaped(of, low)


def _several(function: Any, low: int = 0, high: int = 3) -> Callable[[Draw], Call]:
    """Functions of several arrays of any shapes."""
    return lambda d: (function, *(d.array(d.shape(low, high)) for _ in range(d.integer(1, 3))))


def _broadcast_together(d: Draw) -> Call:
    shape = d.shape()
    return lambda *xs: np.broadcast_arrays(*xs), d.array(shape), d.array(d.broadcast(shape))


def _meshed(d: Draw) -> Call:
    options = {"indexing": d.of("xy", "ij"), "sparse": d.flag()}
    return lambda *xs: np.meshgrid(*xs, **options), *(d.array(d.shape(0, 1)) for _ in range(d.integer(1, 3)))


def _where(d: Draw) -> Call:
    shape = d.shape()
    condition = d.mask(d.broadcast(shape))
    return lambda a, b: np.where(condition, a, b), d.array(d.broadcast(shape)), d.array(shape)


def _clipped(d: Draw) -> Call:
    shape = d.shape()
    low, high = d.of((-1.1, None), (None, 0.9), (-0.7, 1.3))
    if d.flag():
        return lambda x: np.clip(x, low, high), d.array(shape)
    return lambda x, bound: np.clip(x, bound, 5), d.array(shape), d.array(d.broadcast(shape))


def _selected(d: Draw) -> Call:
    shape = d.shape()
    masks, default = [d.mask(shape), d.mask(shape)], d.of(0, 1.5)
    return lambda a, b: np.select(masks, [a, b], default), d.array(shape), d.array(d.broadcast(shape))


def _chosen(d: Draw) -> Call:
    shape = d.shape()
    number, mode = d.random.integers(-3, 5, shape), d.of("wrap", "clip")
    return lambda a, b: np.choose(number, [a, b], mode=mode), d.array(d.broadcast(shape)), d.array(shape)


def _pieces(d: Draw, a: np.ndarray) -> Any:
    functions = d.of([np.sin, np.cos], [np.exp, 2.0, np.cos], [lambda x: x * x, 0])
    return lambda x: np.piecewise(x, [x < -0.1, x > 0.3], functions)


def _blocks(d: Draw) -> Call:
    n, m, k = (d.integer(0, 3) for _ in range(3))
    if d.flag():
        return lambda a, b, c: np.block([[a, b], [c]]), d.array((n, m)), d.array((n, k)), d.array((2, m + k))
    return lambda a, b: np.block([a, b, 2.0]), d.array((n,)), d.array((m,))


def _differences(d: Draw) -> Call:
    shape = d.shape(1)
    axis, n = d.axis(shape), d.integer(0, 3)
    ends = {"prepend": 0.0} if d.flag() else {}
    return lambda x: np.diff(x, n, axis=axis, **ends), d.array(shape)


def _ediff1d(d: Draw, a: np.ndarray) -> Any:
    options = d.of({}, {"to_end": 1.0}, {"to_begin": np.array([1.0, 2.0])})
    # NumPy casts the ends to the array's dtype, and wants that to be safe.
    options = {name: np.asarray(value, a.dtype) for name, value in options.items()}
    return lambda x: np.ediff1d(x, **options)


def _gradient(d: Draw, a: np.ndarray) -> Any:
    axis = d.of(None, d.axis(a.shape), tuple(range(a.ndim)))
    count = 1 if isinstance(axis, int) else a.ndim
    length = a.shape[axis] if isinstance(axis, int) else a.shape[0]
    spacing = d.of((), (0.5,), *([(np.cumsum(d.random.uniform(0.5, 1, length)),)] if count == 1 else []))
    edge_order = d.of(1, 2)
    return lambda x: np.gradient(x, *spacing, axis=axis, edge_order=edge_order)


def _trapezoid(d: Draw) -> Call:
    shape = d.shape(1)
    axis = d.axis(shape)
    if d.flag():
        return lambda y, x: np.trapezoid(y, x, axis=axis), d.array(shape), d.array(d.of(shape, (shape[axis],)))
    return lambda y: np.trapezoid(y, dx=0.5, axis=axis), d.array(shape)


def _interpolated(d: Draw) -> Call:
    n = d.integer(1, 4)
    nodes = np.cumsum(d.random.uniform(0.5, 1, n)) - 1.5
    ends = d.of({}, {"left": -1.0}, {"left": 0.5, "right": 2.0})
    if d.flag():
        return lambda x, xp, fp: np.interp(x, xp, fp, **ends), d.array(d.shape()), nodes, d.array((n,))
    return lambda x, fp: np.interp(x, nodes, fp, **ends), d.array(d.shape()), d.array((n,))


def _convolved(function: Any) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        mode = d.of("full", "same", "valid")
        return lambda a, v: function(a, v, mode), *(d.array(d.of((), (1,), (2,), (3,), (5,))) for _ in range(2))

    return call


def _einsum(d: Draw) -> Call:
    i, j, k = (d.integer(0, 3) for _ in range(3))
    subscripts, shapes = d.of(
        ("ij,jk->ki", [(i, j), (j, k)]), ("ij,jk", [(i, j), (j, k)]), ("ij->j", [(i, j)]), ("ii->i", [(i, i)]), ("ii", [(i, i)]),
        ("...i,i...->...", [(j, i), (i, j)]), ("ij,j,kj->ik", [(i, j), (j,), (k, j)]), ("iij,j->i", [(i, i, j), (j,)]),
        ("i,j,k->kij", [(i,), (j,), (k,)]), ("ij,ij->", [(i, j), (1, j)]), ("...ij,...jk->...ik", [(2, i, j), (j, k)]),
        (",i->i", [(), (i,)]), ("->", [()]), ("ab,bc,cd,d", [(i, j), (j, k), (k, 2), (2,)]), ("ij,kl->il", [(i, j), (j, k)]),
    )  # fmt: skip
    options = d.of({}, {"optimize": True}, {"optimize": "optimal"})
    return lambda *xs: np.einsum(subscripts, *xs, **options), *(d.array(shape) for shape in shapes)


def _einsum_of_lists(d: Draw) -> Call:
    i, j, k = (d.integer(0, 3) for _ in range(3))
    output = d.of([[2, 0]], [])
    if d.flag():
        return lambda a, b: np.einsum(a, [0, 1], b, [1, 2], *output), d.array((i, j)), d.array((j, k))
    return lambda a, b: np.einsum(a, [..., 0, 30], b, [30], [..., 0]), d.array((2, i, j)), d.array((j,))


def _tensordot(function: Any) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        i, j, k = (d.integer(0, 3) for _ in range(3))
        a, b, axes = d.of(
            ((i, j), (j, k), 1), ((i,), (k,), 0), ((2, i, j), (i, j), 2), ((i, j, k), (j, 2, i), ((1, 0), (0, 2))), ((i, j), (k, j), ((-1,), (-1,)))
        )  # fmt: skip
        return lambda x, y: function(x, y, axes=axes), d.array(a), d.array(b)

    return call


def _crossed(d: Draw) -> Call:
    shape, axis = d.shape(0, 2), d.of(-1, 0)
    whole = (*shape, 3) if axis else (3, *shape)
    return lambda a, b: np.cross(a, b, axis=axis), d.array(whole), d.array(whole)


def _vecdot(function: Any) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        shape = d.shape(1)
        axis = d.axis(shape)
        return lambda a, b: function(a, b, axis=axis), d.array(shape), d.array(shape)

    return call


def _matvec(d: Draw) -> tuple[Any, Any]:
    n, m = d.integer(0, 3), d.integer(0, 3)
    return d.of((n, m), (2, n, m)), d.of((m,), (2, m))


def _vecmat(d: Draw) -> tuple[Any, Any]:
    return _matvec(d)[0][-2:-1], (2, _matvec(d)[0][-2], 2)


def _chain(d: Draw) -> Call:
    sizes = [d.integer(0, 3) for _ in range(d.integer(3, 5))]
    shapes = [tuple(pair) for pair in itertools.pairwise(sizes)]
    shapes[0], shapes[-1] = d.of(shapes[0], shapes[0][1:]), d.of(shapes[-1], shapes[-1][:1])
    return lambda *xs: np.linalg.multi_dot(xs), *(d.array(shape) for shape in shapes)


def _power(d: Draw) -> Call:
    n = d.integer(-2, 5)
    return lambda a: np.linalg.matrix_power(a, n), well_conditioned(d, d.shape(0, 1), d.integer(0, 3))


def _cholesky(d: Draw) -> Call:
    upper = d.flag()
    a = well_conditioned(d, d.shape(0, 1), d.integer(0, 3))
    return lambda x: np.linalg.cholesky(np.matmul(x, np.swapaxes(x, -1, -2)), upper=upper), a


def _solved(d: Draw) -> Call:
    n, stack = d.integer(0, 3), d.shape(0, 1)
    dtype = d.dtype()
    b = d.of((n,), (n, 2), (*stack, n, 1), (2, 1, n, 2))
    return np.linalg.solve, d.laid_out(well_conditioned(d, stack, n, dtype)), d.array(b)


def _norm(function: Any) -> Callable[[Draw], Call]:
    def call(d: Draw) -> Call:
        shape = d.shape(0, 3, d.integer(0, 1))
        axis = d.of(None, *range(-len(shape), len(shape)))
        if 0 in shape or not shape:  # of no elements there is no largest one, and a number has no axis
            keepdims = bool(shape) and d.flag()
            return lambda x: function(x, None, axis, keepdims), d.array(shape)
        matrix = len(shape) > 1 and d.flag()
        axis = d.of((0, 1), (-1, 0)) if matrix else axis
        ords = (
            [1, -1, np.inf, -np.inf, "fro", None]
            if matrix
            else [None]
            if axis is None
            else [None, 1, 2, 3, 0.5, -1, 0, np.inf, -np.inf]
        )
        ord, keepdims = d.of(*ords), d.flag()
        return lambda x: function(x, ord, axis, keepdims), d.array(shape)

    return call


def _vector_norm(d: Draw) -> Call:
    shape = d.shape(1)
    options = {
        "axis": d.of(None, d.axis(shape), tuple(range(len(shape)))[:2]),
        "ord": d.of(2, 1, 3, *([np.inf] if 0 not in shape else [])),
        "keepdims": d.flag(),
    }
    return lambda x: np.linalg.vector_norm(x, **options), d.array(shape)


def _matrix_norm(d: Draw) -> Call:
    shape = d.shape(2)
    options = {"ord": d.of("fro", *([1, -1, np.inf, -np.inf] if 0 not in shape else [])), "keepdims": d.flag()}
    return lambda x: np.linalg.matrix_norm(x, **options), d.array(shape)


def _tensorinv(d: Draw) -> Call:
    a = well_conditioned(d, (), 4)
    return lambda x: np.linalg.tensorinv(np.reshape(x, (4, 2, 2)), ind=1), a


def _tensorsolve(d: Draw) -> Call:
    a = well_conditioned(d, (), 4).reshape(4, 2, 2)
    if d.flag():
        return lambda x, b: np.linalg.tensorsolve(x, b, axes=(0,)), np.moveaxis(a, -1, 0), d.array((4,))
    return np.linalg.tensorsolve, a, d.array((4,))


def _array_of(d: Draw) -> Call:
    return lambda x: array_of([x[0] * x[1], x[2], x[0]], (3, 1)), d.array((3,))


def _vander(d: Draw, a: np.ndarray) -> Any:
    n, increasing = d.of(None, 0, 4), d.flag()
    return lambda x: np.vander(x, n, increasing)


def _polynomial(d: Draw) -> Call:
    return np.polyval, d.array((d.integer(1, 4),)), d.array(d.shape())


def _rolled_axis(d: Draw, a: np.ndarray) -> Any:
    axis, start = d.axis(a.shape), d.integer(-a.ndim, a.ndim)
    return lambda x: np.rollaxis(x, axis, start)


def _by_rows(d: Draw, a: np.ndarray) -> Any:
    axis, function = (
        d.axis(a.shape),
        d.of(lambda row: np.sum(row * row), lambda row: np.sin(row), lambda row: np.outer(row, row)),
    )
    return lambda x: np.apply_along_axis(function, axis, x)


def _unwrapped(d: Draw, a: np.ndarray) -> Any:
    axis = d.axis(a.shape)
    return lambda x: np.unwrap(4 * x, axis=axis)


#: For each function of the tables what draws its calls.
CALLS: dict[Any, Callable[[Draw], Call]] = {
    **{f: unary(f) for f in _UNARY},
    **{f: unary(f, positive) for f in _POSITIVE},
    **{f: unary(f, unit) for f in _UNIT},
    np.arccosh: unary(np.arccosh, above_one),
    **{f: binary(f) for f in _BINARY},
    **{f: binary(f, positive) for f in _BINARY_POSITIVE},
    np.copysign: _copysign,
    np.ldexp: _ldexp,
    np.nan_to_num: _nan_to_num,
    np.real: unary(np.real),
    np.full_like: _full_like,
    take_items: _index,
    put_items: _put,
    np.take: _take,
    np.take_along_axis: _take_along_axis,
    np.compress: _compress,
    np.extract: shaped(_extracted),
    np.repeat: _repeat,
    np.resize: shaped(_resized),
    np.insert: _insert,
    np.delete: _delete,
    np.diagonal: _diagonal(np.diagonal),
    np.trace: _diagonal(np.trace),
    np.diag: _offset(np.diag, 1, 2),
    np.diagflat: _offset(np.diagflat, 0),
    np.linalg.diagonal: _linalg_offset(np.linalg.diagonal),
    np.linalg.trace: _linalg_offset(np.linalg.trace),
    np.sort: shaped(_sorted, 1),
    np.partition: _partitioned,
    np.median: _ordered(np.median),
    np.nanmedian: _ordered(np.nanmedian, nan=True),
    np.quantile: _quantile(np.quantile, 1),
    np.nanquantile: _quantile(np.nanquantile, 1),
    np.percentile: _quantile(np.percentile, 100),
    np.nanpercentile: _quantile(np.nanpercentile, 100),
    np.sum: reduction(np.sum, dtype=True, where=True, initial=(2.0,)),
    np.mean: reduction(np.mean, empty=False, dtype=True, where=True),
    np.prod: reduction(np.prod, dtype=True, where=True, initial=(2.0,)),
    np.max: lambda d: reduction(np.max, empty=False, where=(start := d.flag()), initial=(-3.0, 0.1), always=start)(d),
    np.min: lambda d: reduction(np.min, empty=False, where=(start := d.flag()), initial=(3.0, 0.1), always=start)(d),
    np.amax: reduction(np.amax, empty=False),
    np.amin: reduction(np.amin, empty=False),
    np.ptp: reduction(np.ptp, empty=False),
    np.var: reduction(np.var, empty=False, dtype=True, where=True, ddof=(0, 0.5)),
    np.std: reduction(np.std, empty=False, dtype=True, where=True, ddof=(0, 0.5)),
    np.nansum: reduction(np.nansum, dtype=True, nan=True),
    np.nanprod: reduction(np.nanprod, dtype=True, nan=True),
    np.nanmax: reduction(np.nanmax, empty=False, nan=True),
    np.nanmin: reduction(np.nanmin, empty=False, nan=True),
    np.nanmean: reduction(np.nanmean, empty=False, dtype=True, nan=True),
    np.nanvar: reduction(np.nanvar, empty=False, nan=True, ddof=(0, 0.5)),
    np.nanstd: reduction(np.nanstd, empty=False, nan=True, ddof=(0, 0.5)),
    np.cumsum: reduction(np.cumsum, tuples=False, keepdims=False, dtype=True),
    np.cumprod: reduction(np.cumprod, tuples=False, keepdims=False, dtype=True),
    np.nancumsum: reduction(np.nancumsum, tuples=False, keepdims=False, dtype=True, nan=True),
    np.nancumprod: reduction(np.nancumprod, tuples=False, keepdims=False, dtype=True, nan=True),
    np.cumulative_sum: along(np.cumulative_sum, include_initial=(False, True), dtype=(None, np.float64)),
    np.cumulative_prod: along(np.cumulative_prod, include_initial=(False, True), dtype=(None, np.float64)),
    np.average: _average,
    np.cov: _cov,
    np.corrcoef: _corrcoef,
    np.reshape: shaped(_reshaped),
    np.ravel: shaped(_raveled),
    np.squeeze: shaped(_squeezed),
    np.expand_dims: shaped(_expanded),
    np.copy: plain(np.copy),
    np.astype: _cast(np.astype),
    cast: _cast(cast),
    array_of: _array_of,
    np.transpose: shaped(_transposed),
    np.matrix_transpose: plain(np.matrix_transpose, 2),
    np.linalg.matrix_transpose: plain(np.linalg.matrix_transpose, 2),
    np.swapaxes: _two_axes(np.swapaxes),
    np.moveaxis: shaped(_moved, 1),
    np.rollaxis: shaped(_rolled_axis, 1),
    np.flip: shaped(_flipped),
    np.fliplr: plain(np.fliplr, 2),
    np.flipud: plain(np.flipud, 1),
    np.roll: shaped(_rolled, 1),
    np.rot90: shaped(_turned, 2),
    np.broadcast_to: _broadcast,
    np.broadcast_arrays: _broadcast_together,
    np.meshgrid: _meshed,
    np.tile: shaped(_tiled),
    np.tril: _offset(np.tril, 1),
    np.triu: _offset(np.triu, 1),
    np.vander: shaped(_vander, 1, 1),
    np.pad: _padded,
    np.atleast_1d: _several(np.atleast_1d),
    np.atleast_2d: _several(np.atleast_2d),
    np.atleast_3d: _several(np.atleast_3d),
    np.concatenate: joined(flat_or_by_axis, 1, equal=False),
    np.stack: joined(by_new_axis, 0),
    np.vstack: joined(without_axis(np.vstack), 0),
    np.hstack: joined(without_axis(np.hstack), 0),
    np.dstack: joined(without_axis(np.dstack), 0),
    np.column_stack: joined(without_axis(np.column_stack), 1, 2),
    np.append: lambda d: (np.append, d.array(d.shape()), d.array(d.shape())),
    np.block: _blocks,
    np.split: _cut(np.split, equal=True),
    np.array_split: _cut(np.array_split),
    np.hsplit: _cut(np.hsplit, 1, equal=True),
    np.vsplit: _cut(np.vsplit, 0, 2, equal=True),
    np.dsplit: _cut(np.dsplit, 2, 3, equal=True),
    np.unstack: along(np.unstack),
    np.where: _where,
    np.clip: _clipped,
    np.select: _selected,
    np.choose: _chosen,
    np.piecewise: shaped(_pieces),
    np.diff: _differences,
    np.ediff1d: shaped(_ediff1d),
    np.gradient: shaped(_gradient, 1, 2, 3),
    np.trapezoid: _trapezoid,
    np.interp: _interpolated,
    np.convolve: _convolved(np.convolve),
    np.correlate: _convolved(lambda a, v, mode: np.correlate(np.atleast_1d(a), np.atleast_1d(v), mode)),
    np.polyval: _polynomial,
    np.unwrap: shaped(_unwrapped, 1),
    np.apply_along_axis: shaped(_by_rows, 1, 3, 1),
    np.matmul: product(np.matmul, matmul_shapes),
    np.linalg.matmul: product(np.linalg.matmul, lambda d: ((2, 3), (3, d.integer(0, 2)))),
    np.einsum: lambda d: d.of(_einsum, _einsum_of_lists)(d),
    np.dot: product(np.dot, dot_shapes),
    np.inner: product(np.inner, vectors),
    np.vdot: product(np.vdot, lambda d: (d.shape(),) * 2),
    np.outer: product(np.outer, lambda d: (d.shape(0, 2), d.shape(0, 2))),
    np.linalg.outer: product(np.linalg.outer, lambda d: (d.shape(1, 1), d.shape(1, 1))),
    np.kron: product(np.kron, lambda d: (d.shape(0, 3), d.shape(0, 3))),
    np.cross: _crossed,
    np.linalg.cross: product(np.linalg.cross, lambda d: ((*d.shape(0, 2), 3), (3,))),
    np.vecdot: _vecdot(np.vecdot),
    np.linalg.vecdot: _vecdot(np.linalg.vecdot),
    np.tensordot: _tensordot(np.tensordot),
    np.linalg.tensordot: _tensordot(np.linalg.tensordot),
    np.linalg.multi_dot: _chain,
    np.linalg.matrix_power: _power,
    np.linalg.inv: matrices(np.linalg.inv),
    np.linalg.det: matrices(np.linalg.det),
    np.linalg.slogdet: matrices(lambda a: np.linalg.slogdet(a).logabsdet),
    log_abs_det: matrices(log_abs_det),
    np.linalg.cholesky: _cholesky,
    np.linalg.solve: _solved,
    np.linalg.norm: _norm(np.linalg.norm),
    norm_of: _norm(norm_of),
    np.linalg.vector_norm: _vector_norm,
    np.linalg.matrix_norm: _matrix_norm,
    np.linalg.tensorinv: _tensorinv,
    np.linalg.tensorsolve: _tensorsolve,
}  # fmt: skip
if hasattr(np, "matvec"):
    CALLS[np.matvec] = product(np.matvec, _matvec)
    CALLS[np.vecmat] = product(np.vecmat, lambda d: ((2,), (2, d.integer(0, 3))))

#: Functions that NumPy refuses to call with an array without elements, and those of a fixed size.
NEVER_EMPTY = {
    np.cov, np.corrcoef, np.gradient, np.convolve, np.correlate, np.apply_along_axis, np.linalg.tensorinv, np.linalg.tensorsolve, array_of,
    np.nanmedian,
}  # fmt: skip
