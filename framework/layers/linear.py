"""Linear: a matrix product and a bias over the last axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import Constant, Initializer, ParameterSpec, Uniform


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

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        product = 2 * x.rows * x.shape[-1] * self.features
        return Footprint(
            output=Spec((*x.shape[:-1], self.features), x.dtype),
            needs_input=(True,),
            forward_flops=product,
            backward_flops=2 * product,
        )
