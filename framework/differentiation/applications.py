"""What derivatives are for: uncertainty, sensitivity, steps of Newton's method, sharpness.

The functions take a function in plain NumPy and its argument, an array or arrays in any structure. No Jacobian and no Hessian is
formed: all is built from products with them. `conjugate_gradients` and `lanczos` need the products alone, so they also work with
those of a chain under a plan, `checkpointing.hvp` and `checkpointing.gauss_newton_vp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from framework.differentiation.forward import jvp
from framework.differentiation.linearization import linearize
from framework.differentiation.reverse import grad
from framework.differentiation.structure import as_arrays, as_vector, from_vector, leaves, matching, size_of
from framework.keys import Key
from framework.memory import Array


def propagate_covariance(function: Any, x: Any, covariance: Any = None, *, factor: Any = None) -> tuple[Any, Array]:
    """Returns f(x) and the covariance of f to first order, J Σ Jᵀ: how uncertainty of x becomes uncertainty of f(x).

    With Σ = F Fᵀ it is (J F)(J F)ᵀ, and each column of J F is a JVP. So J is never formed, and a Σ of low rank is cheap.

    Args:
        function: f, in plain NumPy.
        x: Its argument; n numbers in all, in the order of the structure.
        covariance: Σ of shape (n, n), symmetric and positive semidefinite; or the variances of independent numbers, shape (n,).
        factor: F of shape (n, r) instead, which costs r JVPs.

    Returns:
        f(x), and its covariance of shape (m, m) for m numbers in all.

    Raises:
        ValueError: There is not exactly one of Σ and F, or it has the wrong shape or is no covariance.

    >>> import numpy as np
    >>> value, found = propagate_covariance(lambda x: x[0] * x[1], np.array([2.0, 3.0]), np.array([0.01, 0.04]))
    >>> float(value), np.round(found, 12).tolist()  # 3² · 0.01 + 2² · 0.04
    (6.0, [[0.25]])
    """
    x = as_arrays(x)
    n = size_of(x)
    if (covariance is None) == (factor is None):
        raise ValueError("give either covariance or factor")
    columns = _factor(np.asarray(covariance), n) if factor is None else np.asarray(factor)
    if columns.ndim != 2 or len(columns) != n:
        raise ValueError(f"a factor has a row for each of the {n} numbers of x, but this one has shape {columns.shape}")
    value, push = linearize(function, x)
    m = size_of(value)
    moved = np.empty((m, columns.shape[1]))
    for number, column in enumerate(columns.T):
        moved[:, number] = as_vector(push(_like(x, column)))
    return value, moved @ moved.T


class Sensitivity(NamedTuple):
    """How much f moves along a direction.

    Attributes:
        value: f(x).
        tangent: J·direction.
        absolute: ‖J·direction‖ / ‖direction‖: the change of f for a change of x of size 1 that way.
        relative: That times ‖x‖ / ‖f(x)‖: the relative change of f for a relative change of x, a condition number.
    """

    value: Any
    tangent: Any
    absolute: float
    relative: float


def sensitivity(function: Any, x: Any, direction: Any) -> Sensitivity:
    """Returns how much f moves when x moves along a direction, by one JVP.

    Args:
        function: f, in plain NumPy.
        x: Its argument.
        direction: Of the form of x.

    Raises:
        ValueError: The direction is zero.

    >>> import numpy as np
    >>> found = sensitivity(lambda x: x**3, np.array(2.0), np.array(1.0))
    >>> found.absolute, found.relative
    (12.0, 3.0)
    """
    size = _norm(direction)
    if not size:
        raise ValueError("the direction is zero, along which nothing moves; give another one")
    value, tangent = jvp(function, (x,), (direction,))
    absolute = _norm(tangent) / size
    of_value, moved = _norm(value), absolute * _norm(x)
    return Sensitivity(value, tangent, absolute, moved / of_value if of_value else math.inf if moved else 0.0)


class Solved(NamedTuple):
    """What conjugate gradients found.

    Attributes:
        step: The step z, of the form of the gradient.
        gradient_norm: ‖g‖.
        residual_norm: ‖H z + g‖, as the iteration knows it.
        products: Products with H.
        stopped: "tolerance", "iterations" or "negative curvature".
    """

    step: Any
    gradient_norm: float
    residual_norm: float
    products: int
    stopped: str


def conjugate_gradients(
    product: Callable[[Array], Array], gradient: Array, tolerance: float | None = None, iterations: int | None = None
) -> Solved:
    """Returns a step that about minimizes the quadratic model gᵀz + zᵀHz/2 (Nocedal & Wright 2006, algorithm 7.1).

    It stops when ‖H z + g‖ < tolerance·‖g‖; or at a direction of no or negative curvature, with what there is so far (steepest
    descent in the first iteration); or after so many iterations. The step is always a descent direction.

    Args:
        product: v ↦ H v on vectors.
        gradient: g, shape (n,).
        tolerance: Relative; by default min(1/2, √‖g‖), with which Newton's method converges superlinearly.
        iterations: At most so many; by default n.
    """
    norm = float(np.linalg.norm(gradient))
    goal = norm * (min(0.5, math.sqrt(norm)) if tolerance is None else tolerance)
    step, residual, direction = np.zeros_like(gradient), gradient.copy(), -gradient
    squared = norm**2
    for number in range(gradient.size if iterations is None else iterations):
        if math.sqrt(squared) <= goal:
            return Solved(step, norm, math.sqrt(squared), number, "tolerance")
        bent = product(direction)
        curvature = float(direction @ bent)
        if curvature <= 0:
            if number == 0:
                step, residual = direction, gradient + bent
            return Solved(step, norm, float(np.linalg.norm(residual)), number + 1, "negative curvature")
        length = squared / curvature
        step += length * direction
        residual += length * bent
        before, squared = squared, float(residual @ residual)
        direction *= squared / before
        direction -= residual
    done = gradient.size if iterations is None else iterations
    stopped = "tolerance" if math.sqrt(squared) <= goal else "iterations"
    return Solved(step, norm, math.sqrt(squared), done, stopped)


def newton_cg_step(function: Any, x: Any, tolerance: float | None = None, iterations: int | None = None) -> Solved:
    """Returns one step of Newton's method for minimizing a scalar f, found by conjugate gradients with Hessian products.

    The gradient is recorded once and each product pushes a tangent through the record. How long a step to take is the caller's to
    decide, by a line search for example.

    Args:
        function: f, in plain NumPy.
        x: Its argument.
        tolerance: Of ‖H z + g‖, relative to ‖g‖; see `conjugate_gradients`.
        iterations: The most products.

    Returns:
        The step, of the form of x, and how it was found.

    >>> import numpy as np
    >>> x = np.array([3.0, -2.0])
    >>> found = newton_cg_step(lambda x: np.sum(np.array([1.0, 10.0]) * (x - 1) ** 2), x, tolerance=1e-10)
    >>> np.round(x + found.step, 9).tolist(), found.products, found.stopped
    ([1.0, 1.0], 2, 'tolerance')
    """
    x = as_arrays(x)
    gradient, push = linearize(grad(function), x)
    solved = conjugate_gradients(lambda v: as_vector(push(_like(x, v))), as_vector(gradient), tolerance, iterations)
    return solved._replace(step=_like(x, solved.step))


class Eigenpair(NamedTuple):
    """The largest eigenvalue of a symmetric matrix.

    Attributes:
        value: The eigenvalue λ.
        vector: A unit vector v with H v ≈ λ v.
        iterations: Products with H that the iteration took.
        residual: ‖H v - λ v‖, by one more product: an eigenvalue of H lies within it of λ.
    """

    value: float
    vector: Any
    iterations: int
    residual: float


def lanczos(
    product: Callable[[Array], Array], start: Array, tolerance: float = 1e-6, iterations: int = 100
) -> Eigenpair:
    """Returns the largest eigenvalue (not by magnitude) of a symmetric matrix known by its products (Lanczos 1950).

    All vectors are kept and orthogonalized twice, so it holds `iterations` vectors. A start that is orthogonal to the eigenvector
    does not find it; a random one is not.

    Args:
        product: v ↦ H v on vectors.
        start: Shape (n,), not zero.
        tolerance: Stops when ‖H v - λ v‖ ≤ tolerance·|λ|.
        iterations: The most products; n are always enough.
    """
    basis = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        moved = product(basis[-1])
        diagonal.append(float(basis[-1] @ moved))
        for _ in range(2):
            for vector in basis:
                moved = moved - (vector @ moved) * vector
        left = float(np.linalg.norm(moved))
        matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        values, vectors = np.linalg.eigh(matrix)
        value, coordinates = float(values[-1]), vectors[:, -1]
        scale = float(np.max(np.abs(values)))
        near = left * abs(coordinates[-1]) <= tolerance * abs(value) or left <= np.finfo(start.dtype).eps * scale
        if near or len(basis) >= min(iterations, start.size):
            break
        basis.append(moved / left)
        beside.append(left)
    vector = sum(weight * each for weight, each in zip(coordinates.tolist(), basis, strict=True))
    vector = vector / np.linalg.norm(vector)
    return Eigenpair(value, vector, len(basis), float(np.linalg.norm(product(vector) - value * vector)))


def largest_eigenvalue(
    function: Any, x: Any, key: Key | None = None, tolerance: float = 1e-6, iterations: int = 100
) -> Eigenpair:
    """Returns the largest eigenvalue of the Hessian of a scalar f at x, its sharpness, by Hessian products.

    Gradient descent with a step longer than 2 / λ is unstable there.

    Args:
        function: f, in plain NumPy.
        x: Its argument.
        key: Draws the start, so equal keys give equal results; `Key(0)` by default.
        tolerance: Relative; see `lanczos`.
        iterations: The most products.

    Returns:
        The eigenvalue with its vector, of the form of x.

    >>> import numpy as np
    >>> found = largest_eigenvalue(lambda x: np.sum(np.array([1.0, 2.0, -5.0]) * x**2), np.zeros(3))
    >>> round(found.value, 9), found.iterations
    (4.0, 3)
    """
    x = as_arrays(x)
    gradient, push = linearize(grad(function), x)
    shape = as_vector(gradient)
    start = (key or Key(0)).fold("lanczos").generator().standard_normal(shape.size).astype(shape.dtype)
    found = lanczos(lambda v: as_vector(push(_like(x, v))), start, tolerance, iterations)
    return found._replace(vector=_like(x, found.vector))


def _factor(covariance: Array, n: int) -> Array:
    """Returns F with F Fᵀ = Σ, without the columns that are zero."""
    if covariance.shape not in ((n,), (n, n)):
        raise ValueError(f"a covariance of {n} numbers has shape ({n}, {n}) or ({n},), but got {covariance.shape}")
    if covariance.ndim == 1:
        if not np.all(covariance >= 0):
            raise ValueError("variances are not negative, but one of these is, or is no number")
        places = np.flatnonzero(covariance)
        deviations = np.zeros((n, len(places)))
        deviations[places, np.arange(len(places))] = np.sqrt(covariance[places])
        return deviations
    scale = float(np.max(np.abs(covariance), initial=0.0))
    if not np.all(np.abs(covariance - covariance.T) <= 1e-10 * scale):  # neither is it of a NaN
        raise ValueError("a covariance is symmetric and finite, but this matrix is not")
    values, vectors = np.linalg.eigh(covariance)
    if values.size and values[0] < -1e-10 * n * scale:
        raise ValueError(f"a covariance has no negative eigenvalue, but this one has {values[0]:.3g}")
    kept = values > np.finfo(np.float64).eps * n * scale
    columns: Array = vectors[:, kept] * np.sqrt(values[kept])
    return columns


def _like(x: Any, vector: Array) -> Any:
    """A vector's numbers in the structure of x, with its dtypes."""
    return matching(from_vector(x, vector), x, "vector")


def _norm(tree: Any) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in leaves(as_arrays(tree))))
