"""What train.py says of a run's memory report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from checkpointing.report import json_file
from checkpointing.report.data import Report
from framework import format_size
from tests.scripts.programs import Runner

RUN = ("--model", "mlp-small", "--workers", "0", "--steps", "3", "--validation-examples", "16", "--run-dir", "run")


def test_it_says_where_the_report_is(program: Runner, tmp_path: Path) -> None:
    done = program("train", *RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["report", "run/report.html"]
    assert "advice" not in done.stdout
    report = json_file.load(tmp_path / "run" / "report.json")
    assert (report.model, report.configuration["model"]) == ("mlp-small", "mlp-small")
    done = program("train", *RUN, "--force", "--no-report")
    assert done.returncode == 0 and "report" not in done.stdout
    assert not list((tmp_path / "run").glob("report.*"))


def test_a_budget_that_costs_much_time_for_little_memory_is_advised_against(program: Runner, tmp_path: Path) -> None:
    """The least that mlp-deep can be trained in is hardly less than what it takes at all."""
    done = program("train", "--model", "mlp-deep", "--workers", "0", "--steps", "1", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    more = format_size(summary["store_all_activation_bytes"] - summary["activation_bytes"])
    (told,) = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.lstrip().startswith("advice")]
    assert told.startswith(f"that is dear: if {more} more (")
    less = told.rpartition("--policy store-all takes ")[2]
    advice = json_file.load(tmp_path / "run" / "report.json").advice[1]
    assert advice.startswith(
        f"That is dear: unless {more} more do not fit, take policy store-all, which takes {less.split()[0]} less time"
    )


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
