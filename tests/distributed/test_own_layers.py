"""The Trainer trains layers of one's own."""

from __future__ import annotations

import pytest

from checkpointing import InfeasibleBudget
from checkpointing.budgets import ProcessUse
from distributed import Trainer
from distributed.run_planning import RunPlanning
from framework import GELU, Chain, CrossEntropy, Linear
from framework.data import clusters
from tests.checkpointing.test_own_layers import Noise, Swish
from tests.framework.test_own_layers import Affine


def test_a_model_of_parameters_and_apply_alone_trains_and_its_peak_is_as_predicted() -> None:
    chain = Chain(Affine(32), Swish(), Noise(), Affine(10))
    data = clusters(examples=2048, features=16, classes=10)
    runs = []
    for policy in ("store-all", "every-k:1"):
        trainer = Trainer(
            chain, CrossEntropy(), data=data, workers=0, batch=32, steps=100, learning_rate=1e-2, policy=policy, verify_memory=True
        )  # fmt: skip
        summary = trainer.fit().summary
        assert summary["ledger_peak_bytes"] == trainer.plans.peak
        runs.append((summary["validation_loss"], summary["parameters_sha256"]))
    assert runs[0] == runs[1]
    assert runs[0][0] < 1.5  # ln 10 = 2.3 at chance


def test_the_block_and_what_a_layer_takes_besides_it_fit_a_budget_of_the_whole_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peak of the arrays lies at the end of the forward, where the layer that takes the heap is long done."""
    chain = Chain(Linear(512), Swish(), *(layer for _ in range(6) for layer in (Linear(512), GELU())), Linear(4))
    data = clusters(examples=4096, features=16, classes=4)
    process = ProcessUse(baseline=0, reserve=0)
    monkeypatch.setattr(RunPlanning, "take_measured", lambda planning: setattr(planning, "process", process))

    def planned(memory: str, budget: int) -> Trainer:
        trainer = Trainer(
            chain, CrossEntropy(), data=data, workers=0, batch=384, shards=1, steps=1, memory=memory, memory_budget=str(budget)
        )  # fmt: skip
        try:
            trainer.start()
        finally:
            trainer.close()
        return trainer

    plenty = planned("block", 2**30)
    budget = process.with_engine(plenty.plans.peak)
    assert plenty.planning.reserved_nbytes > budget  # although the peak alone fits
    assert planned("heap", budget).plans.policy.name == "store-all"
    fitting = planned("block", budget)
    assert fitting.plans.policy.name != "store-all"
    assert fitting.planning.reserved_nbytes <= budget
    with pytest.raises(InfeasibleBudget) as refused:
        planned("block", budget // 2)
    assert planned("block", refused.value.smallest).planning.reserved_nbytes <= refused.value.smallest
