"""Linear: a matrix product and a bias over the last axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import Constant, Initializer, ParameterSpec, Uniform

#: Elements of a product that is added.
_PRODUCT = kernels.BLOCK // 2


@dataclass(frozen=True)
class Linear(Layer):
    """y = x Wᵀ + b.

    Shapes: x (..., in), weight (features, in), bias (features,), y (..., features).
    The VJP needs x: x̄ = ȳ W, W̄ = ȳᵀ x, b̄ = Σ ȳ over rows.

    Attributes:
        features: Size of the output's last axis.
        bias: Whether a bias is added.
        initializer: Of the weight; the bias then starts at zero. By default both are uniform in ±1/√in.
    """

    features: int
    bias: bool = True
    initializer: Initializer | None = None

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        uniform = Uniform(1 / math.sqrt(max(1, x.shape[-1])))
        found = {"weight": ParameterSpec((self.features, x.shape[-1]), x.dtype, self.initializer or uniform)}
        if self.bias:
            start = Constant(0.0) if self.initializer else uniform
            found["bias"] = ParameterSpec((self.features,), x.dtype, start)
        return found

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        y = np.matmul(x, params["weight"].T)
        return y + params["bias"] if self.bias else y

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.empty((*x.shape[:-1], self.features), x.dtype, "activations")
        kernels.matmul(kernels.as_rows(x), params["weight"].T, out=kernels.as_rows(y))
        if self.bias:
            y += params["bias"]
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        rows = kernels.as_rows(cotangent)
        kernels.matmul(rows.T, kernels.as_rows(x), out=grads["weight"])
        if self.bias:
            np.add.reduce(rows, axis=0, out=grads["bias"])
        if not context.wanted[0]:
            return None
        x_cotangent = context.empty(x.shape, x.dtype, "cotangents")
        kernels.matmul(rows, params["weight"], out=kernels.as_rows(x_cotangent))
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = x Ẇᵀ + ẋ Wᵀ + ḃ."""
        y, _ = self.forward(params, x, context)
        tangent, _ = self.forward(params_tangent, x, context)
        out = kernels.as_rows(tangent)
        scratch = context.empty((_block_size(*out.shape),), x.dtype, "workspace")
        _add_product(kernels.as_rows(x_tangent), params["weight"].T, out, scratch)
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
        """With (ẏ, x̄, …) for tangents and cotangents: the tangent of ȳᵀ x is ȳ˙ᵀ x + ȳᵀ ẋ, that of ȳ W is ȳ˙ W + ȳ Ẇ."""
        rows, moved = (kernels.as_rows(a) for a in cotangent)
        values, tangents = (kernels.as_rows(a) for a in x)
        for some, target in zip((rows, moved), grads, strict=True):
            kernels.matmul(some.T, values, out=target["weight"])
            if self.bias:
                np.add.reduce(some, axis=0, out=target["bias"])
        shapes = (params[0]["weight"].shape, values.shape)
        scratch = context.empty((max(_block_size(*shape) for shape in shapes),), rows.dtype, "workspace")
        _add_product(rows.T, tangents, grads[1]["weight"], scratch)
        if x_cotangent is not None:
            for some, out in zip((rows, moved), x_cotangent, strict=True):
                kernels.matmul(some, params[0]["weight"], out=kernels.as_rows(out))
            _add_product(rows, params[1]["weight"], kernels.as_rows(x_cotangent[1]), scratch)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        product = 2 * x.rows * x.shape[-1] * self.features
        return Footprint(
            output=Spec((*x.shape[:-1], self.features), x.dtype),
            needs_input=(True,),
            jvp_workspace=_block_size(x.rows, self.features) * x.dtype.itemsize,
            hvp_workspace=max(_block_size(self.features, x.shape[-1]), _block_size(x.rows, x.shape[-1]))
            * x.dtype.itemsize,
            forward_flops=product,
            backward_flops=2 * product,
        )


def _block_size(rows: int, width: int) -> int:
    """Elements of the scratch of `_add_product` for an `out` of such a shape."""
    return kernels.block_rows(rows, width, _PRODUCT) * width


def _add_product(a: Array, b: Array, out: Array, scratch: Array) -> None:
    """Adds a @ b to `out`, a block of rows at a time."""
    width = out.shape[1]
    for block in kernels.row_blocks(len(out), width, _PRODUCT):
        rows = block.stop - block.start
        out[block] += kernels.matmul(a[block], b, out=scratch[: rows * width].reshape(rows, width))
