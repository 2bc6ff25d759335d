"""What it gains to reduce gradients while the backward goes on, over networks that are only pretended.

Two workers of one thread train byte-gpt-small, one shard each. Every bucket of gradients takes as long as it would on a network of the
given bandwidth (`--pretend-bandwidth`). Both sides run in turn, each in a fresh process: one overlaps, the other reduces all buckets when
the backward is done. A network of no bound tells what overlapping costs on one node, where there is nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.measure import Row, in_fresh_process

from distributed import Trainer
from framework import build

PEER = "reduced at the end"
#: Bandwidths as options are written; None for shared memory as it is.
BANDWIDTHS = (None, "400MB", "100MB")
#: Steps before the timed ones.
UNTIMED = 2


def rows(
    steps: int, rounds: int, tell: Callable[[int, int, str], None], model: str = "byte-gpt-small"
) -> Iterator[Row]:
    """Yields the comparisons as they are measured.

    Args:
        steps: Timed steps of a process.
        rounds: Processes of each side.
        tell: Told before each: how many have run, how many there are, and what runs now.
        model: What is trained.
    """
    total, done = 2 * rounds * len(BANDWIDTHS), 0
    for bandwidth in BANDWIDTHS:
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for overlap in seconds:
                over = bandwidth + "/s" if bandwidth else "shared memory"
                tell(done, total, f"{model} over {over}, {'overlapped' if overlap else PEER}")
                seconds[overlap] += in_fresh_process(step_seconds, model, steps, overlap, bandwidth)
                done += 1
        name = f"overlap, {model}, 2 workers over {over}: time of a step"
        yield Row(name, "s", median(seconds[True]), median(seconds[False]), PEER, len(seconds[True]))


def step_seconds(model: str, steps: int, overlap: bool, bandwidth: str | None) -> list[float]:
    """Returns the seconds of each timed step of a run in this process, which is a fresh one."""
    how: dict[str, Any] = {"overlap": overlap, "pretend_bandwidth": bandwidth, "bucket_size": "1MiB"}
    trainer = Trainer(
        build(model), workers=2, shards=2, batch=8, steps=UNTIMED + steps, warmup_steps=0, validation_examples=8, **how
    )
    return [row["step_seconds"] for row in trainer.fit().history[UNTIMED:]]
