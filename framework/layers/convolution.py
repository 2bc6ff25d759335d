"""Convolution of images, and the upsampling that goes with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.correlations import ByColumns, Correlation, Joint, Pointwise, Shapes
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params, Spec
from framework.layers.shifts import ByShifts
from framework.layers.windows import Two, Windows, pair, require_images
from framework.layers.winograd import Winograd
from framework.memory import Array
from framework.parameters import Constant, Initializer, ParameterSpec, Uniform


@dataclass(frozen=True)
class Conv2d(Layer):
    """y[n, f, u, v] = b[f] + Σ w[f, c, i, j] · x[n, c, u·stride + i·dilation - padding, v·stride + j·dilation - padding].

    Shapes: x (N, C, H, W), weight (features, C/groups, kh, kw), bias (features,), y (N, features, oh, ow) with
    oh = ⌊(H + 2·padding - dilation·(kh - 1) - 1)/stride⌋ + 1. Pixels outside of the image are zero. With groups, the f-th part of
    the features sees the f-th part of the channels alone. The VJP needs x.

    All three maps are matrix products. In general the pixels under each window become a column: y = w · columns, w̄ = ȳ · columnsᵀ,
    and columns' cotangents wᵀ · ȳ are added where the pixels came from (Chellapilla et al. 2006, "High performance convolutional
    neural networks for document processing"). With stride 1 a tap of the kernel is a shift of whole images, which takes a third of the
    copying, and x̄ is a convolution, too; three rows of taps take two thirds of the multiplications (Winograd 1980). Kernels of one pixel
    need none of it. A block is made at a time.

    Attributes:
        features: Channels of the output; divisible by `groups`.
        kernel: Size of the kernel, a number or (height, width), as are the next three.
        stride: Pixels from one window to the next.
        padding: Pixels of zeros on each side.
        dilation: Pixels from one tap of the kernel to the next.
        groups: Parts into which channels and features are cut; divides the input's channels.
        bias: Whether a bias is added.
        initializer: Of the weight; the bias then starts at zero. By default both are uniform in ±1/√(C/groups·kh·kw).
    """

    features: int
    kernel: int | Two
    stride: int | Two = 1
    padding: int | Two = 0
    dilation: int | Two = 1
    groups: int = 1
    bias: bool = True
    initializer: Initializer | None = None

    core_axes = 3

    def __post_init__(self) -> None:
        self._windows  # noqa: B018  (refuses sizes that make no sense)
        if self.groups < 1 or self.features < 1 or self.features % self.groups:
            raise ValueError(
                f"Conv2d's features and groups are whole numbers from 1, and groups divide features, but got {self.features} "
                f"features and {self.groups} groups"
            )

    @property
    def _windows(self) -> Windows:
        return Windows(
            pair("Conv2d", "kernel", self.kernel, 1),
            pair("Conv2d", "stride", self.stride, 1),
            pair("Conv2d", "padding", self.padding, 0),
            pair("Conv2d", "dilation", self.dilation, 1),
        )

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        self._require(x)
        shape = (self.features, x.shape[1] // self.groups, *self._windows.kernel)
        uniform = Uniform(1 / math.sqrt(max(1, math.prod(shape[1:]))))
        found = {"weight": ParameterSpec(shape, x.dtype, self.initializer or uniform)}
        if self.bias:
            start = Constant(0.0) if self.initializer else uniform
            found["bias"] = ParameterSpec((self.features,), x.dtype, start)
        return found

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        batch, channels, *image = x.shape
        windows = self._windows
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = windows.kernel, windows.stride, windows.padding, windows.dilation
        down, across = windows.count((image[0], image[1]))
        groups, width = self.groups, channels // self.groups
        padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        weight = np.reshape(params["weight"], (groups, self.features // groups, width, kh, kw))
        y: Any = 0
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (down - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (across - 1) * sw + 1, sw)
                pixels = np.reshape(padded[:, :, rows, columns], (batch, groups, width, down * across))
                y = y + np.matmul(weight[..., i, j], pixels)
        y = np.reshape(y, (batch, self.features, down, across))
        return y + np.reshape(params["bias"], (-1, 1, 1)) if self.bias else y

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        shapes = self._shapes(x)
        way = correlation(shapes)
        y = context.empty((shapes.batch, self.features, *shapes.count), x.dtype, "activations")
        scratch = context.empty((way.sizes(add=False)[0],), x.dtype, "workspace")
        with kernels.small_buffers():
            way.correlate(params["weight"], x, y, scratch)
            if self.bias:
                y += params["bias"][:, None, None]
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        way = correlation(self._shapes(x))
        x_cotangent = context.empty(x.shape, x.dtype, "cotangents") if context.wanted[0] else None
        scratch = context.empty((_backward_size(way),), x.dtype, "workspace")
        with kernels.small_buffers():
            if x_cotangent is None or not isinstance(way, Joint):
                self._parameter_cotangents(way, x, cotangent, grads, scratch)
                if x_cotangent is not None:
                    way.input_cotangent(params["weight"], cotangent, x_cotangent, scratch)
            else:
                way.cotangents(params["weight"], x, cotangent, grads["weight"], x_cotangent, scratch)
                self._bias_cotangent(cotangent, grads)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = ẇ ⋆ x + w ⋆ ẋ + ḃ."""
        y, _ = self.forward(params, x, context)
        tangent, _ = self.forward(params_tangent, x, context)
        way = correlation(self._shapes(x))
        scratch = context.empty((way.sizes(add=True)[0],), x.dtype, "workspace")
        with kernels.small_buffers():
            way.correlate(params["weight"], x_tangent, tangent, scratch, add=True)
        return y, tangent

    def vjp_with_tangent(
        self,
        params: Pair[Params],
        x: Pair[Any],
        cotangent: Pair[Array],
        grads: Pair[Params],
        x_cotangent: Pair[Array] | None,
        context: Context,
    ) -> None:
        """Both cotangents are bilinear, so their tangents are two products each."""
        way = correlation(self._shapes(x[0]))
        scratch = context.empty((max(way.sizes(add=True)[1:]),), x[0].dtype, "workspace")
        with kernels.small_buffers():
            for some, target in zip(cotangent, grads, strict=True):
                self._parameter_cotangents(way, x[0], some, target, scratch)
            way.weight_cotangent(x[1], cotangent[0], grads[1]["weight"], scratch, add=True)
            if x_cotangent is not None:
                for some, into in zip(cotangent, x_cotangent, strict=True):
                    way.input_cotangent(params[0]["weight"], some, into, scratch)
                way.input_cotangent(params[1]["weight"], cotangent[0], x_cotangent[1], scratch, add=True)

    def _parameter_cotangents(self, way: Correlation, x: Array, g: Array, grads: Params, scratch: Array) -> None:
        way.weight_cotangent(x, g, grads["weight"], scratch)
        self._bias_cotangent(g, grads)

    def _bias_cotangent(self, g: Array, grads: Params) -> None:
        if self.bias:
            np.add.reduce(g, axis=(0, 2, 3), out=grads["bias"])

    def _require(self, x: Spec) -> None:
        require_images(self, x)
        if not x.shape[1] or x.shape[1] % self.groups:
            raise ValueError(f"Conv2d with {self.groups} groups takes channels divisible by them, but got {x}")

    def _shapes(self, x: Any) -> Shapes:
        """The sizes for an input, given it or its spec."""
        batch, channels, height, width = x.shape
        windows, image = self._windows, (height, width)
        return Shapes(windows, batch, channels, self.features, self.groups, image, windows.count(image))

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        self._require(x)
        shapes = self._shapes(x)
        output = Spec((shapes.batch, self.features, *shapes.count), x.dtype)
        way, item = correlation(shapes), x.dtype.itemsize
        forward = way.sizes(add=False)[0]
        forward_too, *backward_too = way.sizes(add=True)
        product = 2 * output.size * (shapes.channels // self.groups) * shapes.windows.taps
        return Footprint(
            output=output,
            needs_input=(True,),
            forward_workspace=forward * item,
            backward_workspace=_backward_size(way) * item,
            jvp_workspace=max(forward, forward_too) * item,
            hvp_workspace=max(backward_too) * item,
            forward_flops=product + (output.size if self.bias else 0),
            backward_flops=2 * product + (output.size if self.bias else 0),
        )


def correlation(shapes: Shapes) -> Correlation:
    """Returns the way that suits the sizes."""
    windows = shapes.windows
    if (windows.kernel, windows.stride, windows.padding) == ((1, 1), (1, 1), (0, 0)):
        return Pointwise(shapes)
    if Winograd.suits(shapes):
        return Winograd(shapes)
    return ByShifts(shapes) if ByShifts.suits(shapes) else ByColumns(shapes)


def _backward_size(way: Correlation) -> int:
    """Elements of scratch of a VJP."""
    return max(*way.sizes(add=False)[1:], way.size_of_both() if isinstance(way, Joint) else 0)


@dataclass(frozen=True)
class Upsample2d(Layer):
    """y[n, c, u, v] = x[n, c, u // scale, v // scale]: each pixel is repeated (nearest neighbour).

    Shapes: x (N, C, H, W), y (N, C, scale·H, scale·W). The VJP needs nothing: x̄ is the sum of ȳ over each pixel's copies.

    Attributes:
        scale: Copies a pixel, a number or (height, width).
    """

    scale: int | Two

    piecewise_linear = True
    core_axes = 2

    def __post_init__(self) -> None:
        self._scales  # noqa: B018  (refuses what is no scale)

    @property
    def _scales(self) -> Two:
        return pair("Upsample2d", "scale", self.scale, 1)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        down, across = self._scales
        return np.repeat(np.repeat(x, down, axis=-2), across, axis=-1)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty(self._output(x.shape), x.dtype, "activations")
        for copies in self._copies(y):
            copies[...] = x
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        down, across = self._scales
        *outer, height, width = cotangent.shape
        x_cotangent = context.empty((*outer, height // down, width // across), cotangent.dtype, "cotangents")
        first, *others = self._copies(cotangent)
        x_cotangent[...] = first
        with kernels.small_buffers():
            for copies in others:
                x_cotangent += copies
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params, x_tangent, context)[0]

    def _output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        down, across = self._scales
        return (*shape[:-2], shape[-2] * down, shape[-1] * across)

    def _copies(self, y: Array) -> list[Array]:
        """The images that are equal to the input, as views of the output."""
        down, across = self._scales
        split = kernels.as_view(y, (*y.shape[:2], y.shape[2] // down, down, y.shape[3] // across, across))
        return [split[:, :, :, i, :, j] for i in range(down) for j in range(across)]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_images(self, x)
        output = Spec(self._output(x.shape), x.dtype)
        return Footprint(output=output, backward_flops=output.size)
