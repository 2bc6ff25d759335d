"""What the sections share: settings, plain numbers, and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.keys import Key
from framework.memory import Array

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]
Weights = list[tuple[Array, Array]]


@dataclass(frozen=True)
class Settings:
    """How large the sections are.

    Attributes:
        seed: Of all random numbers.
        arguments: n of the map with 10 results whose Jacobian is computed both ways.
        entries: m n of the maps by which the crossover is found; a multiple of 1,000.
        elements: Of the elementwise functions' argument.
        networks: (layers, width, batch) of the networks that are timed.
        depths: Numbers of layers for which memory is measured, growing.
        repetitions: Runs that a median of times is of.
        engine: Gives loss and gradients of the five-layer network another way; see `FiveLayers`. None leaves the comparison
            out.
    """

    seed: int = 0
    arguments: int = 10_000
    entries: int = 40_000
    elements: int = 100_000
    networks: tuple[tuple[int, int, int], ...] = ((3, 8, 4), (3, 512, 256))
    depths: tuple[int, ...] = (10, 30, 100, 300, 1000)
    repetitions: int = 3
    engine: Callable[[Any], tuple[float, Weights]] | None = None

    def generator(self, section: str) -> np.random.Generator:
        """The random numbers of a section, which do not depend on the sections before it."""
        return Key(self.seed).fold("demonstration", section).generator()


@dataclass(frozen=True)
class Product:
    """A product that a transform gave, and the same one by a formula.

    Attributes:
        name: What it is.
        result: What the transform gave.
        exact: What the formula gives.
        difference: The largest absolute difference of the two.
    """

    name: str
    result: Vector
    exact: Vector
    difference: float


def product(name: str, result: Any, exact: Any) -> Product:
    return Product(name, vector(result), vector(exact), difference(result, exact))


def vector(a: Any) -> Vector:
    return tuple(float(number) for number in np.ravel(a))


def difference(a: Any, b: Any) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def norm(a: Any) -> float:
    return float(np.linalg.norm(a))


def raveled(weights: Weights) -> tuple[Array, Callable[[Any], Any]]:
    """The parameters as one vector, and the function that gives them back."""
    shapes = [(W.shape, b.shape) for W, b in weights]

    def unravel(flat: Any) -> list[tuple[Any, Any]]:
        found, start = [], 0
        for shape_W, shape_b in shapes:
            middle = start + shape_W[0] * shape_W[1]
            found.append((flat[start:middle].reshape(shape_W), flat[middle : middle + shape_b[0]]))
            start = middle + shape_b[0]
        return found

    return np.concatenate([np.ravel(a) for pair in weights for a in pair]), unravel
