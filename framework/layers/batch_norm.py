"""BatchNorm: channels normalised over a batch, with running statistics for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import Constant, ParameterSpec

#: Elements of a block. Three such arrays and the numbers of channels repeated do not fit a level-2 cache of 1 MiB, but rules of five calls a
#: block lose more by the calls than they gain in cache.
_BLOCK = 2 * kernels.LARGE_BLOCK


@dataclass(frozen=True)
class BatchNorm(Layer):
    """y = (x - mean) / √(var + ε) · weight + bias, with a mean and a variance for each channel.

    In training they are those of the batch at hand, over all axes but that of channels: of one *virtual shard*, so the result depends
    on the number of shards, as that of other frameworks does on the number of devices, but not on the number of workers. Each shard
    tells its mean and its unbiased variance as statistics; their average over the shards moves the running ones once a step, and
    these take their place in evaluation (Ioffe & Szegedy 2015, "Batch Normalization").

    Shapes: x, y (B, C, ...); weight, bias, running_mean, running_var (C,). Own residuals in training: mean and 1/√(var + ε), each
    (C,). The VJP needs x. With x̂ the normalised x and m numbers in a channel, the weight's cotangent is Σ(ȳ·x̂), the bias's Σȳ, and
    x̄ = weight/√(var + ε) · (ȳ - Σȳ/m - x̂·Σ(ȳ·x̂)/m). In evaluation mean and variance are constants, and nothing is kept.

    Attributes:
        momentum: How far running statistics move towards those of a step.
        epsilon: ε.
        affine: Whether there are weight and bias.
        tracked: Whether there are running statistics; without them evaluation takes those of its batch, too.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    affine: bool = True
    tracked: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1 or self.epsilon <= 0:
            raise ValueError(
                f"BatchNorm takes a momentum in (0, 1] and an epsilon above 0, but got {self.momentum} and {self.epsilon}"
            )

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        return {"weight": _filled(x, 1.0), "bias": _filled(x, 0.0)} if self.affine else {}

    def statistics(self, x: Spec) -> dict[str, ParameterSpec]:
        if not self.tracked:
            return {}
        count = ParameterSpec((1,), x.dtype, Constant(0.0))
        return {"mean": _filled(x, 0.0), "variance": _filled(x, 0.0), "count": count}

    def state(self, x: Spec) -> dict[str, ParameterSpec]:
        return {"running_mean": _filled(x, 0.0), "running_var": _filled(x, 1.0)} if self.tracked else {}

    def advance(self, state: Params, statistics: Params) -> None:
        # Not in place: all ranks read the statistics from one memory.
        for kept, told in (("running_mean", "mean"), ("running_var", "variance")):
            state[kept] += self.momentum * (statistics[told] / statistics["count"] - state[kept])

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        axes, across = (0, *range(2, x.ndim)), (slice(None), *(None,) * (x.ndim - 2))
        if self._measures(context.training):
            mean, variance = np.mean(x, axis=axes), np.var(x, axis=axes)
        else:
            mean, variance = context.state["running_mean"], context.state["running_var"]
        y = (x - mean[across]) / np.sqrt(variance + self.epsilon)[across]
        return y * params["weight"][across] + params["bias"][across] if self.affine else y

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        blocks = _Blocks(x)
        measures = self._measures(context.training)
        y = context.empty(x.shape, x.dtype, "activations") if measures else context.like(x, "activations")
        own = tuple(context.empty((blocks.channels,), x.dtype, "residuals") for _ in range(2)) if measures else ()
        scale, shift = (context.empty((blocks.channels,), x.dtype, "workspace") for _ in range(2))
        if own:
            self._measure(blocks, x, own, y, context)
        mean, inverse = own or self._kept(scale, context)
        np.multiply(inverse, params["weight"] if self.affine else 1, out=scale)
        shift[...] = params["bias"] if self.affine else 0
        wide = blocks.wide(2, context)
        factors, terms = wide[0](scale), wide[1](shift)
        for at, some, out in blocks.of(x, y):
            if not own:
                np.subtract(some, mean[at, None], out=out)
            out *= factors[at]
            out += terms[at]
        return y, own

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not self.affine and not context.wanted[0]:
            return None
        line = self._pulled(params, x, own, cotangent, context)
        if self.affine:
            grads["weight"][...], grads["bias"][...] = line.product, line.plain
        if not context.wanted[0]:
            return None
        x_cotangent = context.like(cotangent, "cotangents")
        line.write(x, cotangent, x_cotangent)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """ẏ = weight/√(var + ε) · (ẋ - mean(ẋ) - x̂·mean(ẋ·x̂)) + x̂·ẇ + ḃ with ẇ and ḃ the tangents of weight and bias."""
        y, own = self.forward(params, x, context)
        tangent = context.empty(x.shape, x.dtype, "activations")
        line = self._pulled(params, x, own, x_tangent, context)
        if self.affine:
            line.slope += np.multiply(line.inverse, params_tangent["weight"], out=line.product)
            line.shift += params_tangent["bias"]
        line.write(x, x_tangent, tangent)
        return y, tangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        if len(x.shape) < 2:
            raise ValueError(f"BatchNorm takes an input (B, C, ...), but got {x}")
        measures = self._measures(training)
        if measures and x.size < 2 * x.shape[1]:
            raise ValueError(
                f"BatchNorm measures a variance over all axes but that of channels, but an input {x} has not two numbers in a channel; "
                "give more examples a shard (a larger batch, or fewer shards)"
            )
        channel = x.shape[1] * x.dtype.itemsize
        sizes = (_Blocks.scratch_size, _Blocks.sums_size, _Blocks.wide_size)
        block, sums, wide = (size(x.shape) * x.dtype.itemsize for size in sizes)
        return Footprint(
            output=x,
            own=(Spec((x.shape[1],), x.dtype),) * 2 if measures else (),
            needs_input=(True,),
            # The two that are wide come after the measurement, which has one.
            forward_workspace=2 * channel + max(2 * wide, sums + wide if measures else 0),
            backward_workspace=(5 if measures else 6) * channel + sums + block + 4 * wide,
            jvp_workspace=(7 if measures else 6) * channel + sums + block + 4 * wide,
            forward_flops=7 * x.size,
            backward_flops=10 * x.size,
            forward_in_place=not measures,
            backward_in_place=True,
        )

    def _measures(self, training: bool) -> bool:
        """Whether mean and variance are those of the batch."""
        return training or not self.tracked

    def _measure(self, blocks: _Blocks, x: Array, own: Own, centred: Array, context: Context) -> None:
        """Writes mean and 1/√(var + ε) of the channels and x - mean, and tells of them."""
        mean, variance = own
        sums = _ChannelSums(blocks, x, context)
        mean.fill(0)
        for at, some in blocks.of(x):
            sums.add(some, at, mean)
        mean /= blocks.count
        variance.fill(0)
        means = blocks.wide(1, context)[0](mean)
        for at, some, out in blocks.of(x, centred):
            np.subtract(some, means[at], out=out)
            sums.add_product(out, out, at, variance)
        variance /= blocks.count
        if context.statistics is not None:
            context.statistics["mean"][...] = mean
            np.multiply(variance, blocks.count / (blocks.count - 1), out=context.statistics["variance"])
            context.statistics["count"].fill(1)
        _inverse_root(variance, self.epsilon, out=variance)

    def _kept(self, inverse: Array, context: Context) -> tuple[Array, Array]:
        """Returns the running mean, and 1/√(var + ε) written into `inverse`."""
        if not context.state:
            raise ValueError(
                "BatchNorm has no running statistics to evaluate with; they are the `state` of parameters that Parameters.initialize made"
            )
        _inverse_root(context.state["running_var"], self.epsilon, out=inverse)
        return context.state["running_mean"], inverse

    def _pulled(self, params: Params, x: Array, own: Own, moved: Array, context: Context) -> _Line:
        """What the VJP does with a cotangent, and the JVP likewise with a tangent: both maps of x are the same but for the weight's side."""
        blocks = _Blocks(x)
        mean, inverse = own or self._kept(context.empty((blocks.channels,), x.dtype, "workspace"), context)
        line = _Line(blocks, x, mean, inverse, context)
        line.sum_up(x, moved)
        np.multiply(line.inverse, params["weight"] if self.affine else 1, out=line.scale)
        if own:  # mean and variance moved with x
            np.multiply(line.plain, line.scale, out=line.shift)
            line.shift /= -blocks.count
            np.multiply(line.product, line.scale, out=line.slope)
            line.slope *= line.inverse
            line.slope /= -blocks.count
        else:
            line.shift.fill(0)
            line.slope.fill(0)
        return line


