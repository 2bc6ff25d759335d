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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from checkpointing.budgets import HEAP_PERCENT, USUAL_GROWTH_NBYTES, ProcessBudget, ProcessUse
from checkpointing.costs import Times, costs_of
from checkpointing.engine import run_plans
from checkpointing.executor import Totals
from checkpointing.inspector import Finding
from checkpointing.offload import measure_disk
from checkpointing.policies import Policy, StoreAll
from checkpointing.runs import InfeasibleBudget, RunPlans
from checkpointing.timing import Progress, measure_times
from checkpointing.witness import Verification
from distributed.divergence import Diverged
from distributed.groups import Group, LocalGroup, RayGroup
from distributed.options import TrainingOptions
from distributed.run_folder import RunFolder
from distributed.worker import (
    WorkerTask,
    outside_nbytes,
    reserved_nbytes,
    shard_specs,
    static_nbytes,
    validation_windows,
)
from framework import weights
from framework.data import Batches, ByteText, Dataset
from framework.layers import Chain, flatten, input_specs
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


class MemoryDisagreement(RuntimeError):  # noqa: N818  (the name that callers act on)
    """Under `verify_memory`: prediction, ledger and NumPy do not agree; the message names operations and bytes."""


class Trainer:
    """Trains a model under a memory budget, in this process or on Ray workers, with the same bits for any number of them.

    Everything that can be known beforehand is checked and planned when the Trainer is made. With a budget of the whole process,
    `plans` and `budget` come with `start`, which measures the processes.

    Args:
        model: A `Model` (see `framework.build`), or a chain; a chain comes with `loss` and `data`.
        loss: The loss, if `model` is a chain.
        optimizer: By default AdamW.
        data: The examples; by default the model's own.
        run_folder: Where the run is recorded; None records nothing.
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
        model: Model | Chain,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        data: Dataset | None = None,
        *,
        run_folder: RunFolder | None = None,
        on_measuring: Progress | None = None,
        **options: Any,
    ) -> None:
        self.options = _options(options)
        if isinstance(model, Chain):
            if loss is None or data is None:
                raise ValueError(
                    "a chain says neither its loss nor its data: pass both, Trainer(chain, loss, data=...)"
                )
            model = Model("chain", model, loss, lambda paths: data)
        self.data = data if data is not None else model.dataset(())
        model = model.fitted(self.data)
        self.model = replace(model, loss=loss) if loss is not None else model
        self.optimizer = optimizer or AdamW()
        self.run_folder = run_folder
        self.layout = self._layout()
        batch, last_batch = self.options.batch, self.options.last_batch
        self._validation = validation_windows(self.data, batch, self.options.validation_examples, last_batch)
        #: How the examples of a training epoch, and those of a validation, are cut into batches.
        self._batches = tuple(
            Batches(size, batch, last_batch) for size in (self.data.size("train"), len(self._validation))
        )
        self._require_no_statistics_of_padding()
        self._group: Group | None = None
        folder = self.options.offload_dir
        self._disk_bandwidth = None if folder is None or self.options.address else measure_disk(folder)
        self._parsed_budget = self.options.parsed_budget()
        self.plans: RunPlans
        self.budget: int | None = None
        self.process: ProcessUse | None = None
        self.verification: list[Verification] = []
        self._times = self._measured_times(on_measuring) if self.options.measured_costs else None
        if self.process_budget is None:
            self._plan()
        if self.options.weights is not None:
            weights.require_match(self._weights_file, self.layout)  # refused before any worker starts

    def fit(
        self, on_step: Callback | None = None, on_validation: Callable[[int, int], None] | None = None
    ) -> TrainingResult:
        """Trains.

        Args:
            on_step: Called after each step with ``step, loss, learning_rate, gradient_norm, tokens_per_second,
                step_seconds, live_bytes, peak_bytes, rss_peak_bytes`` (bytes of the worker with the most), and with ``validation_loss``
                after a validation, and the loss's metric if it has one, as ``validation_accuracy``.
            on_validation: Called during a validation with the batches done and all batches.

        Raises:
            BudgetExceeded: A layer's footprint was wrong; the budget was not passed.
            Diverged: A loss or a gradient is not finite any more.
            WorkerLost: A worker died.
            ClusterError: Ray cannot be reached or has no room.

        After an interrupt the workers are gone and the metrics so far are readable.
        """
        options, history = self.options, []
        self.start()
        group = self._group
        assert group is not None
        try:
            if self.run_folder is not None:  # only now: a run that cannot start leaves nothing
                self.run_folder.open()
                self.run_folder.write("config.json", self._config())
                self.plans.train[0].save(self.run_folder.plan)
            for step in range(options.steps):
                row = self._step(group, step)
                last = step + 1 == options.steps
                if last or (options.validate_every and (step + 1) % options.validate_every == 0):
                    row |= self._validate(group, step, on_validation)
                history.append(row)
                if self.run_folder is not None:
                    self.run_folder.add_metrics(row)
                if on_step is not None:
                    on_step(row)
                if options.verify_memory and step == 0:
                    self._require_verified(group)
            return self._finish(group, history)
        finally:
            self.close()
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
            budget = self.process_budget
            ray = RayGroup(options.workers, options.threads_per_worker, options.timeout, options.address, budget)
            self._group = ray
            self._parsed_budget = ray.budget or self._parsed_budget
        else:
            self._group = LocalGroup()
            if self.process_budget is not None:
                self._parsed_budget = self.process_budget.on_this_node()
        try:
            # A plan stays, and making it leaves gaps in the heap of this very process; so a first one is there when it is measured.
            rehearsal = self._planned(budget=2**62) if self.process_budget and not options.workers else None
            self.process = self._process_use(self._group)
            del rehearsal
            if self.process_budget is not None:
                self._plan()
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

    def _process_use(self, group: Group) -> ProcessUse:
        """Measures what the worker processes take besides the engine; the largest counts for all."""
        options, (x, _) = self.options, shard_specs(self.data, self.options.batch, self.options.shards)
        steps = flatten(self.model.chain)
        specs = [spec for given in input_specs(steps, x) for spec in (given if isinstance(given, tuple) else (given,))]
        rows, width = max(spec.rows for spec in specs), max(spec.shape[-1] for spec in specs)
        baselines = group.measure(self.layout.dtype.name, options.threads_per_worker, rows, width)
        # In this process the data set is there already, and the ledger counts it.
        held = 0 if options.workers else self.data.nbytes
        return ProcessUse(max(baselines) - held, outside_nbytes(self.layout, options.shards, options.world))

    def _layout(self) -> Layout:
        return self.model.chain.layout(shard_specs(self.data, self.options.batch, self.options.shards)[0])

    def _require_no_statistics_of_padding(self) -> None:
        """Raises if a layer would take statistics of a training batch that is padded."""
        batches, batch = self._batches[0], self.options.batch
        if batches.padded and (names := list(self.layout.statistics.specs)):
            raise ValueError(
                f"layer {names[0].rpartition('.')[0]!r} takes statistics of a batch, which would see the padding of an epoch's last one: "
                f"{batches.size} examples for training leave {batches.size % batch} for it in batches of {batch}. Drop it with "
                "--last-batch drop, take a batch that divides the examples, or a norm of each example (GroupNorm, LayerNorm)"
            )

    def _planned(self, policy: Policy | None = None, budget: int | None = None) -> RunPlans:
        options = self.options
        return run_plans(
            self.model.chain,
            self.model.loss,
            *shard_specs(self.data, options.batch, options.shards),
            self.optimizer,
            policy=policy,
            budget=budget,
            shards=options.shards,
            world=options.world,
            static=static_nbytes(self.data, options.shards, bool(options.workers)),
            times=self._times,
            offload=options.offload_dir is not None,
            disk_bandwidth=self._disk_bandwidth,
            weighted=(self._batches[0].padded, self._batches[1].padded),
        )

    def _measured_times(self, progress: Progress | None) -> Times:
        chain, loss, options = self.model.chain, self.model.loss, self.options
        costs = costs_of(chain, loss, *shard_specs(self.data, options.batch, options.shards))
        return measure_times(costs, chain, loss, options.threads_per_worker, progress)

    def _plan(self) -> None:
        """Makes `plans` within `budget`, the limit of the engine's bytes."""
        budget = self._parsed_budget
        limit = budget.resolve(self._planned(StoreAll()), self.process) if budget is not None else None
        try:
            in_block = self.process_budget is not None and self.options.memory == "block"
            self.plans = (
                self._plans_with_room(limit)
                if in_block and limit is not None
                else self._planned(self.options.parsed_policy(), limit)
            )
            self.budget = limit
        except InfeasibleBudget as error:
            if self.process_budget is not None and self.process is not None:
                raise self.process_budget.explain(error, self.process) from error
            raise

    def _plans_with_room(self, limit: int) -> RunPlans:
        """Returns the plans of which the blocks, and what lies beside them, have room in the process.

        A plan's peak is that of one operation. But the block stays whole when a layer of one's own takes memory besides it, and
        when most gradients of the reduction tree are alive in shared memory, which may be at another one.
        """
        policy, target = self.options.parsed_policy(), limit
        enough: list[int] = []  # for each plan that was made, the limit that it needs
        while True:
            try:
                plans = self._planned(policy, target)
            except InfeasibleBudget as error:
                least = min(enough) if enough else self._engine_nbytes(self._planned(policy, error.smallest))
                raise InfeasibleBudget(str(error), max(error.smallest, least)) from error
            enough.append(self._engine_nbytes(plans))
            if enough[-1] <= limit:
                return plans
            target = plans.peak - 1

    def _engine_nbytes(self, plans: RunPlans) -> int:
        """The least engine bytes of a process that has room for some plans in blocks: little more or less than their peak."""
        return -(-self._reserved_nbytes(plans) * 100 // (100 + HEAP_PERCENT))

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
        )

    @property
    def _weights_file(self) -> Path:
        path = self.options.weights
        assert path is not None
        return (path / "weights.safetensors" if path.is_dir() else path).resolve()

    @property
    def reserved_nbytes(self) -> int:
        """Bytes that the rank with the most takes for its arrays: in the block they are a little more than the peak."""
        return self._reserved_nbytes(self.plans)

    def _reserved_nbytes(self, plans: RunPlans) -> int:
        block = self.options.memory == "block"
        return max(
            reserved_nbytes(train, evaluate, block) for train, evaluate in zip(plans.train, plans.evaluate, strict=True)
        )

    @property
    def predicted_process_nbytes(self) -> int | None:
        """The predicted peak of a worker's resident memory; None before the workers have started."""
        if self.process is None:
            return None
        return self.process.baseline + self.process.outside + self.reserved_nbytes + USUAL_GROWTH_NBYTES

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
            "tokens_per_second": self._targets_of(step) / seconds,
            "step_seconds": seconds,
            "live_bytes": max(row["live_bytes"] for row in rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "rss_peak_bytes": max(row["rss_peak_bytes"] for row in rows),
        }

    @property
    def process_budget(self) -> ProcessBudget | None:
        """The budget, if it is one of the whole process; `auto` has its size once the workers have started."""
        return self._parsed_budget if isinstance(self._parsed_budget, ProcessBudget) else None

    def _targets_of(self, step: int) -> int:
        """The targets of the batch of a step, without those of padding."""
        batches = self._batches[0]
        return batches.true(step % len(batches), 0, self.options.batch) * max(1, self.data.targets.size)

    def _validate(self, group: Group, step: int, progress: Callable[[int, int], None] | None) -> dict[str, float]:
        """Returns the validation loss, and the loss's metric if it has one."""
        batches = len(self._batches[1])
        sums = Totals(0.0, 0.0)
        for first in range(0, batches, _VALIDATION_CALL):
            some = min(_VALIDATION_CALL, batches - first)
            for number, totals in enumerate(group.call("validate", first, some)[0], first):
                if not math.isfinite(totals.loss):
                    bad = group.call("inspect_validation", number)
                    raise self._diverged(step, "validation loss", totals.loss / totals.divisor, bad)
                sums = Totals(*(a + b for a, b in zip(sums, totals, strict=True)))
            if progress is not None:
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
        summary = self._summary(history, reports)
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
            "validation_accuracy": history[-1].get("validation_accuracy"),
            "unigram_entropy": None,
            "bigram_cross_entropy": None,
            "tokens_per_second": self._targets_of(0) / seconds,
            "step_seconds_median": seconds,
            "workers": options.workers,
            "shards": options.shards,
            "threads_per_worker": options.threads_per_worker,
            "policy": plans.policy.name,
            "costs": plans.train[0].costs.source,
            "planned_step_seconds": max(plan.simulation.seconds for plan in plans.train),
            "budget_bytes": self.process_budget.nbytes if self.process_budget else self.budget,
            "budget_scope": None if self.budget is None else "process" if self.process_budget else "engine",
            "engine_budget_bytes": self.budget,
            "memory": options.memory,
            "reserved_bytes": self.reserved_nbytes,
            "process_baseline_bytes": self.process.baseline if self.process else None,
            "predicted_process_peak_bytes": self.predicted_process_nbytes,
            "verified": [asdict(found) for found in self.verification] if self.verification else None,
            "offload_file_bytes": max(plan.simulation.file_nbytes for plan in plans.train),
            "offloaded_bytes": max(plan.simulation.disk_nbytes for plan in plans.train),
            "store_all_activation_bytes": plans.store_all_activation_nbytes,
            "activation_bytes": plans.activation_nbytes,
            "predicted_peak_bytes": plans.peak,
            "ledger_peak_bytes": max(report["ledger_peak_bytes"] for report in reports),
            "rss_peak_bytes": max(report["process"]["peak_rss"] for report in reports),
            "rss_drift_bytes": history[-1]["rss_peak_bytes"] - history[min(1, len(history) - 1)]["rss_peak_bytes"],
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
