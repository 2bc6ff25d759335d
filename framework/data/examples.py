"""From the numbers of a source to a data set: task, classes, split, and scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from framework.data.arrays import ArrayDataset
from framework.keys import Key
from framework.memory import Array

#: What a model takes: vectors of features, or images (channels, height, width).
Form = Literal["features", "images"]
#: What is learned: a class, numbers, or (of images) the image without noise.
Task = Literal["classification", "regression", "denoising"]
#: One example in so many is for validation, where the source does not say which are.
VALIDATION_EVERY = 5
#: The standard deviation of the noise that is put on images, in units of that of their pixels.
NOISE = 0.5
#: Sizes of the last axis that are taken for channels where the second axis has another.
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Examples:
    """Examples as a source gives them: neither split nor scaled, targets by their own names.

    Attributes:
        source: Where they come from.
        x: Inputs (n, ...), numbers.
        y: Targets (n, ...): numbers, or whole numbers or words that name classes.
        columns: Names of the features, if they have any.
        target: What the target is called.
        held: Inputs and targets for validation, if the source has them apart.
    """

    source: str
    x: Array
    y: Array
    columns: tuple[str, ...] = ()
    target: str = "y"
    held: tuple[Array, Array] | None = None


def prepare(examples: Examples, form: Form, dtype: str, task: Task | None = None) -> ArrayDataset:
    """Makes a data set: inputs in a model's form and dtype, classes numbered from 0, split, and standardised.

    Of five examples one is for validation, of each class alike, drawn by a fixed key, unless the source has some for it. Features are standardised by
    mean and deviation of each column over the training split, images by those of each channel, numbers to predict by their own: so
    a mean squared error of 1 is what predicting the mean reaches.

    Args:
        examples: What was read.
        form: What the model takes.
        dtype: The model's, float32 or float64.
        task: What is learned. None: a class if the targets are words or whole numbers, else numbers.

    Raises:
        ValueError: The examples do not have the form, hold what is no finite number, or do not fit the task.
    """
    parts = [(examples.x, examples.y), *([examples.held] if examples.held else [])]
    for x, y in parts:
        if len(x) != len(y):
            raise ValueError(f"{examples.source}: there are {len(x)} inputs but {len(y)} targets")
    inputs = [_formed(x, form, examples.source) for x, _ in parts]
    for part in inputs:
        _require_finite(part, "inputs", examples)
    about: dict[str, Any] = {"source": [examples.source], "task": task or _evident_task(examples)}
    x = np.concatenate(inputs).astype(np.float64)
    if about["task"] == "denoising":
        _require_images(form, examples)
        return _split_and_scaled(examples, x, None, form, dtype, about)
    targets = np.concatenate([y for _, y in parts])
    if about["task"] == "classification":
        classes, labels = np.unique(targets, return_inverse=True)
        _require_classes(classes, targets, examples)
        about["classes"] = [cell.item() for cell in classes]
        return _split_and_scaled(examples, x, labels.reshape(-1).astype(np.int32), form, dtype, about)
    if targets.dtype.kind not in "fiu":
        raise ValueError(
            f"{examples.source}: {examples.target} is to be predicted as a number, but holds {targets.dtype}"
        )
    _require_finite(targets, "targets", examples)
    of_pixels = form == "images" and targets.ndim > 2
    y = _formed(targets, form, examples.source) if of_pixels else targets.reshape(len(targets), -1)
    return _split_and_scaled(examples, x, y.astype(np.float64), form, dtype, about)


def _split_and_scaled(
    examples: Examples, x: Array, y: Array | None, form: Form, dtype: str, about: dict[str, Any]
) -> ArrayDataset:
    """Orders the examples, those for training first, and scales them by these. Without targets, the inputs are, with noise upon them."""
    order, held = _split(y, len(x), len(examples.held[0]) if examples.held else None)
    count = len(x) - held
    x = x[order]
    about["mean"], about["deviation"] = (a.reshape(-1).tolist() for a in _standardise(x, count))
    if examples.columns:
        about["columns"] = list(examples.columns)
    if y is None:
        targets = x.astype(dtype)
        noise = Key(0).fold("noise", *x.shape).generator().standard_normal(x.shape)
        x = x + NOISE * noise
        about["noise"] = NOISE
    elif y.dtype.kind == "f":
        y = y[order]
        about["target_mean"], about["target_deviation"] = (a.reshape(-1).tolist() for a in _standardise(y, count))
        targets = y.astype(dtype)
    else:
        targets = y[order]
    if form == "features":
        x = x.reshape(len(x), -1)
    classes = len(about["classes"]) if "classes" in about else None
    return ArrayDataset(x.astype(dtype), targets, held, classes, about)


def _split(labels: Array | None, size: int, held: int | None) -> tuple[Array, int]:
    """Returns an order in which the examples for validation are the last ones, and their number."""
    if held is not None:
        return np.arange(size), held
    order = Key(0).fold("split", size).generator().permutation(size)
    if labels is not None and labels.dtype.kind == "i":
        order = order[np.argsort(labels[order], kind="stable")]  # every fifth of these is every fifth of each class
    mask = np.arange(size) % VALIDATION_EVERY == VALIDATION_EVERY - 1
    return np.concatenate([np.sort(order[~mask]), np.sort(order[mask])]), int(mask.sum())


def _standardise(a: Array, count: int) -> tuple[Array, Array]:
    """Subtracts in place the mean of the first `count` examples, of each column or channel, and divides by the deviation."""
    axes = (0, *range(2, a.ndim))
    mean, deviation = (f(a[:count], axis=axes, keepdims=True) for f in (np.mean, np.std))
    deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0)  # what is constant up to rounding stays
    a -= mean
    a /= deviation
    return mean, deviation


def _formed(x: Array, form: Form, source: str) -> Array:
    """Inputs as features (n, columns) or images (n, channels, height, width); images become features when they are scaled."""
    if x.dtype.kind not in "fiub" or x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{source}: inputs are numbers of shape (examples, features), (examples, height, width) or (examples, channels, "
            f"height, width), but there are {x.dtype.name}{list(x.shape)}"
        )
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4 and form == "features":
        return x.reshape(len(x), -1)
    if x.ndim != 4:
        raise ValueError(
            f"{source} holds examples of shape {list(x.shape[1:])}, but the model takes images (height, width) or "
            "(channels, height, width); a model of features, as mlp-small is, takes any shape"
        )
    if x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        return np.moveaxis(x, 3, 1)
    return x


def _require_images(form: Form, examples: Examples) -> None:
    if form != "images":
        raise ValueError(f"{examples.source}: noise is taken from images, but the model takes features")


def _evident_task(examples: Examples) -> Task:
    """Classification for words and whole numbers, else regression.

    Raises:
        ValueError: Whole numbers of which most are different may be either.
    """
    y = examples.y
    if y.dtype.kind == "f" or y.ndim > 2 or (y.ndim == 2 and y.shape[1] > 1):
        return "regression"
    different = len(np.unique(y))
    if y.dtype.kind in "iu" and 2 * different > len(y) and different > 2:
        raise ValueError(
            f"{examples.source}: {examples.target} holds {different} different whole numbers in {len(y)} examples, which may be "
            "classes or amounts; say which with --task classification or --task regression"
        )
    return "classification"


def _require_classes(classes: Array, targets: Array, examples: Examples) -> None:
    if targets.ndim > 2 or (targets.ndim == 2 and targets.shape[1] != 1):
        raise ValueError(
            f"{examples.source}: classes are one an example, shape (n,), but {examples.target} has shape {list(targets.shape)}"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{examples.source}: {examples.target} is {classes[0]} in every example, so there is nothing to learn"
        )


def _require_finite(a: Array, name: str, examples: Examples) -> None:
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        where: Sequence[int] = np.argwhere(~np.isfinite(a))[0].tolist()
        raise ValueError(
            f"{examples.source}: the {name} hold {a[tuple(where)]} at {where} (counted from 0), the first of "
            f"{np.count_nonzero(~np.isfinite(a)):,} that are no finite numbers; fill them in, or leave out the examples"
        )
