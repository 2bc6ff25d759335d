"""Logs of a run by rank, and metrics for Ray."""

from __future__ import annotations

import json
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from distributed import RunFolder, Trainer, WorkerLost
from distributed.groups import RayGroup
from distributed.logs import RankLogs
from distributed.worker import Worker
from distributed.worker_actor import WorkerActor
from framework import Chain, CrossEntropy, Linear
from framework.data import clusters


def small(workers: int, chain: Chain | None = None, **options: Any) -> Trainer:
    given = {"batch": 8, "shards": 4, "steps": 3, "validation_examples": 8, **options}
    return Trainer(chain or Chain(Linear(10)), CrossEntropy(), data=clusters(128, 8, 10), workers=workers, **given)


@dataclass(frozen=True)
class Complaining(Linear):
    """Warns in its forward, and fails in it from a step on."""

    fails: bool = False

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        if context.training:
            warnings.warn("I would rather not", stacklevel=1)
            if self.fails:
                raise ArithmeticError("I will not")
        return super().forward(params, x, context)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_rank_writes_a_log_of_its_own_with_start_and_end(ray_cluster: None, tmp_path: Path, workers: int) -> None:
    trainer = small(workers, run_folder=RunFolder(tmp_path / "run"), policy="every-k:1")
    summary = trainer.fit().summary
    logs = tmp_path / "run" / "logs"
    ranks = range(max(1, workers))
    assert sorted(path.name for path in logs.iterdir()) == ["driver.log", *(f"rank-{rank}.log" for rank in ranks)]
    for rank, report in enumerate(summary["ranks"]):
        lines = (logs / f"rank-{rank}.log").read_text().splitlines()
        start, more, end = (line for line in lines if "change cores" not in line)
        assert f" INFO start: rank {rank} of {len(ranks)}, process " in start and f"numpy {np.__version__}" in start
        assert (f"process {os.getpid()} on" in start) == (workers == 0)
        assert more.endswith(
            f"run run; policy every-k:1; shards {report['shards']}; predicted peak {report['predicted_peak_bytes']:,} bytes"
        )
        assert end.endswith(
            f"end: peak {report['ledger_peak_bytes']:,} bytes, parameters {report['parameters_sha256']}"
        )
    lines = (logs / "driver.log").read_text().splitlines()
    assert f"INFO start: process {os.getpid()} on" in lines[0] and '"policy": "every-k:1"' in lines[1]
    assert f"predicted peak {trainer.plans.peak:,} bytes in each worker, limit none" in lines[2]
    assert f"step 2: loss {summary['loss_last']:g}, validation loss {summary['validation_loss']:g}" in lines[3]
    assert len(lines) == 5 and lines[4].endswith("INFO end")


def test_an_error_in_a_worker_is_in_its_log_with_its_traceback_and_names_the_log(
    ray_cluster: None, tmp_path: Path
) -> None:
    chain = Chain(Complaining(10, fails=True))
    with pytest.raises(ArithmeticError, match="I will not") as caught:
        small(2, chain, run_folder=RunFolder(tmp_path / "run")).fit()
    logs = (tmp_path / "run" / "logs").resolve()
    assert any(f"failed; its log is {logs / 'rank-'}" in note for note in caught.value.__notes__)
    told = "".join((logs / f"rank-{rank}.log").read_text() for rank in range(2))
    assert "ERROR failed: I will not\nTraceback (most recent call last):\n" in told
    assert "WARNING" in told and "UserWarning: I would rather not" in told
    assert "ERROR ended by ArithmeticError\n" in (logs / "driver.log").read_text()


def test_a_worker_that_is_killed_is_reported_with_its_log(ray_cluster: None, tmp_path: Path) -> None:
    trainer = small(2, run_folder=RunFolder(tmp_path / "run"), steps=500)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 1:
            start = (tmp_path / "run" / "logs" / "rank-1.log").read_text()
            os.kill(int(start.partition("process ")[2].split()[0]), signal.SIGKILL)

    with pytest.raises(WorkerLost, match=r"worker 1 of 2 died: .*; its log is /.*/run/logs/rank-1\.log"):
        trainer.fit(kill)


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").mkdir()
    worker = Worker(small(0)._task(0))
    try:
        reason = worker.begin("run", tmp_path)
        assert reason is not None and "Is a directory" in reason
        assert np.isfinite(worker.step(0)["loss"])
        kept = worker.kept_log()
        assert " INFO start: rank 0 of 1, process " in kept
        sha256 = worker.finish()["parameters_sha256"]
        assert worker.kept_log().startswith(kept) and worker.kept_log().endswith(f"parameters {sha256}\n")
    finally:
        worker.close()


def test_a_folder_of_the_same_name_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    worker = Worker(small(0)._task(0))
    try:
        reason = worker.begin("run", logs, "mark")
        assert reason is not None and f"{logs} on " in reason
    finally:
        worker.close()
    assert not logs.exists()  # nor made where nobody would look for it


@pytest.fixture
def rank_1_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the run begins, rank 1's log cannot be made, as on a node that does not see the folder."""
    begin = RayGroup.begin

    def blocked(group: RayGroup, run: str, logs: Path | None, mark: str | None = None) -> list[str | None]:
        assert logs is not None
        (logs / "rank-1.log").mkdir()
        faults = begin(group, run, logs, mark)
        (logs / "rank-1.log").rmdir()
        return faults

    monkeypatch.setattr(RayGroup, "begin", blocked)


