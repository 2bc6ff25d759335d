"""What is read from a run's folder while another process writes to it, and of runs that ended in each way."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from distributed import RunFolder
from distributed.options import TrainingOptions
from distributed.run_state import CURVE, RunState, Tail, WatchedRun
from framework import ArrayDataset
from framework.data import clusters
from tests.distributed.saved_runs import stopped, trainer

#: No process has such a number.
NOBODY = 2**30


def state(folder: Path) -> RunState:
    return WatchedRun(folder).state()


def folder_of(path: Path, process: int = os.getpid(), node: str = platform.node(), **options: Any) -> Path:
    """A run folder as a process writes it that has just begun."""
    (path / "logs").mkdir(parents=True)
    given = TrainingOptions(**{"steps": 10, **options}).to_json()
    (path / "config.json").write_text(json.dumps({"model": "a model", "options": given}))
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    (path / "logs" / "driver.log").write_text(
        f"{started},123 INFO start: process {process} on {node}; python 3.12\n"
        f"{started},123 INFO policy budget; predicted peak 1,000 bytes in each worker, limit 1,024 bytes\n"
    )
    return path


def write(path: Path, text: str, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.write(text)


def row(step: int, loss: float = 1.0, **more: Any) -> str:
    usual = {"live_bytes": 7, "peak_bytes": 9, "rss_peak_bytes": 99, "tokens_per_second": 50.0, "step_seconds": 2.0}
    return json.dumps({"step": step, "loss": loss, **usual, **more}) + "\n"


def test_a_finished_run_has_its_numbers(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", memory_budget="engine:1MiB", snapshot_every=20)
    result = made.fit()
    found = state(tmp_path / "run")
    assert (found.status, found.over, found.failure) == ("finished", True, "")
    assert (found.step, found.steps, found.model) == (30, 30, "chain")
    assert found.loss == result.history[-1]["loss"]
    assert found.losses == tuple(each["loss"] for each in result.history)
    assert (found.validation_step, found.validation_loss) == (30, result.summary["validation_loss"])
    assert found.validation_accuracy == result.summary["validation_accuracy"]
    assert found.peak_bytes == result.history[-1]["peak_bytes"]
    assert (found.budget_bytes, found.process_budget_bytes) == (2**20, None)
    assert found.eta_seconds is None
    assert [snapshot.step for snapshot in found.snapshots] == [20]
    (rank,) = found.ranks
    assert (rank.rank, rank.state, rank.process, rank.node) == (0, "ended", os.getpid(), platform.node())
    assert json.loads(json.dumps(found.to_json()))["losses"] == list(found.losses)


def test_a_stopped_run_says_so_and_a_resumed_one_is_read_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(12, trainer(folder))
    watched = WatchedRun(folder)
    found = watched.state()
    assert (found.status, found.step, found.resumed) == ("stopped", 12, 0)
    assert found.failure.startswith("stopped after step 12 of 30")
    write(folder / "metrics.jsonl", row(12))  # of a step that no snapshot has
    assert watched.state().step == 13
    trainer(resume=folder, memory_budget="engine:2MiB").fit()
    found = watched.state()
    assert (found.status, found.step, found.resumed, found.budget_bytes) == ("finished", 30, 1, 2 * 2**20)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    class Broken(ArrayDataset):
        def load(self, split: str, indices: Any, x: Any, targets: Any) -> None:
            raise OSError("the disk is gone\n  and with it: the data")

    made = clusters(128, 8, 10)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer(tmp_path / "run", data=Broken(made.x, made.y)).fit()
    found = state(tmp_path / "run")
    assert (found.status, found.step, found.loss) == ("failed", 0, None)
    assert found.failure.startswith("the disk is gone\n  and with it: the data")
    assert found.ranks[0].state == "failed"


def test_an_interrupted_run_is_no_failed_one(tmp_path: Path) -> None:
    def interrupt(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run").fit(interrupt)
    assert state(tmp_path / "run").status == "interrupted"


def test_a_run_that_goes_on_is_followed_line_by_line(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", workers=2)
    watched, metrics = WatchedRun(folder), tmp_path / "run" / "metrics.jsonl"
    found = watched.state()
    assert (found.status, found.step, found.loss, found.losses) == ("running", 0, None, ())
    assert [rank.state for rank in found.ranks] == ["no log", "no log"]
    write(metrics, row(0, 4.0) + row(1, 2.0)[:20])
    assert watched.state().step == 1
    write(metrics, row(1, 2.0)[20:])
    found = watched.state()
    assert (found.step, found.loss, found.losses) == (2, 2.0, (4.0, 2.0))
    assert (found.step_seconds, found.tokens_per_second, found.eta_seconds) == (2.0, 50.0, 16.0)
    assert (found.live_bytes, found.peak_bytes, found.budget_bytes, found.rss_peak_bytes) == (7, 9, 1024, 99)
    write(metrics, "\0\0\0 no line\n[]\n" + row(2, validation_loss=3.0))
    found = watched.state()
    assert (found.step, found.validation_step, found.validation_loss, found.validation_accuracy) == (3, 3, 3.0, None)
    write(metrics, row(0, 8.0), "w")  # cut back, as by a run that was resumed
    assert watched.state().losses == (8.0,)
    write(folder / "logs" / "rank-1.log", "2026-01-01 00:00:00,000 WARNING cut\n2026-01-01 00:00:00,000 ER")
    assert [rank.warnings for rank in watched.state().ranks] == [0, 1]


def test_a_process_that_is_no_more_is_gone_and_one_elsewhere_may_be_running(tmp_path: Path) -> None:
    assert state(folder_of(tmp_path / "here", NOBODY)).status == "gone"
    assert state(folder_of(tmp_path / "there", NOBODY, "another machine")).status == "running"
    (tmp_path / "here" / "summary.json").write_text("{}")  # it had done all before
    assert state(tmp_path / "here").status == "finished"


def test_a_run_without_a_log_is_starting(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", memory_budget="150MiB")
    (folder / "logs" / "driver.log").unlink()
    found = state(folder)
    assert (found.status, found.over, found.process_budget_bytes) == ("starting", False, 150 * 2**20)


def test_a_worker_that_died_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", workers=2)
    begun = "2026-01-01 00:00:00,000 INFO start: rank {} of 2, process 1 on elsewhere; python 3.12\n"
    for rank in range(2):
        write(folder / "logs" / f"rank-{rank}.log", begun.format(rank))
    assert [rank.state for rank in state(folder).ranks] == ["running", "running"]
    write(
        folder / "logs" / "driver.log",
        "2026-01-01 00:00:01,000 ERROR ended by WorkerLost\nTraceback (most recent call last):\n"
        '  File "x.py", line 1, in f\ndistributed.groups.WorkerLost: worker 1 of 2 died: killed\na note\n',
    )
    found = state(folder)
    assert (found.status, found.failure) == ("failed", "worker 1 of 2 died: killed\na note")
    assert found.ranks[1].state == "gone"


def test_a_long_run_has_a_curve_of_means(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", steps=1000)
    write(folder / "metrics.jsonl", "".join(row(step, float(step)) for step in range(1000)))
    losses = state(folder).losses
    assert len(losses) <= CURVE
    assert losses[0] == sum(range(9)) / 9
    assert losses[-1] == 999.0


@pytest.mark.parametrize("there", [False, True])
def test_what_is_no_run_is_a_clear_error(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="no config.json" if there else "no such folder"):
        WatchedRun(tmp_path / "run")


def test_watching_does_not_keep_a_run_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped(3, trainer(folder))
    watched = WatchedRun(folder)
    other = RunFolder.of_stopped(folder)  # locks it
    assert watched.state().step == 3
    other.close()


def test_a_tail_reads_what_has_grown_and_notices_another_file(tmp_path: Path) -> None:
    tail, path = Tail(tmp_path / "lines"), tmp_path / "lines"
    assert not tail.replaced()
    write(path, "a\nb")
    assert (tail.replaced(), [*tail.new()]) == (False, ["a"])
    write(path, "b\n" * 3)
    assert (tail.replaced(), [*tail.new()]) == (False, ["bb", "b", "b"])
    (tmp_path / "other").write_text("c\n" * 100)
    (tmp_path / "other").rename(path)
    assert (tail.replaced(), [*tail.new()]) == (True, ["c"] * 100)
    write(path, "d\n", "w")
    assert (tail.replaced(), [*tail.new()]) == (True, ["d"])
