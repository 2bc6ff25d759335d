"""Losses: the last step of a chain. They give sums, never means, so that the one division by the global count of
targets is the only one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.differentiation.custom import stop_gradient
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad
from framework.layers.layer import Context, Spec
from framework.memory import Array


@dataclass(frozen=True)
class LossFootprint:
    """Bytes and FLOPs of a loss; see `Footprint`. The VJP's cotangent has the spec of y, and lies over it if `in_place`."""

    own: tuple[Spec, ...] = ()
    forward_workspace: int = 0
    backward_workspace: int = 0
    hvp_workspace: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    in_place: bool = False

    @property
    def own_nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.own)


class Loss(ABC):
    """A sum of losses over targets, and how many targets it summed.

    `weights` of shape (B,), or None for all ones, weigh the examples: an example of weight 0 counts nothing.
    """

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        """Returns the sum of losses by the definition, in plain NumPy: the oracle of the rules, and the source of `hvp`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no apply: write apply(self, y, targets, weights), which returns the sum of losses in plain "
            "NumPy functions; second derivatives follow from it"
        )

    @abstractmethod
    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        """Returns the float64 sum of losses, the (weighted) count of targets, and own residuals."""

    @abstractmethod
    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        """Returns the cotangent of y for the cotangent 1 of the sum."""

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        """Returns the Hessian of the sum times a tangent of y, which is how the result of `vjp` moves. By default from `apply`.

        The result comes from `context.like(tangent, "cotangents")`, so that it can lie over the tangent.
        """
        _, product = jvp(grad(lambda y: self.apply(y, targets, weights)), (y,), (tangent,))
        target = context.like(tangent, "cotangents")
        target[...] = product
        return target

    @abstractmethod
    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        """Returns bytes and FLOPs.

        Raises:
            ValueError: The loss does not take such outputs and targets.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Σ (log Σ exp y - y[target]) over integer targets, in nats.

    Shapes: y (B, ..., classes), targets (B, ...) integers in [0, classes). Own residual: the log-sum-exp of each row;
    the VJP ȳ = softmax(y) - onehot(target) computes the softmax from it, and so does the Hessian's product
    softmax(y)·(ẏ - rowsum(softmax(y)·ẏ)).
    """

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        top = stop_gradient(np.max(y, axis=-1, keepdims=True))  # any number would do: it takes away what it adds
        picked = np.take_along_axis(y, targets[..., None].astype(np.intp), axis=-1)
        losses = np.log(np.sum(np.exp(y - top), axis=-1, keepdims=True)) + top - picked
        return np.sum(_weighted(losses, weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        _require_weights(weights, y)
        rows, labels = kernels.as_rows(y), targets.reshape(-1)
        classes = rows.shape[1]
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"targets must lie in [0, {classes}), but they hold {labels.min()} to {labels.max()}")
        statistic = context.empty(targets.shape, y.dtype, "residuals")
        height = kernels.block_rows(*rows.shape)
        scratch = context.empty((height, classes), y.dtype, "workspace")
        picked = context.empty((height,), y.dtype, "workspace")
        index = context.empty((height,), np.intp, "workspace")
        losses = context.empty((height,), np.float64, "workspace")
        logsumexp, total = statistic.reshape(-1), 0.0
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            s, p, i, z = scratch[:count], picked[:count], index[:count], logsumexp[block]
            np.max(rows[block], axis=1, out=p)
            np.subtract(rows[block], p[:, None], out=s)
            np.exp(s, out=s)
            np.add.reduce(s, axis=1, out=z)
            np.log(z, out=z)
            z += p
            _places(labels[block], classes, out=i)
            np.take(rows[block].reshape(-1), i, out=p, mode="clip")
            np.subtract(z, p, out=p)
            np.copyto(losses[:count], p)
            if weights is not None:
                _weigh(losses[:count], weights, block, labels.size)
            total += float(np.add.reduce(losses[:count]))
        return total, _count(weights, labels.size), (statistic,)

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        rows, labels, logsumexp = kernels.as_rows(y), targets.reshape(-1), own[0].reshape(-1)
        classes = rows.shape[1]
        cotangent = context.like(y, "cotangents")
        height = kernels.block_rows(*rows.shape)
        picked = context.empty((height,), y.dtype, "workspace")
        index = context.empty((height,), np.intp, "workspace")
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            out, p, i = kernels.as_rows(cotangent)[block], picked[:count], index[:count]
            np.subtract(rows[block], logsumexp[block, None], out=out)
            np.exp(out, out=out)
            _places(labels[block], classes, out=i)
            flat = out.reshape(-1)
            np.take(flat, i, out=p, mode="clip")
            p -= 1
            np.put(flat, i, p)
            if weights is not None:
                _weigh(out, weights, block, labels.size)
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        rows, logsumexp = kernels.as_rows(y), own[0].reshape(-1)
        product = context.like(tangent, "cotangents")
        height = kernels.block_rows(*rows.shape)
        shares = context.empty((height, rows.shape[1]), y.dtype, "workspace")
        means = context.empty((height,), y.dtype, "workspace")
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            moved, out = kernels.as_rows(tangent)[block], kernels.as_rows(product)[block]
            share, mean = shares[:count], means[:count]
            np.subtract(rows[block], logsumexp[block, None], out=share)
            np.exp(share, out=share)
            np.einsum("ij,ij->i", share, moved, out=mean)
            np.subtract(moved, mean[:, None], out=out)
            out *= share
            if weights is not None:
                _weigh(out, weights, block, logsumexp.size)
        return product

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        if targets.dtype.kind not in "iu" or y.dtype.kind != "f" or y.shape[:-1] != targets.shape:
            raise ValueError(
                f"CrossEntropy takes outputs (..., classes) of floats and integer targets (...), but got outputs {y} and "
                f"targets {targets}"
            )
        classes, item, index = y.shape[-1], y.dtype.itemsize, np.dtype(np.intp).itemsize
        height = kernels.block_rows(y.rows, classes)
        return LossFootprint(
            own=(Spec(targets.shape, y.dtype),),
            forward_workspace=height * (classes * item + item + index + np.dtype(np.float64).itemsize),
            backward_workspace=height * (item + index),
            hvp_workspace=height * (classes + 1) * item,
            forward_flops=6 * y.size,
            backward_flops=4 * y.size,
            in_place=True,
        )


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Σ (y - target)² over elements, the count being that of the elements.

    Shapes: y and targets (B, ...), equal. ȳ = 2 (y - target), and the Hessian's product is 2 ẏ.
    """

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        return np.sum(_weighted((y - targets) ** 2, weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        _require_weights(weights, y)
        outputs, wanted = kernels.as_view(y, (-1,)), kernels.as_view(targets, (-1,))
        scratch = context.empty((kernels.block_rows(outputs.size, 1),), np.float64, "workspace")
        total = 0.0
        for block in kernels.row_blocks(outputs.size, 1):
            some = scratch[: block.stop - block.start]
            np.subtract(outputs[block], wanted[block], out=some)
            np.multiply(some, some, out=some)
            if weights is not None:
                _weigh(some, weights, block, outputs.size)
            total += float(np.add.reduce(some))
        return total, _count(weights, outputs.size), ()

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        cotangent = context.like(y, "cotangents")
        np.subtract(y, targets, out=cotangent)
        cotangent *= 2
        if weights is not None:
            cotangent *= _each(weights, cotangent.ndim)
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        product = context.like(tangent, "cotangents")
        np.multiply(tangent, 2, out=product)
        if weights is not None:
            product *= _each(weights, product.ndim)
        return product

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        if y != targets or y.dtype.kind != "f":
            raise ValueError(
                f"MeanSquaredError takes floats of equal shape and dtype, but got outputs {y} and targets {targets}"
            )
        return LossFootprint(
            forward_workspace=kernels.block_rows(y.size, 1) * np.dtype(np.float64).itemsize,
            forward_flops=3 * y.size,
            backward_flops=2 * y.size,
            in_place=True,
        )


def _weighted(losses: Any, weights: Array | None) -> Any:
    """Losses of shape (B, ...) times the weights of their examples."""
    return losses if weights is None else losses * _each(weights, np.ndim(losses))


def _each(weights: Array, axes: int) -> Array:
    """Weights of examples in a form that multiplies an array of so many axes."""
    return weights.reshape(-1, *[1] * (axes - 1))


def _require_weights(weights: Array | None, y: Array) -> None:
    if weights is not None and weights.shape != y.shape[:1]:
        raise ValueError(f"there must be one weight an example, shape {y.shape[:1]}, but got shape {weights.shape}")


def _places(labels: Array, classes: int, out: Array) -> None:
    """Writes where each row's label lies in the flattened rows."""
    out.fill(classes)
    out[:1] = 0
    np.cumsum(out, out=out)
    out += labels


def _count(weights: Array | None, targets: int) -> float:
    """The count of targets: each of an example's counts as much as the example weighs."""
    if weights is None:
        return float(targets)
    return float(np.add.reduce(weights, dtype=np.float64)) * (targets // max(1, weights.size))


def _weigh(rows: Array, weights: Array, block: slice, total: int) -> None:
    """Multiplies rows `block` of `total` by the weights of the examples they belong to."""
    each = total // weights.size
    for example in range(block.start // each, -(-block.stop // each)):
        first, last = example * each - block.start, (example + 1) * each - block.start
        rows[max(0, first) : last] *= weights[example]
