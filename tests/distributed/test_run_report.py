"""The memory report of a run: what its workers recorded is what was predicted, and it decides nothing."""

from __future__ import annotations

import os
import signal
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpointing import Engine, Executor, Plan, run_plans
from checkpointing.report import json_file, recording
from checkpointing.report.data import Report
from distributed import RunFolder, Trainer, WorkerLost
from distributed import run_report as run_report_module
from framework import GELU, AdamW, Chain, CrossEntropy, Ledger, Linear, Spec, build
from framework.data import clusters
from tests.distributed.saved_runs import RUN, hashes, stopped
from tests.distributed.saved_runs import trainer as saved_trainer


@dataclass(frozen=True)
class Failing(Linear):
    """Fails in its backward at a call of some number: in step s of 4 shards at 4 s and after."""

    at: int = 0

    def vjp(self, *arguments: Any) -> Any:
        CALLS.append(self.at)
        if len(CALLS) > self.at:
            raise ArithmeticError("I will not")
        return super().vjp(*arguments)


#: Of `Failing.vjp`, in this process.
CALLS: list[int] = []


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    """A Trainer of a small run, with a report."""
    return saved_trainer(folder, **{"report": True, **options})


def deep(folder: Path, **options: Any) -> Trainer:
    """A Trainer whose activations are worth a budget."""
    layers = [layer for _ in range(6) for layer in (Linear(16), GELU())]
    given = {**RUN, "batch": 1024, "validation_examples": 1024, **options}
    data = clusters(16384, 8, 10)
    return Trainer(Chain(*layers, Linear(10)), CrossEntropy(), data=data, run_folder=RunFolder(folder), **given)


def report_in(folder: Path) -> Report:
    assert (folder / "report.html").stat().st_size > 10_000
    return json_file.load(folder / "report.json")


def require_as_predicted(report: Report, step: int) -> None:
    """Checks that each worker recorded a whole step, and that it is the plan's in all but times."""
    for rank in report.ranks:
        assert rank.step == step and rank.measured is not None
        seen, told = rank.measured, rank.predicted
        assert (seen.labels, seen.phases, seen.layers, seen.live) == (told.labels, told.phases, told.layers, told.live)
        assert (seen.inside, seen.peak) == (told.inside, told.peak)
        assert all(seconds > 0 for seconds in seen.seconds)
        assert _by_name(seen) == _by_name(told)
        assert sum(nbytes for _, nbytes in seen.at_peak) == seen.inside[seen.peak]


def _by_name(timeline: Any) -> Any:
    """What each holder has before and gains at each operation, whatever their order."""
    names = timeline.holders
    changes = [{names[holder]: nbytes for holder, nbytes in each} for each in timeline.changes]
    return dict(zip(names, timeline.before, strict=True)), changes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_report_changes_no_bit_and_each_rank_is_in_it_as_predicted(
    ray_cluster: None, tmp_path: Path, workers: int
) -> None:
    options: dict[str, Any] = {"workers": workers, "steps": 5, "memory_budget": "engine:850000"}
    plain = deep(tmp_path / "plain", report=False, **options).fit()
    assert plain.report is None and not list((tmp_path / "plain").glob("report.*"))
    made = deep(tmp_path / "told", **options)
    result = made.fit()
    assert hashes(result.summary) == hashes(plain.summary)
    assert result.report == made.report == tmp_path / "told" / "report.html"
    report = report_in(tmp_path / "told")
    assert [rank.rank for rank in report.ranks] == [*range(max(1, workers))]
    require_as_predicted(report, step=1)
    assert (report.failure, report.budget, report.policy) == ("", made.budget, made.plans.policy.name)
    chosen = next(row for row in report.policies if row.chosen)
    assert chosen.ledger_peak == chosen.predicted_peak <= (made.budget or 0)
    assert chosen.step_seconds is not None
    assert chosen.rss_peak == max(each["process"]["peak_rss"] for each in result.summary["ranks"])
    assert "store-all" in [row.policy for row in report.policies]
    assert report.frontier and all(point.seconds >= point.bound_seconds for point in report.frontier)
    assert report.configuration["steps"] == 5 and report.machine["cores"] >= 1
    for rank, told in zip(report.ranks, result.summary["ranks"], strict=True):
        process = rank.process
        assert process is not None
        assert process.engine + process.interpreter + process.ray + process.unexplained == process.rss
        assert process.rss == max(process.by_step[-1], told["process"]["peak_rss"])
        assert len(process.by_step) == 5 and list(process.by_step) == sorted(process.by_step)
        assert process.engine >= told["reserved_bytes"]
        assert process.predicted == result.summary["predicted_process_peak_bytes"]
        assert process.interpreter > 2**24
        assert (process.ray > 2**23) == (workers > 0)
        assert process.interpreter + process.ray == made.planning.baselines[rank.rank]


