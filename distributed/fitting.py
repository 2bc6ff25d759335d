"""Fitting: the steps of a run, one after the other, with what comes between and after them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from checkpointing.inspector import Finding
from checkpointing.reduction import Totals
from distributed.callbacks import Callback
from distributed.divergence import Diverged
from distributed.groups import Group
from distributed.interrupts import Stopped
from distributed.records import summary_of
from distributed.saving import Saving
from framework import weights
from framework.parameters import Parameters

if TYPE_CHECKING:
    from distributed.trainer import Trainer

#: Validation batches that are asked for at once, so that progress is seen.
_VALIDATION_CALL = 8


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        summary: What `summary.json` holds.
        history: The metrics of each step; of steps before a resume at least step and loss.
        parameters: The trained parameters.
        weights: The file they were written to, if there is a run folder.
        report: The page with the run's memory report, if there is one.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    parameters: Parameters
    weights: Path | None
    report: Path | None = None


class MemoryDisagreement(RuntimeError):  # noqa: N818  (the name that callers act on)
    """Under `verify_memory`: prediction, ledger and NumPy do not agree; the message names operations and bytes."""


class Fitting:
    """One pass over the steps of a run.

    Args:
        trainer: The run.
        group: Its workers, who have the state after the steps in `history`.
        history: The metrics of the steps that are done.
        told: Is told what happens.
        saving: Has snapshots taken; None where there is no folder for them.

    Attributes:
        stopping: Whether the run is to end after the present step.
    """

    def __init__(
        self, trainer: Trainer, group: Group, history: list[dict[str, Any]], told: Callback, saving: Saving | None
    ) -> None:
        self._trainer, self._group, self._history, self._told = trainer, group, history, told
        self._saving = saving
        self.stopping = False

    def run(self) -> TrainingResult:
        """Does all steps that are left; see `Trainer.fit`."""
        trainer, history = self._trainer, self._history
        steps, saving = trainer.options.steps, self._saving
        for step in range(len(history), steps):
            row = self._step(step)
            if step + 1 == steps or (
                trainer.options.validate_every and (step + 1) % trainer.options.validate_every == 0
            ):
                row |= self._validate(step)
            history.append(row)
            self._told.on_step(row)
            if trainer.options.verify_memory and step == trainer.first_step:
                self._require_verified()
            # The step is committed, and the next one has changed nothing yet.
            if saving is not None:
                saving.after_step(self._group, history)
            if self.stopping and step + 1 < steps:
                self._stop()
        if saving is not None:
            saving.finish(self._group)
        return self._finish()

    def _stop(self) -> NoReturn:
        trainer = self._trainer
        if self._saving is not None:
            self._saving.take_last(self._group, self._history)
        folder = trainer.run_folder.path if trainer.run_folder is not None else None
        raise Stopped(len(self._history), trainer.options.steps, folder)

    def _require_verified(self) -> None:
        """Raises unless prediction, ledger and NumPy agreed in every worker."""
        found = self._trainer.verification = [v for v in self._group.call("verification") if v is not None]
        faults = [f"rank {rank}: {fault}" for rank, v in enumerate(found) for fault in v.faults]
        if faults:
            more = f"\n(and {len(faults) - 20} more)" if len(faults) > 20 else ""
            raise MemoryDisagreement("memory is not as predicted:\n" + "\n".join(faults[:20]) + more)

    def _step(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        rows = self._group.call("step", step)
        seconds = time.perf_counter() - started
        recording = self._trainer.recording
        recording.add(rows, seconds)
        if step == recording.step:  # at once, since a worker may die later
            recording.steps = self._group.call("recorded")
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(rows[0][name]):
                raise self._diverged(step, name, rows[0][name], self._group.call("inspect", step))
        return {
            **{name: rows[0][name] for name in ("step", "loss", "learning_rate", "gradient_norm")},
            "tokens_per_second": self._trainer.targets_of(step) / seconds,
            "step_seconds": seconds,
            "reduce_seconds": max(row["reduce_seconds"] for row in rows),
            "live_bytes": max(row["live_bytes"] for row in rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "rss_peak_bytes": max(row["rss_peak_bytes"] for row in rows),
        }

    def _validate(self, step: int) -> dict[str, float]:
        """Returns the validation loss, and the loss's metric if it has one."""
        batches, loss = len(self._trainer.batches[1]), self._trainer.model.loss
        sums = Totals(0.0, 0.0)
        for first in range(0, batches, _VALIDATION_CALL):
            some = min(_VALIDATION_CALL, batches - first)
            for number, totals in enumerate(self._group.call("validate", first, some)[0], first):
                if not math.isfinite(totals.loss):
                    bad = self._group.call("inspect_validation", number)
                    raise self._diverged(step, "validation loss", totals.loss / totals.divisor, bad)
                sums = Totals(*(a + b for a, b in zip(sums, totals, strict=True)))
            self._told.on_validation(first + some, batches)
        found = {"validation_loss": sums.loss / sums.divisor}
        if loss.metric is not None:
            found[f"validation_{loss.metric}"] = sums.score / sums.divisor
        return found

    def _diverged(self, step: int, name: str, value: float, found: list[Finding | None]) -> Diverged:
        options, folder = self._trainer.options, self._trainer.run_folder
        advice = f"lower the learning rate ({options.learning_rate:g})"
        advice += "" if options.clip_norm else ", or clip the gradient with --clip-norm 1"
        advice += f"; the metrics so far are in {folder.path}" if folder is not None else ""
        return Diverged(step, name, value, dict(enumerate(found)), advice)

    def _finish(self) -> TrainingResult:
        trainer, group = self._trainer, self._group
        reports = group.call("finish")
        hashes = {report["parameters_sha256"] for report in reports}
        if len(hashes) > 1:
            raise RuntimeError(f"the workers' parameters differ at the end of the run: {sorted(hashes)}")
        summary = summary_of(trainer, self._history, reports)
        trainer.recording.finish(reports)
        summary["snapshots"] = self._saving.report() if self._saving is not None else None
        # In this process they are the worker's own, and stay when the rest of it goes: for a copy the budget may have no room. What
        # Ray sends is read-only.
        flat, state = group.call_first("parameters")
        layout, path = trainer.layout, None
        kept = None if state is None else Parameters(layout.state, np.require(state, requirements="W"))
        parameters = Parameters(layout, np.require(flat, requirements="W"), kept)
        trainer.end_workers()
        if trainer.run_folder is not None:
            path = trainer.run_folder.weights.resolve()
            weights.save(path, parameters, {"model": trainer.model.name})
            trainer.run_folder.write("summary.json", summary)
        return TrainingResult(summary, self._history, parameters, path)
