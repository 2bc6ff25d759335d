"""What a report tells its reader to do, in a few sentences: from its data alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from checkpointing.report.data import PolicyRow, Process, Report, Timeline
from checkpointing.report.excess import excess
from checkpointing.report.sums import at_peak
from framework.sizes import format_size

#: What no policy changes.
LASTING = ("parameters", "gradients", "optimizer", "data", "communication")

#: Times that differ by less are told as the same.
_SAME = 0.005
#: Another policy is worth naming where it saves at least so much memory, for at most so much more time.
_WORTH_SAVING, _WORTH_TIME = 0.1, 0.15
#: A plan is dear that costs more time than that, and more than so many times the part of memory that it saves.
_DEAR = 3.0


def advice(report: Report) -> tuple[str, ...]:
    """Returns the sentences at the top of a report, the most urgent first."""
    told = [*_failure(report), *_excess(report), *_choice(report), *_peak(report), *_process(report)]
    return tuple(told)


def peak_of(row: PolicyRow) -> int:
    """A policy's peak in bytes: the ledger's if it was measured, else the predicted one."""
    return row.predicted_peak if row.ledger_peak is None else row.ledger_peak


def seconds_of(row: PolicyRow, rows: Sequence[PolicyRow]) -> float:
    """A policy's time: measured where all of some policies are, so that they can be compared, else as planned."""
    measured = all(each.step_seconds is not None for each in rows)
    return row.step_seconds if measured and row.step_seconds is not None else row.predicted_seconds


def is_dear(longer: float, saved: float) -> bool:
    """Whether a plan costs so much time for so little memory that storing everything is better advice, if it fits.

    Args:
        longer: By which part of store-all's time a step is longer.
        saved: Which part of store-all's peak it saves.
    """
    return longer > _WORTH_TIME and longer > _DEAR * saved


def _failure(report: Report) -> Iterator[str]:
    if not report.failure:
        return
    done = [rank for rank in report.ranks if rank.measured is not None and rank.measured.labels]
    where = ""
    if done and (seen := done[0].measured) is not None and len(seen.labels) < len(done[0].predicted.labels):
        where = f" in operation {len(seen.labels)} of {len(done[0].predicted.labels)}, {seen.labels[-1]},"
    first = next(iter(report.failure.splitlines()), "").rstrip(".")
    yield f"The run ended{where} before its end: {first}."


def _excess(report: Report) -> Iterator[str]:
    """Names the layer that holds what the plan does not say."""
    for rank in report.ranks:
        if rank.measured is None:
            continue
        found = excess(rank.predicted, rank.measured)
        if found:
            most = found[0]
            whose = f" of rank {rank.rank}" if len(report.ranks) > 1 else ""
            more = "more" if most.nbytes > 0 else "less"
            is_layer = most.layer in (row.path for row in report.layers)
            says = "its footprint says" if is_layer else "the plan says"
            remedy = "; correct its footprint, or let go of what it keeps" if is_layer else ""
            yield (
                f"Measured memory{whose} is not what was predicted: {most.layer or 'the engine'} holds {_bytes(abs(most.nbytes))} {more} of "
                f"{most.category} than {says}, first in {most.operation}{remedy}."
            )


def _choice(report: Report) -> Iterator[str]:
    """Compares the chosen plan with storing everything, and names what is better."""
    rows = [row for row in report.policies if row.error is None]
    chosen = next((row for row in rows if row.chosen), None)
    plain = next((row for row in rows if row.policy == "store-all"), None)
    if chosen is None:
        return
    if plain is not None and chosen is not plain:
        yield f"{_name(chosen)} {_trade(plain, chosen)} against store-all ({_sizes(chosen, plain)})."
        # By the plan as well: what is measured while others use the machine may be anything.
        planned = (replace(row, step_seconds=None) for row in (plain, chosen))
        if is_dear(*_price(plain, chosen)) and is_dear(*_price(*planned)):
            more = peak_of(plain) - peak_of(chosen)
            unless = f"unless {format_size(more)} more do not fit, " if more > 0 else ""
            yield f"That is dear: {unless}take policy store-all, which {_trade(chosen, plain)}."
    others = [row for row in rows if row is not chosen]
    if better := [row for row in others if _dominates(row, chosen)]:
        best = min(better, key=peak_of)
        yield f"Take {_name(best, False)} instead: it {_trade(chosen, best)}."
    elif worth := [row for row in others if _is_worth(chosen, row)]:
        best = min(worth, key=peak_of)
        yield f"If memory is short, take {_name(best, False)}: it {_trade(chosen, best)}."
    elif others and chosen is plain:
        yield f"Keep {chosen.policy}: no other that was tried saves {_WORTH_SAVING:.0%} of its peak for at most {_WORTH_TIME:.0%} more time."


