"""A head that takes work only from who has its token, for real: what train.py says to one that has none, or another."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
TOKEN = "a" * 64

pytestmark = [
    pytest.mark.memory,
    pytest.mark.skipif(not hasattr(ray.exceptions, "AuthenticationError"), reason="this Ray knows no tokens"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of somebody who has no token."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def address(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a head with a token, in processes of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port), "--num-cpus", "1",
        "--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", str(80 * 2**20),
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("head") / "log"
    with path.open("w") as log:
        head = subprocess.Popen(
            words, env={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 60
            while "Ray runtime started" not in path.read_text():
                assert head.poll() is None and time.monotonic() < deadline, path.read_text()
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()  # it ends what it has started
            head.wait(timeout=60)


def train(address: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "scripts/train.py",
        "--address",
        address,
        "--workers",
        "1",
        "--model",
        "mlp-small",
        "--steps",
        "2",
    ]
    words += ["--no-report", "--run-dir", str(folder)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file"),
        ({"RAY_AUTH_MODE": "token"}, r"wants a token: set .*\(or put it into ~/\.ray/auth_token\)$"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, r"wants a token: .*; /nowhere/token has none$"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}, r"does not take the token that is in RAY_AUTH_TOKEN; put"),
    ],
    ids=["none", "mode alone", "no file", "another"],
)  # fmt: skip
def test_a_token_that_is_missing_or_another_is_told_at_once(
    address: str, environment: dict[str, str], tmp_path: Path, given: dict[str, str], told: str
) -> None:
    done = train(address, {**environment, **given}, tmp_path / "run")
    assert done.returncode == 1, done.stdout + done.stderr
    *others, last = done.stderr.splitlines()
    assert re.search(rf"^error: the Ray cluster at {re.escape(address)} {told}", last), done.stderr
    assert len(others) <= 1  # a warning of Ray's
    assert "b" * 64 not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_who_has_the_token_trains(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = train(address, {**environment, **given}, tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "summary.json").exists() and (tmp_path / "run" / "logs" / "rank-0.log").exists()
