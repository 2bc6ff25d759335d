"""Learning rates as functions of the step alone, never of the number of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The learning rate of a step.

    One's own is best a frozen dataclass with `__call__`: what a run records of it, and knows it by when it is resumed, is its `repr`, of a
    function its name alone.
    """

    def __call__(self, step: int) -> float:
        """Returns the learning rate of a step, from 0."""


@dataclass(frozen=True)
class WarmupCosine:
    """Rises linearly to `peak` over `warmup` steps, then falls along a half cosine to `final` · peak.

    (Loshchilov & Hutter 2017, arXiv 1608.03983.)

    Attributes:
        peak: The highest learning rate.
        steps: Steps of the run.
        warmup: Steps of the rise.
        final: The rate that is reached after the last step, as a part of the peak.

    >>> schedule = WarmupCosine(peak=1.0, steps=12, warmup=2)
    >>> schedule(0), schedule(1), schedule(2)
    (0.5, 1.0, 1.0)
    """

    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(self.peak, step, self.warmup)
        done = _done(step, self.steps, self.warmup)
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class WarmupLinear:
    """Rises linearly to `peak` over `warmup` steps, then falls linearly to `final` · peak.

    Attributes:
        peak: The highest learning rate.
        steps: Steps of the run.
        warmup: Steps of the rise.
        final: The rate that is reached after the last step, as a part of the peak.

    >>> schedule = WarmupLinear(peak=1.0, steps=6, warmup=2, final=0.0)
    >>> [schedule(step) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.1

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(self.peak, step, self.warmup)
        return self.peak * (1 - (1 - self.final) * _done(step, self.steps, self.warmup))


@dataclass(frozen=True)
class WarmupConstant:
    """Rises linearly to `peak` over `warmup` steps, and stays there.

    Attributes:
        peak: The highest learning rate.
        warmup: Steps of the rise.

    >>> schedule = WarmupConstant(peak=1.0, warmup=2)
    >>> [schedule(step) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """

    peak: float
    warmup: int = 0

    def __call__(self, step: int) -> float:
        return _rise(self.peak, step, self.warmup) if step < self.warmup else self.peak


@dataclass(frozen=True)
class WarmupDrops:
    """Rises linearly to `peak` over `warmup` steps, and is multiplied by `factor` at each of some steps (He et al. 2015, arXiv 1512.03385).

    Attributes:
        peak: The highest learning rate.
        drops: The first step of each lower rate, ascending.
        factor: What the rate is multiplied by there.
        warmup: Steps of the rise.

    >>> schedule = WarmupDrops(peak=1.0, drops=(2, 4), factor=0.5)
    >>> [schedule(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    peak: float
    drops: tuple[int, ...]
    factor: float = 0.1
    warmup: int = 0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return _rise(self.peak, step, self.warmup)
        return float(self.peak * self.factor ** sum(step >= drop for drop in self.drops))


def _rise(peak: float, step: int, warmup: int) -> float:
    return peak * (step + 1) / warmup


def _done(step: int, steps: int, warmup: int) -> float:
    """Which part of the fall is behind a step."""
    return min(1.0, (step - warmup) / max(1, steps - warmup))
