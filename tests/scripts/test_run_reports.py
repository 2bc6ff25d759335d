"""What train.py says of a run's memory report."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpointing.report import json_file
from checkpointing.report.data import Report
from tests.scripts.programs import Runner

RUN = ("--model", "mlp-small", "--workers", "0", "--steps", "3", "--validation-examples", "16", "--run-dir", "run")


def test_it_says_where_the_report_is(program: Runner, tmp_path: Path) -> None:
    done = program("train", *RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["report", "run/report.html"]
    report = json_file.load(tmp_path / "run" / "report.json")
    assert (report.model, report.configuration["model"]) == ("mlp-small", "mlp-small")
    done = program("train", *RUN, "--force", "--no-report")
    assert done.returncode == 0 and "report" not in done.stdout
    assert not list((tmp_path / "run").glob("report.*"))


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_a_report_that_cannot_be_written_is_a_warning_in_words(
    program: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(report: Report) -> str:
        raise OSError("the disk is full")

    monkeypatch.setitem(sys.modules, "checkpointing.report.html", SimpleNamespace(page=page))
    done = program("train", *RUN)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the run's memory report could not be written (OSError: the disk is full)")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.splitlines()[-1].split() == ["run", "run"]
    assert (tmp_path / "run" / "weights.safetensors").exists()
