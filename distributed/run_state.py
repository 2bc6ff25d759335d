"""How far a run is, by its folder alone: what a person who watches it wants to know, as plain data.

The run may be another process's and go on meanwhile: files are read as far as they have grown, a line that is half written waits for its
rest, and nothing is locked or changed.
"""

from __future__ import annotations

import json
import platform
import re
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from checkpointing.budgets import ProcessBudget, parse_budget
from distributed.logs import log_file
from distributed.run_folder import read_json
from distributed.snapshots import MANIFEST, snapshots_in, step_of

#: Means of losses that a state has at most.
CURVE = 120
#: Steps whose median says how fast a run is.
_RECENT = 20
_RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} ([A-Z]+) (.*)")
_PROCESS = re.compile(r"process (\d+) on ([^;]*);")
_LIMIT = re.compile(r"limit ([\d,]+) bytes")
_LOST = re.compile(r"worker (\d+) of \d+ died")
#: What ends a run that nobody calls failed, by the name of the error.
_ASKED = {
    "Stopped": "stopped",
    "KeyboardInterrupt": "interrupted",
    "Terminated": "interrupted",
    "SystemExit": "interrupted",
}


@dataclass(frozen=True)
class RankState:
    """One worker, by its log.

    Attributes:
        rank: Its number.
        state: "running", "ended", "failed", "gone" (its process is no more), or "no log".
        process: Its process; None where its log does not say.
        node: Where it is.
        warnings: How many it has written down since it started.
        said: The last that it has.
    """

    rank: int
    state: str
    process: int | None
    node: str
    warnings: int
    said: str


@dataclass(frozen=True)
class SnapshotState:
    """A snapshot: after how many steps, and how many seconds ago."""

    step: int
    age_seconds: float


@dataclass(frozen=True)
class RunState:
    """A run at one moment. Sizes are in bytes, those of the worker with the most.

    Attributes:
        path: Its folder.
        model: Its model.
        status: "starting", "running", "finished", "failed", "stopped" (by SIGTERM after a step, to be resumed), "interrupted", or "gone":
            its process is no more and had no time to say why.
        failure: What ended it, in words.
        step, steps: How many are done, and of how many.
        resumed: How many times it was resumed.
        loss: Of the last step.
        losses: The losses so far, at most `CURVE` means of equally many steps.
        validation_step, validation_loss, validation_accuracy: The last validation, and after how many steps it was.
        tokens_per_second, step_seconds: Medians of the last steps.
        eta_seconds: What the steps that are left take at this speed; None where it does not go on.
        age_seconds: Since the last step was written down.
        live_bytes, peak_bytes: Of the engine.
        budget_bytes: What the engine may take; None for no limit.
        rss_peak_bytes: Of the whole process.
        process_budget_bytes: What that may take; None for no limit, or one that is of the engine.
        ranks: The workers.
        snapshots: The newest first.
        report: The run's report, if it is there.
    """

    path: str
    model: str
    status: str
    failure: str
    step: int
    steps: int
    resumed: int
    loss: float | None
    losses: tuple[float, ...]
    validation_step: int | None
    validation_loss: float | None
    validation_accuracy: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    eta_seconds: float | None
    age_seconds: float | None
    live_bytes: int | None
    peak_bytes: int | None
    budget_bytes: int | None
    rss_peak_bytes: int | None
    process_budget_bytes: int | None
    ranks: tuple[RankState, ...]
    snapshots: tuple[SnapshotState, ...]
    report: str | None

    @property
    def over(self) -> bool:
        """Whether nothing more comes, unless somebody resumes it."""
        return self.status not in ("starting", "running")

    def to_json(self) -> dict[str, Any]:
        """Returns the same as JSON-ready data."""
        return asdict(self)


