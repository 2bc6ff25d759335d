"""Logs of a run: a file for each rank, and one for the Trainer's process."""

from __future__ import annotations

import json
import logging
import os
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.callbacks import Callback
from distributed.records import versions
from distributed.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed.trainer import Trainer


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
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.Logger(path.stem)
    log.addHandler(handler)
    return log


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
        self._log = no_log()

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
        for rank, reason in enumerate(trainer.without_log):
            if reason is not None:
                self._log.warning("rank %d has no log: %s", rank, reason)

    def on_step(self, row: dict[str, Any]) -> None:
        if "validation_loss" in row:
            self._log.info("step %d: loss %g, validation loss %g", row["step"], row["loss"], row["validation_loss"])

    def on_snapshot(self, path: Path) -> None:
        self._log.info("snapshot %s", path)

    def on_end(self, error: BaseException | None) -> None:
        if error is None:
            self._log.info("end")
        else:
            self._log.error("ended by %s", type(error).__name__, exc_info=error)
        close_log(self._log)
