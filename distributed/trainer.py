"""The Trainer: what a training script uses."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpointing.budgets import ProcessBudget
from checkpointing.runs import RunPlans
from checkpointing.timing import Progress
from checkpointing.witness import Verification
from distributed.arguments import model_of, require_alone, require_kinds, require_rates
from distributed.callbacks import Callback, Callbacks, Functions, JsonLines, OnStep, OnValidation, TensorBoard
from distributed.collectives.communicator import CollectiveError
from distributed.fingerprint import Fingerprint, require_equal
from distributed.fitting import Fitting, TrainingResult
from distributed.groups import Group, LocalGroup, RayGroup, WorkerLost
from distributed.interrupts import Stopped
from distributed.logs import DriverLog, RankLogs
from distributed.options import ScheduleKind, options_of
from distributed.readiness import Needs, look, marked, require_ready
from distributed.recording import RunRecording
from distributed.records import config_of
from distributed.resuming import resume, with_identity
from distributed.run_folder import RunFolder
from distributed.run_planning import RunPlanning
from distributed.run_report import Reporter
from distributed.saving import Saving, last_snapshot_note
from distributed.snapshots import SnapshotFailed
from distributed.worker import WorkerTask
from distributed.worker_sizes import validation_windows
from framework import weights
from framework.data import Batches, Dataset
from framework.layers import Chain
from framework.losses import Loss
from framework.models import Model
from framework.optimizers import AdamW, Optimizer
from framework.parameters import Layout
from framework.schedules import Schedule
from framework.sizes import parse_size

#: What a run is resumed after.
_RESUMABLE = (WorkerLost, CollectiveError, SnapshotFailed, Stopped, KeyboardInterrupt, SystemExit)


class Trainer:
    """Trains a model under a memory budget, in this process or on Ray workers, with the same bits for any number of them.

    Everything that can be known beforehand is checked and planned when the Trainer is made. With a budget of the whole process,
    `plans` and `budget` come with `start`, which measures the processes.

    Args:
        model: A `Model` (see `framework.build`), or a chain, or a function without arguments that builds one of them; a chain comes
            with `loss` and `data`.
        loss: The loss, if `model` is a chain.
        optimizer: By default AdamW.
        schedule: The learning rate by step: a function (see `framework.schedules.Schedule`), instead of the options `learning_rate` and
            `warmup_steps`; or a name, which is an option.
        data: The examples; by default the model's own.
        run_folder: Where the run is recorded; None records nothing. A run that is resumed goes on in its own.
        callbacks: Told what happens in the run (see `distributed.callbacks.Callback`), after what writes into the run folder.
        on_measuring: Told how far it is when times are measured (see `checkpointing.timing.measure_times`).
        **options: See `TrainingOptions`.

    Raises:
        TypeError: An argument is of another kind, or there is no such option.
        ValueError: An option is wrong, or the model does not take the data.
        InfeasibleBudget: The policy does not fit the budget, or nothing does.
        SnapshotCorrupt: The run to be resumed has snapshots, and all are damaged.

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
        schedule: Schedule | ScheduleKind | None = None,
        run_folder: RunFolder | None = None,
        callbacks: Sequence[Callback] = (),
        on_measuring: Progress | None = None,
        **options: Any,
    ) -> None:
        require_kinds(loss, optimizer, data, schedule, run_folder, callbacks)
        if isinstance(schedule, str):
            options["schedule"] = schedule
        elif schedule is not None:
            require_alone(options)
        self._own_schedule = None if isinstance(schedule, str) else schedule
        self.resumed = resume(Path(options["resume"])) if options.get("resume") is not None else None
        if self.resumed is None:
            self.run_folder = run_folder
            self.options = options_of(options)
            self._prepare(model, loss, optimizer, data, callbacks, on_measuring)
            return
        self.run_folder = self.resumed.folder  # which is locked, until `close`
        try:
            self.options = options_of(with_identity(options, self.resumed.config, self.run_folder.path))
            self._prepare(model, loss, optimizer, data, callbacks, on_measuring)
            self.resumed.require_same(config_of(self))
        except BaseException:
            self.run_folder.close()
            raise

    def _prepare(
        self,
        model: Model | Chain | Callable[[], Model | Chain],
        loss: Loss | None,
        optimizer: Optimizer | None,
        data: Dataset | None,
        callbacks: Sequence[Callback],
        on_measuring: Progress | None,
    ) -> None:
        """Checks what can be known beforehand, and plans."""
        model = model_of(model, loss, data)
        self.data = data if data is not None else model.dataset(())
        model = model.fitted(self.data)
        self.model = replace(model, loss=loss) if loss is not None else model
        self.optimizer = optimizer or AdamW()
        #: The learning rate by step.
        self.schedule = self._own_schedule or self.options.learning_rates
        require_rates(self.schedule, self.options.steps)
        self._callbacks = [*self._recording(), *callbacks]
        batch, last_batch = self.options.batch, self.options.last_batch
        self.validation = validation_windows(self.data, batch, self.options.validation_examples, last_batch)
        #: How the examples of a training epoch, and those of a validation, are cut into batches.
        self.batches = (
            Batches(self.data.size("train"), batch, last_batch),
            Batches(len(self.validation), batch, last_batch),
        )
        self._group: Group | None = None
        self._fitting: Fitting | None = None
        #: What the workers compute with, and whether the same run would have the same bits elsewhere.
        self.fingerprint: Fingerprint = {}
        self.same_bits = True
        self.verification: list[Verification] = []
        #: What the workers tell for the memory report, and its page once that is written.
        self.recording = RunRecording(self._recorded_step, self.options.world)
        self.report: Path | None = None
        self.rank_logs = RankLogs()
        self.planning = RunPlanning(self.model, self.optimizer, self.data, self.options, self.batches, on_measuring)
        if self._starts_from_weights:
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
            Stopped: `stop` was called.
            SnapshotFailed: A snapshot could not be written; those before it are whole.
            FingerprintMismatch: The workers would not compute the same bits, or not those of the snapshot.
            ClusterError: Ray cannot be reached or has no room, or a node has not what the run takes (see `distributed.readiness`).

        After an interrupt the workers are gone and the metrics so far are readable.
        """
        self.start()
        group = self._group
        assert group is not None
        told, saving = Callbacks([*self._callbacks, Functions(on_step, on_validation)]), None
        try:
            history, config = self._open()
            if self.run_folder is not None:
                saving = Saving(self, self.run_folder, config, told)
            self.rank_logs.begin(group, *self._name_and_logs())
            told.on_start(self)
            self._fitting = Fitting(self, group, history, told, saving)
            result = self._fitting.run()
        except BaseException as error:
            self._end(told, saving, error)
            raise
        self._end(told, saving, None)
        return replace(result, report=self.report)

    def stop(self) -> bool:
        """Asks a run that is training to stop after the present step, with a snapshot; `fit` then raises `Stopped`.

        It may be called by a callback, in a signal's handler, or by another thread.

        Returns:
            Whether it will; False where it is not training steps.
        """
        fitting = self._fitting
        if fitting is not None:
            fitting.stopping = True
        return fitting is not None

    @property
    def first_step(self) -> int:
        """The step that this process begins with."""
        return self.resumed.step if self.resumed is not None else 0

    def _open(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Opens the run's folder; returns the metrics of the steps that are done, and what the run was told when it was started."""
        folder, resumed = self.run_folder, self.resumed
        if folder is None:
            return [], {}
        folder.open()  # only now: a run that cannot start leaves nothing
        if resumed is not None:
            resumed.begin()
            history, config = folder.cut_metrics(resumed.losses), resumed.config
            folder.add_resume(resumed.entry(self))
        else:  # this file first: by it a folder is known as that of a run
            history, config = [], config_of(self) | ({"request": folder.request} if folder.request else {})
            folder.write("config.json", config)
            folder.write_configuration()
        self.plans.train[0].save(folder.plan)
        return history, config

    def _end(self, told: Callbacks, saving: Saving | None, error: BaseException | None) -> None:
        self._fitting = None
        self._ask_what_was_recorded(error)
        self.end_workers()
        try:
            if saving is not None:
                saving.clean()
                if isinstance(error, _RESUMABLE):  # now that no worker ends another one
                    error.add_note(last_snapshot_note(saving.run_folder))
            told.on_end(error)
        finally:
            self.close()

    def _ask_what_was_recorded(self, error: BaseException | None) -> None:
        """Takes what the workers have of the recorded step where it failed; an interrupt does not wait for that."""
        recording, group = self.recording, self._group
        done = self.first_step + len(recording.seconds)
        if group is not None and isinstance(error, Exception) and done == recording.step:
            try:
                recording.steps = group.ask("recorded")
            except Exception as fault:  # the run's own error is what counts
                error.add_note(f"what the workers had recorded is lost: {fault}")

    @property
    def _recorded_step(self) -> int | None:
        """The step that workers record for the report: the second that they do, or the only one; None where there is no report.

        In the first one much happens once: pages of the block are touched, files are read, and what operations read is looked up. Its times
        would be no step's.
        """
        if self.run_folder is None or not self.options.report:
            return None
        return min(self.first_step + 1, self.options.steps - 1)

    def start(self) -> None:
        """Starts the workers; `fit` does so by itself.

        With a budget of the whole process this comes before `plans`: what the workers' processes take is measured first.

        Raises:
            InfeasibleBudget: What the processes take leaves too little for every plan.
            WorkerLost, ClusterError: See `fit`.
        """
        if self._group is not None:
            return
        try:
            with _no_collections(), self.planning.packed_meanwhile():
                self._group = self._processes()
                self.planning.measure(self._group)
            self._require_ready(self._group)
            self._group.start([self._task(rank) for rank in range(self.options.world)])
            self.planning.take_measured()
            self._require_equal_fingerprints(self._group)
            if self.resumed is not None and self.resumed.snapshot is not None:
                self._group.call("restore", self.resumed.snapshot)
            elif self._starts_from_weights:
                self._group.call("load_weights", self._weights_file)
        except BaseException:
            self.close()
            raise

    def _processes(self) -> Group:
        """Starts the workers' processes, which know nothing of the run yet."""
        options = self.options
        if not options.workers:
            return LocalGroup()
        return RayGroup(
            options.workers, options.threads_per_worker, options.timeout, options.address, self.process_budget,
            options.spread, options.placement, options.placement_timeout,
        )  # fmt: skip

    def _require_ready(self, group: Group) -> None:
        """Raises unless the nodes of a cluster have the code, the memory and the files that the run takes."""
        if not isinstance(group, RayGroup) or not group.joined:
            return
        self.planning.take_measured()
        options, folder = self.options, None
        files = [self._weights_file] if self._starts_from_weights else []
        if self.resumed is not None and self.resumed.snapshot is not None:
            files.append(self.resumed.snapshot.absolute())
        if options.snapshot_every is not None or options.snapshot_minutes is not None:
            folder = self.run_folder.path if self.run_folder is not None else None
        with marked(folder) if folder is not None else nullcontext() as mark:
            needs = Needs(group.own, tuple(files), mark)
            states = group.call("look", needs)
            planned = [*map(self.planning.planned_growth_of, range(options.world))]
            require_ready(look("", needs), states, planned, folder, options.allow_mixed_cpus)

    def _require_equal_fingerprints(self, group: Group) -> None:
        """Raises unless all workers, and the snapshot that they go on from, promise the same bits, or need not."""
        prints, allowed = group.call("fingerprint"), self.options.allow_mixed_cpus
        self.fingerprint = prints[0]
        self.same_bits = require_equal(prints, allowed)
        if self.resumed is not None:
            self.same_bits &= self.resumed.require_same_fingerprint(prints[0], allowed)

    def close(self) -> None:
        """Ends the workers, and lets go of the run's folder; `fit` does so by itself."""
        self.end_workers()
        if self.run_folder is not None:
            self.run_folder.close()

    def end_workers(self) -> None:
        """Ends the workers."""
        if self._group is not None:
            try:
                self.rank_logs.gather(self._group)
            finally:
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
        """The limit of the engine's bytes in each worker, the largest where nodes have budgets of their own; None for no limit."""
        return self.planning.budget

    @property
    def process_budget(self) -> ProcessBudget | None:
        """The budget, the largest where nodes have their own, if it is one of the whole process; `auto` has its size once the workers have
        started."""
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
        reporter = [Reporter(self.run_folder)] if self.options.report else []
        return [DriverLog(self.run_folder), *reporter, JsonLines(self.run_folder), *more]

    def _task(self, rank: int) -> WorkerTask:
        options = self.options
        return WorkerTask(
            model=replace(self.model, dataset=_no_data),
            data=self.data,
            optimizer=self.optimizer,
            schedule=self.schedule,
            rank=rank,
            world=options.world,
            shards=options.shards,
            batch=options.batch,
            last_batch=options.last_batch,
            seed=options.seed,
            clip=options.clip_norm,
            limit=self.planning.limit_of(rank),
            threads=options.threads_per_worker,
            train=self.plans.train[rank],
            evaluate=self.plans.evaluate[rank],
            validation_examples=options.validation_examples,
            shared=bool(options.workers),
            block=options.memory == "block",
            offload_dir=None if options.offload_dir is None else options.offload_dir.absolute(),
            record=self._recorded_step,
            verify=options.verify_memory,
            timeout=options.timeout,
            overlap=options.overlap,
            rotate_cores=options.rotate_cores,
            shard_optimizer=self.planning.holding.sharded,
            share_weights=self.planning.holding.weights,
            bandwidth=None if options.pretend_bandwidth is None else parse_size(options.pretend_bandwidth),
            spread=self.planning.spread,
            network=options.network,
        )

    def targets_of(self, step: int) -> int:
        """The targets of the batch of a step, without those of padding: tokens of a language model."""
        batches = self.batches[0]
        return batches.true(step % len(batches), 0, self.options.batch) * max(1, self.data.targets.size)

    @property
    def _starts_from_weights(self) -> bool:
        """Whether weights are read from a file; a snapshot has its own."""
        return self.options.weights is not None and self.first_step == 0

    @property
    def _weights_file(self) -> Path:
        path = self.options.weights
        assert path is not None
        return (path / "weights.safetensors" if path.is_dir() else path).resolve()


@contextmanager
def _no_collections() -> Iterator[None]:
    """While workers wait, Python does not look through all of this process's objects for garbage, which takes a tenth of a second beside Ray."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _no_data(paths: Any) -> Dataset:
    raise RuntimeError("a worker is given its data set and builds none")
