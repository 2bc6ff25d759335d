"""Cross-entropy and negative log-likelihood of integer targets over classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework import kernels
from framework.differentiation.custom import stop_gradient
from framework.layers.layer import Context, Spec
from framework.losses.loss import Loss, LossFootprint, count_of, require_weights, weigh, weighted
from framework.memory import Array


class OverClasses(Loss):
    """What losses of integer targets over classes have in common; the metric is accuracy.

    Attributes:
        ignore: A target that counts nothing, neither in the sum nor in the count, in or outside of [0, classes); None for none.
    """

    metric: ClassVar[str | None] = "accuracy"
    unit = "nats"

    ignore: int | None

    def __post_init__(self) -> None:
        if self.ignore is not None and (isinstance(self.ignore, bool) or not isinstance(self.ignore, int)):
            raise ValueError(f"ignore is a whole number or None, but got {self.ignore!r}")

    def score(self, y: Array, targets: Array, weights: Array | None, context: Context) -> float:
        """Returns how many targets have the largest output, the first of equal ones."""
        rows, labels = kernels.as_rows(y), targets.reshape(-1)
        height = kernels.block_rows(*rows.shape)
        largest = context.empty((height,), np.intp, "workspace")
        right = context.empty((height,), np.float64, "workspace")
        ignored = self._room_for_ignored(height, context)
        total = 0.0
        for block in kernels.row_blocks(*rows.shape):
            some = slice(0, block.stop - block.start)
            np.argmax(rows[block], axis=1, out=largest[some])
            np.equal(largest[some], labels[block], out=right[some])
            if ignored is not None:
                self._mark(labels[block], ignored[some], np.equal)
            total += _sum(right[some], ignored, weights, block, labels.size)
        return total

    def _score_workspace(self, y: Spec) -> int:
        each = np.dtype(np.intp).itemsize + np.dtype(np.float64).itemsize + int(self.ignore is not None)
        return kernels.block_rows(y.rows, y.shape[-1]) * each

    def _require(self, y: Spec, targets: Spec) -> None:
        if targets.dtype.kind not in "iu" or y.dtype.kind != "f" or y.shape[:-1] != targets.shape:
            raise ValueError(
                f"{type(self).__name__} takes outputs (..., classes) of floats and integer targets (...), but got outputs {y} and "
                f"targets {targets}"
            )

    def _picked(self, y: Any, targets: Array) -> tuple[Any, Array]:
        """The output of each target, and which are ignored, both with an axis of one class: for definitions."""
        labels = targets[..., None].astype(np.intp)
        ignored = np.zeros(labels.shape, bool) if self.ignore is None else labels == self.ignore
        return np.take_along_axis(y, np.where(ignored, 0, labels), axis=-1), ignored

    def _room_for_ignored(self, height: int, context: Context) -> Array | None:
        """Room for a mask of a block's ignored targets, if any are."""
        return None if self.ignore is None else context.empty((height,), np.bool_, "workspace")

    def _places(self, labels: Array, classes: int, out: Array, ignored: Array | None) -> None:
        """Writes where each row's label lies in the flattened rows, and which rows are ignored: of these, where the row begins."""
        out.fill(classes)
        out[:1] = 0
        np.cumsum(out, out=out)
        if ignored is None:
            out += labels
            return
        mask = ignored[: labels.size]
        self._mark(labels, mask, np.not_equal)
        _require_labels(labels, classes, mask, f", or be {self.ignore}, which is ignored")
        np.add(out, labels, out=out, where=mask)
        np.logical_not(mask, out=mask)

    def _mark(self, labels: Array, out: Array, compare: np.ufunc) -> None:
        """Writes how each label compares with what is ignored."""
        assert self.ignore is not None
        compare(labels, self.ignore, out=out)