def _dominates(row: PolicyRow, other: PolicyRow) -> bool:
    """Whether it holds less, worth telling, and takes no longer."""
    pair = (row, other)
    slower = seconds_of(row, pair) > seconds_of(other, pair) * (1 + _SAME)
    return peak_of(row) < peak_of(other) * (1 - _SAME) and not slower


def _is_worth(row: PolicyRow, other: PolicyRow) -> bool:
    pair = (row, other)
    saved = 1 - peak_of(other) / max(1, peak_of(row))
    return saved >= _WORTH_SAVING and seconds_of(other, pair) <= seconds_of(row, pair) * (1 + _WORTH_TIME)


def _trade(before: PolicyRow, after: PolicyRow) -> str:
    """What a step costs, and saves, if one takes a policy instead of another."""
    time, memory = _price(before, after)
    costs = (
        "takes as long"
        if abs(time) < _SAME
        else f"costs {_part(time)} more time"
        if time > 0
        else f"takes {_part(-time)} less time"
    )
    saves = (
        "saves no memory"
        if abs(memory) < _SAME
        else f"saves {_part(memory)} of the peak"
        if memory > 0
        else f"holds {_part(-memory)} more"
    )
    return f"{costs} and {saves}"


def _price(before: PolicyRow, after: PolicyRow) -> tuple[float, float]:
    """By which part the time grows, and which part of the peak is saved."""
    pair = (before, after)
    once, now = (seconds_of(row, pair) for row in pair)
    return now / once - 1 if once else 0.0, 1 - peak_of(after) / max(1, peak_of(before))


def _sizes(chosen: PolicyRow, plain: PolicyRow) -> str:
    measured = all(row.ledger_peak is not None for row in (chosen, plain))
    return f"{format_size(peak_of(chosen))} of {format_size(peak_of(plain))}, {'measured' if measured else 'predicted'}"


def _name(row: PolicyRow, first: bool = True) -> str:
    """The policy, or the budget it was planned for."""
    word = "Budget" if first else "budget"
    policy = "Policy" if first else "policy"
    return f"{policy} {row.policy}" if row.budget is None else f"{word} {format_size(row.budget)}"


def _peak(report: Report) -> Iterator[str]:
    """Says where the peak is, and what it is made of."""
    rank = max(report.ranks, key=lambda rank: max(_timeline(rank.measured, rank.predicted).inside, default=0))
    timeline = _timeline(rank.measured, rank.predicted)
    if not timeline.labels:
        return
    most = timeline.inside[timeline.peak]
    by_category = Counter[str]()
    for category, _, nbytes in at_peak(timeline):
        by_category[category] += nbytes
    lasting = sum(by_category[category] for category in LASTING)
    whose = f" of rank {rank.rank}" if len(report.ranks) > 1 else ""
    where = f"The peak{whose}, {format_size(most)}, is in {_where(timeline)}"
    if 2 * lasting >= most:
        yield (
            f"{where}; {_part(lasting / most)} of it are parameters, gradients, optimizer state and data, which no policy changes, so none "
            f"saves more than {format_size(most - lasting)}."
        )
        return
    category, nbytes = by_category.most_common(1)[0]
    yield f"{where}; {_part(nbytes / most)} of it are {category}."


def _where(timeline: Timeline) -> str:
    label, layer = timeline.labels[timeline.peak], timeline.layers[timeline.peak]
    if not layer:
        return f"the operation {label}"
    kind = "recomputed forward" if timeline.recomputed[timeline.peak] else label.partition(" ")[0]
    return f"the {kind} of {layer}"


def _timeline(measured: Timeline | None, predicted: Timeline) -> Timeline:
    return predicted if measured is None or not measured.labels else measured


def _process(report: Report) -> Iterator[str]:
    """Warns where a process holds much that nobody explains."""
    found: list[tuple[int, Process]] = [(rank.rank, rank.process) for rank in report.ranks if rank.process is not None]
    if not found:
        return
    number, process = max(found, key=lambda pair: pair[1].unexplained)
    if process.unexplained > max(2**24, process.rss // 10):
        whose = f"process of rank {number}" if len(found) > 1 else "process"
        yield (
            f"{format_size(process.unexplained)} of the {format_size(process.rss)} that the {whose} takes are neither the engine's nor the "
            "interpreter's: look for arrays outside the engine."
        )


def _bytes(nbytes: int) -> str:
    return f"{format_size(nbytes)}" if nbytes < 1024 else f"{format_size(nbytes)} ({nbytes:,} bytes)"


def _part(part: float) -> str:
    return f"{part:.1%}" if part < 0.0095 else f"{part:.0%}"
