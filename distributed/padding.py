"""What must hold where the last batch of an epoch or of a validation is padded: nothing of a model sees the padding."""

from __future__ import annotations

import numpy as np

from framework.data import Batches, Dataset
from framework.keys import Key
from framework.layers import Context, Spec, flatten, input_specs
from framework.losses import Loss
from framework.memory import Array, Ledger
from framework.models import Model
from framework.parameters import Layout


def require_paddable(
    model: Model, layout: Layout, data: Dataset, specs: tuple[Spec, Spec], batches: tuple[Batches, Batches]
) -> None:
    """Raises where padding would change what is computed.

    Args:
        model: The model.
        layout: Its layout.
        data: The examples.
        specs: Of one shard's inputs and targets.
        batches: How the examples of a training epoch, and those of a validation, are cut into batches.

    Raises:
        ValueError: A layer takes statistics of training batches that are padded, or the loss does not weigh its examples.
    """
    train, validation = batches
    if train.padded and (names := list(layout.statistics.specs)):
        raise ValueError(
            f"layer {names[0].rpartition('.')[0]!r} takes statistics of a batch, which would see the padding of an epoch's last one: "
            f"{train.size} examples for training leave {train.size % train.batch} for it in batches of {train.batch}. Drop it with "
            "--last-batch drop, take a batch that divides the examples, or a norm of each example (GroupNorm, LayerNorm)"
        )
    if train.padded or validation.padded:
        x, targets = (np.empty(spec.shape, spec.dtype) for spec in specs)
        split = "train" if train.padded else "validation"
        data.load(split, [place % data.size(split) for place in range(len(x))], x, targets)
        if not _weighs(model.loss, _output(model, specs[0]), targets):
            raise ValueError(
                f"{type(model.loss).__name__} does not weigh its examples, so it would count the padding of a batch: where all weights are "
                "zero, its sum, its count and its derivative must be. Let its forward and vjp take `weights` into account (see "
                "framework.Loss), or drop the last batch with --last-batch drop"
            )


def _output(model: Model, x: Spec) -> Spec:
    """The spec of the model's output in evaluation."""
    steps = flatten(model.chain)
    return steps[-1].layer.footprint(input_specs(steps, x, training=False)[-1], training=False).output


def _weighs(loss: Loss, y: Spec, targets: Array) -> bool:
    """Whether examples of weight zero count nothing in a loss."""
    outputs = Key(0).generator().uniform(0.1, 0.9, y.shape).astype(y.dtype)  # also fit for probabilities
    weights, context = np.zeros(len(outputs), y.dtype), Context(Ledger(), "loss")
    total, count, own = loss.forward(outputs, targets, weights, context)
    cotangent = loss.vjp(outputs, targets, weights, own, context)
    return total == 0 and count == 0 and not cotangent.any()
