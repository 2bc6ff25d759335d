"""Products of vectors, matrices and tensors: linear in each factor."""

from __future__ import annotations

import functools
import string
from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, RULES, Rule, as_dtype, dtype_of, rule, unbroadcast


def _t(a: Any) -> Any:
    return np.swapaxes(a, -1, -2)


# -- matmul ------------------------------------------------------------------------------------------------------------------


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
    "products", np.matmul, _matmul_left, _matmul_right,
    jvps=(lambda t, y, a, b: np.matmul(t, b), lambda t, y, a, b: np.matmul(a, t)),
)  # fmt: skip


# -- einsum ------------------------------------------------------------------------------------------------------------------

#: From so many elements on, finding out whether matmul can be used costs less than it saves.
_LARGE = 4096
_LETTERS = string.ascii_uppercase + string.ascii_lowercase  # as they are sorted


def _with_letters(args: Any) -> tuple[str, Any]:
    """Subscripts and operands; of np.einsum(a, [0, 1], b, [1, 2]), too."""
    if isinstance(args[0], str):
        return args[0], args[1:]
    texts = ["".join("..." if i is Ellipsis else _LETTERS[i] for i in index) for index in args[1::2]]
    subscripts = ",".join(texts[: len(args) // 2])
    return (subscripts + "->" + "".join(
        "..." if i is Ellipsis else _LETTERS[i] for i in args[-1]
    ) if len(args) % 2 else subscripts), args[: len(args) // 2 * 2 : 2]  # fmt: skip


@functools.cache
def _indices(subscripts: str, axes: tuple[int, ...]) -> tuple[list[str], str]:
    """Subscripts of each operand, which have so many axes, and of the output; ellipses written out."""
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    inputs = left.split(",")
    free = [c for c in string.ascii_letters if c not in text]
    hidden = [n - len(i.replace("...", "")) if "..." in i else 0 for i, n in zip(inputs, axes, strict=True)]
    names = "".join(free[: max(hidden)])
    found = [index.replace("...", names[len(names) - n :]) for index, n in zip(inputs, hidden, strict=True)]
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    return found, output.replace("...", names)


def _einsum_vjp(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
    """Σ with the operand's place taken by g; indices that stand in it alone are broadcast."""
    subscripts, operands = _with_letters(args)
    inputs, output = _indices(subscripts, tuple(map(np.ndim, operands)))
    number = place - 1 if isinstance(args[0], str) else place // 2
    own, shape_of_own = inputs[number], np.shape(args[place])
    others = [index for i, index in enumerate(inputs) if i != number]
    known = set(output).union(*others)
    kept = "".join(index for index in dict.fromkeys(own) if index in known)
    rest = [operand for i, operand in enumerate(operands) if i != number]
    partial = np.einsum(",".join([output, *others]) + "->" + kept, g, *rest, **_by_pairs(operands))
    lengths = dict(zip(kept, np.shape(partial), strict=True))
    full = tuple(lengths.get(index, n) for index, n in zip(own, shape_of_own, strict=True))
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
    return np.einsum(
        *(t if i == place else arg for i, arg in enumerate(args)), **{**_by_pairs(_with_letters(args)[1]), **kwargs}
    )


def _by_pairs(operands: Any) -> dict[str, Any]:
    """Three operands or more are multiplied two at a time, which costs less by whole dimensions, and large ones by matmul."""
    many = len(operands) > 2 or any(np.size(a) > _LARGE for a in operands if hasattr(a, "dtype"))
    return {"optimize": True} if many else {}


def _einsum_options(
    g: Any, y: Any, *operands: Any, optimize: Any = False, dtype: Any = None, order: Any = None, casting: Any = None
) -> None:
    """What einsum takes."""


RULES[np.einsum] = Rule(
    _einsum_vjp, _einsum_jvp, "products", "rule", _einsum_options, unread=lambda place: (True, frozenset({place}))
)


# -- others, written with these ----------------------------------------------------------------------------------------------


def _dot(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    if np.ndim(b) <= 2:
        return np.matmul(a, b)
    return np.tensordot(a, b, axes=((np.ndim(a) - 1,), (np.ndim(b) - 2,)))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if np.ndim(axes) == 0:
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
    sizes = np.shape(a)[-1], np.shape(b)[-1]
    if not set(sizes) <= {2, 3}:
        raise ValueError(f"np.cross takes vectors of 2 or 3 elements, but got {sizes[0]} and {sizes[1]}")
    (a0, a1, *a2), (b0, b1, *b2) = ([x[..., i] for i in range(n)] for x, n in zip((a, b), sizes, strict=True))
    last = a0 * b1 - a1 * b0
    if sizes == (2, 2):
        return last
    first, second = _last_times(b2, a1, a2, b1), _last_times(a2, b0, b2, a0)
    return np.moveaxis(np.stack([first, second, last], axis=-1), -1, axisc)


def _last_times(z: Any, x: Any, w: Any, y: Any) -> Any:
    """x·z − w·y, where z or w may be missing and is 0 then."""
    parts = [x * z[0] if z else None, -(w[0] * y) if w else None]
    found = [part for part in parts if part is not None]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _chain_product(arrays: Any) -> Any:
    """In the order that multiplies the fewest numbers: cost[i, j] is that of the product of i to j."""
    sizes = [np.shape(arrays[0])[0] if np.ndim(arrays[0]) > 1 else 1]
    sizes += [np.shape(a)[0] for a in arrays[1:]] + [np.shape(arrays[-1])[1] if np.ndim(arrays[-1]) > 1 else 1]
    costs: dict[tuple[int, int], tuple[int, int]] = {(i, i): (0, i) for i in range(len(arrays))}
    for span in range(1, len(arrays)):
        for i in range(len(arrays) - span):
            j = i + span
            costs[i, j] = min(
                (costs[i, k][0] + costs[k + 1, j][0] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
            )

    def product(i: int, j: int) -> Any:
        return arrays[i] if i == j else np.dot(product(i, costs[i, j][1]), product(costs[i, j][1] + 1, j))

    return product(0, len(arrays) - 1)


def _matrix_power(a: Any, n: int) -> Any:
    if n < 0:
        return _matrix_power(np.linalg.inv(a), -n)
    if n == 0:
        return np.broadcast_to(np.eye(np.shape(a)[-1], dtype=dtype_of(a)), np.shape(a)).copy()
    if n == 1:
        return np.copy(a)
    half = _matrix_power(a, n // 2)
    return np.matmul(np.matmul(half, half), a) if n % 2 else np.matmul(half, half)


DERIVED |= {
    np.dot: _dot,
    np.tensordot: _tensordot,
    np.vdot: lambda a, b: np.sum(np.ravel(a) * np.ravel(b)),
    np.inner: lambda a, b: a * b if not np.ndim(a) or not np.ndim(b) else np.tensordot(a, b, axes=((-1,), (-1,))),
    np.outer: lambda a, b: np.ravel(a)[:, None] * np.ravel(b)[None, :],
    np.kron: _kron,
    np.cross: _cross,
    np.vecdot: lambda a, b, axis=-1: _vecdot(a, b, axis),
    np.linalg.matmul: lambda a, b: np.matmul(a, b),
    np.linalg.tensordot: lambda a, b, *, axes=2: np.tensordot(a, b, axes),
    np.linalg.outer: lambda a, b: np.outer(a, b),
    np.linalg.cross: lambda a, b, *, axis=-1: _cross(a, b, axis=axis),
    np.linalg.vecdot: lambda a, b, *, axis=-1: _vecdot(a, b, axis),
    np.linalg.multi_dot: _chain_product,
    np.linalg.matrix_power: _matrix_power,
}
if hasattr(np, "matvec"):  # since NumPy 2.2
    DERIVED[np.matvec] = lambda a, b: np.matmul(a, b[..., None])[..., 0]
    DERIVED[np.vecmat] = lambda a, b: np.matmul(a[..., None, :], b)[..., 0, :]
