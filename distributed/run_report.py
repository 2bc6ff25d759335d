"""The memory report of a run: what its plans predict, what its workers recorded, and what their processes took; written at its end."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from checkpointing.curve import memory_time_curve
from checkpointing.process_memory import ProcessMemory, give_back_free_memory
from checkpointing.report import json_file
from checkpointing.report.build import frontier_points, policy_row, report
from checkpointing.report.data import FrontierPoint, PolicyRow, Process, Rank, Report
from checkpointing.report.timelines import predicted
from checkpointing.timing_cache import machine
from distributed.callbacks import Callback
from distributed.logs import close_log, open_log
from distributed.plain_process import measure_plain
from distributed.records import config_of
from distributed.run_folder import RunFolder
from distributed.run_planning import Share
from distributed.worker_sizes import outside_of, reserved_nbytes
from framework.durable import write_all, written_aside
from framework.sizes import format_size

if TYPE_CHECKING:
    from distributed.trainer import Trainer

#: Points of the memory-time curve.
_POINTS = 24
#: What drawing the page takes for a moment: the script of its plots alone is 5 MiB, and is there several times.
_ROOM = 32 * 2**20


class Reporter(Callback):
    """Writes ``report.json`` and ``report.html`` when a run has ended, whole, failed or interrupted.

    It decides nothing: what goes wrong here is a warning, and a line of the driver's log.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._trainer: Trainer | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_end(self, error: BaseException | None) -> None:
        trainer, self._trainer = self._trainer, None
        assert trainer is not None
        try:
            left_out = self._write(trainer, error)
        except (Exception, KeyboardInterrupt, SystemExit) as fault:
            left_out = (
                f"the run's memory report could not be written ({type(fault).__name__}: {fault}); all else is there"
            )
        if left_out is None:
            trainer.report = self._folder.report
            if error is not None:
                error.add_note(f"the memory report is {self._folder.report}")
            return
        log = open_log(self._folder.logs / "driver.log")
        log.warning("%s", left_out)
        close_log(log)
        warnings.warn(left_out, RuntimeWarning, stacklevel=2)

    def _write(self, trainer: Trainer, error: BaseException | None) -> str | None:
        """Writes both files; returns why there is no page, if there is none."""
        made, path = report_of(trainer, error), self._folder.report
        data = path.with_suffix(".json")
        json_file.save(made, data)
        room = _room(trainer)
        if room is not None and room < _ROOM:
            return (
                f"{path.name} was not drawn: that takes {format_size(_ROOM)} for a moment, and the budget of the process leaves "
                f"{format_size(max(0, room))}; {data} has all that it shows: draw it with python scripts/profile_memory.py {path.parent} "
                f"--out {path}"
            )
        from checkpointing.report.html import page  # it is not needed before, and not by workers

        with written_aside(path) as descriptor:
            write_all(descriptor, page(made).encode())
        return None


def _room(trainer: Trainer) -> int | None:
    """What a budget of this very process leaves now that the engine is gone; None where nothing limits it."""
    budget = trainer.process_budget
    if trainer.options.workers or budget is None or budget.nbytes is None:
        return None
    give_back_free_memory()
    return budget.nbytes - ProcessMemory.read().rss


def report_of(trainer: Trainer, error: BaseException | None = None) -> Report:
    """Returns the report of a run that has ended.

    Args:
        trainer: The run.
        error: What ended it before its end.
    """
    return report(
        trainer.model.name,
        trainer.plans.train,
        trainer.layout,
        budget=trainer.budget,
        ranks=_ranks(trainer),
        policies=tuple(_policies(trainer)),
        frontier=_frontier(trainer),
        configuration=_configuration(trainer),
        machine=_machine(trainer),
        versions=_versions(trainer),
        failure="" if error is None else _told(error),
    )


def _machine(trainer: Trainer) -> dict[str, Any]:
    found = machine(trainer.options.threads_per_worker)
    memory = {"memory_bytes": psutil.virtual_memory().total, "system": platform.platform()}
    return {name: found[name] for name in ("processor", "cores", "blas")} | memory


def _told(error: BaseException) -> str:
    words = str(error)
    first = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return "\n".join([first, *getattr(error, "__notes__", [])])


