"""Traced arrays: NumPy code runs on them under NumPy's own import, and leaves a derivative behind.

A `Traced` array holds a value and what its trace knows of its derivative: the tangent in forward mode, the node of a graph in
reverse mode. NumPy hands every call with one among its arguments to `bind`, which runs the call on the values and then
lets the trace apply the function's rule. Traces have levels: a value may itself be traced at a lower level, and rules are written
in NumPy, so transforms nest to any order.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from framework.differentiation.table import CONSTANT, DERIVED, IN_PLACE, RULES, Rule, describe


class DifferentiationError(TypeError):
    """NumPy code that cannot be differentiated; the message names the function and the remedy."""


#: Arrays with rules of their own for shapes or for which elements take part.
NO_PLAIN_ARRAYS = (np.matrix, np.ma.MaskedArray)


def no_plain_array(a: Any) -> DifferentiationError:
    """The error for one of these."""
    return DifferentiationError(
        f"a {type(a).__name__} has no derivatives in Retape; use plain arrays: np.asarray(a), and where= of reductions or np.where in place "
        "of a mask"
    )


class Trace(ABC):
    """One running transform. The newest has the highest level.

    Attributes:
        level: The number of traces before it.
        running: Whether the function that is traced still runs.
    """

    _levels = itertools.count()

    def __init__(self) -> None:
        self.level = next(Trace._levels)
        self.running = True

    @abstractmethod
    def call(
        self, function: Any, rule: Rule, places: list[int], traced: list[Traced], args: Sequence[Any], kwargs: Any
    ) -> Traced:
        """Runs a call on the values and returns its traced result.

        Args:
            function: The function.
            rule: Its rule.
            places: Where the arguments that belong to this trace stood: their numbers, or those in the list of a `sequence`.
            traced: These arguments.
            args: The arguments, values in place of traced ones.
            kwargs: Keyword arguments.
        """


def _binary(ufunc: np.ufunc) -> tuple[Any, Any, Any]:
    """The operator, the reflected one, and the one in place. They skip NumPy's dispatch, which finds the same rule."""

    def operator(self: Traced, other: Any) -> Any:
        return bind(ufunc, (self, other), {}) if _is_operand(other) else NotImplemented

    def reflected(self: Traced, other: Any) -> Any:
        return bind(ufunc, (other, self), {}) if _is_operand(other) else NotImplemented

    def in_place(self: Traced, other: Any) -> Any:
        if np.ndim(self.value):
            raise _no_out(ufunc)
        return bind(ufunc, (self, other), {})  # x += 1 of a scalar makes a new scalar, as in NumPy

    return operator, reflected, in_place


def _unary(ufunc: np.ufunc) -> Any:
    return lambda self: bind(ufunc, (self,), {})


def _is_operand(other: Any) -> bool:
    """Whether an operand leaves operators to NumPy, as all do that do not say __array_ufunc__ = None."""
    return getattr(type(other), "__array_ufunc__", True) is not None


def _no_out(ufunc: np.ufunc) -> DifferentiationError:
    return DifferentiationError(
        f"np.{ufunc.__name__} cannot write into an array with out= (or +=, *=, …) while it is differentiated: write "
        "y = y + x instead of y += x"
    )


def _no_writing(what: str) -> DifferentiationError:
    return DifferentiationError(
        f"{what} writes into an array, where the derivative of what it was would be lost; build the new array with np.where, "
        "np.stack or np.concatenate"
    )


