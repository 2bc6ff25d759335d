"""Reading JSON that others wrote: each error says where it is, what was received, and what to write there."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from framework.layers import Spec

T = TypeVar("T")

#: Reads a value, given what errors call it.
Read = Callable[[Any, str], T]

_REQUIRED: Any = object()

#: The most bytes of an array (1 PiB): sums of thousands of them fit 64 bits.
MOST = 2**50


class Fields:
    """The fields of one JSON object, each taken once.

    Args:
        data: The object.
        where: What errors call it.

    Raises:
        ValueError: It is no object.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} must be an object, but is {shown(data)}")
        self._data, self._where = data, where
        self._known: list[str] = []

    def take(self, name: str, read: Read[T], default: Any = _REQUIRED) -> T:
        """Returns a field's value.

        Raises:
            ValueError: It is missing and has no default, or it cannot be read.
        """
        self._known.append(name)
        if name not in self._data:
            if default is _REQUIRED:
                raise ValueError(
                    f"{self._where} lacks {name!r}; it has: {', '.join(map(repr, self._data)) or 'nothing'}"
                )
            given: T = default
            return given
        return read(self._data[name], f"{name} of {self._where}")

    def close(self) -> None:
        """Raises ValueError if there are fields that nobody took, which are mostly misspelled ones."""
        for name in self._data:
            if name not in self._known:
                near = difflib.get_close_matches(str(name), self._known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._known)}"
                raise ValueError(f"{self._where} has no field {name!r}; {hint}")


def shown(value: Any) -> str:
    """Shows a value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(value: Any, where: str) -> int:
    """Reads bytes, FLOPs, or another count."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{where} must be a whole number from 0, but is {shown(value)}")
    return value


def nbytes(value: Any, where: str) -> int:
    """Reads bytes."""
    if whole(value, where) > MOST:
        raise ValueError(f"{where} must be at most {MOST:,} bytes, but is {shown(value)}")
    return int(value)


def flops(value: Any, where: str) -> int:
    """Reads floating-point operations."""
    if whole(value, where) >= 2**63:
        raise ValueError(f"{where} must be operations, fewer than 2^63, but is {shown(value)}")
    return int(value)


def seconds(value: Any, where: str) -> float:
    """Reads a time."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{where} must be seconds, a finite number from 0, but is {shown(value)}")
    return float(value)


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, but is {shown(value)}")
    return value


def flag(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{where} must be true or false, but is {shown(value)}")
    return value


def spec(value: Any, where: str) -> Spec:
    """Reads the shape and dtype of an array."""
    fields = Fields(value, where)
    shape, name = fields.take("shape", listed(whole)), fields.take("dtype", text)
    fields.close()
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biufc":
        raise ValueError(
            f"dtype of {where} must be one of NumPy's numbers, as 'float32', but is {name!r}; where only bytes matter, one of the same size will do"
        )
    found = Spec(shape, dtype)
    if found.nbytes > MOST:
        raise ValueError(f"{where} must be an array of at most {MOST:,} bytes, but has shape {shown(list(shape))}")
    return found


def listed(read: Read[T]) -> Read[tuple[T, ...]]:
    """Returns how to read a list of such values."""

    def read_list(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, but is {shown(value)}")
        return tuple(read(each, f"number {number} in {where}") for number, each in enumerate(value))

    return read_list


def nullable(read: Read[T]) -> Read[T | None]:
    """Returns how to read such a value or null."""
    return lambda value, where: None if value is None else read(value, where)


def mapped(read: Read[T]) -> Read[dict[str, T]]:
    """Returns how to read an object whose fields are such values, by names that the writer chooses."""

    def read_map(value: Any, where: str) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, but is {shown(value)}")
        return {text(name, where): read(each, f"{name!r} in {where}") for name, each in value.items()}

    return read_map
