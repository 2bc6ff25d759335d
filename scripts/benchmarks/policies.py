"""What plans cost beside PyTorch's checkpointing, beside the proven lower bounds, and beside what was planned.

**Against PyTorch.** For each tenth of the bytes that PyTorch saves for the backward where it stores all: the time of a step over that of
the same side's store-all, ours by the fastest plan known that saves at most so many bytes, PyTorch's by the fastest that fits of
`torch.utils.checkpoint` of each block and `checkpoint_sequential`. Bytes saved are counted alike: outputs and residuals that a backward reads,
or that something is computed again from, at the moment when they are most, each piece of memory once, parameters left out. What is on its
way from one forward to the next, cotangents and scratch count on neither side (in our plans they are part of the budget all the same).
`policies_pytorch` and `policies_plans.saved_nbytes` say how.

**Against the bound.** By which part the planned time of each of these plans is above what no plan within its memory goes below
(`checkpointing/bounds.py`), and the largest such gap of all budgets from half of store-all's activations up.

**Against the plan.** Of the same plans, and of some of further models: by which part measured seconds over store-all's differ from planned ones.

**On disk.** A step within a budget just below the least that recomputation needs: its time and its bytes at the peak besides parameters, gradients and
optimizer state. The file is in the folder for temporary files, and the system may keep it in free memory. Its thread may take another core.

All steps are on one thread, one shard, float32. Each side's configurations run in turn in one process, in several rounds. A ratio is the median of
all steps, each over the store-all step that ran shortly before it; and that of the shortest steps among as many on either side, since other
work on the machine only ever lengthens one. Costs are measured at the start of each model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine import SAME_LOSS
from benchmarks.engine_cases import Case
from benchmarks.measure import Row, in_fresh_process, installed
from benchmarks.policies_cases import COMPARED, DISK, chosen
from benchmarks.policies_plans import fastest_within, known_plans, measured_costs
from benchmarks.policies_sides import ours_here, pytorch_bytes_here, pytorch_here

from checkpointing import Bounds, InfeasibleBudget, Offload, Plan, RecomputeAll, parse_budget, plan_run
from checkpointing.curve import gap
from checkpointing.offload import measure_disk
from framework import format_size

PACKAGES = ("numpy", "torch")
PEER = "PyTorch"
AIM = "the aim, at most"
#: Of planned times above the bound, and of measured times over planned ones.
NEAR_BOUND, NEAR_PLAN = 0.05, 0.1
#: From this part of our store-all's activations up plans should be near the bound.
FROM = "engine:50%"

#: Told before each run: the runs done, all runs, and what runs now.
Tell = Callable[[int, int, str], None]


@dataclass
class Timed:
    """A configuration of a side, and what its steps took.

    Attributes:
        name: What it is.
        saved: Bytes that it saves for the backward; None where that is not counted.
        plan: Of ours.
        seconds: Of its steps, of all rounds.
        beside: Of store-all's last step before each of them.
        cpu_seconds: What the process worked meanwhile, which other work on the machine hardly lengthens.
        pass_seconds: The same of forwards, losses and backwards alone; of ours.
    """

    name: str
    saved: int | None
    plan: Plan | None = None
    seconds: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    pass_seconds: list[float] = field(default_factory=list)

    def add(self, found: dict[str, Any], which: int) -> None:
        """Takes over what a process found of its configuration of that number."""
        self.seconds += found["seconds"][which]
        self.beside += found["beside"][which]
        self.cpu_seconds += found["cpu_seconds"][which]
        self.pass_seconds += found["pass_seconds"][which] if "pass_seconds" in found else []

    @property
    def over(self) -> float:
        """A step's seconds over store-all's: the median of all, each over the one beside it."""
        return median(mine / other for mine, other in zip(self.seconds, self.beside, strict=True))

    @property
    def shortest_over(self) -> float:
        """The shortest step's seconds over those of as many of store-all."""
        return min(self.seconds) / min(self.beside)

    def to_json(self, case: Case, side: str) -> dict[str, Any]:
        told: dict[str, Any] = {"model": case.name, "side": side, "name": self.name, "saved_bytes": self.saved}
        if self.plan is not None:
            told |= {"peak_bytes": self.plan.peak, "planned_seconds": self.plan.simulation.seconds}
            told |= {"stall_seconds": self.plan.simulation.stall, "pass_seconds_median": median(self.pass_seconds)}
        return {
            **told,
            "seconds_median": median(self.seconds),
            "seconds_least": min(self.seconds),
            "over_store_all": self.over,
            "shortest_over_store_all": self.shortest_over,
            "cpu_seconds_median": median(self.cpu_seconds),
            "cpu_seconds_least": min(self.cpu_seconds),
            "runs": len(self.seconds),
        }


