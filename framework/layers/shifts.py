"""Convolution of stride 1 by shifts: images lie in rows with zeros between them, so that a tap of the kernel is a shift of them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from framework import kernels
from framework.layers.correlations import Shapes, slices
from framework.memory import Array

#: Images share a product until a row of it is so long, which makes it efficient; a longer one is cut.
POSITIONS = 1024
#: The least rows of a stack; products with fewer (groups of a channel or two) are no faster than by columns.
LEAST = 8
#: The most elements of a stack of shifted images and the products with it: 1 MiB of float32.
STACK = 2**18


@dataclass(frozen=True)
class Part:
    """Some rows of windows of some images, and the flat places where they lie.

    A *plane* is one channel of all these images as one flat array: row after row, image after image, zeros between them. The window
    (u, v) of the n-th image begins at place (n·height + u)·width + v of the padded plane; its tap (i, j) lies i·dilation rows and j·dilation
    pixels on. So the same tap of all windows is a contiguous piece of the plane.

    Attributes:
        samples: The images.
        rows: The rows of windows.
        height: Rows from one image to the next.
        width: Pixels from one row to the next.
        lead: The first pixel's row and place in its row.
        reach: Places from a window's first tap to its last row's, and to the last one of a row.
    """

    samples: slice
    rows: slice
    height: int
    width: int
    lead: tuple[int, int]
    reach: tuple[int, int]

    @property
    def images(self) -> int:
        count: int = self.samples.stop - self.samples.start
        return count

    @property
    def length(self) -> int:
        """Places from the first window to the last row's end: columns of a product."""
        rows: int = self.rows.stop - self.rows.start
        return ((self.images - 1) * self.height + rows) * self.width

    @property
    def padded(self) -> int:
        """Places of a plane with all that the taps of these windows meet."""
        return self.length + sum(self.reach)

    def windows(self, flat: Array) -> Array:
        """Views the values of the windows in (..., length) as (..., images, rows, width), the last rows of images left out."""
        count = self.rows.stop - self.rows.start
        if self.images == 1:
            return flat.reshape(*flat.shape[:-1], 1, count, self.width)
        # The last image has no rows of zeros behind it.
        *outer, item = flat.strides
        strides = (*outer, self.height * self.width * item, self.width * item, item)
        return np.lib.stride_tricks.as_strided(flat, (*flat.shape[:-1], self.images, count, self.width), strides)

    def pixels(self, planes: Array, image: tuple[int, int]) -> tuple[Array, slice]:
        """Views where the images' pixels lie in padded planes (..., padded), and returns which rows of the images these are."""
        first = self.rows.start - self.lead[0]  # the row of the image that comes first in the plane
        stop = self.rows.stop + self.reach[0] // self.width - self.lead[0]
        rows = slice(max(0, first), min(image[0], stop))
        *outer, item = planes.strides
        at = planes[..., (rows.start - first) * self.width + self.lead[1] :]
        strides = (*outer, self.height * self.width * item, self.width * item, item)
        shape = (*planes.shape[:-1], self.images, max(0, rows.stop - rows.start), image[1])
        return np.lib.stride_tricks.as_strided(at, shape, strides), rows


