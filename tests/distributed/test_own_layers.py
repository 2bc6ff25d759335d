"""The Trainer trains layers of one's own."""

from __future__ import annotations

from distributed import Trainer
from framework import Chain, CrossEntropy
from framework.data import clusters
from tests.checkpointing.test_own_layers import Noise, Swish
from tests.framework.test_own_layers import Affine


def test_a_model_of_parameters_and_apply_alone_trains_and_its_peak_is_as_predicted() -> None:
    chain = Chain(Affine(32), Swish(), Noise(), Affine(10))
    data = clusters(examples=2048, features=16, classes=10)
    runs = []
    for policy in ("store-all", "every-k:1"):
        trainer = Trainer(
            chain, CrossEntropy(), data=data, workers=0, batch=32, steps=100, learning_rate=1e-2, policy=policy
        )  # fmt: skip
        summary = trainer.fit().summary
        assert summary["ledger_peak_bytes"] == trainer.plans.peak
        runs.append((summary["validation_loss"], summary["parameters_sha256"]))
    assert runs[0] == runs[1]
    assert runs[0][0] < 1.5  # ln 10 = 2.3 at chance
