"""Products and np.linalg. Products are linear in each factor; the rest follows Giles 2008, "An extended collection of matrix
derivative results for forward and reverse mode algorithmic differentiation".
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from framework.differentiation.table import DERIVED, RULES, Rule, dtype_of, rule, unbroadcast
from framework.differentiation.tracing import primitive


def _t(a: Any) -> Any:
    return np.swapaxes(a, -1, -2)


# -- products --------------------------------------------------------------------------------------------------------------


def _columns(a: Any, b: Any) -> tuple[Any, Any]:
    """Both factors as matrices."""
    return (a if np.ndim(a) > 1 else a[None, :]), (b if np.ndim(b) > 1 else b[:, None])


def _full(g: Any, a: Any, b: Any) -> Any:
    """The cotangent of a product with the axes that vectors lost."""
    if np.ndim(b) == 1:
        g = np.expand_dims(g, -1)
    return np.expand_dims(g, -2) if np.ndim(a) == 1 else g


def _matmul_left(g: Any, y: Any, a: Any, b: Any) -> Any:
    left, right = _columns(a, b)
    return np.reshape(unbroadcast(np.matmul(_full(g, a, b), _t(right)), left), np.shape(a))


def _matmul_right(g: Any, y: Any, a: Any, b: Any) -> Any:
    left, right = _columns(a, b)
    return np.reshape(unbroadcast(np.matmul(_t(left), _full(g, a, b)), right), np.shape(b))


rule(
    "linear algebra", np.matmul, _matmul_left, _matmul_right,
    jvps=(lambda t, y, a, b: np.matmul(t, b), lambda t, y, a, b: np.matmul(a, t)),
)  # fmt: skip


def _einsum_vjp(position: Any, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
    """Σ with the operand's place taken by g; indices that stand in it alone are broadcast."""
    subscripts, *operands = args
    place = position[0] - 1
    inputs, output = _indices(subscripts, operands)
    own = inputs[place]
    if len(set(own)) != len(own):
        raise TypeError(
            f"np.einsum({subscripts!r}): an index that stands twice in one operand has no derivative rule; use np.diagonal"
        )
    others = [index for i, index in enumerate(inputs) if i != place]
    known = set(output).union(*others)
    kept = "".join(index for index in own if index in known)
    rest = [operand for i, operand in enumerate(operands) if i != place]
    partial = np.einsum(",".join([output, *others]) + "->" + kept, g, *rest)
    shape = tuple(n if index in known else 1 for index, n in zip(own, np.shape(operands[place]), strict=True))
    return unbroadcast(np.broadcast_to(np.reshape(partial, shape), np.shape(operands[place])), operands[place])


