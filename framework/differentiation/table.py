"""The rule tables: what the derivative of each function is, in a line or two.

A rule knows, for each differentiable argument, how a tangent goes forward (`jvp`) and how a cotangent goes back (`vjp`). Three
kinds cover nearly all functions:

- `elementwise`: the Jacobian is diagonal, so one derivative serves both modes as a factor;
- `linear`: the tangent goes through the function itself, and the cotangent through its transpose;
- `rule`: both are given, or the JVP is `TRANSPOSED`: derived from the VJP, which is linear in the cotangent.

Reverse mode keeps what the rules will read. A parameter of a rule whose name begins with an underscore is one whose shape and dtype
are read at most, so that a `Like` is kept in its place: ``lambda y, _x: y`` is the factor of exp, which needs its result alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

#: The JVP is derived from the VJP by transposing it.
TRANSPOSED = "transposed"
#: The factor of an elementwise rule that is 1 or -1 everywhere, so that nothing is multiplied.
ONE, MINUS_ONE = "1", "-1"

#: What a rule does not read but for shape and dtype: the result, and arguments by their places.
Unread = tuple[bool, frozenset[int]]
_READS_ALL: Unread = (False, frozenset())


class Like:
    """Shape and dtype of an array that a rule does not read: reverse mode keeps this in the array's place."""

    __slots__ = ("dtype", "shape")

    def __init__(self, a: Any) -> None:
        self.shape, self.dtype = a.shape, a.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))


