"""What is built from JVPs and VJPs: Jacobians, Hessians, and their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.reverse import Pullback, grad, vjp
from framework.differentiation.structure import leaves
from framework.differentiation.table import dtype_of
from framework.differentiation.tracing import DifferentiationError, Traced
from framework.memory import Array
from framework.sizes import format_size, parse_size

#: A dense Jacobian of more bytes is refused unless a larger limit is given.
LIMIT = "1GiB"
MODES = ("auto", "forward", "reverse")


@dataclass(frozen=True)
class JacobianPlan:
    """How a Jacobian is computed, and why.

    Attributes:
        mode: "forward" (a column a JVP) or "reverse" (a row a VJP).
        products: How many products that takes.
        shape: (m, n), the sizes of the result and of the argument.
        nbytes: Bytes of the matrix.
        reason: The decision in words.
    """

    mode: str
    products: int
    shape: tuple[int, int]
    nbytes: int
    reason: str


def jacobian_plan(function: Any, x: Any, mode: str = "auto") -> JacobianPlan:
    """Decides by which products the Jacobian of f at x is computed.

    The rule: n JVPs give the columns, m VJPs the rows. Fewer products win; at a tie forward mode, which keeps nothing.

    Args:
        function: f, from one array to one array.
        x: The argument.
        mode: "auto", or "forward" or "reverse" to decide oneself.
    """
    return _plan(np.shape(function(x)), x, mode)


def _plan(result: tuple[int, ...], x: Any, mode: str) -> JacobianPlan:
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    m, n = math.prod(result), int(np.size(x))
    chosen = ("forward" if n <= m else "reverse") if mode == "auto" else mode
    why = f"m = {m} results and n = {n} arguments: n JVPs give the columns, m VJPs the rows"
    reason = f"{why}; {'asked for' if mode != 'auto' else 'fewer products'}: {chosen}"
    return JacobianPlan(chosen, n if chosen == "forward" else m, (m, n), m * n * dtype_of(x).itemsize, reason)


def jacobian(function: Any, mode: str = "auto", limit: int | str = LIMIT) -> Callable[[Any], Any]:
    """Returns a function that gives the dense Jacobian of f: shape (*result, *argument), one product at a time.

    Args:
        function: f, from one array to one array.
        mode: "auto" (see `jacobian_plan`), "forward" or "reverse".
        limit: The most bytes the matrix may take.

    Raises:
        DifferentiationError: When called: the matrix would pass the limit; the message says its bytes.

    >>> import numpy as np
    >>> jacobian(lambda x: np.array([x[0] * x[1], x[1] ** 2]))(np.array([2.0, 3.0])).tolist()
    [[3.0, 2.0], [0.0, 6.0]]
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")

    def run(x: Any) -> Any:
        x = x if isinstance(x, Traced) else np.asarray(x)
        # A JVP along nothing says the result's shape, whatever is nested inside, and keeps no values meanwhile.
        value = jvp(function, (x,), (np.zeros(np.shape(x), dtype_of(x)),))[0]
        plan = _plan(np.shape(value), x, mode)
        if plan.nbytes > parse_size(limit):
            m, n = plan.shape
            raise DifferentiationError(
                f"the Jacobian of {m} results by {n} arguments takes {plan.nbytes:,} bytes ({format_size(plan.nbytes)}), more "
                f"than the limit of {limit}; use products with it (jvp, vjp, jacobian_operator), or give a larger limit"
            )
        if plan.mode == "reverse":
            _, pullback = vjp(function, x)
            rows = (pullback(_basis(np.shape(value), i, dtype_of(value)))[0] for i in range(plan.products))
            matrix = _filled(rows, plan.shape, 0, dtype_of(x))
        else:
            columns = (jvp(function, (x,), (_basis(np.shape(x), j, dtype_of(x)),))[1] for j in range(plan.products))
            matrix = _filled(columns, plan.shape, 1, dtype_of(value))
        return np.reshape(matrix, (*np.shape(value), *np.shape(x)))

    return run


def _filled(products: Iterator[Any], shape: tuple[int, int], axis: int, dtype: np.dtype[Any]) -> Any:
    """A matrix of rows (axis 0) or columns (axis 1), each put in its place as it comes."""
    matrix: Any = np.empty(shape, dtype)
    traced = []
    for number, product in enumerate(products):
        if isinstance(product, Traced):  # an array cannot hold these
            traced.append(np.ravel(product))
        else:
            matrix[(slice(None),) * axis + (number,)] = np.ravel(product)
    return np.stack(traced, axis=axis) if traced else matrix


