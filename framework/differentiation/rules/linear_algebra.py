"""Products and np.linalg. Products are linear in each factor; the rest follows Giles 2008, "An extended collection of matrix
derivative results for forward and reverse mode algorithmic differentiation".
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, RULES, Rule, as_dtype, dtype_of, rule, unbroadcast
from framework.differentiation.tracing import primitive


def _t(a: Any) -> Any:
    return np.swapaxes(a, -1, -2)


# -- products --------------------------------------------------------------------------------------------------------------


def _full(g: Any, a: Any, b: Any) -> Any:
    """The cotangent of a product with the axes that vectors lost."""
    if np.ndim(b) == 1:
        g = np.expand_dims(g, -1)
    return np.expand_dims(g, -2) if np.ndim(a) == 1 else g


def _matmul_left(g: Any, _y: Any, _a: Any, b: Any) -> Any:
    if np.ndim(_a) == 2 == np.ndim(b):
        return as_dtype(np.matmul(g, _t(b)), dtype_of(_a))
    right = b if np.ndim(b) > 1 else b[:, None]
    return _summed_to(np.matmul(_full(g, _a, b), _t(right)), _a, (1, *np.shape(_a)))


def _matmul_right(g: Any, _y: Any, a: Any, _b: Any) -> Any:
    if np.ndim(a) == 2 == np.ndim(_b):
        return as_dtype(np.matmul(_t(a), g), dtype_of(_b))
    left = a if np.ndim(a) > 1 else a[None, :]
    return _summed_to(np.matmul(_t(left), _full(g, a, _b)), _b, (*np.shape(_b), 1))


def _summed_to(g: Any, like: Any, as_matrix: tuple[int, ...]) -> Any:
    """Sums over the axes along which a factor was broadcast; a vector took part as a matrix."""
    if np.ndim(like) > 1:
        return unbroadcast(g, like)
    summed = np.sum(g, axis=tuple(range(np.ndim(g) - 2))) if np.ndim(g) > 2 else g
    return as_dtype(np.reshape(summed, np.shape(like)), dtype_of(like))


rule(
    "linear algebra", np.matmul, _matmul_left, _matmul_right,
    jvps=(lambda t, y, a, b: np.matmul(t, b), lambda t, y, a, b: np.matmul(a, t)),
)  # fmt: skip


def _einsum_vjp(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
    """Σ with the operand's place taken by g; indices that stand in it alone are broadcast."""
    subscripts, *operands = args
    inputs, output = _indices(subscripts, operands)
    own = inputs[place - 1]
    others = [index for i, index in enumerate(inputs, 1) if i != place]
    known = set(output).union(*others)
    kept = "".join(index for index in dict.fromkeys(own) if index in known)
    rest = [operand for i, operand in enumerate(operands, 1) if i != place]
    partial = np.einsum(",".join([output, *others]) + "->" + kept, g, *rest)
    lengths = dict(zip(kept, np.shape(partial), strict=True))
    full = tuple(lengths.get(index, n) for index, n in zip(own, np.shape(args[place]), strict=True))
    shape = tuple(lengths.get(index, 1) if own.index(index) == i else 1 for i, index in enumerate(own))
    whole = np.broadcast_to(np.reshape(partial, shape), full)
    for i, index in enumerate(own):
        if own.index(index) < i:  # an index that stands twice reads the diagonal alone
            whole = np.where(_on_diagonal(full, own.index(index), i), whole, np.zeros((), dtype_of(g)))
    return unbroadcast(whole, args[place])


def _on_diagonal(shape: tuple[int, ...], i: int, j: int) -> Any:
    """Where the indices i and j of an array are equal."""
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return np.equal(grid[i], grid[j])


