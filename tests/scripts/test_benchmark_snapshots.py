"""The row of scripts/benchmarks/snapshots.py, of a model that takes no time."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.scripts.helpers import ROOT


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The suite, imported as programs in scripts/ do."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.snapshots")


def test_the_cost_of_a_snapshot_is_told_beside_fifty_steps(
    suite: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "MODEL", "mlp-small")
    monkeypatch.setattr(suite, "in_fresh_process", lambda function, *arguments: function(*arguments))
    (row,) = suite.rows(3)
    assert row.unit == "s" and row.runs == 3
    assert row.peer is not None and row.peer > 0
    assert row.ratio is not None
    assert "with a snapshot of 1 MB, in process" in row.name  # 85,002 parameters of 4 bytes, three times
    assert list(tmp_path.iterdir()) == []


def test_a_delay_is_what_the_steps_after_a_snapshot_take_more(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes on by 1 a step, and by 3 more in the two steps after each snapshot."""
    clock = iter(range(1000))
    moments: list[float] = []

    def perf_counter() -> float:
        number, delays = next(clock), 0
        delays = 3 * (number // suite.PERIOD)
        moments.append(number + delays)
        return moments[-1]

    monkeypatch.setattr(suite, "time", type("Clock", (), {"perf_counter": staticmethod(perf_counter)}))
    found = suite.measure("mlp-small", 0, 8, 4, 4)
    assert (found["step"], found["snapshot"]) == (1, 3)
