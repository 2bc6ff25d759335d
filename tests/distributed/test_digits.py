"""Training works: handwritten digits are learned to an accuracy, by the options that a model suggests."""

from __future__ import annotations

import numpy as np
import pytest

from checkpointing import predict
from distributed import Trainer
from framework import build


@pytest.mark.parametrize(("name", "least"), [("mlp-small", 0.95), ("lenet", 0.97)])
def test_digits_are_learned(name: str, least: float) -> None:
    pytest.importorskip("sklearn")
    model = build(name)
    trainer = Trainer(model, data=model.dataset(["digits"]), memory_budget="engine:3MiB", **model.training)
    result = trainer.fit()
    summary = result.summary
    assert summary["validation_accuracy"] >= least
    assert summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"] <= 3 * 2**20
    # Of all examples that were held out, those too that fill no batch.
    data = trainer.data
    count = data.size("validation")
    x, labels = np.empty((count, *data.inputs.shape), np.float32), np.empty(count, np.int32)
    data.load("validation", range(count), x, labels)
    found = predict(trainer.model.chain, result.parameters, x).argmax(axis=1)
    assert (found == labels).mean() >= least
    assert count == 359


def test_noise_is_taken_from_digits() -> None:
    pytest.importorskip("sklearn")
    model = build("unet")
    options = {**model.training, "steps": 80, "batch": 16, "shards": 2}
    summary = Trainer(model, data=model.dataset(["digits"]), validation_examples=128, **options).fit().summary
    assert summary["validation_accuracy"] is None
    assert summary["validation_loss"] < 0.5 * 0.25  # the noise has variance 0.25
