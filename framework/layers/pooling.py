"""Pooling of images: the largest or the mean of each window, or of a whole channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec
from framework.layers.windows import Two, Windows, nothing_like, pair, require_images, shape_alone
from framework.memory import Array


@dataclass(frozen=True)
class _Pooling(Layer):
    """What the pools over windows share; see them.

    Attributes:
        kernel: Size of a window, a number or (height, width), as are the next two.
        stride: Pixels from one window to the next; by default the kernel, so that windows tile the image.
        padding: Pixels added on each side, at most half a window, so that no window lies outside.
    """

    kernel: int | Two
    stride: int | Two | None = None
    padding: int | Two = 0

    piecewise_linear = True
    core_axes = 2

    def __post_init__(self) -> None:
        windows = self._windows
        if any(2 * padding > size for padding, size in zip(windows.padding, windows.kernel, strict=True)):
            raise ValueError(
                f"{self.kind}'s padding is at most half its kernel, but got {self.padding} for a kernel of {self.kernel}"
            )

    @property
    def _windows(self) -> Windows:
        kernel = pair(self.kind, "kernel", self.kernel, 1)
        stride = kernel if self.stride is None else pair(self.kind, "stride", self.stride, 1)
        return Windows(kernel, stride, pair(self.kind, "padding", self.padding, 0))

    def _pixels(self, x: Any, fill: float) -> Iterator[Any]:
        """Yields, tap by tap, what each window sees there; `fill` outside of the image. For definitions."""
        windows = self._windows
        (kh, kw), (sh, sw), (ph, pw) = windows.kernel, windows.stride, windows.padding
        down, across = windows.count(x.shape[-2:])
        around = [(0, 0)] * (x.ndim - 2)
        padded = np.pad(x, (*around, (ph, ph), (pw, pw)), constant_values=fill)
        for i in range(kh):
            for j in range(kw):
                yield padded[..., i : i + (down - 1) * sh + 1 : sh, j : j + (across - 1) * sw + 1 : sw]

    def _output(self, x: Any) -> tuple[int, ...]:
        return (*x.shape[:-2], *self._windows.count(x.shape[-2:]))


@dataclass(frozen=True)
class MaxPool2d(_Pooling):
    """y = the largest pixel of each window; pixels outside of the image are -∞.

    Shapes: x (N, C, H, W), y (N, C, oh, ow) with oh = ⌊(H + 2·padding - kernel)/stride⌋ + 1. Own residuals: which pixel of its window
    it was, one byte an output (two for kernels of more than 255 pixels), and the input's shape, which takes none. The VJP needs no
    more. Among equal pixels the first has all of the cotangent, as in PyTorch; in the derivative traced from the definition they
    share it, as they do in `np.maximum` (and the JVP is that of the first here, the mean there).
    """

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        y: Any = None
        for pixels in self._pixels(x, -np.inf):
            y = pixels if y is None else np.maximum(y, pixels)
        return y

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty(self._output(x), x.dtype, "activations")
        place = context.empty(y.shape, self._place_dtype, "residuals")
        self._largest(x, y, place, context)
        return y, (place, nothing_like(x))

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        place, shape = own
        x_cotangent = context.empty((len(place), *shape.shape[1:]), cotangent.dtype, "cotangents")
        x_cotangent.fill(0)
        with kernels.small_buffers():
            for pixels, windows, chosen in self._chosen(x_cotangent, place, cotangent, context):
                chosen *= windows
                pixels += chosen
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """The tangent of the pixel that is the largest."""
        y = context.empty(self._output(x), x.dtype, "activations")
        tangent = context.empty(y.shape, x.dtype, "activations")
        place = context.empty(y.shape, self._place_dtype, "workspace")
        self._largest(x, y, place, context)
        tangent.fill(0)
        with kernels.small_buffers():
            for pixels, windows, chosen in self._chosen(x_tangent, place, tangent, context):
                chosen *= pixels
                windows += chosen
        return y, tangent

    @property
    def _place_dtype(self) -> np.dtype[Any]:
        return np.min_scalar_type(self._windows.taps)

    # Masks are multiplied, since NumPy's `where` takes several times as long. A place is counted from the last tap, 1, to the first,
    # so that the largest place is the first of equal pixels; 0 is that of no tap, where a pixel is NaN.

    def _largest(self, x: Array, y: Array, place: Array, context: Context) -> None:
        """Writes the largest pixels and their places."""
        y.fill(-np.inf)
        place.fill(0)
        images, outputs, places = (_planes(a) for a in (x, y, place))
        taps = self._windows.over(x.shape[-2:])
        size = _block_size(outputs)
        equal = context.empty((size,), np.bool_, "workspace")
        found = context.empty((size,), place.dtype, "workspace")
        with kernels.small_buffers():
            for block in _blocks(outputs):
                for tap in taps:
                    best = outputs[block, *tap.windows]
                    np.maximum(best, images[block, *tap.pixels], out=best)
                for tap in taps:
                    best, so_far = outputs[block, *tap.windows], places[block, *tap.windows]
                    mask, numbers = kernels.front(equal, best.shape), kernels.front(found, best.shape)
                    np.equal(images[block, *tap.pixels], best, out=mask)
                    numbers[...] = mask
                    numbers *= len(taps) - tap.number
                    np.maximum(so_far, numbers, out=so_far)

    def _chosen(
        self, pixels: Array, place: Array, windows: Array, context: Context
    ) -> Iterator[tuple[Array, Array, Array]]:
        """Yields, block by block and tap by tap, pixels, their windows, and 1 where the window chose the pixel, else 0 (scratch)."""
        images, outputs, places = (_planes(a) for a in (pixels, windows, place))
        taps = self._windows.over(pixels.shape[-2:])
        size = _block_size(outputs)
        equal = context.empty((size,), np.bool_, "workspace")
        factors = context.empty((size,), windows.dtype, "workspace")
        for block in _blocks(outputs):
            for tap in taps:
                some = places[block, *tap.windows]
                mask, chosen = kernels.front(equal, some.shape), kernels.front(factors, some.shape)
                np.equal(some, len(taps) - tap.number, out=mask)
                chosen[...] = mask
                yield images[block, *tap.pixels], outputs[block, *tap.windows], chosen

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_images(self, x)
        output = Spec(self._output(x), x.dtype)
        place = Spec(output.shape, self._place_dtype)
        block = _block_size(output)
        forward = block * (1 + place.dtype.itemsize)
        backward = block * (1 + x.dtype.itemsize)
        work = output.size * self._windows.taps
        return Footprint(
            output=output,
            own=(place, shape_alone(x)),
            forward_workspace=forward,
            backward_workspace=backward,
            jvp_workspace=place.nbytes + max(forward, backward),
            forward_flops=4 * work,
            backward_flops=4 * work,
        )


@dataclass(frozen=True)
class AveragePool2d(_Pooling):
    """y = the mean of each window; pixels outside of the image are zeros and count, as in PyTorch's default.

    Shapes: x (N, C, H, W), y (N, C, oh, ow) with oh = ⌊(H + 2·padding - kernel)/stride⌋ + 1. Own residual: the input's shape, which
    takes no bytes. The VJP needs no more: x̄ is the sum of ȳ/(kh·kw) over the windows of a pixel.
    """

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        total: Any = 0
        for pixels in self._pixels(x, 0):
            total = total + pixels
        return total / self._windows.taps

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty(self._output(x), x.dtype, "activations")
        y.fill(0)
        images, outputs = _planes(x), _planes(y)
        with kernels.small_buffers():
            for block in _blocks(outputs):
                for tap in self._windows.over(x.shape[-2:]):
                    outputs[block, *tap.windows] += images[block, *tap.pixels]
                outputs[block] /= self._windows.taps
        return y, (nothing_like(x),)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        x_cotangent = context.empty((len(cotangent), *own[0].shape[1:]), cotangent.dtype, "cotangents")
        x_cotangent.fill(0)
        images, outputs = _planes(x_cotangent), _planes(cotangent)
        scratch = context.empty((_block_size(outputs),), cotangent.dtype, "workspace")
        with kernels.small_buffers():
            for block in _blocks(outputs):
                some = outputs[block]
                parts = kernels.front(scratch, some.shape)
                np.divide(some, self._windows.taps, out=parts)
                for tap in self._windows.over(x_cotangent.shape[-2:]):
                    images[block, *tap.pixels] += parts[:, *tap.windows]
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params, x_tangent, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_images(self, x)
        output = Spec(self._output(x), x.dtype)
        work = output.size * (self._windows.taps + 1)
        return Footprint(
            output=output,
            own=(shape_alone(x),),
            backward_workspace=_block_size(output) * x.dtype.itemsize,
            forward_flops=work,
            backward_flops=work,
        )


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    """y = the mean of each channel.

    Shapes: x (N, C, H, W), y (N, C). Own residual: the input's shape, which takes no bytes; x̄ = ȳ/(H·W) at every pixel.
    """

    piecewise_linear = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.mean(x, axis=(-2, -1))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty(x.shape[:2], x.dtype, "activations")
        np.add.reduce(kernels.as_view(x, (*x.shape[:2], x.shape[2] * x.shape[3])), axis=-1, out=y)
        y /= x.shape[2] * x.shape[3]
        return y, (nothing_like(x),)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        x_cotangent = context.empty((len(cotangent), *own[0].shape[1:]), cotangent.dtype, "cotangents")
        x_cotangent[...] = cotangent[..., None, None]
        x_cotangent /= x_cotangent.shape[2] * x_cotangent.shape[3]
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params, x_tangent, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_images(self, x)
        if not x.shape[2] * x.shape[3]:
            raise ValueError(f"GlobalAveragePool takes images of at least one pixel, but got {x}")
        return Footprint(
            output=Spec(x.shape[:2], x.dtype), own=(shape_alone(x),), forward_flops=x.size, backward_flops=x.size
        )


def _planes(a: Array) -> Array:
    """Views (N, C, H, W) as (N·C, H, W)."""
    return kernels.as_view(a, (a.shape[0] * a.shape[1], *a.shape[2:]))


def _blocks(outputs: Array) -> Iterator[slice]:
    """Cuts planes into blocks by the size of the output's."""
    return kernels.row_blocks(outputs.shape[0], outputs.shape[1] * outputs.shape[2])


def _block_size(output: Any) -> int:
    """Elements of the largest block of outputs, given them, their planes or their spec."""
    plane: int = output.shape[-2] * output.shape[-1]
    return kernels.block_rows(math.prod(output.shape[:-2]), plane) * plane
