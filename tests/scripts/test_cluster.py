"""scripts/cluster: a submitted job, and two hosts. The manifest for KubeRay is judged in `test_ray_job.py`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from distributed.sources import EXCLUDED

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "scripts" / "cluster"
#: The exit code by which try_two_hosts.sh says that the system lets it make none.
NO_HOSTS = 77


def test_a_job_leaves_the_same_folders_behind_as_a_driver_that_joins() -> None:
    excluded = set(yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())["excludes"])
    assert excluded - {"tests", "*.egg-info"} <= EXCLUDED
    assert {".git", ".venv", "runs", "build", "docs", ".pytest_cache"} <= excluded


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


#: The runs whose results are compared.
OPTIONS = ("--steps", "3", "--validation-examples", "16", "--warmup-steps", "1")
SAME = ("parameters_sha256", "losses_sha256")


def environment(**more: str) -> dict[str, str]:
    """What a script of scripts/cluster is started with."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "PYTHON": sys.executable, **more}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run in process."""
    folder = str(tmp_path_factory.mktemp("alone") / "run")
    words = [sys.executable, "scripts/train.py", *OPTIONS, "--workers", "0", "--json", "--quiet", "--run-dir", folder]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    return {name: json.loads(told)[name] for name in SAME}


@pytest.mark.memory
@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="jobs take ray[default]")
def test_a_submitted_job_gives_the_hash_of_a_run_in_process(tmp_path: Path, alone: dict[str, str]) -> None:
    run = tmp_path / "job"
    started = environment(PORT=free_port(), DASHBOARD_PORT=free_port(), RUN_DIR=str(run))
    done = subprocess.run(
        [CLUSTER / "try_job.sh", *OPTIONS], env=started, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"parameters_sha256 {alone['parameters_sha256']}\n" in done.stdout
    assert "step 3/3" in done.stdout  # the log was followed
    assert (run / "logs" / "rank-1.log").exists()


def on_hosts() -> list[list[str]]:
    """The command lines of processes that know the address of a host of try_two_hosts.sh."""
    found = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [words for words in found if any("10.77.0." in word for word in words)]


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("workers", "options", "more"),
    [
        pytest.param("2+1", (), {}, marks=pytest.mark.memory),
        pytest.param(
            "1+1", ("--shard-optimizer", "--snapshot-every", "2"), {"RATE": "100mbit"}, marks=pytest.mark.soak
        ),
        pytest.param("2+2", ("--chunk-size", "64KiB"), {}, marks=pytest.mark.soak),
        pytest.param("3+1", ("--policy", "sqrt-n"), {}, marks=pytest.mark.soak),
    ],
)
def test_two_hosts_give_the_hash_of_a_run_in_process(
    tmp_path: Path, alone: dict[str, str], workers: str, options: tuple[str, ...], more: dict[str, str]
) -> None:
    run = tmp_path / "run"
    started = environment(WORKERS=workers, RUN_DIR=str(run), **more)
    words = [CLUSTER / "try_two_hosts.sh", *OPTIONS, *options]
    done = subprocess.run(words, env=started, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode == NO_HOSTS:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    for name, value in alone.items():
        assert f"{name} {value}\n" in done.stdout
    assert f"nodes {workers}\n" in done.stdout  # by Ray's ids, though all of it is one machine
    assert f"Ray workers on 2 nodes ({workers})" in done.stdout
    first, last = re.findall(r"peak +[\d.]+ MiB \(([\d,]+) bytes\)", done.stdout)
    assert first == last  # what was told before the first step is the plan that was run
    assert {path.name for path in (run / "logs").iterdir()} > {
        f"rank-{rank}.log" for rank in range(int(workers[0]) + int(workers[2]))
    }
    assert not on_hosts()


@pytest.mark.soak
def test_hosts_and_all_that_runs_there_go_away_with_the_script(tmp_path: Path) -> None:
    started = environment(RUN_DIR=str(tmp_path / "run"))
    words = [CLUSTER / "try_two_hosts.sh", "--steps", "1000"]
    with subprocess.Popen(words, env=started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout and script.stderr
        if not any(line.startswith("step 1/") for line in script.stdout) and script.wait() == NO_HOSTS:
            pytest.skip(script.stderr.read().strip())
        assert on_hosts()
        (hosts,) = psutil.Process(script.pid).children()
        folder = Path(hosts.environ()["FOLDER"])
        assert folder.exists()
        script.terminate()
        assert script.wait(timeout=20) == 128 + signal.SIGTERM
    wait_until(lambda: not on_hosts(), seconds=10)
    assert not folder.exists()
