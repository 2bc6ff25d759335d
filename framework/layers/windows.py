"""Windows that slide over images: their number, and which pixels each of their taps meets. Convolution and pooling share them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from framework.layers.layer import Layer, Spec, require_float
from framework.memory import Array

#: Height and width.
Two = tuple[int, int]

_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Tap:
    """One element of the kernel: the windows in which it meets a pixel, and these pixels.

    Attributes:
        number: Its place in the kernel, row by row.
        windows: The slices of the two axes of windows, counted from the first row asked for.
        pixels: The slices of the two axes of pixels, as many.
        outside: Slices of the windows in which it lies outside of the image: what `windows` leaves out.
    """

    number: int
    windows: tuple[slice, slice]
    pixels: tuple[slice, slice]
    outside: tuple[tuple[slice, slice], ...]


@dataclass(frozen=True)
class Windows:
    """Where windows lie on an image: all pairs are (height, width).

    Attributes:
        kernel: Size of a window.
        stride: Pixels from one window to the next.
        padding: Pixels added on each side.
        dilation: Pixels from one tap of a window to the next.
    """

    kernel: Two
    stride: Two
    padding: Two = (0, 0)
    dilation: Two = (1, 1)

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def count(self, image: Two) -> Two:
        """Returns how many windows lie on an image: ⌊(size + 2·padding - dilation·(kernel - 1) - 1)/stride⌋ + 1 an axis.

        Raises:
            ValueError: The padded image is smaller than a window.
        """
        reach = self.reach
        padded = (image[0] + 2 * self.padding[0], image[1] + 2 * self.padding[1])
        if padded[0] < reach[0] or padded[1] < reach[1]:
            raise ValueError(
                f"a window of {reach[0]}x{reach[1]} pixels does not fit an image of {image[0]}x{image[1]}, "
                f"{padded[0]}x{padded[1]} with its padding; make the kernel smaller or the padding larger"
            )
        return (padded[0] - reach[0]) // self.stride[0] + 1, (padded[1] - reach[1]) // self.stride[1] + 1

    @property
    def reach(self) -> Two:
        """Pixels from a window's first to its last, both counted."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def over(self, image: Two, rows: slice | None = None) -> tuple[Tap, ...]:
        """Returns the taps over an image, row by row of the kernel.

        Args:
            image: Its size.
            rows: Which rows of windows; all by default.
        """
        return _taps(
            self, image, 0 if rows is None else rows.start, self.count(image)[0] if rows is None else rows.stop
        )


@lru_cache(maxsize=1024)
def _taps(windows: Windows, image: Two, first: int, stop: int) -> tuple[Tap, ...]:
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = windows.kernel, windows.stride, windows.padding, windows.dilation
    columns = windows.count(image)[1]
    down = [_meets(i * dh - ph, sh, image[0], first, stop) for i in range(kh)]
    across = [_meets(j * dw - pw, sw, image[1], 0, columns) for j in range(kw)]
    found = []
    for number in range(kh * kw):
        (some, rows), (those, pixels) = down[number // kw], across[number % kw]
        above, below = slice(0, some.start), slice(some.stop, stop - first)
        left, right = slice(0, those.start), slice(those.stop, columns)
        around = (above, slice(None)), (below, slice(None)), (some, left), (some, right)
        outside = tuple(edge for edge in around if all(part == slice(None) or part.start < part.stop for part in edge))
        found.append(Tap(number, (some, those), (rows, pixels), outside))
    return tuple(found)


def _meets(offset: int, stride: int, size: int, first: int, stop: int) -> tuple[slice, slice]:
    """For windows first..stop of an axis: those whose pixel offset + stride·window lies in the image, and the pixels."""
    low = max(first, -(offset // stride))  # the least window w with offset + stride·w ≥ 0
    high = min(stop, (size - 1 - offset) // stride + 1)
    if high <= low:
        return slice(0, 0), slice(0, 0)
    start = offset + stride * low
    return slice(low - first, high - first), slice(start, start + stride * (high - low - 1) + 1, stride)


def pair(layer: str, what: str, value: int | Two, least: int) -> Two:
    """Returns a number for height and width as a pair.

    Raises:
        ValueError: It is not one or two whole numbers from `least`.
    """
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or any(type(number) is not int or number < least for number in both):
        raise ValueError(f"{layer}'s {what} is a whole number from {least} or a pair of them, but got {value!r}")
    return both


def require_images(layer: Layer, x: Spec) -> None:
    """Raises a clear error unless `x` holds floats of shape (batch, channels, height, width)."""
    require_float(layer, x)
    if len(x.shape) != 4:
        raise ValueError(f"{layer.kind} takes images of shape (batch, channels, height, width), but got {x}")


def shape_alone(x: Spec) -> Spec:
    """The spec of an own residual of no bytes that tells a VJP the shape of its input without keeping it: a batch of none."""
    return Spec((0, *x.shape[1:]), np.dtype(np.uint8))


def nothing_like(x: Array) -> Array:
    """Returns that residual. It lies in no memory, so nobody need count it."""
    return _NOTHING.reshape(0, *x.shape[1:])
