"""Measuring plans: the ledger's peak, the process's, the time of a step and its timeline, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median

from threadpoolctl import threadpool_limits

from checkpointing.budgets import USUAL_GROWTH_NBYTES, ProcessUse
from checkpointing.costs import Costs, Times, costs_of
from checkpointing.engine import Engine
from checkpointing.plan import Plan
from checkpointing.process_memory import measure_baseline, peak_rss
from checkpointing.report import timeline_json
from checkpointing.report.data import Process, Timeline
from checkpointing.report.timelines import measured, predicted
from checkpointing.timing import Progress, measure_times
from framework.data import Dataset
from framework.layers import Spec
from framework.memory import Array, Ledger
from framework.models import Model, build
from framework.optimizers import AdamW
from framework.parameters import Layout


@dataclass(frozen=True)
class Subject:
    """What is profiled: a model that is built by name, and its batch.

    Attributes:
        model: A name that `framework.models.build` knows.
        batch: Examples of a global batch.
        shards: Virtual shards that it is cut into.
        dtype, dropout: Of the model.
        threads: Of matrix products.
        data: Files or names of data; none for the model's own.
    """

    model: str
    batch: int
    shards: int = 1
    dtype: str = "float32"
    dropout: float = 0.0
    threads: int = 1
    data: tuple[str, ...] = ()

    @cached_property
    def loaded(self) -> tuple[Model, Dataset]:
        """The model, of the size that its data ask for, and the data."""
        model = build(self.model, self.dtype, self.dropout)
        data = model.dataset(list(self.data))
        return model.fitted(data), data

    @property
    def rows(self) -> int:
        """Examples of a shard."""
        return self.batch // self.shards

    @property
    def specs(self) -> tuple[Spec, Spec]:
        """The specs of a shard's inputs and targets."""
        _, data = self.loaded
        inputs, targets = (Spec((self.rows, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
        return inputs, targets

    @property
    def layout(self) -> Layout:
        """Where the model's parameters lie."""
        return self.loaded[0].chain.layout(self.specs[0])

    def costs(self, times: Times | None = None) -> Costs:
        """The costs of a shard's training pass, data and optimizer included."""
        model, data = self.loaded
        costs = costs_of(model.chain, model.loss, *self.specs, AdamW(), {"data/data set": data.nbytes})
        return costs.with_times(times)

    def times(self, progress: Progress | None = None) -> Times:
        """Measured times of the model's layers; see `timing.measure_times`."""
        return model_times(self.loaded[0], *self.specs, self.threads, progress)


@dataclass(frozen=True)
class Profile:
    """A plan that was run in a fresh process.

    Attributes:
        ledger_peak: The most bytes that the ledger saw.
        process: The process's memory at its peak.
        step_seconds: Median time of a step; 0 if none was finished.
        timeline: Of one more step, which was recorded; None if nothing was.
        step: Which step that was.
        failure: What ended it; empty if nothing did.
    """

    ledger_peak: int
    process: Process
    step_seconds: float
    timeline: Timeline | None
    step: int
    failure: str = ""


def measure_plan(subject: Subject, plan: Plan, steps: int = 3, limit: int | None = None) -> Profile:
    """Runs training steps of a plan on the subject's data in a fresh process and measures them.

    Args:
        subject: The model and its batch.
        plan: A plan of its training step.
        steps: Timed steps, after one that is not. One more is recorded, when all else is measured.
        limit: The ledger's limit in bytes, if there is one.

    Raises:
        RuntimeError: The process could not begin the first step, or was ended; its last words are in the message.
    """
    task = {"subject": asdict(subject), "plan": plan.to_json(), "steps": steps, "limit": limit}
    # The folders where this process finds modules: a person's own model lies beside the program.
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from checkpointing.profiler import serve; serve()"
    command = [sys.executable, "-c", code, json.dumps(sys.path)]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (
            done.stderr.strip()
            or f"exit code {done.returncode}; a negative one is a signal, -9 mostly a lack of memory"
        ).splitlines()[-1]
        raise RuntimeError(f"measuring {subject.model} under {plan.policy} failed: {last}")
    said = json.loads(done.stdout.splitlines()[-1])
    timeline = said["timeline"]
    return Profile(
        ledger_peak=said["ledger_peak"],
        process=Process(**{**said["process"], "by_step": tuple(said["process"]["by_step"])}),
        step_seconds=said["step_seconds"],
        timeline=None if timeline is None else timeline_json.read(timeline, "the recorded timeline", predicted(plan)),
        step=said["step"],
        failure=said["failure"],
    )


def serve() -> None:
    """Answers the task on standard input with a line of JSON: what the fresh process runs."""
    task = json.load(sys.stdin)
    subject = Subject(**{**task["subject"], "data": tuple(task["subject"]["data"])})
    plan = Plan.from_json(task["plan"])
    profile = _measure_here(subject, plan, task["steps"], task["limit"])
    timeline = None if profile.timeline is None else timeline_json.written(profile.timeline, predicted(plan))
    print()  # what layers printed without an end of line
    print(json.dumps({**asdict(profile), "timeline": timeline}))


def _measure_here(subject: Subject, plan: Plan, steps: int, limit: int | None) -> Profile:
    threadpool_limits(subject.threads)
    (model, data), rows = subject.loaded, subject.rows

    def load(shard: int, into_x: Array, into_targets: Array) -> None:
        data.load("train", range(shard * rows, (shard + 1) * rows), into_x, into_targets)

    assert plan.packing  # making it is not the plan's memory
    use = process_use(plan.costs, subject.threads, data.nbytes)
    ledger = Ledger(limit)
    held = ledger.count(data.nbytes, "data", "data set")
    engine = Engine(model.chain, model.loss, subject.layout, AdamW(), ledger=ledger, clip=1.0, block=True)
    engine.reserve([plan])

    def step(number: int) -> None:
        engine.train_step(plan, load, number, 1e-3)

    seconds, peaks, failure = _timed(step, steps + 1)
    process = _process(plan, ledger.peak, peak_rss(), use, peaks)
    ledger_peak = ledger.peak
    ledger.start_recording()
    _, _, again = _timed(step, 1, len(seconds))
    timeline = measured(plan, ledger.stop_recording())
    engine.close()
    del held
    return Profile(
        ledger_peak, process, median(seconds[1:] or seconds or [0.0]), timeline, len(seconds), failure or again
    )


def _timed(step: Callable[[int], None], count: int, first: int = 0) -> tuple[list[float], list[int], str]:
    """Runs steps; returns seconds and peak resident bytes after each, and what ended them."""
    seconds: list[float] = []
    peaks: list[int] = []
    for number in range(first, first + count):
        started = time.perf_counter()
        try:
            step(number)
        except Exception as error:  # whatever a layer raises; it is told, and what was measured until then
            return seconds, peaks, "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        seconds.append(time.perf_counter() - started)
        peaks.append(peak_rss())
    return seconds, peaks, ""


def process_use(costs: Costs, threads: int, held: int) -> ProcessUse:
    """Measures what this process takes besides the engine; its peak of resident memory begins again.

    Args:
        costs: Of what will be run: its shapes decide what BLAS takes.
        threads: Of matrix products.
        held: Bytes that are there already and that the ledger counts: the data.
    """
    specs = [costs.batch, *(step.footprint.output for step in costs.steps)]
    dtype = costs.steps[-1].footprint.output.dtype
    baseline = measure_baseline(dtype, threads, max(s.rows for s in specs), max(s.shape[-1] for s in specs))
    return ProcessUse(baseline - held)


def _process(plan: Plan, engine: int, rss: int, use: ProcessUse, peaks: list[int]) -> Process:
    simulation = plan.simulation
    taken = simulation.static + plan.packing.nbytes + simulation.most_on_heap
    rest = rss - engine - use.baseline
    return Process(rss, engine, use.baseline, 0, rest, tuple(peaks), use.baseline + taken + USUAL_GROWTH_NBYTES)


def model_times(model: Model, x: Spec, targets: Spec, threads: int, progress: Progress | None = None) -> Times:
    """Returns the measured times of a model's training pass over a shard; see `timing.measure_times`."""
    costs = costs_of(model.chain, model.loss, x, targets)
    return measure_times(costs, model.chain, model.loss, threads, progress)
