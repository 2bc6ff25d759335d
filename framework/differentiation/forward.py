"""Forward mode: each array carries its tangent with it (dual numbers), and nothing is kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.structure import as_arrays, matching, rebuild, require_floats
from framework.differentiation.table import Rule, dtype_of
from framework.differentiation.tracing import Position, Trace, Traced


class ForwardTrace(Trace):
    """Applies each function's JVP rule at once; `derivative` is the tangent."""

    def record(self, rule: Rule, traced: list[tuple[Position, Traced]], y: Any, args: Any, kwargs: Any) -> Traced:
        tangent: Any = None
        for position, x in traced:
            if rule.jvp is not None:
                part = rule.jvp(position, x.derivative, y, args, kwargs)
            else:
                part = transposed(rule, position, x.derivative, y, args, kwargs)
            tangent = part if tangent is None else tangent + part
        return Traced(y, self, tangent)


def transposed(rule: Rule, position: Position, tangent: Any, y: Any, args: Any, kwargs: Any) -> Any:
    """A JVP from a VJP rule: g ↦ VJP(g) is linear in g, and its transpose is the JVP."""
    from framework.differentiation.reverse import vjp

    _, pullback = vjp(lambda g: rule.vjp(position, g, y, args, kwargs), np.zeros(np.shape(y), dtype_of(y)))
    return pullback(tangent)[0]


def jvp(function: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Returns f(*primals) and the Jacobian–vector product J·tangents: how the result moves when the arguments do.

    It costs about as much as f and keeps nothing: its memory does not grow with the depth of f.

    Args:
        function: f, in plain NumPy.
        primals: A tuple of its arguments: arrays of floats in any structure.
        tangents: A tuple of the same form and shapes.

    Returns:
        The result and its tangent, of one structure.

    Raises:
        DifferentiationError: Tangents do not match, primals are no floats, or f cannot be differentiated.

    >>> import numpy as np
    >>> y, t = jvp(lambda x: np.array([x[0] ** 2 + x[1], x[0] * x[1]]), (np.array([1.5, 2.0]),), (np.array([0.3, -0.2]),))
    >>> np.round(y, 12).tolist(), np.round(t, 12).tolist()
    ([4.25, 3.0], [0.7, 0.3])
    """
    primals = as_arrays(tuple(primals))
    require_floats(primals, "jvp")
    tangents = matching(tuple(tangents), primals, "tangent")
    trace = ForwardTrace()
    result = as_arrays(function(*rebuild(primals, lambda x, t: Traced(x, trace, t), tangents)))

    def is_mine(y: Any) -> bool:
        return isinstance(y, Traced) and y.trace is trace

    values = rebuild(result, lambda y: y.value if is_mine(y) else y)
    moved = rebuild(result, lambda y: y.derivative if is_mine(y) else np.zeros(np.shape(y), dtype_of(y)))
    return values, moved
