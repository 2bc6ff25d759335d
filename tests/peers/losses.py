"""Adapters of PyTorch's losses; see `tests.peers.modules`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from framework import (
    L1,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Linear,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihood,
    SoftTargetCrossEntropy,
)
from tests.peers.ours import Function, each_of, run, total_of, unless


def reduced(m: Any, loss: Loss, y: Any, targets: Any, weights: Any = None, count: int | None = None) -> Any:
    """PyTorch's reduction of the losses of examples: our sum, our mean, or each; the mean is by a count, by default ours."""
    if m.reduction == "none":
        return each_of(loss, y, targets, weights)
    total, counted = total_of(loss, y, targets, weights)
    if m.reduction == "sum":
        return total
    divisor = counted if count is None else count
    unless(divisor > 0, "a mean of no targets")
    return total / divisor


def of_numbers(make: Callable[[Any], Loss], scale: Callable[[Any], float] = lambda m: 1.0) -> Callable[[Any], Function]:
    """Losses of single numbers: each is an example."""

    def adapter(m: Any) -> Function:
        loss = make(m)
        unless(getattr(m, "pos_weight", None) is None, "weights of the positive targets")

        def function(p: Any, y: Any, targets: Any) -> Any:
            weights = np.broadcast_to(p["weight"], np.shape(y)).reshape(-1) if "weight" in p else None
            flat = np.reshape(y, (-1,)), np.reshape(targets, (-1,))
            losses = scale(m) * reduced(m, loss, *flat, weights, np.size(targets))
            return np.reshape(losses, np.shape(y)) if m.reduction == "none" else losses

        return function

    return adapter


def by_rows(y: Any, targets: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Outputs with classes last, targets likewise where they are probabilities, and the shape of the losses.

    Classes are the second axis in PyTorch, and each target is an example of ours.
    """
    axis = min(1, y.ndim - 1)
    shape = (*y.shape[:axis], *y.shape[axis + 1 :])
    rows = np.reshape(np.moveaxis(y, axis, -1), (-1, y.shape[axis]))
    if targets.dtype.kind == "f":
        return rows, np.reshape(np.moveaxis(targets, axis, -1), rows.shape), shape
    return rows, targets.reshape(-1), shape


def cross_entropy(m: Any) -> Function:
    """A class's weight is that of the examples whose target it is; or of the class's share of targets that are mixtures of classes."""
    ignore = -100 if m.ignore_index is None else m.ignore_index

    def function(p: Any, y: Any, targets: Any) -> Any:
        rows, goals, shape = by_rows(y, targets)
        if targets.dtype.kind == "f":
            loss: Loss = SoftTargetCrossEntropy(m.label_smoothing)
            if "weight" in p:
                even = m.label_smoothing / rows.shape[-1]
                loss, goals = SoftTargetCrossEntropy(), p["weight"] * ((1 - m.label_smoothing) * goals + even)
            unless(goals.min(initial=0) >= 0, "shares of classes below 0")
            losses = reduced(m, loss, rows, goals)
        elif "weight" in p:
            each = np.take(p["weight"], goals, mode="clip") * (goals != ignore)
            if m.label_smoothing:
                even = m.label_smoothing / rows.shape[-1]
                hit = np.eye(rows.shape[-1])[np.where(goals == ignore, 0, goals)]
                mixed = p["weight"] * ((1 - m.label_smoothing) * hit + even) * (goals != ignore)[:, None]
                losses = reduced(m, SoftTargetCrossEntropy(), rows, mixed, None, each.sum())
            else:
                losses = reduced(m, CrossEntropy(ignore=ignore), rows, goals, each)
        else:
            losses = reduced(m, CrossEntropy(m.label_smoothing, ignore), rows, goals)
        return np.reshape(losses, shape) if m.reduction == "none" else losses

    return function


def likelihood(m: Any) -> Function:
    def function(p: Any, y: Any, targets: Any) -> Any:
        rows, labels, shape = by_rows(y, targets)
        weights = np.take(p["weight"], labels, mode="clip") if "weight" in p else None
        losses = reduced(m, NegativeLogLikelihood(m.ignore_index), rows, labels, weights)
        return np.reshape(losses, shape) if m.reduction == "none" else losses

    return function


def linear_cross_entropy(m: Any) -> Function:
    """A Linear to the classes of each place, and cross-entropy."""

    def function(p: Any, x: Any, targets: Any) -> Any:
        width, features = m.num_classes * math.prod(m.out_features), x.shape[-1]
        given = {"weight": p["linear.weight"]} | ({"bias": p["linear.bias"]} if "linear.bias" in p else {})
        y = run(Linear(width, bias="bias" in given), given, np.reshape(x, (-1, features)))
        y = np.reshape(y, (*x.shape[:-1], m.num_classes, *m.out_features))
        return cross_entropy(m)(p, y, targets)

    return function


#: PyTorch's loss → the adapter.
LOSSES: dict[str, Callable[[Any], Function]] = {
    "MSELoss": of_numbers(lambda m: MeanSquaredError()),
    "L1Loss": of_numbers(lambda m: L1()),
    "HuberLoss": of_numbers(lambda m: Huber(m.delta)),
    "SmoothL1Loss": of_numbers(lambda m: Huber(m.beta), lambda m: 1 / m.beta),
    "BCEWithLogitsLoss": of_numbers(lambda m: BinaryCrossEntropy()),
    "CrossEntropyLoss": cross_entropy,
    "NLLLoss": likelihood,
    "LinearCrossEntropyLoss": linear_cross_entropy,
}
