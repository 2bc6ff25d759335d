"""Examples held in memory, and generated ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framework.data.dataset import require_inside
from framework.keys import Key
from framework.layers.layer import Spec
from framework.memory import Array


class ArrayDataset:
    """Examples from arrays held in memory.

    Args:
        x: Inputs, shape (n, ...).
        targets: Targets, shape (n, ...).
        validation: The part held out from the end, in (0, 1), or a number of examples.
        classes: How many classes integer targets tell apart; by default one more than the largest. Others have none.
        about: What else is known, for the run's records; ready for JSON.

    Raises:
        ValueError: The lengths differ, or a split would be empty.
    """

    def __init__(
        self,
        x: Array,
        targets: Array,
        validation: float = 0.1,
        classes: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.x, self.y = np.ascontiguousarray(x), np.ascontiguousarray(targets)
        if len(self.x) != len(self.y):
            raise ValueError(f"inputs and targets must have one length, but got {len(self.x)} and {len(self.y)}")
        held = validation if isinstance(validation, int) else math.ceil(len(self.x) * validation)
        self._sizes = {"train": len(self.x) - held, "validation": held}
        if not 0 < held < len(self.x):
            part = f"{held}" if isinstance(validation, int) else f"{validation:.0%}"
            raise ValueError(
                f"{len(self.x)} examples with {part} for validation leave a split empty; give more examples"
            )
        self.inputs = Spec(self.x.shape[1:], self.x.dtype)
        self.targets = Spec(self.y.shape[1:], self.y.dtype)
        self.classes = int(self.y.max()) + 1 if classes is None and self.y.dtype.kind in "iu" else classes
        self.about = dict(about or {})

    @property
    def nbytes(self) -> int:
        return int(self.x.nbytes + self.y.nbytes)

    def size(self, split: str) -> int:
        return self._sizes[split]

    def load(self, split: str, indices: Sequence[int], x: Array, targets: Array) -> None:
        first = 0 if split == "train" else self._sizes["train"]
        require_inside(split, indices, self._sizes[split])
        for row, index in enumerate(indices):
            x[row] = self.x[first + int(index)]
            targets[row] = self.y[first + int(index)]

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.x.data)
        digest.update(self.y.data)
        return {
            "kind": "arrays",
            **self.about,
            **{f"{split}_examples": n for split, n in self._sizes.items()},
            "sha256": digest.hexdigest(),
        }


def clusters(examples: int, features: int, classes: int, dtype: str = "float32", seed: int = 0) -> ArrayDataset:
    """Generates a classification set: one Gaussian cloud a class, around centres drawn at random.

    Returns:
        Inputs (examples, features) of unit variance or so and integer targets (examples,).
    """
    generator = Key(seed).fold("clusters", examples, features, classes).generator()
    centres = generator.standard_normal((classes, features))
    labels = generator.integers(classes, size=examples)
    x = 0.5 * centres[labels] + generator.standard_normal((examples, features))
    return ArrayDataset(x.astype(dtype), labels)


def pictures(
    examples: int, shape: tuple[int, int, int], classes: int = 10, dtype: str = "float32", seed: int = 0
) -> ArrayDataset:
    """Generates a classification set of images: a smooth picture a class, shifted by some pixels, under noise.

    Returns:
        Inputs (examples, *shape), shape being channels, height and width, of unit variance or so, and integer targets (examples,).
    """
    generator = Key(seed).fold("pictures", examples, *shape, classes).generator()
    rough = generator.standard_normal((classes, *shape))
    for axis in (2, 3):  # each pixel becomes the mean of its neighbourhood, around the border of the image
        rough = np.add.reduce([np.roll(rough, shift, axis) for shift in (-1, 0, 1)])
    rough /= rough.std()
    labels = generator.integers(classes, size=examples)
    shifts = generator.integers(-1, 2, size=(examples, 2))
    x = np.stack([np.roll(rough[label], shift, (1, 2)) for label, shift in zip(labels, shifts, strict=True)])
    x += 0.5 * generator.standard_normal(x.shape)
    return ArrayDataset(x.astype(dtype), labels)
