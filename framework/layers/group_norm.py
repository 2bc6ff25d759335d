"""GroupNorm: the channels of an example normalised in groups."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.layers.normalization import project
from framework.memory import Array
from framework.parameters import Constant, ParameterSpec


@dataclass(frozen=True)
class GroupNorm(Layer):
    """y = (x - mean) / √(variance + epsilon) · weight + bias, mean and variance being those of a group of channels of one example.

    Unlike BatchNorm it does not depend on other examples, so neither on batch nor on shards, and is the same in evaluation
    (Wu & He 2018, arXiv 1803.08494). With one group it is LayerNorm over an example, with as many as there are channels InstanceNorm.

    Shapes: x and y (N, C, ...), weight and bias (C,). Own residuals: mean and 1/√(variance + epsilon), each (N, groups). The VJP needs x.
    With x̂ = (x - mean)·r and ŷ = ȳ·weight: x̄ = r·(ŷ - mean(ŷ) - x̂·mean(ŷ·x̂)), means being those of the group.

    Attributes:
        groups: Parts into which channels are cut; divides them.
        epsilon: Added to the variance.
        affine: Whether there are weight and bias.
    """

    groups: int
    epsilon: float = 1e-5
    affine: bool = True

    core_axes = -1

    def __post_init__(self) -> None:
        if type(self.groups) is not int or self.groups < 1 or not self.epsilon > 0:
            raise ValueError(
                f"GroupNorm takes a whole number of groups from 1 and an epsilon above 0, but got {self.groups!r} and {self.epsilon}"
            )

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        self._require(x)
        if not self.affine:
            return {}
        shape = (x.shape[1],)
        return {
            "weight": ParameterSpec(shape, x.dtype, Constant(1.0)),
            "bias": ParameterSpec(shape, x.dtype, Constant(0.0)),
        }

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        split = np.reshape(x, (x.shape[0], self.groups, _width(x.shape, self.groups)))
        centered = split - np.mean(split, axis=-1, keepdims=True)
        variance = np.mean(centered * centered, axis=-1, keepdims=True)
        y = np.reshape(centered / np.sqrt(variance + self.epsilon), x.shape)
        across = (slice(None), *(None,) * (x.ndim - 2))
        return y * params["weight"][across] + params["bias"][across] if self.affine else y

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        y = context.like(x, "activations")
        own = tuple(context.empty((x.shape[0], self.groups), x.dtype, "residuals") for _ in range(2))
        blocks = _Blocks(x, self.groups)
        means, scales = (a.reshape(-1) for a in own)
        with kernels.small_buffers():
            for block in blocks:
                m, r = means[block.rows], scales[block.rows]
                some, out = blocks.part(x, block), blocks.part(y, block)
                np.add.reduce(some, axis=1, out=m)
                m /= blocks.width
                np.subtract(some, m[:, None], out=out)
                np.einsum("ij,ij->i", out, out, out=r)
                r /= blocks.width
                r += self.epsilon
                np.sqrt(r, out=r)
                np.divide(1, r, out=r)
                out *= r[:, None]
                if self.affine:
                    channels = blocks.channels_of(out, block)
                    channels *= params["weight"][block.channels, None]
                    channels += params["bias"][block.channels, None]
        return y, own

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not self.affine and not context.wanted[0]:
            return None
        blocks = _Blocks(x, self.groups)
        hat, product, row, part = self._scratch(blocks, x, context)
        x_cotangent = context.like(cotangent, "cotangents") if context.wanted[0] else None
        for grad in grads.values():
            grad.fill(0)
        with kernels.small_buffers():
            for block in blocks:
                g = blocks.part(cotangent, block)
                normal, r = self._normalized(blocks, x, own, block, hat)
                rest = kernels.front(product, g.shape)
                if self.affine:
                    some = part[: block.channels.stop - block.channels.start]
                    np.multiply(g, normal, out=rest)
                    for name, rows in (("weight", rest), ("bias", g)):
                        np.add.reduce(blocks.channels_of(rows, block), axis=(0, 2), out=some)
                        grads[name][block.channels] += some
                if x_cotangent is None:
                    continue
                out = blocks.part(x_cotangent, block)
                self._weigh(params, blocks, block, g, out)
                project(out, normal, r, rest, row[: len(out)], centered=True)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = r·(ẋ - mean(ẋ) - x̂·mean(ẋ·x̂))·weight + x̂·ẇ + ḃ with ẇ and ḃ the tangents of weight and bias."""
        y, own = self.forward(params, x, context)
        tangent = context.empty(x.shape, x.dtype, "activations")
        blocks = _Blocks(x, self.groups)
        hat, product, row, _ = self._scratch(blocks, x, context)
        with kernels.small_buffers():
            for block in blocks:
                normal, r = self._normalized(blocks, x, own, block, hat)
                out = blocks.part(tangent, block)
                out[...] = blocks.part(x_tangent, block)
                project(out, normal, r, kernels.front(product, out.shape), row[: len(out)], centered=True)
                if self.affine:
                    self._weigh(params, blocks, block, out, out)
                    self._weigh(params_tangent, blocks, block, normal, normal)
                    out += normal
                    channels = blocks.channels_of(out, block)
                    channels += params_tangent["bias"][block.channels, None]
        return y, tangent

    def _normalized(self, blocks: _Blocks, x: Array, own: Own, block: _Block, scratch: Array) -> tuple[Array, Array]:
        """Returns x̂ of a block of rows, and what they were scaled by, a column."""
        mean, scale = (a.reshape(-1)[block.rows, None] for a in own)
        some = blocks.part(x, block)
        out = kernels.front(scratch, some.shape)
        np.subtract(some, mean, out=out)
        out *= scale
        return out, scale

    def _weigh(self, params: Params, blocks: _Blocks, block: _Block, rows: Array, out: Array) -> None:
        """Writes rows times the weights of their channels into `out`."""
        weight = params["weight"][block.channels, None] if self.affine else 1
        np.multiply(blocks.channels_of(rows, block), weight, out=blocks.channels_of(out, block))

    def _scratch(self, blocks: _Blocks, x: Array, context: Context) -> tuple[Array, Array, Array, Array]:
        """Room for two blocks, for a number a row and for a number a channel."""
        height, channels = blocks.height, blocks.most_channels
        sizes = (height * blocks.width, height * blocks.width, height, channels)
        first, second, row, part = (context.empty((size,), x.dtype, "workspace") for size in sizes)
        return first, second, row, part

    def _require(self, x: Spec) -> None:
        require_float(self, x)
        if len(x.shape) < 2 or x.shape[1] % self.groups or not math.prod(x.shape[1:]):
            raise ValueError(
                f"GroupNorm with {self.groups} groups takes an input (N, C, ...) whose channels are divisible by them and not empty, "
                f"but got {x}"
            )

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        self._require(x)
        blocks, item = _Blocks(x, self.groups), x.dtype.itemsize
        own = (Spec((x.shape[0], self.groups), x.dtype),) * 2
        scratch = (2 * blocks.height * blocks.width + blocks.height + blocks.most_channels) * item
        return Footprint(
            output=x,
            own=own,
            needs_input=(True,),
            backward_workspace=scratch,
            jvp_workspace=sum(spec.nbytes for spec in own) + scratch,
            forward_flops=7 * x.size,
            backward_flops=12 * x.size,
            forward_in_place=True,
            backward_in_place=True,
        )


