"""Functions that take each element from one of several arrays. Conditions are constants.

Convention: at a border of clip, the element itself keeps the derivative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.rules.indexing import put_items
from framework.differentiation.table import DERIVED, as_dtype, dtype_of, elementwise, rule, unbroadcast
from framework.differentiation.tracing import DifferentiationError, untraced


def _where_vjp(first: bool) -> Any:
    def vjp(g: Any, _y: Any, condition: Any, _a: Any, _b: Any) -> Any:
        zero = np.zeros((), dtype_of(_y))
        return unbroadcast(np.where(condition, g, zero) if first else np.where(condition, zero, g), _a if first else _b)

    return vjp


def _where_jvp(first: bool) -> Any:
    def jvp(t: Any, y: Any, condition: Any, a: Any, b: Any) -> Any:
        zero = np.zeros((), dtype_of(y))
        moved = np.where(condition, t, zero) if first else np.where(condition, zero, t)
        return moved if np.shape(moved) == np.shape(y) else np.broadcast_to(moved, np.shape(y))

    return jvp


def _nothing(_t: Any, _y: Any, condition: Any, _a: Any, _b: Any) -> Any:
    return np.zeros(np.shape(condition), dtype_of(condition))


rule(
    "selection", np.where, _nothing, _where_vjp(True), _where_vjp(False),
    jvps=(lambda t, y, condition, a, b: np.zeros(np.shape(y), dtype_of(y)), _where_jvp(True), _where_jvp(False)),
)  # fmt: skip


# y is one of the element and the limits: the first of these that it equals has the derivative.
elementwise(
    "selection",
    np.clip,
    lambda y, a, *_limits, **named: np.equal(y, a),
    lambda y, a, low=None, *_high, **named: np.equal(y, low) & np.not_equal(y, a),
    lambda y, a, low=None, high=None, **named: np.equal(y, high) & np.not_equal(y, a) & np.not_equal(y, low),
)


def _select(condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    """The first choice whose condition holds."""
    y = default
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        y = np.where(condition, choice, y)
    return y


def _choose(a: Any, choices: Any, mode: Any = "raise") -> Any:
    number = np.choose(a, list(range(len(choices))), mode=mode)  # what mode does to a number out of bounds, NumPy says
    y = choices[0]
    for i in range(1, len(choices)):
        y = np.where(np.equal(number, i), choices[i], y)
    return np.broadcast_to(y, np.broadcast_shapes(np.shape(y), np.shape(number)))


def _piecewise(x: Any, condlist: Any, funclist: Any, *args: Any, **kw: Any) -> Any:
    """Each function sees the elements where its condition holds; a function more than conditions sees the rest."""
    conditions = np.asarray(condlist, bool)
    if conditions.ndim == np.ndim(x):
        conditions = conditions[None]
    if len(funclist) == len(conditions) + 1:
        conditions = np.concatenate([conditions, ~np.any(conditions, axis=0, keepdims=True)])
    y: Any = np.zeros(np.shape(x), dtype_of(x))
    for where, function in zip(conditions, funclist, strict=True):
        part = (
            function(x[where], *args, **kw)
            if callable(function)
            else np.full(int(np.sum(where)), function, dtype_of(x))
        )
        y = np.where(where, put_items(as_dtype(part, dtype_of(x)), (where,), np.shape(x)), y)
    return y


def _nan_to_num(x: Any, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    if not copy:
        raise DifferentiationError(
            "np.nan_to_num with copy=False writes into its argument, which would change what is differentiated; leave copy away"
        )
    return np.where(np.isfinite(x), x, np.nan_to_num(untraced(x), nan=nan, posinf=posinf, neginf=neginf))


DERIVED |= {
    np.nan_to_num: _nan_to_num,
    np.select: _select,
    np.choose: _choose,
    np.piecewise: _piecewise,
}
