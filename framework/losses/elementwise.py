"""Losses that compare each number with its target: squared and absolute error, Huber's between them, and binary cross-entropy."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Spec
from framework.losses.loss import Loss, LossFootprint, count_of, require_weights, weigh, weighted
from framework.memory import Array
from framework.special import write_sigmoid


class ElementwiseLoss(Loss):
    """Σ ℓ(y, target) over elements, the count being that of the elements; y and targets (B, ...), equal.

    A loss has ℓ and its derivatives by y, written over blocks of numbers; the rest is here.

    Attributes:
        curvature: The second derivative, if it is the same everywhere; else None, and `write_curvature` is asked.
        flops: Operations an element of the sum, and of the VJP.
    """

    curvature: ClassVar[float | None] = None
    flops: ClassVar[tuple[int, int]] = (3, 2)
    #: Rows of scratch of the sum: the losses, and what `write_losses` takes besides.
    _rows: ClassVar[int] = 1

    @abstractmethod
    def elements(self, y: Any, targets: Array) -> Any:
        """Returns ℓ of each element by the definition, in plain NumPy."""

    @abstractmethod
    def write_losses(self, y: Array, targets: Array, out: Array, spare: Array) -> None:
        """Writes ℓ of a block into `out`, float64; `spare` is scratch of the same kind where the loss has two rows."""

    @abstractmethod
    def write_slope(self, y: Array, targets: Array, out: Array) -> None:
        """Writes the derivative of a block into `out`, which may be y."""

    def write_curvature(self, y: Array, targets: Array, out: Array) -> None:
        """Writes the second derivative of a block into `out`."""
        raise NotImplementedError

    def require_targets(self, targets: Array) -> None:
        """Raises ValueError for targets that the loss does not take; by default it takes all."""

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        return np.sum(weighted(self.elements(y, targets), weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        require_weights(weights, y)
        outputs, wanted = kernels.as_view(y, (-1,)), kernels.as_view(targets, (-1,))
        self.require_targets(wanted)
        scratch = context.empty((self._rows, kernels.block_rows(outputs.size, 1)), np.float64, "workspace")
        total = 0.0
        for block in kernels.row_blocks(outputs.size, 1):
            some = scratch[:, : block.stop - block.start]
            self.write_losses(outputs[block], wanted[block], some[0], some[-1])
            if weights is not None:
                weigh(some[0], weights, block, outputs.size)
            total += float(np.add.reduce(some[0]))
        return total, count_of(weights, outputs.size), ()

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        cotangent = context.like(y, "cotangents")
        outputs, wanted, out = (kernels.as_view(a, (-1,)) for a in (y, targets, cotangent))
        for block in kernels.row_blocks(out.size, 1):
            self.write_slope(outputs[block], wanted[block], out[block])
            if weights is not None:
                weigh(out[block], weights, block, out.size)
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        product = context.like(tangent, "cotangents")
        outputs, wanted, moved, out = (kernels.as_view(a, (-1,)) for a in (y, targets, tangent, product))
        factors = None
        if self.curvature is None:
            factors = context.empty((kernels.block_rows(out.size, 1),), y.dtype, "workspace")
        for block in kernels.row_blocks(out.size, 1):
            factor: Any = self.curvature
            if factors is not None:
                factor = factors[: block.stop - block.start]
                self.write_curvature(outputs[block], wanted[block], factor)
            np.multiply(moved[block], factor, out=out[block])
            if weights is not None:
                weigh(out[block], weights, block, out.size)
        return product

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        if y != targets or y.dtype.kind != "f":
            raise ValueError(
                f"{type(self).__name__} takes floats of equal shape and dtype, but got outputs {y} and targets {targets}"
            )
        height = kernels.block_rows(y.size, 1)
        return LossFootprint(
            forward_workspace=self._rows * height * np.dtype(np.float64).itemsize,
            hvp_workspace=height * y.dtype.itemsize if self.curvature is None else 0,
            forward_flops=self.flops[0] * y.size,
            backward_flops=self.flops[1] * y.size,
            in_place=True,
        )


@dataclass(frozen=True)
class MeanSquaredError(ElementwiseLoss):
    """Σ (y - target)² over elements, the count being that of the elements.

    Shapes: y and targets (B, ...), equal. ȳ = 2 (y - target), and the Hessian's product is 2 ẏ.
    """

    curvature = 2.0
    unit = "mean squared error"

    def elements(self, y: Any, targets: Array) -> Any:
        return (y - targets) ** 2

    def write_losses(self, y: Array, targets: Array, out: Array, spare: Array) -> None:
        np.subtract(y, targets, out=out)
        np.multiply(out, out, out=out)

    def write_slope(self, y: Array, targets: Array, out: Array) -> None:
        np.subtract(y, targets, out=out)
        out *= 2


@dataclass(frozen=True)
class L1(ElementwiseLoss):
    """Σ |y - target| over elements, the count being that of the elements.

    Shapes: y and targets (B, ...), equal. ȳ = sign(y - target), which is 0 where they are equal; the Hessian is zero.
    """

    curvature = 0.0
    unit = "mean absolute error"

    def elements(self, y: Any, targets: Array) -> Any:
        return np.abs(y - targets)

    def write_losses(self, y: Array, targets: Array, out: Array, spare: Array) -> None:
        np.subtract(y, targets, out=out)
        np.absolute(out, out=out)

    def write_slope(self, y: Array, targets: Array, out: Array) -> None:
        np.subtract(y, targets, out=out)
        np.sign(out, out=out)


@dataclass(frozen=True)
class Huber(ElementwiseLoss):
    """Σ of d²/2 where |d| ≤ delta, else delta·(|d| - delta/2), with d = y - target (Huber 1964); the count is that of the elements.

    Shapes: y and targets (B, ...), equal. ȳ is d cut to [-delta, delta], and the Hessian's product is ẏ where |d| ≤ delta, else 0.

    Attributes:
        delta: From where on the loss is linear; above 0.
    """

    delta: float = 1.0

    unit = "Huber's loss"
    flops = (6, 3)
    _rows = 2

    def __post_init__(self) -> None:
        if not 0 < self.delta < math.inf:
            raise ValueError(f"Huber takes a finite delta above 0, but got {self.delta}")

    def elements(self, y: Any, targets: Array) -> Any:
        size = np.abs(y - targets)
        return np.where(size <= self.delta, 0.5 * size * size, self.delta * (size - 0.5 * self.delta))

    def write_losses(self, y: Array, targets: Array, out: Array, spare: Array) -> None:
        """With c = |d| cut to delta both are c·(|d| - c/2)."""
        np.subtract(y, targets, out=out)
        np.absolute(out, out=out)
        np.minimum(out, self.delta, out=spare)
        spare *= 0.5
        out -= spare
        spare *= 2
        out *= spare

    def write_slope(self, y: Array, targets: Array, out: Array) -> None:
        np.subtract(y, targets, out=out)
        np.clip(out, -self.delta, self.delta, out=out)

    def write_curvature(self, y: Array, targets: Array, out: Array) -> None:
        np.subtract(y, targets, out=out)
        np.absolute(out, out=out)
        np.subtract(self.delta, out, out=out)
        np.heaviside(out, 1, out=out)


@dataclass(frozen=True)
class BinaryCrossEntropy(ElementwiseLoss):
    """-Σ (target·log σ(y) + (1 - target)·log(1 - σ(y))) over elements, from logits y, in nats; the count is that of the elements.

    Shapes: y and targets (B, ...), equal; targets in [0, 1]. With σ(y) = 1 / (1 + exp(-y)) it is max(y, 0) - y·target +
    log(1 + exp(-|y|)), which does not overflow; ȳ = σ(y) - target, and the Hessian's product is σ(y)·(1 - σ(y))·ẏ.
    """

    unit = "nats"
    flops = (25, 12)
    _rows = 2

    def require_targets(self, targets: Array) -> None:
        least, most = (float(pick.reduce(targets, initial=0)) for pick in (np.minimum, np.maximum))
        if not 0 <= least <= most <= 1:
            raise ValueError(f"targets of BinaryCrossEntropy must lie in [0, 1], but they hold {least} to {most}")

    def elements(self, y: Any, targets: Array) -> Any:
        return np.logaddexp(0, y) - y * targets

    def write_losses(self, y: Array, targets: Array, out: Array, spare: Array) -> None:
        np.copyto(spare, y)
        np.absolute(spare, out=out)
        np.negative(out, out=out)
        np.exp(out, out=out)
        np.log1p(out, out=out)
        out += np.maximum(spare, 0, out=spare)
        np.multiply(y, targets, out=spare)
        out -= spare

    def write_slope(self, y: Array, targets: Array, out: Array) -> None:
        write_sigmoid(y, out)
        out -= targets

    def write_curvature(self, y: Array, targets: Array, out: Array) -> None:
        """σ·(1 - σ) = 1 / (2 cosh(y/2))²."""
        np.multiply(y, 0.5, out=out)
        with np.errstate(over="ignore"):  # of infinity the reciprocal is right
            np.cosh(out, out=out)
            out *= 2
            out *= out
        np.reciprocal(out, out=out)
