"""Callbacks, what is written of a run, and models that a function builds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import Callback, RunFolder, Trainer
from framework import Chain, CrossEntropy, Linear, build
from framework.data import clusters

DATA = clusters(256, 8, 10)
OPTIONS: dict[str, Any] = {"batch": 8, "shards": 4, "steps": 4, "validation_examples": 16}


def small(**options: Any) -> Trainer:
    return Trainer(Chain(Linear(10)), CrossEntropy(), data=DATA, **{**OPTIONS, **options})


class Diary(Callback):
    """Writes down what it is told, and fails where it should."""

    def __init__(self, name: str, pages: list[Any], fails: str = "") -> None:
        self.name, self.pages, self.fails = name, pages, fails

    def write(self, what: str, *more: Any) -> None:
        self.pages.append((self.name, what, *more))
        if what == self.fails:
            raise ArithmeticError(f"{self.name} fails")

    def on_start(self, trainer: Trainer) -> None:
        self.write("start", trainer.plans.peak)

    def on_step(self, row: dict[str, Any]) -> None:
        self.write("step", row["step"], "validation_loss" in row)

    def on_validation(self, done: int, total: int) -> None:
        self.write("validation", done, total)

    def on_end(self, error: BaseException | None) -> None:
        self.write("end", repr(error))


def test_callbacks_are_told_of_start_steps_validations_and_end_in_their_order() -> None:
    pages: list[Any] = []
    rows: list[dict[str, Any]] = []
    trainer = small(callbacks=[Diary("a", pages), Diary("b", pages)], steps=3, validate_every=2)
    result = trainer.fit(rows.append)
    assert [page[1:] for page in pages if page[0] == "a"] == [
        ("start", trainer.plans.peak), ("step", 0, False), ("validation", 2, 2), ("step", 1, True), ("validation", 2, 2),
        ("step", 2, True), ("end", "None"),
    ]  # fmt: skip
    assert [page[0] for page in pages] == ["a", "b"] * 6 + ["b", "a"]
    assert rows == result.history


@pytest.mark.parametrize("fails", ["start", "step", "validation", "end"])
def test_a_callback_that_fails_ends_the_run_and_those_that_were_started_are_told(fails: str, tmp_path: Path) -> None:
    pages: list[Any] = []
    folder = RunFolder(tmp_path / "run")
    diaries = [Diary("a", pages), Diary("b", pages, fails), Diary("c", pages)]
    with pytest.raises(ArithmeticError, match="b fails"):
        small(callbacks=diaries, run_folder=folder).fit()
    ended = [(page[0], page[2]) for page in pages if page[1] == "end"]
    told = "None" if fails == "end" else "ArithmeticError('b fails')"
    assert ended == [(name, told) for name in ("cba" if fails != "start" else "ba")]
    RunFolder(tmp_path / "run", force=True).open()  # nobody holds it any more


def test_an_interrupt_is_told_as_the_error_of_the_end() -> None:
    pages: list[Any] = []

    def interrupt(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(callbacks=[Diary("a", pages)]).fit(interrupt)
    assert pages[-1] == ("a", "end", "KeyboardInterrupt()")


def test_event_files_for_tensorboard_hold_what_the_json_lines_hold(tmp_path: Path) -> None:
    result = small(run_folder=RunFolder(tmp_path / "run"), tensorboard=True, validate_every=2).fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    found = events(tmp_path / "run" / "tensorboard")
    for name, tag in (
        ("loss", "training/loss"),
        ("validation_accuracy", "validation/validation_accuracy"),
        ("peak_bytes", "memory/peak_bytes"),
        ("step_seconds", "speed/step_seconds"),
        ("tokens_per_second", "speed/tokens_per_second"),
    ):
        expected = {row["step"]: row[name] for row in lines if name in row}
        assert found[tag] == pytest.approx(expected, rel=1e-6)  # event files hold float32


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Reads the scalars of event files by tag and step, as TensorBoard does: where a run starts, later steps of before are purged.

    Records are a length, its checksum, data, and its checksum.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {tag: {s: v for s, v in row.items() if s < event.step} for tag, row in found.items()}
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {})
                found[value.tag][event.step] = value.simple_value
    return found


class Killed(BaseException):
    """The end of a program, as it were."""


def test_a_run_that_goes_on_continues_its_event_files_and_logs_and_tells_its_snapshots(tmp_path: Path) -> None:
    """It ends in the middle after a snapshot, and does some steps again: these are there once."""
    folder, told = tmp_path / "run", list[str]()

    class Snapshots(Callback):
        def on_snapshot(self, path: Path) -> None:
            told.append(path.name)

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    options: dict[str, Any] = {"tensorboard": True, "callbacks": [Snapshots()]}
    with pytest.raises(Killed):
        small(run_folder=RunFolder(folder), steps=8, snapshot_every=2, **options).fit(kill)
    given = (lambda: Chain(Linear(10)), CrossEntropy())
    result = Trainer(*given, data=DATA, resume=folder, snapshot_every=2, **options).fit()
    found = events(folder / "tensorboard")
    assert found["training/loss"] == pytest.approx({row["step"]: row["loss"] for row in result.history})
    assert sorted(found["training/loss"]) == list(range(8))
    assert len(list((folder / "tensorboard").iterdir())) == 2
    log = (folder / "logs" / "driver.log").read_text()
    assert log.count("INFO start") == 2 and log.count("ERROR ended by Killed") == log.count("INFO end") == 1
    assert [line.rpartition("/")[2] for line in log.splitlines() if " INFO snapshot " in line] == told != []
    assert (folder / "logs" / "rank-0.log").read_text().count("INFO start: rank 0 of 1") == 2


def test_tensorboard_without_its_package_or_a_run_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="but there is none; give the Trainer a run_folder"):
        small(tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX.*pip install 'retape\[tensorboard\]'"):
        small(tensorboard=True, run_folder=RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_overwrites_another_removes_its_event_files(tmp_path: Path) -> None:
    small(run_folder=RunFolder(tmp_path / "run"), tensorboard=True).fit()
    (tmp_path / "run" / "tensorboard" / "notes.txt").write_text("mine")
    small(run_folder=RunFolder(tmp_path / "run", force=True)).fit()
    assert [path.name for path in (tmp_path / "run" / "tensorboard").iterdir()] == ["notes.txt"]


def test_a_function_may_build_the_model() -> None:
    made = Trainer(lambda: Chain(Linear(10)), CrossEntropy(), data=DATA, **OPTIONS).fit()
    assert made.summary["parameters_sha256"] == small().fit().summary["parameters_sha256"]
    assert Trainer(lambda: build("mlp-small"), **OPTIONS).model.name == "mlp-small"
    with pytest.raises(TypeError, match="returns a Model or a Chain, but got Linear"):
        Trainer(lambda: Linear(10), CrossEntropy(), data=DATA, **OPTIONS)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"got Linear; make a chain of a layer: Chain\(layer\)"):
        Trainer(Linear(10), CrossEntropy(), data=DATA, **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass both"):
        Trainer(lambda: Chain(Linear(10)), CrossEntropy(), **OPTIONS)
