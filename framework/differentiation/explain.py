"""What a derivative is made of: each operation of a function with its value, tangent and cotangent, for learners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.forward import tangent_of
from framework.differentiation.reverse import Node, backward
from framework.differentiation.structure import (
    as_arrays,
    called,
    leaves,
    matching,
    rebuild,
    require_floats,
    require_tuple,
)
from framework.differentiation.table import Rule, describe, dtype_of
from framework.differentiation.tracing import DifferentiationError, Trace, Traced, single


@dataclass(frozen=True)
class Operation:
    """One call that a function made.

    Attributes:
        output: The name of its result: v1, v2, … in the order of the calls.
        name: The function: np.sin.
        inputs: Its arguments: x for the primal (x0, x1, … for several), v2 for a result, and constants as they are written.
        value: The result.
        tangent: How the result moves when the primals move along their tangents; goes forward.
        cotangent: How the weighted sum of the function's results moves with this result; goes back. Zero where they do not depend
            on it.
    """

    output: str
    name: str
    inputs: tuple[str, ...]
    value: Any
    tangent: Any
    cotangent: Any


@dataclass
class _Both:
    """What an array carries here: a name, a tangent, and a node of the graph."""

    name: str
    tangent: Any
    node: Node


class _ListingTrace(Trace):
    """Does what the traces of both modes do, and writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[str, ...], Any, _Both]] = []

    def call(
        self, function: Any, rule: Rule, places: list[int], traced: list[Traced], args: Sequence[Any], kwargs: Any
    ) -> Traced:
        y = single(function, function(*args, **kwargs))
        tangent = tangent_of(rule, places, [x.derivative.tangent for x in traced], y, args, kwargs)
        node = Node(function, rule, places, [x.derivative.node for x in traced], y, args, kwargs)
        result = _Both(f"v{len(self.calls) + 1}", tangent, node)
        written = list(args[0] if rule.sequence else args)
        for place, x in zip(places, traced, strict=True):
            written[place] = x.derivative
        inputs = tuple(w.name if isinstance(w, _Both) else _constant(w) for w in written)
        name = _WRITTEN.get(describe(function), describe(function))
        self.calls.append((name, inputs + tuple(f"{k}={v}" for k, v in kwargs.items()), y, result))
        return Traced(y, self, result)


#: Calls that code writes otherwise.
_WRITTEN = {"take_items": "index", "put_items": "put", "array_of": "np.array", "cast": "astype"}


def _constant(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"{value.dtype}{list(value.shape)}"
    return str(value)


def trace_operations(function: Any, primals: Any, tangents: Any, cotangent: Any) -> list[Operation]:
    """Lists the calls of f in order, each with its value, its tangent (forward mode) and its cotangent (reverse mode).

    Args:
        function: f, in plain NumPy.
        primals: A tuple of its arguments.
        tangents: A tuple of the same form: the direction that the primals move in.
        cotangent: Of the form of the result: its weights.

    Raises:
        DifferentiationError: As for `jvp` and `vjp`; and if the result does not depend on the primals.

    >>> import numpy as np
    >>> for o in trace_operations(lambda x: np.sin(x) * 2, (np.array(0.0),), (np.array(1.0),), 3.0):
    ...     print(o.output, o.name, *o.inputs, float(o.value), float(o.tangent), float(o.cotangent))
    v1 np.sin x 0.0 1.0 6.0
    v2 np.multiply v1 2 0.0 2.0 3.0
    """
    primals = as_arrays(require_tuple(primals, "primals"))
    require_floats(primals, "trace_operations")
    tangents = matching(require_tuple(tangents, "tangents"), primals, "tangent")
    trace = _ListingTrace()
    names = iter(["x"] if len(list(leaves(primals))) == 1 else [f"x{i}" for i, _ in enumerate(leaves(primals))])
    traced = rebuild(primals, lambda x, t: Traced(x, trace, _Both(next(names), t, Node())), tangents)
    result = called(function, traced, trace)
    results = list(leaves(result))
    if not all(isinstance(y, Traced) and y.owner is trace for y in results):
        raise DifferentiationError("a result does not depend on the primals, so there is nothing to list")
    weights = leaves(matching(cotangent, rebuild(result, lambda y: y.value), "cotangent"))
    cotangents: dict[Node, Any] = {}
    backward(
        [(y.derivative.node, g) for y, g in zip(results, weights, strict=True)],
        visit=lambda node, g: cotangents.update({node: np.copy(g)}),
    )
    return [
        Operation(
            both.name, name, inputs, y, both.tangent,
            cotangents[both.node] if both.node in cotangents else np.zeros(np.shape(y), dtype_of(y)),
        )
        for name, inputs, y, both in trace.calls
    ]  # fmt: skip
