"""Columns of many values as JSON: the shortest of three ways to write them, all read by one function."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from checkpointing.json_fields import Fields, Read, listed, nullable, whole

T = TypeVar("T", bound=Hashable)


def written(values: Sequence[T], write: Callable[[T], Any] = lambda value: value) -> Any:
    """Returns a column as JSON-ready data.

    It is the list of values; or, if that is shorter, ``{"values": [...], "at": [...]}``: different values, and for each place the number of
    its value among them; or ``{"values": [...], "runs": [...]}``: how many times each value stands, one after the other.

    Args:
        values: The column.
        write: Makes a value JSON-ready.
    """
    different = list(dict.fromkeys(values))
    number = {value: place for place, value in enumerate(different)}
    runs = [(value, sum(1 for _ in each)) for value, each in groupby(values)]
    shapes = [
        {"values": list(map(write, different)), "at": [number[value] for value in values]},
        {"values": [write(value) for value, _ in runs], "runs": [count for _, count in runs]},
        [write(value) for value in values],
    ]
    return min(shapes, key=lambda shape: len(json.dumps(shape)))


def column(read: Read[T]) -> Read[tuple[T, ...]]:
    """Returns how to read what `written` wrote of such values."""

    def read_column(value: Any, where: str) -> tuple[T, ...]:
        if isinstance(value, list):
            return listed(read)(value, where)
        fields = Fields(value, where)
        values = fields.take("values", listed(read))
        at = fields.take("at", nullable(listed(whole)), None)
        runs = fields.take("runs", nullable(listed(whole)), None)
        fields.close()
        if at is not None and runs is None:
            if at and max(at) >= len(values):
                raise ValueError(f"at of {where} names value {max(at)}, but there are {len(values)}, from 0")
            return tuple(values[place] for place in at)
        if runs is None or at is not None:
            raise ValueError(f"{where} must have either 'at' or 'runs' beside 'values'")
        if len(runs) != len(values):
            raise ValueError(f"{where} has {len(values)} values and {len(runs)} runs of them; each value has one")
        return tuple(each for each, count in zip(values, runs, strict=True) for _ in range(count))

    return read_column
