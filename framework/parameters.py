"""Parameters: named views of one flat buffer.

Gradients and optimizer state have the same layout, so all-reduce, the optimizer and saving work on slices of one
array, and the buffer may live in shared memory.
"""

from __future__ import annotations

import bisect
import fnmatch
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from framework.keys import Key
from framework.memory import Array, Ledger


class Initializer(Protocol):
    """Fills a new parameter in place."""

    def __call__(self, out: Array, key: Key) -> None: ...


@dataclass(frozen=True)
class Constant:
    """Every element the same value."""

    value: float

    def __call__(self, out: Array, key: Key) -> None:
        out.fill(self.value)


@dataclass(frozen=True)
class Normal:
    """Independent normal numbers of mean 0 and the given standard deviation."""

    std: float

    def __call__(self, out: Array, key: Key) -> None:
        key.generator().standard_normal(out=out, dtype=out.dtype.type)
        out *= self.std


@dataclass(frozen=True)
class Uniform:
    """Independent uniform numbers in [-bound, bound)."""

    bound: float

    def __call__(self, out: Array, key: Key) -> None:
        key.generator().random(out=out, dtype=out.dtype.type)
        out -= 0.5
        out *= 2 * self.bound


@dataclass(frozen=True)
class ParameterSpec:
    """Shape, dtype and initializer of a parameter: all that is known of it before there is an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    initializer: Initializer

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """Some of the parameters of a layout, as ranges of its flat buffer; made by `Layout.select`.

    Attributes:
        names: The parameters.
        size: The size of the whole buffer.
        ranges: Where they lie, in order; neighbours are one range.
    """

    names: tuple[str, ...]
    size: int
    ranges: tuple[tuple[int, int], ...] = field(repr=False)

    def inside(self, first: int, last: int) -> Iterator[slice]:
        """Yields where they lie in elements first..last-1 of the buffer, counted from the first of these."""
        for number in range(bisect.bisect_right(self.ranges, first, key=lambda r: r[1]), len(self.ranges)):
            start, stop = self.ranges[number]
            if start >= last:
                return
            yield slice(max(start, first) - first, min(stop, last) - first)


class Layout:
    """Where each named parameter lies in the flat buffer, in the order of the chain.

    Args:
        specs: Parameters by name ("path.of.layer.weight").

    Raises:
        ValueError: The parameters do not share one float dtype.
    """

    def __init__(self, specs: Mapping[str, ParameterSpec]) -> None:
        dtypes = sorted({spec.dtype.name for spec in specs.values()})
        if len(dtypes) > 1 or any(spec.dtype.kind != "f" for spec in specs.values()):
            raise ValueError(f"the parameters of a model share one float dtype, but these have {', '.join(dtypes)}")
        self.specs = dict(specs)
        self.dtype = np.dtype(dtypes[0]) if dtypes else np.dtype(np.float32)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, spec in self.specs.items():
            self.slices[name] = slice(self.size, self.size + spec.size)
            self.size += spec.size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def views(self, flat: Array) -> dict[str, Array]:
        """Returns named views of a flat buffer of this layout."""
        return {name: flat[where].reshape(self.specs[name].shape) for name, where in self.slices.items()}

    def select(self, pattern: str = "*", least_axes: int = 0) -> Part:
        """Returns the parameters whose names match a pattern and which have so many axes or more.

        Args:
            pattern: As of file names, by case: "*.weight", "block?.mlp.*".
            least_axes: 2 for matrices, and so neither biases nor the weights of norms.

        Raises:
            ValueError: There are none.

        >>> specs = {"0.weight": ParameterSpec((2, 3), np.dtype("f4"), Constant(0)), "0.bias": ParameterSpec((2,), np.dtype("f4"), Constant(0))}
        >>> Layout(specs).select(least_axes=2)
        Part(names=('0.weight',), size=8)
        """
        names = tuple(
            name
            for name, spec in self.specs.items()
            if fnmatch.fnmatchcase(name, pattern) and len(spec.shape) >= least_axes
        )
        if not names:
            known = ", ".join(self.specs) or "none"
            raise ValueError(f"no parameter matches {pattern!r} with {least_axes} axes or more; there are: {known}")
        return Part(names, self.size, self.ranges(names))

    def ranges(self, names: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """Returns where some parameters, in the order of the layout, lie in the flat buffer; neighbours are one range.

        Raises:
            KeyError: The layout has no such parameter.
        """
        found: list[tuple[int, int]] = []
        for where in (self.slices[name] for name in names):
            if found and found[-1][1] == where.start:
                found[-1] = (found[-1][0], where.stop)
            else:
                found.append((where.start, where.stop))
        return tuple(found)

    def grouped_views(self, flat: Array) -> dict[str, dict[str, Array]]:
        """Returns the views by the path of their layer, then by local name."""
        groups: dict[str, dict[str, Array]] = {}
        for name, view in self.views(flat).items():
            path, _, local = name.rpartition(".")
            groups.setdefault(path, {})[local] = view
        return groups


class Parameters(Mapping[str, Array]):
    """A model's parameters: a mapping from name to a view of `flat`.

    Args:
        layout: Names, shapes and places.
        flat: The buffer, shape (layout.size,).
    """

    def __init__(self, layout: Layout, flat: Array) -> None:
        if flat.shape != (layout.size,) or flat.dtype != layout.dtype:
            raise ValueError(
                f"a flat buffer of shape {flat.shape} and dtype {flat.dtype} does not hold "
                f"{layout.size} parameters of {layout.dtype}"
            )
        self.layout = layout
        self.flat = flat
        self._views = layout.views(flat)

    @classmethod
    def initialize(cls, layout: Layout, key: Key, ledger: Ledger | None = None) -> Parameters:
        """Allocates and fills parameters; each draws from a key of its own name."""
        flat = (ledger or Ledger()).empty((layout.size,), layout.dtype, "parameters", "model")
        parameters = cls(layout, flat)
        for name, view in parameters.items():
            layout.specs[name].initializer(view, key.fold("initialize", name))
        return parameters

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Any:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def by_layer(self) -> dict[str, dict[str, Array]]:
        """Returns the views by the path of their layer, then by local name."""
        return self.layout.grouped_views(self.flat)

    def sha256(self) -> str:
        """Returns the SHA-256 of the flat buffer's little-endian bytes."""
        return sha256_of(self.flat)


def sha256_of(a: Array) -> str:
    """Returns the SHA-256 of an array's bytes in little-endian order."""
    little = a.astype(a.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).data).hexdigest()
