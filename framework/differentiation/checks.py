"""Checks of derivatives against differences, along random directions, in both modes and to second order."""

from __future__ import annotations

from typing import Any

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.differentiation.structure import as_arrays, leaves, rebuild, require_floats, require_tuple
from framework.differentiation.table import dtype_of
from framework.differentiation.tracing import DifferentiationError
from framework.keys import Key


class WrongDerivative(AssertionError):  # noqa: N818  (the name that callers act on)
    """A derivative does not agree with differences, or with its transpose."""


def check_grads(
    function: Any, args: tuple[Any, ...], order: int = 2, modes: tuple[str, ...] = ("forward", "reverse"), seed: int = 0,
    rtol: float = 1e-6, size: float = 1e-5,
) -> None:  # fmt: skip
    """Checks the derivatives of f at some arguments.

    Along a random direction the JVP must be the central difference of f; and ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ must hold for a random
    w. To order 2 the same is checked of the derivatives themselves.

    Args:
        function: f, in plain NumPy.
        args: Its arguments, in float64.
        order: 1 or 2.
        modes: "forward", "reverse", or both; with both the adjoint identity is checked, too.
        seed: Of the directions.
        rtol: Allowed relative difference. Central differences are right to about size² and 1e-16/size.
        size: Of the differences.

    Raises:
        WrongDerivative: The message says which mode and order failed, and both numbers.
        ValueError: There is no such mode, none at all, or no such order, so that nothing would be checked.
        DifferentiationError: The arguments are not in float64, whose differences alone are right to so many digits.
    """
    if not modes or not set(modes) <= {"forward", "reverse"} or order < 1:
        raise ValueError(
            f'check_grads takes modes of "forward" and "reverse" and an order from 1, but got {modes!r} and {order!r}'
        )
    args = as_arrays(require_tuple(args, "args"))
    require_floats(args, "check_grads")
    if any(dtype_of(x).itemsize < 8 for x in leaves(args)):
        raise DifferentiationError(
            "check_grads takes arrays in float64, since differences in fewer digits say nothing; convert them, as with "
            "x.astype(float)"
        )
    generator = Key(seed).fold("check_grads", order).generator()
    direction = rebuild(args, lambda x: np.asarray(generator.standard_normal(np.shape(x))))
    value = as_arrays(function(*args))
    weight = rebuild(value, lambda y: np.asarray(generator.standard_normal(np.shape(y))))

    def moved(sign: float) -> Any:
        return as_arrays(function(*rebuild(args, lambda x, v: x + sign * size * v, direction)))

    difference = _inner(weight, rebuild(moved(1), lambda a, b: (a - b) / (2 * size), moved(-1)))
    found = {}
    if "forward" in modes:
        found["forward"] = _inner(weight, jvp(function, args, direction)[1])
    if "reverse" in modes:
        found["reverse"] = _inner(vjp(function, *args)[1](weight), direction)
    scale = max(1e-3, abs(difference), *map(abs, found.values()))
    for mode, product in found.items():
        if not abs(product - difference) <= rtol * scale:
            raise WrongDerivative(f"{mode} mode gives {product!r} along a direction, differences give {difference!r}")
    if len(found) == 2 and not abs(found["forward"] - found["reverse"]) <= 1e-9 * scale:
        raise WrongDerivative(f"⟨w, J v⟩ = {found['forward']!r}, but ⟨Jᵀ w, v⟩ = {found['reverse']!r}")
    if order > 1:
        if "reverse" in modes:
            check_grads(lambda *x: vjp(function, *x)[1](weight), args, order - 1, modes, seed + 1, rtol, size)
        if "forward" in modes:
            check_grads(lambda *x: jvp(function, x, direction)[1], args, order - 1, modes, seed + 2, rtol, size)


def _inner(a: Any, b: Any) -> float:
    return float(sum(np.sum(x * y) for x, y in zip(leaves(a), leaves(b), strict=True)))
