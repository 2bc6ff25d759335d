"""A worker's metrics for Ray, which exports them for Prometheus with those of its own (where its agent for that is installed: ray[default])."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The buckets of times: from half a millisecond on, each twice as long as the one before.
_BOUNDARIES = [0.0005 * 2**i for i in range(18)]


class RayMetrics:
    """Gauges of bytes, histograms of times, and a counter of targets, each with the tags ``run`` and ``rank``.

    Each worker has its own, so that Ray's tags of node and process are those of the worker. Throughput is the rate of the counter over all ranks.

    Args:
        run: What the run is called.
        rank: The worker's.
    """

    def __init__(self, run: str, rank: int) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram  # importing Ray takes a second

        tags = {"run": run, "rank": str(rank)}

        def made(kind: Any, name: str, told: str, **more: Any) -> Any:
            return kind(f"retape_{name}", told, tag_keys=tuple(tags), **more).set_default_tags(tags)

        self._gauges = {
            "live_bytes": made(Gauge, "live_bytes", "Bytes that the engine holds after a step"),
            "peak_bytes": made(Gauge, "peak_bytes", "Most bytes that the engine has held at once"),
            "rss_peak_bytes": made(Gauge, "rss_peak_bytes", "Most resident bytes of the process"),
        }
        self._times = {
            "step_seconds": made(Histogram, "step_seconds", "Time of a step", boundaries=_BOUNDARIES),
            "reduce_seconds": made(
                Histogram,
                "reduce_seconds",
                "Of a step, how long the all-reduce kept the rank waiting",
                boundaries=_BOUNDARIES,
            ),
        }
        self._targets = made(Counter, "targets", "Targets that were trained on")

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds the metrics of a step; see `Worker.step`."""
        for name, gauge in self._gauges.items():
            gauge.set(row[name])
        for name, histogram in self._times.items():
            histogram.observe(row[name])
        if row["targets"] > 0:
            self._targets.inc(row["targets"])
