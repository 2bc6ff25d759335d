"""Softmax and LogSoftmax over the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.differentiation.custom import stop_gradient
from framework.layers.layer import Context, Footprint, Layer, Own, Params, require_float
from framework.memory import Array


@dataclass(frozen=True)
class Softmax(Layer):
    """y = exp(x) / rowsum(exp(x)) over the last axis.

    Shapes: x and y (..., features). The VJP needs the output alone: x̄ = y·(ȳ - rowsum(y·ȳ)); the derivative is symmetric, so the JVP
    is the same formula.
    """

    core_axes = 1

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        if not x.shape[-1]:
            return x  # there is no sum to divide by
        exponentials = np.exp(x - _top(x))
        return exponentials / np.sum(exponentials, axis=-1, keepdims=True)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        rows, out = kernels.as_rows(x), kernels.as_rows(y)
        row = context.empty((kernels.block_rows(*rows.shape),), y.dtype, "workspace")
        for block in kernels.row_blocks(*rows.shape):
            some, total = out[block], row[: block.stop - block.start]
            _shift(rows[block], some, total)
            np.exp(some, out=some)
            np.add.reduce(some, axis=1, out=total)
            some /= total[:, None]
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        return self._moved(y, cotangent, context.like(cotangent, "cotangents"), context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        y, _ = self.forward(params, x, context)
        return y, self._moved(y, x_tangent, context.like(x_tangent, "activations"), context)

    def _moved(self, y: Array, direction: Array, target: Array, context: Context) -> Array:
        """Writes the derivative times a direction into `target`, which may be the direction."""
        shares, directions, out = (kernels.as_rows(a) for a in (y, direction, target))
        row = context.empty((kernels.block_rows(*shares.shape),), y.dtype, "workspace")
        for block in kernels.row_blocks(*shares.shape):
            share, moved, mean = shares[block], directions[block], row[: block.stop - block.start]
            np.einsum("ij,ij->i", share, moved, out=mean)
            np.subtract(moved, mean[:, None], out=out[block])
            out[block] *= share
        return target

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        workspace = kernels.block_rows(x.rows, x.shape[-1]) * x.dtype.itemsize
        return Footprint(
            output=x,
            needs_output=True,
            forward_workspace=workspace,
            backward_workspace=workspace,
            jvp_workspace=workspace,
            forward_flops=13 * x.size,
            backward_flops=4 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


@dataclass(frozen=True)
class LogSoftmax(Layer):
    """y = x - log rowsum(exp(x)) over the last axis.

    Shapes: x and y (..., features). The VJP needs the output alone: x̄ = ȳ - exp(y)·rowsum(ȳ).
    """

    core_axes = 1

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        if not x.shape[-1]:
            return x  # there is no sum to take the logarithm of
        shifted = x - _top(x)
        return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        rows, out = kernels.as_rows(x), kernels.as_rows(y)
        scratch, row = _scratch(rows, context)
        for block in kernels.row_blocks(*rows.shape) if rows.size else ():
            count = block.stop - block.start
            some, shares, total = out[block], scratch[:count], row[:count]
            _shift(rows[block], some, total)
            np.exp(some, out=shares)
            np.add.reduce(shares, axis=1, out=total)
            np.log(total, out=total)
            some -= total[:, None]
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        x_cotangent = context.like(cotangent, "cotangents")
        rows, cotangents, out = (kernels.as_rows(a) for a in (y, cotangent, x_cotangent))
        scratch, row = _scratch(rows, context)
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            shares, total = scratch[:count], row[:count]
            np.add.reduce(cotangents[block], axis=1, out=total)
            np.exp(rows[block], out=shares)
            shares *= total[:, None]
            np.subtract(cotangents[block], shares, out=out[block])
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = ẋ - rowsum(exp(y)·ẋ)."""
        y, _ = self.forward(params, x, context)
        tangent = context.like(x_tangent, "activations")
        rows, moved, out = (kernels.as_rows(a) for a in (y, x_tangent, tangent))
        scratch, row = _scratch(rows, context)
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            shares, mean = scratch[:count], row[:count]
            np.exp(rows[block], out=shares)
            np.einsum("ij,ij->i", shares, moved[block], out=mean)
            np.subtract(moved[block], mean[:, None], out=out[block])
        return y, tangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        width = x.shape[-1]
        workspace = kernels.block_rows(x.rows, width) * (width + 1) * x.dtype.itemsize
        return Footprint(
            output=x,
            needs_output=True,
            forward_workspace=workspace,
            backward_workspace=workspace,
            jvp_workspace=workspace,
            forward_flops=13 * x.size,
            backward_flops=13 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


def _top(x: Any) -> Any:
    """Each row's largest number, as a constant: any number would do, but with it no exponential overflows."""
    return stop_gradient(np.max(x, axis=-1, keepdims=True))


def _shift(rows: Array, out: Array, top: Array) -> None:
    """Takes each row's largest number away from it."""
    np.maximum.reduce(rows, axis=1, out=top, initial=-np.inf)
    np.subtract(rows, top[:, None], out=out)


def _scratch(rows: Array, context: Context) -> tuple[Array, Array]:
    """Returns room for a block of rows, and for a number a row."""
    height = kernels.block_rows(*rows.shape)
    scratch = context.empty((height, rows.shape[1]), rows.dtype, "workspace")
    return scratch, context.empty((height,), rows.dtype, "workspace")
