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
