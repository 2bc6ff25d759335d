"""The derivative at a point as a linear map: one pass over f is recorded, and tangents are pushed through the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from framework.differentiation.forward import tangent_of
from framework.differentiation.reverse import Node, in_order
from framework.differentiation.saved import Keeper, Saved
from framework.differentiation.structure import as_arrays, called, leaves, matching, rebuild, require_floats
from framework.differentiation.table import Like, Rule, describe
from framework.differentiation.tracing import Trace, Traced, single


class _RecordingTrace(Trace):
    """Records each call with its values, which the JVP rules read."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    def call(
        self, function: Any, rule: Rule, places: list[int], traced: list[Traced], args: Sequence[Any], kwargs: Any
    ) -> Traced:
        y = single(function, function(*args, **kwargs))
        arrays = [a for a in (*args, y) if type(a) is np.ndarray]
        saved = Saved(arrays, self.keeper, describe(function)) if arrays else None
        return Traced(y, self, Node(function, rule, places, [x.derivative for x in traced], y, args, kwargs, saved))


def linearize(function: Any, *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Returns f(*primals) and the linear map tangents ↦ JVP at these primals.

    f runs once, and its values are kept for the map: use it where many tangents are pushed forward (the columns of a Jacobian,
    the steps of a conjugate gradient method), and `jvp` for a single one, which keeps nothing.

    Args:
        function: f, in plain NumPy.
        *primals: Its arguments: arrays of floats in any structure.

    Raises:
        DifferentiationError: As for `jvp`.

    >>> import numpy as np
    >>> value, push = linearize(lambda x: np.sin(x) * x, np.array([0.0, np.pi]))
    >>> np.round(push(np.array([1.0, 1.0])), 12).tolist()
    [0.0, -3.14159265359]
    """
    primals = as_arrays(primals)
    require_floats(primals, "linearize")
    trace = _RecordingTrace()
    traced = rebuild(primals, lambda x: Traced(x, trace, Node()))
    starts = [x.derivative for x in leaves(traced)]
    result = called(function, traced, trace)
    del traced

    def is_mine(y: Any) -> bool:
        return isinstance(y, Traced) and y.owner is trace

    values = rebuild(result, lambda y: y.value if is_mine(y) else y)
    ends = rebuild(result, lambda y: y.derivative if is_mine(y) else Like(np.asarray(y)))
    nodes = in_order([end for end in leaves(ends) if isinstance(end, Node)])
    del result

    def push(*tangents: Any) -> Any:
        given = list(leaves(matching(tuple(tangents), primals, "tangent")))
        moved: dict[Node, Any] = dict(zip(starts, given, strict=True))
        for node in nodes:
            assert node.rule is not None
            of_parents = [moved[parent] for parent in node.parents]
            moved[node] = tangent_of(node.rule, node.places, of_parents, node.y, node.args, node.kwargs)

        def own(end: Any) -> Any:
            if isinstance(end, Like):
                return np.zeros(end.shape, end.dtype)
            tangent = moved[end]  # which may be one that was given
            return np.copy(tangent) if any(tangent is t for t in given) else tangent

        return rebuild(ends, own)

    return values, push
