"""Two reports side by side: what grew, where, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from checkpointing.report.advice import peak_of
from checkpointing.report.data import Rank, Report, Timeline
from checkpointing.report.sums import most_by_holder
from framework.sizes import format_size


@dataclass(frozen=True)
class Change:
    """One number in both reports.

    Attributes:
        what: What it is of: "peak", "process", "policy NAME", "step", "at the peak", or the phase in which that is held.
        category: Of the ledger; empty where it is of no single one.
        layer: The layer's path or another owner; empty where it is of none.
        before, after: In bytes, or seconds where `what` is "step"; 0 where a report has none.
        rank: Of which worker; None where it is of none.
    """

    what: str
    category: str
    layer: str
    before: float
    after: float
    rank: int | None = None

    @property
    def grown(self) -> float:
        """By how much, in bytes or seconds; negative where it shrank."""
        return self.after - self.before

    @property
    def part(self) -> float | None:
        """By which part of what it was; None where it was nothing."""
        return self.grown / self.before if self.before else None


@dataclass(frozen=True)
class Comparison:
    """What two reports have in common, and where they differ.

    Attributes:
        titles: Of both.
        peaks: Peaks of the engine in bytes, worker by worker and policy by policy, equal ones too: what a limit is held against.
        others: Peaks of whole processes, and times of a step, which differ from run to run.
        at_peak: What holds more or fewer bytes at the peak, by category and layer, largest difference first; they add up to the peak's.
        held: The same of the most bytes that each holder has after an operation, wherever the peak is: in the phase where it differs most.
        missing: Workers and policies that only one of them has, in words.
    """

    titles: tuple[str, str]
    peaks: tuple[Change, ...]
    others: tuple[Change, ...]
    at_peak: tuple[Change, ...]
    held: tuple[Change, ...]
    missing: tuple[str, ...]

    def above(self, part: float) -> tuple[Change, ...]:
        """Returns the peaks that grew by more than a part of what they were."""
        return tuple(change for change in self.peaks if change.grown > part * change.before)

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON-ready data."""
        found = asdict(self)
        return {
            name: [list(each) if isinstance(each, tuple) else each for each in value] for name, value in found.items()
        }


def compare(before: Report, after: Report) -> Comparison:
    """Compares two reports: workers by rank, policies by name and budget. What was measured in both is compared, else what was predicted."""
    ranks = [{rank.rank: rank for rank in report.ranks} for report in (before, after)]
    policies = [{(row.policy, row.budget): row for row in report.policies} for report in (before, after)]
    both = [(ranks[0][number], ranks[1][number]) for number in ranks[0].keys() & ranks[1].keys()]
    both.sort(key=lambda pair: pair[0].rank)
    peaks: list[Change] = []
    others: list[Change] = []
    at: list[Change] = []
    held: list[Change] = []
    for old, new in both:
        timelines = _alike(old, new)
        most, holders = map(_most, timelines), [_holders_at_peak(each) for each in timelines]
        peaks.append(Change("peak", "", "", next(most), next(most), old.rank))
        at += _changes("at the peak", holders[0], holders[1], old.rank)
        held += _by_phase(*timelines, old.rank)
        if old.process is not None and new.process is not None:
            others.append(Change("process", "", "", old.process.rss, new.process.rss, old.rank))
    for key, row in policies[0].items():
        if (other := policies[1].get(key)) is None:
            continue
        measured = row.ledger_peak is not None and other.ledger_peak is not None
        pair = (peak_of(row), peak_of(other)) if measured else (row.predicted_peak, other.predicted_peak)
        peaks.append(Change(f"policy {_name(*key)}", "", "", *pair))
        if row.step_seconds is not None and other.step_seconds is not None:
            others.append(Change("step", "", _name(*key), row.step_seconds, other.step_seconds))
    names = [
        [f"rank {number}" for number in ranks[side]] + [f"policy {_name(*key)}" for key in policies[side]]
        for side in (0, 1)
    ]
    missing = [f"{name} is in the first alone" for name in names[0] if name not in names[1]]
    missing += [f"{name} is in the second alone" for name in names[1] if name not in names[0]]
    return Comparison(
        (before.title, after.title), tuple(peaks), tuple(others), _sorted(at), _sorted(held), tuple(missing)
    )


def _alike(old: Rank, new: Rank) -> tuple[Timeline, Timeline]:
    if old.measured is not None and new.measured is not None:
        return old.measured, new.measured
    return old.predicted, new.predicted


def _most(timeline: Timeline) -> int:
    return max(timeline.inside, default=sum(timeline.before))


def _holders_at_peak(timeline: Timeline) -> dict[tuple[str, str], int]:
    return {timeline.holders[number]: nbytes for number, nbytes in timeline.at_peak}


def _changes(
    what: str, before: Mapping[tuple[str, str], int], after: Mapping[tuple[str, str], int], rank: int
) -> Iterator[Change]:
    for holder in {**before, **after}:
        pair = before.get(holder, 0), after.get(holder, 0)
        if pair[0] != pair[1]:
            yield Change(what, *holder, *pair, rank=rank)


def _by_phase(old: Timeline, new: Timeline, rank: int) -> Iterator[Change]:
    """Yields, for each holder that differs in some phase, the phase in which it does most."""
    sides = [most_by_holder(each) for each in (old, new)]
    most: dict[tuple[str, str], Change] = {}
    for category, layer, phase in {**sides[0], **sides[1]}:
        pair = [side.get((category, layer, phase), 0) for side in sides]
        change = Change(phase, category, layer, pair[0], pair[1], rank)
        known = most.get((category, layer))
        if known is None or abs(change.grown) > abs(known.grown):
            most[category, layer] = change
    yield from (change for change in most.values() if change.grown)


def _sorted(changes: list[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: (-abs(change.grown), change.category, change.layer, change.what)))


def _name(policy: str, budget: int | None) -> str:
    return policy if budget is None else f"{policy} within {format_size(budget)}"
