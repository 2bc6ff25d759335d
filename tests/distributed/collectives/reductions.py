"""Ranks that reduce gradients, as threads of this process, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from checkpointing.reduction import Totals
from checkpointing.reduction_tree import added_by_layer, additions_after, shards_of
from distributed.collectives.gradients import GradientReduction
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Faults, Faulty, InProcess
from framework import Key, Ledger

PERFECT = Faults()


def open_world(
    world: int,
    shards: int,
    size: int,
    dtype: str = "float32",
    timeout: float = 30.0,
    faults: Faults = PERFECT,
    **options: Any,
) -> list[GradientReduction]:
    options |= {"slots": 5, "timeout": timeout}
    ranks = [GradientReduction(r, world, shards, size, np.dtype(dtype), **options) for r in range(world)]
    spread = options.get("spread") or Spread.of([0] * world)
    inboxes: list[Any] = [ranks[leader].inbox for leader in spread.leaders]
    for rank in ranks:
        carrier = Faulty(InProcess(inboxes), Faults(faults.delay, faults.loss, faults.seed + rank.rank))
        rank.connect([other.address for other in ranks], carrier)
    return ranks


def in_parallel(ranks: list[GradientReduction], work: Callable[[GradientReduction], Any]) -> list[Any]:
    def guarded(rank: GradientReduction) -> Any:
        try:
            return work(rank)
        except BaseException as error:
            rank.abort(str(error))  # so that the others need not wait
            raise

    with ThreadPoolExecutor(len(ranks)) as pool:
        return [future.result() for future in [pool.submit(guarded, rank) for rank in ranks]]


def gradients(shards: int, size: int, dtype: str) -> list[np.ndarray]:
    generator = Key(3).fold(shards, size).generator()
    # Of very different magnitudes, so that the order of additions shows in the bits.
    return [
        (generator.standard_normal(size) * 10.0 ** generator.integers(-6, 6, size)).astype(dtype) for _ in range(shards)
    ]


def bucketed(size: int, count: int) -> list[list[slice]]:
    """Cuts elements into buckets from the end, the last of two runs."""
    edges = [size * number // (count + 1) for number in range(count + 2)]
    runs = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [*([run] for run in reversed(runs[1:-1])), [runs[0], runs[-1]]]


def all_reduce(
    rank: GradientReduction, parts: list[np.ndarray], steps: int = 1, buckets: int = 1
) -> list[tuple[bytes, float, float]]:
    """What a worker does: a buffer for each even shard, to which the odd one is added; these like a binary counter, then reduced.

    The last shard is made bucket by bucket, each of which is reduced at once.
    """
    ledger, results = Ledger(), []
    mine = shards_of(rank.shards, rank.world, rank.rank)
    totals = {shard: Totals(float(shard) + 0.1, 2.0, shard + 0.5) for shard in mine}
    for step in range(steps):
        held: dict[int, np.ndarray] = {}
        roots: list[tuple[int, int]] = []
        for shard in mine:
            by_layer = added_by_layer(mine, shard)
            if not by_layer:
                held[shard] = ledger.empty((rank.size,), rank.dtype, "gradients", allocator=rank)
            into = held[shard - by_layer]
            for places in bucketed(rank.size, buckets):
                for place in places:
                    part = parts[shard][place] * (step + 1)
                    into[place] = into[place] + part if by_layer else part
                if shard == mine[-1]:
                    rank.begin(held, places, totals)
            roots.append((shard, 1))
            for first, count in additions_after(roots):
                if count > 1 and shard != mine[-1]:
                    held[first] += held.pop(first + count)
        total, (loss, count, _) = rank.finish()
        results.append((total.tobytes(), loss, count))
        rank.barrier()
        del total, held, into
        assert ledger.live == 0
    return results


def reference(parts: list[np.ndarray], scale: float) -> bytes:
    """The canonical tree in one process, written anew."""
    level = [part * scale for part in parts]
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return (level[0] / (2.0 * len(parts))).astype(parts[0].dtype).tobytes()