class Tail:
    """A text file that another process may be writing: its lines, as they come.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "growing"
    >>> tail = Tail(path)
    >>> list(tail.new())
    []
    >>> _ = path.write_text("one\\ntw")
    >>> list(tail.new())
    ['one']
    >>> _ = path.write_text("one\\ntwo\\n")
    >>> list(tail.new())
    ['two']
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None  # its inode
        self._offset, self._part = 0, b""

    def replaced(self) -> bool:
        """Whether it is another file now, or shorter than what was read, so that `new` begins again; True once for each time."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        other = self._file is not None and (found.st_ino != self._file or found.st_size < self._offset)
        if other:
            self._offset, self._part = 0, b""
        self._file = found.st_ino
        return other

    def new(self) -> Iterator[str]:
        """Yields the whole lines that have come since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while block := file.read(2**20):
                    self._offset += len(block)
                    *lines, self._part = (self._part + block).split(b"\n")
                    yield from (line.decode(errors="replace") for line in lines)
        except FileNotFoundError:
            return


class _Log:
    """What a log says since its last start: who writes it, the last record, and how it ended."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._forget()

    def _forget(self) -> None:
        self.process: int | None = None
        self.node, self.said, self.ending, self.text = "", "", "", list[str]()
        self.started, self.warnings = 0.0, 0
        self.limit: int | None = None

    def read(self) -> None:
        """Reads what has come since the last time."""
        if self._tail.replaced():
            self._forget()
        for line in self._tail.new():
            record = _RECORD.fullmatch(line)
            if record is None:
                if self.text:  # of an error
                    self.text.append(line)
                continue
            self._take(*record.groups())

    def _take(self, at: str, level: str, said: str) -> None:
        if said.startswith("start:"):
            self._forget()
            self.started = time.mktime(time.strptime(at, "%Y-%m-%d %H:%M:%S"))
            if named := _PROCESS.search(said):
                self.process, self.node = int(named[1]), named[2]
        elif named := _LIMIT.search(said):
            self.limit = int(named[1].replace(",", ""))
        self.said = said
        self.warnings += level == "WARNING"
        self.text = [said] if level == "ERROR" else []
        if level == "ERROR" or said == "end" or said.startswith("end:"):
            self.ending = said

    @property
    def alive(self) -> bool | None:
        """Whether the process that began to write it is still there; None where that cannot be known, as from another machine."""
        if self.process is None or self.node != platform.node():
            return None
        try:
            born: float = psutil.Process(self.process).create_time()
        except psutil.Error:
            return False
        # A process of that number that was born later is another one.
        return born <= self.started + 1

    @property
    def error(self) -> str:
        """The error that the run ended by, with its notes and without its traceback."""
        kind = self.ending.removeprefix("ended by ")
        begins = re.compile(rf"(?:\w+\.)*{re.escape(kind)}(?:: (.*))?")
        for number in range(len(self.text) - 1, 0, -1):
            if found := begins.fullmatch(self.text[number]):
                return "\n".join([found[1] or kind, *self.text[number + 1 :]]).strip()
        return kind


