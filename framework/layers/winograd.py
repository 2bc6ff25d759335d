"""Convolution of three rows of taps by Winograd's minimal filtering: two rows of windows take four rows of products, not six."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from framework import kernels
from framework.kernels import Step
from framework.layers.correlations import Shapes, slices
from framework.memory import Array

#: The least rows of a stack; products with fewer (groups of a channel or two) are no faster than by columns.
LEAST = 8
#: Images share a product until it has so many columns, which makes it efficient.
PLACES = 1152
#: The most elements of a part: pixels, their stack and the products with it, cotangents. 1 MiB of float32.
STACK = 2**18


@dataclass(frozen=True)
class Part:
    """Some pairs of rows of windows of some images, and the flat places where they lie.

    The images lie side by side, so that a *line* is a row of them all, with zeros between them. Lines of even and of odd rows lie apart, in a
    plane each. So the pixels that a tap meets in the even (or odd) rows of windows are a contiguous piece of one plane.

    Attributes:
        samples: The images.
        pairs: The pairs of rows of windows.
        width: Pixels from one image to the next.
    """

    samples: slice
    pairs: slice
    width: int

    @property
    def images(self) -> int:
        count: int = self.samples.stop - self.samples.start
        return count

    @property
    def down(self) -> int:
        """Pairs of rows."""
        count: int = self.pairs.stop - self.pairs.start
        return count

    @property
    def line(self) -> int:
        """Pixels of a line."""
        return self.images * self.width

    @property
    def length(self) -> int:
        """Columns of a product: places of a plane of windows. A plane of pixels has one line more."""
        return self.down * self.line

    def of_images(self, planes: Array, padding: tuple[int, int], image: tuple[int, int]) -> list[tuple[Array, slice]]:
        """Views the images' even and odd rows in (2, channels, places) as (channels, rows, images, columns), and returns which rows these are."""
        found = []
        for parity, plane in enumerate(planes.reshape(*planes.shape[:2], -1, self.images, self.width)):
            first = 2 * self.pairs.start + parity - padding[0]  # the row of the image that comes first
            start, stop = max(0, -(first // 2)), min(plane.shape[1], (image[0] - first + 1) // 2)
            if start < stop:
                rows = slice(first + 2 * start, first + 2 * stop - 1, 2)
                found.append((plane[:, start:stop, :, padding[1] : padding[1] + image[1]], rows))
        return found


@dataclass(frozen=True)
class Winograd:
    """F(2, 3) of Winograd 1980, "Arithmetic complexity of computations" (Lavin & Gray 2015, arXiv 1509.09308), along columns of images.

    Of four rows of pixels d and the kernel's three rows w, two rows of windows are y = Aᵀ[(G·w) ⊙ (Bᵀ·d)], where ⊙ is a correlation along
    rows; that is done as in `ByShifts`. Bᵀ·d is four sums or differences of two rows of pixels, made for all of a part at once. The weight's
    cotangent is Gᵀ[(A·ȳ) ⊙ (Bᵀ·d)]; the input's is such a correlation itself, of the cotangent with the kernel turned round, and both are
    made of the same Bᵀ·d.
    """

    shapes: Shapes

    @staticmethod
    def suits(shapes: Shapes) -> bool:
        """Whether three rows of windows are next to each other, pad no more than they reach, and have enough channels for a product."""
        windows = shapes.windows
        return (
            (windows.kernel[0], windows.dilation[0], windows.stride) == (3, 1, (1, 1))
            and all(pad < size for pad, size in zip(windows.padding, windows.reach, strict=True))
            and min(shapes.channels, shapes.features) // shapes.groups * windows.kernel[1] >= LEAST
        )

    def correlate(self, weight: Array, x: Array, y: Array, scratch: Array, add: bool = False) -> None:
        matrices, rest = self._transformed(self._by_row(weight), scratch)
        self._pass(x, rest, matrices=matrices, y=y, add=add)

    def input_cotangent(self, weight: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        matrices, rest = self._turned._transformed(self._turn(weight), scratch)
        self._turned._pass(g, rest, matrices=matrices, y=target, add=add)

    def weight_cotangent(self, x: Array, g: Array, target: Array, scratch: Array, add: bool = False) -> None:
        total, rest = _front(scratch, self._matrices)
        self._pass(x, rest, given=g, total=total)
        self._fold(total, self._by_row(target), rest, add)

    def cotangents(
        self, weight: Array, x: Array, g: Array, weight_target: Array, x_target: Array, scratch: Array
    ) -> None:
        """Writes both, with one stack of the outputs' cotangents."""
        turned = self._turned
        total, rest = _front(scratch, turned._matrices)
        matrices, rest = turned._transformed(self._turn(weight), rest)
        turned._pass(g, rest, matrices=matrices, y=x_target, given=x, total=total)
        turned._fold(total, self._turn(weight_target), rest, False)

    def sizes(self, add: bool) -> tuple[int, int, int]:
        taps = self._weights * 3 // 4  # of the weight as it is: it comes before the planes, or after them
        return (
            self._weights + max(taps, self._planes(product=True)),
            self._weights + max(taps, self._planes(given=True)),
            self._weights + max(taps, self._turned._planes(product=True)),
        )

    def size_of_both(self) -> int:
        """Returns the elements of scratch of `cotangents`."""
        return 2 * self._weights + max(self._weights * 3 // 4, self._turned._planes(product=True, given=True))

    def _pass(
        self, x: Array, scratch: Array, matrices: Array | None = None, y: Array | None = None, add: bool = False,
        given: Array | None = None, total: Array | None = None,
    ) -> None:  # fmt: skip
        """Transforms the images, and with them writes `y` (or adds to it), or `total` for a cotangent `given`, or both."""
        seen: tuple[int, slice] | None = None
        if total is not None:
            total.fill(0)
        for part in self._parts():
            if seen != (part.images, part.pairs):  # else all comes to the same places, with the same zeros around
                seen = part.images, part.pairs
                stack, rest = _Stack.at_front(part, self.shapes, scratch)
                steps = [list(stack.steps(row)) for row in range(4)]
                if total is not None:
                    received, rest = _Received.at_front(part, self.shapes, rest)
                    product, rest = _front(rest, total.shape[1:])
                    for row, some in enumerate(total):
                        steps[row] += received.steps(row, stack.made, product)
                        steps[row].append(partial(np.add, some, product, out=some))
                if matrices is not None:
                    made = _Made(part, self.shapes, rest)
                    for row, matrix in enumerate(matrices):
                        steps[row] += made.steps(row, matrix, stack.made)
                each = [step for some in steps for step in some]
            stack.read(x, part)
            if given is not None:
                received.read(given, part)
            for step in each:
                step()
            if y is not None:
                made.write(y, part, add)

    def _transformed(self, weight: Array, scratch: Array) -> tuple[Array, Array]:
        """Returns G·w of a weight (3, groups, rows, columns of taps, channels), and the rest of the scratch."""
        found, rest = _front(scratch, self._matrices)
        taps = kernels.front(rest, weight.shape)
        taps[...] = weight
        first, middle, last = taps.reshape(3, *self._matrices[1:])
        found[0], found[3] = first, last
        np.add(first, last, out=found[1])
        np.subtract(found[1], middle, out=found[2])
        found[1] += middle
        found[1:3] *= 0.5
        return found, rest

    def _fold(self, total: Array, target: Array, scratch: Array, add: bool) -> None:
        """Writes Gᵀ·total, or adds it, where the last of the total's rows is negated; destroys `total`."""
        found = kernels.front(scratch, (3, *total.shape[1:]))
        total[1:3] *= 0.5
        np.subtract(total[1], total[2], out=found[1])
        total[1] += total[2]
        np.add(total[0], total[1], out=found[0])
        np.subtract(total[1], total[3], out=found[2])
        if add:
            target += found.reshape(target.shape)
        else:
            target[...] = found.reshape(target.shape)

    def _parts(self) -> Iterator[Part]:
        whole, s = self._whole, self.shapes
        for samples in slices(s.batch, whole.images):
            for pairs in slices(-(-s.count[0] // 2), whole.down):
                yield replace(whole, samples=samples, pairs=pairs)

    @cached_property
    def _whole(self) -> Part:
        """The largest part, the first one."""
        s = self.shapes
        width, down = s.image[1] + s.windows.padding[1], -(-s.count[0] // 2)
        met = (2 + s.windows.kernel[1]) * s.channels
        each = met + 6 * s.features
        images = max(1, min(s.batch, PLACES // (down * width), STACK // ((down * each + met) * width)))
        images = 1 << (images.bit_length() - 1)  # a power of two, as batches often are: so parts are equal
        rows = down if images > 1 else max(1, min(down, (STACK // width - met) // each))
        return Part(slice(0, images), slice(0, rows), width)

    @cached_property
    def _turned(self) -> Winograd:
        """The correlation that the input's cotangent is."""
        s = self.shapes
        padding = tuple(size - 1 - pad for size, pad in zip(s.windows.reach, s.windows.padding, strict=True))
        windows = replace(s.windows, padding=(padding[0], padding[1]))
        return Winograd(Shapes(windows, s.batch, s.features, s.channels, s.groups, s.count, s.image))

    @property
    def _matrices(self) -> tuple[int, ...]:
        """The shape of a transformed weight."""
        s = self.shapes
        return 4, s.groups, s.features // s.groups, s.windows.kernel[1] * (s.channels // s.groups)

    @property
    def _weights(self) -> int:
        """Elements of a transformed weight."""
        s = self.shapes
        return 4 * s.windows.kernel[1] * s.features * (s.channels // s.groups)

    def _planes(self, product: bool = False, given: bool = False) -> int:
        """Elements of scratch of a pass."""
        s, part = self.shapes, self._whole
        found = _Stack.size(part, s)
        if given:
            found += _Received.size(part, s) + self._weights // 4
        return found + _Made.size(part, s) * product

    def _split(self, weight: Array) -> Array:
        """Views a weight as (groups, features of one, channels of one, kernel rows, kernel columns)."""
        s = self.shapes
        return kernels.as_view(weight, (s.groups, s.features // s.groups, s.channels // s.groups, *s.windows.kernel))

    def _by_row(self, weight: Array) -> Array:
        """Views it as it is multiplied: (kernel rows, groups, features of one, kernel columns, channels of one)."""
        return self._split(weight).transpose(3, 0, 1, 4, 2)

    def _turn(self, weight: Array) -> Array:
        """Views it as the turned correlation multiplies by it."""
        return self._split(weight)[..., ::-1, ::-1].transpose(3, 0, 2, 4, 1)


class _Stack:
    """Bᵀ·d of the pixels, a row at a time, once for each column of the kernel, shifted by it.

    Channels lie one behind another, each with the line that only its last windows meet, so that a step is one loop over them all; what it makes
    in that line's place is left out.
    """

    def __init__(self, part: Part, shapes: Shapes, scratch: Array) -> None:
        across, groups = shapes.windows.kernel[1], shapes.groups
        plane = (part.down + 1) * part.line
        length = shapes.channels * plane
        pixels, rest = _front(scratch, (2, length + part.line))
        pixels.fill(0)
        self._places = part.of_images(
            pixels[:, :length].reshape(2, shapes.channels, plane), shapes.windows.padding, shapes.image
        )
        even, odd = pixels[:, :length].reshape(2, groups, -1)
        even_below, odd_below = pixels[:, part.line :].reshape(2, groups, -1)
        self._sums = (
            (np.subtract, even, even_below),
            (np.add, odd, even_below),
            (np.subtract, even_below, odd),
            (np.subtract, odd, odd_below),
        )
        stack = kernels.front(rest, (groups, across, length // groups))
        self._first, self._shifted = stack[:, 0], []
        for column in range(1, across):
            shift = column * shapes.windows.dilation[1]
            stack[:, column, -shift:] = 0
            self._shifted.append((stack[:, column, :-shift], stack[:, 0, shift:]))
        self.made = stack.reshape(groups, -1, plane)[..., : part.length]

    @staticmethod
    def size(part: Part, shapes: Shapes) -> int:
        length = shapes.channels * (part.down + 1) * part.line
        return 2 * (length + part.line) + shapes.windows.kernel[1] * length

    @classmethod
    def at_front(cls, part: Part, shapes: Shapes, scratch: Array) -> tuple[_Stack, Array]:
        return cls(part, shapes, scratch), scratch[cls.size(part, shapes) :]

    def read(self, x: Array, part: Part) -> None:
        _read(x, part, self._places)

    def steps(self, row: int) -> Iterator[Step]:
        """Yields what writes a row into `made`: (groups, kernel columns · channels of one, places)."""
        function, a, b = self._sums[row]
        yield partial(function, a, b, out=self._first)
        for target, source in self._shifted:
            yield partial(np.copyto, target, source)


class _Received:
    """A·ȳ of the windows' cotangents, a row at a time, the last one negated."""

    def __init__(self, part: Part, shapes: Shapes, scratch: Array) -> None:
        planes, rest = _front(scratch, (2, shapes.features, part.length))
        planes.fill(0)
        self._places = part.of_images(planes, (0, 0), shapes.count)
        self._even, self._odd = planes.reshape(2, shapes.groups, -1, part.length)
        self._both = kernels.front(rest, self._even.shape)

    @staticmethod
    def size(part: Part, shapes: Shapes) -> int:
        return 3 * shapes.features * part.length

    @classmethod
    def at_front(cls, part: Part, shapes: Shapes, scratch: Array) -> tuple[_Received, Array]:
        return cls(part, shapes, scratch), scratch[cls.size(part, shapes) :]

    def read(self, g: Array, part: Part) -> None:
        _read(g, part, self._places)

    def steps(self, row: int, pixels: Array, product: Array) -> Iterator[Step]:
        """Yields what writes the product of a row with one of pixels: (groups, features of one, kernel columns · channels of one)."""
        if row in (1, 2):
            yield partial(np.add if row == 1 else np.subtract, self._even, self._odd, out=self._both)
        yield from kernels.steps_by_rows((self._even, self._both, self._both, self._odd)[row], pixels, product)


class _Made:
    """Aᵀ·m of the products m, which come a row at a time."""

    def __init__(self, part: Part, shapes: Shapes, scratch: Array) -> None:
        planes, rest = _front(scratch, (2, shapes.features, part.length))
        self._places = part.of_images(planes, (0, 0), shapes.count)
        self._even, self._odd = planes.reshape(2, shapes.groups, -1, part.length)
        self._product = kernels.front(rest, self._even.shape)

    size = _Received.size

    def steps(self, row: int, matrix: Array, pixels: Array) -> Iterator[Step]:
        """Yields what adds the product of a matrix with a row of pixels."""
        product = (self._even, self._odd, self._product, self._product)[row]
        yield from kernels.steps_of_matmul(matrix, pixels, product)
        if row in (1, 2):
            yield partial(np.add, self._even, product, out=self._even)
        if row in (2, 3):
            yield partial(np.subtract, self._odd, product, out=self._odd)

    def write(self, y: Array, part: Part, add: bool) -> None:
        """Writes the windows to the outputs (N, features, oh, ow), or adds them."""
        for place, rows in self._places:
            out = y[part.samples, :, rows].transpose(1, 2, 0, 3)
            if add:
                out += place
            else:
                out[...] = place


def _read(x: Array, part: Part, places: list[tuple[Array, slice]]) -> None:
    for place, rows in places:
        place[...] = x[part.samples, :, rows].transpose(1, 2, 0, 3)


def _front(scratch: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns the beginning of scratch as an array of a shape, and the rest."""
    array = kernels.front(scratch, shape)
    return array, scratch[array.size :]
