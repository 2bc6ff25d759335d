"""Logs of a run: a file for each rank, wherever it is, and one for the Trainer's process."""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from distributed.callbacks import Callback
from distributed.interrupts import ignored_interrupts
from distributed.readiness import marked
from distributed.records import versions
from distributed.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed.groups import Group
    from distributed.trainer import Trainer

#: A log that a rank keeps is in memory up to so many bytes, and beyond that in a file without a name.
_KEPT_NBYTES = 64 * 2**10


def log_file(folder: Path, rank: int) -> Path:
    """Where a rank's log is."""
    return folder / f"rank-{rank}.log"


def no_log() -> logging.Logger:
    """A log that goes nowhere."""
    log = logging.Logger("none")
    log.addHandler(logging.NullHandler())  # else warnings would go to the standard error output
    return log


def open_log(path: Path) -> logging.Logger:
    """Opens a log, behind what is in the file already.

    It is no child of the logging module's loggers: two runs in one process have nothing in common.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _log(path.stem, logging.FileHandler(path, encoding="utf-8"))


def _log(name: str, handler: logging.Handler) -> logging.Logger:
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.Logger(name)
    log.addHandler(handler)
    return log


class RankLog:
    """The log of a rank: a file in the run folder where the rank sees that, else kept where the rank is until the driver asks for it.

    Args:
        folder: Of the logs.
        rank: Whose.
        mark: A file of this moment in the folder, by which a rank knows it from another one of the same name; None asks for none.

    Attributes:
        log: Where to write.
        fault: Why it is not in the run folder; None if it is there.
    """

    def __init__(self, folder: Path, rank: int, mark: str | None = None) -> None:
        self._kept: IO[str] | None = None
        self.fault: str | None = None
        try:
            if mark is not None and not (folder / mark).exists():
                raise FileNotFoundError(f"{folder} on {platform.node()} is not the folder of the run")
            self.log = open_log(log_file(folder, rank))
        except OSError as error:
            self.fault = str(error)
            self._kept = tempfile.SpooledTemporaryFile(_KEPT_NBYTES, "w+", encoding="utf-8")  # noqa: SIM115  (`close` does)
            self.log = _log(f"rank-{rank}", logging.StreamHandler(self._kept))

    def kept(self) -> str:
        """What has been written so far and is not in the run folder."""
        if self._kept is None:
            return ""
        self._kept.seek(0)
        return self._kept.read()

    def close(self) -> None:
        close_log(self.log)
        if self._kept is not None:
            self._kept.close()


class RankLogs:
    """The driver's side of the ranks' logs: all are in the run folder in the end, as far as their ranks can be asked.

    Attributes:
        faults: For each rank, why it does not write its log there; None if it does.
        lost: The ranks whose logs are not there, since they did not answer or the files could not be written, with the reason.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self.faults: list[str | None] = []
        self.lost: dict[int, str] = {}

    def begin(self, group: Group, run: str, folder: Path | None) -> None:
        """Tells all ranks that the run begins.

        Args:
            group: They.
            run: What it is called.
            folder: Of the logs, if there are any.
        """
        if folder is None:
            group.begin(run, None)
            return
        self._folder = folder
        folder.mkdir(exist_ok=True)
        with marked(folder / "rank-0.log") as mark:
            self.faults = group.begin(run, folder, mark.name)

    def gather(self, group: Group) -> None:
        """Writes the logs that ranks have kept, before these end."""
        apart = [rank for rank, fault in enumerate(self.faults) if fault is not None]
        if not apart:
            return
        try:
            with ignored_interrupts():  # it is over in a moment, and the workers have still to be ended
                kept = group.ask("kept_log")
        except Exception as error:  # what has ended the run is what counts
            self.lost = dict.fromkeys(apart, f"asking for it failed: {error}")
            self.faults = []
            return
        for rank in apart:
            if kept[rank] is None:
                self.lost[rank] = "it did not answer"
                continue
            try:
                with log_file(self._folder, rank).open("a", encoding="utf-8") as file:
                    file.write(kept[rank])
            except OSError as error:
                self.lost[rank] = str(error)
        self.faults = []


def close_log(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)


def log_warnings(log: logging.Logger) -> None:
    """Writes Python's warnings of this process into a log from now on, and nowhere else."""

    def write(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        log.warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = write


def told_process() -> str:
    """This process in words: its number, where it runs, and on what."""
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"process {os.getpid()} on {platform.node()}; {told}"


class DriverLog(Callback):
    """Writes ``logs/driver.log`` of a run folder: start, validations, snapshots, and the end or the error that was it."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._log, self._ranks = no_log(), RankLogs()

    def on_start(self, trainer: Trainer) -> None:
        self._log = open_log(self._folder.logs / "driver.log")
        plans, limit = trainer.plans, trainer.budget
        self._log.info("start: %s", told_process())
        self._log.info("model %s; options %s", trainer.model.name, json.dumps(trainer.options.to_json()))
        self._log.info(
            "policy %s; predicted peak %s bytes in each worker, limit %s",
            trainer.planning.policy, f"{plans.peak:,}", "none" if limit is None else f"{limit:,} bytes",
        )  # fmt: skip
        for share in trainer.planning.shares if len(trainer.planning.shares) > 1 else ():
            self._log.info("of these %s: %s", share.told_ranks, json.dumps(share.to_json()))
        if (resumed := trainer.resumed) is not None:
            self._log.info("resumed after step %d, from %s", resumed.step, resumed.snapshot or "the beginning")
            for words in resumed.damaged:
                self._log.warning("a snapshot was damaged: %s", words)
        self._ranks = trainer.rank_logs
        for rank, reason in enumerate(self._ranks.faults):
            if reason is not None:
                self._log.warning("rank %d keeps its log until it is asked for it at the end: %s", rank, reason)

    def on_step(self, row: dict[str, Any]) -> None:
        if "validation_loss" in row:
            self._log.info("step %d: loss %g, validation loss %g", row["step"], row["loss"], row["validation_loss"])

    def on_snapshot(self, path: Path) -> None:
        self._log.info("snapshot %s", path)

    def on_end(self, error: BaseException | None) -> None:
        for rank, reason in self._ranks.lost.items():
            self._log.warning("the log of rank %d is lost: %s", rank, reason)
        if error is None:
            self._log.info("end")
        else:
            self._log.error("ended by %s", type(error).__name__, exc_info=error)
        close_log(self._log)
