"""A run folder: what a run was told, what it did, and what came of it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from framework.durable import ASIDE, sync, write_all, written_aside

#: The files of a run, as patterns: what an overwriting run removes.
_FILES = (
    "config.json", "config.toml", "plan.json", "metrics.jsonl", "rank-metrics.jsonl", "resumes.jsonl", "summary.json", "weights.safetensors",
    "report.json", "report.html", "logs/*.log", "tensorboard/events.*",
)  # fmt: skip


class RunFolder:
    """Writes the files of a run.

    ``config.json``, a program's ``config.toml`` and ``plan.json`` come first, a line of ``metrics.jsonl`` (and of several ranks one of ``rank-metrics.jsonl``) after each step, ``summary.json`` and
    ``weights.safetensors`` at the end, then ``report.json`` and ``report.html``, also of a run that failed; each file but the metrics appears
    whole or not at all. ``resumes.jsonl`` and ``snapshots/`` are there
    where the run was stopped and went on, and where it was saved. Of runs that begin at the same time one
    gets the folder.

    Args:
        path: The folder.
        force: Whether an existing run there is overwritten.

    Attributes:
        request: What a program was asked for besides the Trainer's options; it goes into ``config.json``, for a resume.
        configuration: A program's options as TOML, by which it starts the same run again; they go into ``config.toml``.

    Raises:
        FileExistsError: The folder exists, and `force` is not given or it is no run folder.
    """

    def __init__(self, path: Path | str, force: bool = False) -> None:
        self.path = Path(path)
        self._force = force
        self._others: Iterator[Path] = iter(())
        self._lock: int | None = None
        self._metrics: TextIO | None = None
        self._rank_metrics: TextIO | None = None
        self._continued = False
        self.request: dict[str, Any] = {}
        self.configuration = ""
        if self.path.exists():
            self._require_own(force)

    @classmethod
    def new(cls, model: str, root: Path = Path("runs")) -> RunFolder:
        """A folder named after this moment and a model; with a number where others have the name, or take it before it is opened."""
        paths = (root / name for name in _names(model))
        folder = cls(next(path for path in paths if not path.exists()))
        folder._others = paths
        return folder

    @classmethod
    def of_stopped(cls, path: Path) -> RunFolder:
        """The folder of a run that was stopped and is to go on: locked at once, nothing in it changed.

        Raises:
            FileNotFoundError: There is no run.
            FileExistsError: It is still going on.
            ValueError: It has finished.
        """
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"there is no run to resume in {path}: it has no config.json")
        folder = cls.__new__(cls)
        folder.path, folder._force, folder._others = path, False, iter(())
        folder._lock = folder._metrics = folder._rank_metrics = None
        folder.configuration = ""
        folder._continued, folder.request = True, read_json(path / "config.json").get("request", {})
        folder._take()
        if (path / "summary.json").exists():
            folder.close()
            raise ValueError(
                f"the run in {path} has finished, so there is nothing to resume; to train its weights further, start a run with "
                f"--weights {path}"
            )
        return folder

    def open(self) -> None:
        """Makes the folder, or empties it of the run that is overwritten; until `close` no other run writes to it.

        That of a stopped run stays as it is.

        Raises:
            FileExistsError: Another run has made it meanwhile, or is still writing to it.
        """
        if self._continued:
            if self._lock is None:
                raise ValueError(f"the run in {self.path} was resumed already; make another Trainer to resume it again")
            return
        while True:
            try:
                self.path.mkdir(parents=True)  # of two at the same time one succeeds
                sync(self.path.parent)
                break
            except FileExistsError:
                other = next(self._others, None)
                if other is None:
                    self._require_own(self._force)
                    break
                self.path = other
        self._take()
        for pattern in _FILES:
            for file in self.path.glob(pattern):
                file.unlink()
        shutil.rmtree(self.snapshots, ignore_errors=True)

    def _take(self) -> None:
        """Locks the folder, which leaves no file behind, and ends with the process at the latest."""
        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise FileExistsError(
                f"another run is writing to {self.path}; wait for its end, or name another folder with --run-dir"
            ) from error

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def logs(self) -> Path:
        """The folder of logs."""
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        """The folder of event files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def report(self) -> Path:
        """The memory report as a page; as data it is beside it, with the ending ``json``."""
        return self.path / "report.html"

    def write(self, name: str, data: dict[str, Any]) -> None:
        """Writes a JSON file."""
        write_json(self.path / name, data)

    def write_configuration(self) -> None:
        """Writes config.toml, if a program has given its options."""
        if self.configuration:
            with written_aside(self.path / "config.toml") as descriptor:
                write_all(descriptor, self.configuration.encode())

    def add_resume(self, entry: dict[str, Any]) -> None:
        """Adds a line to resumes.jsonl."""
        with (self.path / "resumes.jsonl").open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def cut_metrics(self, losses: Sequence[float]) -> list[dict[str, Any]]:
        """Cuts metrics.jsonl back to the steps with these losses, and returns its rows.

        The losses are right, since a snapshot has them. A row that is missing, as after a power cut, or says otherwise, becomes one of
        step and loss alone.
        """
        path = self.path / "metrics.jsonl"
        there: dict[int, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut or damaged
                row = json.loads(line)
                there[row["step"]] = row
        rows: list[dict[str, Any]] = []
        for step, loss in enumerate(losses):
            row = there.get(step)
            rows.append(row if row is not None and row.get("loss") == loss else {"step": step, "loss": loss})
        with written_aside(path) as descriptor:
            write_all(descriptor, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._cut_rank_metrics(len(losses))
        return rows

    def _cut_rank_metrics(self, steps: int) -> None:
        """Cuts rank-metrics.jsonl back to so many steps, as far as it has them."""
        path = self.path / "rank-metrics.jsonl"
        there: dict[int, bytes] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut or damaged
                there[int(json.loads(line)["step"])] = line
        if there:
            with written_aside(path) as descriptor:
                write_all(descriptor, b"".join(line + b"\n" for step, line in sorted(there.items()) if step < steps))

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, at once readable."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a" if self._continued else "w")
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()

    def add_rank_metrics(self, step: int, ranks: Sequence[dict[str, Any]]) -> None:
        """Adds a line with what each rank said of a step to rank-metrics.jsonl, at once readable."""
        if self._rank_metrics is None:
            self._rank_metrics = (self.path / "rank-metrics.jsonl").open("a" if self._continued else "w")
        self._rank_metrics.write(json.dumps({"step": step, "ranks": ranks}, allow_nan=False) + "\n")
        self._rank_metrics.flush()

    def close(self) -> None:
        for file in (self._metrics, self._rank_metrics):
            if file is not None:
                file.close()
        self._metrics = self._rank_metrics = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _require_own(self, force: bool) -> None:
        if not force:
            raise FileExistsError(
                f"run folder {self.path} exists; name another with --run-dir, or overwrite it with --force"
            )
        # One that was killed when it began has a part of its first file.
        others = self.path.is_dir() and any(path.suffix != ASIDE for path in self.path.iterdir())
        if not self.path.is_dir() or (others and not (self.path / "config.json").exists()):
            raise FileExistsError(f"{self.path} is no run folder, so --force does not overwrite it; name another")


def _names(model: str) -> Iterator[str]:
    """Folder names of this moment and a model, the first without a number."""
    name = model.replace(":", "-").replace("/", "-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    yield f"{stamp}-{name}"
    for number in itertools.count(2):
        yield f"{stamp}-{number}-{name}"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a JSON file, which appears whole or not at all."""
    with written_aside(path) as descriptor:
        write_all(descriptor, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run.

    Raises:
        FileNotFoundError: There is no such run or file.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; name the folder of a run, as in runs/TIME-MODEL")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}, so it is not the folder of a run")
    data: dict[str, Any] = json.loads(path.read_text())
    return data
