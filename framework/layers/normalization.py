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
            np.einsum("ij,ij->i", out, hat, out=total)
            total /= width
            hat *= total[:, None]
            np.add.reduce(out, axis=1, out=total)
            total /= width
            out -= total[:, None]
            out -= hat
            out *= r
        return x_cotangent

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
            forward_flops=7 * x.size,
            backward_flops=12 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )
