"""The loops under Conv2d: products of images with kernels, and both transposes, in scratch whose size depends on shapes alone.

All ways have the same rules. `correlate` writes w ⋆ x, `weight_cotangent` and `input_cotangent` are its transposes; each can add
instead of write, and says how many elements of scratch it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from framework import kernels
from framework.layers.windows import Two, Windows
from framework.memory import Array

#: Elements of the columns that are multiplied at once: 1 MiB of float32, of the size of a level-2 cache.
COLUMNS = 2**18
#: Images share a product until it has so many windows, which makes it efficient, or
WINDOWS = 512
#: until its columns have so many elements, which makes up for the calls.
SMALL = 2**16


@dataclass(frozen=True)
class Shapes:
    """The sizes of one call.

    Attributes:
        windows: The kernel on the image.
        batch: Number of images.
        channels: Of an image.
        features: Channels of an output.
        groups: Parts into which both are cut.
        image: Size of an image.
        count: Size of an output.
    """

    windows: Windows
    batch: int
    channels: int
    features: int
    groups: int
    image: Two
    count: Two

    @property
    def positions(self) -> int:
        """Windows on an image."""
        return self.count[0] * self.count[1]


class Correlation(Protocol):
    """A way to do it. Shapes: x (N, C, H, W), weight (features, C/groups, kh, kw), y (N, features, oh, ow)."""

    def correlate(self, weight: Array, x: Array, y: Array, scratch: Array, add: bool = False) -> None: ...

    def weight_cotangent(self, x: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None: ...

    def input_cotangent(self, weight: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None: ...

    def sizes(self, add: bool) -> tuple[int, int, int]:
        """Returns the elements of scratch of the three."""
        ...


@runtime_checkable
class Joint(Correlation, Protocol):
    """A way whose cotangents take less time together."""

    def cotangents(
        self, weight: Array, x: Array, g: Array, weight_target: Array, x_target: Array, scratch: Array
    ) -> None:
        """Writes both."""
        ...

    def size_of_both(self) -> int:
        """Returns the elements of scratch of `cotangents`."""
        ...


@dataclass(frozen=True)
class Pointwise:
    """Kernels of one pixel: images are their own columns."""

    shapes: Shapes

    def correlate(self, weight: Array, x: Array, y: Array, scratch: Array, add: bool = False) -> None:
        self._product(self._matrix(weight), self._rows(x), self._rows(y), scratch, add)

    def input_cotangent(self, weight: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        self._product(np.swapaxes(self._matrix(weight), -1, -2), self._rows(g), self._rows(target), scratch, add)

    def weight_cotangent(self, x: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        out = self._matrix(target)
        if not add and not len(x):
            target.fill(0)
        for number, (values, rows) in enumerate(zip(self._rows(x), self._rows(g), strict=True)):
            _add_product(rows, values, out, scratch, add or number > 0)

    def sizes(self, add: bool) -> tuple[int, int, int]:
        s = self.shapes
        images = s.positions if add else 0
        rows = product_size(s.groups, s.features // s.groups, s.channels // s.groups)
        return s.features * images, rows if add or s.batch > 1 else 0, s.channels * images

    def _product(self, matrix: Array, a: Array, out: Array, scratch: Array, add: bool) -> None:
        if not add:
            kernels.matmul(matrix, a, out=out)
            return
        for some, target in zip(a, out, strict=True):
            target += kernels.matmul(matrix, some, out=kernels.front(scratch, target.shape))

    def _matrix(self, weight: Array) -> Array:
        return kernels.as_view(weight, (self.shapes.groups, weight.shape[0] // self.shapes.groups, weight.shape[1]))

    def _rows(self, a: Array) -> Array:
        """Views (N, channels, H, W) as (N, groups, channels of one, H·W)."""
        groups = self.shapes.groups
        return kernels.as_view(a, (a.shape[0], groups, a.shape[1] // groups, a.shape[2] * a.shape[3]))


@dataclass(frozen=True)
class ByColumns:
    """The usual way: the pixels under each window become a column of a matrix (im2col), a block of windows at a time.

    A block is some rows of windows of one image, or several small images. It serves groups of one channel (depthwise), too: a
    multiplication and an addition of planes for each tap takes a tenth of the scratch, but twice the time.
    """

    shapes: Shapes

    def correlate(self, weight: Array, x: Array, y: Array, scratch: Array, add: bool = False) -> None:
        matrix = self._matrix(weight)
        for samples, rows in self._blocks():
            columns, rest = self._columns(x, samples, rows, scratch)
            out = self._windows_of(y, samples, rows)
            if add or self._samples > 1:
                product = kernels.front(rest, (*matrix.shape[:2], columns.shape[-1]))
                kernels.matmul(matrix, columns, out=product)
                found = product.reshape(out.shape)
                if add:
                    out += found
                else:
                    out[...] = found
            else:
                kernels.matmul(matrix, columns, out=self._of_one(y, samples, rows))

    def weight_cotangent(self, x: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        out = self._matrix(target)
        if not add and not len(x):
            target.fill(0)
        for number, (samples, rows) in enumerate(self._blocks()):
            columns, rest = self._columns(x, samples, rows, scratch)
            given, rest = self._given(g, samples, rows, rest)
            _add_product(given, columns, out, rest, add or number > 0)

    def input_cotangent(self, weight: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        s, matrix = self.shapes, np.swapaxes(self._matrix(weight), -1, -2)
        if not add:
            target.fill(0)
        for samples, rows in self._blocks():
            taps, columns, rest = self._places(samples, rows, scratch)
            given, _ = self._given(g, samples, rows, rest)
            kernels.matmul(matrix, given, out=columns)
            images = target[samples].swapaxes(0, 1)
            for tap in s.windows.over(s.image, rows):
                images[..., *tap.pixels] += taps[:, tap.number, ..., *tap.windows]

    def sizes(self, add: bool) -> tuple[int, int, int]:
        s = self.shapes
        windows = self._samples * self._rows * s.count[1]
        columns = s.channels * s.windows.taps * windows
        merged = s.features * windows if self._samples > 1 else 0
        matrix = (s.groups, s.features // s.groups, s.channels // s.groups * s.windows.taps)
        product = product_size(*matrix) if add or self._several else 0
        return columns + (s.features * windows if add else merged), columns + merged + product, columns + merged

    @property
    def _samples(self) -> int:
        """Images of a block."""
        s = self.shapes
        each = max(1, s.channels * s.windows.taps * s.positions)
        return max(1, min(s.batch, COLUMNS // each, max(-(-WINDOWS // s.positions), SMALL // each)))

    @property
    def _rows(self) -> int:
        """Rows of windows of a block."""
        s = self.shapes
        return s.count[0] if self._samples > 1 else _rows_of(s)

    @property
    def _several(self) -> bool:
        """Whether there is more than one block."""
        return self.shapes.batch > self._samples or self.shapes.count[0] > self._rows

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        down = self._rows
        for samples in slices(self.shapes.batch, self._samples):
            for rows in slices(self.shapes.count[0], down):
                yield samples, rows

    def _matrix(self, weight: Array) -> Array:
        s = self.shapes
        return kernels.as_view(weight, (s.groups, s.features // s.groups, s.channels // s.groups * s.windows.taps))

    def _places(self, samples: slice, rows: slice, scratch: Array) -> tuple[Array, Array, Array]:
        """Returns a block's columns twice, by tap and window and as matrices, and the rest of the scratch."""
        s = self.shapes
        shape = (s.channels, s.windows.taps, samples.stop - samples.start, rows.stop - rows.start, s.count[1])
        taps = kernels.front(scratch, shape)
        return taps, taps.reshape(s.groups, s.channels // s.groups * s.windows.taps, -1), scratch[taps.size :]

    def _columns(self, x: Array, samples: slice, rows: slice, scratch: Array) -> tuple[Array, Array]:
        """Writes a block's columns; what lies outside of the image is zero."""
        s = self.shapes
        taps, columns, rest = self._places(samples, rows, scratch)
        images = x[samples].swapaxes(0, 1)
        for tap in s.windows.over(s.image, rows):
            target = taps[:, tap.number]
            for edge in tap.outside:
                target[..., *edge] = 0
            target[..., *tap.windows] = images[..., *tap.pixels]
        return columns, rest

    def _windows_of(self, y: Array, samples: slice, rows: slice) -> Array:
        """Views a block of (N, features, oh, ow) as (features, samples, rows, ow)."""
        return y[samples, :, rows].swapaxes(0, 1)

    def _of_one(self, y: Array, samples: slice, rows: slice) -> Array:
        """Views a block of one image as matrices, a row a feature."""
        s = self.shapes
        whole = kernels.as_view(y[samples], (s.groups, s.features // s.groups, s.positions))
        return whole[:, :, rows.start * s.count[1] : rows.stop * s.count[1]]

    def _given(self, g: Array, samples: slice, rows: slice, scratch: Array) -> tuple[Array, Array]:
        """Returns a block of the outputs' cotangents as matrices, copied where it is several images; and the rest of the scratch."""
        if self._samples == 1:
            return self._of_one(g, samples, rows), scratch
        some = self._windows_of(g, samples, rows)
        copy = kernels.front(scratch, some.shape)
        copy[...] = some
        return copy.reshape(self.shapes.groups, self.shapes.features // self.shapes.groups, -1), scratch[copy.size :]


def _rows_of(s: Shapes) -> int:
    row = s.channels * s.windows.taps * s.count[1]
    return max(1, min(s.count[0], COLUMNS // max(1, row)))


def product_size(groups: int, rows: int, width: int) -> int:
    """Elements of the scratch of `_add_product`."""
    return groups * _product_rows(groups, rows, width) * width


def _product_rows(groups: int, rows: int, width: int) -> int:
    return max(1, min(rows, COLUMNS // max(1, groups * width)))


def _add_product(a: Array, b: Array, out: Array, scratch: Array, add: bool) -> None:
    """Writes a @ bᵀ into `out` (groups, rows, width), or adds it, a block of rows at a time."""
    if not add:
        kernels.matmul_by_rows(a, b, out=out)
        return
    groups, rows, width = out.shape
    for block in slices(rows, _product_rows(groups, rows, width)):
        product = kernels.front(scratch, (groups, block.stop - block.start, width))
        out[:, block] += kernels.matmul_by_rows(a[:, block], b, out=product)


def slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, max(1, step)):
        yield slice(start, min(start + step, length))