class Traced:
    """An array in the eyes of NumPy code, with its derivative at one level.

    Attributes:
        value: The array (or an array traced at a lower level).
        owner: The trace it belongs to. (Arrays have a method of the name `trace`.)
        derivative: Its tangent (forward mode) or its node (reverse mode).
    """

    __slots__ = ("derivative", "owner", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, trace: Trace, derivative: Any) -> None:
        self.value, self.owner, self.derivative = value, trace, derivative

    # -- NumPy's protocols ----------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function: Any = ufunc
        if method == "at":
            raise _no_writing(f"np.{ufunc.__name__}.at")
        if method == "outer":
            a, b = inputs
            return ufunc(np.reshape(a, np.shape(a) + (1,) * np.ndim(b)), b, **kwargs)
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
            raise _no_out(ufunc)
        return bind(function, inputs, {name: value for name, value in kwargs.items() if value is not None})

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            raise DifferentiationError(
                f"{describe(function)} cannot write into out= while it is differentiated: leave it away"
            )
        if function in IN_PLACE:
            raise _no_writing(describe(function))
        return bind(function, args, kwargs)

    # -- operators ------------------------------------------------------------------------------------------------------

    __add__, __radd__, __iadd__ = _binary(np.add)
    __sub__, __rsub__, __isub__ = _binary(np.subtract)
    __mul__, __rmul__, __imul__ = _binary(np.multiply)
    __truediv__, __rtruediv__, __itruediv__ = _binary(np.divide)
    __floordiv__, __rfloordiv__, __ifloordiv__ = _binary(np.floor_divide)
    __mod__, __rmod__, __imod__ = _binary(np.remainder)
    __matmul__, __rmatmul__, __imatmul__ = _binary(np.matmul)
    _power, __rpow__, __ipow__ = _binary(np.power)
    __lt__, __gt__ = _binary(np.less)[0], _binary(np.greater)[0]
    __le__, __ge__ = _binary(np.less_equal)[0], _binary(np.greater_equal)[0]
    __eq__, __ne__ = _binary(np.equal)[0], _binary(np.not_equal)[0]
    __neg__, __pos__, __abs__ = _unary(np.negative), _unary(np.positive), _unary(np.absolute)

    def __pow__(self, other: Any) -> Any:
        # NumPy's arrays have the same short cut, so the value is the same to the last bit.
        if type(other) in (int, float) and other in _POWERS and not isinstance(self.value, np.generic):
            return bind(_POWERS[other], (self,), {})
        return self._power(other)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __round__(self, digits: int | None = None) -> Any:
        if digits is None:
            raise self._cut("int (round)")
        return np.round(self, digits)

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
    def mT(self) -> Any:  # noqa: N802
        return np.matrix_transpose(self)

    @property
    def flat(self) -> Any:
        return np.ravel(self)

    @property
    def real(self) -> Traced:
        return self

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a traced scalar")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self.shape:
            raise TypeError("iteration over a traced scalar")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        return bind(_own_functions().take_items, (self, untraced(key)), {})

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
            f"a traced array was to become {what}, which would cut the derivative (writing it into an array, np.asarray(x, float) or math.sin does so, "
            f"too); use NumPy functions and np.stack, say stop_gradient(x) to cut on purpose{more}"
        )

    def __getattr__(self, name: str) -> Any:
        """Methods of arrays (x.sum()) and of scalars in object arrays (np.sin of them asks for x.sin())."""
        if name in _WRITING_METHODS:
            return lambda *args, **kwargs: _write_elsewhere(name)
        function = _METHODS.get(name) or getattr(np, name, None)
        known = name in _METHODS or (isinstance(function, np.ufunc) and function.nout == 1)
        if name.startswith("_") or not known:
            raise AttributeError(f"a traced array has no attribute {name!r}")
        assert function is not None
        return lambda *args, **kwargs: function(self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"Traced({self.value!r})"

    def __format__(self, how: str) -> str:
        return format(untraced(self), how) if how else repr(self)  # f"{loss:.4f}" tells a number and cuts nothing

    def __copy__(self) -> Traced:
        return self

    def __deepcopy__(self, memo: Any) -> Traced:
        return self


def bind(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs a call that has traced arguments: on the values, then by the rule of the newest trace."""
    rule = RULES.get(function)
    if rule is None:
        return _bind_without_rule(function, args, kwargs)
    if kwargs:
        kwargs = _lift_values(kwargs)
        if any(isinstance(value, Traced) for value in kwargs.values()):
            raise DifferentiationError(f"{describe(function)}: pass differentiated arrays by position, not by keyword")
    if rule.sequence:
        items = list(args[0])
        top, places, traced, plain = _take_apart(function, items)
        args = (plain, *args[1:])
    else:
        top, places, traced, args = _take_apart(function, args)
    if top is None:
        return function(*args, **kwargs)
    if not top.running:
        raise DifferentiationError(
            f"{describe(function)} got an array that was traced by a transform which has ended: it was put aside (in a list, an "
            "attribute, a closure) while its function ran; return it instead (grad has has_aux for that), or put "
            "stop_gradient(x) aside"
        )
    if rule.options is not None and (kwargs or rule.kind != "elementwise"):
        _require_options(rule.options, function, 2 + len(args), kwargs)
    return top.call(function, rule, places, traced, args, kwargs)


def _take_apart(function: Any, args: Sequence[Any]) -> tuple[Trace | None, list[int], list[Traced], list[Any]]:
    """Returns the newest trace among arguments, where its arguments stand, these, and all with its values in their place."""
    plain = list(args)
    top: Trace | None = None
    places: list[int] = []
    for place, arg in enumerate(plain):
        kind = type(arg)
        if kind is not Traced:
            if kind is np.ndarray:
                if arg.dtype.char != "O":
                    continue
            elif kind is not list and kind is not tuple:
                if kind is not float and kind is not int and isinstance(arg, NO_PLAIN_ARRAYS):
                    raise no_plain_array(arg)
                continue
            plain[place] = arg = lift(arg)
            if type(arg) is not Traced:
                if isinstance(function, np.ufunc):  # x * [1, 2, 3]: rules read arrays
                    plain[place] = np.asarray(arg)
                continue
        if top is None or arg.owner.level > top.level:
            top, places = arg.owner, [place]
        elif arg.owner is top:
            places.append(place)
    traced = [plain[place] for place in places]
    for place, arg in zip(places, traced, strict=True):
        plain[place] = arg.value
    return top, places, traced, plain


def _bind_without_rule(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if function in DERIVED:
        _require_options(DERIVED[function], function, len(args), kwargs)
        return DERIVED[function](*args, **kwargs)
    if function in CONSTANT:
        return function(*map(untraced, args), **{name: untraced(value) for name, value in kwargs.items()})
    raise DifferentiationError(
        f"{describe(function)} has no derivative rule. Write it with functions that have one (docs/differentiation.md lists "
        "them), give your function a rule with custom_rule, or cut the derivative with stop_gradient"
    )


#: Calls whose options were found to be known: the function, its number of arguments and its keywords.
_KNOWN_OPTIONS: set[tuple[Any, ...]] = set()


def _require_options(written: Any, function: Any, count: int, kwargs: Any) -> None:
    """Raises unless the function as it is written here takes so many arguments and these options."""
    call = (written, count, *kwargs) if kwargs else (written, count)
    if call in _KNOWN_OPTIONS:
        return
    try:
        inspect.signature(written).bind(*[None] * count, **kwargs)
    except TypeError as error:
        raise DifferentiationError(
            f"{describe(function)} cannot be differentiated with these options ({error}); leave them away, or write it otherwise"
        ) from error
    _KNOWN_OPTIONS.add(call)


def single(function: Any, y: Any) -> Any:
    """The result of a call, which must be one array, of floats."""
    if isinstance(y, list | tuple):
        raise DifferentiationError(f"{describe(function)} gives several arrays, which its rule does not cover")
    if hasattr(y, "dtype") and y.dtype.kind != "f":
        raise _no_floats(describe(function), y.dtype)
    return y


def _no_floats(what: str, dtype: np.dtype[Any]) -> DifferentiationError:
    """The error for a result that has no derivative."""
    what = "x.astype()" if what == "cast" else what
    if dtype.kind == "c":
        return DifferentiationError(
            f"{what} gives {dtype} here, and complex numbers have no derivatives in Retape: write it with the real and the imaginary "
            "part as two arrays of floats, or give a function of it a rule with custom_rule"
        )
    return DifferentiationError(
        f"{what} gives {dtype} here, which would cut the derivative; compare (x > 0) or round (np.floor) first, or say "
        "stop_gradient(x) to cut on purpose"
    )


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function of our own dispatch on traced arguments, as NumPy's do. It needs a rule."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(True for _ in _traced_in(args)):
            return bind(call, args, kwargs)
        return function(*args, **kwargs)

    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, function.__module__
    return call


def lift(value: Any) -> Any:
    """Turns a list of traced arrays, or the object array that np.array([x, y]) makes of traced scalars, into a traced array."""
    if isinstance(value, np.ndarray):
        if value.dtype.char != "O" or not any(isinstance(item, Traced) for item in value.flat):
            return value
        items = [item if isinstance(item, Traced) else np.asarray(item, float) for item in value.flat]
        return bind(_own_functions().array_of, (items, value.shape), {})
    if isinstance(value, list | tuple) and any(True for _ in _traced_in((value,))):
        return np.stack([lift(item) for item in value])
    return value


def untraced(value: Any) -> Any:
    """The plain value below all levels."""
    while isinstance(value, Traced):
        value = value.value
    if isinstance(value, list | tuple) and any(True for _ in _traced_in((value,))):
        return type(value)(map(untraced, value))
    return value


def _lift_values(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: lift(value) for name, value in kwargs.items()} if kwargs else kwargs


def _traced_in(args: Sequence[Any]) -> Iterator[Traced]:
    """The traced arrays among arguments and inside lists and tuples."""
    for arg in args:
        if isinstance(arg, Traced):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _traced_in(arg)


@functools.cache
def _own_functions() -> Any:
    """Functions of our own that traced arrays call; their modules import this one."""
    from framework.differentiation.rules import indexing, shapes

    return SimpleNamespace(take_items=indexing.take_items, array_of=shapes.array_of, cast=shapes.cast)


_POWERS: dict[float, np.ufunc] = {2: np.square, 0.5: np.sqrt, -1: np.reciprocal, 1: np.positive}
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
    return _own_functions().cast(x, np.dtype(dtype))


_METHODS: dict[str, Any] = {
    **{
        name: getattr(np, name)
        for name in (
            "sum", "prod", "mean", "var", "std", "max", "min", "argmax", "argmin", "argsort", "all", "any", "cumsum", "cumprod",
            "ravel", "squeeze", "swapaxes", "repeat", "take", "diagonal", "trace", "clip", "round", "dot", "copy", "nonzero",
            "searchsorted", "argpartition",
        )
    },
    "reshape": _several(np.reshape),
    "transpose": _several(np.transpose),
    "flatten": np.ravel,
    "compress": lambda x, condition, axis=None: np.compress(condition, x, axis),
    "astype": _cast,
}  # fmt: skip

#: Methods that write into their array, and what to say instead.
_WRITING_METHODS = {
    "sort": "x = np.sort(x)",
    "partition": "x = np.partition(x, kth)",
    "resize": "x = np.resize(x, shape)",
    "fill": "x = np.full_like(x, value)",
    "put": "x = np.where(…)",
}


def _write_elsewhere(name: str) -> None:
    raise DifferentiationError(
        f"x.{name}() writes into a traced array, where the derivative of what it was would be lost; write "
        f"{_WRITING_METHODS[name]} instead"
    )
