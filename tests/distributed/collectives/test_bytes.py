"""No gradient passes the driver or Ray's object store: what passes is counted."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from distributed import Trainer
from distributed.groups import RayGroup
from framework import Chain, Linear, MeanSquaredError
from framework.data import ArrayDataset

INPUTS, OUTPUTS, STEPS = 2000, 1000, 4
GRADIENT = 4 * INPUTS * OUTPUTS


def object_store_bytes() -> int:
    """Returns the bytes of the object store's memory that were ever written to: it gives none back."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if "plasma" in str(link.readlink()):
                status = link.stat()
                found[status.st_ino] = status.st_blocks * 512
        except OSError:  # a process or a descriptor that is gone
            continue
    return sum(found.values())


def test_the_bytes_of_a_step_that_pass_driver_and_object_store_are_less_than_a_gradients(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    call = RayGroup.call

    def counted(self: RayGroup, method: str, *arguments: Any) -> list[Any]:
        results = call(self, method, *arguments)
        passed.append(len(pickle.dumps((arguments, results))))
        return results

    monkeypatch.setattr(RayGroup, "call", counted)
    generator = np.random.default_rng(0)
    data = ArrayDataset(
        generator.standard_normal((16, INPUTS), np.float32), generator.standard_normal((16, OUTPUTS), np.float32), 0.5
    )
    stored, rows = [], []

    def look(row: dict[str, Any]) -> None:
        stored.append(object_store_bytes())
        rows.append(sum(passed))

    options: dict[str, Any] = {"workers": 2, "shards": 4, "batch": 8, "validation_examples": 8}
    Trainer(Chain(Linear(OUTPUTS)), MeanSquaredError(), data=data, steps=STEPS, **options).fit(look)
    assert len(stored) == STEPS
    assert (rows[-1] - rows[0]) / (STEPS - 1) < 10_000 < GRADIENT / 100
    assert stored[-1] - stored[0] < GRADIENT
    before = object_store_bytes()  # the count itself would see a gradient
    reference = ray.put(np.ones(6 * GRADIENT, np.uint8))
    assert object_store_bytes() - before >= GRADIENT
    del reference
