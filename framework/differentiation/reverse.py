"""Reverse mode: the calls are recorded in a graph, and cotangents flow back through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from framework.differentiation.saved import Keeper, Saved, unlocked
from framework.differentiation.structure import as_arrays, called, leaves, matching, rebuild, require_floats
from framework.differentiation.table import Like, Rule, describe, dtype_of, likes
from framework.differentiation.tracing import DifferentiationError, Trace, Traced, lift, single
from framework.memory import Array, Ledger

_order = itertools.count()


class Node:
    """A recorded call: its rule, what the rule reads, and the nodes of the traced arguments. Leaves have no rule.

    A node knows the nodes before it and never those after, so a graph has no cycles and dies with its result.
    """

    __slots__ = ("args", "function", "kwargs", "order", "parents", "places", "rule", "saved", "y")

    def __init__(
        self, function: Any = None, rule: Rule | None = None, places: Any = (), parents: Any = (), y: Any = None,
        args: Any = (), kwargs: Any = None, saved: Saved | None = None,
    ) -> None:  # fmt: skip
        self.function, self.rule, self.places, self.parents = function, rule, places, parents
        self.y, self.args, self.kwargs, self.saved = y, args, kwargs, saved
        self.order = next(_order)

    def pull(self, g: Any) -> Sequence[Any]:
        """Returns the cotangent of each traced argument, given that of the result."""
        rule = self.rule
        assert rule is not None
        if self.saved is not None:
            self.saved.check(self.function)
        if rule.joint:
            parts: Sequence[Any] = rule.vjp(self.places, g, self.y, self.args, self.kwargs)
            return parts
        return [rule.vjp(place, g, self.y, self.args, self.kwargs) for place in self.places]


class ReverseTrace(Trace):
    """Records each call; `derivative` is the node."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self.keeper = keeper

    def call(
        self, function: Any, rule: Rule, places: list[int], traced: list[Traced], args: Sequence[Any], kwargs: Any
    ) -> Traced:
        if rule.forward is not None:
            y, args = rule.forward(*args)
            kept: Any = None
        else:
            y = kept = single(function, function(*args, **kwargs))
            y_unread, unread = rule.unread_by((0,) if rule.sequence else tuple(places))
            if y_unread:
                kept = Like(y) if isinstance(y, np.ndarray) or type(y) is Traced else y
            if unread:
                args = _without(args, unread)
        arrays = [a for a in args if type(a) is np.ndarray]
        if type(kept) is np.ndarray:
            arrays.append(kept)
        saved = Saved(arrays, self.keeper, describe(function)) if arrays else None
        parents = [x.derivative for x in traced]
        return Traced(y, self, Node(function, rule, places, parents, kept, args, kwargs, saved))


def _without(args: Sequence[Any], unread: frozenset[int]) -> list[Any]:
    """The arguments with shapes and dtypes in place of arrays that are not read."""
    kept = list(args)
    for place in unread:
        if place < len(kept):
            a = kept[place]
            if isinstance(a, list):
                kept[place] = likes(a)
            elif type(a) is np.ndarray or type(a) is Traced:
                kept[place] = Like(a)
    return kept


class Pullback:
    """The function cotangent ↦ vector–Jacobian product of one forward pass; made by `vjp`.

    It holds what the rules read of the forward pass, and these arrays are read-only as long as it lives.
    """

    def __init__(self, values: Any, ends: list[Node | None], leaves_of: Any, primals: Any) -> None:
        self._values = rebuild(values, lambda y: Like(y) if hasattr(y, "dtype") else y)
        self._ends: list[Node | None] | None = ends
        self._leaves, self._primals = leaves_of, rebuild(primals, Like)

    def __call__(self, cotangent: Any, last: bool = False) -> tuple[Any, ...]:
        """Returns the cotangents of the primals, arrays of the caller's own.

        Args:
            cotangent: Of the form and shapes of the result.
            last: Whether this is the last call. What a call of f saved is then freed as soon as it has been used.

        Raises:
            DifferentiationError: The cotangent does not match, or the last call has been.
        """
        if self._ends is None:
            raise DifferentiationError(
                "this pullback was called with last=True before and has freed what it held; call vjp again, or leave last=True "
                "to the last call"
            )
        given = list(leaves(matching(cotangent, self._values, "cotangent")))
        ends = [(end, g) for end, g in zip(self._ends, given, strict=True) if end is not None]
        if last:
            self._ends = None
        foreign = {id(_owner(g)) for g in given if isinstance(g, np.ndarray)}
        collected = backward(ends, last, foreign=foreign)

        def of(node: Node, x: Like) -> Any:
            g = collected.pop(node, None)
            return np.zeros(x.shape, x.dtype) if g is None else _own(g, foreign)

        found: tuple[Any, ...] = rebuild(self._leaves, of, self._primals)
        return found


