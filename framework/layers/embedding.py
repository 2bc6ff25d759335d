"""Embedding of tokens, with learned positions or without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec
from framework.memory import Array
from framework.parameters import Initializer, Normal, ParameterSpec


@dataclass(frozen=True)
class Embedding(Layer):
    """y[..., t, :] = token[x[..., t]] + position[t]; without positions the token's row alone, for any length.

    Shapes: x (..., T) integers in [0, vocabulary), T ≤ positions; token (vocabulary, features), position
    (positions, features), y (..., T, features). The VJP needs x and adds rows in the order of the tokens, so equal
    inputs give equal bits; x itself has no cotangent.

    Attributes:
        vocabulary: Number of tokens.
        positions: Greatest length T; None for no positions.
        features: Size of the output's last axis.
        dtype: Of the tables and the output.
        initializer: Of both tables.
    """

    vocabulary: int
    positions: int | None
    features: int
    dtype: str = "float32"
    initializer: Initializer = field(default_factory=lambda: Normal(0.02))

    piecewise_linear = True

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        dtype = np.dtype(self.dtype)
        if self.positions is None:  # as torch.nn.Embedding
            return {"token": ParameterSpec((self.vocabulary, self.features), dtype, self.initializer, ("weight",))}
        rows = {"token": self.vocabulary, "position": self.positions}  # as a module of two of them
        return {
            name: ParameterSpec((n, self.features), dtype, self.initializer, (f"{name}.weight",))
            for name, n in rows.items()
        }

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        y = params["token"][x]
        return y if self.positions is None else y + params["position"][: x.shape[-1]]

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        if x.size and not 0 <= int(x.min()) <= int(x.max()) < self.vocabulary:
            raise ValueError(
                f"tokens must lie in [0, {self.vocabulary}), but the input holds {x.min()} to {x.max()}; "
                "check the data or enlarge the vocabulary"
            )
        y = context.empty((*x.shape, self.features), self.dtype, "activations")
        tokens, rows = x.reshape(-1), kernels.as_rows(y)
        indices = context.empty((kernels.block_rows(tokens.size, self.features),), np.intp, "workspace")
        for block in kernels.row_blocks(tokens.size, self.features):
            some = indices[: block.stop - block.start]
            some[...] = tokens[block]
            # mode="clip" writes straight into `out`; the default would go through a hidden copy.
            np.take(params["token"], some, axis=0, out=rows[block], mode="clip")
        if self.positions is not None:
            y += params["position"][: x.shape[-1]]
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        token = grads["token"]
        token.fill(0)
        for index, row in zip(x.reshape(-1).tolist(), kernels.as_rows(cotangent), strict=True):
            token[index] += row
        if self.positions is not None:
            position, length = grads["position"], x.shape[-1]
            each = cotangent.reshape(x.size // max(1, length), length, self.features)
            np.add.reduce(each, axis=0, out=position[:length])
            position[length:].fill(0)
        return None

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params_tangent, x, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        if x.dtype.kind not in "iu" or not x.shape:
            raise ValueError(f"Embedding takes an array of integer tokens with at least one axis, but got {x}")
        if self.positions is not None and x.shape[-1] > self.positions:
            raise ValueError(
                f"Embedding has {self.positions} positions, but got a sequence of {x.shape[-1]} tokens: {x}"
            )
        output = Spec.of((*x.shape, self.features), self.dtype)
        workspace = kernels.block_rows(x.size, self.features) * np.dtype(np.intp).itemsize
        return Footprint(
            output=output,
            needs_input=(True,),
            forward_workspace=workspace,
            jvp_workspace=workspace,
            forward_flops=output.size,
            backward_flops=2 * output.size,
        )
