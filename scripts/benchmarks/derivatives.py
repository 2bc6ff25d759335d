"""Gradients of plain NumPy code, compared with HIPS autograd, which traces NumPy code, too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np
from benchmarks.measure import Row, installed, peak_bytes, peaks, times

from framework import Key
from framework.differentiation import grad, jvp

PEER = "autograd"
PACKAGES = ("numpy", PEER)
BATCH = 32


def rows(runs: int) -> Iterator[Row]:
    """Yields the comparisons as they are measured."""
    for width in (16, 512):
        yield from _compare(f"gradient of a 3-layer MLP, width {width}", _mlp, width, runs)
    yield from _compare("gradient of a 1,000-step scalar recurrence", _recurrence, 1_000, runs)
    shallow, deep = (peak_bytes(_forward(depth)) for depth in (10, 1_000))
    yield Row("JVP at depth 1,000: peak memory", "bytes", deep, shallow, "itself at depth 10", 1)


def _compare(name: str, task: Any, size: int, runs: int) -> Iterator[Row]:
    function, argument = task(np, size)
    ours, peer = lambda: grad(function)(argument), None
    if installed(PEER):
        import autograd
        import autograd.numpy

        peers_function, _ = task(autograd.numpy, size)
        peer = lambda: autograd.grad(peers_function)(argument)  # noqa: E731
        _require_equal(ours(), peer())
    yield times(f"{name}: time", ours, peer, PEER, runs)
    yield peaks(f"{name}: peak memory", ours, peer, PEER)


def _mlp(numpy: ModuleType, width: int) -> tuple[Any, Any]:
    """The loss of three layers of one width, and their parameters."""
    generator = Key(0).fold("mlp", width).generator()
    weights = [generator.standard_normal((width, width)) / np.sqrt(width) for _ in range(3)]
    biases = [generator.standard_normal(width) for _ in range(3)]
    x, target = generator.standard_normal((2, BATCH, width))

    def loss(parameters: Any) -> Any:
        weights, biases = parameters
        h = x
        for i in range(3):
            h = numpy.dot(h, weights[i]) + biases[i]
            if i < 2:
                h = numpy.tanh(h)
        return numpy.mean((h - target) ** 2)

    return loss, (weights, biases)


def _recurrence(numpy: ModuleType, steps: int) -> tuple[Any, float]:
    def run(x: Any) -> Any:
        state = x
        for _ in range(steps):
            state = numpy.sin(state) * 0.9 + x
        return state

    return run, 0.3


def _forward(depth: int) -> Any:
    x = Key(0).fold("forward").generator().standard_normal(4_096)

    def deep(x: Any) -> Any:
        for _ in repeat(None, depth):  # range would make integers, which count
            x = np.tanh(x)
        return x

    return lambda: jvp(deep, (x,), (x,))


def _require_equal(ours: Any, theirs: Any) -> None:
    """Raises if the two sides did not compute the same."""
    if isinstance(ours, list | tuple):
        for a, b in zip(ours, theirs, strict=True):
            _require_equal(a, b)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
