"""Trains a convolutional network on handwritten digits and shows those that it reads wrongly.

The 1,797 images of 8 x 8 pixels come with scikit-learn and need no network: pip install '.[datasets]' (make install has it).

    python cnn_on_digits.py
    python cnn_on_digits.py --policy every-k:1    # keep one layer's input at a time, compute the rest again: the same digits are wrong
"""

from __future__ import annotations

import numpy as np
import tyro

from checkpointing import predict
from distributed import Trainer
from framework import Chain, Conv2d, CrossEntropy, Dropout, Flatten, Linear, MaxPool2d, ReLU
from framework.data import open_examples


def network(classes: int) -> Chain:
    return Chain(
        Conv2d(16, 3, padding=1),
        ReLU(),
        Conv2d(32, 3, padding=1),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(128),
        ReLU(),
        Dropout(0.2),
        Linear(classes),
    )


def picture(image: np.ndarray) -> list[str]:
    """An image (height, width) as lines of text, dark to light."""
    shades = " .:-=+*#%@"
    levels = (image - image.min()) / np.ptp(image) * (len(shades) - 1)
    return ["".join(shades[int(level)] * 2 for level in row) for row in levels]


def main(steps: int = 300, policy: str = "store-all", show: int = 3) -> None:
    """Trains on digits.

    Args:
        steps: Training steps of 32 images.
        policy: What to keep and what to recompute; the results have the same bits under each.
        show: How many of the wrongly read images to show.
    """
    data = open_examples("cnn", "images", "float32", ["digits"])
    chain = network(data.classes)
    trainer = Trainer(
        chain, CrossEntropy(), data=data, batch=32, shards=4, steps=steps, learning_rate=2e-3, policy=policy
    )
    result = trainer.fit()
    held = data.size("validation")
    x, true = data.x[-held:], data.y[-held:]
    guesses = predict(chain, result.parameters, x).argmax(axis=1)
    wrong = np.flatnonzero(guesses != true)
    peak = trainer.plans.activation_nbytes
    print(f"{held - len(wrong)} of {held} held-out digits are right; {policy} holds {peak:,} bytes of activations")
    for index in wrong[:show]:
        print(f"\na {true[index]}, read as {guesses[index]}:")
        print("\n".join(picture(x[index, 0])))


if __name__ == "__main__":
    tyro.cli(main)
