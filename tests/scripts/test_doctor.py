"""scripts/doctor.py as a person runs it; tests/distributed/test_doctor.py has its checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.helpers import ROOT
from tests.scripts.programs import Runner


def run_doctor(
    tmp_path: Path, *arguments: str, code: int, limits: str = "", **variables: str
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """Runs the program in a process of its own, under limits of its own, and returns its JSON."""
    words = [sys.executable, str(ROOT / "scripts/doctor.py"), "--json", *arguments]
    command = f'{limits} exec "$@"' if limits else 'exec "$@"'
    environment = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "CORETYPE"))}
    done = subprocess.run(
        ["sh", "-c", command, "sh", *words], cwd=tmp_path, text=True, capture_output=True, timeout=120, check=False,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done


def not_ok(data: dict[str, Any]) -> dict[str, str]:
    """What is not well, but for what other programs on this machine decide."""
    return {
        each["name"]: each["level"] for each in data["findings"] if each["level"] != "ok" and each["name"] != "load"
    }


def test_it_finds_a_foreign_package_instead_of_being_ended_by_it(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "distributed").mkdir(parents=True)
    (foreign / "distributed" / "__init__.py").write_text("Client = object\n")
    data, done = run_doctor(tmp_path, code=1, PYTHONPATH=f"{foreign}:{ROOT}")
    assert [name for name, level in not_ok(data).items() if level == "error"] == ["own packages"]
    assert data["worst"] == "error"
    assert data["errors"] == 1
    assert f"take {foreign} out of PYTHONPATH" in done.stdout


def test_warnings_count_with_strict_alone(program: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    done = program("doctor", "--quiet", "--json")
    (line,) = done.stdout.splitlines()
    assert (done.returncode, done.stderr, json.loads(line)["worst"]) == (0, "", "warning")
    done = program("doctor", "--quiet", "--strict")
    assert (done.returncode, done.stdout) == (1, "")
    assert "OMP_NUM_THREADS is no number of threads" in done.stderr
    done = program("doctor")
    assert "warning  blas threads     OMP_NUM_THREADS=none" in done.stdout
    assert "→ unset OMP_NUM_THREADS" in done.stdout


def test_without_a_package_that_it_needs_it_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name.split('.')[0] == 'rich' else find(name, *more)\n"
    )
    data, done = run_doctor(tmp_path, code=1, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert data["errors"] == 1
    assert done.stdout.startswith(f"error    packages  rich is not installed for {sys.executable}; ")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found here without limits."""
    return run_doctor(tmp_path_factory.mktemp("before"), code=0)[0]


@pytest.mark.memory
@pytest.mark.parametrize(
    ("limits", "name", "level", "code"),
    [
        ("ulimit -n 128;", "open files", "error", 1),
        ("ulimit -n 600;", "open files", "warning", 0),
        ("ulimit -f 2048;", "file size", "warning", 0),
        ("ulimit -v 16000000;", "address space", "warning", 0),
        ("taskset -pc 0 $$ >/dev/null;", "cores", "ok", 0),
    ],
)
def test_limits_of_a_process_are_seen(
    tmp_path: Path, before: dict[str, Any], limits: str, name: str, level: str, code: int
) -> None:
    data, _ = run_doctor(tmp_path, code=code, limits=limits)
    assert not_ok(data) == {**not_ok(before), **({name: level} if level != "ok" else {})}
    if name == "cores":
        assert next(each for each in data["findings"] if each["name"] == "cores")["data"]["usable"] == 1


@pytest.mark.memory
def test_ray_is_started_where_that_is_asked_for_and_a_start_that_fails_is_told(tmp_path: Path) -> None:
    data, _ = run_doctor(tmp_path, "--start-ray", code=0)
    assert "a worker answered" in data["findings"][-1]["told"]
    data, _ = run_doctor(tmp_path, "--start-ray", code=1, RAY_TMPDIR=str(tmp_path / ("long" * 20)))
    assert not_ok(data)["start of Ray"] == "error"
