"""generate.py, and what README and tutorial show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import file_of
from tests.docs.pages import blocks
from tests.scripts.helpers import ROOT, command, last_json, run
from tests.scripts.programs import Runner


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("generate", (), "name the folder of a finished run"),
        ("generate", ("nowhere",), "there is no folder nowhere; name the folder of a run"),
        ("generate", (".",), "there is no config.json in ., so it is not the folder of a run"),
    ],
)
def test_bad_input_is_a_clear_error(program: Runner, script: str, arguments: tuple[str, ...], message: str) -> None:
    done = program(script, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_foreign_package_named_distributed_is_told(tmp_path: Path) -> None:
    """Dask's scheduler has the same name."""
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text("Client = object\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command("train", "--help"), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Dask's scheduler is also named distributed" in done.stderr
    assert str(tmp_path) in "".join(done.stderr.split("\n"))


def test_generate_refuses_a_run_that_writes_no_text(program: Runner) -> None:
    program("train", "--workers", "0", "--model", "mlp-small", "--steps", "1", "--run-dir", "run")
    done = program("generate", "run")
    assert done.returncode == 2
    assert "does not write text" in done.stderr


def test_the_readme_s_script_runs_as_it_stands_from_any_folder(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("README.md") if block.language == "python"]
    script = tmp_path / "script.py"
    script.write_text(block.text)
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 12
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loss, predicted, counted = done.stdout.split()
    assert 0 < float(loss) < 1
    assert predicted == counted


def test_the_tutorial_s_own_model_trains_on_two_workers(tmp_path: Path) -> None:
    (model,) = [block.text for block in blocks("docs/tutorial.md") if file_of(block) == "mine.py"]
    (tmp_path / "mine.py").write_text(model)
    options = ("--model", "mine:build", "--steps", "3", "--validation-examples", "8", "--run-dir", "run", "--json")
    summary = last_json(run("train", *options, cwd=tmp_path))
    assert summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"]
    text = run("generate", "run", "--length", "20", cwd=tmp_path).stdout
    assert text.startswith("import ")


def test_the_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make train" in text
    assert "make test" in text
    assert 0 < (ROOT / "docs" / "images" / "report.png").stat().st_size < 150_000
    assert "docs/images/report.png" in text


def test_benchmark_compares_and_says_who_is_missing(tmp_path: Path) -> None:
    done = run("benchmark", "derivatives", "--runs", "1", "--json", cwd=tmp_path)
    data = last_json(done)
    assert set(data) == {"suite", "machine", "versions", "rows"}
    assert len(data["rows"]) == 7
    for row in data["rows"]:
        assert set(row) == {"name", "unit", "ours", "peer", "peer_name", "ratio", "better", "runs"}
        assert row["ours"] > 0
        if row["peer"] is None:
            assert row["ratio"] is None
            assert f"{row['peer_name']} is not installed" in done.stdout
        else:
            assert row["ratio"] == row["ours"] / row["peer"]
    forward = data["rows"][-1]
    assert forward["ratio"] == pytest.approx(1, abs=0.01)  # memory does not depend on depth
    done = run("benchmark", "derivatives", "--runs", "0", cwd=tmp_path, code=2)
    assert "--runs must be at least 1, but got 0" in " ".join(done.stderr.split())
