"""The Trainer: what a training script uses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpointing.budgets import ProcessBudget
from checkpointing.executor import Totals
from checkpointing.inspector import Finding
from checkpointing.runs import RunPlans
from checkpointing.timing import Progress
from checkpointing.witness import Verification
from distributed.callbacks import Callback, Callbacks, Functions, JsonLines, OnStep, OnValidation, TensorBoard
from distributed.divergence import Diverged
from distributed.groups import Group, LocalGroup, RayGroup
from distributed.logs import DriverLog
from distributed.options import TrainingOptions
from distributed.records import config_of, summary_of
from distributed.run_folder import RunFolder
from distributed.run_planning import RunPlanning
from distributed.worker import WorkerTask, validation_windows
from framework import weights
from framework.data import Batches, Dataset
from framework.layers import Chain
from framework.losses import Loss
from framework.models import Model
from framework.optimizers import AdamW, Optimizer
from framework.parameters import Layout, Parameters
from framework.schedules import WarmupCosine
from framework.sizes import parse_size

#: Validation batches that are asked for at once, so that progress is seen.
_VALIDATION_CALL = 8


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run.

    Attributes:
        summary: What `summary.json` holds.
        history: The metrics of each step.
        parameters: The trained parameters.
        weights: The file they were written to, if there is a run folder.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    parameters: Parameters
    weights: Path | None


class MemoryDisagreement(RuntimeError):  # noqa: N818  (the name that callers act on)
    """Under `verify_memory`: prediction, ledger and NumPy do not agree; the message names operations and bytes."""


class Trainer:
    """Trains a model under a memory budget, in this process or on Ray workers, with the same bits for any number of them.

    Everything that can be known beforehand is checked and planned when the Trainer is made. With a budget of the whole process,
    `plans` and `budget` come with `start`, which measures the processes.

    Args:
        model: A `Model` (see `framework.build`), or a chain, or a function without arguments that builds one of them; a chain comes
            with `loss` and `data`.
        loss: The loss, if `model` is a chain.
        optimizer: By default AdamW.
        data: The examples; by default the model's own.
        run_folder: Where the run is recorded; None records nothing.
        callbacks: Told what happens in the run (see `distributed.callbacks.Callback`), after what writes into the run folder.
        on_measuring: Told how far it is when times are measured (see `checkpointing.timing.measure_times`).
        **options: See `TrainingOptions`.

    Raises:
        ValueError: An option is wrong, or the model does not take the data.
        InfeasibleBudget: The policy does not fit the budget, or nothing does.

    >>> from framework import Chain, CrossEntropy, Linear
    >>> from framework.data import clusters
    >>> trainer = Trainer(Chain(Linear(10)), CrossEntropy(), data=clusters(256, 8, 10), batch=16, steps=3)
    >>> trainer.plans.peak == trainer.fit().summary["ledger_peak_bytes"]
    True
    """

    def __init__(
        self,
        model: Model | Chain | Callable[[], Model | Chain],
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        data: Dataset | None = None,
        *,
        run_folder: RunFolder | None = None,
        callbacks: Sequence[Callback] = (),
        on_measuring: Progress | None = None,
        **options: Any,
    ) -> None:
        self.options = _options(options)
        model = _model(model, loss, data)
        self.data = data if data is not None else model.dataset(())
        model = model.fitted(self.data)
        self.model = replace(model, loss=loss) if loss is not None else model
        self.optimizer = optimizer or AdamW()
        self.run_folder = run_folder
        self._callbacks = [*self._recording(), *callbacks]
        batch, last_batch = self.options.batch, self.options.last_batch
        self.validation = validation_windows(self.data, batch, self.options.validation_examples, last_batch)
        #: How the examples of a training epoch, and those of a validation, are cut into batches.
        self.batches = (
            Batches(self.data.size("train"), batch, last_batch),
            Batches(len(self.validation), batch, last_batch),
        )
        self._group: Group | None = None
        self.verification: list[Verification] = []
        #: For each rank, why it has no log although there is a run folder.
        self.without_log: list[str | None] = []
        self.planning = RunPlanning(self.model, self.optimizer, self.data, self.options, self.batches, on_measuring)
        if self.options.weights is not None:
            weights.require_match(self._weights_file, self.layout)  # refused before any worker starts

    def fit(self, on_step: OnStep | None = None, on_validation: OnValidation | None = None) -> TrainingResult:
        """Trains.

        The arguments are for what one function can do; `callbacks` of the Trainer are told more.

        Args:
            on_step: Called after each step with ``step, loss, learning_rate, gradient_norm, tokens_per_second,
                step_seconds, reduce_seconds`` (of which the all-reduce kept the workers waiting, also for the slowest of them),
                ``live_bytes, peak_bytes, rss_peak_bytes`` (of the worker with the most), and with ``validation_loss`` after a
                validation, and the loss's metric if it has one, as ``validation_accuracy``.
            on_validation: Called during a validation with the batches done and all batches.

        Raises:
            BudgetExceeded: A layer's footprint was wrong; the budget was not passed.
            Diverged: A loss or a gradient is not finite any more.
            WorkerLost: A worker died.
            ClusterError: Ray cannot be reached or has no room.

        After an interrupt the workers are gone and the metrics so far are readable.
        """
        options, history = self.options, list[dict[str, Any]]()
        self.start()
        group = self._group
        assert group is not None
        told = Callbacks([*self._callbacks, Functions(on_step, on_validation)])
        try:
            if self.run_folder is not None:  # only now: a run that cannot start leaves nothing
                self.run_folder.open()
                self.run_folder.write("config.json", config_of(self))
                self.plans.train[0].save(self.run_folder.plan)
            self.without_log = group.begin(*self._name_and_logs())
            told.on_start(self)
            for step in range(options.steps):
                row = self._step(group, step)
                last = step + 1 == options.steps
                if last or (options.validate_every and (step + 1) % options.validate_every == 0):
                    row |= self._validate(group, step, told.on_validation)
                history.append(row)
                told.on_step(row)
                if options.verify_memory and step == 0:
                    self._require_verified(group)
            result = self._finish(group, history)
        except BaseException as error:
            self._end(told, error)
            raise
        self._end(told, None)
        return result

    def _end(self, told: Callbacks, error: BaseException | None) -> None:
        self.close()
        try:
            told.on_end(error)
        finally:
            if self.run_folder is not None:
                self.run_folder.close()

    def start(self) -> None:
        """Starts the workers; `fit` does so by itself.

        With a budget of the whole process this comes before `plans`: what the workers' processes take is measured first.

        Raises:
            InfeasibleBudget: What the processes take leaves too little for every plan.
            WorkerLost, ClusterError: See `fit`.
        """
        if self._group is not None:
            return
        options = self.options
        if options.workers:
            self._group = RayGroup(
                options.workers, options.threads_per_worker, options.timeout, options.address, self.process_budget
            )
        else:
            self._group = LocalGroup()
        try:
            self.planning.measure(self._group)
            self._group.start([self._task(rank) for rank in range(options.world)])
            if options.weights is not None:
                self._group.call("load_weights", self._weights_file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the workers; `fit` does so by itself."""
        if self._group is not None:
            self._group.close()
            self._group = None

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in the flat buffer."""
        return self.planning.layout

    @property
    def plans(self) -> RunPlans:
        """The plans of all ranks."""
        return self.planning.plans

    @property
    def budget(self) -> int | None:
        """The limit of the engine's bytes in each worker; None for no limit."""
        return self.planning.budget

    @property
    def process_budget(self) -> ProcessBudget | None:
        """The budget, if it is one of the whole process; `auto` has its size once the workers have started."""
        return self.planning.process_budget

    def _name_and_logs(self) -> tuple[str, Path | None]:
        """What the run is called, and the folder of its logs."""
        if self.run_folder is None:
            return f"{self.model.name}-{os.getpid()}", None
        return self.run_folder.path.resolve().name, self.run_folder.logs.resolve()

    def _recording(self) -> list[Callback]:
        """What writes into the run folder."""
        if self.run_folder is None:
            if self.options.tensorboard:
                raise ValueError(
                    "--tensorboard writes into the run folder, but there is none; give the Trainer a run_folder"
                )
            return []
        more = [TensorBoard(self.run_folder)] if self.options.tensorboard else []
        return [DriverLog(self.run_folder), JsonLines(self.run_folder), *more]

    def _task(self, rank: int) -> WorkerTask:
        options = self.options
        return WorkerTask(
            model=replace(self.model, dataset=_no_data),
            data=self.data,
            optimizer=self.optimizer,
            schedule=WarmupCosine(options.learning_rate, options.steps, options.warmup),
            rank=rank,
            world=options.world,
            shards=options.shards,
            batch=options.batch,
            last_batch=options.last_batch,
            seed=options.seed,
            clip=options.clip_norm,
            limit=self.budget,
            threads=options.threads_per_worker,
            train=self.plans.train[rank],
            evaluate=self.plans.evaluate[rank],
            validation_examples=options.validation_examples,
            shared=bool(options.workers),
            block=options.memory == "block",
            offload_dir=None if options.offload_dir is None else options.offload_dir.absolute(),
            verify=options.verify_memory,
            timeout=options.timeout,
            overlap=options.overlap,
            bandwidth=None if options.pretend_bandwidth is None else parse_size(options.pretend_bandwidth),
        )

    @property
    def _weights_file(self) -> Path:
        path = self.options.weights
        assert path is not None
        return (path / "weights.safetensors" if path.is_dir() else path).resolve()

    def _require_verified(self, group: Group) -> None:
        """Raises unless prediction, ledger and NumPy agreed in every worker."""
        found = self.verification = [v for v in group.call("verification") if v is not None]
        faults = [f"rank {rank}: {fault}" for rank, v in enumerate(found) for fault in v.faults]
        if faults:
            more = f"\n(and {len(faults) - 20} more)" if len(faults) > 20 else ""
            raise MemoryDisagreement("memory is not as predicted:\n" + "\n".join(faults[:20]) + more)

    def _step(self, group: Group, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        rows = group.call("step", step)
        seconds = time.perf_counter() - started
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(rows[0][name]):
                raise self._diverged(step, name, rows[0][name], group.call("inspect", step))
        return {
            **{name: rows[0][name] for name in ("step", "loss", "learning_rate", "gradient_norm")},
            "tokens_per_second": self.targets_of(step) / seconds,
            "step_seconds": seconds,
            "reduce_seconds": max(row["reduce_seconds"] for row in rows),
            "live_bytes": max(row["live_bytes"] for row in rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "rss_peak_bytes": max(row["rss_peak_bytes"] for row in rows),
        }

    def targets_of(self, step: int) -> int:
        """The targets of the batch of a step, without those of padding: tokens of a language model."""
        batches = self.batches[0]
        return batches.true(step % len(batches), 0, self.options.batch) * max(1, self.data.targets.size)

    def _validate(self, group: Group, step: int, progress: OnValidation) -> dict[str, float]:
        """Returns the validation loss, and the loss's metric if it has one."""
        batches = len(self.batches[1])
        sums = Totals(0.0, 0.0)
        for first in range(0, batches, _VALIDATION_CALL):
            some = min(_VALIDATION_CALL, batches - first)
            for number, totals in enumerate(group.call("validate", first, some)[0], first):
                if not math.isfinite(totals.loss):
                    bad = group.call("inspect_validation", number)
                    raise self._diverged(step, "validation loss", totals.loss / totals.divisor, bad)
                sums = Totals(*(a + b for a, b in zip(sums, totals, strict=True)))
            progress(first + some, batches)
        found = {"validation_loss": sums.loss / sums.divisor}
        if self.model.loss.metric is not None:
            found[f"validation_{self.model.loss.metric}"] = sums.score / sums.divisor
        return found

    def _diverged(self, step: int, name: str, value: float, found: list[Finding | None]) -> Diverged:
        options, folder = self.options, self.run_folder
        advice = f"lower the learning rate ({options.learning_rate:g})"
        advice += "" if options.clip_norm else ", or clip the gradient with --clip-norm 1"
        advice += f"; the metrics so far are in {folder.path}" if folder is not None else ""
        return Diverged(step, name, value, dict(enumerate(found)), advice)

    def _finish(self, group: Group, history: list[dict[str, Any]]) -> TrainingResult:
        reports = group.call("finish")
        hashes = {report["parameters_sha256"] for report in reports}
        if len(hashes) > 1:
            raise RuntimeError(f"the workers' parameters differ at the end of the run: {sorted(hashes)}")
        summary = summary_of(self, history, reports)
        # In this process they are the worker's own, and stay when the rest of it goes: for a copy the budget may have no room. So
        # the worker goes before the file is written, which copies them, too. What Ray sends is read-only.
        flat, state = group.call_first("parameters")
        kept = None if state is None else Parameters(self.layout.state, np.require(state, requirements="W"))
        parameters, path = Parameters(self.layout, np.require(flat, requirements="W"), kept), None
        self.close()
        if self.run_folder is not None:
            path = self.run_folder.weights.resolve()
            weights.save(path, parameters, {"model": self.model.name})
            self.run_folder.write("summary.json", summary)
        return TrainingResult(summary, history, parameters, path)


def _model(model: Model | Chain | Callable[[], Model | Chain], loss: Loss | None, data: Dataset | None) -> Model:
    """Returns a model, made of a chain, or built by a function, where that was given."""
    if callable(model):
        built = model()
        if not isinstance(built, Model | Chain):
            raise TypeError(
                f"a function that builds a model returns a Model or a Chain, but got {type(built).__name__}"
            )
        model = built
    if isinstance(model, Model):
        return model
    if not isinstance(model, Chain):
        raise TypeError(
            f"a model is a Chain, a Model, or a function that builds one, but got {type(model).__name__}; make a chain of a layer: "
            "Chain(layer)"
        )
    if loss is None or data is None:
        raise ValueError("a chain says neither its loss nor its data: pass both, Trainer(chain, loss, data=...)")
    return Model("chain", model, loss, lambda paths: data)


def _options(given: dict[str, Any]) -> TrainingOptions:
    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise TypeError(f"the Trainer has no option {name!r}; {hint}")
    options = TrainingOptions(**given)
    options.check()
    return options


def _no_data(paths: Any) -> Dataset:
    raise RuntimeError("a worker is given its data set and builds none")
