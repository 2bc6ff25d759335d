"""Arguments and results of functions: arrays in tuples, lists and dicts, nested freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from framework.differentiation.table import as_dtype, dtype_of
from framework.differentiation.tracing import (
    NO_PLAIN_ARRAYS,
    DifferentiationError,
    Trace,
    Traced,
    lift,
    no_plain_array,
)
from framework.memory import Array


def leaves(tree: Any) -> Iterator[Any]:
    """The arrays of a structure, in order."""
    if isinstance(tree, dict):
        for key in tree:
            yield from leaves(tree[key])
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from leaves(item)
    elif tree is not None:
        yield tree


def rebuild(tree: Any, function: Callable[..., Any], *others: Any, path: str = "") -> Any:
    """Applies a function to corresponding arrays of structures of one form.

    Raises:
        DifferentiationError: The structures differ.
    """
    if isinstance(tree, dict):
        for other in others:
            if not isinstance(other, dict) or other.keys() != tree.keys():
                raise DifferentiationError(
                    f"{path or 'the argument'} must be a dict with the keys {list(tree)}, but is {_form(other)}"
                )
        return {k: rebuild(v, function, *(o[k] for o in others), path=f"{path}[{k!r}]") for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        for other in others:
            if not isinstance(other, list | tuple) or len(other) != len(tree):
                raise DifferentiationError(
                    f"{path or 'the argument'} must be a {type(tree).__name__} of {len(tree)} items, but is {_form(other)}"
                )
        items = [rebuild(v, function, *(o[i] for o in others), path=f"{path}[{i}]") for i, v in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return None if tree is None else function(tree, *others)


def as_arrays(tree: Any) -> Any:
    """Turns numbers and object arrays of traced scalars into arrays, which have the machine's own order of bytes."""
    return rebuild(tree, lambda leaf: leaf if isinstance(leaf, Traced) else lift(_array(leaf)))


def _array(leaf: Any) -> Array:
    if isinstance(leaf, NO_PLAIN_ARRAYS):
        raise no_plain_array(leaf)
    a = np.asarray(leaf)
    return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))


def called(function: Callable[..., Any], args: Sequence[Any], trace: Trace) -> Any:
    """Runs a user's function on arrays of a trace, which ends with it; returns arrays, and says what NumPy's own errors mean.

    NumPy has errors of its own where it cannot write a traced number into an array, or meets an array of objects.
    """
    try:
        return as_arrays(function(*args))
    except DifferentiationError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        told = _meaning(error)
        if told is None:
            raise
        raise DifferentiationError(told) from error
    finally:
        trace.running = False


def _meaning(error: BaseException) -> str | None:
    """What is to be said of an error that NumPy raised because of traced arrays; None for any other."""
    cause = error.__cause__
    if isinstance(cause, DifferentiationError):  # "setting an array element with a sequence"
        return str(cause)
    text = str(error)
    of_ufuncs = "dtype('O')" in text or text.startswith(("ufunc ", "loop of ufunc "))
    asked = isinstance(error, AttributeError) and isinstance(getattr(np, error.name or "", None), np.ufunc)
    if asked or (isinstance(error, TypeError) and of_ufuncs):
        return (
            f"NumPy says: {text}. It does not hand us every function of an array of objects, which np.array makes of traced numbers; "
            "make such an array with np.stack, as in np.stack([x[0] ** 2, x[1]])"
        )
    return None


def require_tuple(arguments: Any, what: str) -> tuple[Any, ...]:
    """Returns arguments as a tuple; an array is no tuple of its rows."""
    if not isinstance(arguments, list | tuple):
        raise DifferentiationError(
            f"{what} is a tuple with one item for each argument of the function, but is a {type(arguments).__name__}: write (x,) "
            "for the one argument x"
        )
    return tuple(arguments)


def size_of(tree: Any) -> int:
    """How many numbers a structure has."""
    return sum(int(np.size(leaf)) for leaf in leaves(tree))


def as_vector(tree: Any) -> Any:
    """The numbers of a structure as one vector, in the structure's order."""
    found = [np.ravel(leaf) for leaf in leaves(as_arrays(tree))]
    if not found:
        raise DifferentiationError("there is no array in the argument")
    return np.concatenate(found)


def from_vector(tree: Any, vector: Any) -> Any:
    """A vector's numbers in the structure and the shapes of another."""
    place = 0

    def take(leaf: Any) -> Any:
        nonlocal place
        start, place = place, place + leaf.size
        return np.reshape(vector[start:place], leaf.shape)

    return rebuild(tree, take)


def matching(tree: Any, like: Any, what: str) -> Any:
    """Returns tangents or cotangents with the form, shapes and dtypes of the arrays they belong to.

    Raises:
        DifferentiationError: A form or shape differs.
    """

    def match(primal: Any, given: Any) -> Any:
        given = given if isinstance(given, Traced) else np.asarray(given)
        if np.shape(given) != np.shape(primal):
            raise DifferentiationError(
                f"a {what} has the shape of the array it belongs to, {np.shape(primal)}, but this one has {np.shape(given)}"
            )
        if dtype_of(given).kind not in "fiub":
            raise DifferentiationError(
                f"a {what} holds real numbers, as the array that it belongs to, but this one has {dtype_of(given)}"
            )
        return as_dtype(given, dtype_of(primal))

    return rebuild(like, match, tree, path=what)


def require_floats(tree: Any, who: str) -> None:
    """Raises unless all arrays hold floats."""
    for leaf in leaves(tree):
        if dtype_of(leaf).kind != "f":
            raise DifferentiationError(
                f"{who} takes arrays of floats, but got {dtype_of(leaf)}: only floats have derivatives; convert it first, as "
                "with x.astype(float)"
            )


def _form(tree: Any) -> str:
    if isinstance(tree, dict):
        return f"a dict with the keys {list(tree)}"
    return (
        f"a {type(tree).__name__} of {len(tree)} items"
        if isinstance(tree, list | tuple)
        else f"a {type(tree).__name__}"
    )
