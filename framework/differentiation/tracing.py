"""Traced arrays: NumPy code runs on them under NumPy's own import, and leaves a derivative behind.

A `Traced` array holds a value and what its trace knows of its derivative: the tangent in forward mode, the node of a graph in
reverse mode. NumPy hands every call with one among its arguments to `bind`, which runs the call on the values and then
lets the trace apply the function's rule. Traces have levels: a value may itself be traced at a lower level, and rules are written
in NumPy, so transforms nest to any order.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from framework.differentiation.table import CONSTANT, DERIVED, RULES, Rule, describe

Position = tuple[int, ...]


class DifferentiationError(TypeError):
    """NumPy code that cannot be differentiated; the message names the function and the remedy."""


class Trace(ABC):
    """One running transform. The newest has the highest level."""

    _levels = itertools.count()

    def __init__(self) -> None:
        self.level = next(Trace._levels)

    @abstractmethod
    def record(self, rule: Rule, traced: list[tuple[Position, Traced]], y: Any, args: Any, kwargs: Any) -> Traced:
        """Returns the traced result of a call.

        Args:
            rule: The function's rule.
            traced: The arguments that belong to this trace, and where they stood.
            y: The result on the values.
            args: The arguments, values in place of traced ones.
            kwargs: Keyword arguments.
        """


class Traced(NDArrayOperatorsMixin):
    """An array in the eyes of NumPy code, with its derivative at one level.

    Attributes:
        value: The array (or an array traced at a lower level).
        trace: The transform it belongs to.
        derivative: Its tangent (forward mode) or its node (reverse mode).
    """

    __slots__ = ("derivative", "trace", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, trace: Trace, derivative: Any) -> None:
        self.value, self.trace, self.derivative = value, trace, derivative

    # -- NumPy's protocols ----------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function: Any = ufunc
        if method == "reduce":
            function = _REDUCTIONS.get(ufunc)
            kwargs.setdefault("axis", 0)
        elif method != "__call__":
            function = None
        if function is None:
            raise DifferentiationError(
                f"np.{ufunc.__name__}.{method} has no derivative rule; write it with np.{ufunc.__name__} or a sum, or give it a rule "
                "with custom_rule"
            )
        out = kwargs.pop("out", None)
        if out is not None and any(o is not None for o in out):
            if method == "__call__" and len(out) == 1 and out[0] is inputs[0] and np.ndim(self) == 0:
                return bind(function, inputs, kwargs)  # x += 1 of a scalar makes a new scalar, as in NumPy
            raise DifferentiationError(
                f"np.{ufunc.__name__} cannot write into an array with out= (or +=, *=, …) while it is differentiated: write "
                "y = y + x instead of y += x"
            )
        return bind(function, inputs, {name: value for name, value in kwargs.items() if value is not None})

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            raise DifferentiationError(
                f"{describe(function)} cannot write into out= while it is differentiated: leave it away"
            )
        return bind(function, args, kwargs)

    # -- what an array knows of itself ----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(getattr(self.value, "dtype", np.float64))

    @property
    def T(self) -> Any:  # noqa: N802
        return np.transpose(self)

    @property
    def flat(self) -> Any:
        return iter(np.ravel(self))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a traced scalar")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a traced scalar")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        from framework.differentiation.rules.indexing import take_items

        return take_items(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise DifferentiationError(
            "a traced array cannot be written into, since the derivative of what it was would be lost; build the new array with "
            "np.where, np.stack or np.concatenate"
        )

    def __float__(self) -> float:
        raise self._cut("float")

    def __int__(self) -> int:
        raise self._cut("int")

    def __index__(self) -> int:
        raise self._cut("int")

    def __complex__(self) -> complex:
        raise self._cut("complex")

    def __bool__(self) -> bool:
        raise self._cut("bool", " or compare it: x > 0 is an ordinary bool")

    def item(self, *args: Any) -> Any:
        raise self._cut("a Python number (item)")

    def tolist(self) -> Any:
        raise self._cut("a list (tolist)")

    def _cut(self, what: str, more: str = "") -> DifferentiationError:
        return DifferentiationError(
            f"a traced array was to become {what}, which would cut the derivative (writing it into an array or math.sin does so, "
            f"too); use NumPy functions and np.stack, say stop_gradient(x) to cut on purpose{more}"
        )

    def __getattr__(self, name: str) -> Any:
        """Methods of arrays (x.sum()) and of scalars in object arrays (np.sin of them asks for x.sin())."""
        function = _METHODS.get(name) or getattr(np, name, None)
        known = name in _METHODS or (isinstance(function, np.ufunc) and function.nin == 1)
        if name.startswith("_") or not known:
            raise AttributeError(f"a traced array has no attribute {name!r}")
        assert function is not None
        return lambda *args, **kwargs: function(self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"Traced({self.value!r})"

    def __copy__(self) -> Traced:
        return self

    def __deepcopy__(self, memo: Any) -> Traced:
        return self


def bind(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs a call that has traced arguments: on the values, then by the rule of the newest trace."""
    if function in DERIVED:
        _require_options(DERIVED[function], function, args, kwargs)
        return DERIVED[function](*args, **kwargs)
    if function in CONSTANT:
        return function(*map(untraced, args), **{name: untraced(value) for name, value in kwargs.items()})
    rule = RULES.get(function)
    if rule is None:
        raise DifferentiationError(
            f"{describe(function)} has no derivative rule. Write it with functions that have one (docs/differentiation.md lists "
            "them), give your function a rule with custom_rule, or cut the derivative with stop_gradient"
        )
    kwargs = _lift_values(kwargs)
    args = tuple(lift(arg) for arg in args)
    found = list(_traced_in(args))
    if any(isinstance(value, Traced) for value in kwargs.values()):
        raise DifferentiationError(f"{describe(function)}: pass differentiated arrays by position, not by keyword")
    if not found:
        return function(*args, **kwargs)
    top = max((traced.trace for _, traced in found), key=lambda trace: trace.level)
    mine = [(position, traced) for position, traced in found if traced.trace is top]
    plain = tuple(_replace(arg, top) for arg in args)
    if rule.options is not None:
        _require_options(rule.options, function, (None, None, *plain), kwargs)
    y = function(*plain, **kwargs)
    if isinstance(y, list | tuple):
        raise DifferentiationError(f"{describe(function)} gives several arrays, which its rule does not cover")
    return top.record(rule, mine, y, plain, kwargs)


