"""LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import Constant, ParameterSpec


@dataclass(frozen=True)
class LayerNorm(Layer):
    """y = (x - mean) / √(variance + epsilon) · weight + bias over the last axis (Ba et al. 2016, arXiv 1607.06450).

    Shapes: x and y (..., features), weight and bias (features,). Own residuals: mean and 1/√(variance + epsilon), two
    numbers a row. The VJP needs x. With x̂ = (x - mean)·r and ŷ = ȳ·weight:
    x̄ = r·(ŷ - mean(ŷ) - x̂·mean(ŷ·x̂)).

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float = 1e-5

    core_axes = 1

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        shape = (x.shape[-1],)
        return {
            "weight": ParameterSpec(shape, x.dtype, Constant(1.0)),
            "bias": ParameterSpec(shape, x.dtype, Constant(0.0)),
        }

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        centered = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centered * centered, axis=-1, keepdims=True)
        return centered / np.sqrt(variance + self.epsilon) * params["weight"] + params["bias"]

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        mean = context.empty(x.shape[:-1], x.dtype, "residuals")
        scale = context.empty(x.shape[:-1], x.dtype, "residuals")
        rows, out, means, scales = kernels.as_rows(x), kernels.as_rows(y), mean.reshape(-1), scale.reshape(-1)
        width = rows.shape[1]
        for block in kernels.row_blocks(*rows.shape):
            some, m, r = out[block], means[block], scales[block]
            np.add.reduce(rows[block], axis=1, out=m)
            m /= width
            np.subtract(rows[block], m[:, None], out=some)
            np.einsum("ij,ij->i", some, some, out=r)
            r /= width
            r += self.epsilon
            np.sqrt(r, out=r)
            np.divide(1, r, out=r)
            some *= r[:, None]
            some *= params["weight"]
            some += params["bias"]
        return y, (mean, scale)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        rows, cotangents = kernels.as_rows(x), kernels.as_rows(cotangent)
        means, scales = own[0].reshape(-1), own[1].reshape(-1)
        width = rows.shape[1]
        height = kernels.block_rows(*rows.shape)
        normalized = context.empty((height, width), x.dtype, "workspace")
        product = context.empty((height, width), x.dtype, "workspace")
        row_sum = context.empty((height,), x.dtype, "workspace")
        part = context.empty((width,), x.dtype, "workspace")
        x_cotangent = context.like(cotangent, "cotangents") if context.wanted[0] else None
        grads["weight"].fill(0)
        grads["bias"].fill(0)
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            hat, prod, total, c = normalized[:count], product[:count], row_sum[:count], cotangents[block]
            r = scales[block][:, None]
            np.subtract(rows[block], means[block][:, None], out=hat)
            hat *= r
            np.multiply(c, hat, out=prod)
            np.add.reduce(prod, axis=0, out=part)
            grads["weight"] += part
            np.add.reduce(c, axis=0, out=part)
            grads["bias"] += part
            if x_cotangent is None:
                continue
            out = kernels.as_rows(x_cotangent)[block]
            np.multiply(c, params["weight"], out=out)
            _project(out, hat, r, prod, total)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = r·(ẋ - mean(ẋ) - x̂·mean(ẋ·x̂))·weight + x̂·ẇ + ḃ with ẇ and ḃ the tangents of weight and bias."""
        y, own = self.forward(params, x, context)
        tangent = context.empty(x.shape, x.dtype, "activations")
        rows, moved, out_rows = (kernels.as_rows(a) for a in (x, x_tangent, tangent))
        means, scales = own[0].reshape(-1), own[1].reshape(-1)
        height, width = kernels.block_rows(*rows.shape), rows.shape[1]
        normalized = context.empty((height, width), x.dtype, "workspace")
        product = context.empty((height, width), x.dtype, "workspace")
        row_sum = context.empty((height,), x.dtype, "workspace")
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            hat, r, out = normalized[:count], scales[block][:, None], out_rows[block]
            np.subtract(rows[block], means[block][:, None], out=hat)
            hat *= r
            out[...] = moved[block]
            _project(out, hat, r, product[:count], row_sum[:count])
            out *= params["weight"]
            hat *= params_tangent["weight"]
            out += hat
            out += params_tangent["bias"]
        return y, tangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        rows, width = x.rows, x.shape[-1]
        height = kernels.block_rows(rows, width)
        statistic = Spec(x.shape[:-1], x.dtype)
        return Footprint(
            output=x,
            own=(statistic, statistic),
            needs_input=(True,),
            backward_workspace=(2 * height * width + height + width) * x.dtype.itemsize,
            jvp_workspace=2 * statistic.nbytes + (2 * height * width + height) * x.dtype.itemsize,
            forward_flops=7 * x.size,
            backward_flops=12 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


def _project(a: Array, hat: Array, scale: Array, scratch: Array, row_sum: Array) -> None:
    """Replaces rows by scale·(a - mean(a) - x̂·mean(a·x̂)), the derivative of the normalized rows, which is symmetric."""
    width = a.shape[1]
    np.einsum("ij,ij->i", a, hat, out=row_sum)
    row_sum /= width
    np.multiply(hat, row_sum[:, None], out=scratch)
    np.add.reduce(a, axis=1, out=row_sum)
    row_sum /= width
    a -= row_sum[:, None]
    a -= scratch
    a *= scale
