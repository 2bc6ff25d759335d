"""What layers have in common that do the same with each element: two formulas make such a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params, require_float
from framework.memory import Array

#: Elements of a block of second derivatives, which take most rows of scratch.
_HVP_BLOCK = kernels.BLOCK // 2
#: Scratch of a formula that takes none.
_NONE = np.empty((0, 0))


@dataclass(frozen=True)
class Scheme:
    """What the two formulas of an elementwise layer take.

    Attributes:
        reads_output: Whether the derivative is a formula of the output; else it is one of the input.
        value_rows: Rows of scratch of the value, at most one more than those of the slope.
        slope_rows: Rows of scratch of the slope and the second derivative, besides the rows that these are written to.
        value_flops: Operations an element of the value.
        slope_flops: Operations an element of the slope times a cotangent.
        in_place: Whether the value may be written over the input.
    """

    reads_output: bool = False
    value_rows: int = 0
    slope_rows: int = 0
    value_flops: int = 10
    slope_flops: int = 10
    in_place: bool = True


class Elementwise(Layer, ABC):
    """y = f(x), any shape. A layer has `apply`, and f and its derivatives written over blocks of numbers; the rest is here.

    The VJP is x̄ = f'·ȳ, and its tangent f'·ȳ˙ + f''·ẋ·ȳ.
    """

    core_axes = 0

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """What the formulas take: made once, since it is read several times a call; a class attribute where no field decides it."""

    @abstractmethod
    def write_value(self, x: Array, out: Array, spare: Array) -> None:
        """Writes f(x) into `out`, which is x itself where the layer runs in place; `spare` has `value_rows` rows at least."""

    @abstractmethod
    def write_slope(self, a: Array, slope: Array, second: Array | None, spare: Array) -> None:
        """Writes f' into `slope`, and f'' into `second` if that is given; `spare` has `slope_rows` rows.

        Args:
            a: The output, or the input: what the scheme says that it reads. It is only read.
            slope: Where f' goes.
            second: Where f'' goes, or None. A layer that is piecewise linear is never asked for it.
            spare: Scratch.
        """

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        scheme = self.scheme
        y = context.like(x, "activations") if scheme.in_place else context.empty(x.shape, x.dtype, "activations")
        scratch = _NONE
        if scheme.value_rows:
            scratch = context.empty((scheme.value_rows, kernels.block_rows(y.size, 1)), y.dtype, "workspace")
        for values, out in kernels.flat_blocks(x, y):
            self.write_value(values, out, scratch[:, : out.size])
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        scheme = self.scheme
        read = y if scheme.reads_output else x
        return self._scaled(scheme, read, cotangent, context.like(cotangent, "cotangents"), context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        y, _ = self.forward(params, x, context)
        scheme = self.scheme
        read = y if scheme.reads_output else x
        return y, self._scaled(scheme, read, x_tangent, context.like(x_tangent, "activations"), context)

    def _scaled(self, scheme: Scheme, read: Array, direction: Array, target: Array, context: Context) -> Array:
        """Writes the slope at what it reads times the direction into `target`, which may be the direction."""
        height = kernels.block_rows(target.size, 1)
        scratch = context.empty((1 + scheme.slope_rows, height), read.dtype, "workspace")
        for values, directions, out in kernels.flat_blocks(read, direction, target):
            slope, spare = scratch[0, : out.size], scratch[1:, : out.size]
            self.write_slope(values, slope, None, spare)
            np.multiply(slope, directions, out=out)
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
        if x_cotangent is None:
            return
        height = kernels.block_rows(x[0].size, 1, _HVP_BLOCK)
        scratch = context.empty((self._hvp_rows, height), x[0].dtype, "workspace")
        for v, moved, g, g_moved, out, out_moved in kernels.flat_blocks(*x, *cotangent, *x_cotangent, size=_HVP_BLOCK):
            rows = scratch[:, : v.size]
            read = v
            if self.scheme.reads_output:
                read, rows = rows[0], rows[1:]
                self.write_value(v, read, rows)
            slope, second = rows[0], rows[1]
            self.write_slope(read, slope, second, rows[2:])
            second *= moved
            second *= g
            np.multiply(slope, g_moved, out=out_moved)
            out_moved += second
            np.multiply(slope, g, out=out)

    @property
    def _hvp_rows(self) -> int:
        """The value where it is read, slope, second derivative, and their scratch."""
        return self.scheme.reads_output + 2 + self.scheme.slope_rows

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        scheme, row = self.scheme, kernels.block_rows(x.size, 1) * x.dtype.itemsize
        hvp_row = kernels.block_rows(x.size, 1, _HVP_BLOCK) * x.dtype.itemsize
        return Footprint(
            output=x,
            needs_input=(not scheme.reads_output,),
            needs_output=scheme.reads_output,
            forward_workspace=scheme.value_rows * row,
            backward_workspace=(1 + scheme.slope_rows) * row,
            jvp_workspace=(1 + scheme.slope_rows) * row,
            hvp_workspace=0 if self.piecewise_linear else self._hvp_rows * hvp_row,
            forward_flops=scheme.value_flops * x.size,
            backward_flops=scheme.slope_flops * x.size,
            forward_in_place=scheme.in_place,
            backward_in_place=True,
        )
