"""The Trainer: training works, and bad input is refused before any work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import signal
import socket
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpointing import Engine, InfeasibleBudget, OffloadError, predict, run_plans
from checkpointing.inspector import Finding, Statistics
from checkpointing.plan import Plan
from checkpointing.running import NotAsPlanned
from distributed import (
    Callback,
    ClusterError,
    Diverged,
    MemoryDisagreement,
    RunFolder,
    Stopped,
    Trainer,
    TrainingOptions,
    TrainingResult,
    WorkerLost,
)
from distributed.snapshots import snapshots_in
from distributed.worker_sizes import validation_windows
from distributed.worker_task import WorkerTask
from framework import (
    SGD,
    AdamW,
    ArrayDataset,
    BudgetExceeded,
    Chain,
    CrossEntropy,
    Linear,
    MeanSquaredError,
    ReLU,
    Schedule,
    Spec,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    build,
    weights,
)
from framework.data import clusters
from framework.models import Model
from framework.parameters import Constant
from tests.distributed.thread_group import ThreadGroup, threads

__all__ = ["threads"]  # the fixture


@pytest.mark.parametrize(
    ("name", "batch", "shards", "rate"),
    [
        ("mlp-small", 16, 4, 1e-2),
        ("mlp-deep", 16, 4, 1e-3),
        ("lenet", 16, 4, 3e-3),
        ("resnet-small", 4, 1, 3e-3),
        ("unet", 4, 2, 5e-3),
        ("byte-gpt-tiny", 4, 2, 3e-3),
        # The other byte GPTs are of the same layers, and take longer.
        pytest.param("byte-gpt-small", 1, 1, 1e-3, marks=pytest.mark.memory),
        pytest.param("byte-gpt-tiny-tied", 4, 2, 3e-3, marks=pytest.mark.memory),
        ("byte-gpt-small-tied", 1, 1, 1e-3),
        ("byte-lstm-small", 2, 2, 1e-2),
    ],
)
def test_overfitting_one_batch_reaches_a_loss_below_0_05_in_200_steps(
    name: str, batch: int, shards: int, rate: float
) -> None:
    model = build(name)
    data, rows = model.dataset(()), batch // shards
    x, targets = (
        Spec((rows, *data.inputs.shape), data.inputs.dtype),
        Spec((rows, *data.targets.shape), data.targets.dtype),
    )
    plan = run_plans(model.chain, model.loss, x, targets, AdamW(), shards=shards).train[0]
    engine = Engine(model.chain, model.loss, model.chain.layout(x), AdamW(weight_decay=0.0), seed=1, clip=1.0)

    def load(shard: int, into_x: np.ndarray, into_targets: np.ndarray) -> None:
        data.load("train", range(shard * rows, (shard + 1) * rows), into_x, into_targets)

    for step in range(200):
        loss = engine.train_step(plan, load, step, rate * min(1.0, (step + 1) / 20)).loss
        if loss < 0.05:
            break
    assert loss < 0.05


def small_resumed(folder: Path) -> TrainingResult:
    """Resumes a run of `small`."""
    data = clusters(128, 8, 10)
    return Trainer(Chain(Linear(10)), CrossEntropy(), data=data, validation_examples=16, resume=folder).fit()


def small(**options: Any) -> Trainer:
    """A trainer that is quick to make."""
    given = {"batch": 8, "shards": 4, "steps": 4, "validation_examples": 16, **options}
    return Trainer(Chain(Linear(10)), CrossEntropy(), data=clusters(128, 8, 10), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10}, "a batch of 10 does not divide into 4 equal shards"),
        ({"shards": 3}, "power of two, but got 3"),
        ({"workers": 5}, "5 workers cannot share 4 virtual shards"),
        ({"workers": -1}, "--workers must be at least 0"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"threads_per_worker": 0}, "--threads-per-worker must be at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": float("nan")}, "--learning-rate must be positive"),
        ({"clip_norm": -1.0}, "--clip-norm must be positive"),
        ({"validate_every": 0}, "--validate-every"),
        ({"policy": "keep"}, "unknown policy 'keep'; known: store-all"),
        ({"policy": "budget"}, "needs a budget"),
        ({"memory_budget": "512"}, "did you mean 512MiB"),
        ({"memory": "disk"}, "--memory is block or heap"),
        ({"memory_budget": "engine:10B"}, "too small"),
        ({"memory_budget": "engine:10B", "policy": "store-all"}, "the policy store-all needs"),
        ({"batch": 256}, "fewer than a batch of 256"),
        ({"address": "127.0.0.1:1"}, "--address is for workers"),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@dataclass(frozen=True)
class Halves:
    """A schedule of one's own."""

    first: float

    def __call__(self, step: int) -> float:
        return self.first / 2**step


