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
    rows = list(suite.rows(5, (0.1, 10.0), gloo=False))
    ends = (", 0.1 MB", ", 10 MB", ": latency", ": bandwidth", ": largest error of the fit")
    assert [row.name for row in rows] == ["across nodes, 2 workers" + end for end in ends]
    assert [row.unit for row in rows] == ["GB/s", "GB/s", "s", "GB/s", "1"]
    assert all(row.ours >= 0 and row.peer is None for row in rows)
    # The rows are what the fit is made of: it tells the time of 10 MB as exactly as it says.
    times, (latency, bandwidth, error) = 0.01 / rows[1].ours, (row.ours for row in rows[2:])
    assert abs((latency + 0.01 / bandwidth) / times - 1) <= error + 1e-6


def test_latency_and_bandwidth_are_those_that_times_were_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    fit = importlib.import_module("benchmarks.cross_node").fit
    sizes = [1e3, 1e6, 1e7, 1e8]
    found = fit(sizes, [0.002 + size / 4e8 for size in sizes])
    assert (found.latency, found.bandwidth, found.error) == pytest.approx((0.002, 4e8, 0.0))
    assert fit(sizes, [size / 4e8 for size in sizes]).latency == pytest.approx(0, abs=1e-9)
    assert fit([1e6, 2e6], [0.001, 0.003]).latency == 0.0
    slow = fit(sizes, [0.002 + size / 4e8 * (1.5 if size == 1e7 else 1) for size in sizes])
    assert 0.1 < slow.error < 0.5
    with pytest.raises(ValueError, match="no bandwidth fits; measure larger ones"):
        fit([1e3, 1e4], [0.002, 0.001])