def _einsum_jvp(place: int, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
    return np.einsum(*(t if i == place else arg for i, arg in enumerate(args)))


def _indices(subscripts: str, operands: Any) -> tuple[list[str], str]:
    """Subscripts of each operand and of the output, ellipses written out."""
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    free = [c for c in string.ascii_letters if c not in text]
    hidden = max(
        (np.ndim(o) - len(i.replace("...", "")) for i, o in zip(inputs, operands, strict=True) if "..." in i), default=0
    )
    names = "".join(free[:hidden])
    found = []
    for index, operand in zip(inputs, operands, strict=True):
        count = np.ndim(operand) - len(index.replace("...", ""))
        found.append(index.replace("...", names[hidden - count :]))
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    return found, output.replace("...", names)


RULES[np.einsum] = Rule(
    _einsum_vjp, _einsum_jvp, "linear algebra", "rule", unread=lambda place: (True, frozenset({place}))
)


def _dot(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    if np.ndim(b) <= 2:
        return np.matmul(a, b)
    return np.tensordot(a, b, axes=((np.ndim(a) - 1,), (np.ndim(b) - 2,)))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if isinstance(axes, int):
        axes = (tuple(range(np.ndim(a) - axes, np.ndim(a))), tuple(range(axes)))
    of_a, of_b = ((x,) if isinstance(x, int) else tuple(x) for x in axes)
    of_a, of_b = (tuple(x % n for x in some) for some, n in ((of_a, np.ndim(a)), (of_b, np.ndim(b))))
    # As NumPy does it: one matrix product of the axes that stay by those that are summed.
    free_a, free_b = ([i for i in range(n) if i not in some] for some, n in ((of_a, np.ndim(a)), (of_b, np.ndim(b))))
    summed = int(np.prod([np.shape(a)[i] for i in of_a], dtype=int))
    left = np.reshape(np.transpose(a, (*free_a, *of_a)), (-1 if summed else _size(a, free_a), summed))
    right = np.reshape(np.transpose(b, (*of_b, *free_b)), (summed, -1 if summed else _size(b, free_b)))
    return np.reshape(np.matmul(left, right), [np.shape(x)[i] for x, free in ((a, free_a), (b, free_b)) for i in free])


def _size(a: Any, axes: Any) -> int:
    return int(np.prod([np.shape(a)[i] for i in axes], dtype=int))


DERIVED |= {
    np.dot: _dot,
    np.tensordot: _tensordot,
    np.vdot: lambda a, b: np.sum(np.ravel(a) * np.ravel(b)),
    np.inner: lambda a, b: a * b if not np.ndim(a) or not np.ndim(b) else np.tensordot(a, b, axes=((-1,), (-1,))),
    np.outer: lambda a, b: np.ravel(a)[:, None] * np.ravel(b)[None, :],
    np.kron: lambda a, b: _kron(a, b),
    np.cross: lambda a, b, *axes, **named: _cross(a, b, *axes, **named),
}
DERIVED[np.vecdot] = lambda a, b, axis=-1: _vecdot(a, b, axis)


def _vecdot(a: Any, b: Any, axis: int) -> Any:
    return np.sum(np.moveaxis(a, axis, -1) * np.moveaxis(b, axis, -1), axis=-1)


def _kron(a: Any, b: Any) -> Any:
    n = max(np.ndim(a), np.ndim(b))
    a, b = (np.reshape(x, (1,) * (n - np.ndim(x)) + np.shape(x)) for x in (a, b))
    left = np.reshape(a, [m for length in np.shape(a) for m in (length, 1)])
    right = np.reshape(b, [m for length in np.shape(b) for m in (1, length)])
    return np.reshape(left * right, [i * j for i, j in zip(np.shape(a), np.shape(b), strict=True)])


def _cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Any:
    axisa, axisb, axisc = (axisa, axisb, axisc) if axis is None else (axis, axis, axis)
    a, b = np.moveaxis(a, axisa, -1), np.moveaxis(b, axisb, -1)
    if (np.shape(a)[-1], np.shape(b)[-1]) != (3, 3):
        raise TypeError("np.cross has a derivative rule for vectors of 3 elements only")
    (a0, a1, a2), (b0, b1, b2) = ([x[..., i] for i in range(3)] for x in (a, b))
    return np.moveaxis(np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=-1), -1, axisc)


# -- np.linalg -------------------------------------------------------------------------------------------------------------


def _inv_vjp(g: Any, y: Any, _a: Any) -> Any:
    return -np.matmul(_t(y), np.matmul(g, _t(y)))


def _det_vjp(g: Any, y: Any, a: Any) -> Any:
    return (g * y)[..., None, None] * _t(np.linalg.inv(a))


def _det_jvp(t: Any, y: Any, a: Any) -> Any:
    return y * np.trace(np.linalg.solve(a, t), axis1=-2, axis2=-1)


@primitive
def log_abs_det(a: Any) -> Any:
    """log |det a|."""
    return np.linalg.slogdet(a)[1]


def _half(a: Any) -> Any:
    """The lower triangle with half of the diagonal."""
    n = np.shape(a)[-1]
    return np.tril(a) - 0.5 * a * np.eye(n, dtype=dtype_of(a))


def _cholesky_vjp(g: Any, y: Any, _a: Any, upper: bool = False) -> Any:
    g, y = (_t(g), _t(y)) if upper else (g, y)
    inverse = np.linalg.inv(y)
    middle = np.matmul(_t(inverse), np.matmul(_half(np.matmul(_t(y), g)), inverse))
    return 0.5 * (middle + _t(middle))


def _cholesky_jvp(t: Any, y: Any, a: Any, upper: bool = False) -> Any:
    y = _t(y) if upper else y
    inverse = np.linalg.inv(y)
    moved = np.matmul(y, _half(np.matmul(inverse, np.matmul(0.5 * (t + _t(t)), _t(inverse)))))
    return _t(moved) if upper else moved


def _solve_left(g: Any, y: Any, a: Any, b: Any) -> Any:
    back = np.linalg.solve(_t(a), g)
    if np.ndim(b) == 1:
        return unbroadcast(-back[..., :, None] * y[..., None, :], a)
    return unbroadcast(-np.matmul(back, _t(y)), a)


def _solve_left_jvp(t: Any, y: Any, a: Any, b: Any) -> Any:
    moved = np.matmul(t, y[..., None])[..., 0] if np.ndim(b) == 1 else np.matmul(t, y)
    return -(np.linalg.solve(a, moved[..., None])[..., 0] if np.ndim(b) == 1 else np.linalg.solve(a, moved))


rule("linear algebra", np.linalg.inv, _inv_vjp, jvps=(lambda t, y, a: -np.matmul(y, np.matmul(t, y)),))
rule("linear algebra", np.linalg.det, _det_vjp, jvps=(_det_jvp,))
rule(
    "linear algebra", log_abs_det, lambda g, _y, a: g[..., None, None] * _t(np.linalg.inv(a)),
    jvps=(lambda t, y, a: np.trace(np.linalg.solve(a, t), axis1=-2, axis2=-1),),
)  # fmt: skip
rule("linear algebra", np.linalg.cholesky, _cholesky_vjp, jvps=(_cholesky_jvp,))
rule(
    "linear algebra", np.linalg.solve, _solve_left,
    lambda g, _y, a, _b: unbroadcast(np.linalg.solve(_t(a), g), _b),
    jvps=(_solve_left_jvp, lambda t, y, a, b: np.linalg.solve(a, t)),
)  # fmt: skip


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """np.linalg.norm: of vectors along one axis, of matrices along two, and of all elements where neither order nor axis is given."""
    axes = tuple(range(np.ndim(x))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    if len(axes) == 1 or (axis is None and ord is None):
        return _vector_norm(x, 2 if ord is None else ord, axes, keepdims)
    return _matrix_norm(x, "fro" if ord is None else ord, axes, keepdims)


def _vector_norm(x: Any, ord: Any, axes: Any, keepdims: bool) -> Any:
    """Norms of any order; 0 at the zero vector, whose derivative is taken as 0."""
    size = np.abs(x)
    if ord == np.inf:
        return np.max(size, axis=axes, keepdims=keepdims)
    if ord == -np.inf:
        return np.min(size, axis=axes, keepdims=keepdims)
    if ord == 0:
        return np.sum(np.not_equal(x, 0) + 0 * x, axis=axes, keepdims=keepdims)
    if ord == 1:
        return np.sum(size, axis=axes, keepdims=keepdims)
    if ord == 2:
        powers = x * x
    else:  # an element 0 has the derivative 0 for any order
        there = np.not_equal(x, 0)
        powers = np.where(there, np.power(np.where(there, size, 1), ord), np.inf if ord < 0 else 0)
    total = np.sum(powers, axis=axes, keepdims=keepdims)
    positive = np.greater(total, 0)
    return np.where(positive, np.power(np.where(positive, total, 1), 1 / ord), 0 * total)


def _matrix_norm(x: Any, ord: Any, axes: Any, keepdims: bool) -> Any:
    """The Frobenius norm, and the largest or smallest sum of a column (order 1, −1) or a row (∞, −∞)."""
    if ord in ("fro", "f"):
        return _vector_norm(x, 2, axes, keepdims)
    if ord not in (1, -1, np.inf, -np.inf) or len(axes) != 2:
        raise TypeError(
            f"np.linalg.norm with ord={ord!r} of matrices has no derivative rule: it needs singular values; orders 1, -1, inf, "
            "-inf and 'fro' have one"
        )
    summed, left = axes if abs(ord) == 1 else axes[::-1]
    sums = np.sum(np.abs(x), axis=summed, keepdims=True)
    found = (np.max if ord > 0 else np.min)(sums, axis=left, keepdims=True)
    return found if keepdims else np.squeeze(found, axis=axes)


def _tensorinv(a: Any, ind: int = 2) -> Any:
    shape = np.shape(a)
    flat = np.reshape(a, (int(np.prod(shape[ind:], dtype=int)), -1))
    return np.reshape(np.linalg.inv(flat), shape[ind:] + shape[:ind])


def _tensorsolve(a: Any, b: Any, axes: Any = None) -> Any:
    if axes is not None:
        a = np.moveaxis(a, tuple(axes), tuple(range(np.ndim(a) - len(axes), np.ndim(a))))
    shape = np.shape(a)[np.ndim(b) :]
    flat = np.reshape(a, (-1, int(np.prod(shape, dtype=int))))
    return np.reshape(np.linalg.solve(flat, np.ravel(b)), shape)


DERIVED |= {
    np.linalg.norm: _norm,
    np.linalg.matmul: lambda a, b: np.matmul(a, b),
    np.linalg.tensordot: lambda a, b, *, axes=2: np.tensordot(a, b, axes),
    np.linalg.outer: lambda a, b: np.outer(a, b),
    np.linalg.cross: lambda a, b, *, axis=-1: _cross(a, b, axis=axis),
    np.linalg.vecdot: lambda a, b, *, axis=-1: _vecdot(a, b, axis),
    np.linalg.vector_norm: lambda x, *, axis=None, keepdims=False, ord=2: _vector_norm(
        x, ord, tuple(range(np.ndim(x))) if axis is None else axis, keepdims
    ),
    np.linalg.matrix_norm: lambda x, *, keepdims=False, ord="fro": _matrix_norm(x, ord, (-2, -1), keepdims),
    np.linalg.tensorinv: _tensorinv,
    np.linalg.tensorsolve: _tensorsolve,
    np.linalg.slogdet: lambda a: (np.linalg.slogdet(_plain(a))[0], log_abs_det(a)),
    np.linalg.multi_dot: lambda arrays: _chain_product(arrays),
    np.linalg.matrix_power: lambda a, n: _matrix_power(a, n),
}


def _plain(a: Any) -> Any:
    from framework.differentiation.tracing import untraced

    return untraced(a)


def _chain_product(arrays: Any) -> Any:
    product = arrays[0]
    for a in arrays[1:]:
        product = np.dot(product, a)
    return product


def _matrix_power(a: Any, n: int) -> Any:
    if n < 0:
        return _matrix_power(np.linalg.inv(a), -n)
    if n == 0:
        return np.broadcast_to(np.eye(np.shape(a)[-1], dtype=dtype_of(a)), np.shape(a)) + 0 * a
    half = _matrix_power(a, n // 2) if n > 1 else None
    if half is None:
        return a
    return np.matmul(np.matmul(half, half), a) if n % 2 else np.matmul(half, half)
