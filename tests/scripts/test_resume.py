"""scripts/train.py killed, stopped, and resumed, as a person or a cluster does it."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed import RunFolder, Trainer
from framework import build
from tests.scripts.helpers import ROOT, command, last_json, run

STEPS = 600
RUN = (
    "--model",
    "mlp-small",
    "--workers",
    "0",
    "--batch",
    "8",
    "--shards",
    "4",
    "--steps",
    str(STEPS),
    "--dropout",
    "0.1",
)
HASHES = ("parameters_sha256", "optimizer_sha256", "losses_sha256")


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The summary of the run that nothing interrupts, in this process."""
    model = build("mlp-small", dropout=0.1)
    return Trainer(model, batch=8, shards=4, steps=STEPS, learning_rate=2e-3).fit().summary


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, imported as programs in scripts/ are."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("train")


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a program, and waits until it trains."""
    process = subprocess.Popen(
        command("train", *arguments, "--quiet"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics, before = tmp_path / "run" / "metrics.jsonl", _version(tmp_path / "run" / "metrics.jsonl")
    wait(lambda: _version(metrics) != before, process)
    return process


def wait(until: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until something is so, at most a minute, or until a program ends."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not until() and time.monotonic() < deadline:
        time.sleep(0.01)


def _version(path: Path) -> tuple[int, int] | None:
    """Changes when a file does."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def kill_and_resume(tmp_path: Path, times: int, seed: int) -> dict[str, Any]:
    """Kills the program, and resumes it, so many times at drawn moments while it writes a snapshot every few steps."""
    draw, killed = random.Random(seed), 0
    arguments: tuple[str, ...] = (*RUN, "--run-dir", "run", "--snapshot-every", "1")
    while killed < times:
        process = start(tmp_path, *arguments)
        if killed == times - 1:  # however slow the machine is, there is something to resume from at the end
            wait(lambda: any((tmp_path / "run" / "snapshots").glob("step-*[0-9]")), process)
        time.sleep(draw.random() * 0.12)
        process.kill()
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == -signal.SIGKILL, errors
        killed += 1
        arguments = ("--resume", "run", "--snapshot-every", str(draw.choice((1, 2, 3))))
    return last_json(run("train", "--resume", "run", "--snapshot-every", "50", "--json", cwd=tmp_path))


def test_a_program_killed_at_drawn_moments_and_resumed_has_the_same_bits(tmp_path: Path, whole: dict[str, Any]) -> None:
    summary = kill_and_resume(tmp_path, 2, seed=0)
    assert [summary[name] for name in HASHES] == [whole[name] for name in HASHES]
    assert summary["resumed_after_step"] > 0
    assert not list((tmp_path / "run" / "snapshots").glob("*.part"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(STEPS))


@pytest.mark.memory
def test_a_program_killed_twenty_times_and_resumed_has_the_same_bits(tmp_path: Path, whole: dict[str, Any]) -> None:
    summary = kill_and_resume(tmp_path, 20, seed=1)
    assert [summary[name] for name in HASHES] == [whole[name] for name in HASHES]


def test_sigterm_saves_the_run_and_a_resume_needs_nothing_else(
    tmp_path: Path, whole: dict[str, Any], train: Any
) -> None:
    process = start(tmp_path, *RUN, "--run-dir", "run")
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75, errors
    assert "its state is saved in run" in errors
    assert "Traceback" not in errors
    (snapshot,) = (tmp_path / "run" / "snapshots").iterdir()
    assert f"run/snapshots/{snapshot.name}; go on from it with: python scripts/train.py --resume run" in errors

    told = run("train", "--resume", "run", "--batch", "16", cwd=tmp_path, code=2).stderr
    assert "--batch is 16, but the run was started with 8" in told
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("train", "--resume", "../run", "--policy", "every-k:1", "--json", cwd=elsewhere)
    assert "from step-" in done.stdout and "policy None → every-k:1" in done.stdout
    summary = last_json(done)
    assert [summary[name] for name in HASHES] == [whole[name] for name in HASHES]
    assert summary["budget_bytes"] is None
    for given, message in (
        ({"model": "mlp-deep"}, "--model is mlp-deep, but the run was started with mlp-small"),
        ({"dropout": 0.0}, "--dropout is 0.0, but the run was started with 0.1"),
        ({"run_dir": Path("other")}, "--run-dir and --force are for new runs"),
    ):
        asked = replace(train.defaults(["--resume", str(tmp_path / "run")]), **given)
        with pytest.raises(ValueError, match=re.escape(message)):
            train.main(asked)


def test_a_second_sigterm_ends_a_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from framework import Chain, CrossEntropy, Linear, Model\n"
        "from framework.data import ArrayDataset, clusters\n\n"
        "class Slow(ArrayDataset):\n"
        "    def load(self, split, indices, x, targets):\n"
        "        super().load(split, indices, x, targets)\n"
        "        if split != 'train' or not self.first():\n"
        "            Path('in a step').touch()\n"
        "            time.sleep(30)\n\n"
        "    def first(self, count=[0]):\n"
        "        count[0] += 1\n"
        "        return count[0] <= 2\n\n"
        "def build():\n"
        "    made = clusters(64, 8, 4)\n"
        "    return Model('slow', Chain(Linear(4)), CrossEntropy(), lambda paths: Slow(made.x, made.y))\n"
    )
    process = start(
        tmp_path, "--model", "slow:build", "--workers", "0", "--batch", "4", "--shards", "2", "--run-dir", "run"
    )
    wait((tmp_path / "in a step").exists, process)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the step
    process.terminate()
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 143, errors
    assert "the run in run has no snapshot yet" in errors


