"""The models of the suite `policies`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from benchmarks import engine_cases
from benchmarks.engine_cases import Case
from benchmarks.measure import picked

from framework import CrossEntropy, Model, Spec, build
from framework.layers import Chain, Linear, ReLU
from framework.parameters import Normal

LAYERS, WIDTH, BATCH = 50, 512, 512


def _deep_mlp() -> Model:
    """Equal layers, each an element of the chain; their weights keep the size of what passes through."""
    linear = Linear(WIDTH, initializer=Normal((2 / WIDTH) ** 0.5))
    blocks = {f"block{number}": Chain(linear=linear, act=ReLU()) for number in range(LAYERS)}
    return Model("mlp-50", Chain(**blocks), CrossEntropy(), engine_cases.no_data)


_MLP = Case(
    "mlp-50",
    f"MLP of {LAYERS} x {WIDTH}, batch {BATCH}",
    _deep_mlp,
    BATCH,
    Spec.of((WIDTH,), np.float32),
    Spec.of((), np.int64),
    WIDTH,
)

_TINY = Case(
    "byte-gpt-tiny",
    "byte-gpt-tiny, 8 x 128 tokens",
    partial(build, "byte-gpt-tiny"),
    8,
    Spec.of((128,), np.uint8),
    Spec.of((128,), np.uint8),
    256,
)

_DEEP = Case(
    "mlp-deep",
    "mlp-deep, batch 256",
    partial(build, "mlp-deep"),
    256,
    Spec.of((64,), np.float32),
    Spec.of((), np.int64),
    10,
)

#: Compared with PyTorch, and plans with their measured steps.
COMPARED = ("byte-gpt-small", "mlp-50")
#: Planned with values on disk, too.
DISK = "byte-gpt-small"

#: By name. The others are for plans and their measured steps alone.
CASES = {
    case.name: case
    for case in (
        engine_cases.CASES["byte-gpt-small"],
        _MLP,
        _TINY,
        _DEEP,
        replace(engine_cases.CASES["resnet-small"], batch=16, title="resnet-small, batch 16"),
    )
}


def chosen(only: str | None) -> list[Case]:
    """Returns the cases that were asked for.

    Raises:
        ValueError: There is none of that name.
    """
    return picked(CASES, only, "policies")
