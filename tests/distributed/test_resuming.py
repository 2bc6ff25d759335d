"""A run that is stopped and resumed has the bits of one that was not; what is not the same run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from distributed import FingerprintMismatch, RunFolder, SnapshotCorrupt, Stopped, Trainer, worker
from distributed.snapshots import snapshots_in, verify
from framework import SGD, Chain, CrossEntropy, Linear
from framework.data import clusters
from tests.distributed.saved_runs import Seen, hashes, stopped, trainer


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The summary of the run that nothing interrupts."""
    return trainer().fit().summary


@pytest.mark.parametrize(
    ("after", "before", "then"),
    [
        (1, {}, {}),
        (9, {"memory": "heap"}, {"policy": "recompute-all"}),
        (14, {"policy": "every-k:1"}, {"memory": "heap"}),  # at the end of an epoch
        (23, {}, {"memory_budget": "engine:100%"}),
        (29, {"snapshot_every": 7}, {"policy": "sqrt-n", "snapshot_every": 1}),
    ],
)
def test_a_resumed_run_has_the_bits_of_the_whole_one(
    tmp_path: Path, whole: dict[str, Any], after: int, before: dict[str, Any], then: dict[str, Any]
) -> None:
    stopped(after, trainer(tmp_path / "run", **before))
    result = trainer(resume=tmp_path / "run", **then).fit()
    assert hashes(result.summary) == hashes(whole)
    assert result.summary["resumed_after_step"] == after
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["step"] for row in rows] == list(range(30))
    (entry,) = [json.loads(line) for line in (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()]
    assert entry["step"] == after
    assert {name: values[1] for name, values in entry["changed"].items() if name in then} == then
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["resume"] is None


def test_four_workers_save_what_they_share_out_and_three_resume_without_that_under_another_policy(
    tmp_path: Path, whole: dict[str, Any], ray_cluster: None
) -> None:
    stopped(17, trainer(tmp_path / "run", workers=4, snapshot_every=5, shard_optimizer=True))
    summary = trainer(resume=tmp_path / "run", workers=3, policy="recompute-all").fit().summary
    assert hashes(summary) == hashes(whole)
    assert {report["optimizer_sha256"] for report in summary["ranks"]} == {whole["optimizer_sha256"]}


def test_a_resume_in_the_middle_of_an_epoch_repeats_and_leaves_out_no_example(tmp_path: Path) -> None:
    data = Seen()
    trainer(data=data).fit()
    whole, data.seen = data.seen, []
    stopped(9, trainer(tmp_path / "run", data))
    trainer(data=data, resume=tmp_path / "run").fit()
    assert data.seen == whole
    epoch = 14 * 8
    assert len(set(whole[:epoch])) == epoch  # each example at most once
    assert set(whole[:epoch]) != set(whole[:16]) and whole[:epoch] != whole[epoch : 2 * epoch]


def test_a_run_may_be_stopped_many_times(tmp_path: Path, whole: dict[str, Any]) -> None:
    stopped(3, trainer(tmp_path / "run"))
    for after in (4, 15, 16):
        stopped(after, trainer(resume=tmp_path / "run", keep_snapshots=3))
    assert [path.name[-2:] for path in snapshots_in(tmp_path / "run" / "snapshots")] == ["16", "15", "04"]
    assert hashes(trainer(resume=tmp_path / "run").fit().summary) == hashes(whole)


def test_steps_after_the_snapshot_are_done_again_and_lost_metrics_do_not_matter(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    def break_off(row: dict[str, Any]) -> None:
        if row["step"] == 12:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "run", snapshot_every=5).fit(break_off)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    assert len(lines) == 13
    metrics.write_text(
        "".join([*lines[:3], "{", lines[4].replace('"loss": ', '"loss": 1'), *lines[6:8], lines[8][:20]])
    )
    result = trainer(resume=tmp_path / "run").fit()
    assert result.summary["resumed_after_step"] == 10
    assert hashes(result.summary) == hashes(whole)
    assert [len(row) == 2 for row in result.history[:10]] == [False] * 3 + [True] * 3 + [False] * 2 + [True] * 2
    assert [row["loss"] for row in result.history] == [row["loss"] for row in trainer().fit().history]


def test_a_run_that_has_no_snapshot_yet_starts_again(tmp_path: Path, whole: dict[str, Any]) -> None:
    def break_off(row: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "run").fit(break_off)
    summary = trainer(resume=tmp_path / "run").fit().summary
    assert (summary["resumed_after_step"], hashes(summary)) == (0, hashes(whole))


def test_without_state_of_the_optimizer_nothing_is_missing(tmp_path: Path) -> None:
    def made(**options: Any) -> Trainer:
        given = {"validation_examples": 8, **options}
        return Trainer(Chain(Linear(10)), CrossEntropy(), SGD(), clusters(128, 8, 10), **given)

    options = {"batch": 8, "shards": 2, "steps": 6}
    stopped(3, made(run_folder=RunFolder(tmp_path / "run"), **options))
    assert hashes(made(resume=tmp_path / "run").fit().summary) == hashes(made(**options).fit().summary)


def test_snapshots_come_after_so_many_minutes_and_never_after_the_last_step(tmp_path: Path) -> None:
    summary = trainer(tmp_path / "run", snapshot_minutes=1e-9, snapshot_every=10, keep_snapshots=100).fit().summary
    assert [path.name for path in snapshots_in(tmp_path / "run" / "snapshots")][::-1] == [
        f"step-{step:08d}" for step in range(1, 30)
    ]
    assert summary["snapshots"]["taken"] == 29
    assert summary["snapshots"]["seconds"] > 0


def test_a_snapshot_s_weights_are_those_of_the_step_under_the_usual_names(tmp_path: Path) -> None:
    stopped(30 - 1, trainer(tmp_path / "run"))
    (snapshot,) = snapshots_in(tmp_path / "run" / "snapshots")
    result = trainer(resume=tmp_path / "run").fit()
    with (
        safe_open(snapshot / "weights.safetensors", "numpy") as saved,
        safe_open(tmp_path / "run" / "weights.safetensors", "numpy") as final,
    ):
        assert set(saved.keys()) == set(final.keys()) == set(result.parameters.with_state())
    again = trainer(weights=snapshot, steps=1)
    assert again.fit().parameters.flat.shape == result.parameters.flat.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 16}, "--batch is 16, but the run was started with 8"),
        ({"seed": 8, "shards": 8}, "(?s)--shards is 8, .* 4.*--seed is 8, but the run was started with 7"),
        ({"steps": 40}, "--steps is 40, but the run was started with 30"),
        ({"learning_rate": 0.1}, "--learning-rate is 0.1, but the run was started with 0.003"),
        ({"clip_norm": None}, "--clip-norm is None, but the run was started with 0.5"),
        ({"threads_per_worker": 2}, "--threads-per-worker is 2, but the run was started with 1"),
        ({"data": clusters(128, 8, 10, seed=1)}, "of the data, sha256 is "),
        ({"data": clusters(136, 8, 10)}, "of the data, train_examples is 122, but was 115"),
    ],
)
def test_another_run_is_refused_with_both_values(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    stopped(2, trainer(tmp_path / "run"))
    with pytest.raises(ValueError, match=message):
        trainer(resume=tmp_path / "run", **options)
    with pytest.raises(ValueError, match="optimizer is 'SGD"):
        Trainer(Chain(Linear(10)), CrossEntropy(), SGD(), clusters(128, 8, 10), resume=tmp_path / "run")
    assert trainer(resume=tmp_path / "run").resumed is not None  # nothing stays locked


def test_a_chain_of_other_layers_is_refused(tmp_path: Path) -> None:
    stopped(2, trainer(tmp_path / "run"))
    other = Trainer(
        Chain(Linear(4), Linear(10)), CrossEntropy(), data=clusters(128, 8, 10), resume=tmp_path / "run",
        validation_examples=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="is of another model"):
        other.fit()


def test_what_is_no_stopped_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run to resume in .*nowhere"):
        trainer(resume=tmp_path / "nowhere")
    trainer(tmp_path / "run").fit()
    with pytest.raises(ValueError, match="has finished, so there is nothing to resume"):
        trainer(resume=tmp_path / "run")


def test_a_run_that_goes_on_is_resumed_by_nobody_else(tmp_path: Path) -> None:
    stopped(2, trainer(tmp_path / "run"))
    one = trainer(resume=tmp_path / "run")
    with pytest.raises(FileExistsError, match="another run is writing to"):
        trainer(resume=tmp_path / "run")
    one.fit()
    with pytest.raises(ValueError, match="was resumed already"):
        one.fit()


def test_stopping_without_a_folder_says_that_nothing_was_saved() -> None:
    made = trainer()
    assert not made.stop()  # it does not run
    with pytest.raises(Stopped, match="stopped after step 3 of 30; without a run folder nothing was saved"):
        made.fit(lambda row: made.stop() if row["step"] == 2 else None)


def test_other_cpus_or_libraries_are_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(2, trainer(tmp_path / "run"))
    there = worker.fingerprint(1)
    monkeypatch.setattr(worker, "fingerprint", lambda threads: {**there, "blas": "openblas 9 Z80"})
    with pytest.raises(
        FingerprintMismatch, match=r"(?s)would not go on with the bits .*blas: .* on the snapshot; .*Z80' on this run"
    ):
        trainer(resume=tmp_path / "run").fit()
    stopped(4, trainer(resume=tmp_path / "run", allow_mixed_cpus=True))
    summary = trainer(resume=tmp_path / "run").fit().summary  # on the same as the last one, but not as the first
    assert summary["same_bits"] is False
    assert json.loads((tmp_path / "run" / "resumes.jsonl").read_text().splitlines()[-1])["same_bits"] is False


def test_a_snapshot_of_another_run_is_no_state_of_this_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        stopped(5, trainer(tmp_path / name))
    (tmp_path / "one" / "snapshots" / "step-00000005").rename(tmp_path / "two" / "snapshots" / "step-00000006")
    with pytest.raises(SnapshotCorrupt, match="its manifest is of step 5"):
        verify(tmp_path / "two" / "snapshots" / "step-00000006")
    (tmp_path / "two" / "snapshots" / "step-00000005").rename(tmp_path / "mine")
    (tmp_path / "two" / "snapshots" / "step-00000006").rename(tmp_path / "two" / "snapshots" / "step-00000005")
    with pytest.raises(SnapshotCorrupt, match="it is of another run"):
        trainer(resume=tmp_path / "two")