class _Blocks:
    """An array (B, C, ...) cut into blocks that fit the cache: several examples, or some channels of one."""

    def __init__(self, x: Array) -> None:
        self.shape = (x.shape[0], x.shape[1], math.prod(x.shape[2:]))
        self.channels, self.count, self.dtype = x.shape[1], self.shape[0] * self.shape[2], x.dtype

    @staticmethod
    def _cut(shape: tuple[int, ...]) -> tuple[int, int]:
        """Examples and channels of a block."""
        channels = kernels.block_rows(shape[1], math.prod(shape[2:]), _BLOCK)
        examples = kernels.block_rows(shape[0], math.prod(shape[1:]), _BLOCK)
        return (examples if channels == shape[1] else 1), channels

    @classmethod
    def scratch_size(cls, shape: tuple[int, ...]) -> int:
        examples, channels = cls._cut(shape)
        return examples * channels * math.prod(shape[2:])

    @classmethod
    def sums_size(cls, shape: tuple[int, ...]) -> int:
        """Elements of the scratch of `_ChannelSums`."""
        examples, channels = cls._cut(shape)
        return math.prod(shape[2:]) + shape[1] + examples * channels

    @staticmethod
    def wide_size(shape: tuple[int, ...]) -> int:
        """Elements of an array with a number for each channel, repeated for all its elements in an example.

        With one of a number a channel, a ufunc's innermost loop is over the rest alone, and begins anew 200 ns later: more than a
        thousand numbers take. So it is repeated where an example is small.
        """
        size = math.prod(shape[1:])
        return size if size <= kernels.BLOCK else 0

    def wide(self, count: int, context: Context) -> list[Callable[[Array], Array]]:
        """Returns functions that make a number for each channel fit a block; each has a place of its own in one scratch."""
        rest = self.shape[2]
        if not self.wide_size(self.shape):
            return [lambda a: a[:, None]] * count
        scratch = context.empty((count, self.channels, rest), self.dtype, "workspace")

        def filled(place: Array, a: Array) -> Array:
            place[...] = a[:, None]
            return place

        return [partial(filled, place) for place in scratch]

    def of(self, *arrays: Array) -> Iterator[tuple[Any, ...]]:
        """Yields a slice of channels and each array's block of them, of shape (examples, channels, the rest)."""
        views = [kernels.as_view(a, self.shape) for a in arrays]
        examples, channels = self._cut(self.shape)
        for first in range(0, self.shape[0], examples):
            for channel in range(0, self.channels, channels):
                at = slice(channel, channel + channels)
                yield at, *(view[first : first + examples, at] for view in views)


