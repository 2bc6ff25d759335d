"""A training step, compared with PyTorch's eager mode: forward, backward and AdamW on the same shapes in float32.

Two comparisons of each model: one thread against one thread, and two cores, each side in the configuration that is fastest there:
two threads, or two processes of one thread, ours with weights of their own or shared. PyTorch's AdamW is its default one or the fused one, whichever makes the faster step.
Ours keeps all (store-all) in the block, the Trainer's default; beside one thread there is a row within a budget.

Every configuration runs in a fresh process, ours and PyTorch's in turn, and that in several rounds. A time is the median of all timed
steps of all rounds, and there is a row for the shortest one, since other work on the machine only ever lengthens a step. Memory is the
median over rounds of the same runs that the times are of; `engine_sides` says of what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Any

from benchmarks.engine_cases import Case, Configuration, chosen, ours, peers, shard_counts
from benchmarks.engine_sides import run_here
from benchmarks.measure import Row, in_fresh_process, installed

PEER = "PyTorch"
PACKAGES = ("numpy", "torch", "ray")
CORES = (1, 2)
#: How far the first losses of both sides may be apart, relatively: float32 over a few hundred sums.
SAME_LOSS = 1e-4

#: Told before each run: the runs done, all runs, and what runs now.
Tell = Callable[[int, int, str], None]


@dataclass
class Measured:
    """What the rounds of a configuration gave."""

    configuration: Configuration
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        self.seconds += found["seconds"]
        self.peaks.append(found["peak"])
        self.losses.append(found["loss"])

    def to_json(self, case: Case) -> dict[str, Any]:
        return {
            "model": case.name,
            "configuration": str(self.configuration),
            **self.configuration.to_json(),
            "seconds_median": median(self.seconds),
            "seconds_least": min(self.seconds),
            "peak_bytes": median(self.peaks),
            "runs": len(self.seconds),
        }


def rows(
    steps: int, rounds: int, only: str | None, tell: Tell, record: Callable[[dict[str, Any]], None]
) -> Iterator[Row]:
    """Yields the comparisons as they are measured.

    Args:
        steps: Timed steps of a process.
        rounds: Processes of each configuration.
        only: The one model to measure; None for all.
        tell: Told before each run.
        record: Given what was measured of each configuration, also of those that are not the fastest.

    Raises:
        ValueError: There is no such model.
        RuntimeError: A process failed, or the two sides do not compute the same loss.
    """
    cases = [(case, _configurations(case)) for case in chosen(only)]
    total, done = rounds * sum(len(configurations) for _, configurations in cases), 0
    for case, configurations in cases:
        found = {how: Measured(how) for how in configurations}
        for _ in range(rounds):
            for how in configurations:
                tell(done, total, f"{case.name}: {how.side}, {how}")
                found[how].add(in_fresh_process(run_here, case.name, how.to_json(), steps))
                done += 1
        _require_same_losses(case, found)
        for measured in found.values():
            record(measured.to_json(case))
        yield from _comparisons(case, found)


def _configurations(case: Case) -> list[Configuration]:
    """All that are measured, ours and the peer's in turn."""
    budgeted = [_budgeted(case)] if case.budget is not None else []
    mine = [how for cores in CORES for shards in shard_counts(case) for how in ours(case, cores, shards)] + budgeted
    others = [how for cores in CORES for how in peers(case, cores)] if installed("torch") else []
    return list(dict.fromkeys(how for pair in zip_longest(mine, others) for how in pair if how is not None))


def _budgeted(case: Case) -> Configuration:
    return Configuration("ours", budget=case.budget)


def _comparisons(case: Case, found: dict[Configuration, Measured]) -> Iterator[Row]:
    for cores in CORES:
        where = f"{case.title}, {'1 thread' if cores == 1 else f'{cores} cores'}"
        other = _fastest(found, peers(case, cores))
        for shards in shard_counts(case):
            mine = _fastest(found, ours(case, cores, shards))
            assert mine is not None
            with_workers = max(how.shards for how in ours(case, cores, shards))  # each has a shard at least
            told = f"V = {shards}" if with_workers == shards else f"V = {shards}, or {with_workers} with workers"
            yield from _rows(f"{where}, {told}", mine, other)
        if cores == 1 and case.budget is not None:
            yield from _rows(f"{where}, V = 1, {case.budget}", found[_budgeted(case)], other)


def _fastest(found: dict[Configuration, Measured], among: list[Configuration]) -> Measured | None:
    measured = [found[how] for how in among if how in found]
    return min(measured, key=lambda each: median(each.seconds), default=None)


def _rows(name: str, mine: Measured, other: Measured | None) -> Iterator[Row]:
    """The time, the least time and the memory of the same two configurations."""
    kinds: list[tuple[str, str, Callable[[Measured], float], int]] = [
        ("time of a step", "s", lambda each: median(each.seconds), len(mine.seconds)),
        ("shortest step", "s", lambda each: min(each.seconds), len(mine.seconds)),
        ("peak memory", "bytes", lambda each: median(each.peaks), len(mine.peaks)),
    ]
    peer_name = PEER if other is None else f"{PEER}, {other.configuration}"
    for kind, unit, value, runs in kinds:
        theirs = None if other is None else value(other)
        yield Row(
            f"{name}: {kind}",
            unit,
            value(mine),
            theirs,
            peer_name,
            runs,
            package="torch",
            ours_name=str(mine.configuration),
        )


def _require_same_losses(case: Case, found: dict[Configuration, Measured]) -> None:
    """Raises unless both sides began with the same loss: else they would not have done the same work.

    Norms over a batch are taken over a shard or a process's part of it, so only undivided batches are held against each other.
    """
    whole = [each for how, each in found.items() if how.processes == how.shards == 1]
    losses = {f"{each.configuration.side}, {each.configuration}": each.losses[0] for each in whole}
    first = next(iter(losses.values()))
    if not all(abs(loss - first) <= SAME_LOSS * abs(first) for loss in losses.values()):  # nor if one is no number
        told = "; ".join(f"{name}: {loss:.6f}" for name, loss in losses.items())
        raise RuntimeError(f"{case.name}: the sides do not compute the same, their first losses are {told}")
