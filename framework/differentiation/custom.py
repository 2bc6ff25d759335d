"""Rules of one's own, and cutting a derivative on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from framework.differentiation.forward import transposed
from framework.differentiation.reverse import vjp
from framework.differentiation.structure import rebuild
from framework.differentiation.table import RULES, Rule, as_dtype, dtype_of, likes
from framework.differentiation.tracing import Traced, primitive, untraced


class CustomFunction:
    """A function with a rule of its own; made by `custom_rule`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = primitive(function)
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._forward: Callable[..., Any] | None = None
        self._vjp: Callable[..., Any] | None = None
        self._jvp: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._call not in RULES:
            raise TypeError(
                f"{self.__name__} has no rule yet: give it one with @{self.__name__}.vjp or @{self.__name__}.jvp"
            )
        return self._call(*args)

    def forward(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Gives what runs in reverse mode in place of the function: args → (y, saved), saved being a tuple of what the VJP
        needs. The VJP is then (cotangent, *saved) → a tuple with the cotangent of each argument."""
        self._forward = rule
        return rule

    def vjp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the VJP: (cotangent, y, *args) → a tuple with the cotangent of each argument (None: not differentiable).

        With a `forward` it is (cotangent, *saved) → the same."""
        self._vjp = rule
        self._register()
        return rule

    def jvp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the JVP: (tangents, y, *args) → the tangent of y; tangents has None for arguments that do not move."""
        self._jvp = rule
        self._register()
        return rule

    def _register(self) -> None:
        def back(places: list[int], g: Any, y: Any, args: Any, kwargs: Any) -> list[Any]:
            if self._vjp is None:
                return [derived_back(place, g, y, args) for place in places]
            *saved, forms = args if self._forward is not None else (*args, args)
            cotangents = self._vjp(g, *saved) if self._forward is not None else self._vjp(g, y, *saved)
            if not isinstance(cotangents, tuple) or len(cotangents) <= max(places):
                raise TypeError(
                    f"the VJP of {self.__name__} must return a tuple with a cotangent for each argument, but returned "
                    f"{type(cotangents).__name__}"
                )
            for place in places:
                if cotangents[place] is None:
                    raise TypeError(f"{self.__name__} is not differentiable in argument {place}: its VJP gives None")
            return [like("VJP", cotangents[place], forms[place], f"argument {place}") for place in places]

        def like(mode: str, found: Any, of: Any, what: str) -> Any:
            """Returns what a rule gave in the dtype of what it belongs to; raises if the shape is another."""
            if np.shape(found) != np.shape(of):
                raise TypeError(
                    f"the {mode} of {self.__name__} must give {what} an array of its shape {np.shape(of)}, but gave {np.shape(found)}"
                )
            return as_dtype(found, dtype_of(of))

        def forth(places: list[int], tangents: list[Any], y: Any, args: Any, kwargs: Any) -> Any:
            assert self._jvp is not None
            moved = dict(zip(places, tangents, strict=True))
            return like("JVP", self._jvp(tuple(moved.get(i) for i in range(len(args))), y, *args), y, "the result")

        def derived(places: list[int], tangents: list[Any], y: Any, args: Any, kwargs: Any) -> Any:
            """The transpose of the VJP, whose forward says what it reads."""
            given = forward(*args)[1] if self._forward is not None else args
            rule = Rule(back, None, "custom", "rule", joint=True)
            total: Any = None
            for place, tangent in zip(places, tangents, strict=True):
                part = transposed(rule)(place, tangent, y, given, kwargs)
                total = part if total is None else total + part
            return total

        def derived_back(place: int, g: Any, y: Any, args: Any) -> Any:
            """The transpose of the JVP along one argument: its VJP in the tangent."""

            def along(t: Any) -> Any:
                return forth([place], [t], y, args, {})

            _, pullback = vjp(along, np.zeros(np.shape(args[place]), dtype_of(args[place])))
            return pullback(g, last=True)[0]

        def forward(*args: Any) -> Any:
            assert self._forward is not None
            y, saved = self._forward(*args)
            return y, (*saved, likes(args))

        RULES[self._call] = Rule(
            back, forth if self._jvp is not None else derived, "custom", "rule", joint=True,
            forward=forward if self._forward is not None and self._vjp is not None else None,
        )  # fmt: skip


def custom_rule(function: Callable[..., Any]) -> CustomFunction:
    """Gives a function a derivative of its own, for functions without a rule or with a better one.

    What one mode lacks is derived from the other: with a VJP alone, the JVP is its transpose, and with a JVP alone the VJP.

    Args:
        function: From arrays to one array; it gets plain arrays.

    Returns:
        The function; its methods `forward`, `vjp` and `jvp` are decorators that take the rules. Give `forward` before `vjp`.

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

    With a forward that says what is saved (here one array of bools in place of x):

    >>> @custom_rule
    ... def positive(x):
    ...     return np.maximum(x, 0)
    >>> @positive.forward
    ... def forward(x):
    ...     return np.maximum(x, 0), (x > 0,)
    >>> @positive.vjp
    ... def rule(cotangent, mask):
    ...     return (cotangent * mask,)
    >>> grad(lambda x: np.sum(positive(x)))(np.array([1.0, -2.0])).tolist()
    [1.0, 0.0]
    """
    return CustomFunction(function)


def stop_gradient(tree: Any) -> Any:
    """Returns arrays as constants: no derivative flows through them.

    >>> from framework.differentiation import grad
    >>> float(grad(lambda x: x * stop_gradient(x))(3.0))
    3.0
    """
    return rebuild(tree, lambda x: _read_only(untraced(x)) if isinstance(x, Traced) else x)


def _read_only(x: Any) -> Any:
    """A value that a trace may have saved, and so must not be written into."""
    if isinstance(x, np.ndarray):
        x = x.view()
        x.setflags(write=False)
    return x
