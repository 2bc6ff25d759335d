"""Forward mode: each array carries its tangent with it (dual numbers), and nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.differentiation.structure import as_arrays, called, matching, rebuild, require_floats, require_tuple
from framework.differentiation.table import Rule, dtype_of
from framework.differentiation.tracing import Trace, Traced, single


class ForwardTrace(Trace):
    """Applies each function's JVP rule at once; `derivative` is the tangent."""

    def call(
        self, function: Any, rule: Rule, places: list[int], traced: list[Traced], args: Sequence[Any], kwargs: Any
    ) -> Traced:
        y = single(function, function(*args, **kwargs))
        return Traced(y, self, tangent_of(rule, places, [x.derivative for x in traced], y, args, kwargs))


def tangent_of(rule: Rule, places: list[int], tangents: list[Any], y: Any, args: Any, kwargs: Any) -> Any:
    """The tangent of a call's result: the sum of what the tangents of its arguments give."""
    if rule.jvp is not None and rule.joint:
        return rule.jvp(places, tangents, y, args, kwargs)
    total: Any = None
    for place, tangent in zip(places, tangents, strict=True):
        jvp_of = rule.jvp if rule.jvp is not None else transposed(rule)
        part = jvp_of(place, tangent, y, args, kwargs)
        total = part if total is None else total + part
    return total


def transposed(rule: Rule) -> Any:
    """A JVP from a VJP rule: g ↦ VJP(g) is linear in g, and its transpose is the JVP."""
    from framework.differentiation.reverse import vjp

    def jvp_of(place: int, tangent: Any, y: Any, args: Any, kwargs: Any) -> Any:
        def back(g: Any) -> Any:
            return rule.vjp([place], g, y, args, kwargs)[0] if rule.joint else rule.vjp(place, g, y, args, kwargs)

        _, pullback = vjp(back, np.zeros(np.shape(y), dtype_of(y)))
        return pullback(tangent, last=True)[0]

    return jvp_of


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
    primals = as_arrays(require_tuple(primals, "primals"))
    require_floats(primals, "jvp")
    tangents = matching(require_tuple(tangents, "tangents"), primals, "tangent")
    trace = ForwardTrace()
    result = called(function, rebuild(primals, lambda x, t: Traced(x, trace, t), tangents), trace)

    def is_mine(y: Any) -> bool:
        return isinstance(y, Traced) and y.owner is trace

    values = rebuild(result, lambda y: y.value if is_mine(y) else y)
    moved = rebuild(result, lambda y: y.derivative if is_mine(y) else np.zeros(np.shape(y), dtype_of(y)))
    return values, moved