@dataclass(frozen=True)
class _Block:
    """Some rows, a group of an example each: those of whole examples, or some of one.

    Attributes:
        rows: Which of the N·groups rows.
        channels: The channels that they have, of each example.
    """

    rows: slice
    channels: slice


class _Blocks:
    """An input (N, C, ...), or its spec, as N·groups rows, cut into blocks that fit the cache."""

    def __init__(self, x: Any, groups: int) -> None:
        self.examples, self.groups = x.shape[0], groups
        self.channels = x.shape[1] // groups
        self.width = _width(x.shape, groups)
        rows = kernels.block_rows(self.groups, self.width)
        whole = kernels.block_rows(self.examples, self.groups * self.width) if rows == groups else 1
        #: Rows of a block, and the channels that they have of each example.
        self.height, self.most_channels = rows * whole, rows * self.channels

    def __iter__(self) -> Iterator[_Block]:
        for start in range(0, self.examples * self.groups, max(self.height, self.groups)):
            stop = min(start + max(self.height, self.groups), self.examples * self.groups)
            if self.height >= self.groups:
                yield _Block(slice(start, stop), slice(0, self.groups * self.channels))
                continue
            for first in range(0, self.groups, self.height):
                last = min(first + self.height, self.groups)
                yield _Block(slice(start + first, start + last), slice(first * self.channels, last * self.channels))

    def part(self, a: Array, block: _Block) -> Array:
        """Views a block of an array of the input's shape as (rows, width)."""
        return kernels.as_view(a, (self.examples * self.groups, self.width))[block.rows]

    def channels_of(self, rows: Array, block: _Block) -> Array:
        """Views a block's rows as (examples, channels, size)."""
        channels = block.channels.stop - block.channels.start
        size = self.width // self.channels
        return kernels.as_view(rows, (rows.size // (channels * size), channels, size))


def _width(shape: tuple[int, ...], groups: int) -> int:
    """Numbers in a group of an example."""
    return shape[1] // groups * math.prod(shape[2:])
