"""Ray on this machine alone: what it starts, and what it is told."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from distributed.cluster import _SETTINGS_ALONE, _with_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def programs() -> dict[str, psutil.Process]:
    """What this process has started, by the names of the files in the command lines."""
    return {
        Path(word).name: process for process in psutil.Process().children(recursive=True) for word in process.cmdline()
    }


def test_what_a_run_on_one_machine_has_no_use_for_does_not_stay() -> None:
    found = programs()
    assert {"raylet", "gcs_server"} <= found.keys()
    assert not {"log_monitor.py", "monitor.py"} & found.keys()


def test_ray_is_told_what_it_need_not_do() -> None:
    raylet = programs()["raylet"].environ()
    assert {name: raylet[name] for name in _SETTINGS_ALONE} == {
        name: os.environ.get(name, value) for name, value in _SETTINGS_ALONE.items()
    }


def test_what_ray_is_told_here_a_cluster_that_is_joined_later_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TOLD_BEFORE", "by a person")
    monkeypatch.delenv("RAY_NOT_TOLD", raising=False)
    with _with_settings({"RAY_TOLD_BEFORE": "0", "RAY_NOT_TOLD": "1"}):
        assert (os.environ["RAY_TOLD_BEFORE"], os.environ["RAY_NOT_TOLD"]) == ("by a person", "1")
    assert os.environ["RAY_TOLD_BEFORE"] == "by a person" and "RAY_NOT_TOLD" not in os.environ