def _einsum_jvp(position: Any, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
    return np.einsum(*(t if i == position[0] else arg for i, arg in enumerate(args)))


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


RULES[np.einsum] = Rule(_einsum_vjp, _einsum_jvp, "linear algebra", "rule")


def _dot(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    return np.tensordot(a, b, axes=((np.ndim(a) - 1,), (max(0, np.ndim(b) - 2),)))


def _tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    if isinstance(axes, int):
        axes = (tuple(range(np.ndim(a) - axes, np.ndim(a))), tuple(range(axes)))
    of_a, of_b = ((x,) if isinstance(x, int) else tuple(x) for x in axes)
    of_a, of_b = (tuple(x % n for x in some) for some, n in ((of_a, np.ndim(a)), (of_b, np.ndim(b))))
    letters = iter(string.ascii_letters)
    left = [next(letters) for _ in range(np.ndim(a))]
    right = [next(letters) for _ in range(np.ndim(b))]
    for i, j in zip(of_a, of_b, strict=True):
        right[j] = left[i]
    output = [c for i, c in enumerate(left) if i not in of_a] + [c for j, c in enumerate(right) if j not in of_b]
    return np.einsum(f"{''.join(left)},{''.join(right)}->{''.join(output)}", a, b)


DERIVED |= {
    np.dot: _dot,
    np.tensordot: _tensordot,
    np.vdot: lambda a, b: np.sum(np.ravel(a) * np.ravel(b)),
    np.inner: lambda a, b: a * b if not np.ndim(a) or not np.ndim(b) else np.tensordot(a, b, axes=((-1,), (-1,))),
    np.outer: lambda a, b: np.ravel(a)[:, None] * np.ravel(b)[None, :],
    np.kron: lambda a, b: _kron(a, b),
    np.cross: lambda a, b: _cross(a, b),
    np.vecdot: lambda a, b: np.sum(a * b, axis=-1),
}


def _kron(a: Any, b: Any) -> Any:
    n = max(np.ndim(a), np.ndim(b))
    a, b = (np.reshape(x, (1,) * (n - np.ndim(x)) + np.shape(x)) for x in (a, b))
    left = np.reshape(a, [m for length in np.shape(a) for m in (length, 1)])
    right = np.reshape(b, [m for length in np.shape(b) for m in (1, length)])
    return np.reshape(left * right, [i * j for i, j in zip(np.shape(a), np.shape(b), strict=True)])


def _cross(a: Any, b: Any) -> Any:
    (a0, a1, a2), (b0, b1, b2) = ([x[..., i] for i in range(3)] for x in (a, b))
    return np.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis=-1)


# -- np.linalg -------------------------------------------------------------------------------------------------------------


def _inv_vjp(g: Any, y: Any, a: Any) -> Any:
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


def _cholesky_vjp(g: Any, y: Any, a: Any) -> Any:
    inverse = np.linalg.inv(y)
    middle = np.matmul(_t(inverse), np.matmul(_half(np.matmul(_t(y), g)), inverse))
    return 0.5 * (middle + _t(middle))


def _cholesky_jvp(t: Any, y: Any, a: Any) -> Any:
    inverse = np.linalg.inv(y)
    return np.matmul(y, _half(np.matmul(inverse, np.matmul(0.5 * (t + _t(t)), _t(inverse)))))


def _solve_rows(a: Any, b: Any) -> bool:
    return bool(np.ndim(b) == 1)


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
    "linear algebra", log_abs_det, lambda g, y, a: g[..., None, None] * _t(np.linalg.inv(a)),
    jvps=(lambda t, y, a: np.trace(np.linalg.solve(a, t), axis1=-2, axis2=-1),),
)  # fmt: skip
rule("linear algebra", np.linalg.cholesky, _cholesky_vjp, jvps=(_cholesky_jvp,))
rule(
    "linear algebra", np.linalg.solve, _solve_left,
    lambda g, y, a, b: unbroadcast(np.linalg.solve(_t(a), g), b),
    jvps=(_solve_left_jvp, lambda t, y, a, b: np.linalg.solve(a, t)),
)  # fmt: skip


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Vector norms of order 1, 2, infinity or p, and the Frobenius norm; 0 at the zero vector, whose derivative is taken as 0."""
    if axis is None and (ord is None or np.ndim(x) == 1):
        flat = np.ravel(x)
        y = _norm(flat, ord, 0)
        return np.reshape(y, (1,) * np.ndim(x)) if keepdims else y
    if ord == "fro" or (ord is None and isinstance(axis, tuple)):
        axis = axis if axis is not None else (-2, -1)
        ord = 2
    elif axis is None or isinstance(axis, tuple):
        raise TypeError(
            f"np.linalg.norm with ord={ord!r} of matrices has no derivative rule; only the Frobenius norm has"
        )
    size = np.abs(x)
    if ord == np.inf:
        return np.max(size, axis=axis, keepdims=keepdims)
    if ord == -np.inf:
        return np.min(size, axis=axis, keepdims=keepdims)
    if ord == 1:
        return np.sum(size, axis=axis, keepdims=keepdims)
    p = 2 if ord is None else ord
    total = np.sum(x * x if p == 2 else np.power(size, p), axis=axis, keepdims=keepdims)
    positive = np.greater(total, 0)
    return np.where(positive, np.power(np.where(positive, total, 1), 1 / p), 0 * total)


DERIVED |= {
    np.linalg.norm: _norm,
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
