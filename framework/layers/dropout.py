"""Dropout with a mask that is drawn again instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, require_float
from framework.memory import Array


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x · mask / (1 - rate), any shape (Srivastava et al. 2014); in evaluation and at rate 0 the input itself.

    The mask is a function of the context's key, so nothing is kept: the VJP draws it again.

    Attributes:
        rate: Probability that an element is dropped, in [0, 1).
    """

    rate: float

    piecewise_linear = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"a dropout rate lies in [0, 1), but got {self.rate}")

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        if not context.training or self.rate == 0:
            return x
        uniform, size = np.empty(x.shape, np.float32), int(np.prod(x.shape))
        for block, numbers in _uniform_blocks(context, size, np.empty(kernels.block_rows(size, 1), np.float32)):
            uniform.reshape(-1)[block] = numbers
        return np.where(uniform >= self.rate, x / (1 - self.rate), np.zeros((), x.dtype))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        if not context.training or self.rate == 0:
            return x, ()
        y = context.like(x, "activations")
        self._mask(x, y, context)
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        if not context.training or self.rate == 0:
            return cotangent
        x_cotangent = context.like(cotangent, "cotangents")
        self._mask(cotangent, x_cotangent, context)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params, x_tangent, context)[0]

    def _mask(self, source: Array, target: Array, context: Context) -> None:
        """Writes source · mask / (1 - rate) into `target`, which may be the source."""
        values, out = kernels.as_view(source, (-1,)), kernels.as_view(target, (-1,))
        height = kernels.block_rows(values.size, 1)
        uniform = context.empty((height,), np.float32, "workspace")
        dropped = context.empty((height,), np.bool_, "workspace")
        for block, numbers in _uniform_blocks(context, values.size, uniform):
            mask = dropped[: numbers.size]
            np.less(numbers, self.rate, out=mask)
            np.multiply(values[block], 1 / (1 - self.rate), out=out[block])
            np.copyto(out[block], 0, where=mask)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        if not training or self.rate == 0:
            return Footprint(output=x, output_aliases_input=True, cotangent_aliases=(True,))
        workspace = kernels.block_rows(x.size, 1) * (np.dtype(np.float32).itemsize + 1)
        return Footprint(
            output=x,
            forward_workspace=workspace,
            backward_workspace=workspace,
            jvp_workspace=workspace,
            forward_flops=3 * x.size,
            backward_flops=3 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


def _uniform_blocks(context: Context, size: int, scratch: Array) -> Iterator[tuple[slice, Array]]:
    """Yields blocks of elements with their uniform numbers, drawn as float32 whatever the layer's dtype."""
    generator = context.key.generator()
    for block in kernels.row_blocks(size, 1):
        numbers = scratch[: block.stop - block.start]
        generator.random(out=numbers, dtype=np.float32)
        yield block, numbers
