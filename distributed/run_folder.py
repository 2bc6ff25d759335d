"""A run folder: what a run was told, what it did, and what came of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

_FILES = ("config.json", "plan.json", "metrics.jsonl", "summary.json", "weights.safetensors")


class RunFolder:
    """Writes the files of a run.

    ``config.json`` and ``plan.json`` come first, a line of ``metrics.jsonl`` after each step, ``summary.json`` and
    ``weights.safetensors`` at the end; each file but the metrics appears whole or not at all.

    Args:
        path: The folder.
        force: Whether an existing run there is overwritten.

    Raises:
        FileExistsError: The folder exists, and `force` is not given or it is no run folder.
    """

    def __init__(self, path: Path, force: bool = False) -> None:
        self.path = path
        self._metrics: TextIO | None = None
        if path.exists():
            self._require_own(force)

    def open(self) -> None:
        """Makes the folder, or empties it of the run that is overwritten."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def write(self, name: str, data: dict[str, Any]) -> None:
        """Writes a JSON file."""
        aside = self.path / (name + ".part")
        aside.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
        aside.replace(self.path / name)

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, at once readable."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("w")
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _require_own(self, force: bool) -> None:
        if not force:
            raise FileExistsError(
                f"run folder {self.path} exists; name another with --run-dir, or overwrite it with --force"
            )
        if not self.path.is_dir() or (any(self.path.iterdir()) and not (self.path / "config.json").exists()):
            raise FileExistsError(f"{self.path} is no run folder, so --force does not overwrite it; name another")


def new_run_path(model: str, root: Path = Path("runs")) -> Path:
    """Returns a folder name of this moment and model that does not exist yet."""
    name = model.replace(":", "-").replace("/", "-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path, number = root / f"{stamp}-{name}", 1
    while path.exists():
        number += 1
        path = root / f"{stamp}-{number}-{name}"
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run.

    Raises:
        FileNotFoundError: There is no such run or file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}; is it the folder of a finished run?")
    data: dict[str, Any] = json.loads(path.read_text())
    return data
