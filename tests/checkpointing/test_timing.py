"""Measured times: of every step, once for equal ones, remembered, and of no influence on bytes or bits."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpointing import costs_of, plan_run, timing, timing_cache
from checkpointing.costs import Times
from distributed import Trainer
from framework import Chain, Layer, Linear, MeanSquaredError, ReLU
from framework.data import clusters
from framework.losses import CrossEntropy
from tests.checkpointing.cases import Case, images, recurrent, tied, tokens


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@dataclass(frozen=True)
class Sleeper(Layer):
    """Takes a known time at least."""

    seconds: float

    def apply(self, params: Any, x: Any, context: Any) -> Any:
        time.sleep(self.seconds)
        return x * 2.0


def measured(case: Case, shards: int = 1, **options: Any) -> Times:
    costs = costs_of(case.chain, case.loss, *case.specs(shards))
    return timing.measure_times(costs, case.chain, case.loss, **options)


def simple(*layers: Layer) -> Case:
    x = np.zeros((4, 8), np.float32)
    return Case("simple", Chain(*layers), MeanSquaredError(), x, x)


@pytest.mark.parametrize("make", [tokens, images, tied, recurrent])
def test_each_step_that_has_a_backward_has_two_times(make: Any) -> None:
    case = make()
    costs, times = costs_of(case.chain, case.loss, *case.specs(2)), measured(case, 2)
    assert len(times.steps) == len(costs.steps)
    for step, seconds in zip(costs.steps, times.steps, strict=True):
        assert seconds.forward > 0
        assert (seconds.backward > 0) == step.trains
    assert min(times.loss) > 0
    assert plan_run(replace(costs, times=times)).train[0].costs.source.startswith("measured: ")


def test_times_are_those_of_the_layers() -> None:
    times = measured(simple(Linear(8), Sleeper(0.003), Linear(8), Sleeper(0.001)))
    (_, _), (slow, slow_back), (_, _), (quick, quick_back) = times.steps
    assert slow >= 0.003
    assert slow_back >= 0.003  # apply runs again in the VJP
    assert 0.001 <= quick < slow
    assert quick_back >= 0.001


def test_equal_steps_are_timed_once_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = simple(Linear(8), ReLU(), Linear(8), ReLU(), Linear(8), Linear(8, bias=False))
    told: list[tuple[int, int, str]] = []
    first = measured(case, progress=lambda *each: told.append(each))
    # The first Linear's input wants no cotangent, so it differs; further Linear, ReLU, Linear without bias, and the loss.
    assert told[0] == (0, 5, "step '0'")
    assert told[-1] == (5, 5, "")
    assert first.steps[2] == first.steps[4]
    assert first.steps[1] == first.steps[3]
    with monkeypatch.context() as patch:
        patch.setattr(timing.subprocess, "Popen", None)  # nothing may be started
        assert measured(case) == first
        with pytest.raises(TypeError):
            measured(case, shards=2)  # other shapes are not known
        with pytest.raises(TypeError):
            measured(case, threads=2)
        with pytest.raises(TypeError):
            measured(case, remember=False)
    (file,) = (timing_cache.folder()).iterdir()
    data = json.loads(file.read_text())
    assert (data["format"], data["version"]) == ("retape.times", 1)
    assert data["machine"]["numpy"] == np.__version__
    name = "ReLU() of float32[4, 8], cotangents True"
    assert data["times"][name] == list(first.steps[1])


def test_layers_of_ones_own_are_not_remembered() -> None:
    measured(simple(Linear(8), Sleeper(0.0)))
    (file,) = timing_cache.folder().iterdir()
    assert not [name for name in json.loads(file.read_text())["times"] if "Sleeper" in name]


@pytest.mark.parametrize("text", ["{", '{"format": "retape.times", "version": 9, "times": {}}', "[]", '{"version": 1}'])
def test_a_file_that_cannot_be_read_is_told_of_and_made_anew(text: str) -> None:
    case = simple(Linear(8))
    path = timing_cache.path_of(timing_cache.machine(1))
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match="times are measured again, since .* cannot be read"):
        times = measured(case)
    assert measured(case) == times


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning) as told:
        assert min(measured(simple(Linear(8))).loss) > 0
    assert "name another folder in XDG_CACHE_HOME" in str(told[-1].message)


def test_the_folder_is_that_of_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for given in ("", "relative/folder"):  # the specification says to ignore relative ones
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert timing_cache.folder() == Path("/home/somebody/.cache/retape")


class Broken(Layer):
    def apply(self, params: Any, x: Any, context: Any) -> Any:
        if context.owner == "Broken":  # as it is called when it is timed
            raise RuntimeError("it broke")
        return x * 1.0


@dataclass(frozen=True)
class Unpicklable(Layer):
    held: Any

    def apply(self, params: Any, x: Any, context: Any) -> Any:
        return x * 1.0


class Deadly(Layer):
    def apply(self, params: Any, x: Any, context: Any) -> Any:
        if context.owner == "Deadly":  # as it is called when it is timed
            os._exit(7)
        return x * 1.0


def test_a_layer_that_cannot_be_timed_is_named() -> None:
    case = simple(Linear(8), ReLU())
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    for bad, error, message in (
        (Broken(), ValueError, "step '1' fails when it is timed on drawn numbers: RuntimeError: it broke"),
        (Unpicklable(each for each in ()), ValueError, "step '1' cannot be timed .* cannot be pickled"),
        (Deadly(), RuntimeError, "ended with code 7 at step '1'"),
    ):
        chain = Chain(Linear(8), bad)
        with pytest.raises(error, match=message):
            timing.measure_times(costs, chain, case.loss)


def test_a_trainer_that_plans_by_measured_times_has_the_same_bits() -> None:
    results = []
    for measured_costs in (False, True):
        trainer = Trainer(
            Chain(Linear(32), ReLU(), Linear(32), ReLU(), Linear(10)),
            CrossEntropy(),
            data=clusters(256, 8, 10),
            batch=16,
            steps=3,
            memory_budget="engine:100%",
            measured_costs=measured_costs,
        )
        results.append(trainer.fit().summary)
    assert [summary["costs"].partition(":")[0] for summary in results] == ["modelled", "measured"]
    assert results[0]["parameters_sha256"] == results[1]["parameters_sha256"]
    assert results[1]["planned_step_seconds"] > 0
    assert results[1]["ledger_peak_bytes"] == results[1]["predicted_peak_bytes"]
