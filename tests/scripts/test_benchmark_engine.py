"""The suite `engine` of scripts/benchmark.py, on its smallest model, with and without PyTorch."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.scripts.helpers import last_json, run

COLUMNS = {"name", "unit", "ours", "peer", "peer_name", "ratio", "better", "runs", "ours_name"}


def test_our_side_is_measured_without_pytorch(tmp_path: Path, without_torch: None) -> None:
    done = run("benchmark", "engine", "--only", "tiny-chain", "--steps", "3", "--rounds", "2", "--json", cwd=tmp_path)
    data = last_json(done)
    assert data["versions"]["torch"] is None
    assert [row["name"].partition(", batch 1, ")[2] for row in data["rows"]] == [
        f"{where}, V = 1: {what}"
        for where in ("1 thread", "2 cores")
        for what in ("time of a step", "shortest step", "peak memory")
    ]
    for row in data["rows"]:
        assert set(row) == COLUMNS
        assert row["peer"] is row["ratio"] is None
        assert row["ours"] > 0
    times, least, peaks = data["rows"][:3]
    assert (times["runs"], peaks["runs"]) == (6, 2)
    assert least["ours"] <= times["ours"]
    assert peaks["ours"] < 8 * 2**20  # arrays of kilobytes; libraries are in the baseline
    assert [(each["side"], each["threads"]) for each in data["configurations"]] == [("ours", 1), ("ours", 2)]
    assert "torch is not installed" in done.stdout


@pytest.mark.peers
def test_the_faster_configuration_of_pytorch_is_the_peer(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run("benchmark", "engine", "--only", "tiny-chain", "--steps", "3", "--rounds", "1", "--json", cwd=tmp_path)
    data = last_json(done)
    for cores, rows in ((1, data["rows"][:3]), (2, data["rows"][3:])):
        peers = [
            each["seconds_median"]
            for each in data["configurations"]
            if each["side"] == "pytorch" and each["threads"] * each["processes"] == cores
        ]
        assert len(peers) == 2  # either AdamW; one example cannot be dealt to two processes
        assert rows[0]["peer"] == min(peers)
        for row in rows:
            assert row["ratio"] == row["ours"] / row["peer"]


@pytest.mark.memory
def test_two_workers_begin_with_the_loss_of_one_thread(modules: Any) -> None:
    cases, run_here = modules("engine_cases"), modules("engine_sides").run_here
    fresh = modules("measure").in_fresh_process
    alone, workers = (
        fresh(run_here, "mlp", cases.Configuration("ours", processes=count, shards=2).to_json(), 2) for count in (1, 2)
    )
    assert workers["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert len(workers["seconds"]) == 2
    assert workers["peak"] > 1.5 * alone["peak"]  # it is the sum of both


@pytest.mark.peers
def test_two_processes_of_pytorch_begin_with_the_loss_of_ours(modules: Any) -> None:
    pytest.importorskip("torch")
    cases, run_here = modules("engine_cases"), modules("engine_sides").run_here
    fresh = modules("measure").in_fresh_process
    ours = fresh(run_here, "mlp", cases.Configuration("ours").to_json(), 1)
    peer = fresh(run_here, "mlp", cases.Configuration("pytorch", processes=2, fused=True).to_json(), 1)
    assert peer["loss"] == pytest.approx(ours["loss"], rel=1e-5)


def test_rows_take_each_side_s_fastest_configuration(modules: Any) -> None:
    cases, engine = modules("engine_cases"), modules("engine")
    case, how = cases.CASES["mlp"], cases.Configuration
    seconds = {
        how("ours"): [3.0, 5.0, 4.0],
        how("ours", shards=8): [9.0],
        how("ours", budget=case.budget): [8.0],
        how("ours", threads=2): [6.0],
        how("ours", threads=2, shards=8): [7.0],
        how("ours", processes=2, shards=2): [2.5],
        how("ours", processes=2, shards=8): [7.5],
        how("pytorch"): [2.0],
        how("pytorch", fused=True): [1.0],
        how("pytorch", threads=2): [0.9],
        how("pytorch", threads=2, fused=True): [0.8],
        how("pytorch", processes=2): [0.5],
        how("pytorch", processes=2, fused=True): [0.6],
    }
    found = {each: engine.Measured(each, some, [100, 300, 200], [1.0]) for each, some in seconds.items()}
    rows = [row for row in engine._comparisons(case, found) if row.unit == "s" and "time" in row.name]
    assert [(row.ours, row.peer) for row in rows] == [(4.0, 1.0), (9.0, 1.0), (8.0, 1.0), (2.5, 0.5), (7.0, 0.5)]
    assert rows[0].peer_name == "PyTorch, 1 thread, fused AdamW"
    assert "2 cores, V = 1, or 2 with workers: " in rows[3].name
    assert (rows[3].ours_name, rows[3].peer_name) == ("2 workers, V = 2", "PyTorch, 2 processes")
    assert all(median(each.peaks) == 200 for each in found.values())


def test_sides_that_do_not_compute_the_same_are_not_compared(modules: Any) -> None:
    cases, engine = modules("engine_cases"), modules("engine")
    mine, other = cases.Configuration("ours"), cases.Configuration("pytorch")
    case = cases.CASES["mlp"]
    for loss in (2.31, float("nan")):
        found = {how: engine.Measured(how, [1.0], [1], [at]) for how, at in ((mine, 2.30), (other, loss))}
        with pytest.raises(RuntimeError, match="do not compute the same"):
            engine._require_same_losses(case, found)


def test_the_profile_accounts_for_the_whole_step(tmp_path: Path, without_torch: None) -> None:
    done = run("benchmark", "engine", "--profile", "tiny-chain", "--steps", "1", "--json", cwd=tmp_path)
    found = last_json(done)["profile"]
    operations = {row["operation"]: row for row in found["operations"]}
    for kind in ("Forward Linear", "Forward ReLU", "Backward Linear", "Backward ReLU"):
        assert operations[kind]["count"] == 50
        assert operations[kind]["seconds"] > 0
        assert kind in done.stdout
    assert operations["Update"]["count"] == 1
    assert {row["peer_seconds"] for row in found["operations"]} == {None}
    assert sum(row["seconds"] for row in found["operations"]) == pytest.approx(found["step_seconds"])
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("engine", "--only", "gpt-9"), "the suite engine has no model 'gpt-9'; it has byte-gpt-small, mlp"),
        (("engine", "--profile", "gpt-9"), "has no model 'gpt-9'"),
        (("engine", "--steps", "0"), "--steps must be at least 1, but got 0"),
        (("engine", "--rounds", "-1"), "--rounds must be at least 1"),
        (("derivatives", "--profile", "mlp"), "--profile is for the suite engine, but the suite is derivatives"),
    ],
)
def test_bad_input_is_a_clear_error(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("benchmark", *arguments, cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.split())
