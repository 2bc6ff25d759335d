"""What tests of programs share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.helpers import ROOT
from tests.scripts.programs import Runner

#: Run by every Python that starts with its folder in PYTHONPATH: PyTorch is not to be found.
NO_TORCH = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] == "torch" else find(name, *more)
"""


@pytest.fixture(scope="session", autouse=True)
def shared_memory_is_left_clean(no_shared_file_is_left: None) -> None:
    """Programs leave nothing there."""


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(NO_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"), prepend=":")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports modules of the suite, as programs in scripts/ do."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Runs programs in this process, in a folder of the test's."""
    monkeypatch.chdir(tmp_path)
    return Runner(monkeypatch, capsys)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test import what programs import."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