def test_the_log_of_a_rank_that_does_not_see_the_folder_gets_there(
    ray_cluster: None, tmp_path: Path, rank_1_cannot_write: None
) -> None:
    logs = tmp_path / "run" / "logs"
    summary = small(2, run_folder=RunFolder(tmp_path / "run")).fit().summary
    assert sorted(path.name for path in logs.iterdir()) == ["driver.log", "rank-0.log", "rank-1.log"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "rank-metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for rank, report in enumerate(summary["ranks"]):
        assert rows[-1]["ranks"][rank]["peak_bytes"] == report["ledger_peak_bytes"]
        assert 0 < rows[-1]["ranks"][rank]["reduce_seconds"] <= rows[-1]["ranks"][rank]["step_seconds"]
    start, _, end = (logs / "rank-1.log").read_text().splitlines()
    assert " INFO start: rank 1 of 2, process " in start and end.endswith(summary["parameters_sha256"])
    told = (logs / "driver.log").read_text()
    assert "WARNING rank 1 keeps its log until it is asked for it at the end: " in told and "Is a directory" in told
    assert "is lost" not in told


def test_a_group_that_cannot_be_asked_is_no_reason_to_fail(tmp_path: Path) -> None:
    def ask(method: str) -> list[str | None]:
        raise ConnectionError("the head is gone")

    logs, group = RankLogs(), SimpleNamespace(begin=lambda run, folder, mark: [None, "no such folder"], ask=ask)
    logs.begin(group, "run", tmp_path / "logs")  # type: ignore[arg-type]
    assert [*(tmp_path / "logs").iterdir()] == []  # the mark is gone
    logs.gather(group)  # type: ignore[arg-type]
    assert logs.lost == {1: "asking for it failed: the head is gone"}
    logs.gather(group)  # type: ignore[arg-type]  # once is enough


@pytest.mark.memory
def test_the_kept_log_of_a_rank_that_fails_gets_there_and_that_of_one_that_is_killed_is_missed(
    ray_cluster: None, tmp_path: Path, rank_1_cannot_write: None
) -> None:
    with pytest.raises(ArithmeticError, match="I will not") as caught:
        small(2, Chain(Complaining(10, fails=True)), run_folder=RunFolder(tmp_path / "failed")).fit()
    logs = (tmp_path / "failed" / "logs").resolve()
    told = (logs / "rank-1.log").read_text()
    assert "ERROR failed: " in told and "UserWarning: I would rather not" in told
    assert any(f"failed; its log is {logs / 'rank-'}" in note for note in caught.value.__notes__)
    trainer = small(2, run_folder=RunFolder(tmp_path / "killed"), steps=500)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 1:
            assert isinstance(trainer._group, RayGroup)
            os.kill(ray.get(trainer._group._actors[1].pid.remote()), signal.SIGKILL)

    with pytest.raises(WorkerLost, match="worker 1 of 2 died") as lost:
        trainer.fit(kill)
    assert "its log is" not in str(lost.value)
    logs = tmp_path / "killed" / "logs"
    assert not (logs / "rank-1.log").exists() and "start: rank 0" in (logs / "rank-0.log").read_text()
    assert "WARNING the log of rank 1 is lost: it did not answer" in (logs / "driver.log").read_text()


def test_two_runs_in_one_process_write_into_their_own_logs_and_to_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = small(0, run_folder=RunFolder(tmp_path / "outer"))
    outer.fit(lambda row: row["step"] or (small(0, run_folder=RunFolder(tmp_path / "inner")).fit() and None))
    for name in ("outer", "inner"):
        told = (tmp_path / name / "logs" / "rank-0.log").read_text()
        assert told.count("start: ") == told.count("end: ") == 1 and f"run {name};" in told
    assert capsys.readouterr().err == ""


def test_metrics_for_ray_are_those_of_each_step_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own classes take them; what hands them to Ray's exporter, which is not in its smallest installation, is another here."""
    recorded: list[tuple[str, str, dict[str, str], float]] = []
    boundaries: list[float] = []

    class Exported:
        kind = ""

        def __init__(self, name: str, told: str, *more: Any) -> None:
            self.name, keys = name, more[-1]
            assert told and keys == ("run", "rank")
            if self.kind == "Histogram":
                boundaries[:] = more[0]

        def record(self, value: float, tags: dict[str, str]) -> None:
            recorded.append((self.kind, self.name, tags, value))

    import ray.util.metrics

    for kind in ("Gauge", "Histogram", "Count"):
        assert hasattr(ray.util.metrics, f"Cython{kind}")
        monkeypatch.setattr(ray.util.metrics, f"Cython{kind}", type(kind, (Exported,), {"kind": kind}))
    monkeypatch.setenv("RAY_enable_open_telemetry", "1")
    actor = WorkerActor()
    actor.start(small(0)._task(0))
    try:
        assert actor.begin("my run", None) is None
        row = actor.step(0)
    finally:
        actor.close()
    kinds = {
        "live_bytes": "Gauge", "peak_bytes": "Gauge", "rss_peak_bytes": "Gauge", "step_seconds": "Histogram",
        "reduce_seconds": "Histogram", "targets": "Count",
    }  # fmt: skip
    tags = {"run": "my run", "rank": "0"}
    assert recorded == [(kind, f"retape_{name}", tags, row[name]) for name, kind in kinds.items()]
    assert row["targets"] == 8
    assert boundaries[0] < row["step_seconds"] < boundaries[-1]


def test_the_seconds_of_the_all_reduce_are_part_of_a_step_and_none_without_workers(ray_cluster: None) -> None:
    alone = small(0).fit().history
    assert [row["reduce_seconds"] for row in alone] == [0.0] * 3
    shared = small(2).fit().history
    assert all(0 < row["reduce_seconds"] <= row["step_seconds"] for row in shared)
