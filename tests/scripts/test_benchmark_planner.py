"""The parts of the suite `planner` of scripts/benchmark.py, at sizes that take no time, with and without its peer."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.scripts.helpers import ROOT


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The suite, imported as programs in scripts/ do."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks.planner")


def test_every_size_model_and_table_has_a_row(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SIZES", ((12, 50, 1.0),))
    monkeypatch.setattr(planner, "MODELS", {"mlp-small": None})
    monkeypatch.setattr(planner, "installed", lambda package: False)
    rows = list(planner.rows(1))
    assert [row.unit for row in rows] == ["s", "bytes", "s", "s", "s", "s"]
    assert "mlp-small" in rows[2].name
    seconds, memory = rows[0], rows[1]
    assert seconds.ours > 0
    assert memory.peer == 8 * 51 * 13 * 14 // 2
    tables = rows[3:]
    assert all(row.ours > 0 and row.peer is None and row.ratio is None for row in tables)
    assert {row.peer_name for row in tables} == {"checkpoint-schedules"}


def test_a_plan_is_timed_also_where_the_budget_is_too_small(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "BUDGET", "engine:1%")
    assert planner.plan_here("mlp-small") > 0


def test_what_a_process_held_before_hides_no_byte_of_a_table(planner: Any) -> None:
    np.ones(2**23)  # is gone when the table is made, and was more
    _, memory = planner.table_here(60, 1000)
    assert memory >= 8 * 1001 * 61 * 62 // 2
