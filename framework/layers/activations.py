"""ReLU and GELU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params, require_float
from framework.memory import Array


@dataclass(frozen=True)
class ReLU(Layer):
    """y = max(x, 0), any shape. The VJP needs the output alone: x̄ = ȳ·sign(y), which is 0 at x = 0."""

    piecewise_linear = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.maximum(x, 0)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        np.maximum(x, 0, out=y)
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        return self._scaled(y, cotangent, context.like(cotangent, "cotangents"), context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        y, _ = self.forward(params, x, context)
        return y, self._scaled(y, x_tangent, context.like(x_tangent, "activations"), context)

    def _scaled(self, y: Array, direction: Array, target: Array, context: Context) -> Array:
        """Writes sign(y) · direction into `target`, which may be the direction; y ≥ 0, so its sign is the mask."""
        outputs, directions, out = (kernels.as_view(a, (-1,)) for a in (y, direction, target))
        scratch = context.empty((kernels.block_rows(outputs.size, 1),), y.dtype, "workspace")
        for block in kernels.row_blocks(outputs.size, 1):
            sign = scratch[: block.stop - block.start]
            np.sign(outputs[block], out=sign)
            np.multiply(sign, directions[block], out=out[block])
        return target

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        workspace = kernels.block_rows(x.size, 1) * x.dtype.itemsize
        return Footprint(
            output=x,
            needs_output=True,
            backward_workspace=workspace,
            jvp_workspace=workspace,
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
        return self._scaled(x, cotangent, context.like(cotangent, "cotangents"), context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        y, _ = self.forward(params, x, context)
        return y, self._scaled(x, x_tangent, context.empty(x.shape, x.dtype, "activations"), context)

    def _scaled(self, x: Array, direction: Array, target: Array, context: Context) -> Array:
        """Writes the derivative at x · direction into `target`, which may be the direction."""
        values, directions, out = (kernels.as_view(a, (-1,)) for a in (x, direction, target))
        scratch = context.empty((3, kernels.block_rows(values.size, 1)), x.dtype, "workspace")
        for block in kernels.row_blocks(values.size, 1):
            v = values[block]
            tanh, rest, slope = scratch[:, : v.size]
            _slope(v, tanh, rest, slope)
            np.multiply(slope, directions[block], out=out[block])
        return target

    def vjp_with_tangent(
        self,
        params: Pair[Params],
        x: Pair[Any],
        cotangent: Pair[Array],
        grads: Pair[Params],
        x_cotangent: Pair[Array] | None,
        context: Context,
    ) -> None:
        """The tangent of y'·ȳ is y'·ȳ˙ + y''·ẋ·ȳ with y'' = (1 - tanh² u)·(u' + x·(u''/2 - tanh u·u'²))."""
        if x_cotangent is None:
            return
        flat = [kernels.as_view(a, (-1,)) for a in (*x, *cotangent, *x_cotangent)]
        scratch = context.empty((4, kernels.block_rows(flat[0].size, 1)), x[0].dtype, "workspace")
        for block in kernels.row_blocks(flat[0].size, 1):
            v, moved, g, g_moved, out, out_moved = (a[block] for a in flat)
            tanh, rest, slope, second = scratch[:, : v.size]
            _slope(v, tanh, rest, slope)
            np.multiply(v, v, out=second)
            second *= 3 * _A * _C
            second += _C  # u'
            tanh *= second
            tanh *= second
            tanh *= v
            second -= tanh
            np.multiply(v, v, out=tanh)
            tanh *= 3 * _A * _C
            second += tanh
            second *= rest
            second *= moved
            second *= g
            np.multiply(slope, g_moved, out=out_moved)
            out_moved += second
            np.multiply(slope, g, out=out)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        workspace = 3 * kernels.block_rows(x.size, 1) * x.dtype.itemsize
        return Footprint(
            output=x,
            needs_input=(True,),
            backward_workspace=workspace,
            jvp_workspace=workspace,
            hvp_workspace=workspace // 3 * 4,
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


def _slope(x: Array, tanh: Array, rest: Array, slope: Array) -> None:
    """Writes tanh u, 1 - tanh² u, and the derivative of GELU, (1 + tanh u + x·(1 - tanh² u)·u')/2."""
    _tanh_of_u(x, tanh)
    np.multiply(x, x, out=slope)
    slope *= 3 * _A * _C
    slope += _C
    slope *= x
    np.multiply(tanh, tanh, out=rest)
    np.subtract(1, rest, out=rest)
    slope *= rest
    slope += tanh
    slope += 1
    slope *= 0.5
