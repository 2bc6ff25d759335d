"""Time and memory of a call, as demonstrations and benchmarks report them."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any


def median_seconds(calls: Sequence[Callable[[], Any]], repetitions: int) -> list[float]:
    """Returns the median seconds of each call, after one that is not timed.

    The calls take turns, so that a machine that slows down for a while slows all of them.

    Args:
        calls: What to time.
        repetitions: Timed runs of each, at least 1.
    """
    if repetitions < 1:
        raise ValueError(f"a median needs at least 1 repetition, but got {repetitions}")
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repetitions):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def peak_bytes(call: Callable[[], Any]) -> int:
    """Returns the most bytes that a call held at once, its result included and what was there before left out.

    `tracemalloc` counts all that Python and NumPy allocate, so a call is slower while it is measured.
    """
    gc.collect()
    call()  # what a first call leaves behind, like caches and Python's free lists, is none of the function's memory
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if started:
            tracemalloc.stop()
