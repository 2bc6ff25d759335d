"""Runs programs in this process, as they stand, which takes a fraction of the time that a process of their own does."""

from __future__ import annotations

import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.helpers import ROOT

#: All programs that a person runs.
PROGRAMS = sorted(path.stem for path in (ROOT / "scripts").glob("[!_]*.py"))


@dataclass(frozen=True)
class Done:
    """What came of a program."""

    returncode: int
    stdout: str
    stderr: str


class Runner:
    """Runs programs with the working directory and the streams that a test has set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, program: str, *arguments: str) -> Done:
        path = str(ROOT / "scripts" / f"{program}.py")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [path, *arguments])
            patch.setattr(sys, "path", [str(Path(path).parent), *sys.path])
            patch.setenv("COLUMNS", "80")
            self._capsys.readouterr()
            try:
                with pytest.raises(SystemExit) as ended:
                    runpy.run_path(path, run_name="__main__")
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0 if code is None else 1, *self._capsys.readouterr())