def test_one_step_is_recorded_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    start = Ledger.start_recording

    def counted(self: Ledger) -> None:
        begun.append(self)
        start(self)

    monkeypatch.setattr(Ledger, "start_recording", counted)
    recorded: list[bool] = []
    made = trainer(tmp_path / "run", steps=4)
    made.fit(lambda row: recorded.append(made._group._worker._ledger.timeline is not None))  # type: ignore[union-attr]
    assert len(begun) == 1 and recorded == [False] * 4
    trainer(tmp_path / "none", steps=3, report=False).fit()
    trainer(steps=3).fit()  # without a folder
    assert len(begun) == 1


def test_the_only_step_is_recorded_also_beside_the_witness(tmp_path: Path) -> None:
    trainer(tmp_path / "run", steps=1, verify_memory=True).fit()
    require_as_predicted(report_in(tmp_path / "run"), step=0)


def test_the_report_of_a_resumed_run_is_of_the_process_that_went_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(3, trainer(folder, steps=6))
    report = report_in(folder)
    require_as_predicted(report, step=1)
    assert report.failure.startswith("Stopped: stopped after step 3 of 6")
    trainer(resume=folder, policy="every-k:1").fit()
    report = report_in(folder)
    require_as_predicted(report, step=4)
    assert (report.failure, report.policy) == ("", "every-k:1")
    assert report.ranks[0].process is not None and len(report.ranks[0].process.by_step) == 3


@pytest.mark.parametrize(("calls", "whole"), [(0, None), (6, False), (8, True)])
def test_a_run_that_fails_is_reported_as_far_as_it_came(tmp_path: Path, calls: int, whole: bool | None) -> None:
    CALLS.clear()
    chain = Chain(Linear(16), Failing(10, at=calls))
    options = {**RUN, "validation_examples": 8, "steps": 4}
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ArithmeticError, match="I will not") as caught:
        Trainer(chain, CrossEntropy(), data=clusters(128, 8, 10), run_folder=folder, **options).fit()
    assert f"the memory report is {folder.report}" in caught.value.__notes__
    report = report_in(folder.path)
    assert report.failure.startswith("ArithmeticError: I will not")
    assert "in operation" in report.failure
    (rank,) = report.ranks
    if whole is None:  # nothing was recorded yet
        assert rank.measured is None and rank.step is None and rank.process is None
    elif whole:
        require_as_predicted(report, step=1)
    else:
        assert rank.measured is not None and rank.process is not None
        count = len(rank.measured.labels)
        assert 0 < count < len(rank.predicted.labels)
        assert rank.measured.labels == rank.predicted.labels[:count]
        assert rank.measured.labels[-1] == "backward 1" and rank.measured.live[:-1] == rank.predicted.live[: count - 1]
        assert len(rank.process.by_step) == 1


def test_a_step_that_fails_before_its_first_operation_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Executor.run

    def failing(self: Executor, plan: Plan, job: Any, *more: Any) -> Any:
        if self.ledger.timeline is not None:
            raise OSError("no room for the file of values")
        return run(self, plan, job, *more)

    monkeypatch.setattr(Executor, "run", failing)
    with pytest.raises(OSError, match="no room"):
        trainer(tmp_path / "run").fit()
    report = report_in(tmp_path / "run")
    (rank,) = report.ranks
    assert report.failure.startswith("OSError: no room for the file of values")
    assert rank.measured is not None and rank.measured.labels == () and rank.step == 1
    assert next(row for row in report.policies if row.chosen).ledger_peak is None