def halves(step: int) -> float:
    """The same as a function."""
    return 0.5 / 2**step


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, WarmupCosine(0.01, 6, 2)),
        ("cosine", WarmupCosine(0.01, 6, 2)),
        ("linear", WarmupLinear(0.01, 6, 2)),
        ("constant", WarmupConstant(0.01, 2)),
    ],
)
def test_the_learning_rate_is_that_of_the_named_schedule(schedule: Any, expected: Schedule, tmp_path: Path) -> None:
    given = {} if schedule is None else {"schedule": schedule}
    folder = RunFolder(tmp_path / "run")
    history = (
        small(steps=6, learning_rate=0.01, warmup_steps=2, run_folder=folder, snapshot_every=4, **given).fit().history
    )
    assert [row["learning_rate"] for row in history] == [expected(step) for step in range(6)]
    told = json.loads((snapshots_in(folder.path / "snapshots")[0] / "manifest.json").read_text())["schedule"]
    assert told == {"kind": type(expected).__name__, **asdict(expected)}  # type: ignore[call-overload]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_schedule_of_ones_own_is_followed_and_a_resume_takes_no_other(
    ray_cluster: None, tmp_path: Path, workers: int
) -> None:
    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            trainer.stop()

    folder, given = tmp_path / "run", {"data": clusters(128, 8, 10), "resume": tmp_path / "run"}
    trainer = small(workers=workers, steps=6, schedule=Halves(0.5), run_folder=RunFolder(folder))
    with pytest.raises(Stopped):
        trainer.fit(stop)
    for other in ({}, {"schedule": Halves(0.25)}):
        with pytest.raises(ValueError, match=r"schedule is '.*', but was 'Halves\(first=0.5\)'"):
            Trainer(Chain(Linear(10)), CrossEntropy(), **given, **other)
    with pytest.raises(ValueError, match="--schedule is linear, but the run was started with cosine"):
        Trainer(Chain(Linear(10)), CrossEntropy(), **given, schedule="linear")
    result = Trainer(Chain(Linear(10)), CrossEntropy(), **given, schedule=Halves(0.5)).fit()
    assert [row["learning_rate"] for row in result.history] == [0.5 / 2**step for step in range(6)]


