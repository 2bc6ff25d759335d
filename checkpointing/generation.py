"""Text from a trained byte model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from checkpointing.engine import predict
from framework import weights
from framework.keys import Key
from framework.layers import Spec
from framework.memory import Ledger
from framework.models import Model
from framework.parameters import Parameters


def generate(
    model: Model, parameters: Parameters, prompt: bytes, length: int, temperature: float = 0.8, seed: int = 0
) -> Iterator[bytes]:
    """Returns bytes that continue a prompt, one at a time.

    Args:
        model: A model over bytes: input (B, T) of uint8, output (B, T, 256) logits.
        parameters: Its trained parameters.
        prompt: What is continued; a line feed stands for an empty one.
        length: Number of bytes.
        temperature: Logits are divided by it; 0 takes the likeliest byte.
        seed: Of the draws.

    Raises:
        ValueError: The model is not over bytes, or an argument is out of range.
    """
    window = _window(model)
    if length < 1:
        raise ValueError(f"--length must be at least 1, but got {length}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature must be at least 0 and finite, but got {temperature}")
    return _bytes(model, parameters, window, prompt, length, temperature, seed)


def _bytes(
    model: Model, parameters: Parameters, window: int, prompt: bytes, length: int, temperature: float, seed: int
) -> Iterator[bytes]:
    text = bytearray(prompt or b"\n")
    generator, ledger = Key(seed).fold("generate").generator(), Ledger()
    for _ in range(length):
        x = np.frombuffer(bytes(text[-window:]), np.uint8)[None]
        logits = predict(model.chain, parameters, x, ledger)[0, -1].astype(np.float64)
        if temperature == 0:
            byte = int(np.argmax(logits))
        else:
            chances = np.exp((logits - logits.max()) / temperature)
            byte = int(generator.choice(256, p=chances / chances.sum()))
        text.append(byte)
        yield bytes([byte])


def load(model: Model, path: Path) -> Parameters:
    """Returns the parameters of a byte model from a weights file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The model is not over bytes, or the weights are of another one.
    """
    _window(model)
    parameters = Parameters.initialize(model.chain.layout(Spec.of((1, 1), np.uint8)), Key(0))
    weights.load(path, parameters)
    return parameters


def _window(model: Model) -> int:
    """The most bytes that the model reads."""
    first = next(iter(model.chain))
    window, vocabulary = getattr(first, "positions", None) or model.window, getattr(first, "vocabulary", None)
    if window is None or vocabulary != 256:
        raise ValueError(
            f"model {model.name!r} does not write text: it is no model over bytes; name a run of a byte-gpt or byte-lstm"
        )
    return int(window)
