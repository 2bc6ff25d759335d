"""Arguments and results of functions: arrays in tuples, lists and dicts, nested freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from framework.differentiation.table import as_dtype, dtype_of
from framework.differentiation.tracing import DifferentiationError, Traced, lift


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
    """Turns numbers and object arrays of traced scalars into arrays."""
    return rebuild(tree, lambda leaf: leaf if isinstance(leaf, Traced) else lift(np.asarray(leaf)))


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
