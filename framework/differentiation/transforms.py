"""What is built from JVPs and VJPs: Jacobians, Hessians, and their products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad, vjp
from framework.differentiation.structure import leaves, rebuild
from framework.differentiation.tracing import DifferentiationError
from framework.memory import Array
from framework.sizes import format_size, parse_size

#: A dense Jacobian of more bytes is refused unless a larger limit is given.
LIMIT = "1GiB"


def linearize(function: Any, *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Returns f(*primals) and the linear map tangents ↦ JVP at these primals.

    The forward pass runs once more for each product; nothing is kept between them but the primals.

    Args:
        function: f, in plain NumPy.
        *primals: Its arguments.
    """
    value, _ = jvp(function, primals, rebuild(tuple(primals), lambda x: np.zeros(np.shape(x))))
    return value, lambda *tangents: jvp(function, primals, tangents)[1]


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
    x = np.asarray(x)
    y = function(x)
    m, n = int(np.size(y)), int(np.size(x))
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"unknown mode {mode!r}; known: auto, forward, reverse")
    chosen = ("forward" if n <= m else "reverse") if mode == "auto" else mode
    why = f"m = {m} results and n = {n} arguments: n JVPs give the columns, m VJPs the rows"
    reason = f"{why}; {'asked for' if mode != 'auto' else 'fewer products'}: {chosen}"
    return JacobianPlan(chosen, n if chosen == "forward" else m, (m, n), m * n * x.dtype.itemsize, reason)


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

    def run(x: Any) -> Any:
        x = np.asarray(x) if not hasattr(x, "trace") or isinstance(x, np.ndarray) else x
        value, pullback = vjp(function, x)
        m, n = int(np.size(value)), int(np.size(x))
        nbytes = m * n * np.dtype(x.dtype).itemsize
        if nbytes > parse_size(limit):
            raise DifferentiationError(
                f"the Jacobian of {m} results by {n} arguments takes {nbytes:,} bytes ({format_size(nbytes)}), more than the limit "
                f"of {limit}; use products with it (jvp, vjp, jacobian_operator), or give a larger limit"
            )
        chosen = ("forward" if n <= m else "reverse") if mode == "auto" else mode
        if chosen == "reverse":
            rows = [pullback(_basis(np.shape(value), i, value.dtype))[0] for i in range(m)]
            return np.reshape(np.stack([np.ravel(row) for row in rows]), (*np.shape(value), *np.shape(x)))
        columns = [jvp(function, (x,), (_basis(np.shape(x), j, x.dtype),))[1] for j in range(n)]
        whole = np.stack([np.ravel(column) for column in columns], axis=1)
        return np.reshape(whole, (*np.shape(value), *np.shape(x)))

    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f"unknown mode {mode!r}; known: auto, forward, reverse")
    return run


def _basis(shape: tuple[int, ...], number: int, dtype: Any) -> Array:
    e = np.zeros(int(np.prod(shape, dtype=int)), dtype)
    e[number] = 1
    return e.reshape(shape)


class JacobianOperator:
    """The Jacobian of f at x as a black box of shape (m, n): only its products exist.

    It has what scipy's `aslinearoperator` asks for: shape, dtype, matvec, rmatvec.

    Args:
        function: f, from one array to one array.
        x: Where.
    """

    def __init__(self, function: Any, x: Any, transposed: bool = False) -> None:
        self._function, self._x, self._transposed = function, np.asarray(x), transposed
        self._value, self._pullback = vjp(function, self._x)
        shape = (int(np.size(self._value)), int(np.size(self._x)))
        self.shape = shape[::-1] if transposed else shape
        self.dtype = self._x.dtype

    def matvec(self, v: Any) -> Any:
        """J v."""
        return self._back(v) if self._transposed else self._forth(v)

    def rmatvec(self, v: Any) -> Any:
        """Jᵀ v."""
        return self._forth(v) if self._transposed else self._back(v)

    @property
    def T(self) -> JacobianOperator:  # noqa: N802
        return JacobianOperator(self._function, self._x, not self._transposed)

    def __matmul__(self, v: Any) -> Any:
        return self.matvec(v)

    def _forth(self, v: Any) -> Any:
        return np.ravel(jvp(self._function, (self._x,), (np.reshape(v, np.shape(self._x)),))[1])

    def _back(self, v: Any) -> Any:
        return np.ravel(self._pullback(np.reshape(v, np.shape(self._value)))[0])


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
