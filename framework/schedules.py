"""Learning rates as functions of the step alone, never of the number of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))
