"""ReLU and GELU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, require_float
from framework.memory import Array


@dataclass(frozen=True)
class ReLU(Layer):
    """y = max(x, 0), any shape. The VJP needs the output alone: x̄ = ȳ·sign(y), which is 0 at x = 0."""

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.maximum(x, 0)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        np.maximum(x, 0, out=y)
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        x_cotangent = context.like(cotangent, "cotangents")
        outputs, cotangents, out = (kernels.as_view(a, (-1,)) for a in (y, cotangent, x_cotangent))
        scratch = context.empty((kernels.block_rows(outputs.size, 1),), y.dtype, "workspace")
        for block in kernels.row_blocks(outputs.size, 1):
            sign = scratch[: block.stop - block.start]
            np.sign(outputs[block], out=sign)  # y ≥ 0, so its sign is the mask
            np.multiply(sign, cotangents[block], out=out[block])
        return x_cotangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        return Footprint(
            output=x,
            needs_output=True,
            backward_workspace=kernels.block_rows(x.size, 1) * x.dtype.itemsize,
            forward_flops=x.size,
            backward_flops=2 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


_C = math.sqrt(2 / math.pi)
_A = 0.044715


@dataclass(frozen=True)
class GELU(Layer):
    """y = x/2 · (1 + tanh u) with u = √(2/π)·(x + 0.044715 x³), any shape (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    The VJP needs x and computes the tanh again: x̄ = ȳ/2 · (1 + tanh u + x·(1 - tanh² u)·u').
    """

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return 0.5 * x * (1 + np.tanh(_C * (x + _A * x * x * x)))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty(x.shape, x.dtype, "activations")
        values, out = kernels.as_view(x, (-1,)), y.reshape(-1)
        for block in kernels.row_blocks(values.size, 1):
            v, u = values[block], out[block]
            _tanh_of_u(v, u)
            u += 1
            u *= v
            u *= 0.5
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        x_cotangent = context.like(cotangent, "cotangents")
        values, cotangents, out = (kernels.as_view(a, (-1,)) for a in (x, cotangent, x_cotangent))
        scratch = context.empty((3, kernels.block_rows(values.size, 1)), x.dtype, "workspace")
        for block in kernels.row_blocks(values.size, 1):
            v = values[block]
            tanh, rest, d = scratch[:, : v.size]
            _tanh_of_u(v, tanh)
            np.multiply(v, v, out=d)
            d *= 3 * _A * _C
            d += _C
            d *= v
            np.multiply(tanh, tanh, out=rest)
            np.subtract(1, rest, out=rest)
            d *= rest
            d += tanh
            d += 1
            d *= 0.5
            np.multiply(d, cotangents[block], out=out[block])
        return x_cotangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        return Footprint(
            output=x,
            needs_input=(True,),
            backward_workspace=3 * kernels.block_rows(x.size, 1) * x.dtype.itemsize,
            forward_flops=20 * x.size,
            backward_flops=30 * x.size,
            backward_in_place=True,
        )


def _tanh_of_u(x: Array, out: Array) -> None:
    """Writes tanh(√(2/π)·(x + 0.044715 x³)) into `out`."""
    np.multiply(x, x, out=out)
    out *= _A
    out += 1
    out *= x
    out *= _C
    np.tanh(out, out=out)