@dataclass(frozen=True)
class ByShifts:
    """Windows of stride 1 by shifts of whole planes.

    Planes are stacked once for each column of the kernel, shifted by it; for each of its rows the product with the stack, shifted by whole
    rows, is added. So a third of the usual columns is written (for 3x3), in long pieces. Between the images' rows and between images lie
    zeros, and what the products say of windows there is left out. The input's cotangent is itself such a correlation: of the cotangent
    with the kernel turned round.
    """

    shapes: Shapes

    @staticmethod
    def suits(shapes: Shapes) -> bool:
        """Whether windows are of stride 1, pad no more than they reach, and have enough taps and channels for a product."""
        windows = shapes.windows
        reach = windows.reach
        return (
            windows.stride == (1, 1)
            and all(pad < size for pad, size in zip(windows.padding, reach, strict=True))
            and shapes.channels // shapes.groups * windows.kernel[1] >= LEAST
            and shapes.features // shapes.groups * windows.kernel[1] >= LEAST
        )

    def correlate(self, weight: Array, x: Array, y: Array, scratch: Array, add: bool = False) -> None:
        s = self.shapes
        matrices, rest = self._front(scratch, (s.windows.kernel[0], s.groups, s.features // s.groups, self._stacked))
        self._by_row(matrices)[...] = self._split(weight).transpose(3, 0, 1, 4, 2)
        self._correlate(matrices, x, y, rest, add)

    def input_cotangent(self, weight: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        s, turned = self.shapes, self._turned
        shape = s.windows.kernel[0], s.groups, s.channels // s.groups, turned._stacked
        matrices, rest = self._front(scratch, shape)
        self._turn(weight, matrices)
        turned._correlate(matrices, g, target, rest, add)

    def cotangents(
        self, weight: Array, x: Array, g: Array, weight_target: Array, x_target: Array, scratch: Array
    ) -> None:
        """Writes both, with one stack of the outputs' cotangents: the weight's is its product with the pixels, tap by tap."""
        s, turned = self.shapes, self._turned
        matrix = s.groups, s.channels // s.groups, turned._stacked
        matrices, rest = self._front(scratch, (s.windows.kernel[0], *matrix))
        total, rest = self._front(rest, (s.windows.kernel[0], *matrix))
        product, rest = self._front(rest, matrix)
        self._turn(weight, matrices)
        total.fill(0)
        for part, stack, more in turned._stacks(g, rest):
            pixels, more = self._front(more, (s.groups, s.channels // s.groups, part.length))
            pixels.fill(0)
            part.windows(turned._planes(pixels))[..., : s.image[1]] = turned._of(x, part)
            turned._multiply(matrices, part, stack, x_target, more, False)
            for row in range(s.windows.kernel[0]):
                total[row] += kernels.matmul_by_rows(pixels, turned._row(stack, part, row), out=product)
        found = turned._by_row(total).transpose(1, 4, 2, 0, 3)[..., ::-1, ::-1]
        self._split(weight_target)[...] = found

    def weight_cotangent(self, x: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        s = self.shapes
        matrix = s.groups, s.features // s.groups, self._stacked
        total, rest = self._front(scratch, (s.windows.kernel[0], *matrix))
        product, rest = self._front(rest, matrix)
        total.fill(0)
        for part, stack, more in self._stacks(x, rest):
            given, _ = self._front(more, (s.groups, s.features // s.groups, part.length))
            given.fill(0)
            part.windows(self._planes(given))[..., : s.count[1]] = self._of(g, part)
            for row in range(s.windows.kernel[0]):
                total[row] += kernels.matmul_by_rows(given, self._row(stack, part, row), out=product)
        split, found = self._split(target), self._by_row(total).transpose(1, 2, 4, 0, 3)
        if add:
            split += found
        else:
            split[...] = found

    def size_of_both(self) -> int:
        """Returns the elements of scratch of `cotangents`."""
        s, turned = self.shapes, self._turned
        weights = s.features * (s.channels // s.groups) * s.windows.taps
        return 2 * weights + weights // s.windows.kernel[0] + turned._products + s.channels * turned._whole.length

    def sizes(self, add: bool) -> tuple[int, int, int]:
        s, turned = self.shapes, self._turned
        weights = s.features * (s.channels // s.groups) * s.windows.taps
        matrix = weights // s.windows.kernel[0]
        return (
            weights + self._products,
            weights + matrix + self._stack + s.features * self._whole.length,
            weights + turned._products,
        )

    def _correlate(self, matrices: Array, x: Array, y: Array, scratch: Array, add: bool) -> None:
        for part, stack, rest in self._stacks(x, scratch):
            self._multiply(matrices, part, stack, y, rest, add)

    def _multiply(self, matrices: Array, part: Part, stack: Array, y: Array, scratch: Array, add: bool) -> None:
        """Writes a part of the outputs, or adds to it."""
        s = self.shapes
        found, rest = self._front(scratch, (s.groups, s.features // s.groups, part.length))
        for row, matrix in enumerate(matrices):
            if not row:
                kernels.matmul(matrix, self._row(stack, part, row), out=found)
            else:
                more, _ = self._front(rest, found.shape)
                found += kernels.matmul(matrix, self._row(stack, part, row), out=more)
        made, out = part.windows(self._planes(found))[..., : s.count[1]], self._of(y, part)
        if add:
            out += made
        else:
            out[...] = made

    def _stacks(self, x: Array, scratch: Array) -> Iterator[tuple[Part, Array, Array]]:
        """Yields the parts, each with its stack (groups, kernel columns · channels of a group, padded), and the rest of the scratch."""
        s = self.shapes
        across, step = s.windows.kernel[1], s.windows.dilation[1]
        split = x.reshape(x.shape[0], s.groups, s.channels // s.groups, *s.image).transpose(1, 2, 0, 3, 4)
        shape: tuple[int, slice] | None = None
        for part in self._parts():
            if shape != (
                part.images,
                part.rows,
            ):  # else pixels come to the same places, and zeros are still between them
                shape = part.images, part.rows
                stack, rest = self._front(scratch, (s.groups, across, s.channels // s.groups, part.padded))
                stack.fill(0)
                pixels, rows = part.pixels(stack[:, 0], s.image)
                whole = stack.reshape(s.groups, self._stacked, part.padded)
            pixels[...] = split[:, :, part.samples, rows]
            for shift in range(step, across * step, step):
                stack[:, shift // step, :, :-shift] = stack[:, 0, :, shift:]
            yield part, whole, rest

    def _row(self, stack: Array, part: Part, row: int) -> Array:
        """The stack as the kernel's row meets it."""
        start = row * self.shapes.windows.dilation[0] * part.width
        return stack[..., start : start + part.length]

    def _parts(self) -> Iterator[Part]:
        s = self.shapes
        whole = self._whole
        for samples in slices(s.batch, whole.images):
            for rows in slices(s.count[0], whole.rows.stop):
                yield replace(whole, samples=samples, rows=rows)

    @cached_property
    def _whole(self) -> Part:
        """The largest part, the first one."""
        s = self.shapes
        (down, across), (top, left) = s.windows.reach, s.windows.padding
        width = max(s.image[1] + left, s.count[1])
        height = max(s.image[0] + top, s.count[0])
        line = (self._stacked * s.groups + 2 * s.features) * width
        images = max(1, min(s.batch, POSITIONS // max(1, height * width), STACK // max(1, line * height)))
        rows = s.count[0] if images > 1 else max(1, min(s.count[0], STACK // max(1, line) - (down - 1)))
        return Part(slice(0, images), slice(0, rows), height, width, (top, left), ((down - 1) * width, across - 1))

    @cached_property
    def _turned(self) -> ByShifts:
        """The correlation that the input's cotangent is."""
        s = self.shapes
        padding = tuple(size - 1 - pad for size, pad in zip(s.windows.reach, s.windows.padding, strict=True))
        windows = replace(s.windows, padding=(padding[0], padding[1]))
        return ByShifts(Shapes(windows, s.batch, s.features, s.channels, s.groups, s.count, s.image))

    @property
    def _stacked(self) -> int:
        """Planes of a group in a stack."""
        return self.shapes.windows.kernel[1] * (self.shapes.channels // self.shapes.groups)

    @property
    def _stack(self) -> int:
        """Elements of the largest stack."""
        return self.shapes.groups * self._stacked * self._whole.padded

    @property
    def _products(self) -> int:
        """Elements of the largest stack and its products."""
        s = self.shapes
        return self._stack + (1 + (s.windows.kernel[0] > 1)) * s.features * self._whole.length

    def _split(self, weight: Array) -> Array:
        """Views a weight as (groups, features of one, channels of one, kernel rows, kernel columns)."""
        s = self.shapes
        return kernels.as_view(weight, (s.groups, s.features // s.groups, s.channels // s.groups, *s.windows.kernel))

    def _turn(self, weight: Array, matrices: Array) -> None:
        """Writes the matrices by which the turned correlation multiplies."""
        self._turned._by_row(matrices)[...] = self._split(weight)[..., ::-1, ::-1].transpose(3, 0, 2, 4, 1)

    def _by_row(self, matrices: Array) -> Array:
        """Views weights (kernel rows, groups, features of one, columns · channels) with columns and channels apart."""
        return matrices.reshape(*matrices.shape[:3], self.shapes.windows.kernel[1], -1)

    def _planes(self, a: Array) -> Array:
        """Views (groups, features of one, ...) as (features, ...)."""
        return a.reshape(self.shapes.features, *a.shape[2:])

    def _of(self, y: Array, part: Part) -> Array:
        """Views a part of (N, features, oh, ow) as (features, images, rows, ow)."""
        return y[part.samples, :, part.rows].swapaxes(0, 1)

    @staticmethod
    def _front(scratch: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Returns the beginning of scratch as an array of a shape, and the rest."""
        array = kernels.front(scratch, shape)
        return array, scratch[array.size :]
