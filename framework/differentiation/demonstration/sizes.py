"""Bytes of full Jacobians beside those of products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framework.differentiation.demonstration.common import Settings
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.measuring import peak_bytes


@dataclass(frozen=True)
class Size:
    """A Jacobian by parameters, and one product with it; bytes in float32.

    Attributes:
        component: What is differentiated.
        arguments: n, its parameters.
        results: m.
        results_are: What m counts.
        entries: m n.
        jacobian_bytes: Of the matrix.
        jvp_bytes: Of J v: m numbers.
        vjp_bytes: Of Jᵀ w: n numbers.
    """

    component: str
    arguments: int
    results: int
    results_are: str
    entries: int
    jacobian_bytes: int
    jvp_bytes: int
    vjp_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Full Jacobians beside products.

    Attributes:
        components: By size.
        measured: The component whose products were run.
        jvp_peak_bytes: The most bytes that one JVP of it held.
        vjp_peak_bytes: The most bytes that one VJP of it held.
    """

    components: tuple[Size, ...]
    measured: str
    jvp_peak_bytes: int
    vjp_peak_bytes: int


def sizes(settings: Settings) -> Sizes:
    """Bytes of full Jacobians of real networks; products of the smallest are run."""
    generator = settings.generator("sizes")
    x, W, V = (generator.standard_normal(shape, dtype=np.float32) for shape in ((1024,), (512, 1024), (512, 1024)))
    g = np.ones(512, np.float32)
    components = (
        _size("dense layer 1024→512", 1024 * 512, 512, "outputs of one example"),
        _size("ResNet-50", 25_000_000, 32 * 1000, "batch 32 × 1,000 classes"),
        _size("GPT-3", 175_000_000_000, 2048, "one number for each of 2,048 positions"),
    )
    return Sizes(
        components=components,
        measured=components[0].component,
        jvp_peak_bytes=peak_bytes(lambda: jvp(lambda W: W @ x, (W,), (V,))),
        vjp_peak_bytes=peak_bytes(lambda: vjp(lambda W: W @ x, W)[1](g)),
    )


def _size(component: str, arguments: int, results: int, results_are: str) -> Size:
    item, entries = np.dtype(np.float32).itemsize, arguments * results
    return Size(component, arguments, results, results_are, entries, item * entries, item * results, item * arguments)
