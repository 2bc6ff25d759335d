"""scripts/train.py as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from checkpointing import Plan
from framework import Spec, build
from tests.scripts.helpers import command, last_json, run
from tests.scripts.programs import Runner
from tests.shared_files import shared_files

#: A run that takes a moment.
QUICK = ("--workers", "0", "--model", "mlp-small", "--batch", "8", "--shards", "4", "--steps", "3")

SUMMARY = {
    "loss_first", "loss_last", "validation_loss", "unigram_entropy", "bigram_cross_entropy", "tokens_per_second", "workers",
    "validation_accuracy", "shards", "threads_per_worker", "policy", "budget_bytes", "budget_scope", "store_all_activation_bytes",
    "predicted_peak_bytes", "ledger_peak_bytes", "rss_peak_bytes", "parameters_sha256", "losses_sha256", "step_seconds_median",
}  # fmt: skip
METRICS = {
    "step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "step_seconds", "reduce_seconds", "live_bytes",
    "peak_bytes", "rss_peak_bytes",
}  # fmt: skip


def test_two_ray_workers_train_a_language_model_within_their_budget_and_it_writes_text(tmp_path: Path) -> None:
    before = shared_files()
    options = ("--steps", "6", "--validation-examples", "16", "--run-dir", "run", "--json", "--dropout", "0.1")
    done = run("train", *options, cwd=tmp_path)
    summary = last_json(done)
    assert set(summary) >= SUMMARY
    assert (summary["workers"], summary["shards"], summary["budget_scope"]) == (2, 4, "engine")
    assert summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"] <= summary["budget_bytes"]
    assert summary["activation_bytes"] <= 0.6 * summary["store_all_activation_bytes"]
    assert summary["bigram_cross_entropy"] < summary["unigram_entropy"]
    assert "as predicted" in done.stdout
    assert "step 6/6  loss" in done.stdout
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    told = Plan.load(folder / "plan.json").explain(summary["budget_bytes"])
    assert told.seconds > told.once
    longer, above = told.seconds / told.once - 1, told.gap
    printed = f"policy budget (takes {longer:.1%} longer than store-all, {above:.1%} above the lower bound)"
    assert printed in " ".join(done.stdout.split())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert set(json.loads(lines[0])) == METRICS
    # The same run in this process has the same bits.
    alone = last_json(run("train", *options[:-4], "alone", *options[-3:], "--workers", "0", cwd=tmp_path))
    assert alone["parameters_sha256"] == summary["parameters_sha256"]
    assert alone["losses_sha256"] == summary["losses_sha256"]
    text = last_json(run("generate", "run", "--prompt", "def ", "--length", "40", "--json", cwd=tmp_path))
    assert text["prompt"] == "def "
    assert 0 < len(text["text"]) <= 40
    assert not shared_files() - before


def test_json_is_the_last_line_and_quiet_leaves_it_alone(tmp_path: Path) -> None:
    done = run("train", *QUICK, "--json", "--quiet", cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1
    assert last_json(done)["loss_first"] > 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-mlp-small")


@pytest.mark.parametrize(
    "option", ["--policy", "--memory-budget", "--workers", "--shards", "--seed", "--address", "--json"]
)
def test_help_names_every_option(tmp_path: Path, option: str) -> None:
    told = run("train", "--help", cwd=tmp_path).stdout
    assert option in told
    assert all(code in told for code in ("Exit codes:", " 69 ", " 75 ", " 130 ", " 143 "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "gpt-9"), "unknown model 'gpt-9'; known: mlp-small, mlp-deep, lenet"),
        (("--model", "nowhere:build"), "cannot be imported"),
        (("--policy", "keep"), "unknown policy 'keep'; known: store-all"),
        (("--batch", "10"), "does not divide into 4 equal shards"),
        (("--shards", "6", "--batch", "6"), "power of two, but got 6"),
        (("--workers", "8"), "8 workers cannot share 4 virtual shards"),
        (("--memory-budget", "engine:1kB"), "every known plan needs"),
        (("--memory-budget", "engine:1kB", "--policy", "store-all"), "the policy store-all needs"),
        (("--memory-budget", "12 apples"), "is no size in bytes"),
        (("--memory-budget", "20MiB"), "too small for the whole process"),
        (("--memory-budget", "900TiB"), "900"),
        (("--data", "x.txt"), "there is no data x.txt: name a file, a folder of text, or one of digits, iris"),
        (("--model", "byte-gpt-tiny", "--data", "t.csv"), "byte-gpt-tiny reads text, but t.csv is a table"),
        (
            ("--model", "byte-gpt-tiny", "--data", "digits"),
            "digits is a set of examples; a folder of that name is ./digits",
        ),
        (("--model", "byte-gpt-tiny", "--target", "a"), "--target say how to read examples, but byte-gpt-tiny"),
        (("--model", "lenet", "--data", "t.csv"), "t.csv holds examples of shape [2], but the model takes images"),
        (("--data", "t.csv", "--target", "c"), "no column 'c' to predict"),
        (("--data", "t.csv", "short.txt"), "trained on one set of examples, but got t.csv, short.txt"),
        (("--data", "gap.csv"), "table gap.csv, line 3, column 2 (b): the cell is empty"),
        (("--task", "regression"), "trained on a generated set unless data are named"),
        (("--model", "byte-gpt-tiny", "--data", "empty.txt"), "empty.txt is empty"),
        (("--model", "byte-gpt-tiny", "--data", "short.txt"), "shorter than one window of 129"),
        (("--data", "short.txt"), "takes examples of numbers, but short.txt is text"),
        (("--run-dir", "there"), "run folder there exists"),
        (("--run-dir", "folder", "--force"), "is no run folder"),
        (("--weights", "other.safetensors"), "there is no weights file"),
        (("--dropout", "1.5"), "dropout rate lies in [0, 1)"),
        (("--steps", "0"), "--steps must be at least 1"),
    ],
)
def test_bad_input_is_a_clear_error_before_any_work(
    program: Runner, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "t.csv").write_text("a,b,kind\n" + "1,2,x\n3,4,y\n" * 20)
    (tmp_path / "gap.csv").write_text("a,b,kind\n1,2,x\n3,,y\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    done = program("train", *QUICK, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_cluster_that_does_not_answer_is_an_error_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    done = run("train", *QUICK, "--workers", "2", "--address", address, cwd=tmp_path, code=1)
    assert f"nothing answers at {address}" in done.stderr
    assert time.monotonic() - started < 30  # 5 s of probing, and imports
    assert not (tmp_path / "runs").exists()


def test_an_existing_run_is_overwritten_with_force_alone(tmp_path: Path) -> None:
    run("train", *QUICK, "--run-dir", "run", cwd=tmp_path)
    run("train", *QUICK, "--run-dir", "run", cwd=tmp_path, code=2)
    run("train", *QUICK, "--run-dir", "run", "--force", "--seed", "5", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seed"] == 5


@pytest.mark.parametrize(
    ("task", "outputs", "loss"), [("classification", 3, "CrossEntropy"), ("regression", 1, "MeanSquaredError")]
)
def test_a_table_is_learned_and_the_record_says_how_it_was_read(
    tmp_path: Path, task: str, outputs: int, loss: str
) -> None:
    rows = [(i % 7, (3 * i) % 11, (i % 7 + (3 * i) % 11) // 6) for i in range(300)]
    (tmp_path / "t.csv").write_text("a;b;sum\n" + "".join(f"{a};{b};{c}\n" for a, b, c in rows))
    options = ("--model", "mlp-small", "--data", "t.csv", "--task", task, "--workers", "0", "--steps", "400")
    done = run("train", *options, "--run-dir", "run", "--json", cwd=tmp_path)
    summary = last_json(done)
    unit = {"classification": "nats, ", "regression": "mean squared error of standardised targets (their mean"}[task]
    assert f"validation  {summary['validation_loss']:.4f} {unit}" in done.stdout
    assert summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"]
    assert summary["validation_loss"] < 0.2  # a third of the variance would be 0.33, a guess of three classes 1.1 nats
    assert (summary["validation_accuracy"] is None) == (task == "regression")
    if task == "classification":
        assert summary["validation_accuracy"] > 0.9
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["build"]["outputs"] == outputs
    assert config["data"]["source"] == ["t.csv"]
    assert config["data"]["columns"] == ["a", "b"]
    assert (config["data"]["train_examples"], config["data"]["validation_examples"]) == (240, 60)
    again = build(**config["build"])
    assert type(again.loss).__name__ == loss
    assert again.chain.layout(Spec.of((1, 2), "float32")).size == summary["parameters"]


def test_a_small_set_fills_one_batch_of_its_held_out_examples(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("".join(f"{i % 7},{i % 2}\n" for i in range(150)))
    options = ("--model", "mlp-small", "--data", "t.csv", "--workers", "0", "--steps", "3", "--json")
    assert last_json(run("train", *options, cwd=tmp_path))["batch"] == 28  # of 30, in four shards
    assert last_json(run("train", *options, "--batch", "8", cwd=tmp_path))["batch"] == 8


def test_a_model_of_ones_own_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from framework import Chain, CrossEntropy, Linear, Model, ReLU\n"
        "from framework.data import clusters\n\n"
        "def data(paths):\n    return clusters(256, 12, 4)\n\n"
        "def build():\n    return Model('mine', Chain(Linear(8), ReLU(), Linear(4)), CrossEntropy(), data)\n"
    )
    options = ("--model", "mine:build", "--batch", "8", "--shards", "2", "--steps", "4", "--json")
    alone, shared = (last_json(run("train", *options, "--workers", w, cwd=tmp_path)) for w in ("0", "2"))
    assert alone["parameters_sha256"] == shared["parameters_sha256"]


@pytest.mark.parametrize("wait", [1.2, 2.0, 3.0])
def test_an_interrupt_while_ray_starts_leaves_nothing(tmp_path: Path, wait: float) -> None:
    mark, before = tmp_path.as_posix(), shared_files()
    process = subprocess.Popen(
        command("train", "--steps", "1000000"),
        cwd=tmp_path,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(wait)
    os.kill(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT), errors  # the latter while Python itself still starts
    assert "Traceback" not in errors or process.returncode < 0
    deadline = time.monotonic() + 20
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert not shared_files() - before


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_whose_exception_python_ignores_ends_a_run_all_the_same(
    tmp_path: Path, number: str, code: int
) -> None:
    (tmp_path / "mine.py").write_text(
        "import signal\n"
        "from framework import Chain, CrossEntropy, Linear, Model\n"
        "from framework.data import clusters\n\n"
        "class Asked:\n    def __del__(self):\n        signal.raise_signal(signal." + number + ")\n\n"
        "def data(paths):\n    Asked()\n    return clusters(256, 12, 4)\n\n"
        "def build():\n    return Model('mine', Chain(Linear(4)), CrossEntropy(), data)\n"
    )
    options = ("--model", "mine:build", "--batch", "8", "--shards", "2", "--steps", "1000000", "--workers", "0")
    done = run("train", *options, cwd=tmp_path, code=code)
    assert "Exception ignored in" in done.stderr  # Python's words where nobody can catch it


#: A variable of the environment that a program's processes of Ray inherit.
MARK = "RETAPE_TEST_MARK"


def processes_marked(mark: str) -> list[str]:
    """Processes with a mark in their environment; Ray's agents are no longer children once its raylet is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline())[:80])
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended, or is somebody else's
            continue
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_a_run_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = shared_files()
    options = ("--model", "mlp-small", "--batch", "8", "--shards", "4", "--steps", "1000000", "--run-dir", "run")
    process = subprocess.Popen(
        command("train", *options, "--workers", "2"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("WorkerActor" in " ".join(child.cmdline()) for child in family)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("stopped by Ctrl-C" if code == 130 else "stopped after step") in errors
    assert "Traceback" not in output + errors
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    assert not shared_files() - before
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) > 0
    there = [path.name for path in tmp_path.glob("run/snapshots/*")]
    if number == signal.SIGTERM:
        assert there == [f"step-{len(rows):08d}"]
        assert f"run/snapshots/{there[0]}; go on from it with: python scripts/train.py --resume run" in errors
    else:
        assert there == []
        assert "the run in run has no snapshot yet" in errors
