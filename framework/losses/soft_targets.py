"""Cross-entropy of targets that are probabilities themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.differentiation.custom import stop_gradient
from framework.layers.layer import Context, Spec
from framework.losses.loss import Loss, LossFootprint, count_of, require_weights, weigh, weighted
from framework.memory import Array


@dataclass(frozen=True)
class SoftTargetCrossEntropy(Loss):
    """-Σ target·log softmax(y), of targets that are probabilities of the classes, in nats; the count is that of the rows.

    Such targets come from mixed examples (Zhang et al. 2017, arXiv 1710.09412) or from another model (Hinton et al. 2015,
    arXiv 1503.02531). Shapes: y and targets (B, ..., classes), equal; targets from 0 on. A row is meant to sum to 1, but need not. Own
    residual: the log-sum-exp of each row. With s the row's sum of targets ȳ = s·softmax(y) - target, and the Hessian's product is
    s·softmax(y)·(ẏ - rowsum(softmax(y)·ẏ)).

    Attributes:
        label_smoothing: The part ε in [0, 1] of each target that is spread evenly over the classes: the target becomes
            (1 - ε)·target + ε/classes.
    """

    label_smoothing: float = 0.0

    unit = "nats"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing lies in [0, 1], but got {self.label_smoothing}")

    def apply(self, y: Any, targets: Array, weights: Array | None) -> Any:
        goal = (1 - self.label_smoothing) * targets + self.label_smoothing / targets.shape[-1]
        shifted = y - stop_gradient(np.max(y, axis=-1, keepdims=True))
        shares = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
        return np.sum(weighted(-goal * shares, weights))

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        require_weights(weights, y)
        least = float(np.minimum.reduce(targets, axis=None, initial=0))
        if not least >= 0:
            raise ValueError(f"targets of SoftTargetCrossEntropy are probabilities, from 0 on, but they hold {least}")
        rows, wanted = kernels.as_rows(y), kernels.as_rows(targets)
        statistic = context.empty(y.shape[:-1], y.dtype, "residuals")
        shifted, goals, tops, sums = self._scratch(rows, context)
        losses = context.empty(tops.shape, np.float64, "workspace")
        logsumexp, total = statistic.reshape(-1), 0.0
        for block in kernels.row_blocks(*rows.shape):
            size = block.stop - block.start
            s, top, loss, z = shifted[:size], tops[:size], losses[:size], logsumexp[block]
            goal = self._goal(wanted[block], goals, sums[:size])
            np.max(rows[block], axis=1, out=top)
            np.subtract(rows[block], top[:, None], out=s)
            np.einsum("ij,ij->i", goal, s, out=z)
            np.negative(z, out=loss)
            np.exp(s, out=s)
            np.add.reduce(s, axis=1, out=z)
            np.log(z, out=z)
            sums[:size] *= z
            loss += sums[:size]
            z += top
            if weights is not None:
                weigh(loss, weights, block, len(rows))
            total += float(np.add.reduce(loss))
        return total, count_of(weights, len(rows)), (statistic,)

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        rows, wanted, logsumexp = kernels.as_rows(y), kernels.as_rows(targets), own[0].reshape(-1)
        cotangent = context.like(y, "cotangents")
        _, goals, _, sums = self._scratch(rows, context, forward=False)
        for block in kernels.row_blocks(*rows.shape):
            out, size = kernels.as_rows(cotangent)[block], block.stop - block.start
            goal = self._goal(wanted[block], goals, sums[:size])
            np.subtract(rows[block], logsumexp[block, None], out=out)
            np.exp(out, out=out)
            out *= sums[:size, None]
            out -= goal
            if weights is not None:
                weigh(out, weights, block, len(rows))
        return cotangent

    def hvp(
        self, y: Array, tangent: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context
    ) -> Array:
        rows, wanted, logsumexp = kernels.as_rows(y), kernels.as_rows(targets), own[0].reshape(-1)
        product = context.like(tangent, "cotangents")
        shares, goals, means, sums = self._scratch(rows, context)
        for block in kernels.row_blocks(*rows.shape):
            moved, out = kernels.as_rows(tangent)[block], kernels.as_rows(product)[block]
            size = block.stop - block.start
            share, mean = shares[:size], means[:size]
            self._goal(wanted[block], goals, sums[:size])
            np.subtract(rows[block], logsumexp[block, None], out=share)
            np.exp(share, out=share)
            np.einsum("ij,ij->i", share, moved, out=mean)
            np.subtract(moved, mean[:, None], out=out)
            out *= share
            out *= sums[:size, None]
            if weights is not None:
                weigh(out, weights, block, len(rows))
        return product

    def _goal(self, targets: Array, scratch: Array, sums: Array) -> Array:
        """Returns a block of targets, smoothed in scratch where they must be, and writes the sums of its rows."""
        goal = targets
        if self.label_smoothing:
            goal = scratch[: len(targets)]
            np.multiply(targets, 1 - self.label_smoothing, out=goal)
            goal += self.label_smoothing / goal.shape[1]
        np.add.reduce(goal, axis=1, out=sums)
        return goal

    def _scratch(self, rows: Array, context: Context, forward: bool = True) -> tuple[Array, Array, Array, Array]:
        """Room for a block of outputs and of smoothed targets, and for two numbers a row; for the VJP of the second and fourth."""
        height, width = kernels.block_rows(*rows.shape), rows.shape[1]
        sizes = (height * forward, height * bool(self.label_smoothing))
        outputs, goals = (context.empty((size, width), rows.dtype, "workspace") for size in sizes)
        first, second = (context.empty((size,), rows.dtype, "workspace") for size in (height * forward, height))
        return outputs, goals, first, second

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        if y != targets or y.dtype.kind != "f" or len(y.shape) < 2:
            raise ValueError(
                "SoftTargetCrossEntropy takes outputs and targets (..., classes), floats of equal shape and dtype, but got outputs "
                f"{y} and targets {targets}"
            )
        height, width, item = kernels.block_rows(y.rows, y.shape[-1]), y.shape[-1], y.dtype.itemsize
        smoothed = height * width * item if self.label_smoothing else 0
        whole = smoothed + height * (width + 2) * item
        return LossFootprint(
            own=(Spec(y.shape[:-1], y.dtype),),
            forward_workspace=whole + height * np.dtype(np.float64).itemsize,
            backward_workspace=smoothed + height * item,
            hvp_workspace=whole,
            forward_flops=8 * y.size,
            backward_flops=6 * y.size,
            in_place=True,
        )