def _ranks(trainer: Trainer) -> tuple[Rank, ...]:
    recording = trainer.recording
    plain = measure_plain(*trainer.planning.measured_how) if trainer.options.workers else None
    ranks = []
    for rank, plan in enumerate(trainer.plans.train):
        recorded = recording.steps[rank]
        seen = recorded.timeline if recorded is not None else None
        ranks.append(
            Rank(
                rank=rank,
                node=recorded.node if recorded is not None else "",
                predicted=predicted(plan),
                measured=seen,
                step=recording.step if seen is not None else None,
                process=_process(trainer, rank, plain),
            )
        )
    return tuple(ranks)


def _process(trainer: Trainer, rank: int, plain: int | None) -> Process | None:
    """The memory of a rank's process; None where no step of it has ended.

    Args:
        trainer: The run.
        rank: Whose.
        plain: The baseline of a process without Ray; None where the rank's is one.
    """
    planning, options, recording = trainer.planning, trainer.options, trainer.recording
    rss, baseline = recording.peak(rank), planning.baselines[rank]
    if rss is None:
        return None
    engine = reserved_nbytes(planning.plans.train[rank], planning.plans.evaluate[rank], options.memory == "block")
    engine += outside_of(rank, trainer.layout, options.shards, planning.spread, options.network.chunk)
    engine += planning.holding.others_nbytes(rank)
    ray = max(0, baseline - plain) if plain is not None else 0
    return Process(
        rss=rss,
        engine=engine,
        interpreter=baseline - ray,
        ray=ray,
        unexplained=rss - engine - baseline,
        by_step=tuple(recording.peaks[rank]),
        predicted=planning.predicted_process_of(rank),
    )


def _policies(trainer: Trainer) -> Iterator[PolicyRow]:
    """Store-all, to compare with, and what the run had, measured where it was recorded."""
    plans, recording = trainer.plans, trainer.recording
    if trainer.planning.policy != "store-all":
        yield policy_row(trainer.planning.store_all(), "store-all")
    chosen = policy_row(plans, trainer.planning.policy, trainer.budget, chosen=True)
    peaks = [
        max(each.timeline.inside)
        for each, plan in zip(recording.steps, plans.train, strict=True)
        if each is not None and each.timeline is not None and len(each.timeline.labels) == len(plan.operations)
    ]
    if len(peaks) == len(plans.train):  # all of them recorded a whole step
        chosen = replace(
            chosen,
            ledger_peak=max(peaks),
            rss_peak=max(recording.peak(rank) or 0 for rank in range(len(peaks))),
            step_seconds=median(recording.seconds),
        )
    yield chosen


def _frontier(trainer: Trainer) -> tuple[FrontierPoint, ...]:
    """The memory-time curve where a budget has been planned by it; elsewhere it would be searched for this alone."""
    options = trainer.options
    if trainer.budget is None or options.policy not in (None, "budget") or options.plan is not None:
        return ()
    costs, shards, world = trainer.plans.train[0].costs, options.shards, options.world
    curve = memory_time_curve(
        costs, _POINTS, shards, world, bucket_nbytes=options.bucket_nbytes, updates=trainer.planning.updates
    )
    return frontier_points(curve)


def _configuration(trainer: Trainer) -> dict[str, Any]:
    config = config_of(trainer)
    about = {name: config[name] for name in ("model", "loss", "optimizer", "dtype")}
    request = trainer.run_folder.request if trainer.run_folder is not None else {}
    data = {"data": ", ".join(request["data"])} if request.get("data") else {}
    shares = trainer.planning.shares
    more = {f"plan of {share.told_ranks}": _told_share(share) for share in shares} if len(shares) > 1 else {}
    return {**about, **data, **more, **{name: value for name, value in config["options"].items() if value is not None}}


def _told_share(share: Share) -> str:
    return f"{share.plans.policy.name}, predicted peak {share.peak:,} of {share.limit or 0:,} bytes"


def _versions(trainer: Trainer) -> dict[str, str]:
    from importlib.metadata import version

    return {"retape": version("retape"), **config_of(trainer)["versions"]}
