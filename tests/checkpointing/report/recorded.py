"""Runs that are recorded, and their reports."""

from __future__ import annotations

from typing import Any

from checkpointing.plan import Plan
from checkpointing.report import build
from checkpointing.report.data import Report
from framework.memory import Ledger, Recording
from tests.checkpointing.cases import Case


def recorded(case: Case, plan: Plan, block: bool = False) -> Recording:
    """What the ledger records of the second step of a run."""
    ledger = Ledger()
    engine = case.engine(ledger, block)
    engine.train_step(plan, case.loader(plan.shards), 0, 1e-2)
    ledger.start_recording()
    engine.train_step(plan, case.loader(plan.shards), 1, 1e-2)
    engine.close()
    return ledger.stop_recording()


def recorded_beside(case: Case, plan: Plan, nbytes: int) -> Recording:
    """What the ledger records of the first step of a run while something that no plan knows holds so many bytes of data."""
    ledger = Ledger()
    engine, beside = case.engine(ledger), ledger.count(nbytes, "data", "beside")
    ledger.start_recording()
    engine.train_step(plan, case.loader(plan.shards), 0, 1e-2)
    recording = ledger.stop_recording()
    del beside
    return recording


def report_of(case: Case, policy: str, shards: int = 1, **more: Any) -> Report:
    """The report of a step that was run."""
    plan = case.plans(policy, shards).train[0]
    rank = build.rank_of(plan, recorded(case, plan), step=1)
    return build.report(case.name, [plan], case.chain.layout(case.specs(shards)[0]), ranks=[rank], **more)
