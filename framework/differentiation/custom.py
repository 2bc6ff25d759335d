"""Rules of one's own, and cutting a derivative on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework.differentiation.structure import rebuild
from framework.differentiation.table import RULES, Rule
from framework.differentiation.tracing import Traced, primitive, untraced


class CustomFunction:
    """A function with a rule of its own; made by `custom_rule`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = primitive(function)
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._vjp: Callable[..., Any] | None = None
        self._jvp: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._call not in RULES:
            raise TypeError(
                f"{self.__name__} has no rule yet: give it one with @{self.__name__}.vjp or @{self.__name__}.jvp"
            )
        return self._call(*args)

    def vjp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the VJP: (cotangent, y, *args) → a tuple with the cotangent of each argument (None: not differentiable)."""
        self._vjp = rule
        self._register()
        return rule

    def jvp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the JVP: (tangents, y, *args) → the tangent of y; tangents has None for arguments that do not move."""
        self._jvp = rule
        self._register()
        return rule

    def _register(self) -> None:
        def back(position: Any, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
            if self._vjp is None:
                raise TypeError(f"{self.__name__} has a JVP but no VJP: give it one with @{self.__name__}.vjp")
            cotangent = self._vjp(g, y, *args)[position[0]]
            if cotangent is None:
                raise TypeError(f"{self.__name__} is not differentiable in argument {position[0]}: its VJP gives None")
            return cotangent

        def forth(position: Any, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
            assert self._jvp is not None
            return self._jvp(tuple(t if i == position[0] else None for i in range(len(args))), y, *args)

        RULES[self._call] = Rule(back, forth if self._jvp is not None else None, "custom", "rule")


def custom_rule(function: Callable[..., Any]) -> CustomFunction:
    """Gives a function a derivative of its own, for functions without a rule or with a better one.

    What one mode lacks is derived from the other: with a VJP alone, the JVP is its transpose.

    Args:
        function: From arrays to one array; it gets plain arrays.

    Returns:
        The function; its methods `vjp` and `jvp` are decorators that take the rules.

    >>> import numpy as np
    >>> from framework.differentiation import grad
    >>> @custom_rule
    ... def square(x):
    ...     return x**2
    >>> @square.vjp
    ... def rule(cotangent, y, x):
    ...     return (2 * x * cotangent,)
    >>> grad(lambda x: np.sum(square(x)))(np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 4.0, 6.0]
    """
    return CustomFunction(function)


def stop_gradient(tree: Any) -> Any:
    """Returns arrays as constants: no derivative flows through them.

    >>> from framework.differentiation import grad
    >>> float(grad(lambda x: x * stop_gradient(x))(3.0))
    3.0
    """
    return rebuild(tree, lambda x: untraced(x) if isinstance(x, Traced) else x)
