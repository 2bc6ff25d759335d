"""The suite `scaling` of scripts/benchmark.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from checkpointing.budgets import HEAP_PERCENT, RESERVE_NBYTES
from tests.scripts.helpers import ROOT, last_json, run


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.scaling")


def found(**seconds: float) -> dict[str, dict[str, list[float]]]:
    return {name: {"seconds": [value, value / 2, 100.0], "first": [1.5]} for name, value in seconds.items()}


def test_rows_are_medians_and_the_shortest_in_tokens_per_second_beside_each_peer(suite: Any) -> None:
    case = suite.CASES["byte-gpt-small"]
    staying = {"workers, each on its core": 0.55}
    others = {
        "workers, a copy of the weights each": 0.45,
        **staying,
        "one worker": 1.0,
        "loop": 0.8,
        "ddp": 0.7,
        "ddp, fused": 0.6,
    }
    runs = found(workers=0.5, independent=0.4, **others)
    runs["independent"]["lockstep"] = [0.45, 0.45, 0.6]
    alone, together, ddp, apart, apart_together, apart_ddp, cores, one, *others, first = suite.compared(case, runs)
    every, shortest = others[:6], others[6:]
    tokens = 8 * 256
    assert (alone.ours, alone.peer, alone.better) == (tokens / 0.5, tokens / 0.4, "higher")
    assert (together.ours, together.peer) == (tokens / 0.5, tokens / 0.45)
    assert (apart_together.ours, apart_together.peer) == (tokens / 0.45, tokens / 0.45)
    assert (ddp.ours, ddp.peer, ddp.package) == (tokens / 0.5, tokens / 0.6, "torch")
    assert (apart.ours, apart.peer) == (tokens / 0.45, tokens / 0.4)
    assert (apart_ddp.ours, apart_ddp.peer) == (tokens / 0.45, tokens / 0.6)
    assert (first.ours, first.peer, first.better) == (1.5, 2.0, "lower")
    assert (cores.ours, cores.peer, cores.unit, cores.better) == (0.5, 0.55, "s", "lower")
    assert (one.ours, one.peer, one.unit) == (1.0, 0.8, "s")
    assert (every[0].ours, every[0].peer) == pytest.approx((3 * tokens / 100.75, 3 * tokens / 100.6))
    assert (every[-1].ours, every[-1].peer) == pytest.approx((101.5 / 3, 101.2 / 3))
    assert [(row.ours, row.peer) for row in shortest] == [
        (tokens / 0.25, tokens / 0.2),
        (tokens / 0.25, tokens / 0.3),
        (tokens / 0.225, tokens / 0.2),
        (tokens / 0.225, tokens / 0.3),
        (0.25, 0.275),
        (0.5, 0.4),
    ]
    del runs["ddp"], runs["ddp, fused"]
    assert [row.peer for row in suite.compared(case, runs)][2] is None


@pytest.mark.memory
def test_a_node_s_workers_take_less_the_more_they_share(suite: Any) -> None:  # the suite puts its folder on the path
    nodes = importlib.import_module("benchmarks.node_memory")
    found = [nodes.in_fresh_process(nodes.node_here, "mlp", options) for options in nodes.WAYS.values()]
    for each in found:
        assert each["ledgers"] == each["predicted"]
        # A budget keeps as much back of each process. Not all that is counted is touched.
        most = each["ledgers"] * (1 + HEAP_PERCENT / 100) + nodes.WORKERS * RESERVE_NBYTES
        assert 0.95 * each["ledgers"] <= each["memory"] <= most
    assert found[0]["memory"] > found[1]["memory"] > found[2]["memory"]


@pytest.mark.memory
def test_the_suite_measures_a_small_model(tmp_path: Path) -> None:
    done = run("benchmark", "scaling", "--only", "mlp", "--steps", "2", "--rounds", "1", "--json", cwd=tmp_path)
    data = last_json(done)
    names = [row["name"] for row in data["rows"]]
    assert len(names) == len(set(names)) == 21
    assert all(row["ours"] > 0 for row in data["rows"])
    assert {"workers", "independent", "one worker", "loop"} <= {
        each["configuration"] for each in data["configurations"]
    }