class WatchedRun:
    """A run folder that is looked at again and again.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: There is no run.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "config.json").is_file():
            what = "there is no such folder" if not path.exists() else "it has no config.json"
            raise FileNotFoundError(f"there is no run to watch in {path}: {what}; name the folder that a run writes to")
        self._path = path
        self._metrics = Tail(path / "metrics.jsonl")
        self._driver = _Log(path / "logs" / "driver.log")
        self._ranks: dict[int, _Log] = {}
        self._forget()

    def _forget(self) -> None:
        self._losses = array("d")
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._validation: dict[str, Any] = {}

    def state(self) -> RunState:
        """Returns how far the run is now."""
        config = read_json(self._path / "config.json")
        options, resumed = self._options(config)
        self._read_metrics()
        self._driver.read()
        ranks = tuple(map(self._rank, range(max(1, options["workers"]))))
        status = self._status()
        last = self._recent[-1] if self._recent else {}
        seconds = self._median("step_seconds")
        left = options["steps"] - len(self._losses)
        return RunState(
            path=str(self._path),
            model=config["model"],
            status=status,
            failure=self._driver.error if status in ("failed", "stopped", "interrupted") else "",
            step=len(self._losses),
            steps=options["steps"],
            resumed=resumed,
            loss=last.get("loss"),
            losses=tuple(_means(self._losses, CURVE)),
            validation_step=self._validation["step"] + 1 if self._validation else None,
            validation_loss=self._validation.get("validation_loss"),
            validation_accuracy=self._validation.get("validation_accuracy"),
            tokens_per_second=self._median("tokens_per_second"),
            step_seconds=seconds,
            eta_seconds=left * seconds if status == "running" and seconds is not None else None,
            age_seconds=_age(self._path / "metrics.jsonl"),
            live_bytes=last.get("live_bytes"),
            peak_bytes=last.get("peak_bytes"),
            budget_bytes=self._driver.limit,
            rss_peak_bytes=last.get("rss_peak_bytes"),
            process_budget_bytes=_process_budget(options.get("memory_budget")),
            ranks=ranks,
            snapshots=tuple(_snapshots(self._path / "snapshots")),
            report=str(self._path / "report.html") if (self._path / "report.html").is_file() else None,
        )

    def _options(self, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The options that the run has now, and how many times it was resumed."""
        resumes = []
        for line in Tail(self._path / "resumes.jsonl").new():
            with suppress(ValueError):
                resumes.append(json.loads(line))
        now = {name: values[1] for name, values in resumes[-1]["changed"].items()} if resumes else {}
        return {**config["options"], **now}, len(resumes)

    def _read_metrics(self) -> None:
        if self._metrics.replaced():  # a run that was resumed has cut it
            self._forget()
        for line in self._metrics.new():
            try:
                row = json.loads(line)
                step, loss = int(row["step"]), float(row["loss"])
            except (ValueError, TypeError, KeyError):
                continue  # a line that a power cut has left
            del self._losses[step:]
            self._losses.append(loss)
            self._recent.append(row)
            if "validation_loss" in row:
                self._validation = row

    def _status(self) -> str:
        driver = self._driver
        if not driver.ending and driver.alive is False:
            driver.read()  # it may have ended since the last time
        if driver.ending.startswith("ended by "):
            return _ASKED.get(driver.ending.removeprefix("ended by "), "failed")
        through = (self._path / "summary.json").is_file()
        if driver.ending or (through and not driver.alive):
            return "finished"
        if driver.process is None:
            return "starting"
        return "gone" if driver.alive is False else "running"

    def _rank(self, rank: int) -> RankState:
        log = self._ranks.setdefault(rank, _Log(log_file(self._path / "logs", rank)))
        log.read()
        lost = [int(number) for number in _LOST.findall(self._driver.error)] if self._driver.ending else []
        if log.process is None:
            state = "no log"
        elif log.ending:
            state = "ended" if log.ending.startswith("end:") else "failed"
        else:
            state = "gone" if log.alive is False or rank in lost or self._driver.ending else "running"
        return RankState(rank, state, log.process, log.node, log.warnings, log.said)

    def _median(self, name: str) -> float | None:
        values = [row[name] for row in self._recent if name in row]
        return median(values) if values else None


def _means(values: array[float], most: int) -> list[float]:
    """Returns the values, or means of equally many, so that there are no more than so many."""
    each = max(1, -(-len(values) // most))
    parts = (values[first : first + each] for first in range(0, len(values), each))
    return [sum(part) / len(part) for part in parts]


def _snapshots(folder: Path) -> Iterator[SnapshotState]:
    for path in snapshots_in(folder):
        age, step = _age(path / MANIFEST), step_of(path)
        if age is not None and step is not None:  # it may be removed meanwhile
            yield SnapshotState(step, age)


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None where there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _process_budget(text: str | None) -> int | None:
    if text in (None, "none"):
        return None
    budget = parse_budget(str(text))
    return budget.nbytes if isinstance(budget, ProcessBudget) else None