def test_a_lost_worker_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import train, _console\n"
        "from distributed import WorkerLost\n"
        "def main(options):\n"
        "    error = WorkerLost('worker 1 of 2 died')\n"
        "    error.add_note('go on with: --resume')\n"
        "    raise error\n"
        "_console.run(main, train.defaults, '', train.CODES)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr.splitlines()) == (69, ["error: worker 1 of 2 died", "go on with: --resume"])


def test_a_policy_a_plan_or_a_budget_replaces_all_three_and_what_is_not_named_stays(tmp_path: Path, train: Any) -> None:
    """Also data that were named from another folder are found."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "t.csv").touch()
    stored = {
        "policy": None,
        "memory_budget": "engine:5MiB",
        "workers": 3,
        "offload_dir": "/var/tmp",
        "snapshot_every": 4,
    }
    request = {
        "model": "mlp-small",
        "data": ["t.csv", "digits"],
        "target": None,
        "task": None,
        "dtype": "float32",
        "dropout": 0.0,
    }
    more = {"folder": str(tmp_path / "there"), "default_budget": False}
    config = {"options": stored, "request": {**request, **more}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def given(*arguments: str) -> tuple[Any, ...]:
        found = train.defaults(["--resume", str(tmp_path), *arguments])
        assert (found.workers, found.offload_dir, found.snapshot_every) == (3, Path("/var/tmp"), 4)
        assert found.data == (str(tmp_path / "there" / "t.csv"), "digits")
        return found.policy, found.plan, found.memory_budget

    assert given() == given("--workers", "1") == (None, None, "engine:5MiB")
    assert (
        given("--policy", "sqrt-n") == given("--plan=p.json") == given("--memory_budget", "8MiB") == (None, None, None)
    )
    config["request"]["default_budget"] = True  # then it is made anew
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert given() == (None, None, None)
    del config["request"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was not started by this program"):
        given()


def test_a_run_from_when_shared_weights_were_a_flag_goes_on_as_it_was_asked_for(tmp_path: Path, train: Any) -> None:
    request = {"model": "mlp-small", "data": [], "target": None, "task": None, "dtype": "float32", "dropout": 0.0}
    for then, now in ((False, "auto"), (True, "yes"), ("no", "no")):
        config = {"options": {"share_weights": then}, "request": {**request, "folder": None, "default_budget": True}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert train.defaults(["--resume", str(tmp_path)]).share_weights == now


def test_text_is_written_from_a_snapshot(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": 2, "shards": 1, "steps": 2, "validation_examples": 2, "snapshot_every": 1}
    Trainer(build("byte-gpt-tiny"), run_folder=RunFolder(tmp_path / "run"), **options).fit()
    text = last_json(run("generate", "run/snapshots/step-00000001", "--length", "5", "--json", cwd=tmp_path))
    assert text["run"] == "run/snapshots/step-00000001"
    assert 0 < len(text["text"]) <= 5