@pytest.mark.parametrize("killed_after", [pytest.param(0, marks=pytest.mark.memory), 2])
def test_when_a_worker_dies_what_it_told_before_is_there(ray_cluster: None, tmp_path: Path, killed_after: int) -> None:
    made = trainer(tmp_path / "run", workers=2, steps=4)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == killed_after:
            (process,) = [
                int(line.split("process ")[1].split()[0])
                for line in (tmp_path / "run" / "logs" / "rank-1.log").read_text().splitlines()
                if "start:" in line
            ]
            os.kill(process, signal.SIGKILL)

    with pytest.raises(WorkerLost):
        made.fit(kill)
    report = report_in(tmp_path / "run")
    assert report.failure.startswith("WorkerLost: worker 1 of 2 died")
    assert len(report.ranks) == 2
    if killed_after == 0:
        assert report.ranks[1].measured is None  # predicted alone
    else:
        require_as_predicted(report, step=1)
    assert all(rank.process is not None and len(rank.process.by_step) == killed_after + 1 for rank in report.ranks)


def test_an_interrupted_run_has_a_report(tmp_path: Path) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run").fit(interrupt)
    report = report_in(tmp_path / "run")
    assert report.failure.startswith("KeyboardInterrupt")
    assert report.ranks[0].measured is None


@pytest.mark.parametrize("fault", [ValueError("no page"), KeyboardInterrupt(), MemoryError()])
def test_a_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def page(report: Report) -> str:
        raise fault

    monkeypatch.setitem(sys.modules, "checkpointing.report.html", SimpleNamespace(page=page))
    made = trainer(tmp_path / "run", steps=3)
    with pytest.warns(RuntimeWarning, match="memory report could not be written") as told:
        result = made.fit()
    assert type(fault).__name__ in str(told[0].message)
    assert result.report is None and result.summary["steps"] == 3
    assert (tmp_path / "run" / "weights.safetensors").exists() and not (tmp_path / "run" / "report.html").exists()
    log = (tmp_path / "run" / "logs" / "driver.log").read_text().splitlines()
    assert "WARNING the run's memory report could not be written" in log[-2] and log[-1].endswith(" INFO end")


def test_where_the_budget_of_the_process_has_no_room_the_page_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report_module, "_ROOM", 2**62)
    with pytest.warns(RuntimeWarning, match=r"report.html was not drawn.*report.json has all"):
        result = trainer(tmp_path / "run", steps=3, memory_budget="8GiB").fit()
    assert result.report is None
    require_as_predicted(json_file.load(tmp_path / "run" / "report.json"), step=1)
    monkeypatch.undo()
    assert trainer(tmp_path / "other", steps=3, memory_budget="8GiB").fit().report is not None


def test_an_overwritten_run_leaves_no_report_of_its_own(tmp_path: Path) -> None:
    trainer(tmp_path / "run", steps=2).fit()
    folder = RunFolder(tmp_path / "run", force=True)
    folder.open()
    folder.close()
    assert not list((tmp_path / "run").glob("report.*"))


def test_a_recording_takes_little_memory() -> None:
    """In Python's objects: less than 0.3 KiB an operation while it is made, 0.5 KiB as a timeline."""
    model = build("byte-gpt-tiny")
    x = Spec.of((1, 32), "uint8")
    plan = run_plans(model.chain, model.loss, x, x, AdamW(), shards=4, validate=False).train[0]
    ledger = Ledger()
    engine = Engine(model.chain, model.loss, model.chain.layout(x), AdamW(), ledger=ledger)

    def load(shard: int, into_x: Any, into_targets: Any) -> None:
        into_x[...] = into_targets[...] = shard

    engine.train_step(plan, load, 0, 1e-3)  # what is looked up once
    tracemalloc.start()
    try:
        recording.start(ledger, plan)
        before = tracemalloc.get_traced_memory()[0]
        engine.train_step(plan, load, 1, 1e-3)
        assert tracemalloc.get_traced_memory()[0] - before < 0.3 * 1024 * len(plan.operations)
        timeline = recording.stop(ledger, plan)
        assert tracemalloc.get_traced_memory()[0] - before < 0.5 * 1024 * len(plan.operations)
    finally:
        tracemalloc.stop()
    assert len(timeline.labels) == len(plan.operations) > 700
