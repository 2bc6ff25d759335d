"""Nodes that have unlike memory: each node's workers have a budget and a plan of their own, and all have the same bits."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpointing import InfeasibleBudget
from checkpointing.budgets import ProcessBudget
from distributed import Trainer
from distributed.collectives.spread import Spread
from distributed.groups import RayGroup
from distributed.records import summary_of
from distributed.worker_sizes import KEPT_BY_CALLS_NBYTES
from framework import GELU, Chain, CrossEntropy, Linear
from framework.data import clusters

MIB = 2**20
#: What every process takes before its first array.
BASELINE = 100 * MIB
#: What is taken besides the engine: a leader of several nodes makes calls.
TAKEN = BASELINE + KEPT_BY_CALLS_NBYTES


class Placed(RayGroup):
    """Workers on nodes that give such budgets, by rank."""

    def __init__(self, nodes: list[int], *nbytes: int) -> None:
        self.spread = Spread.of(nodes)
        self.budgets = tuple(
            ProcessBudget("auto", size, f"on 10.0.0.{node}: {size} are free")
            for node, size in zip(nodes, nbytes, strict=True)
        )

    def measure(self, *how: Any) -> Callable[[], list[int]]:
        return lambda: [BASELINE] * len(self.budgets)


def planned(group: Placed, **options: Any) -> Trainer:
    """A run with a GELU after the other, of 1 MiB each."""
    chain = Chain(Linear(1024), *(GELU() for _ in range(12)), Linear(10))
    run: dict[str, Any] = {"batch": 1024, "shards": 4, "steps": 1, "memory_budget": "auto", "placement": "spread"}
    workers = len(group.budgets)
    trainer = Trainer(chain, CrossEntropy(), data=clusters(10240, 8, 10), workers=workers, **{**run, **options})
    trainer.planning.measure(group)
    trainer.planning.take_measured()
    return trainer


@pytest.mark.parametrize("options", [{}, {"share_weights": "yes"}])
def test_each_node_is_planned_within_its_own_budget(options: dict[str, Any]) -> None:
    tight, loose = TAKEN + 16 * MIB, TAKEN + 60 * MIB
    planning = planned(Placed([0, 0, 1], tight, tight, loose), **options).planning
    assert [share.ranks for share in planning.shares] == [(0, 1), (2,)]
    small, large = planning.shares
    assert small.limit is not None and large.limit is not None and small.limit < large.limit == planning.budget
    for rank, share in ((0, small), (1, small), (2, large)):
        assert planning.limit_of(rank) == share.limit
        for plans, own in ((planning.plans.train, share.plans.train), (planning.plans.evaluate, share.plans.evaluate)):
            assert plans[rank] is own[rank]
            assert plans[rank].rank == rank and plans[rank].peak <= share.limit
        assert planning.predicted_process_of(rank) <= (tight if share is small else loose)
    # The node with more room computes nothing twice; the other one does, and could not have had that plan.
    forwards = [sum(type(each).__name__ == "Forward" for each in plan.operations) for plan in planning.plans.train]
    assert large.plans.policy.name == "store-all" and small.plans.policy.name != "store-all"
    assert forwards[1] > forwards[2] and large.peak > small.limit
    alike = planned(Placed([0, 0, 1], tight, tight, tight), **options).planning
    assert alike.plans.train[:2] == planning.plans.train[:2]  # another node's budget changes nothing here


def test_what_differs_is_told_of_each() -> None:
    tight, loose = TAKEN + 14 * MIB, TAKEN + 60 * MIB
    trainer = planned(Placed([0, 1], tight, loose))
    name = trainer.planning.shares[0].plans.policy.name
    assert trainer.planning.policy == f"{name} on rank 0, store-all on rank 1"
    report = {"ledger_peak_bytes": 0, "process": {"peak_rss": 0}, "parameters_sha256": "", "optimizer_sha256": ""}
    row = {"step_seconds": 1.0, "rss_peak_bytes": 0, "loss": 0.0, "validation_loss": 0.0}
    told = summary_of(trainer, [row], [report, report])
    assert told["policy"] == trainer.planning.policy
    first, second = told["shares"]
    assert first["ranks"] == [0] and first["budget_bytes"] == tight and "10.0.0.0" in first["reason"]
    assert second["ranks"] == [1] and second["policy"] == "store-all"
    assert second["predicted_peak_bytes"] == trainer.plans.peak > first["predicted_peak_bytes"]
    assert told["budget_bytes"] == loose and told["engine_budget_bytes"] == second["engine_budget_bytes"]
    assert summary_of(planned(Placed([0, 1], *[loose] * 2)), [row], [report, report])["policy"] == "store-all"


def test_the_program_tells_budget_and_policy_of_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    tight, loose = TAKEN + 14 * MIB, TAKEN + 60 * MIB
    trainer = planned(Placed([0, 1], tight, loose))
    importlib.import_module("_train_telling").introduce(trainer, "chain")
    told = " ".join(capsys.readouterr().out.split())
    for share, nbytes in zip(trainer.planning.shares, (tight, loose), strict=True):
        (rank,) = share.ranks
        assert f"134.0 MiB (on 10.0.0.0: {tight} are free) on rank 0," in told
        assert f"(on 10.0.0.{rank}: {nbytes} are free) on rank {rank}," in told
        assert f"policy {share.plans.policy.name} on rank {rank}, predicted peak" in told
        assert f"({share.peak:,} bytes)" in told


def test_a_node_that_is_too_small_is_named() -> None:
    with pytest.raises(InfeasibleBudget, match=r"on 10\.0\.0\.1: .* too small for the whole process"):
        planned(Placed([0, 1], TAKEN + 60 * MIB, TAKEN + 8 * MIB))
    with pytest.raises(InfeasibleBudget, match=r"on 10\.0\.0\.0: .* are left for the engine"):
        planned(Placed([0, 1], TAKEN + 14 * MIB, TAKEN + 60 * MIB), policy="store-all")


@pytest.mark.memory
def test_a_cluster_of_unequal_nodes_gives_the_bits_of_one_process() -> None:
    """In a process of its own, which is connected to no other cluster."""
    words = [sys.executable, "-m", "tests.distributed.unequal_cluster"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("auto", "fixed", "shared"):
        for key in ("parameters_sha256", "optimizer_sha256", "losses_sha256", "validation_loss"):
            assert found[name][key] == found["alone"][key], (name, key)
        assert found[name]["nodes"] == "1+1"
        for rank in found[name]["ranks"]:
            assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]
    small, large = sorted(found["auto"]["shares"], key=lambda share: share["budget_bytes"])
    assert small["budget_bytes"] == 250 * MIB and 250 * MIB < large["budget_bytes"] <= 1000 * MIB
    assert large["policy"] == "store-all" != small["policy"]
    peaks = [rank["process"]["peak_rss"] for rank in found["auto"]["ranks"]]
    assert peaks[small["ranks"][0]] <= 250 * MIB < peaks[large["ranks"][0]]
    assert len({share["policy"] for share in found["shared"]["shares"]}) == 2
    assert found["fixed"]["shares"] is None and found["fixed"]["policy"] == small["policy"]
    # What was set aside while the runs went on, by node, and after them.
    unlike = sorted([250 * MIB, large["budget_bytes"]])
    assert found["set aside"] == {"auto": unlike, "fixed": [250 * MIB] * 2, "shared": unlike}
    assert found["left"] == [0, 0]
