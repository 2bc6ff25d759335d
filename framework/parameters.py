"""Parameters: named views of one flat buffer.

Gradients and optimizer state have the same layout, so all-reduce, the optimizer and saving work on slices of one
array, and the buffer may live in shared memory. A gradient buffer goes on behind the parameters' cotangents where layers take
*statistics* of a batch (BatchNorm's mean and variance): so these are added over shards and ranks as the gradient is, and by
the same tree. What layers keep of them from step to step is the *state*, a small buffer of its own.
"""

from __future__ import annotations

import bisect
import fnmatch
import functools
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
class HeNormal:
    """Independent normal numbers of variance 2/fan-in, which keeps the size of what passes a ReLU (He et al. 2015, arXiv 1502.01852).

    The fan-in is how many inputs an output is a sum over: the product of all axes of a weight but the first.
    """

    def __call__(self, out: Array, key: Key) -> None:
        Normal(math.sqrt(2 / max(1, math.prod(out.shape[1:]))))(out, key)


@dataclass(frozen=True)
class ParameterSpec:
    """Shape, dtype and initializer of a parameter: all that is known of it before there is an array.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        initializer: Fills it.
        pytorch: What PyTorch's module of this kind calls it where that is another name; where there are several, it is their sum.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    initializer: Initializer
    pytorch: tuple[str, ...] = ()

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
        statistics: What layers tell of each shard besides, by name ("path.of.layer.mean").
        state: What they keep from step to step, by name ("path.of.layer.running_mean").
        aliases: Further names, of layers that share a parameter: for each the parameter's name.

    Attributes:
        specs: The parameters.
        size: Their elements.

    Raises:
        ValueError: The parameters do not share one float dtype.
    """

    def __init__(
        self,
        specs: Mapping[str, ParameterSpec],
        statistics: Mapping[str, ParameterSpec] | None = None,
        state: Mapping[str, ParameterSpec] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        dtypes = sorted({spec.dtype.name for spec in specs.values()})
        if len(dtypes) > 1 or any(spec.dtype.kind != "f" for spec in specs.values()):
            raise ValueError(f"the parameters of a model share one float dtype, but these have {', '.join(dtypes)}")
        self.specs = dict(specs)
        self.aliases = dict(aliases or {})
        self.dtype = np.dtype(dtypes[0]) if dtypes else np.dtype(np.float32)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, spec in self.specs.items():
            self.slices[name] = slice(self.size, self.size + spec.size)
            self.size += spec.size
        self._statistics = dict(statistics or {})
        self._state = dict(state or {})

    @functools.cached_property
    def statistics(self) -> Layout:
        """The layout of statistics alone."""
        return Layout(self._statistics)

    @functools.cached_property
    def gradients(self) -> Layout:
        """The layout of a gradient buffer: the parameters' cotangents, then the statistics."""
        return Layout({**self.specs, **self._statistics}) if self._statistics else self

    @functools.cached_property
    def state(self) -> Layout:
        """The layout of the state."""
        return Layout(self._state)

    @functools.cached_property
    def own(self) -> dict[str, tuple[str, ...]]:
        """The parameters that one layer alone uses, by the path of that layer."""
        shared, found = set(self.aliases.values()), dict[str, tuple[str, ...]]()
        for name in self.specs:
            if name not in shared:
                path = name.rpartition(".")[0]
                found[path] = (*found.get(path, ()), name)
        return found

    @functools.cached_property
    def rest(self) -> Layout:
        """The layout of parameters that several layers use, whose cotangents no VJP finishes alone, and of all statistics."""
        own = {name for names in self.own.values() for name in names}
        specs = {name: spec for name, spec in self.specs.items() if name not in own}
        return Layout(specs, self._statistics, aliases=self.aliases)

    @functools.cached_property
    def pytorch(self) -> dict[str, tuple[str, ...]]:
        """PyTorch's names of the parameters that it calls otherwise, by ours; see `ParameterSpec.pytorch`."""
        return {
            name: tuple(f"{name.rpartition('.')[0]}.{local}".lstrip(".") for local in spec.pytorch)
            for name, spec in self.specs.items()
            if spec.pytorch
        }

    @functools.cached_property
    def copies(self) -> dict[str, tuple[str, ...]]:
        """Further names of the parameters that several layers share, by the first; parts of one layer that share do not count."""
        found: dict[str, tuple[str, ...]] = {}
        for alias, name in self.aliases.items():
            if not alias.startswith(name.rpartition(".")[0] + "."):
                found[name] = (*found.get(name, ()), alias)
        return found

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def own_nbytes(self, path: str) -> int:
        """Bytes of the parameters that the layer of a path alone uses."""
        return sum(self.specs[name].size for name in self.own.get(path, ())) * self.dtype.itemsize

    def parts(self, gradient: Array) -> tuple[Array, Array]:
        """Returns views of the parameters' part of a gradient buffer and of the statistics' part."""
        return gradient[: self.size], gradient[self.size :]

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
        """Returns the views by the path of their layer, then by local name; what is shared with each layer that uses it."""
        groups: dict[str, dict[str, Array]] = {}
        views = self.views(flat)
        views.update((alias, views[name]) for alias, name in self.aliases.items())
        for name, view in views.items():
            path, _, local = name.rpartition(".")
            groups.setdefault(path, {})[local] = view
        return groups


class Parameters(Mapping[str, Array]):
    """A model's parameters: a mapping from name to a view of `flat`.

    Args:
        layout: Names, shapes and places.
        flat: The buffer, shape (layout.size,).
        state: What the layers keep from step to step besides, of layout `layout.state`; None where they keep nothing, or for what is
            no model's parameters but has their layout, as a gradient.

    Attributes:
        version: Which of several buffers `flat` is; 0 where there is one. Views of another version are not of these parameters.
    """

    version = 0

    def __init__(self, layout: Layout, flat: Array, state: Parameters | None = None) -> None:
        if flat.shape != (layout.size,) or flat.dtype != layout.dtype:
            raise ValueError(
                f"a flat buffer of shape {flat.shape} and dtype {flat.dtype} does not hold "
                f"{layout.size} parameters of {layout.dtype}"
            )
        self.layout = layout
        self.state = state
        self.use(flat)

    @classmethod
    def initialize(cls, layout: Layout, key: Key, ledger: Ledger | None = None) -> Parameters:
        """Allocates and fills parameters; each draws from a key of its own name."""
        book = ledger or Ledger()
        state = Parameters.initial_state(layout, key, book)
        parameters = cls(layout, book.empty((layout.size,), layout.dtype, "parameters", "model"), state)
        parameters.fill(key)
        return parameters

    @staticmethod
    def initial_state(layout: Layout, key: Key, ledger: Ledger) -> Parameters | None:
        """Allocates and fills the state of a model; None where its layers keep nothing."""
        if not layout.state.size:
            return None
        state = Parameters(layout.state, ledger.empty((layout.state.size,), layout.state.dtype, "parameters", "state"))
        state.fill(key)
        return state

    def fill(self, key: Key, names: Iterable[str] | None = None) -> None:
        """Writes initial values, of all parameters or some; each draws from a key of its own name."""
        for name in self.layout.specs if names is None else names:
            self.layout.specs[name].initializer(self[name], key.fold("initialize", name))

    def use(self, flat: Array) -> None:
        """Reads another buffer of the same layout from now on."""
        self.flat = flat
        self._views = self.layout.views(flat)

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Any:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def by_layer(self) -> dict[str, dict[str, Array]]:
        """Returns the views by the path of their layer, then by local name; see `Layout.grouped_views`."""
        return self.layout.grouped_views(self.flat)

    def state_by_layer(self) -> dict[str, dict[str, Array]]:
        """Returns the views of the state by the path of their layer, then by local name; none where there is no state."""
        return self.state.by_layer() if self.state is not None else {}

    def with_state(self) -> dict[str, Array]:
        """Returns the views of the parameters and of the state by name: what a file of weights holds."""
        return {**self, **(self.state or {})}

    def sha256(self) -> str:
        """Returns the SHA-256 of the little-endian bytes of the flat buffer and then of the state's."""
        return sha256_of(self.flat, *((self.state.flat,) if self.state is not None else ()))


def sha256_of(*arrays: Array) -> str:
    """Returns the SHA-256 of arrays' bytes in little-endian order, one array after the other."""
    found = hashlib.sha256()
    for a in arrays:
        little = a.astype(a.dtype.newbyteorder("<"), copy=False)
        found.update(np.ascontiguousarray(little).data)
    return found.hexdigest()
