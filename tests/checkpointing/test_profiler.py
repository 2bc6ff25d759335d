"""Measurements in a fresh process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from checkpointing import parse_policy, plan_run
from checkpointing.plan import Plan
from checkpointing.profiler import Subject, measure_plan
from checkpointing.report.timelines import predicted

MINE = """
from dataclasses import dataclass
from framework import Chain, CrossEntropy, Layer, Linear, Model
from framework.data import clusters

@dataclass(frozen=True)
class Fragile(Layer):
    def apply(self, params, x, context):
        if context.training and {breaks}:
            raise RuntimeError("it broke")
        return x * 2

    def footprint(self, x, training=True):
        from framework.layers import Footprint
        return Footprint(output=x, needs_input=(True,), forward_heap=10**6, backward_heap=10**6)

def build(dtype="float32"):
    return Model("mine", Chain(Linear(7), Fragile(), Linear(10)), CrossEntropy(), lambda paths: clusters(64, 5, 10))
"""


def planned(subject: Subject, policy: str) -> Plan:
    return plan_run(subject.costs(), policy=parse_policy(policy), shards=subject.shards).train[0]


def test_a_plan_is_measured_in_a_fresh_process() -> None:
    subject = Subject("byte-gpt-tiny", batch=2, shards=2)
    plan = planned(subject, "every-k:1")
    profile = measure_plan(subject, plan, steps=1)
    assert profile.failure == ""
    assert profile.ledger_peak == plan.peak > 0
    assert profile.timeline is not None
    told = predicted(plan)
    assert replace(profile.timeline, seconds=told.seconds) == told
    assert sum(profile.timeline.seconds) > 0
    assert profile.step == 2
    assert profile.step_seconds > 0
    process = profile.process
    assert process.engine + process.interpreter + process.ray + process.unexplained == process.rss
    # Every page of parameters, gradients and state is touched, so the process holds about what the ledger counts.
    assert process.rss - process.interpreter > 0.8 * profile.ledger_peak
    assert process.predicted is not None
    assert process.predicted > process.interpreter + profile.ledger_peak


def test_a_step_that_fails_is_told_with_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fragile.py").write_text(MINE.format(breaks="True"))
    monkeypatch.syspath_prepend(str(tmp_path))
    subject = Subject("fragile:build", batch=4)
    plan = planned(subject, "store-all")
    profile = measure_plan(subject, plan, steps=1)
    assert profile.failure.startswith("RuntimeError: it broke\nin operation 2 of the step, forward 1, shard 0")
    assert profile.timeline is not None
    assert profile.timeline.labels == plan.labels[:3]
    assert (profile.step, profile.step_seconds, profile.process.by_step) == (0, 0.0, ())


def test_a_process_that_ends_is_told() -> None:
    subject = Subject("mlp-small", batch=16)
    plan = planned(subject, "store-all")
    with pytest.raises(RuntimeError, match=r"measuring gpt-9 under store-all failed: ValueError: unknown model"):
        measure_plan(replace(subject, model="gpt-9"), plan)
