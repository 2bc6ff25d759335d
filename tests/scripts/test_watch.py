"""`train.py --watch` as a person uses it, and what is drawn of a state."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distributed.run_state import RankState, RunState, SnapshotState
from tests.distributed.saved_runs import stopped, trainer
from tests.distributed.test_run_state import folder_of, row, write
from tests.scripts.helpers import ROOT, command, run


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that draws."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("_watch")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, imported as programs in scripts/ are."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("train")


def some_state(**more: Any) -> RunState:
    rank = RankState(0, "running", 123, "a node", 2, "start")
    usual = RunState(
        path="runs/20260101-120000-byte-gpt-tiny", model="byte-gpt-tiny", status="running", failure="", step=30, steps=60, resumed=0,
        loss=2.5, losses=tuple(8 / (1 + n) for n in range(120)), validation_step=20, validation_loss=2.75, validation_accuracy=0.25,
        tokens_per_second=12345.6, step_seconds=0.125, eta_seconds=3.75, age_seconds=0.1, live_bytes=10 * 2**20, peak_bytes=18 * 2**20,
        budget_bytes=20 * 2**20, rss_peak_bytes=128 * 2**20, process_budget_bytes=None, ranks=(rank,),
        snapshots=(SnapshotState(20, 95.0),), report=None,
    )  # fmt: skip
    return replace(usual, **more)


def text(drawing: Any, state: RunState, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(drawing.drawn(state, width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_drawing_fits_its_terminal(drawing: Any, width: int) -> None:
    ranks = tuple(
        RankState(n, "failed", 10**6 + n, "a-node-with-a-long-name", 12, "failed: " + "why " * 40) for n in range(8)
    )
    told = text(drawing, some_state(ranks=ranks, resumed=2, path="runs/" + "long" * 40), width)
    assert max(map(len, told.splitlines())) <= width
    assert len(told.splitlines()) == 16  # nothing is wrapped


def test_what_is_drawn_is_the_state(drawing: Any) -> None:
    told = text(drawing, some_state(), 80)
    for words in (
        "byte-gpt-tiny  running  runs/20260101-120000-byte-gpt-tiny", "30/60", "3 s left", "2.5000", "2.7500 (25.0% right) at step 20",
        "12,346 targets/s, 125 ms a step", "live 10.0 MiB, peak 18.0 MiB of 20.0 MiB", "90%", "128.0 MiB resident at the peak",
        "process 123 on a node, 2 warnings", "step 20 1:35 ago",
    ):  # fmt: skip
        assert words in told, told
    assert "no step for" not in told
    silent = text(drawing, some_state(age_seconds=95.0), 80)
    assert "no step for 1:35" in silent
    gone = text(drawing, some_state(status="gone", eta_seconds=None), 80)
    assert "its process is no more" in gone and "train.py --resume runs/2026" in gone


def test_how_a_run_ended_stands_below_the_rest_and_can_be_copied(drawing: Any) -> None:
    for long, width in (("runs/short", 80), ("runs/" + "long" * 15, 80), ("runs/" + "long" * 15, 120)):
        report = f"{long}/report.html"
        ended = some_state(status="finished", report=report, eta_seconds=None)
        lines = [line.rstrip() for line in text(drawing, ended, width).splitlines()]
        place = next(line for line in lines if "snapshots" in line).index("step 20")
        name = f"{'report':>{place - 2}}"
        expected = [f"{name}  {report}"] if place + len(report) < width else [name, report]
        assert lines[-len(expected) :] == expected


def test_a_sparkline_has_the_shape_of_its_values(drawing: Any) -> None:
    assert drawing.sparkline([1.0] * 3, 8) == "▁▁▁"
    assert drawing.sparkline([0.0, 7.0, 3.0], 8) == "▁█▄"
    assert drawing.sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█"


def test_a_run_that_is_over_is_told_in_lines(tmp_path: Path) -> None:
    stopped(12, trainer(tmp_path / "run"))
    told = run("train", "--watch", "run", cwd=tmp_path, code=1).stdout
    assert "stopped  step 12/30  loss " in told
    assert "stopped after step 12 of 30" in told and "go on  python scripts/train.py --resume run" in told
    assert "\x1b" not in told


def test_json_is_the_present_state_once(train: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    write(folder / "metrics.jsonl", row(0))
    ended = train.main(train.Train(workers=2, watch=folder, json=True))
    state = ended.result
    assert ended.code == 0
    assert (state["status"], state["step"], state["ranks"][0]["state"]) == ("running", 1, "no log")
    assert json.loads(json.dumps(state)) == state | {
        name: list(state[name]) for name in ("losses", "ranks", "snapshots")
    }


def test_ctrl_c_ends_the_watching_and_nothing_else(tmp_path: Path) -> None:
    """The run is this process: it was said to be running, and it still is."""
    folder = folder_of(tmp_path / "run")
    write(folder / "metrics.jsonl", row(0))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    watching = subprocess.Popen(
        command("train", "--watch", "run"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None and watching.stderr is not None
    assert watching.stdout.readline().startswith("running  step 1/10  loss 1.0000")
    write(folder / "metrics.jsonl", row(1, 0.5))
    assert watching.stdout.readline().startswith("running  step 2/10  loss 0.5000")
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=60)
    assert (watching.returncode, told.strip()) == (130, "stopped by Ctrl-C")
    write(folder / "metrics.jsonl", json.dumps({}) + "\n")  # nobody holds it
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()


def test_what_cannot_be_watched_is_a_clear_error(train: Any, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=r"no run to watch in .*nowhere: there is no such folder"):
        train.main(train.Train(workers=2, watch=nowhere))
    with pytest.raises(ValueError, match="--watch trains nothing; leave --steps, --run-dir away"):
        train.main(train.Train(workers=2, watch=nowhere, steps=3, run_dir=nowhere))