def _basis(shape: tuple[int, ...], number: int, dtype: Any) -> Array:
    e = np.zeros(int(np.prod(shape, dtype=int)), dtype)
    e[number] = 1
    return e.reshape(shape)


class JacobianOperator:
    """The Jacobian of f at x as a black box of shape (m, n): only its products exist.

    It has what scipy's `aslinearoperator` asks for: shape, dtype, matvec, rmatvec. The forward pass is kept from the first
    `rmatvec` on.

    Args:
        function: f, from one array to one array.
        x: Where.
    """

    def __init__(self, function: Any, x: Any) -> None:
        self._function, self._x = function, np.asarray(x)
        self._pullback: Pullback | None = None
        self._result, nothing = jvp(function, (self._x,), (np.zeros(self._x.shape, self._x.dtype),))
        self.shape = (int(np.size(self._result)), int(np.size(self._x)))
        self.dtype = nothing.dtype

    def matvec(self, v: Any) -> Any:
        """J v, one JVP; v and the result are vectors."""
        return np.ravel(jvp(self._function, (self._x,), (np.reshape(v, np.shape(self._x)),))[1])

    def rmatvec(self, v: Any) -> Any:
        """Jᵀ v, one VJP; v and the result are vectors."""
        if self._pullback is None:  # whoever only pushes forward keeps nothing
            self._pullback = vjp(self._function, self._x)[1]
        return np.ravel(self._pullback(np.reshape(v, np.shape(self._result)))[0])

    @property
    def T(self) -> TransposedOperator:  # noqa: N802
        return TransposedOperator(self)

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)


class TransposedOperator:
    """Jᵀ of a `JacobianOperator`, which it shares."""

    def __init__(self, operator: JacobianOperator) -> None:
        self.T, self.shape, self.dtype = operator, operator.shape[::-1], operator.dtype
        self.matvec, self.rmatvec = operator.rmatvec, operator.matvec

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)


def jacobian_operator(function: Any, x: Any) -> JacobianOperator:
    """Returns the Jacobian of f at x as a linear operator; see `JacobianOperator`."""
    return JacobianOperator(function, x)


#: How a Hessian–vector product can be taken.
HVP_MODES = ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")


def hvp(function: Any, primals: Any, tangents: Any, mode: str = "forward-over-reverse") -> Any:
    """Returns the Hessian–vector product of a scalar function, without the Hessian.

    Args:
        function: f, whose result is a scalar.
        primals: A tuple of its arguments.
        tangents: A tuple of the same form: the vector.
        mode: forward-over-reverse (the JVP of the gradient: the cheapest), reverse-over-forward (the gradient of a JVP) or
            reverse-over-reverse (the gradient of ⟨gradient, vector⟩).

    Returns:
        A tuple of the form of the primals; the array itself where there is one primal.

    >>> import numpy as np
    >>> hvp(lambda x: np.sum(x**3), (np.array([1.0, 2.0]),), (np.array([1.0, 1.0]),)).tolist()
    [6.0, 12.0]
    """
    numbers = tuple(range(len(primals)))
    if mode == "forward-over-reverse":
        found = jvp(grad(function, numbers), primals, tangents)[1]
    elif mode == "reverse-over-forward":
        found = grad(lambda *x: jvp(function, x, tangents)[1], numbers)(*primals)
    elif mode == "reverse-over-reverse":
        found = grad(lambda *x: _inner(grad(function, numbers)(*x), tuple(tangents)), numbers)(*primals)
    else:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(HVP_MODES)}")
    return found[0] if len(primals) == 1 else found


def hessian(function: Any) -> Callable[[Any], Any]:
    """Returns a function that gives the dense Hessian of a scalar function: shape (*argument, *argument)."""
    return jacobian(grad(function), mode="forward")


def gauss_newton_vp(inner: Any, outer: Any, x: Any, v: Any) -> Any:
    """Returns the Gauss–Newton product Jᵀ H J v of outer(inner(x)): J of inner at x, H the Hessian of outer at inner(x).

    (Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".)

    Args:
        inner: From the argument to an array (a model's output).
        outer: From that to a scalar (a loss).
        x: The argument.
        v: The vector, like x.
    """
    y, moved = jvp(inner, (x,), (v,))
    _, pullback = vjp(inner, x)
    return pullback(hvp(outer, (y,), (moved,)))[0]


def _inner(a: Any, b: Any) -> Any:
    """⟨a, b⟩ over all arrays of two structures."""
    total: Any = 0.0
    for x, y in zip(leaves(a), leaves(b), strict=True):
        total = total + np.sum(x * y)
    return total
