"""What a data set is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from framework.layers.layer import Spec
from framework.memory import Array


class Dataset(Protocol):
    """Examples in two splits, "train" and "validation", written into given arrays.

    `inputs` and `targets` are the specs of one example; `nbytes` is what its own arrays hold in memory.
    """

    inputs: Spec
    targets: Spec

    @property
    def nbytes(self) -> int: ...

    def size(self, split: str) -> int:
        """Number of examples of a split."""
        ...

    def load(self, split: str, indices: Sequence[int], x: Array, targets: Array) -> None:
        """Writes examples into x (n, ...) and targets (n, ...)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What it is, for the run's records."""
        ...


def require_inside(split: str, indices: Sequence[int], size: int) -> None:
    if outside := [int(index) for index in indices if not 0 <= index < size]:
        raise IndexError(f"the {split} split has examples 0 to {size - 1}, but example {outside[0]} was asked for")


def spread(size: int, most: int) -> list[int]:
    """Returns at most `most` of `size` indices, evenly spaced."""
    count = min(size, most)
    return [i * size // count for i in range(count)]
