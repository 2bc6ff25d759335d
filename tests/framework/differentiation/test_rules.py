"""Every rule: both modes against differences, transposes of each other, to second order, on awkward shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framework import Key
from framework.differentiation import check_grads, grad, jvp, vjp
from framework.differentiation.rules.indexing import put_items, take_items
from framework.differentiation.rules.linear_algebra import log_abs_det
from framework.differentiation.rules.shapes import array_of, cast
from framework.differentiation.table import CONSTANT, DERIVED, RULES

Maker = Callable[..., np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return Key(1).fold(*shape).generator().standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return 0.5 + np.abs(normal(*shape))


def small(*shape: int) -> np.ndarray:
    return 0.9 * np.tanh(normal(*shape))


def definite(*shape: int) -> np.ndarray:
    a = normal(*shape)
    return a @ np.swapaxes(a, -1, -2) + 3 * np.eye(shape[-1])


#: For elementwise functions: where their arguments may lie.
DOMAINS: dict[Any, Maker] = {
    **dict.fromkeys(
        (np.sqrt, np.log, np.log2, np.log10, np.cbrt, np.reciprocal, np.power, np.float_power, np.remainder, np.fmod),
        positive,
    ),
    **dict.fromkeys((np.arcsin, np.arccos, np.arctanh, np.log1p), small),
    np.arccosh: lambda *shape: 1.5 + positive(*shape),
}
TWO = {f for f in RULES if isinstance(f, np.ufunc) and f.nin == 2 and f is not np.matmul}
ONE = {f for f, rule in RULES.items() if rule.kind == "elementwise"} - TWO


def arguments(function: Any, *shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(DOMAINS.get(function, normal)(*shape) + 0.1 * i for i, shape in enumerate(shapes))


@pytest.mark.parametrize("function", sorted(ONE, key=lambda f: f.__name__), ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)], ids=str)
def test_elementwise_functions_of_one_argument(function: Any, shape: tuple[int, ...]) -> None:
    check_grads(function, arguments(function, shape))


BROADCASTS = [
    ((), ()),
    ((3,), ()),
    ((), (3,)),
    ((2, 3), (3,)),
    ((2, 1), (1, 3)),
    ((1,), (2, 3)),
    ((4, 1, 3), (2, 1)),
    ((0, 3), (1, 3)),
]


@pytest.mark.parametrize("function", sorted(TWO, key=lambda f: f.__name__), ids=lambda f: f.__name__)
@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
def test_elementwise_functions_of_two_arguments_broadcast_in_every_pattern(function: Any, shapes: Any) -> None:
    a, b = arguments(function, *shapes)
    if function is np.copysign:
        check_grads(lambda x: function(x, b), (a,))
    else:
        check_grads(function, (a, b))


A, B, C = normal(3, 4), normal(4, 2), normal(2, 3, 4)
X = normal(5)
CASES: dict[str, tuple[Any, Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "sum": (np.sum, lambda x: np.sum(x), (A,)),
    "sum axis": (np.sum, lambda x: np.sum(x, axis=1), (A,)),
    "sum axes kept": (np.sum, lambda x: np.sum(x, axis=(0, -1), keepdims=True), (C,)),
    "sum 0-d": (np.sum, lambda x: np.sum(x), (normal(),)),
    "sum empty": (np.sum, lambda x: np.sum(x, axis=0), (normal(0, 3),)),
    "sum of a strided view": (np.sum, lambda x: np.sum(x[::-1, ::2].T, axis=0) ** 2, (A,)),
    "max": (np.max, lambda x: np.max(x), (A,)),
    "max axis": (np.max, lambda x: np.max(x, axis=0), (C,)),
    "min axis kept": (np.min, lambda x: np.min(x, axis=(0, 2), keepdims=True), (C,)),
    "prod": (np.prod, lambda x: np.prod(x), (X,)),
    "prod axis": (np.prod, lambda x: np.prod(x, axis=1), (A,)),
    "prod with a zero": (np.prod, lambda x: np.prod(x, axis=0), (np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 5.0]]),)),
    "cumsum": (np.cumsum, lambda x: np.cumsum(x, axis=1) ** 2, (A,)),
    "cumsum flat": (np.cumsum, lambda x: np.cumsum(x) ** 2, (A,)),
    "cumprod": (np.cumprod, lambda x: np.cumprod(x, axis=1), (A,)),
    "mean": (np.mean, lambda x: np.mean(x, axis=(1,), keepdims=True) ** 2, (A,)),
    "var": (np.var, lambda x: np.var(x, axis=0, ddof=1), (A,)),
    "std": (np.std, lambda x: np.std(x), (A,)),
    "average": (np.average, lambda x, w: np.average(x, axis=1, weights=w), (A, positive(4))),
    "ptp": (np.ptp, lambda x: np.ptp(x, axis=1), (A,)),
    "amax": (np.amax, lambda x: np.amax(x, axis=1), (A,)),
    "amin": (np.amin, lambda x: np.amin(x, axis=1), (A,)),
    "median": (np.median, lambda x: np.median(x, axis=1), (A,)),
    "reshape": (np.reshape, lambda x: np.reshape(x, (2, -1)) ** 2, (A,)),
    "reshape method": (np.reshape, lambda x: x.reshape(6, 2) ** 2, (A,)),
    "ravel": (np.ravel, lambda x: np.ravel(x.T) ** 2, (A,)),
    "squeeze": (np.squeeze, lambda x: np.squeeze(x[None]) ** 2, (A,)),
    "expand_dims": (np.expand_dims, lambda x: np.expand_dims(x, (0, 2)) ** 2, (A,)),
    "atleast_1d": (np.atleast_1d, lambda x: np.atleast_1d(x) ** 2, (normal(),)),
    "atleast_2d": (np.atleast_2d, lambda x: np.atleast_2d(x) ** 2, (X,)),
    "atleast_3d": (np.atleast_3d, lambda x: np.atleast_3d(x) ** 2, (A,)),
    "copy": (np.copy, lambda x: np.copy(x) ** 2, (A,)),
    "transpose": (np.transpose, lambda x: np.transpose(x, (2, 0, 1)) ** 2 * C.transpose(2, 0, 1), (C,)),
    "swapaxes": (np.swapaxes, lambda x: x.swapaxes(0, 2) ** 2, (C,)),
    "moveaxis": (np.moveaxis, lambda x: np.moveaxis(x, 0, -1) ** 2, (C,)),
    "flip": (np.flip, lambda x: np.flip(x, 1) ** 2 * A, (A,)),
    "roll": (np.roll, lambda x: np.roll(x, (1, 2), (0, 1)) ** 2 * A, (A,)),
    "rot90": (np.rot90, lambda x: np.rot90(x) ** 2 * A.T, (A,)),
    "broadcast_to": (np.broadcast_to, lambda x: np.broadcast_to(x, (2, 3, 4)) * C, (normal(3, 1),)),
    "tile": (np.tile, lambda x: np.tile(x, (2, 3)) ** 2, (A,)),
    "tril": (np.tril, lambda x: np.tril(x, -1) ** 2, (A,)),
    "triu": (np.triu, lambda x: np.triu(x, 1) ** 2, (A,)),
    "concatenate": (np.concatenate, lambda x, y: np.concatenate([x, y * y, x], axis=1) ** 2, (A, normal(3, 2))),
    "concatenate flat": (np.concatenate, lambda x, y: np.concatenate([x, y], axis=None) ** 2, (A, X)),
    "stack": (np.stack, lambda x, y: np.stack([x, y, x * y], axis=1) ** 2, (A, A + 1)),
    "vstack": (np.vstack, lambda x, y: np.vstack([x, y]) ** 2, (X, X + 1)),
    "hstack": (np.hstack, lambda x, y: np.hstack([x, y]) ** 2, (A, A + 1)),
    "dstack": (np.dstack, lambda x, y: np.dstack([x, y]) ** 2, (A, A + 1)),
    "column_stack": (np.column_stack, lambda x, y: np.column_stack([x, y]) ** 2, (X, X + 1)),
    "append": (np.append, lambda x, y: np.append(x, y, axis=0) ** 2, (A, A + 1)),
    "split": (np.split, lambda x: np.split(x, [1, 3], axis=1)[1] ** 2, (A,)),
    "array_split": (np.array_split, lambda x: np.array_split(x, 3)[0] ** 2, (X,)),
    "hsplit": (np.hsplit, lambda x: np.hsplit(x, 2)[1] ** 2, (A,)),
    "vsplit": (np.vsplit, lambda x: np.vsplit(x, 3)[1] ** 2, (A,)),
    "diff": (np.diff, lambda x: np.diff(x, 2, axis=1) ** 2, (A,)),
    "fliplr": (np.fliplr, lambda x: np.fliplr(x) * A, (A,)),
    "flipud": (np.flipud, lambda x: np.flipud(x) * A, (A,)),
    "rollaxis": (np.rollaxis, lambda x: np.rollaxis(x, 2) ** 2, (C,)),
    "matrix_transpose": (np.matrix_transpose, lambda x: np.matrix_transpose(x) ** 2, (C,)),
    "clip": (np.clip, lambda x: np.clip(x, -0.4, 0.6) ** 2, (A,)),
    "array of scalars": (array_of, lambda x: np.array([[x[0] * x[1], 2.0], [x[2], x[0]]]) ** 2, (X,)),
    "pad": (np.pad, lambda x: np.pad(x, ((1, 2), (0, 1))) ** 2, (A,)),
    "where": (np.where, lambda x, y: np.where(A > 0, x, y * y), (A, normal(4))),
    "cast": (cast, lambda x: cast(x * x, np.float64), (A,)),
    "index": (take_items, lambda x: x[1] ** 2, (A,)),
    "index slices": (take_items, lambda x: x[::-1, None, 1:3, ...] ** 2, (A,)),
    "index twice": (take_items, lambda x: x[[0, 0, 2], [1, 1, 3]] ** 2, (A,)),
    "index mask": (take_items, lambda x: x[A > 0] ** 2, (A,)),
    "index mixed": (take_items, lambda x: x[:, [2, 0]] ** 2, (A,)),
    "put": (put_items, lambda x: put_items(x * x, ([0, 0, 1, 2, 2],), (4,)) ** 2, (X,)),
    "take": (np.take, lambda x: np.take(x, [2, 0, 2], axis=1) ** 2, (A,)),
    "take_along_axis": (np.take_along_axis, lambda x: np.take_along_axis(x, np.array([[0], [3], [3]]), 1) ** 2, (A,)),
    "sort": (np.sort, lambda x: np.sort(x, axis=1) * A, (A,)),
    "repeat": (np.repeat, lambda x: np.repeat(x, [2, 0, 3], axis=0) ** 2, (A,)),
    "diagonal": (np.diagonal, lambda x: np.diagonal(x, 1) ** 2, (A,)),
    "diag": (np.diag, lambda x: np.diag(x, -1) ** 2, (X,)),
    "trace": (np.trace, lambda x: np.trace(x) ** 2, (A,)),
    "matmul": (np.matmul, lambda a, b: a @ b, (A, B)),
    "matmul stacked": (np.matmul, lambda a, b: np.matmul(a, b), (C, normal(1, 4, 5))),
    "matmul vectors": (np.matmul, lambda a, b: a @ b, (normal(4), normal(4))),
    "matmul vector matrix": (np.matmul, lambda a, b: a @ b, (normal(4), B)),
    "matmul matrix vector": (np.matmul, lambda a, b: a @ b, (C, normal(4))),
    "einsum": (np.einsum, lambda a, b: np.einsum("ij,jk->ki", a, b), (A, B)),
    "einsum implicit": (np.einsum, lambda a, b: np.einsum("ij,jk", a, b), (A, B)),
    "einsum ellipsis": (np.einsum, lambda a, b: np.einsum("...ij,j->...", a, b), (C, normal(4))),
    "einsum of one": (np.einsum, lambda a: np.einsum("ij->j", a) ** 2, (A,)),
    "dot": (np.dot, lambda a, b: np.dot(a, b), (C, B)),
    "tensordot": (np.tensordot, lambda a, b: np.tensordot(a, b, axes=([2, 1], [0, 1])), (C, normal(4, 3, 2))),
    "vdot": (np.vdot, lambda a, b: np.vdot(a, b), (A, A + 1)),
    "inner": (np.inner, lambda a, b: np.inner(a, b), (A, C)),
    "outer": (np.outer, lambda a, b: np.outer(a, b), (X, normal(2))),
    "kron": (np.kron, lambda a, b: np.kron(a, b), (A, normal(2))),
    "cross": (np.cross, lambda a, b: np.cross(a, b), (normal(2, 3), normal(3))),
    "vecdot": (np.vecdot, lambda a, b: np.vecdot(a, b), (C, A)),
    "inv": (np.linalg.inv, lambda a: np.linalg.inv(a), (definite(2, 3, 3),)),
    "det": (np.linalg.det, lambda a: np.linalg.det(a), (definite(2, 3, 3),)),
    "slogdet": (np.linalg.slogdet, lambda a: np.linalg.slogdet(a)[1], (definite(3, 3),)),
    "log_abs_det": (log_abs_det, lambda a: log_abs_det(a), (definite(3, 3),)),
    "cholesky": (np.linalg.cholesky, lambda a: np.linalg.cholesky(a @ np.swapaxes(a, -1, -2)), (definite(3, 3),)),
    "solve": (np.linalg.solve, lambda a, b: np.linalg.solve(a, b), (definite(3, 3), normal(3, 2))),
    "solve a vector": (np.linalg.solve, lambda a, b: np.linalg.solve(a, b), (definite(3, 3), normal(3))),
    "norm": (np.linalg.norm, lambda a: np.linalg.norm(a), (A,)),
    "norm axis": (np.linalg.norm, lambda a: np.linalg.norm(a, axis=1, keepdims=True), (A,)),
    "norm 1": (np.linalg.norm, lambda a: np.linalg.norm(a, 1, axis=0), (A,)),
    "norm 3": (np.linalg.norm, lambda a: np.linalg.norm(a, 3, axis=0), (A,)),
    "norm inf": (np.linalg.norm, lambda a: np.linalg.norm(a, np.inf, axis=0), (A,)),
    "multi_dot": (np.linalg.multi_dot, lambda a, b: np.linalg.multi_dot([a, b, b.T]), (A, B)),
    "broadcast_arrays": (np.broadcast_arrays, lambda x, y: np.broadcast_arrays(x, y)[1] * A, (A, normal(4))),
    "corrcoef": (np.corrcoef, lambda x: np.corrcoef(x), (A,)),
    "cov": (np.cov, lambda x: np.cov(x), (A,)),
    "diagflat": (np.diagflat, lambda x: np.diagflat(x, 1) ** 2, (A,)),
    "dsplit": (np.dsplit, lambda x: np.dsplit(x, 2)[1] ** 2, (C,)),
    "linalg.cross": (np.linalg.cross, lambda a, b: np.linalg.cross(a, b), (normal(2, 3), normal(2, 3) + 1)),
    "linalg.diagonal": (np.linalg.diagonal, lambda x: np.linalg.diagonal(x) ** 2, (C,)),
    "linalg.matmul": (np.linalg.matmul, lambda a, b: np.linalg.matmul(a, b), (A, B)),
    "linalg.matrix_norm": (np.linalg.matrix_norm, lambda a: np.linalg.matrix_norm(a), (C,)),
    "linalg.matrix_transpose": (np.linalg.matrix_transpose, lambda a: np.linalg.matrix_transpose(a) ** 2, (C,)),
    "linalg.outer": (np.linalg.outer, lambda a, b: np.linalg.outer(a, b), (X, normal(2))),
    "linalg.tensordot": (np.linalg.tensordot, lambda a, b: np.linalg.tensordot(a, b, axes=1), (C, B)),
    "linalg.trace": (np.linalg.trace, lambda a: np.linalg.trace(a) ** 2, (C,)),
    "linalg.vecdot": (np.linalg.vecdot, lambda a, b: np.linalg.vecdot(a, b), (C, A)),
    "linalg.vector_norm": (np.linalg.vector_norm, lambda a: np.linalg.vector_norm(a, axis=1), (A,)),
    "tensorinv": (np.linalg.tensorinv, lambda a: np.linalg.tensorinv(a, ind=1), (definite(6, 6).reshape(6, 2, 3),)),
    "tensorsolve": (np.linalg.tensorsolve, lambda a, b: np.linalg.tensorsolve(a, b), (definite(6, 6).reshape(6, 2, 3), normal(6))),
    "meshgrid": (np.meshgrid, lambda a, b: np.meshgrid(a, b)[0] * np.meshgrid(a, b)[1], (X, normal(3))),
    "nanmax": (np.nanmax, lambda a: np.nanmax(a, axis=1), (A,)),
    "nanmean": (np.nanmean, lambda a: np.nanmean(a, axis=1) ** 2, (A,)),
    "nanmin": (np.nanmin, lambda a: np.nanmin(a, axis=1), (A,)),
    "nanprod": (np.nanprod, lambda a: np.nanprod(a, axis=1), (A,)),
    "nansum": (np.nansum, lambda a: np.nansum(a, axis=1) ** 2, (A,)),
    "percentile": (np.percentile, lambda a: np.percentile(a, 30.0, axis=1), (A,)),
    "quantile": (np.quantile, lambda a: np.quantile(a, 0.3, axis=0), (A,)),
    "trapezoid": (np.trapezoid, lambda a: np.trapezoid(a, dx=0.5, axis=1) ** 2, (A,)),
    "unstack": (np.unstack, lambda a: np.unstack(a)[1] ** 2, (A,)),
    "vander": (np.vander, lambda a: np.vander(a, 4), (X,)),
    "matrix_power": (np.linalg.matrix_power, lambda a: np.linalg.matrix_power(a, 5), (normal(3, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rules_agree_with_differences_in_both_modes_to_second_order(name: str) -> None:
    _, function, args = CASES[name]
    check_grads(function, args)


def test_every_function_of_the_tables_has_a_case() -> None:
    covered = ONE | TWO | {case[0] for case in CASES.values()}
    # Rules that tests and users register are not the tables'.
    assert {f for f, rule in RULES.items() if rule.family != "custom"} | set(DERIVED) <= covered
    assert not CONSTANT & (set(RULES) | set(DERIVED))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_rule_changes_a_dtype_and_gradients_have_the_shape_of_their_argument(name: str, dtype: str) -> None:
    _, function, args = CASES[name]
    given = tuple(a.astype(dtype) for a in args)
    # Constants in a case are float64 arrays, whose products with float32 are float64 in NumPy itself.
    y = function(*given)
    value, pullback = vjp(function, *given)
    # Functions that are written with others round otherwise than NumPy's own loops.
    np.testing.assert_allclose(value, y, rtol=1e-5 if dtype == "float32" else 1e-12)
    for a, g in zip(given, pullback(np.ones_like(y)), strict=True):
        assert (g.shape, g.dtype) == (a.shape, a.dtype)
    tangent = jvp(function, given, given)[1]
    assert (np.shape(tangent), tangent.dtype) == (np.shape(y), y.dtype)


def test_conventions_where_a_derivative_does_not_exist() -> None:
    assert grad(np.abs)(0.0) == 0
    assert grad(lambda x: np.maximum(x, 0.0))(0.0) == 0.5
    assert grad(lambda x: np.max(x))(np.array([1.0, 3.0, 3.0])).tolist() == [0, 0.5, 0.5]
    assert grad(lambda x: np.linalg.norm(x))(np.zeros(3)).tolist() == [0, 0, 0]
    assert grad(lambda x: x**0)(0.0) == 0
    assert grad(lambda x: x**2)(0.0) == 0
    assert grad(lambda p: np.power(0.0, p))(2.0) == 0
    assert grad(lambda x: np.clip(x, 0.0, 1.0))(0.0) == 1
    assert np.isfinite(grad(lambda x: np.sinc(x))(0.0))
