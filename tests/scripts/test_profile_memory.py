"""profile_memory.py: reports planned, measured, written, drawn again and compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpointing.report import json_file, text, trace
from distributed import Trainer
from distributed.records import config_of
from framework import SGD, build
from tests.scripts.programs import Runner

PREDICTED = ("--model", "mlp-small", "--batch", "16", "--no-measure")


def last(stdout: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return found


def test_each_plan_is_measured_in_a_process_of_its_own(program: Runner, tmp_path: Path) -> None:
    options = ("--model", "mlp-small", "--batch", "256", "--policies", "store-all", "--steps", "1")
    done = program(
        "profile_memory", *options, "--budgets", "engine:100%", "--json", "--out", "x.json", "--out", "x.txt"
    )
    assert done.returncode == 0, done.stderr
    data = last(done.stdout)
    report = json_file.load(Path("x.json"))
    assert data["files"] == ["x.json", "x.txt"]
    assert [row["chosen"] for row in data["policies"]] == [False, True]
    assert data["budget_bytes"] == report.budget == data["policies"][1]["budget_bytes"] > 0
    for row, told in zip(data["policies"], report.policies, strict=True):
        assert row["predicted_peak_bytes"] == row["ledger_peak_bytes"] == told.ledger_peak > 0
        assert row["step_seconds"] > 0
        assert row["rss_peak_bytes"] > row["ledger_peak_bytes"]
    (rank,) = report.ranks
    assert rank.measured is not None
    assert replace(rank.measured, seconds=rank.predicted.seconds) == rank.predicted
    assert max(rank.predicted.inside) == report.policies[1].predicted_peak <= report.budget
    process = rank.process
    assert process is not None
    assert process.engine + process.interpreter + process.ray + process.unexplained == process.rss
    assert process.engine == report.policies[1].ledger_peak
    assert len(process.by_step) == 2
    assert process.by_step[-1] == process.rss
    written = Path("x.txt").read_text()
    assert written == text.text(report)
    assert done.stdout.startswith(written)
    assert report.advice[0].startswith("Budget ")


def test_a_report_is_drawn_again_from_its_file(program: Runner, tmp_path: Path) -> None:
    out = ("--out", "a.json", "--frontier", "--points", "3", "--quiet")
    done = program("profile_memory", *PREDICTED, "--policies", "every-k:1", *out)
    assert (done.returncode, done.stdout) == (0, "")
    again = program("profile_memory", "--from", "a.json", "--out", "b.json", "--out", "b.trace.json", "--out", "b.svg")
    assert again.returncode == 0, again.stderr
    report = json_file.load(Path("a.json"))
    assert Path("a.json").read_text() == Path("b.json").read_text()
    assert len(report.frontier) == 3
    assert report.ranks[0].measured is None
    assert json.loads(Path("b.trace.json").read_text()) == trace.to_trace(report)
    assert Path("b.svg").read_text().startswith("<svg")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", Path("b.svg").read_text())


def test_two_reports_are_compared_and_growth_has_an_exit_code(program: Runner, tmp_path: Path) -> None:
    for batch, name in (("2", "a.json"), ("4", "b.json")):
        options = ("--no-measure", "--batch", batch, "--policies", "store-all", "--quiet")
        assert program("profile_memory", *options, "--out", name).returncode == 0
    more = program("profile_memory", "--compare", "a.json", "b.json", "--fail-above", "1%", "--json")
    assert more.returncode == 3, more.stderr
    data = last(more.stdout)
    assert data["peaks"][0]["after"] > data["peaks"][0]["before"]
    assert (
        sum(row["after"] - row["before"] for row in data["at_peak"])
        == data["peaks"][0]["after"] - data["peaks"][0]["before"]
    )
    assert [row["what"] for row in data["above"]] == ["peak", "policy store-all"]
    assert "2 of 2 peaks grew by more than 1 %" in more.stdout
    less = program("profile_memory", "--compare", "b.json", "a.json", "--fail-above", "1%")
    assert less.returncode == 0
    assert program("profile_memory", "--compare", "a.json", "b.json").returncode == 0


def test_a_runs_folder_is_reported_by_its_plan_or_its_own_report(program: Runner, tmp_path: Path) -> None:
    run = (
        "--workers",
        "0",
        "--model",
        "mlp-small",
        "--batch",
        "8",
        "--shards",
        "2",
        "--steps",
        "2",
        "--validation-examples",
        "8",
    )
    assert program("train", *run, "--run-dir", "run", "--quiet").returncode == 0
    own = tmp_path / "run" / "report.json"
    own.unlink(missing_ok=True)
    done = program("profile_memory", "run", "--json", "--out", "p.json")
    assert done.returncode == 0, done.stderr
    report = json_file.load(Path("p.json"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert max(report.ranks[0].predicted.inside) == summary["predicted_peak_bytes"]
    assert report.budget == summary["engine_budget_bytes"]
    assert sum(row.parameters for row in report.layers) == summary["parameters"]
    json_file.save(replace(report, title="what the run wrote"), own)
    assert program("profile_memory", "run").stdout.startswith("what the run wrote\n")


@pytest.mark.parametrize("how", [{}, {"share_weights": "no"}, {"shard_optimizer": True}, {"optimizer": SGD()}])
def test_a_run_that_wrote_no_report_is_told_of_every_rank_as_it_held_weights_and_state(
    program: Runner, tmp_path: Path, how: dict[str, Any]
) -> None:
    options = {"workers": 4, "shards": 4, "batch": 8, "policy": "sqrt-n", "validation_examples": 8}
    trainer = Trainer(build("byte-gpt-tiny"), **options, **how)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config_of(trainer)))
    trainer.plans.train[0].save(tmp_path / "run" / "plan.json")
    done = program("profile_memory", "run", "--json", "--out", "p.json")
    assert done.returncode == 0, done.stderr
    peaks = [max(rank.predicted.inside) for rank in json_file.load(Path("p.json")).ranks]
    assert peaks == [plan.peak for plan in trainer.plans.train]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gpt-9"), "unknown model"),
        (("--policies", "store-all", "keep"), "unknown policy 'keep'"),
        (("--policies", "budget"), "needs a budget"),
        (("--budgets", "engine:0%"), "is no percentage"),
        (("--budgets", "engine:1kB", "--model", "mlp-small"), "too small"),
        (("--batch", "6", "--shards", "4"), "divisible by the shards"),
        (("--shards", "3"), "power of two"),
        (("--frontier", "--points", "1"), "--points must be at least 2"),
        (("--out", "there.svg"), "there.svg exists; name another file with --out"),
        (("--out", "report.pdf"), "none of the endings that say in which format a report is written: .trace.json, .json"),
        (("--out", "a.json", "--out", "a.json"), "names a file twice"),
        (("--out", "no/a.json"), "there is no folder no"),
        (("--from", "none.json"), "there is no report none.json"),
        (("--from", "there.svg"), "is no JSON file"),
        (("--compare", "there.svg"), "takes two reports, before and after, but got 1"),
        (("--compare", "a", "b", "--out", "c.json"), "--compare writes no report"),
        (("--compare", "a", "b", "--from", "c.json"), "name one"),
        (("--fail-above", "5%"), "--fail-above is for --compare"),
        (("--compare", "a", "b", "--fail-above", "5"), "'5' is no percentage; write for example 5%"),
        (("nowhere",), "there is no folder nowhere; name the folder of a run"),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(program: Runner, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "there.svg").touch()
    done = program("profile_memory", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"]
