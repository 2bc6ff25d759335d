"""The Trainer: what a training script uses."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from checkpointing.engine import run_plans
from checkpointing.policies import RunPlans, StoreAll
from distributed.groups import Group, LocalGroup, RayGroup
from distributed.options import TrainingOptions
from distributed.run_folder import RunFolder
from distributed.worker import WorkerTask, shard_specs, static_nbytes, validation_windows
from framework import weights
from framework.data import ByteText, Dataset
from framework.layers import Chain
from framework.losses import Loss
from framework.models import Model
from framework.optimizers import AdamW, Optimizer
from framework.parameters import Layout, Parameters
from framework.schedules import WarmupCosine

#: Called after each step with its metrics; see `Trainer.fit`.
Callback = Callable[[dict[str, Any]], None]

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


class Diverged(RuntimeError):  # noqa: N818  (the name that callers act on)
    """A loss or a gradient is not finite any more."""


class Trainer:
    """Trains a model under a memory budget, in this process or on Ray workers, with the same bits for any number of them.

    Everything that can be known beforehand is checked and planned when the Trainer is made.

    Args:
        model: A `Model` (see `framework.build`), or a chain; a chain comes with `loss` and `data`.
        loss: The loss, if `model` is a chain.
        optimizer: By default AdamW.
        data: The examples; by default the model's own.
        run_folder: Where the run is recorded; None records nothing.
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
        model: Model | Chain,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        data: Dataset | None = None,
        *,
        run_folder: RunFolder | None = None,
        **options: Any,
    ) -> None:
        self.options = _options(options)
        if isinstance(model, Chain):
            if loss is None or data is None:
                raise ValueError(
                    "a chain says neither its loss nor its data: pass both, Trainer(chain, loss, data=...)"
                )
            model = Model("chain", model, loss, lambda paths: data)
        self.model = replace(model, loss=loss) if loss is not None else model
        self.data = data if data is not None else self.model.dataset(())
        self.optimizer = optimizer or AdamW()
        self.run_folder = run_folder
        self.layout = self._layout()
        self._validation = validation_windows(self.data, self.options.batch, self.options.validation_examples)
        if self.data.size("train") < self.options.batch:
            raise ValueError(
                f"a batch of {self.options.batch} examples is larger than the {self.data.size('train')} for training; lower --batch"
            )
        self.plans, self.budget = self._plan()
        if self.options.weights is not None:
            self._given_parameters(self.options.weights)  # refused before any worker starts

    def fit(
        self, on_step: Callback | None = None, on_validation: Callable[[int, int], None] | None = None
    ) -> TrainingResult:
        """Trains.

        Args:
            on_step: Called after each step with ``step, loss, learning_rate, gradient_norm, tokens_per_second,
                step_seconds, live_bytes, peak_bytes`` (bytes of the worker with the most), and with ``validation_loss``
                after a validation.
            on_validation: Called during a validation with the batches done and all batches.

        Raises:
            BudgetExceeded: A layer's footprint was wrong; the budget was not passed.
            Diverged: A loss or a gradient is not finite any more.
            WorkerLost: A worker died.
            ClusterError: Ray cannot be reached or has no room.

        After an interrupt the workers are gone and the metrics so far are readable.
        """
        options, history = self.options, []
        group = self._start()
        try:
            if self.run_folder is not None:  # only now: a run that cannot start leaves nothing
                self.run_folder.open()
                self.run_folder.write("config.json", self._config())
                self.plans.train[0].save(self.run_folder.plan)
            for step in range(options.steps):
                row = self._step(group, step)
                last = step + 1 == options.steps
                if last or (options.validate_every and (step + 1) % options.validate_every == 0):
                    row["validation_loss"] = self._validate(group, on_validation)
                history.append(row)
                if self.run_folder is not None:
                    self.run_folder.add_metrics(row)
                if on_step is not None:
                    on_step(row)
            return self._finish(group, history)
        finally:
            group.close()
            if self.run_folder is not None:
                self.run_folder.close()

    def _layout(self) -> Layout:
        return self.model.chain.layout(shard_specs(self.data, self.options.batch, self.options.shards)[0])

    def _plan(self) -> tuple[RunPlans, int | None]:
        options = self.options
        policy, budget = options.parsed_policy(), options.parsed_budget()
        x, targets = shard_specs(self.data, options.batch, options.shards)

        def planned(**choice: Any) -> RunPlans:
            return run_plans(
                self.model.chain,
                self.model.loss,
                x,
                targets,
                self.optimizer,
                shards=options.shards,
                world=options.world,
                static=static_nbytes(self.data, options.shards, bool(options.workers)),
                **choice,
            )

        limit = budget.resolve(planned(policy=StoreAll())) if budget is not None else None
        return planned(policy=policy, budget=limit), limit

    def _start(self) -> Group:
        options = self.options
        tasks = [
            WorkerTask(
                model=replace(self.model, dataset=_no_data),
                data=self.data,
                optimizer=self.optimizer,
                schedule=WarmupCosine(options.learning_rate, options.steps, options.warmup),
                rank=rank,
                world=options.world,
                shards=options.shards,
                batch=options.batch,
                seed=options.seed,
                clip=options.clip_norm,
                limit=self.budget,
                threads=options.threads_per_worker,
                train=self.plans.train[rank],
                evaluate=self.plans.evaluate[rank],
                validation_examples=options.validation_examples,
                shared=bool(options.workers),
                timeout=options.timeout,
            )
            for rank in range(options.world)
        ]
        group: Group = RayGroup(tasks, options.address) if options.workers else LocalGroup(tasks[0])
        if options.weights is not None:
            group.call("set_parameters", self._given_parameters(options.weights).flat)
        return group

    def _given_parameters(self, path: Path) -> Parameters:
        parameters = Parameters(self.layout, np.empty(self.layout.size, self.layout.dtype))
        weights.load(path / "weights.safetensors" if path.is_dir() else path, parameters)
        return parameters

    def _step(self, group: Group, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        rows = group.call("step", step)
        seconds = time.perf_counter() - started
        for name in ("loss", "gradient_norm"):
            self._require_finite(step, name, rows[0][name])
        return {
            **{name: rows[0][name] for name in ("step", "loss", "learning_rate", "gradient_norm")},
            "tokens_per_second": self._targets_per_batch / seconds,
            "step_seconds": seconds,
            "live_bytes": max(row["live_bytes"] for row in rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
        }

    @property
    def _targets_per_batch(self) -> int:
        return self.options.batch * max(1, self.data.targets.size)

    def _validate(self, group: Group, progress: Callable[[int, int], None] | None) -> float:
        batches = len(self._validation) // self.options.batch
        loss = count = 0.0
        for first in range(0, batches, _VALIDATION_CALL):
            some = min(_VALIDATION_CALL, batches - first)
            for batch_loss, batch_count in group.call("validate", first, some)[0]:
                loss, count = loss + batch_loss, count + batch_count
            if progress is not None:
                progress(first + some, batches)
        self._require_finite(self.options.steps - 1, "validation loss", loss / count)
        return loss / count

    def _require_finite(self, step: int, name: str, value: float) -> None:
        if not math.isfinite(value):
            hint = "" if self.options.clip_norm else ", or clip the gradient with --clip-norm 1"
            kept = f"; the metrics so far are in {self.run_folder.path}" if self.run_folder is not None else ""
            raise Diverged(
                f"step {step}: the {name.replace('_', ' ')} is {value}, so the run is stopped; lower the learning rate "
                f"({self.options.learning_rate:g}){hint}{kept}"
            )

    def _finish(self, group: Group, history: list[dict[str, Any]]) -> TrainingResult:
        reports = group.call("finish")
        hashes = {report["parameters_sha256"] for report in reports}
        if len(hashes) > 1:
            raise RuntimeError(f"the workers' parameters differ at the end of the run: {sorted(hashes)}")
        summary = self._summary(history, reports)
        parameters, path = Parameters(self.layout, np.array(group.call_first("parameters"))), None
        if self.run_folder is not None:
            path = self.run_folder.weights.resolve()
            weights.save(path, parameters, {"model": self.model.name})
            self.run_folder.write("summary.json", summary)
        return TrainingResult(summary, history, parameters, path)

    def _summary(self, history: list[dict[str, Any]], reports: list[dict[str, Any]]) -> dict[str, Any]:
        options, plans = self.options, self.plans
        losses = np.array([row["loss"] for row in history], "<f8")
        seconds = median(row["step_seconds"] for row in history)
        summary: dict[str, Any] = {
            "model": self.model.name,
            "parameters": self.layout.size,
            "steps": options.steps,
            "batch": options.batch,
            "seed": options.seed,
            "loss_first": history[0]["loss"],
            "loss_last": history[-1]["loss"],
            "validation_loss": history[-1]["validation_loss"],
            "unigram_entropy": None,
            "bigram_cross_entropy": None,
            "tokens_per_second": self._targets_per_batch / seconds,
            "step_seconds_median": seconds,
            "workers": options.workers,
            "shards": options.shards,
            "threads_per_worker": options.threads_per_worker,
            "policy": plans.policy.name,
            "budget_bytes": self.budget,
            "budget_scope": "engine" if self.budget is not None else None,
            "store_all_activation_bytes": plans.store_all_activation_nbytes,
            "activation_bytes": plans.activation_nbytes,
            "predicted_peak_bytes": plans.peak,
            "ledger_peak_bytes": max(report["ledger_peak_bytes"] for report in reports),
            "rss_peak_bytes": max(report["rss_peak_bytes"] for report in reports),
            "parameters_sha256": reports[0]["parameters_sha256"],
            "losses_sha256": hashlib.sha256(losses.tobytes()).hexdigest(),
            "ranks": reports,
        }
        if isinstance(self.data, ByteText):
            unigram, bigram = self.data.entropies(self._validation)
            summary.update(unigram_entropy=unigram, bigram_cross_entropy=bigram)
        return summary

    def _config(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "build": dict(self.model.arguments),
            "optimizer": repr(self.optimizer),
            "dtype": self.layout.dtype.name,
            "data": self.data.describe(),
            "options": self.options.to_json(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "ray": importlib.metadata.version("ray"),
            },
        }


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