@dataclass(frozen=True)
class CrossEntropy(OverClasses):
    """Σ (log Σ exp y - y[target]) over integer targets, in nats.

    Shapes: y (B, ..., classes), targets (B, ...) integers in [0, classes). Own residual: the log-sum-exp of each row;
    the VJP ȳ = softmax(y) - onehot(target) computes the softmax from it, and so does the Hessian's product
    softmax(y)·(ẏ - rowsum(softmax(y)·ẏ)).

    Attributes:
        label_smoothing: The part ε in [0, 1] of each target that is spread evenly over the classes: the loss is
            log Σ exp y - (1 - ε)·y[target] - ε·mean(y) (Szegedy et al. 2016, arXiv 1512.00567).
        ignore: A target that counts nothing, neither in the sum nor in the count, in or outside of [0, classes); None for none.
    """

    label_smoothing: float = 0.0
    ignore: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing lies in [0, 1], but got {self.label_smoothing}")
        super().__post_init__()

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        top = stop_gradient(np.max(y, axis=-1, keepdims=True))  # any number would do: it takes away what it adds
        picked, ignored = self._picked(y, targets)
        if self.label_smoothing:
            mean = np.mean(y, axis=-1, keepdims=True)
            picked = (1 - self.label_smoothing) * picked + self.label_smoothing * mean
        losses = np.log(np.sum(np.exp(y - top), axis=-1, keepdims=True)) + top - picked
        return np.sum(weighted(np.where(ignored, 0, losses), weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        require_weights(weights, y)
        rows, labels = kernels.as_rows(y), targets.reshape(-1)
        classes = rows.shape[1]
        if self.ignore is None:
            _require_labels(labels, classes)
        statistic = context.empty(targets.shape, y.dtype, "residuals")
        height = kernels.block_rows(*rows.shape)
        scratch = context.empty((height, classes), y.dtype, "workspace")
        picked = context.empty((height,), y.dtype, "workspace")
        index = context.empty((height,), np.intp, "workspace")
        losses = context.empty((height,), np.float64, "workspace")
        ignored = self._room_for_ignored(height, context)
        logsumexp, total, count = statistic.reshape(-1), 0.0, 0.0
        for block in kernels.row_blocks(*rows.shape):
            some = slice(0, block.stop - block.start)
            s, p, i, z = scratch[some], picked[some], index[some], logsumexp[block]
            np.max(rows[block], axis=1, out=p)
            np.subtract(rows[block], p[:, None], out=s)
            np.exp(s, out=s)
            np.add.reduce(s, axis=1, out=z)
            np.log(z, out=z)
            z += p
            self._places(labels[block], classes, i, ignored)
            np.take(rows[block].reshape(-1), i, out=p, mode="clip")
            if self.label_smoothing:
                mean = s.reshape(-1)[some]  # the exponentials are summed already
                np.add.reduce(rows[block], axis=1, out=mean)
                mean *= self.label_smoothing / classes
                p *= 1 - self.label_smoothing
                p += mean
            np.subtract(z, p, out=p)
            np.copyto(losses[some], p)
            total += _sum(losses[some], ignored, weights, block, labels.size)
            if ignored is not None:
                losses[some].fill(1)
                count += _sum(losses[some], ignored, weights, block, labels.size)
        return total, count if ignored is not None else count_of(weights, labels.size), (statistic,)

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        rows, labels, logsumexp = kernels.as_rows(y), targets.reshape(-1), own[0].reshape(-1)
        classes = rows.shape[1]
        cotangent = context.like(y, "cotangents")
        height = kernels.block_rows(*rows.shape)
        picked = context.empty((height,), y.dtype, "workspace")
        index = context.empty((height,), np.intp, "workspace")
        ignored = self._room_for_ignored(height, context)
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            out, p, i = kernels.as_rows(cotangent)[block], picked[:count], index[:count]
            np.subtract(rows[block], logsumexp[block, None], out=out)
            np.exp(out, out=out)
            self._places(labels[block], classes, i, ignored)
            flat = out.reshape(-1)
            np.take(flat, i, out=p, mode="clip")
            p -= 1 - self.label_smoothing
            np.put(flat, i, p)
            if self.label_smoothing:
                out -= self.label_smoothing / classes
            _finish(out, ignored, weights, block, labels.size)
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        rows, labels, logsumexp = kernels.as_rows(y), targets.reshape(-1), own[0].reshape(-1)
        product = context.like(tangent, "cotangents")
        height = kernels.block_rows(*rows.shape)
        shares = context.empty((height, rows.shape[1]), y.dtype, "workspace")
        means = context.empty((height,), y.dtype, "workspace")
        ignored = self._room_for_ignored(height, context)
        for block in kernels.row_blocks(*rows.shape):
            count = block.stop - block.start
            moved, out = kernels.as_rows(tangent)[block], kernels.as_rows(product)[block]
            share, mean = shares[:count], means[:count]
            np.subtract(rows[block], logsumexp[block, None], out=share)
            np.exp(share, out=share)
            np.einsum("ij,ij->i", share, moved, out=mean)
            np.subtract(moved, mean[:, None], out=out)
            out *= share
            if ignored is not None:
                self._mark(labels[block], ignored[:count], np.equal)
            _finish(out, ignored, weights, block, labels.size)
        return product

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        self._require(y, targets)
        classes, item, index = y.shape[-1], y.dtype.itemsize, np.dtype(np.intp).itemsize
        height, ignored = kernels.block_rows(y.rows, classes), int(self.ignore is not None)
        return LossFootprint(
            own=(Spec(targets.shape, y.dtype),),
            forward_workspace=height * (classes * item + item + index + np.dtype(np.float64).itemsize + ignored),
            backward_workspace=height * (item + index + ignored),
            score_workspace=self._score_workspace(y),
            hvp_workspace=height * ((classes + 1) * item + ignored),
            forward_flops=6 * y.size,
            backward_flops=4 * y.size,
            in_place=True,
        )


@dataclass(frozen=True)
class NegativeLogLikelihood(OverClasses):
    """-Σ y[target] over integer targets, of outputs that are log-probabilities, in nats: what follows a LogSoftmax.

    Shapes: y (B, ..., classes), targets (B, ...) integers in [0, classes). ȳ is -1 at the target, else 0; the Hessian is zero.

    Attributes:
        ignore: A target that counts nothing, neither in the sum nor in the count, in or outside of [0, classes); None for none.
    """

    ignore: int | None = None

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        picked, ignored = self._picked(y, targets)
        return np.sum(weighted(np.where(ignored, 0, -picked), weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        require_weights(weights, y)
        rows, labels = kernels.as_rows(y), targets.reshape(-1)
        classes, height = rows.shape[1], kernels.block_rows(*rows.shape)
        picked = context.empty((height,), y.dtype, "workspace")
        index = context.empty((height,), np.intp, "workspace")
        losses = context.empty((height,), np.float64, "workspace")
        ignored = self._room_for_ignored(height, context)
        total = count = 0.0
        if ignored is None:
            _require_labels(labels, classes)
        for block in kernels.row_blocks(*rows.shape):
            size = block.stop - block.start
            some, i = losses[:size], index[:size]
            self._places(labels[block], classes, i, ignored)
            np.take(rows[block].reshape(-1), i, out=picked[:size], mode="clip")
            np.copyto(some, picked[:size])
            np.negative(some, out=some)
            total += _sum(some, ignored, weights, block, labels.size)
            if ignored is not None:
                some.fill(1)
                count += _sum(some, ignored, weights, block, labels.size)
        return total, count if ignored is not None else count_of(weights, labels.size), ()

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        rows, labels = kernels.as_rows(y), targets.reshape(-1)
        cotangent = context.like(y, "cotangents")
        height = kernels.block_rows(*rows.shape)
        index = context.empty((height,), np.intp, "workspace")
        ignored = self._room_for_ignored(height, context)
        cotangent.fill(0)
        for block in kernels.row_blocks(*rows.shape):
            out, i = kernels.as_rows(cotangent)[block], index[: block.stop - block.start]
            self._places(labels[block], rows.shape[1], i, ignored)
            np.put(out.reshape(-1), i, -1)
            _finish(out, ignored, weights, block, labels.size)
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        product = context.like(tangent, "cotangents")
        product.fill(0)
        return product

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        self._require(y, targets)
        item, index = y.dtype.itemsize, np.dtype(np.intp).itemsize
        height, ignored = kernels.block_rows(y.rows, y.shape[-1]), int(self.ignore is not None)
        return LossFootprint(
            forward_workspace=height * (item + index + np.dtype(np.float64).itemsize + ignored),
            backward_workspace=height * (index + ignored),
            score_workspace=self._score_workspace(y),
            forward_flops=2 * y.rows,
            backward_flops=y.size,
            in_place=True,
        )


def _require_labels(labels: Array, classes: int, where: Any = True, more: str = "") -> None:
    """Raises unless all labels, or those of a mask, are classes."""
    least = int(np.minimum.reduce(labels, where=where, initial=0))
    most = int(np.maximum.reduce(labels, where=where, initial=0))
    if labels.size and not 0 <= least <= most < classes:
        raise ValueError(f"targets must lie in [0, {classes}){more}, but they hold {least} to {most}")


def _sum(losses: Array, ignored: Array | None, weights: Array | None, block: slice, total: int) -> float:
    """The sum of a block's numbers, of the total, by the weights of their examples, without what is ignored."""
    _finish(losses, ignored, weights, block, total)
    return float(np.add.reduce(losses))


def _finish(rows: Array, ignored: Array | None, weights: Array | None, block: slice, total: int) -> None:
    """Weighs a block of rows, and makes those zero that are ignored."""
    if ignored is not None:
        mask = ignored[: len(rows)]
        np.copyto(rows, 0, where=mask.reshape(-1, *[1] * (rows.ndim - 1)))
    if weights is not None:
        weigh(rows, weights, block, total)
