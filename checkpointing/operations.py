"""The operations and values of a plan, and how they are spelled.

Values: ``a[s]`` is the output of leaf step s (``a[batch]`` the input), ``r[s]`` its own residuals, ``d[s]`` the cotangent of
``a[s]``, ``t`` the targets, with the weights of their examples where there are any, ``g[i,n]`` the gradient summed over
shards i..i+n-1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from framework.layers import BATCH


class PlanError(ValueError):
    """A plan that cannot be read or cannot run."""


class Value(NamedTuple):
    """Something a plan holds: its kind (a, r, d, t, g), the step or first shard, and for g the number of shards."""

    kind: str
    at: int = 0
    span: int = 0

    def __str__(self) -> str:
        if self.kind == "t":
            return "t"
        if self.kind == "g":
            return f"g[{self.at},{self.span}]"
        return f"{self.kind}[{'batch' if self.at == BATCH else self.at}]"

    @classmethod
    def parse(cls, text: str) -> Value:
        """Reads what `str` wrote."""
        match = re.fullmatch(r"t|([ard])\[(batch|\d+)\]|g\[(\d+),(\d+)\]", text)
        if match is None:
            raise PlanError(f"{text!r} is no value of a plan; values are a[batch], a[3], r[3], d[3], t, g[0,2]")
        if match[1]:
            return cls(match[1], BATCH if match[2] == "batch" else int(match[2]))
        return cls("g", int(match[3]), int(match[4])) if match[3] else cls("t")


TARGETS = Value("t")


def output(step: int) -> Value:
    """a[step]."""
    return Value("a", step)


def residuals(step: int) -> Value:
    """r[step]."""
    return Value("r", step)


def cotangent(step: int) -> Value:
    """d[step]."""
    return Value("d", step)


def gradient(first: int, count: int) -> Value:
    """g[first,count]."""
    return Value("g", first, count)


@dataclass(frozen=True, slots=True)
class Load:
    """Makes a[batch] and t of a shard, and in training its gradient g[shard,1].

    Where g[shard-1,1] is there and the shard is odd, its Backwards add to that at once. Then g[shard,1] holds only what no
    Backward finishes alone: of parameters that several steps share, and statistics.
    """

    shard: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Makes a[step]; `keep` is the option as which r[step] enters the table (0: all), or None if it does not."""

    step: int
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Adds to the sums of losses and targets; in training also makes d[last]."""


@dataclass(frozen=True, slots=True)
class Backward:
    """Makes (or adds to) the cotangents of the step's inputs, and writes its parameters' cotangents."""

    step: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Removes a value. Its buffer dies with its last value."""

    value: Value


@dataclass(frozen=True, slots=True)
class Offload:
    """Begins to write a value to disk. Until its Wait it is held, may be read, and is not overwritten."""

    value: Value


@dataclass(frozen=True, slots=True)
class Fetch:
    """Takes memory for a value that is on disk, and begins to read it. It can be used after its Wait."""

    value: Value


@dataclass(frozen=True, slots=True)
class Wait:
    """Waits until a value that is being written or read is."""

    value: Value


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Adds g[first+count,count], or what of it has not been added yet, into g[first,count], which becomes g[first,2·count]."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """Begins to add all ranks' sums of a bucket up the tree, and to divide by the count of targets.

    A bucket is what the Backwards of the last shard have finished since the Reduce before; the last one's also what none finishes alone.
    The last Reduce waits for all of them: it makes g[0,V].
    """

    bucket: int


@dataclass(frozen=True, slots=True)
class Norm:
    """Takes the global norm of g[0,V], for clipping."""


@dataclass(frozen=True, slots=True)
class Update:
    """Lets the optimizer change a bucket's parameters."""

    bucket: int


Operation = Load | Forward | Loss | Backward | Drop | Offload | Fetch | Wait | Accumulate | Reduce | Norm | Update

_BY_NAME: dict[str, type] = {
    kind.__name__.lower(): kind for kind in (Load, Forward, Loss, Backward, Accumulate, Reduce, Norm, Update)
}
_OF_A_VALUE: dict[str, type] = {kind.__name__.lower(): kind for kind in (Drop, Offload, Fetch, Wait)}


def to_json(operation: Operation) -> list[Any]:
    """Writes an operation as a list: its name, then its fields."""
    name = type(operation).__name__.lower()
    if isinstance(operation, Drop | Offload | Fetch | Wait):
        return [name, str(operation.value)]
    return [name, *(getattr(operation, field) for field in type(operation).__slots__)]


def from_json(data: Sequence[Any]) -> Operation:
    """Reads what `to_json` wrote.

    Raises:
        PlanError: The operation is unknown or has other fields.
    """
    if not isinstance(data, list | tuple) or not data:
        raise PlanError(f"an operation is a list of its name and fields, but this is {data!r}")
    name, *fields = data
    operation: Operation
    if name in _OF_A_VALUE and len(fields) == 1:
        operation = _OF_A_VALUE[name](Value.parse(str(fields[0])))
        return operation
    if not all(field is None or (type(field) is int and field >= 0) for field in fields):
        raise PlanError(f"operation {list(data)!r} has the wrong fields: they are whole numbers from 0")
    if name not in _BY_NAME:
        raise PlanError(f"unknown operation {name!r}; known: {', '.join([*_BY_NAME, *_OF_A_VALUE])}")
    try:
        operation = _BY_NAME[name](*fields)
    except TypeError as error:
        raise PlanError(f"operation {list(data)!r} has the wrong fields: {error}") from error
    return operation


def label(operation: Operation, paths: Sequence[str]) -> str:
    """Names an operation for timelines, with the path of its step."""
    match operation:
        case Forward(step) | Backward(step):
            return f"{type(operation).__name__.lower()} {paths[step]}"
        case _:
            name, *fields = to_json(operation)
            return " ".join(map(str, [name, *fields]))