class Rule:
    """The derivative of a function.

    Attributes:
        vjp: (place, cotangent, y, args, kwargs) → cotangent of the argument at the place. A `joint` rule is given all places
            and returns a list.
        jvp: (place, tangent, y, args, kwargs) → what the argument's tangent adds to that of the output; None derives it from
            vjp. A `joint` rule is given all places and tangents.
        family: The table it stands in.
        kind: elementwise, linear, or rule; for the documentation.
        options: A function of (g, y, *args, **kwargs) whose signature says which options the rule takes; None for all.
        sequence: Whether the first argument is a list of arrays, whose places in it are the places.
        joint: Whether the rule takes all places at once.
        unread: place → what the VJP by that argument does not read.
        forward: In reverse mode: (*args) → the result and what the VJP will be given in place of the arguments.
    """

    __slots__ = ("_together", "family", "forward", "joint", "jvp", "kind", "options", "sequence", "unread", "vjp")

    def __init__(
        self,
        vjp: Callable[..., Any],
        jvp: Callable[..., Any] | None,
        family: str,
        kind: str,
        options: Callable[..., Any] | None = None,
        sequence: bool = False,
        joint: bool = False,
        unread: Callable[[int], Unread] = lambda place: _READS_ALL,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.vjp, self.jvp, self.family, self.kind = vjp, jvp, family, kind
        self.options, self.sequence, self.joint = options, sequence, joint or sequence
        self.unread, self.forward = unread, forward
        self._together: dict[tuple[int, ...], Unread] = {}

    def unread_by(self, places: tuple[int, ...]) -> Unread:
        """What none of the VJPs by these arguments reads."""
        found = self._together.get(places)
        if found is None:
            each = [self.unread(place) for place in places]
            found = all(y for y, _ in each), frozenset.intersection(*(args for _, args in each))
            self._together[places] = found
        return found


#: Functions with a rule.
RULES: dict[Any, Rule] = {}
#: Functions that are written with others, and so have their derivatives.
DERIVED: dict[Any, Callable[..., Any]] = {}
#: Functions whose result is constant or has no derivative: comparisons, rounding, indices.
CONSTANT: set[Any] = set()
#: Functions that write into an array.
IN_PLACE: set[Any] = {np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal}


def _ufunc_options(
    g: Any, y: Any, *args: Any, dtype: Any = 0, casting: Any = 0, order: Any = 0, subok: Any = 0
) -> None:
    """Options of ufuncs that leave the derivative alone. `where` is none: what it skips is not even computed."""


def elementwise(family: str, function: Any, *factors: Any) -> None:
    """A function of broadcast arrays; factors are (y, *args) → ∂y/∂arg for each argument (None: not differentiable in it)."""
    is_ufunc = isinstance(function, np.ufunc)

    def times_factor(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        factor = factors[place]
        return g * (factor(y, *args, **kwargs) if kwargs and not is_ufunc else factor(y, *args))

    def vjp(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        factor = factors[place]
        if factor is ONE:
            return unbroadcast(g, args[place])
        if factor is MINUS_ONE:
            return unbroadcast(-g, args[place])
        if factor is None:
            raise _constant_in(function, place)
        return unbroadcast(times_factor(place, g, y, args, kwargs), args[place])

    def jvp(place: int, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        factor = factors[place]
        if factor is None:
            raise _constant_in(function, place)
        moved = t if factor is ONE else -t if factor is MINUS_ONE else times_factor(place, t, y, args, kwargs)
        if np.shape(moved) != np.shape(y):
            moved = np.broadcast_to(moved, np.shape(y))
        return as_dtype(moved, dtype_of(y))

    def unread(place: int) -> Unread:
        factor = factors[place]
        if not callable(factor):
            return True, frozenset(range(len(factors)))
        return _underscored(factor)

    RULES[function] = Rule(vjp, jvp, family, "elementwise", _ufunc_options if is_ufunc else None, unread=unread)


def linear(family: str, function: Any, vjp: Callable[..., Any], jvp: Callable[..., Any] | None = None) -> None:
    """A function that is linear in its first argument; vjp is (g, y, *args, **kwargs) → the transpose applied to g.

    The tangent goes through the function itself, or through jvp (t, y, *args, **kwargs) if options add a constant. The transpose reads neither the argument nor the result: that is what linear means.
    """

    def back(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        if place:
            raise _constant_in(function, place)
        return vjp(g, y, *args, **kwargs)

    def forth(place: int, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        if place:
            raise _constant_in(function, place)
        return function(t, *args[1:], **kwargs) if jvp is None else jvp(t, y, *args, **kwargs)

    RULES[function] = Rule(back, forth, family, "linear", vjp, unread=lambda place: (True, frozenset({0})))


def rule(
    family: str, function: Any, *vjps: Any, jvps: Any = TRANSPOSED, sequence: bool = False, options: Any = None
) -> None:
    """Any other function.

    Args:
        family: The table it stands in.
        function: The function.
        *vjps: For each differentiable argument (g, y, *args, **kwargs) → its cotangent. With `sequence` there is one, for all
            arrays of the list that ask: (g, y, places, *args, **kwargs) → their cotangents.
        jvps: For each (t, y, *args, **kwargs) → the output's tangent; or TRANSPOSED. With `sequence` there is one:
            ({place: t}, y, *args, **kwargs) → the output's tangent.
        sequence: Whether the first argument is a list of arrays.
        options: What has a VJP's signature, where the VJPs themselves leave options open.
    """

    def pick(rules: Any, place: int) -> Any:
        if place >= len(rules) or rules[place] is None:
            raise _constant_in(function, place)
        return rules[place]

    def back(place: int, g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return pick(vjps, place)(g, y, *args, **kwargs)

    def forth(place: int, t: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return pick(jvps, place)(t, y, *args, **kwargs)

    def back_all(places: list[int], g: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return vjps[0](g, y, places, *args, **kwargs)

    def forth_all(places: list[int], tangents: Any, y: Any, args: Any, kwargs: Any) -> Any:
        return jvps[0](dict(zip(places, tangents, strict=True)), y, *args, **kwargs)

    def unread(place: int) -> Unread:
        return _underscored(pick(vjps, place), skip=1)

    if sequence:
        RULES[function] = Rule(
            back_all, forth_all, family, "rule", options, sequence=True, unread=lambda place: (True, frozenset({0}))
        )
    else:
        options = options or next(rule for rule in vjps if rule is not None)
        RULES[function] = Rule(back, None if jvps is TRANSPOSED else forth, family, "rule", options, unread=unread)


def _underscored(function: Callable[..., Any], skip: int = 0) -> Unread:
    """What a rule's (y, *args) do not read, after `skip` parameters before them."""
    names = list(inspect.signature(function).parameters)[skip:]
    unread = [name.startswith("_") for name in names]
    return unread[0], frozenset(i for i, is_unread in enumerate(unread[1:]) if is_unread)


def _constant_in(function: Any, place: int) -> TypeError:
    return TypeError(f"{describe(function)} is not differentiable in argument {place}")


def unbroadcast(g: Any, like: Any) -> Any:
    """Sums a cotangent over the axes along which an argument was broadcast; gives it the argument's shape and dtype."""
    shape = np.shape(like)
    if np.shape(g) != shape:
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
    if dtype_of(a) == dtype:
        return a
    from framework.differentiation.rules.shapes import cast

    return cast(a, dtype)


def dtype_of(a: Any) -> np.dtype[Any]:
    """The dtype of an array, traced or not, or of a Python number."""
    dtype: np.dtype[Any] | None = getattr(a, "dtype", None)
    return dtype if dtype is not None else np.asarray(a).dtype


def likes(args: Iterable[Any]) -> list[Any]:
    """Arrays by their shapes and dtypes alone; what is no array stays."""
    return [Like(a) if hasattr(a, "dtype") else a for a in args]


def describe(function: Any) -> str:
    """Names a function for people: np.linalg.solve; functions of our own and of users by their names."""
    name = getattr(function, "__name__", repr(function))
    if isinstance(function, np.ufunc):
        return f"np.{name}" if getattr(np, name, None) is function else str(name)
    module = getattr(function, "__module__", None) or "numpy"
    if not module.startswith("numpy"):
        return str(name)
    return next((f"{known}.{name}" for part, known in _MODULES.items() if part in module), f"np.{name}")


#: Parts of the names of NumPy's modules, and by what name people know them.
_MODULES = {"linalg": "np.linalg", "fft": "np.fft", "scimath": "np.emath", "stride_tricks": "np.lib.stride_tricks"}
