"""Which mode gives a full Jacobian sooner, by its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings, difference
from framework.differentiation.reverse import vjp
from framework.differentiation.transforms import jacobian, jacobian_plan
from framework.measuring import median_seconds


@dataclass(frozen=True)
class Shape:
    """The full Jacobian of x ↦ W x by both modes.

    Attributes:
        results: m, which VJPs take.
        arguments: n, which JVPs take.
        forward_seconds: Of n JVPs.
        reverse_seconds: Of m VJPs.
        ratio: forward_seconds / reverse_seconds.
        chosen: The mode that `jacobian_plan` chooses.
        faster: The mode that was faster.
        difference: The largest one of both matrices from W, which is the Jacobian.
    """

    results: int
    arguments: int
    forward_seconds: float
    reverse_seconds: float
    ratio: float
    chosen: str
    faster: str
    difference: float


@dataclass(frozen=True)
class Crossover:
    """Which mode is faster by shape.

    Attributes:
        many_to_few: The map with 10 results and many arguments.
        scalar_seconds: Of the one VJP that gives the gradient of a map with one result and as many arguments.
        shapes: Others of equal m n, from few arguments to many.
        crossover: n / m at which both modes take equally long, interpolated; None if one was faster throughout.
        crossover_shape: (m, n) there.
    """

    many_to_few: Shape
    scalar_seconds: float
    shapes: tuple[Shape, ...]
    crossover: float | None
    crossover_shape: tuple[int, int] | None


def crossover(settings: Settings) -> Crossover:
    """Times of full Jacobians by JVPs and by VJPs over shapes."""
    generator, entries = settings.generator("crossover"), settings.entries
    root = round(entries**0.5)
    sides = (10, 32, 100, root, entries // 100, entries // 32, entries // 10)
    shapes = tuple(_shape(entries // n, n, settings) for n in sorted({n for n in sides if 0 < n <= entries}))
    row = generator.standard_normal((1, settings.arguments))
    _, pullback = vjp(lambda x: row @ x, np.ones(settings.arguments))
    (scalar,) = median_seconds([lambda: pullback(np.ones(1))], 10 * settings.repetitions)
    ratio = equal_at([shape.arguments / shape.results for shape in shapes], [shape.ratio for shape in shapes])
    # m n is nearly `entries` everywhere, which gives m and n from their ratio.
    place = None if ratio is None else (round((entries / ratio) ** 0.5), round((entries * ratio) ** 0.5))
    return Crossover(_shape(10, settings.arguments, settings), scalar, shapes, ratio, place)


def _shape(results: int, arguments: int, settings: Settings) -> Shape:
    generator = settings.generator(f"crossover {results}x{arguments}")
    W, x = generator.standard_normal((results, arguments)), generator.standard_normal(arguments)
    found: dict[str, Any] = {}

    def run(mode: str) -> None:
        found[mode] = jacobian(lambda x: W @ x, mode)(x)

    forward, reverse = median_seconds([lambda: run("forward"), lambda: run("reverse")], settings.repetitions)
    return Shape(
        results=results,
        arguments=arguments,
        forward_seconds=forward,
        reverse_seconds=reverse,
        ratio=forward / reverse,
        chosen=jacobian_plan(lambda x: W @ x, x).mode,
        faster="forward" if forward < reverse else "reverse",
        difference=max(difference(matrix, W) for matrix in found.values()),
    )


def equal_at(places: list[float], ratios: list[float]) -> float | None:
    """Returns where a ratio of times passes 1 for the first time, interpolated between logarithms; None where it never does.

    >>> equal_at([0.1, 10.0], [0.1, 10.0]), equal_at([0.1, 10.0], [2.0, 3.0])
    (1.0, None)
    """
    x, y = np.log(places), np.log(ratios)
    for i in range(1, len(x)):
        if y[i - 1] * y[i] <= 0 and y[i] != y[i - 1]:
            return float(np.exp(x[i - 1] - y[i - 1] * (x[i] - x[i - 1]) / (y[i] - y[i - 1])))
    return None
