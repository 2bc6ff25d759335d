"""np.linalg. The rules follow Giles 2008, "An extended collection of matrix derivative results for forward and reverse mode
algorithmic differentiation".

Conventions: norms have the derivative 0 at the zero vector, and in elements that are 0; where several elements, rows or columns reach
the norm of order ∞ or 1, they share it equally. The determinant is differentiable at singular matrices, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.rules.reductions import axes_of, nonzero, spread
from framework.differentiation.table import DERIVED, as_dtype, dtype_of, rule, unbroadcast
from framework.differentiation.tracing import primitive, untraced

_FAMILY = "linear algebra"


def _t(a: Any) -> Any:
    return np.swapaxes(a, -1, -2)


# -- inverses, determinants, factors -----------------------------------------------------------------------------------------


def _inv_vjp(g: Any, y: Any, _a: Any) -> Any:
    return -np.matmul(_t(y), np.matmul(g, _t(y)))


def _cofactors(y: Any, a: Any) -> Any:
    """The derivative of det A = y by A: y·A⁻ᵀ, and for singular matrices the polynomial in A that it is."""
    singular = np.equal(y, 0)[..., None, None]
    if not np.any(singular):
        return as_dtype(y[..., None, None] * _t(np.linalg.inv(a)), dtype_of(a))
    regular = np.where(singular, np.eye(np.shape(a)[-1], dtype=dtype_of(a)), a)
    return as_dtype(
        np.where(singular, _polynomial_cofactors(a), y[..., None, None] * _t(np.linalg.inv(regular))), dtype_of(a)
    )


def _polynomial_cofactors(a: Any) -> Any:
    """By Faddeev and LeVerrier: M₁ = I, M_{k+1} = A·M_k − tr(A·M_k)/k·I; the cofactors are ±M_nᵀ."""
    n = np.shape(a)[-1]
    one: Any = np.eye(n, dtype=dtype_of(a))
    m = one
    for k in range(1, n):
        product = np.matmul(a, m)
        m = product - np.trace(product, axis1=-2, axis2=-1)[..., None, None] / k * one
    return _t(m if n % 2 else -m)


def _det_vjp(g: Any, y: Any, a: Any) -> Any:
    return g[..., None, None] * _cofactors(y, a)


def _det_jvp(t: Any, y: Any, a: Any) -> Any:
    return np.sum(t * _cofactors(y, a), axis=(-2, -1))


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


def _solve(a: Any, b: Any, as_vectors: bool) -> Any:
    """np.linalg.solve, which itself takes stacked vectors for a matrix."""
    return np.linalg.solve(a, b[..., None])[..., 0] if as_vectors and np.ndim(b) > 1 else np.linalg.solve(a, b)


def _solve_left(g: Any, y: Any, a: Any, _b: Any) -> Any:
    back = _solve(_t(a), g, np.ndim(_b) == 1)
    if np.ndim(_b) == 1:
        return unbroadcast(-back[..., :, None] * y[..., None, :], a)
    return unbroadcast(-np.matmul(back, _t(y)), a)


def _solve_left_jvp(t: Any, y: Any, a: Any, b: Any) -> Any:
    moved = np.matmul(t, y[..., None])[..., 0] if np.ndim(b) == 1 else np.matmul(t, y)
    return -_solve(a, moved, np.ndim(b) == 1)


def _solve_right(g: Any, _y: Any, a: Any, _b: Any) -> Any:
    return unbroadcast(_solve(_t(a), g, np.ndim(_b) == 1), _b)


rule(_FAMILY, np.linalg.inv, _inv_vjp, jvps=(lambda t, y, a: -np.matmul(y, np.matmul(t, y)),))
rule(_FAMILY, np.linalg.det, _det_vjp, jvps=(_det_jvp,))
rule(
    _FAMILY, log_abs_det, lambda g, _y, a: g[..., None, None] * _t(np.linalg.inv(a)),
    jvps=(lambda t, y, a: np.trace(np.linalg.solve(a, t), axis1=-2, axis2=-1),),
)  # fmt: skip
rule(_FAMILY, np.linalg.cholesky, _cholesky_vjp, jvps=(_cholesky_jvp,))
rule(
    _FAMILY, np.linalg.solve, _solve_left,
    _solve_right,
    jvps=(_solve_left_jvp, lambda t, y, a, b: np.linalg.solve(a, t)),
)  # fmt: skip


# -- norms: y has the slope sign(x)·(|x| / y)^(p − 1) --------------------------------------------------------------------------


@primitive
def norm_of(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """np.linalg.norm of an order that needs no singular values."""
    return np.linalg.norm(x, ord, axis, keepdims)


def _slope(y: Any, x: Any, ord: Any, axes: tuple[int, ...]) -> Any:
    """The derivative of the norm by each element; y has the axes kept."""
    if ord is None or ord == "fro" or (ord == 2 and len(axes) == 1):
        return x / nonzero(y)
    if len(axes) == 2:  # the largest or smallest sum of a column or row
        sums = np.sum(np.abs(x), axis=axes[0] if abs(ord) == 1 else axes[1], keepdims=True)
        return np.sign(x) * _share_of(sums, ord, axes)
    if ord in (np.inf, -np.inf):
        return np.sign(x) * _share_of(np.abs(x), ord, axes)
    if ord == 1:
        return np.sign(x)
    if ord == 0:
        return np.zeros(np.shape(x), dtype_of(x))
    there = np.not_equal(x, 0) & np.not_equal(y, 0)
    ratio = np.where(there, np.abs(x), 1) / np.where(there, y, 1)
    return np.where(there, np.sign(x) * ratio ** (ord - 1), np.zeros((), dtype_of(x)))


def _share_of(a: Any, ord: Any, axes: Any) -> Any:
    """1 / n for each of the n elements that are the largest (order > 0) or smallest, else 0."""
    a = untraced(a)
    hit = np.equal(a, (np.max if ord > 0 else np.min)(a, axis=axes, keepdims=True))
    return hit / np.maximum(np.sum(hit, axis=axes, keepdims=True), 1).astype(dtype_of(a))


def _norm_vjp(g: Any, y: Any, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    slope = _slope(spread(y, x, axis, keepdims), x, ord, axes_of(x, axis))
    return as_dtype(spread(g, x, axis, keepdims) * slope, dtype_of(x))


def _norm_jvp(t: Any, y: Any, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    slope = _slope(spread(y, x, axis, keepdims), x, ord, axes_of(x, axis))
    return as_dtype(np.sum(t * slope, axis=axis, keepdims=keepdims), dtype_of(y))


rule(_FAMILY, norm_of, _norm_vjp, jvps=(_norm_jvp,))


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    ord = "fro" if ord == "f" else ord
    count = len(axes_of(x, axis))
    if ord in (2, -2, "nuc") and count == 2:
        raise TypeError(
            f"np.linalg.norm with ord={ord!r} of matrices has no derivative rule: it needs singular values; orders 1, -1, inf, "
            "-inf and 'fro' have one"
        )
    return norm_of(x, ord, axis, keepdims)


def _vector_norm(x: Any, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    """One norm over all the axes."""
    axes = axes_of(x, axis)
    rest = [i for i in range(np.ndim(x)) if i not in axes]
    moved = np.transpose(x, (*axes, *rest))
    length = int(np.prod(np.shape(moved)[: len(axes)], dtype=int))
    flat = np.reshape(moved, (length, *np.shape(moved)[len(axes) :]))
    found = _norm(flat, ord, 0)
    return np.reshape(found, tuple(1 if i in axes else n for i, n in enumerate(np.shape(x)))) if keepdims else found


def _slogdet(a: Any) -> Any:
    """NumPy's own pair; the sign is a constant."""
    plain = np.linalg.slogdet(untraced(a))
    return type(plain)(plain[0], log_abs_det(a))


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
    np.linalg.vector_norm: _vector_norm,
    np.linalg.matrix_norm: lambda x, *, keepdims=False, ord="fro": _norm(x, ord, (-2, -1), keepdims),
    np.linalg.tensorinv: _tensorinv,
    np.linalg.tensorsolve: _tensorsolve,
    np.linalg.slogdet: _slogdet,
}
