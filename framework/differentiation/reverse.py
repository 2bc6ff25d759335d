"""Reverse mode: the calls are recorded in a graph, and cotangents flow back through it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from framework.differentiation.structure import as_arrays, leaves, matching, rebuild, require_floats
from framework.differentiation.table import Rule, dtype_of
from framework.differentiation.tracing import DifferentiationError, Position, Trace, Traced

_order = itertools.count()


class Node:
    """A recorded call: its rule, what the rule needs, and the nodes of the traced arguments. Leaves have no rule.

    A node knows the nodes before it and never those after, so a graph has no cycles and dies with its result.
    """

    __slots__ = ("args", "kwargs", "order", "parents", "rule", "y")

    def __init__(self, rule: Rule | None, parents: list[tuple[Position, Node]], y: Any, args: Any, kwargs: Any) -> None:
        self.rule, self.parents, self.y, self.args, self.kwargs = rule, parents, y, args, kwargs
        self.order = next(_order)


class ReverseTrace(Trace):
    """Records each call; `derivative` is the node."""

    def record(self, rule: Rule, traced: list[tuple[Position, Traced]], y: Any, args: Any, kwargs: Any) -> Traced:
        node = Node(rule, [(position, x.derivative) for position, x in traced], y, args, kwargs)
        return Traced(y, self, node)


def vjp(function: Any, *primals: Any) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """Returns f(*primals) and its pullback: the function cotangent ↦ vector–Jacobian product, one for each primal.

    The pullback may be called again. It holds what the rules need of the forward pass, so memory grows with the depth of f.

    Args:
        function: f, in plain NumPy.
        *primals: Its arguments: arrays of floats in any structure.

    Raises:
        DifferentiationError: Primals are no floats, or f cannot be differentiated; from the pullback: a cotangent whose form
            or shape is not the result's.

    >>> import numpy as np
    >>> y, pullback = vjp(lambda x: np.array([x[0] ** 2 + x[1], x[0] * x[1], np.sin(x[0])]), np.array([1.5, 2.0]))
    >>> (x_bar,) = pullback(np.array([1.0, 0.5, 0.0]))
    >>> x_bar.tolist()
    [4.0, 1.75]
    """
    primals = as_arrays(primals)
    require_floats(primals, "vjp")
    trace = ReverseTrace()
    traced = rebuild(primals, lambda x: Traced(x, trace, Node(None, [], None, (), {})))
    nodes = rebuild(traced, lambda x: x.derivative)
    result = as_arrays(function(*traced))
    del traced

    def is_mine(y: Any) -> bool:
        return isinstance(y, Traced) and y.trace is trace

    values = rebuild(result, lambda y: y.value if is_mine(y) else y)
    ends = [y.derivative if is_mine(y) else None for y in leaves(result)]
    del result

    def pullback(cotangent: Any) -> tuple[Any, ...]:
        given = list(leaves(matching(cotangent, values, "cotangent")))
        collected = backward([(end, g) for end, g in zip(ends, given, strict=True) if end is not None])

        def of(node: Node, x: Any) -> Any:
            return collected[node] if node in collected else np.zeros(np.shape(x), dtype_of(x))

        found: tuple[Any, ...] = rebuild(nodes, of, primals)
        return found

    return values, pullback


def backward(ends: list[tuple[Node, Any]]) -> dict[Node, Any]:
    """Sends cotangents from the results to the leaves, each node once, the newest first."""
    cotangents: dict[Node, Any] = {}
    heap: list[tuple[int, Node]] = []

    def add(node: Node, g: Any) -> None:
        if node in cotangents:
            cotangents[node] = cotangents[node] + g
        else:
            cotangents[node] = g
            if node.rule is not None:
                heapq.heappush(heap, (-node.order, node))

    for end, g in ends:
        add(end, g)
    while heap:
        _, node = heapq.heappop(heap)
        g = cotangents.pop(node)
        assert node.rule is not None
        for position, parent in node.parents:
            add(parent, node.rule.vjp(position, g, node.y, node.args, node.kwargs))
    return cotangents


def value_and_grad(
    function: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Returns a function that gives f's value and its gradient, which is VJP(f, x, 1).

    Args:
        function: f, whose result is a scalar, or with `has_aux` a pair of a scalar and anything else.
        argnums: The arguments to differentiate by: a number, or a tuple for a tuple of gradients.
        has_aux: Whether f returns such a pair; the value is then the pair.

    Raises:
        DifferentiationError: When called: the result is no scalar, or the arguments are no floats.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def run(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        aux: list[Any] = []

        def of_some(*some: Any) -> Any:
            whole = list(args)
            for number, value in zip(numbers, some, strict=True):
                whole[number] = value
            result = function(*whole, **kwargs)
            if has_aux:
                result, rest = result
                aux.append(rest)
            return result

        value, pullback = vjp(of_some, *(args[number] for number in numbers))
        if isinstance(value, list | tuple | dict) or np.shape(value) != ():
            form = type(value).__name__ if isinstance(value, list | tuple | dict) else f"shape {np.shape(value)}"
            raise DifferentiationError(
                f"grad takes a function with a scalar result, but this one returned {form}; sum it, or use jacobian or vjp"
            )
        gradients = pullback(np.ones((), dtype_of(value)))
        found = gradients[0] if isinstance(argnums, int) else gradients
        return ((value, aux[0]) if has_aux else value), found

    return run


def grad(function: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Returns a function that gives f's gradient (with `has_aux`: and the second result). See `value_and_grad`.

    >>> import numpy as np
    >>> grad(lambda x: np.sum(x**2))(np.array([1.0, 2.0])).tolist()
    [2.0, 4.0]
    >>> float(grad(grad(grad(np.sin)))(0.0))
    -1.0
    """
    run = value_and_grad(function, argnums, has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = run(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient
