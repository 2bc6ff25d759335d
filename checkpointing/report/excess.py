"""What was held that the plan does not say, and which layer held it: where measured and predicted timelines differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from checkpointing.report.data import Timeline
from checkpointing.report.sums import held

_Holder = tuple[str, str]


@dataclass(frozen=True)
class Excess:
    """Bytes of one holder above, or below, what the plan says.

    Attributes:
        category: Of the ledger.
        layer: The path of the layer, or another owner.
        nbytes: The most above what is predicted; negative where less was held.
        operation: Where it begins.
        stays: Whether it is alive when the operation ends; else it comes and goes within it.
    """

    category: str
    layer: str
    nbytes: int
    operation: str
    stays: bool


def excess(predicted: Timeline, measured: Timeline) -> tuple[Excess, ...]:
    """Returns where two timelines of the same operations differ in bytes, largest first; nothing where they agree.

    What comes and goes within an operation counts for the layer that runs, as workspace: the ledger does not say whose it was, but at
    the peak.
    """
    found: dict[tuple[str, str, bool], Excess] = {}
    for holder, nbytes, place, stays in _differences(predicted, measured):
        key = (*holder, stays)
        known = found.get(key)
        if known is None or abs(nbytes) > abs(known.nbytes):
            begins = known.operation if known is not None else measured.labels[place]
            found[key] = Excess(*holder, nbytes, begins, stays)
    return tuple(sorted(found.values(), key=lambda each: (-abs(each.nbytes), not each.stays)))


def _differences(predicted: Timeline, measured: Timeline) -> Iterator[tuple[_Holder, int, int, bool]]:
    """Yields each difference at each operation: holder, bytes, the operation's place, and whether it is there at the end."""
    # An operation that failed half-way is the last, and its frames hold what it would have given up.
    whole = max(0, len(measured.labels) - (len(measured.labels) < len(predicted.labels)))
    pairs = islice(zip(held(predicted), held(measured), strict=False), whole)
    before = sum(measured.before) - sum(predicted.before)
    for place, (told, seen) in enumerate(pairs):
        if told != seen:
            for holder in {**told, **seen}:
                if more := seen.get(holder, 0) - told.get(holder, 0):
                    yield holder, more, place, True
        after = measured.live[place] - predicted.live[place]
        within = measured.inside[place] - predicted.inside[place]
        # What is there before or after explains as much of what is inside.
        passing = within - max(before, after) if within > 0 else within - min(before, after)
        if passing and (passing > 0) == (within > 0):
            layer = measured.layers[place] or measured.labels[place]
            yield ("workspace", layer), passing, place, False
        before = after


def at_peak(predicted: Timeline, measured: Timeline) -> tuple[Excess, ...]:
    """Returns the same of the two peaks, whose holders are known: what makes the measured peak higher or lower, largest first."""
    sides = [{t.holders[number]: nbytes for number, nbytes in t.at_peak} for t in (predicted, measured)]
    operation = measured.labels[measured.peak] if measured.labels else ""
    rows = [
        Excess(*holder, sides[1].get(holder, 0) - sides[0].get(holder, 0), operation, False)
        for holder in {**sides[0], **sides[1]}
    ]
    return tuple(sorted((row for row in rows if row.nbytes), key=lambda row: -abs(row.nbytes)))