class _ChannelSums:
    """Sums over all axes of a block but that of channels, by BLAS: over the last axis of each example, then over examples."""

    def __init__(self, blocks: _Blocks, x: Array, context: Context) -> None:
        scratch = context.empty((blocks.sums_size(x.shape),), x.dtype, "workspace")
        rest, channels = blocks.shape[2], blocks.channels
        self._ones, self._part, self._rows = scratch[:rest], scratch[rest : rest + channels], scratch[rest + channels :]
        self._ones.fill(1)

    def add(self, block: Array, at: slice, total: Array) -> None:
        """Adds the sums of a block (examples, channels, the rest)."""
        rows = kernels.front(self._rows, block.shape[:2])
        self._add(kernels.matmul(block, self._ones, out=rows), at, total)

    def add_product(self, a: Array, b: Array, at: slice, total: Array) -> None:
        """Adds the sums of a product."""
        self._add(np.vecdot(a, b, out=kernels.front(self._rows, a.shape[:2])), at, total)

    def _add(self, rows: Array, at: slice, total: Array) -> None:
        total[at] += np.add.reduce(rows, axis=0, out=self._part[at])


class _Line:
    """scale·moved + slope·(x - mean) + shift, channel by channel.

    Attributes:
        plain: Σ moved.
        product: Σ moved·x̂.
        scale, slope, shift, mean, inverse: Of each channel; inverse is 1/√(var + ε).
    """

    def __init__(self, blocks: _Blocks, x: Array, mean: Array, inverse: Array, context: Context) -> None:
        self._blocks = blocks
        self._scratch = context.empty((blocks.scratch_size(x.shape),), x.dtype, "workspace")
        self._sums, self._wide = _ChannelSums(blocks, x, context), blocks.wide(4, context)
        each = [context.empty((blocks.channels,), x.dtype, "workspace") for _ in range(5)]
        self.plain, self.product, self.scale, self.slope, self.shift = each
        self.mean, self.inverse = mean, inverse

    def sum_up(self, x: Array, moved: Array) -> None:
        sums, means = self._sums, self._wide[0](self.mean)
        self.plain.fill(0)
        self.product.fill(0)
        for at, some, g in self._blocks.of(x, moved):
            sums.add(g, at, self.plain)
            centred = kernels.front(self._scratch, some.shape)
            np.subtract(some, means[at], out=centred)
            sums.add_product(centred, g, at, self.product)
        self.product *= self.inverse

    def write(self, x: Array, moved: Array, out: Array) -> None:
        """Writes the line into `out`, which may be `moved`."""
        each = zip(self._wide, (self.mean, self.slope, self.scale, self.shift), strict=True)
        mean, slope, scale, shift = (wide(a) for wide, a in each)
        for at, some, g, result in self._blocks.of(x, moved, out):
            centred = kernels.front(self._scratch, some.shape)
            np.subtract(some, mean[at], out=centred)
            centred *= slope[at]
            np.multiply(g, scale[at], out=result)
            result += centred
            result += shift[at]


def _filled(x: Spec, value: float) -> ParameterSpec:
    """A number for each channel."""
    return ParameterSpec((x.shape[1],), x.dtype, Constant(value))


def _inverse_root(variance: Array, epsilon: float, out: Array) -> None:
    np.add(variance, epsilon, out=out)
    np.sqrt(out, out=out)
    np.divide(1, out, out=out)
