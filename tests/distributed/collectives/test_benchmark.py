"""The suite `collectives` of scripts/benchmark.py, on small arrays: what it measures are right sums."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import ray

SCRIPTS = Path(__file__).parents[3] / "scripts"


def test_rows_are_named_by_way_workers_and_size(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    suite = importlib.import_module("benchmarks.collectives")
    monkeypatch.setattr(suite.cross_node, "rows", lambda runs, megabytes, gloo: iter(()))
    ray.cloudpickle.register_pickle_by_value(suite)  # the cluster was started without the path of scripts
    rows = list(suite.rows(5, worlds=(2,), megabytes=(0.001, 0.1), gloo=False))
    assert [row.name for row in rows] == [
        f"{way}, 2 workers, {size} MB"
        for size in ("0.001", "0.1")
        for way in ("in place", "copied", "in place against copyto")
    ]
    for row in rows:
        assert (row.unit, row.better, row.runs) == ("GB/s", "higher", 5)
        assert row.ours > 0
        assert (row.ratio is not None) == (row.peer_name == "np.copyto")


def test_a_wrong_sum_ends_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    suite = importlib.import_module("benchmarks.collectives")
    rank = suite.Rank(0, 1, 10, None)
    rank._shared.all_reduce = lambda array: array + 1
    with pytest.raises(RuntimeError, match=r"in place: rank 0 has .* instead of 1 everywhere"):
        rank.prepare(10)


@pytest.mark.memory
def test_two_nodes_are_measured_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    suite = importlib.import_module("benchmarks.cross_node")
    rows = list(suite.rows(5, (0.01, 0.1), gloo=False))
    names = ["across nodes, 2 workers" + end for end in (", 0.01 MB", ", 0.1 MB", ": latency", ": bandwidth")]
    assert [row.name for row in rows] == names
    assert [row.unit for row in rows] == ["GB/s", "GB/s", "s", "GB/s"]
    assert all(row.ours >= 0 and row.peer is None for row in rows)


def test_latency_and_bandwidth_are_those_that_times_were_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    suite = importlib.import_module("benchmarks.cross_node")
    sizes = [1e3, 1e6, 1e7, 1e8]
    latency, bandwidth = suite.latency_and_bandwidth(sizes, [0.002 + size / 4e8 for size in sizes])
    assert latency == pytest.approx(0.002)
    assert bandwidth == pytest.approx(4e8)
    assert suite.latency_and_bandwidth(sizes, [size / 4e8 for size in sizes])[0] == pytest.approx(0, abs=1e-9)
    assert suite.latency_and_bandwidth([1e6, 2e6], [0.001, 0.003])[0] == 0.0
