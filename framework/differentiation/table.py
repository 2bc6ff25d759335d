"""The rule tables: what the derivative of each function is, in a line or two.

A rule knows, for each differentiable argument, how a tangent goes forward (`jvp`) and how a cotangent goes back (`vjp`). Three
kinds cover nearly all functions:

- `elementwise`: the Jacobian is diagonal, so one derivative serves both modes as a factor;
- `linear`: the tangent goes through the function itself, and the cotangent through its transpose;
- `rule`: both are given, or the JVP is `TRANSPOSED`: derived from the VJP, which is linear in the cotangent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: The JVP is derived from the VJP by transposing it.
TRANSPOSED = "transposed"
#: The factor of an elementwise rule that is 1 or -1 everywhere, so that nothing is multiplied.
ONE, MINUS_ONE = "1", "-1"


@dataclass(frozen=True)
class Rule:
    """The derivative of a function.

    Attributes:
        vjp: (position, cotangent, y, args, kwargs) → cotangent of the argument at the position.
        jvp: (position, tangent, y, args, kwargs) → what the argument's tangent adds to that of the output; None derives it from vjp.
        family: The table it stands in.
        kind: elementwise, linear, or rule; for the documentation.
        options: A function of (g, y, *args, **kwargs) whose signature says which options the rule takes; None for all.
    """

    vjp: Callable[..., Any]
    jvp: Callable[..., Any] | None
    family: str
    kind: str
    options: Callable[..., Any] | None = None


#: Functions with a rule.
RULES: dict[Any, Rule] = {}
#: Functions that are written with others, and so have their derivatives.
DERIVED: dict[Any, Callable[..., Any]] = {}
#: Functions whose result is constant or has no derivative: comparisons, rounding, indices.
CONSTANT: set[Any] = set()


def elementwise(family: str, function: Any, *factors: Any) -> None:
    """A function of broadcast arrays; factors are (y, *args) → ∂y/∂arg for each argument (None: not differentiable in it)."""

    def scaled(position: tuple[int, ...], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        factor = factors[position[0]]
        if factor is None:
            raise TypeError(f"{describe(function)} is not differentiable in argument {position[0]}")
        if factor is ONE:
            return g
        if factor is MINUS_ONE:
            return np.negative(g)
        return g * factor(y, *args, **kwargs)

    def vjp(position: tuple[int, ...], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return unbroadcast(scaled(position, g, y, args, kwargs), args[position[0]])

    def jvp(position: tuple[int, ...], t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return as_dtype(np.broadcast_to(scaled(position, t, y, args, kwargs), np.shape(y)), dtype_of(y))

    RULES[function] = Rule(vjp, jvp, family, "elementwise")


def linear(family: str, function: Any, vjp: Callable[..., Any]) -> None:
    """A function that is linear in its first argument; vjp is (g, y, *args, **kwargs) → the transpose applied to g."""

    def back(position: tuple[int, ...], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        _require_first(function, position)
        return vjp(g, y, *args, **kwargs)

    def forth(position: tuple[int, ...], t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        _require_first(function, position)
        return function(t, *args[1:], **kwargs)

    RULES[function] = Rule(back, forth, family, "linear", vjp)


def rule(family: str, function: Any, *vjps: Any, jvps: Any = TRANSPOSED, sequence: bool = False) -> None:
    """Any other function.

    Args:
        family: The table it stands in.
        function: The function.
        *vjps: For each differentiable argument (g, y, *args, **kwargs) → its cotangent. With `sequence` there is one, which also
            takes the place in the list: (g, y, place, *args, **kwargs).
        jvps: For each (t, y, *args, **kwargs) → the output's tangent; or TRANSPOSED.
        sequence: Whether the first argument is a list of arrays.
    """

    def pick(rules: Any, position: tuple[int, ...], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        if sequence:
            return rules[0](g, y, position[1], *args, **kwargs)
        if position[0] >= len(rules) or rules[position[0]] is None:
            raise TypeError(f"{describe(function)} is not differentiable in argument {position[0]}")
        return rules[position[0]](g, y, *args, **kwargs)

    def back(position: tuple[int, ...], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return pick(vjps, position, g, y, args, kwargs)

    def forth(position: tuple[int, ...], t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return pick(jvps, position, t, y, args, kwargs)

    options = None if sequence else next(rule for rule in vjps if rule is not None)
    RULES[function] = Rule(back, None if jvps is TRANSPOSED else forth, family, "rule", options)


def _require_first(function: Any, position: tuple[int, ...]) -> None:
    if position != (0,):
        raise TypeError(f"{describe(function)} is not differentiable in argument {position[0]}")


def unbroadcast(g: Any, like: Any) -> Any:
    """Sums a cotangent over the axes along which an argument was broadcast; gives it the argument's shape and dtype."""
    shape = np.shape(like)
    extra = np.ndim(g) - len(shape)
    if extra > 0:
        g = np.sum(g, axis=tuple(range(extra)))
    axes = tuple(i for i, length in enumerate(shape) if length == 1 and np.shape(g)[i] != 1)
    if axes:
        g = np.sum(g, axis=axes, keepdims=True)
    if np.shape(g) != shape:
        g = np.broadcast_to(g, shape)
    return as_dtype(g, dtype_of(like))


def as_dtype(a: Any, dtype: np.dtype[Any]) -> Any:
    """Returns an array of the dtype, the array itself where it has it already."""
    from framework.differentiation.rules.shapes import cast

    return a if dtype_of(a) == dtype else cast(a, dtype)


def dtype_of(a: Any) -> np.dtype[Any]:
    """The dtype of an array, traced or not, or of a Python number."""
    dtype = getattr(a, "dtype", None)
    return np.dtype(dtype) if dtype is not None else np.asarray(a).dtype


def describe(function: Any) -> str:
    """Names a function for people: np.linalg.solve."""
    name = getattr(function, "__name__", repr(function))
    module = getattr(function, "__module__", None) or "numpy"
    return f"np.linalg.{name}" if "linalg" in module else f"np.{name}"