def vjp(function: Any, *primals: Any, ledger: Ledger | None = None, verify: bool = False) -> tuple[Any, Pullback]:
    """Returns f(*primals) and its pullback: the function cotangent ↦ vector–Jacobian product, one for each primal.

    The pullback may be called again. It holds what the rules read of the forward pass, so memory grows with the depth of f. Arrays
    that it holds are read-only as long as it lives, so that nobody changes them before they are used.

    Args:
        function: f, in plain NumPy.
        *primals: Its arguments: arrays of floats in any structure.
        ledger: Counts what the pullback holds, each buffer once, as residuals of the function that saved it; the primals are
            the caller's.
        verify: Whether to find by checksum an array that was changed all the same, through another view of its memory.

    Raises:
        DifferentiationError: Primals are no floats, or f cannot be differentiated; from the pullback: a cotangent whose form
            or shape is not the result's, or a saved array that was changed.

    >>> import numpy as np
    >>> y, pullback = vjp(lambda x: np.array([x[0] ** 2 + x[1], x[0] * x[1], np.sin(x[0])]), np.array([1.5, 2.0]))
    >>> (x_bar,) = pullback(np.array([1.0, 0.5, 0.0]))
    >>> x_bar.tolist()
    [4.0, 1.75]
    """
    primals = as_arrays(primals)
    require_floats(primals, "vjp")
    own = [x for x in leaves(primals) if isinstance(x, np.ndarray)] if ledger is not None else ()
    trace = ReverseTrace(Keeper(ledger, verify, own))
    traced = rebuild(primals, lambda x: Traced(x, trace, Node()))
    nodes = rebuild(traced, lambda x: x.derivative)
    result = called(function, traced, trace)
    del traced

    def is_mine(y: Any) -> bool:
        return isinstance(y, Traced) and y.owner is trace

    values = rebuild(result, lambda y: unlocked(y.value) if is_mine(y) else y)
    ends = [y.derivative if is_mine(y) else None for y in leaves(result)]
    return values, Pullback(values, ends, nodes, primals)


def backward(
    ends: list[tuple[Node, Any]],
    last: bool = False,
    visit: Callable[[Node, Any], None] | None = None,
    foreign: set[int] | None = None,
) -> dict[Node, Any]:
    """Sends cotangents from the results to the leaves, each node once, the newest first.

    Args:
        ends: Nodes of the results, and their cotangents.
        last: Whether nodes may die when they have been used; nobody else may hold them then.
        visit: Is told each node and its cotangent.
        foreign: Gets the ids of the memory that the nodes saved, which a rule may have returned as it is.

    Returns:
        The cotangents of the leaves.
    """
    nodes = in_order([end for end, _ in ends])
    if foreign is not None:
        foreign.update(id(_owner(a)) for node in nodes if node.saved is not None for a in node.saved.arrays)
    cotangents: dict[Node, Any] = {}
    summed: set[Node] = set()  # whose cotangent is a buffer of our own, which more can be added into

    def add(node: Node, part: Any) -> None:
        old = cotangents.get(node)
        if old is None:
            cotangents[node] = part
        elif node in summed and type(old) is np.ndarray is type(part):
            np.add(old, part, out=old)
        else:
            cotangents[node] = total = old + part
            if type(total) is np.ndarray:
                summed.add(node)

    while ends:
        add(*ends.pop())
    for node in _popping(nodes) if last else reversed(nodes):
        g = cotangents.pop(node)
        if visit is not None:
            visit(node, g)
        for parent, part in zip(node.parents, node.pull(g), strict=True):
            add(parent, part)
        summed.discard(node)
        del node
    return cotangents


