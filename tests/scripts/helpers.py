"""Runs programs as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def command(script: str, *arguments: str) -> list[str]:
    """The words that start a program. A report of a run takes a second; what is not about it goes without."""
    if script == "train" and not {"--report", "--watch"} & {*arguments}:
        arguments = (*arguments, "--no-report")
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]


def run(script: str, *arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a program, and checks its exit code and that what it prints into a pipe is plain."""
    done = subprocess.run(
        command(script, *arguments), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "\x1b" not in done.stdout + done.stderr
    return done


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return data