def rows(
    steps: int, rounds: int, only: str | None, tell: Tell, record: Callable[[dict[str, Any]], None]
) -> Iterator[Row]:
    """Yields the comparisons as they are measured.

    Args:
        steps: Timed steps of each configuration in each process, or more where they are short.
        rounds: Processes of each side.
        only: The one model to measure; None for all.
        tell: Told before each run.
        record: Given what was measured of each configuration.

    Raises:
        ValueError: There is no such model.
        RuntimeError: A process failed, or the two sides do not compute the same loss.
    """
    cases = chosen(only)
    total, done = len(cases) * (1 + 2 * rounds), 0

    def next_is(words: str) -> None:
        nonlocal done
        tell(done, total, words)
        done += 1

    for case in cases:
        next_is(f"{case.name}: measuring costs and planning")
        study = _Study(case)
        with tempfile.TemporaryDirectory(prefix="retape-policies-") as folder:
            study.save(Path(folder))
            for _ in range(rounds):
                next_is(f"{case.name}: ours, {len(study.ours)} plans")
                study.run_ours(steps, folder)
                next_is(f"{case.name}: {PEER}, {len(study.peers) or 'no'} configurations")
                study.run_pytorch(steps)
        study.require_same_losses()
        for side, some in (("ours", study.ours), ("pytorch", study.peers)):
            for timed in some:
                record(timed.to_json(case, side))
        yield from study.rows()


