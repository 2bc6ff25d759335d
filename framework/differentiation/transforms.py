"""What is built from JVPs and VJPs: Jacobians, Hessians, and their products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.reverse import Pullback, grad, vjp
from framework.differentiation.structure import (
    as_arrays,
    as_vector,
    from_vector,
    leaves,
    rebuild,
    require_tuple,
    size_of,
)
from framework.differentiation.table import Like, dtype_of
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
        function: f, in plain NumPy.
        x: The argument: an array, or arrays in any structure.
        mode: "auto", or "forward" or "reverse" to decide oneself.
    """
    return _plan(as_arrays(function(x)), as_arrays(x), mode)


def _plan(value: Any, x: Any, mode: str) -> JacobianPlan:
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    m, n = size_of(value), size_of(x)
    chosen = ("forward" if n <= m else "reverse") if mode == "auto" else mode
    why = f"m = {m} results and n = {n} arguments: n JVPs give the columns, m VJPs the rows"
    reason = f"{why}; {'asked for' if mode != 'auto' else 'fewer products'}: {chosen}"
    nbytes = m * sum(int(np.size(leaf)) * dtype_of(leaf).itemsize for leaf in leaves(x))
    return JacobianPlan(chosen, n if chosen == "forward" else m, (m, n), nbytes, reason)


def jacobian(function: Any, mode: str = "auto", limit: int | str = LIMIT) -> Callable[[Any], Any]:
    """Returns a function that gives the dense Jacobian of f: shape (*result, *argument), one product at a time.

    Where the result or the argument is a structure of arrays, the Jacobian has the structure of the result, with the structure of
    the argument in the place of each array: found["y"]["w"] is the derivative of result "y" by argument "w".

    Args:
        function: f, in plain NumPy.
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
        x = as_arrays(x)
        # A JVP along nothing says the result's shape, whatever is nested inside, and keeps no values meanwhile.
        value = jvp(function, (x,), (rebuild(x, _zeros),))[0]
        plan = _plan(value, x, mode)
        if plan.nbytes > parse_size(limit):
            m, n = plan.shape
            raise DifferentiationError(
                f"the Jacobian of {m} results by {n} arguments takes {plan.nbytes:,} bytes ({format_size(plan.nbytes)}), more "
                f"than the limit of {limit}; use products with it (jvp, vjp, jacobian_operator), or give a larger limit"
            )
        if plan.mode == "reverse":
            _, pullback = vjp(function, x)
            rows = ((i, number, pullback(e)[0]) for i, number, e in _basis(value))
            blocks = _filled(rows, value, x, 0)
        else:
            columns = ((j, number, jvp(function, (x,), (e,))[1]) for j, number, e in _basis(x))
            blocks = _filled(columns, value, x, 1)
        each = iter(blocks)
        return rebuild(value, lambda y: rebuild(x, lambda a: np.reshape(next(each), (*np.shape(y), *np.shape(a)))))

    return run


def _filled(products: Iterator[tuple[int, int, Any]], value: Any, x: Any, axis: int) -> list[Any]:
    """The blocks of each array of the result by each of the argument, filled by rows (axis 0) or columns (axis 1) as they come.

    Args:
        products: The number of the array that a row or column belongs to, its number in that, and the product.
        value: The result.
        x: The argument.
        axis: What the products are.
    """
    ys, xs = list(leaves(value)), list(leaves(x))
    blocks: list[Any] = [
        np.empty((int(np.size(y)), int(np.size(a))), dtype_of(y if axis else a)) for y in ys for a in xs
    ]
    traced: dict[int, list[Any]] = {}
    for place, number, product in products:
        for other, part in enumerate(leaves(product)):
            at = place * len(xs) + other if axis == 0 else other * len(xs) + place
            if isinstance(part, Traced):  # an array cannot hold these
                traced.setdefault(at, []).append(np.ravel(part))
            else:
                blocks[at][(slice(None),) * axis + (number,)] = np.ravel(part)
    for at, parts in traced.items():
        blocks[at] = np.stack(parts, axis=axis)
    return blocks


def _zeros(a: Any) -> Array:
    return np.zeros(np.shape(a), dtype_of(a))


def _basis(tree: Any) -> Iterator[tuple[int, int, Any]]:
    """For each number of a structure: that of its array, its own in that, and the structure of zeros with a one there."""
    for place, leaf in enumerate(leaves(tree)):
        for number in range(int(np.size(leaf))):
            e = rebuild(tree, _zeros)
            np.reshape(list(leaves(e))[place], -1)[number] = 1
            yield place, number, e


class JacobianOperator:
    """The Jacobian of f at x as a black box of shape (m, n): only its products exist.

    It has what scipy's `aslinearoperator` asks for: shape, dtype, matvec, rmatvec. The forward pass is kept from the first
    `rmatvec` on. The numbers of a structure stand in its order.

    Args:
        function: f, in plain NumPy.
        x: Where: an array, or arrays in any structure.
    """

    def __init__(self, function: Any, x: Any) -> None:
        self._function, self._x = function, as_arrays(x)
        self._pullback: Pullback | None = None
        value, nothing = jvp(function, (self._x,), (rebuild(self._x, _zeros),))
        self._result = rebuild(value, Like)
        self.shape = (size_of(value), size_of(self._x))
        self.dtype = np.result_type(*map(dtype_of, leaves(nothing)))

    def matvec(self, v: Any) -> Any:
        """J v, one JVP; v and the result are vectors."""
        return as_vector(jvp(self._function, (self._x,), (self._of(self._x, v),))[1])

    def rmatvec(self, v: Any) -> Any:
        """Jᵀ v, one VJP; v and the result are vectors."""
        if self._pullback is None:  # whoever only pushes forward keeps nothing
            self._pullback = vjp(self._function, self._x)[1]
        return as_vector(self._pullback(self._of(self._result, v))[0])

    def _of(self, tree: Any, v: Any) -> Any:
        """The structure whose numbers a vector holds, which may be a column, too."""
        v = np.ravel(v)
        if len(v) != size_of(tree):
            raise ValueError(
                f"a product with this Jacobian takes a vector of {size_of(tree)} numbers, but this one has {len(v)}"
            )
        return from_vector(tree, v)

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
    primals, tangents = require_tuple(primals, "primals"), require_tuple(tangents, "tangents")
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
    """Returns a function that gives the dense Hessian of a scalar function: shape (*argument, *argument).

    For an argument that is a structure see `jacobian`: found["a"]["b"] is the derivative by "a" and "b".
    """
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
