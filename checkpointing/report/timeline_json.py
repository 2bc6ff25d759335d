"""Timelines as JSON: columns in short, of which what can be added up is left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

from checkpointing.json_fields import Fields, Read, flag, listed, nullable, shown, text, whole
from checkpointing.report.columns import column
from checkpointing.report.columns import written as written_column
from checkpointing.report.data import PHASES, Timeline


def written(timeline: Timeline, like: Timeline | None = None) -> dict[str, Any]:
    """Returns a timeline as JSON-ready data.

    Args:
        timeline: The timeline.
        like: Another one; columns that are equal to its are left out.
    """
    others = {} if like is None else _columns(like)
    found = {
        name: values for name, values in _columns(timeline).items() if name not in others or values != others[name]
    }
    return {name: _WRITE[name](values) if name in _WRITE else written_column(values) for name, values in found.items()}


def read(value: Any, where: str, like: Timeline | None = None) -> Timeline:
    """Reads what `written` wrote, given the same other timeline, and checks that its bytes add up.

    Raises:
        ValueError: It is no timeline.
    """
    fields = Fields(value, where)
    others = {} if like is None else _columns(like)

    def take(name: str, how: Read[Any]) -> Any:
        return fields.take(name, how, others[name]) if name in others else fields.take(name, how)

    found = {name: take(name, how) for name, how in _READ.items()}
    of_holders = pairs(len(found["holders"]))
    found |= {"changes": take("changes", column(of_holders)), "at_peak": take("at_peak", of_holders)}
    fields.close()
    _require_lengths(found, where)
    first = sum(found["before"])
    live = list(accumulate((sum(nbytes for _, nbytes in each) for each in found["changes"]), initial=first))
    inside = tuple(max(old, new) + more for (old, new), more in zip(pairwise(live), found.pop("above"), strict=True))
    peak = max(range(len(inside)), key=inside.__getitem__, default=0)
    most = inside[peak] if inside else first
    if sum(nbytes for _, nbytes in found["at_peak"]) != most:
        raise ValueError(
            f"at_peak of {where} must add up to the peak of {most} bytes, but is {shown(found['at_peak'])}"
        )
    times = tuple(each / 1e9 for each in found.pop("nanoseconds"))
    return Timeline(**found, seconds=times, live=tuple(live[1:]), inside=inside, peak=peak)


def _columns(timeline: Timeline) -> dict[str, tuple[Any, ...]]:
    """What is written of a timeline; the rest can be added up."""
    live = (sum(timeline.before), *timeline.live)
    return {
        "labels": timeline.labels,
        "phases": timeline.phases,
        "layers": timeline.layers,
        "shards": timeline.shards,
        "recomputed": timeline.recomputed,
        "nanoseconds": tuple(round(each * 1e9) for each in timeline.seconds),
        # Above what is alive before and after: mostly workspace.
        "above": tuple(most - max(pair) for most, pair in zip(timeline.inside, pairwise(live), strict=True)),
        "holders": timeline.holders,
        "before": timeline.before,
        "changes": timeline.changes,
        "at_peak": timeline.at_peak,
    }


def _require_lengths(found: dict[str, Any], where: str) -> None:
    columns = {name: len(values) for name, values in found.items() if name not in ("holders", "before", "at_peak")}
    if len(set(columns.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in columns.items())
        raise ValueError(f"columns of {where} must be equally long, but are: {told}")
    if len(found["before"]) != len(found["holders"]):
        raise ValueError(
            f"before of {where} must have a number for each of {len(found['holders'])} holders, but has {len(found['before'])}"
        )


def pairs(holders: int) -> Read[tuple[tuple[int, int], ...]]:
    """Returns how to read pairs of a number below `holders` and bytes, written one after the other."""

    def read_pairs(value: Any, where: str) -> tuple[tuple[int, int], ...]:
        if not isinstance(value, list) or len(value) % 2 or any(type(each) is not int for each in value):
            raise ValueError(f"{where} must be a list of pairs of whole numbers, but is {shown(value)}")
        for number in value[::2]:
            if not 0 <= number < holders:
                raise ValueError(f"{where} has the number {number}, but there are {holders}, from 0")
        return tuple(zip(value[::2], value[1::2], strict=True))

    return read_pairs


def _flat(each: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for pair in each for number in pair]


def _holder(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{where} must be a list of a category and an owner, but is {shown(value)}")
    return text(value[0], where), text(value[1], where)


def _phase(value: Any, where: str) -> str:
    if value not in PHASES:
        raise ValueError(f"{where} must be one of {', '.join(PHASES)}, but is {shown(value)}")
    return str(value)


_READ: dict[str, Read[Any]] = {
    "labels": column(text),
    "phases": column(_phase),
    "layers": column(text),
    "shards": column(nullable(whole)),
    "recomputed": column(flag),
    "nanoseconds": column(whole),
    "above": column(whole),
    "holders": listed(_holder),
    "before": listed(whole),
}

#: Of columns whose values are no JSON.
_WRITE: dict[str, Callable[[Any], Any]] = {
    "holders": lambda values: list(map(list, values)),
    "before": list,
    "changes": lambda values: written_column(values, _flat),
    "at_peak": _flat,
}