def test_a_function_that_is_a_schedule_is_known_by_its_name_in_every_process(tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        trainer.stop()

    trainer = small(schedule=halves, run_folder=RunFolder(tmp_path / "run"))
    with pytest.raises(Stopped):
        trainer.fit(stop)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["schedule"] == f"{__name__}.halves"
    given = {"data": clusters(128, 8, 10), "resume": tmp_path / "run"}
    result = Trainer(Chain(Linear(10)), CrossEntropy(), **given, schedule=halves).fit()
    assert [row["learning_rate"] for row in result.history] == [0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sine"}, "--schedule is cosine, linear, constant, but got 'sine'"),
        ({"schedule": Halves(1.0), "learning_rate": 0.1}, "leave learning_rate away"),
        (
            {"schedule": Halves(1.0), "learning_rate": 0.1, "warmup_steps": 0},
            "leave learning_rate and warmup_steps away",
        ),
        ({"schedule": Halves(-1.0)}, r"Halves\(first=-1.0\) gives -1.0 for step 0"),
        ({"schedule": lambda step: None if step else 0.1}, "gives None for step 3"),
        ({"schedule": lambda step: float("nan")}, "gives nan for step 0"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_a_rate_of_numpy_s_is_a_number_like_any_other() -> None:
    """In float64 it would make the update compute in that, and the history could not be written."""
    given: dict[str, Any] = {"steps": 3, "batch": 8, "shards": 4, "validation_examples": 16}
    runs = [
        small(schedule=schedule, **given).fit() for schedule in (Halves(0.5), lambda step: np.float64(0.5 / 2**step))
    ]
    assert runs[0].summary["parameters_sha256"] == runs[1].summary["parameters_sha256"]
    rates = [row["learning_rate"] for row in small(schedule=lambda step: np.float32(0.5), **given).fit().history]
    assert rates == [0.5] * 3
    assert {type(rate) for rate in rates} == {float}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": CrossEntropy}, "loss is a Loss, as CrossEntropy(), but got the class CrossEntropy"),
        ({"loss": AdamW()}, "loss is a Loss, as CrossEntropy(), but got an AdamW"),
        ({"optimizer": SGD}, "optimizer is an Optimizer, as AdamW(), but got the class SGD"),
        ({"data": (1, 2)}, "but a tuple has no inputs, targets, nbytes, size, load, describe; of arrays make an ArrayDataset(x, y)"),
        ({"run_folder": "runs/mine"}, "run_folder is a RunFolder, as RunFolder('runs/mine'), but got a str"),
        ({"callbacks": [print]}, "callbacks is a list of objects of subclasses of distributed.Callback, but got a builtin_function"),
        ({"callbacks": Callback()}, "distributed.Callback, but got a Callback; fit also takes functions"),
        ({"schedule": WarmupCosine}, "schedule is a function of the step, as WarmupConstant(0.01), but got the class WarmupCosine"),
        ({"schedule": 0.1}, "schedule is a function of the step, as WarmupConstant(0.01), but got a float"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_named_with_what_to_write(given: dict[str, Any], message: str) -> None:
    arguments = {"loss": CrossEntropy(), "data": clusters(128, 8, 10), **given}
    with pytest.raises(TypeError, match=re.escape(message)):
        Trainer(Chain(Linear(10)), batch=8, shards=4, **arguments)


def test_an_infeasible_budget_names_the_smallest_that_fits() -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        small(memory_budget="engine:1kB")
    assert small(memory_budget=f"engine:{caught.value.smallest}").plans.peak == caught.value.smallest


def test_a_chain_needs_its_loss_and_data() -> None:
    with pytest.raises(ValueError, match="pass both"):
        Trainer(Chain(Linear(10)), CrossEntropy(), batch=8, shards=4)


def test_a_model_that_does_not_take_the_data_says_what_it_takes() -> None:
    with pytest.raises(ValueError, match="CrossEntropy takes outputs"):
        Trainer(Chain(Linear(10), Linear(4)), CrossEntropy(), data=_images(), batch=8, shards=4)


def _images() -> Any:
    from framework import ArrayDataset

    return ArrayDataset(np.zeros((128, 3, 3), np.float32), np.zeros(128, np.int64))


def test_the_history_has_the_metrics_of_each_step_and_validations_where_asked() -> None:
    seen: list[dict[str, Any]] = []
    result = small(steps=5, validate_every=2).fit(seen.append)
    assert seen == result.history
    assert [row["step"] for row in seen] == list(range(5))
    assert [row["step"] for row in seen if "validation_loss" in row] == [1, 3, 4]
    assert {
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "step_seconds",
        "live_bytes",
        "peak_bytes",
    } <= set(seen[0])
    assert result.summary["loss_first"] == seen[0]["loss"]
    assert [row["step"] for row in seen if "validation_accuracy" in row] == [1, 3, 4]


def test_the_accuracy_is_that_of_predictions_and_none_of_a_loss_that_has_none() -> None:
    trainer = small(steps=20)
    result = trainer.fit()
    x, targets = np.empty((8, 8), np.float32), np.empty(8, np.int64)  # one batch of the 13 that there are
    trainer.data.load("validation", validation_windows(trainer.data, 8, 16), x, targets)
    right = np.argmax(predict(trainer.model.chain, result.parameters, x), axis=1) == targets
    assert result.summary["validation_accuracy"] == right.mean()
    data = ArrayDataset(np.ones((40, 3)), np.ones((40, 2)), 16)
    summary = Trainer(Chain(Linear(2)), MeanSquaredError(), data=data, steps=2).fit().summary
    assert summary["validation_accuracy"] is None


def test_a_run_folder_holds_what_was_told_and_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = small(run_folder=RunFolder(folder), seed=3).fit()
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "logs", "metrics.jsonl", "plan.json", "report.html", "report.json", "summary.json",
        "weights.safetensors",
    ]  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == result.summary
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert json.loads((folder / "config.json").read_text())["options"]["seed"] == 3
    again = small(weights=folder / "weights.safetensors", learning_rate=1e-12, steps=1).fit()
    np.testing.assert_allclose(again.parameters.flat, result.parameters.flat, rtol=1e-6, atol=1e-9)


def test_a_run_folder_is_never_overwritten_without_force(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small(run_folder=RunFolder(folder)).fit()
    with pytest.raises(FileExistsError, match="--force"):
        RunFolder(folder)
    (folder / "notes.txt").write_text("mine")
    RunFolder(folder, force=True).open()
    assert sorted(path.name for path in folder.rglob("*")) == ["logs", "notes.txt"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no run folder"):
        RunFolder(other, force=True)


def test_weights_of_another_model_are_refused_before_any_work(tmp_path: Path) -> None:
    result = Trainer(
        Chain(Linear(3), Linear(10)), CrossEntropy(), data=clusters(128, 8, 10), batch=8, shards=4, steps=1
    ).fit()
    weights.save(tmp_path / "weights.safetensors", result.parameters)
    with pytest.raises(ValueError, match="is of another model"):
        small(weights=tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        small(weights=tmp_path / "none.safetensors")


def test_a_cluster_that_does_not_answer_is_an_error_within_seconds() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ClusterError, match=f"nothing answers at 127.0.0.1:{port}"):
        small(workers=2, address=f"127.0.0.1:{port}").fit()
    assert time.monotonic() - started < 6
    with pytest.raises(ClusterError, match="is no address of a Ray cluster"):
        small(workers=2, address="nowhere").fit()


def test_a_worker_that_dies_ends_the_run_with_its_number_and_the_run_goes_on_from_its_last_snapshot(
    ray_cluster: None, tmp_path: Path
) -> None:
    killed = []

    def kill_one(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            (pid,) = [p for p in _actors() if p not in killed][-1:]
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    started = time.monotonic()
    folder = tmp_path / "run"
    with pytest.raises(WorkerLost, match=r"worker [01] of 2 died") as caught:
        small(workers=2, steps=500, run_folder=RunFolder(folder), snapshot_every=1).fit(kill_one)
    assert time.monotonic() - started < 20
    assert killed
    _wait_until_gone()
    last = snapshots_in(folder / "snapshots")[0]
    assert caught.value.__notes__ == [
        f"the last snapshot is {last}; go on from it with: Trainer(..., resume='{folder}')",
        f"the memory report is {folder / 'report.html'}",
    ]
    resumed, whole = small_resumed(folder).summary, small(steps=500).fit().summary
    assert resumed["resumed_after_step"] == int(last.name[-8:])
    assert all(resumed[name] == whole[name] for name in ("parameters_sha256", "losses_sha256"))


def test_a_worker_that_stops_ends_the_run_within_the_timeout_and_is_named(ray_cluster: None, tmp_path: Path) -> None:
    """Also while it should write a snapshot, which nobody else waits for."""
    stopped: list[tuple[int, float]] = []

    def stop_one(row: dict[str, Any]) -> None:
        if row["step"] == 2:
            os.kill(_actors()[-1], signal.SIGSTOP)
            stopped.append((row["step"], time.monotonic()))

    with pytest.raises(WorkerLost, match=r"workers \[[01]\] of 2 are alive but did not answer"):
        folder = RunFolder(tmp_path / "run")
        small(workers=2, steps=500, timeout=1.0, run_folder=folder, snapshot_every=1).fit(stop_one)
    # The other rank's collective waits 1 s, then the driver 5 s for the stopped one; and the workers are ended.
    assert time.monotonic() - stopped[0][1] < 15
    _wait_until_gone()


@dataclass(frozen=True)
class Unstartable:
    """An initializer that fails in the worker."""

    def __call__(self, out: np.ndarray, key: Any) -> None:
        raise ValueError("this initializer explains itself")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_reason_of_a_worker_that_cannot_start_is_told(ray_cluster: None, workers: int) -> None:
    chain = Chain(Linear(10, initializer=Unstartable()))
    trainer = Trainer(chain, CrossEntropy(), data=clusters(128, 8, 10), batch=8, shards=4, workers=workers)
    with pytest.raises(ValueError, match="this initializer explains itself"):
        trainer.fit()


def test_a_run_that_diverges_stops_with_its_step_and_readable_metrics(tmp_path: Path) -> None:
    trainer = small(
        learning_rate=1e38,
        clip_norm=None,
        steps=50,
        warmup_steps=0,
        run_folder=RunFolder(tmp_path / "run"),
        optimizer=SGD(),
    )
    with np.errstate(all="ignore"), pytest.raises(Diverged, match=r"step \d+: the (loss|gradient norm) is (nan|inf)"):
        trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < len(rows) < 50
    assert all(np.isfinite(row["loss"]) for row in rows)


class _Vast:
    """A data set whose example 5, in shard 2, is so large that a product with it overflows; that is validation's example 9, too."""

    inputs, targets, nbytes = Spec.of((8,), np.float32), Spec.of((), np.int64), 0

    def __init__(self, split: str = "train", number: int = 5) -> None:
        self.split, self.number = split, number

    def size(self, split: str) -> int:
        return 8 if split == "train" else 16

    def describe(self) -> dict[str, Any]:
        return {}

    def load(self, split: str, indices: Any, x: np.ndarray, targets: np.ndarray) -> None:
        x.fill(1)
        targets.fill(0)
        for row, index in enumerate(indices):
            if (split, index) == (self.split, self.number):
                x[row] = 3e38


@pytest.mark.parametrize("workers", [0, 2])
def test_what_first_went_bad_is_named_with_its_layer_and_shard(ray_cluster: None, workers: int) -> None:
    chain = Chain(Linear(6, initializer=Constant(0.5)), ReLU(), Linear(10))  # 8 times 0.5 times 3e38 is too large
    model = Model("own", chain, CrossEntropy(), lambda paths: None)  # type: ignore[arg-type,return-value]
    options: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 2, "workers": workers, "validation_examples": 16}
    with pytest.raises(Diverged) as info:
        Trainer(model, data=_Vast(), **options).fit()
    ((rank, finding),) = info.value.findings.items()  # of the rank alone that has it
    assert finding.shard is not None
    assert rank == (finding.shard // 2 if workers else 0)
    assert (finding.what, finding.operation) == ("the output of 0", "forward 0")
    assert (finding.statistics.size, finding.statistics.nan, finding.statistics.infinite) == (12, 0, 6)
    assert {what: round(read.largest / 1e30, 9) for what, read in finding.before if read.size} == {
        "its parameters": 0, "its input": pytest.approx(3e8),
    }  # fmt: skip
    message = str(info.value)
    assert message.startswith("step 0: the loss is nan, so the run is stopped\n")
    told = f"the output of 0 is the first value that is not finite (forward 0, shard {finding.shard}): of 12 numbers 0 are NaN and 6 infinite"
    assert f"stopped\n  {f'rank {rank}: ' if workers else ''}{told}" in message
    assert (
        "the largest magnitude of its parameters 0.5, of its input 3e+38\n  lower the learning rate (0.001)" in message
    )
    assert str(pickle.loads(pickle.dumps(info.value))) == message

    with pytest.raises(Diverged, match=r"(?s)step 1: the validation loss is nan, .*forward 0, shard 0\)") as info:
        Trainer(model, data=_Vast("validation", 9), **options).fit()
    assert list(info.value.findings) == [0]


def test_a_loss_that_is_finite_when_it_is_computed_again_is_told_so() -> None:
    error = Diverged(3, "gradient_norm", float("inf"), {0: None, 1: None}, "lower it")
    assert str(error) == (
        "step 3: the gradient norm is inf, so the run is stopped\n  all values were finite when the step was run again\n  lower it"
    )
    finding = Finding("the output of 0", "forward 0", 3, Statistics(5, 1))
    told = str(Diverged(3, "loss", float("nan"), dict.fromkeys(range(6), finding), "lower it"))
    assert told.count("the output of 0") == 4
    assert (
        "rank 3: the output of 0 is the first value that is not finite (forward 0, shard 3): of 5 numbers 1 are NaN"
        in told
    )
    assert "(and 2 more ranks)" in told


def test_an_error_in_one_worker_is_raised_as_it_is_and_ends_the_others(ray_cluster: None) -> None:
    model = Model("own", Chain(Linear(10)), CrossEntropy(), lambda paths: None)  # type: ignore[arg-type,return-value]
    trainer = Trainer(model, data=_Broken(), batch=8, shards=4, steps=4, workers=2, validation_examples=8)
    started = time.monotonic()
    with pytest.raises(ArithmeticError, match="example 3 is broken"):
        trainer.fit()
    assert time.monotonic() - started < 20
    _wait_until_gone()


class _Broken:
    """A data set whose example 3 cannot be read."""

    inputs, targets, nbytes = Spec.of((8,), np.float32), Spec.of((), np.int64), 0

    def size(self, split: str) -> int:
        return 8

    def load(self, split: str, indices: Any, x: np.ndarray, targets: np.ndarray) -> None:
        if 3 in list(indices):
            raise ArithmeticError("example 3 is broken")
        x.fill(0)
        targets.fill(0)

    def describe(self) -> dict[str, Any]:
        return {"kind": "broken"}


def _actors() -> list[int]:
    """Processes of this session's Ray that run a worker."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie, which is gone as well
            if "WorkerActor" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def _wait_until_gone() -> None:
    deadline = time.monotonic() + 10
    while _actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _actors() == []


def test_options_are_json_ready() -> None:
    options = TrainingOptions(weights=Path("w"), batch=8)
    assert json.loads(json.dumps(options.to_json()))["weights"] == "w"


def test_block_and_heap_give_the_same_bits_and_the_summary_says_where_memory_went() -> None:
    summaries = [
        Trainer(build("mlp-small"), steps=4, batch=16, memory=memory).fit().summary for memory in ("block", "heap")
    ]
    for name in ("parameters_sha256", "losses_sha256", "predicted_peak_bytes", "ledger_peak_bytes"):
        assert summaries[0][name] == summaries[1][name]
    block, heap = summaries
    assert heap["reserved_bytes"] == heap["ledger_peak_bytes"]
    # What lies outside the block, and a block that is a little larger than what lives at once.
    assert block["ledger_peak_bytes"] <= block["reserved_bytes"] <= 1.03 * block["ledger_peak_bytes"]
    for summary in summaries:
        (process,) = (rank["process"] for rank in summary["ranks"])
        assert process["rss"] == process["anonymous"] + process["file"] + process["shared"]
        assert summary["process_baseline_bytes"] + summary["reserved_bytes"] < summary["predicted_process_peak_bytes"]
        assert summary["rss_peak_bytes"] == process["peak_rss"] >= process["uss"] > 0


def test_a_trainer_can_be_started_before_it_fits_closed_and_used_again() -> None:
    trainer = Trainer(
        build("mlp-small"), steps=2, batch=16, memory_budget="2GiB"
    )  # this process has grown over the tests
    assert trainer.planning.predicted_process_nbytes is None
    trainer.start()
    trainer.start()
    assert trainer.process_budget is not None and trainer.planning.predicted_process_nbytes is not None
    assert trainer.planning.predicted_process_nbytes < 2**31
    trainer.close()
    trainer.close()
    hashes = {trainer.fit().summary["parameters_sha256"] for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize(("memory", "budget"), [("heap", None), ("block", None), ("block", "2GiB")])
def test_workers_are_given_plans_that_say_where_arrays_lie(
    threads: None, monkeypatch: pytest.MonkeyPatch, memory: str, budget: str | None
) -> None:
    given = list[WorkerTask]()

    def taken(group: ThreadGroup, tasks: Sequence[WorkerTask]) -> None:
        given.extend(pickle.loads(pickle.dumps([*tasks])))
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadGroup, "start", taken)
    trainer = Trainer(
        build("mlp-small"), steps=1, batch=16, workers=3, shards=8, memory=memory, memory_budget=budget, schedule=WarmupConstant(1e-3)
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        trainer.start()
    assert len(given) == 3
    packed = ["packing" in vars(plan) for task in given for plan in (task.train, task.evaluate)]
    assert packed == [memory == "block"] * 6


def test_what_fails_while_workers_start_does_not_wait_until_all_plans_are_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = list[tuple[Plan, ...]]()

    def slowly(plans: tuple[Plan, ...]) -> None:
        packed.append(plans)
        time.sleep(0.1)

    monkeypatch.setattr("distributed.run_planning.pack_together", slowly)
    planning = Trainer(build("mlp-small"), steps=1, batch=16, workers=8, shards=8).planning
    with pytest.raises(InterruptedError), planning.packed_meanwhile():
        raise InterruptedError
    assert len(packed) < 8
    packed.clear()
    with planning.packed_meanwhile():
        planning.plan()
    assert len(packed) < 8  # plans of before are of no use
    packed.clear()
    with planning.packed_meanwhile():
        pass
    assert packed == [*zip(planning.plans.train, planning.plans.evaluate, strict=True)]


def test_verify_memory_stops_a_run_whose_layer_lies_and_names_it() -> None:
    data = clusters(examples=512, features=8, classes=3)
    chain = Chain(Linear(2048), LyingCopy(), Linear(3))
    options: dict[str, Any] = {"data": data, "steps": 2, "batch": 32, "shards": 1, "verify_memory": True}
    with pytest.raises(MemoryDisagreement, match=r"rank 0: backward 1: .*made in passing"):
        Trainer(chain, CrossEntropy(), memory="heap", **options).fit()
    # In the block, the copy takes the place of an array that lies there, and that cannot go on.
    with pytest.raises(NotAsPlanned, match=r"262,144 bytes more are alive .* had not from context\.empty") as caught:
        Trainer(chain, CrossEntropy(), memory="block", **options).fit()
    assert any("the witness saw: " in note for note in caught.value.__notes__)
    honest = Trainer(Chain(Linear(64), Linear(3)), CrossEntropy(), data=data, steps=2, batch=32, verify_memory=True)
    (found,) = honest.fit().summary["verified"]
    assert found["faults"] == [] and found["points"] > 50 and found["largest_difference"] == 0


class LyingCopy(ReLU):
    """ReLU with a copy of its cotangent that nobody counts."""

    def vjp(self, params: Any, x: Any, y: Any, own: Any, cotangent: Any, grads: Any, context: Any) -> Any:
        return super().vjp(params, x, y, own, cotangent + 0, grads, context)


def test_verify_memory_agrees_after_weights_were_loaded_and_leaves_no_tracing_behind(tmp_path: Path) -> None:
    small(run_folder=RunFolder(tmp_path / "run")).fit()
    (found,) = small(weights=tmp_path / "run", verify_memory=True).fit().summary["verified"]
    assert found["faults"] == []
    trainer = small(verify_memory=True)
    trainer.planning.shares = (replace(trainer.planning.shares[0], limit=100),)
    with pytest.raises(BudgetExceeded):
        trainer.fit()
    assert not tracemalloc.is_tracing()


@dataclass(frozen=True)
class FillsTheDisk(Linear):
    """From its first forward on, the disk of the process has no room."""

    def forward(self, params: Any, x: Any, context: Any) -> Any:
        def full(*_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if context.training:
            os.pwrite = full
        return super().forward(params, x, context)


def test_a_disk_that_fills_up_in_a_worker_ends_the_run_with_its_words(ray_cluster: None, tmp_path: Path) -> None:
    chain = Chain(Linear(16), ReLU(), FillsTheDisk(16), ReLU(), Linear(10))
    trainer = Trainer(
        chain, CrossEntropy(), data=clusters(256, 8, 10), workers=2, batch=8, shards=2, steps=2, policy="offload",
        offload_dir=tmp_path, validation_examples=8,
    )  # fmt: skip
    with pytest.raises(
        OffloadError, match=r"could not be written: No space left on device; .* name a folder on another disk"
    ):
        trainer.fit()
    assert list(tmp_path.iterdir()) == []
