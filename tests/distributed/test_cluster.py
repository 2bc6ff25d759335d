"""Ray on this machine alone: what it starts, and what it is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
import ray
import threadpoolctl

import distributed.worker_actor
from distributed.cluster import _search_path, _settings_alone, _with_settings

ROOT = Path(distributed.__file__).resolve().parents[1]

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
    raylet, told = programs()["raylet"].environ(), _settings_alone(threads=1)
    assert {name: raylet[name] for name in told} == {name: os.environ.get(name, value) for name, value in told.items()}


def test_who_becomes_a_worker_has_this_code_before() -> None:
    @ray.remote
    def loaded() -> tuple[str, int]:
        """Called by a process that has done nothing for us yet; what it runs is sent to it."""
        module = sys.modules["distributed.worker_actor"]
        return str(module.__file__), len(threadpoolctl.threadpool_info())

    place, pools = ray.get(loaded.remote())
    assert place == distributed.worker_actor.__file__
    assert pools  # BLAS is there, too


def test_what_ray_is_told_here_a_cluster_that_is_joined_later_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TOLD_BEFORE", "by a person")
    monkeypatch.delenv("RAY_NOT_TOLD", raising=False)
    monkeypatch.setenv("RAY_PATH", "before")
    names = ("RAY_TOLD_BEFORE", "RAY_NOT_TOLD", "RAY_PATH")
    with _with_settings({"RAY_TOLD_BEFORE": "0", "RAY_NOT_TOLD": "1"}, {"RAY_PATH": "root:before"}):
        assert [os.environ[name] for name in names] == ["by a person", "1", "root:before"]
    assert [os.environ.get(name) for name in names] == ["by a person", None, "before"]


def test_ray_looks_for_this_code_here_first_unless_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert _search_path() == {"PYTHONPATH": str(ROOT)}
    monkeypatch.setenv("PYTHONPATH", "mine")
    assert _search_path() == {"PYTHONPATH": f"{ROOT}{os.pathsep}mine"}
    # Other packages that are installed there must not come before Python's own.
    monkeypatch.setattr("site.getsitepackages", lambda: [str(ROOT)])
    assert _search_path() == {}