def _require_options(written: Any, function: Any, args: Any, kwargs: Any) -> None:
    """Raises unless the function as it is written here takes these options."""
    try:
        inspect.signature(written).bind(*args, **kwargs)
    except TypeError as error:
        raise DifferentiationError(
            f"{describe(function)} cannot be differentiated with these options ({error}); leave them away, or write it otherwise"
        ) from error


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of our own dispatch on traced arguments, as NumPy's do. It needs a rule."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(True for _ in _traced_in(args)):
            return bind(call, args, kwargs)
        return function(*args, **kwargs)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


def lift(value: Any) -> Any:
    """Turns an object array of traced scalars, as np.array([x, y]) makes it, into a traced array."""
    if not (isinstance(value, np.ndarray) and value.dtype == object):
        return value
    items = list(value.ravel())
    if not any(isinstance(item, Traced) for item in items):
        return value
    return np.reshape(
        np.stack([item if isinstance(item, Traced) else np.asarray(item, float) for item in items]), value.shape
    )


def untraced(value: Any) -> Any:
    """The plain value below all levels."""
    while isinstance(value, Traced):
        value = value.value
    if isinstance(value, list | tuple) and any(True for _ in _traced_in((value,))):
        return type(value)(map(untraced, value))
    return value


def _lift_values(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: lift(value) for name, value in kwargs.items()} if kwargs else kwargs


def _traced_in(args: Sequence[Any]) -> Iterator[tuple[Position, Traced]]:
    """The traced arguments and where they stand: (i,), or (i, j) inside a list or tuple."""
    for i, arg in enumerate(args):
        if isinstance(arg, Traced):
            yield (i,), arg
        elif isinstance(arg, list | tuple):
            for j, item in enumerate(arg):
                if isinstance(item, Traced):
                    yield (i, j), item


def _replace(arg: Any, trace: Trace) -> Any:
    if isinstance(arg, Traced):
        return arg.value if arg.trace is trace else arg
    if isinstance(arg, list | tuple) and any(isinstance(item, Traced) for item in arg):
        return [_replace(item, trace) for item in arg]
    return arg


_REDUCTIONS: dict[Any, Any] = {
    np.add: np.sum,
    np.multiply: np.prod,
    np.maximum: np.max,
    np.minimum: np.min,
}


def _several(function: Any) -> Any:
    """A method that takes its tuple also as several arguments: x.reshape(2, 3)."""
    return lambda x, *sizes, **kwargs: function(x, *([sizes] if len(sizes) > 1 else sizes), **kwargs)


def _cast(x: Any, dtype: Any, **options: Any) -> Any:
    from framework.differentiation.rules.shapes import cast

    return cast(x, np.dtype(dtype))


_METHODS: dict[str, Any] = {
    **{
        name: getattr(np, name)
        for name in (
            "sum", "prod", "mean", "var", "std", "max", "min", "argmax", "argmin", "argsort", "all", "any", "cumsum", "cumprod",
            "ravel", "squeeze", "swapaxes", "repeat", "take", "diagonal", "trace", "clip", "round", "dot", "sort", "copy",
        )
    },
    "reshape": _several(np.reshape),
    "transpose": _several(np.transpose),
    "flatten": np.ravel,
    "astype": _cast,
}  # fmt: skip