def in_order(ends: list[Node]) -> list[Node]:
    """All calls before some nodes, these included, the oldest first."""
    found = {end for end in ends if end.rule is not None}
    stack = list(found)
    while stack:
        for parent in stack.pop().parents:
            if parent.rule is not None and parent not in found:
                found.add(parent)
                stack.append(parent)
    return sorted(found, key=attrgetter("order"))


def _popping(nodes: list[Node]) -> Iterator[Node]:
    while nodes:
        yield nodes.pop()


def _owner(a: Array) -> Array:
    return a if a.base is None else a.base


def _own(g: Any, foreign: set[int]) -> Any:
    """A cotangent as an array that nobody else has: not the one that was given, another result, or a saved array."""
    if type(g) is not np.ndarray:
        return g
    if not g.flags.writeable or id(_owner(g)) in foreign:
        g = g.copy()
    foreign.add(id(_owner(g)))
    return g


def value_and_grad(
    function: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, verify: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """Returns a function that gives f's value and its gradient, which is VJP(f, x, 1).

    Args:
        function: f, whose result is a scalar, or with `has_aux` a pair of a scalar and anything else.
        argnums: The arguments to differentiate by: a number, or a tuple for a tuple of gradients.
        has_aux: Whether f returns such a pair; the value is then the pair, with arrays in place of traced ones.
        verify: Whether to check that no saved array is changed; see `vjp`.

    Raises:
        DifferentiationError: When called: the result is no real scalar, the arguments are no floats, or there are fewer than
            argnums says.
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
                if not isinstance(result, list | tuple) or len(result) != 2:
                    raise DifferentiationError(
                        "with has_aux the function returns a pair of a scalar and anything else, but this one returned "
                        f"{_form(result)}"
                    )
                result, rest = result
                aux.append(_without_trace(rest, next(leaves(some)).owner))
            return result

        for number in numbers:
            if not -len(args) <= number < len(args):
                raise DifferentiationError(
                    f"argnums is {argnums}, but the function was called with {len(args)} arguments by position, of which the first "
                    "has the number 0"
                )
        chosen = as_arrays(tuple(args[number] for number in numbers))
        require_floats(chosen, "grad")
        value, pullback = vjp(of_some, *chosen, verify=verify)
        if not _is_real_scalar(value):
            raise DifferentiationError(
                f"grad takes a function with a scalar result, but this one returned {_form(value)}; sum it, or use jacobian or vjp"
            )
        gradients = pullback(np.ones((), dtype_of(value)), last=True)
        found = gradients[0] if isinstance(argnums, int) else gradients
        return ((value, aux[0]) if has_aux else value), found

    return run


def _is_real_scalar(value: Any) -> bool:
    if value is None or isinstance(value, list | tuple | dict):
        return False
    return np.shape(value) == () and dtype_of(value).kind in "fiub"


def _form(result: Any) -> str:
    if result is None:
        return "None (does a return lack?)"
    if isinstance(result, list | tuple | dict):
        return type(result).__name__
    return f"shape {np.shape(result)}" if np.shape(result) else f"{dtype_of(result)}"


def _without_trace(tree: Any, trace: Trace) -> Any:
    """What a function returned beside its scalar, with the values of what a trace holds."""

    def plain(leaf: Any) -> Any:
        leaf = lift(leaf) if isinstance(leaf, np.ndarray) else leaf
        return unlocked(leaf.value) if isinstance(leaf, Traced) and leaf.owner is trace else leaf

    return rebuild(tree, plain)


def grad(
    function: Any, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, verify: bool = False
) -> Callable[..., Any]:
    """Returns a function that gives f's gradient (with `has_aux`: and the second result). See `value_and_grad`.

    >>> import numpy as np
    >>> grad(lambda x: np.sum(x**2))(np.array([1.0, 2.0])).tolist()
    [2.0, 4.0]
    >>> float(grad(grad(grad(np.sin)))(0.0))
    -1.0
    """
    run = value_and_grad(function, argnums, has_aux, verify)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = run(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient
