"""LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import Constant, ParameterSpec


class _RowNorm(Layer):
    """Rows divided by their size: what LayerNorm, which takes the mean away first, and RMSNorm have in common."""

    epsilon: float

    core_axes = 1
    #: Whether the mean is taken away, and a bias added.
    centered: ClassVar[bool]

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        shape = (x.shape[-1],)
        specs = {"weight": ParameterSpec(shape, x.dtype, Constant(1.0))}
        if self.centered:
            specs["bias"] = ParameterSpec(shape, x.dtype, Constant(0.0))
        return specs

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        own = tuple(context.empty(x.shape[:-1], x.dtype, "residuals") for _ in range(1 + self.centered))
        rows, out, scales = kernels.as_rows(x), kernels.as_rows(y), own[-1].reshape(-1)
        width = rows.shape[1]
        ones = context.empty((width,), x.dtype, "workspace")
        ones.fill(1)
        for block in kernels.row_blocks(len(rows), width, kernels.LARGE_BLOCK):
            some, r = out[block], scales[block]
            if self.centered:
                m = own[0].reshape(-1)[block]
                kernels.matmul(rows[block], ones, out=m)
                m /= width
                np.subtract(rows[block], m[:, None], out=some)
                np.vecdot(some, some, out=r)
            else:
                np.vecdot(rows[block], rows[block], out=r)
            r /= width
            r += self.epsilon
            np.sqrt(r, out=r)
            np.divide(1, r, out=r)
            np.multiply(some if self.centered else rows[block], r[:, None], out=some)
            some *= params["weight"]
            if self.centered:
                some += params["bias"]
        return y, own

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        """With c = ȳ·r row by row, sums are matrix products: the weight's cotangent is Σ c·(x - mean) over rows, and
        x̄ = c·weight - a·(x - mean) - Σ c·weight / features, where a = r²·Σ c·weight·(x - mean) / features, both sums over a row.
        """
        rows, cotangents = kernels.as_rows(x), kernels.as_rows(cotangent)
        width, weight = rows.shape[1], params["weight"]
        height = kernels.block_rows(len(rows), width, kernels.LARGE_BLOCK)
        scratch = context.empty((1 + self.centered, height, width), x.dtype, "workspace")
        columns = context.empty((3, height), x.dtype, "workspace")
        part = context.empty((width,), x.dtype, "workspace")
        x_cotangent = context.like(cotangent, "cotangents") if context.wanted[0] else None
        columns[0] = 1
        for grad in grads.values():
            grad.fill(0)
        for block in kernels.row_blocks(len(rows), width, kernels.LARGE_BLOCK):
            some, c, product = rows[block], cotangents[block], scratch[0, : block.stop - block.start]
            ones, slope, total = columns[:, : len(some)]
            r = own[-1].reshape(-1)[block]
            if self.centered:
                grads["bias"] += kernels.matmul(ones, c, out=part)
                some = np.subtract(some, own[0].reshape(-1)[block][:, None], out=scratch[1, : len(some)])
            # From here on the cotangent may be overwritten.
            out = product if x_cotangent is None else kernels.as_rows(x_cotangent)[block]
            np.multiply(c, r[:, None], out=out)
            np.multiply(out, some, out=product)
            grads["weight"] += kernels.matmul(ones, product, out=part)
            if x_cotangent is None:
                continue
            kernels.matmul(product, weight, out=slope)
            for factor in (r, r, 1 / width):
                slope *= factor
            if self.centered:
                kernels.matmul(out, weight, out=total)
                total *= 1 / width
            out *= weight
            out -= np.multiply(some, slope[:, None], out=product)
            if self.centered:
                out -= total[:, None]
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = r·(ẋ - mean(ẋ) - x̂·mean(ẋ·x̂))·weight + x̂·ẇ + ḃ with ẇ and ḃ the tangents of weight and bias."""
        y, own = self.forward(params, x, context)
        tangent = context.empty(x.shape, x.dtype, "activations")
        rows, moved, out_rows = (kernels.as_rows(a) for a in (x, x_tangent, tangent))
        height, width = kernels.block_rows(*rows.shape), rows.shape[1]
        normalized = context.empty((height, width), x.dtype, "workspace")
        product = context.empty((height, width), x.dtype, "workspace")
        row_sum = context.empty((height,), x.dtype, "workspace")
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            hat, out = normalized[:count], out_rows[block]
            r = self._normalize(rows, own, block, hat)
            out[...] = moved[block]
            project(out, hat, r, product[:count], row_sum[:count], self.centered)
            out *= params["weight"]
            hat *= params_tangent["weight"]
            out += hat
            if self.centered:
                out += params_tangent["bias"]
        return y, tangent

    def _normalize(self, rows: Array, own: Own, block: slice, out: Array) -> Array:
        """Writes x̂ of a block of rows into `out`, and returns what it was scaled by, a column."""
        scale = own[-1].reshape(-1)[block][:, None]
        if self.centered:
            np.subtract(rows[block], own[0].reshape(-1)[block][:, None], out=out)
            out *= scale
        else:
            np.multiply(rows[block], scale, out=out)
        return scale

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        rows, width = x.rows, x.shape[-1]
        height, large = kernels.block_rows(rows, width), kernels.block_rows(rows, width, kernels.LARGE_BLOCK)
        own = (Spec(x.shape[:-1], x.dtype),) * (1 + self.centered)
        return Footprint(
            output=x,
            own=own,
            needs_input=(True,),
            forward_workspace=width * x.dtype.itemsize,
            backward_workspace=((1 + self.centered) * large * width + 3 * large + width) * x.dtype.itemsize,
            jvp_workspace=sum(spec.nbytes for spec in own) + (2 * height * width + height) * x.dtype.itemsize,
            forward_flops=(7 if self.centered else 5) * x.size,
            backward_flops=(12 if self.centered else 9) * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


@dataclass(frozen=True)
class LayerNorm(_RowNorm):
    """y = (x - mean) / √(variance + epsilon) · weight + bias over the last axis (Ba et al. 2016, arXiv 1607.06450).

    Shapes: x and y (..., features), weight and bias (features,). Own residuals: mean and 1/√(variance + epsilon), two
    numbers a row. The VJP needs x. With x̂ = (x - mean)·r and ŷ = ȳ·weight:
    x̄ = r·(ŷ - mean(ŷ) - x̂·mean(ŷ·x̂)).

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float = 1e-5

    centered = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        centered = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centered * centered, axis=-1, keepdims=True)
        return centered / np.sqrt(variance + self.epsilon) * params["weight"] + params["bias"]


@dataclass(frozen=True)
class RMSNorm(_RowNorm):
    """y = x / √(mean(x²) + epsilon) · weight over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467).

    Shapes: x and y (..., features), weight (features,). Own residual: r = 1/√(mean(x²) + epsilon), a number a row. The VJP needs x.
    With x̂ = x·r and ŷ = ȳ·weight: x̄ = r·(ŷ - x̂·mean(ŷ·x̂)).

    Attributes:
        epsilon: Added to the mean square.
    """

    epsilon: float = 1e-5

    centered = False

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * params["weight"]


def project(a: Array, hat: Array, scale: Array, scratch: Array, row_sum: Array, centered: bool) -> None:
    """Replaces rows by scale·(a - mean(a) - x̂·mean(a·x̂)), the derivative of the normalized rows, which is symmetric.

    Without mean(a) if the rows are not centered.
    """
    width = a.shape[1]
    np.einsum("ij,ij->i", a, hat, out=row_sum)
    row_sum /= width
    np.multiply(hat, row_sum[:, None], out=scratch)
    if centered:
        np.add.reduce(a, axis=1, out=row_sum)
        row_sum /= width
        a -= row_sum[:, None]
    a -= scratch
    a *= scale