class _Study:
    """A model: what is measured of it, and the rows that come of it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.costs = measured_costs(case)
        self.known = known_plans(self.costs)
        told = in_fresh_process(pytorch_bytes_here, case.name) if case.name in COMPARED and installed("torch") else []
        self.full = told[0]["nbytes"] if told else self.known[0].saved
        self.tenths = [self.full * tenth // 10 for tenth in range(1, 11)]
        self.store_all = Timed("store-all", self.known[0].saved, self.known[0].plan)
        self.ours = [self.store_all]
        for nbytes in self.tenths:
            if (found := fastest_within(self.known, nbytes)) is not None:
                self.add(found.plan, found.saved)
        self.disk = _Disk(self) if case.name == DISK else None
        self.how = worth_timing(told, self.tenths)
        self.peers = [Timed(each["name"], each["nbytes"]) for each in self.how]
        self.losses: list[float] = []

    def add(self, plan: Plan, saved: int | None = None) -> Timed:
        """Has a plan timed, each once."""
        for timed in self.ours:
            if timed.plan is plan:
                return timed
        self.ours.append(Timed(plan.policy, saved, plan))
        return self.ours[-1]

    def save(self, folder: Path) -> None:
        """Writes the plans to files, for the processes that run them."""
        self.files = [str(folder / f"plan{number}.json") for number in range(len(self.ours))]
        for file, timed in zip(self.files, self.ours, strict=True):
            assert timed.plan is not None
            timed.plan.save(Path(file))

    def run_ours(self, steps: int, folder: str) -> None:
        found = in_fresh_process(ours_here, self.case.name, self.files, steps, folder if self.disk else None)
        for which, timed in enumerate(self.ours):
            timed.add(found, which)
        self.losses.append(found["loss"])

    def run_pytorch(self, steps: int) -> None:
        if not self.peers:
            return
        how = [{"kind": each["kind"], "segments": each["segments"]} for each in self.how]
        found = in_fresh_process(pytorch_here, self.case.name, how, steps)
        for which, timed in enumerate(self.peers):
            timed.add(found, which)
        self.losses.append(found["loss"])

    def require_same_losses(self) -> None:
        """Raises unless all began with the same loss: else they would not have done the same work."""
        first = self.losses[0]
        if not all(abs(loss - first) <= SAME_LOSS * abs(first) for loss in self.losses):  # nor if one is no number
            raise RuntimeError(
                f"{self.case.name}: the sides do not compute the same, their first losses are {self.losses}"
            )

    def rows(self) -> Iterator[Row]:
        if self.case.name in COMPARED:
            yield from self._bytes()
            for number, nbytes in enumerate(self.tenths, 1):
                yield from self._tenth(f"{self.case.title}, {number * 10} % ({format_size(nbytes)})", nbytes)
        yield self._largest_gap()
        yield self._off_plan()
        if self.disk is not None:
            yield from self.disk.rows()

    def _bytes(self) -> Iterator[Row]:
        mine = [each.saved for each in self.known]
        theirs = [each.saved for each in self.peers if each.saved is not None]
        pairs = [
            ("store-all", mine[0], theirs[0] if theirs else None),
            ("the least", min(mine), min(theirs, default=None)),
        ]
        for what, ours, peer in pairs:
            yield Row(f"{self.case.title}, {what}: bytes saved", "bytes", ours, peer, PEER, 1, package="torch")

    def _tenth(self, name: str, nbytes: int) -> Iterator[Row]:
        found = fastest_within(self.known, nbytes)
        if found is None:
            return
        mine = self.add(found.plan, found.saved)
        fitting = [each for each in self.peers if each.saved is not None and each.saved <= nbytes]
        for kind, over in (("a step", attrgetter("over")), ("shortest step", attrgetter("shortest_over"))):
            peer = min(fitting, key=over, default=None)
            yield Row(
                f"{name}: {kind}, over store-all's",
                "1",
                over(mine),
                None if peer is None else over(peer),
                f"{PEER}, {peer.name}" if peer else f"{PEER}: none fits" if self.peers else PEER,
                len(mine.seconds),
                package="torch",
                ours_name=mine.name,
            )
        bound = Bounds(self.costs).seconds(found.plan.peak)
        aim = (NEAR_BOUND, AIM) if found.plan.peak >= self._half() else (None, "")
        yield Row(f"{name}: planned time above the lower bound", "1", gap(found.seconds, bound), *aim, 1)

    def _half(self) -> int:
        return parse_budget(FROM).resolve(plan_run(self.costs))

    def _largest_gap(self) -> Row:
        """The largest of all budgets: just before more memory buys a faster plan the bound is lowest beside the plan."""
        bounds, half = Bounds(self.costs), self._half()
        largest = 0.0
        for faster, plan in pairwise(self.known):
            if faster.plan.peak > half:
                largest = max(largest, gap(plan.seconds, bounds.seconds(faster.plan.peak - 1)))
        name = f"{self.case.title}, {FROM} and more: planned time above the lower bound, largest"
        return Row(name, "1", largest, NEAR_BOUND, AIM, 1)

    def _off_plan(self) -> Row:
        found = []
        for timed in self.ours[1:]:
            if timed.saved is not None and timed.plan is not None:
                planned = timed.plan.simulation.seconds / self.known[0].seconds
                found.append(abs(timed.over / planned - 1))
        name = f"{self.case.title}, {len(found)} budgets: measured off the planned, median"
        return Row(name, "1", median(found), NEAR_PLAN, AIM, len(self.ours[-1].seconds))


def worth_timing(told: Sequence[dict[str, Any]], tenths: Sequence[int]) -> list[dict[str, Any]]:
    """Returns PyTorch's configurations that may be the fastest for some tenth: store-all, each block, and those with the least work.

    `checkpoint_sequential` computes the first children of a model again, more or fewer of them: of two that fit, the one with fewer is faster.
    """
    if not told:
        return []
    plain = [each for each in told if each["kind"] != "sequential"]
    chosen: list[dict[str, Any]] = []
    for nbytes in tenths:
        fits = [each for each in told if each["kind"] == "sequential" and each["nbytes"] <= nbytes]
        best = min(fits, key=lambda each: (each["again"], each["nbytes"]), default=None)
        if best is not None and best not in chosen:
            chosen.append(best)
    return [*plain, *chosen]


class _Disk:
    """A budget that only a disk meets, just below the least that recomputation needs if there is one, beside plans without a disk."""

    def __init__(self, study: _Study) -> None:
        self.title = study.case.title
        without = study.known[-1].plan
        costs = replace(study.costs, disk_bandwidth=measure_disk())
        try:
            (plan,) = plan_run(costs, budget=without.peak - 1, offload=True).train
        except InfeasibleBudget:  # recomputation alone needs as little
            (plan,) = plan_run(costs, policy=Offload()).train
        self.mine = study.add(plan)
        again = plan_run(study.costs, policy=RecomputeAll()).train[0]
        others = {"the least without a disk": without, "recompute-all": again}
        self.others = {"store-all": study.store_all, **{name: study.add(each) for name, each in others.items()}}

    def rows(self) -> Iterator[Row]:
        mine = self.mine
        for peer, other in self.others.items():
            assert mine.plan is not None and other.plan is not None
            name = f"{self.title}, on disk or {peer}"
            for kind, of in (("a step", median), ("shortest step", min)):
                values = of(mine.seconds), of(other.seconds)
                yield Row(f"{name}: {kind}", "s", *values, peer, len(mine.seconds), ours_name=mine.name)
            held = [each.simulation.activation_nbytes for each in (mine.plan, other.plan)]
            yield Row(f"{name}: activations", "bytes", *held, peer, 1, ours_name=mine.name)
