"""Trains a model under a memory budget, on this machine or on Ray workers.

Examples:
  python scripts/train.py
  python scripts/train.py --data my_text/ --steps 2000 --memory-budget engine:24MiB
  python scripts/train.py --model lenet --data digits
  python scripts/train.py --model mlp-small --data table.csv --target price --task regression
  python scripts/train.py --model byte-gpt-small --batch 16 --policy every-k:1 --workers 2 --json
  python scripts/train.py --plan plan.json
  python scripts/train.py --resume runs/20260101-120000-byte-gpt-tiny --workers 4

Exit codes:
    0  done
    1  failed: the last lines say why
    2  an option or the data are wrong; nothing was begun
   69  a worker died or did not answer; go on with --resume
   75  stopped by SIGTERM after a step, with a snapshot; go on with --resume
  130  Ctrl-C: at once; go on from the last snapshot with --resume
  143  SIGTERM before the first step, or a second one: at once
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import _console
from _console import console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from checkpointing import Bounds, InfeasibleBudget
from checkpointing.curve import gap
from checkpointing.offload import default_folder, lies_in_memory
from distributed import RunFolder, Stopped, Trainer, TrainingOptions, WorkerLost
from distributed.collectives.communicator import CollectiveError
from distributed.resuming import stored_options
from distributed.run_folder import read_json
from framework import Dataset, Model, build, format_size

#: The budget where neither a budget nor a policy is named: a part of what store-all would hold in activations.
DEFAULT_BUDGET = "engine:60%"
_MIB = 2**20
#: Where neither a person nor the model says otherwise. What was tried for the byte GPT: fewer steps with larger batches reach less in the
#: same time; half the steps pass the byte pairs, too, but do not write Python yet.
DEFAULTS = {"shards": 4, "batch": 8, "steps": 960, "learning_rate": 2e-3}
CODES: dict[type[Exception], int] = {
    Stopped: _console.STOPPED,
    WorkerLost: _console.LOST,
    CollectiveError: _console.LOST,
}
#: What config.json keeps of this program's own options, for a resume.
REQUEST = ("model", "data", "target", "task", "dtype", "dropout")
#: A process whose peak grows by more than this after its second step is said to drift.
_DRIFT = 2 * _MIB


@dataclass(frozen=True, kw_only=True)
class Train(TrainingOptions):
    model: str = "byte-gpt-tiny"
    """mlp-small, mlp-deep, lenet, resnet-small, unet, byte-gpt-tiny, byte-gpt-small, these two with -tied, byte-gpt-medium, byte-gpt-large, byte-lstm-small, or your own as package.module:build."""
    data: tuple[str, ...] = ()
    """What to train on. Text models: files or folders of text; by default the sources of Python's standard library. Others: a CSV or NPZ file, or digits, iris, wine, breast-cancer or diabetes from scikit-learn; by default a generated set."""
    target: str | None = None
    """The column of a CSV file to predict, by its name. Default: the last."""
    task: Literal["classification", "regression", "denoising"] | None = None
    """What to learn. Default: a class if targets are words or whole numbers, else numbers; unet takes noise from images."""
    batch: int | None = None  # type: ignore[assignment]
    """Examples in a global batch, over all workers; divisible by the shards. Default: what suits the model, at most what the data have for validation."""
    shards: int | None = None  # type: ignore[assignment]
    """Virtual shards that a batch is cut into: a power of two, at least one for each worker. Part of the run's identity. Default: 4."""
    steps: int | None = None  # type: ignore[assignment]
    """Training steps. Default: what suits the model."""
    learning_rate: float | None = None  # type: ignore[assignment]
    """Peak learning rate, after a linear warm-up and before a cosine decay to a tenth. Default: what suits the model."""
    memory_budget: str | None = None
    """Most bytes of each worker: 512MiB or auto (what is free) for its whole process, engine:64MiB for its arrays, or engine:60% for that part of store-all's activations. Default: engine:60%, or the least possible; no budget if a policy or a plan is named, or with none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    dropout: float = 0.0
    """Rate of the model's dropout layers, in [0, 1)."""
    snapshot_minutes: float | None = 10.0
    """Minutes between snapshots. None: none by time."""
    run_dir: Path | None = None
    """Folder of the run's records. Default: runs/TIME-MODEL."""
    force: bool = False
    """Overwrite an existing run folder."""
    json: bool = False
    """Print the summary as one JSON object on the last line."""
    quiet: bool = False
    """Print only errors (and the JSON line)."""
    debug: bool = False
    """Show tracebacks of errors."""


def main(options: Train) -> dict[str, Any]:
    console.quiet = options.quiet
    if options.resume is not None:
        require_same_request(options)
    model = build(options.model, options.dtype, options.dropout)
    folder = RunFolder(options.run_dir, options.force) if options.run_dir else RunFolder.new(model.name)
    folder.request = request_of(options)
    trainer = make_trainer(options, model, folder)
    if trainer.resumed is not None:
        folder = trainer.resumed.folder
    try:
        if trainer.process_budget is not None:
            with console.status("starting the workers and measuring what their processes take"):
                trainer.start()
        introduce(trainer, options)
        with progress(trainer) as callbacks, stopped_by_sigterm(trainer):
            result = trainer.fit(*callbacks)
    except (KeyboardInterrupt, _console.Terminated):
        if folder.path.exists():
            _console.errors.print(f"metrics so far are in {folder.path}; there are no weights", markup=False)
        raise
    finally:
        trainer.close()
    conclude(result.summary, folder.path)
    return result.summary


@contextmanager
def stopped_by_sigterm(trainer: Trainer) -> Iterator[None]:
    """Inside, a first SIGTERM stops the run after the present step, with a snapshot, and a second one at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        if not trainer.stop():
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def request_of(options: Train) -> dict[str, Any]:
    """What a run is asked for besides the Trainer's options, so that it can be asked for again from any folder."""
    request = {name: getattr(options, name) for name in REQUEST}
    by_default = options.policy is None and options.plan is None and options.memory_budget is None
    return {**request, "data": list(options.data), "folder": str(Path.cwd()), "default_budget": by_default}


def defaults(arguments: list[str]) -> Train:
    """The options where a person names none: those that a run was started with, if one is resumed.

    How memory is used is one choice: who names a policy, a plan or a budget has the others as in a new run.
    """
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("resume", "policy", "plan", "memory-budget"):
        named.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="?")
    found = named.parse_known_args(arguments)[0]
    if found.resume is None:
        return Train(workers=2)
    run = Path(found.resume)
    request = stored_request(run)
    options = stored_options(read_json(run / "config.json"))
    if found.policy or found.plan or found.memory_budget or request["default_budget"]:
        options |= {"policy": None, "plan": None, "memory_budget": None}
    return Train(**{**options, **{name: request[name] for name in REQUEST}, "resume": run})


def stored_request(run: Path) -> dict[str, Any]:
    """Returns what a run was asked for; files that were named from another folder are found from here.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: It was not started by this program.
    """
    config = read_json(run / "config.json")
    if "request" not in config:
        raise ValueError(
            f"the run in {run} was not started by this program; resume it by the script that did, with Trainer(..., resume={str(run)!r})"
        )
    request: dict[str, Any] = config["request"]
    files = (Path(request["folder"], name) for name in request["data"])
    data = [str(file) if file.exists() else name for file, name in zip(files, request["data"], strict=True)]
    return {**request, "data": tuple(data)}


def require_same_request(options: Train) -> None:
    """Raises if a run is resumed with another model or other data than it was started with."""
    assert options.resume is not None
    if options.run_dir is not None or options.force:
        raise ValueError("--run-dir and --force are for new runs; one that is resumed goes on in its own folder")
    then = stored_request(options.resume)
    told = [
        f"--{name} is {getattr(options, name)}, but the run was started with {then[name]}"
        for name in REQUEST
        if getattr(options, name) != then[name]
    ]
    if told:
        raise ValueError("\n  ".join([f"the run in {options.resume} cannot go on as another one:", *told]))


def make_trainer(options: Train, model: Any, folder: RunFolder | None = None) -> Trainer:
    """Plans the run; the default budget gives way to the smallest feasible one where a model is too small for it."""
    data = open_data(options, model)
    chosen = chosen_options(options, model, data)
    if options.policy is None and options.plan is None and options.memory_budget is None:
        try:
            return _trainer(model, data, folder, **{**chosen, "memory_budget": DEFAULT_BUDGET})
        except InfeasibleBudget as error:
            chosen["memory_budget"] = f"engine:{error.smallest}"
    return _trainer(model, data, folder, **chosen)


def _trainer(model: Model, data: Dataset, folder: RunFolder | None, **options: Any) -> Trainer:
    with _console.measuring() as progress:
        return Trainer(model, data=data, run_folder=folder, on_measuring=progress, **options)


def open_data(options: Train, model: Model) -> Dataset:
    """Opens the data that are named, or the model's own."""
    more = {"target": options.target, "task": options.task}
    more = {name: value for name, value in more.items() if value is not None}
    if more and model.resize is None:
        raise ValueError(
            f"--{' and --'.join(more)} say how to read examples, but {options.model} reads its data in its own way; leave them away"
        )
    return model.dataset(list(options.data), **more)


def chosen_options(options: Train, model: Model, data: Dataset) -> dict[str, Any]:
    """The options of the Trainer: those that a person gave, and for the others what suits the model and the data."""
    given = {field.name: getattr(options, field.name) for field in fields(TrainingOptions)}
    chosen = {**given, **{name: value for name, value in (DEFAULTS | model.training).items() if given[name] is None}}
    if options.batch is None:
        fewest = min(data.size(split) for split in ("train", "validation"))
        if chosen["batch"] > fewest:
            chosen["batch"] = max(1, fewest // chosen["shards"]) * chosen["shards"]
    return chosen


def introduce(trainer: Trainer, options: Train) -> None:
    """Says what is about to run."""
    plans, data, chosen = trainer.plans, trainer.data.describe(), trainer.options
    where = f"{options.workers} Ray workers" if options.workers else "in process"
    if "train_bytes" in data:
        source = f"{data['files']:,} files of {', '.join(data['source'])}"
        text = f"{data['train_bytes']:,} bytes in {source}; {data['validation_bytes']:,} for validation"
    else:
        text = f"{data['train_examples']:,} examples{told_examples(trainer, data)}; {data['validation_examples']:,} for validation"
    part = plans.activation_nbytes / plans.store_all_activation_nbytes
    budget = f"{format_size(trainer.budget)} of the engine's bytes in each worker" if trainer.budget else "none"
    if (whole := trainer.process_budget) is not None and whole.nbytes and trainer.planning.process and trainer.budget:
        budget = (
            f"{format_size(whole.nbytes)} for each worker's process{f' ({whole.reason})' if whole.reason else ''}: "
            f"{format_size(trainer.planning.process.baseline)} before the first array, {format_size(trainer.budget)} for the engine"
        )
    threads, cores = max(1, options.workers) * options.threads_per_worker, os.cpu_count() or 1
    if threads > cores:
        console.print(f"[yellow]{threads} threads share {cores} cores here, so steps will be slow[/yellow]")
    for name, value in (
        ("model", f"{options.model}, {trainer.layout.size:,} parameters of {options.dtype}"),
        ("data", text),
        (
            "workers",
            f"{where}, {options.threads_per_worker} thread each; batch {chosen.batch} in {chosen.shards} shards",
        ),
        ("budget", budget),
        (
            "policy",
            f"{plans.policy.name}{told_time(trainer)}, predicted peak {format_size(plans.peak)} ({plans.peak:,} bytes)",
        ),
        *([("costs", plans.train[0].costs.source)] if chosen.measured_costs else []),
        (
            "activations",
            f"{format_size(plans.activation_nbytes)}, {part:.0%} of store-all's {format_size(plans.store_all_activation_nbytes)}",
        ),
        *told_disk(trainer),
        *told_resumption(trainer),
    ):
        console.print(f"[bold]{name:>12}[/bold]  {value}")


def told_resumption(trainer: Trainer) -> list[tuple[str, str]]:
    """Says where a stopped run goes on, and what differs."""
    resumed = trainer.resumed
    if resumed is None:
        return []
    where = "its beginning: it has no snapshot" if resumed.snapshot is None else f"{resumed.snapshot.name}"
    changed = [f"{name} {then} → {now}" for name, (then, now) in resumed.changed(trainer.options).items()]
    return [("resumed", f"{resumed.folder.path} from {where}{'; ' + ', '.join(changed) if changed else ''}")]


def told_time(trainer: Trainer) -> str:
    """Says what less memory costs in time, by the plan of the rank that takes longest; nothing where it costs none."""
    plan = trainer.plans.train[0]
    once, bound = (
        Bounds(plan.costs, plan.shards, plan.world, plan.rank, disk).seconds(trainer.budget or plan.peak)
        for disk in (True, plan.simulation.file_nbytes > 0)
    )
    seconds = plan.simulation.seconds
    if not gap(seconds, once) > 1e-9:
        return ""
    return f" (takes {gap(seconds, once):.1%} longer than store-all, {gap(seconds, bound):.1%} above the lower bound)"


def told_disk(trainer: Trainer) -> list[tuple[str, str]]:
    """Says what a step holds on disk, and where."""
    simulation = max((plan.simulation for plan in trainer.plans.train), key=lambda simulation: simulation.file_nbytes)
    if not simulation.file_nbytes:
        return []
    folder = trainer.options.offload_dir or default_folder()
    if lies_in_memory(folder):
        console.print(
            f"[yellow]{folder} lies in memory, so what is held there is not saved; name a folder on a disk[/yellow]"
        )
    moved = f"a step writes and reads {format_size(simulation.disk_nbytes)}"
    return [("disk", f"{format_size(simulation.file_nbytes)} in {folder}; {moved}")]


def told_examples(trainer: Trainer, data: dict[str, Any]) -> str:
    """Says what examples are: their shape, where they come from, and what is learned."""
    shape = "×".join(map(str, trainer.data.inputs.shape))
    source = f" of {', '.join(data['source'])}" if "source" in data else ""
    classes = getattr(trainer.data, "classes", None)
    learned = f", {classes} classes" if classes else f", {data['task']}" if "task" in data else ""
    return f"{source}, each {shape}{learned}"


def conclude(summary: dict[str, Any], path: Path) -> None:
    """Says what came of it."""
    accuracy = summary["validation_accuracy"]
    loss = f"{summary['validation_loss']:.4f}"
    if accuracy is not None:
        loss += f" nats, {accuracy:.1%} right"
    if summary["bigram_cross_entropy"] is not None:
        loss += (
            f" (byte pairs reach {summary['bigram_cross_entropy']:.4f}, single bytes {summary['unigram_entropy']:.4f})"
        )
    exact = "as predicted" if summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"] else "NOT AS PREDICTED"
    for name, value in (
        ("validation", loss),
        ("peak", f"{format_size(summary['ledger_peak_bytes'])} ({summary['ledger_peak_bytes']:,} bytes), {exact}"),
        ("process", told_process(summary)),
        *([("verified", told_verification(summary["verified"]))] if summary["verified"] else []),
        (
            "speed",
            f"{summary['tokens_per_second']:,.0f} targets/s, {summary['step_seconds_median'] * 1e3:.0f} ms a step",
        ),
        ("run", str(path)),
    ):
        console.print(f"[bold]{name:>12}[/bold]  {value}")


def told_process(summary: dict[str, Any]) -> str:
    """Says what the process of the worker with the most took, and what of it is known."""
    peak, baseline, engine = (summary[name] for name in ("rss_peak_bytes", "process_baseline_bytes", "reserved_bytes"))
    predicted = summary["predicted_process_peak_bytes"]
    told = (
        f"{format_size(peak)} resident at the peak = {format_size(engine)} engine + {format_size(baseline)} interpreter and "
        f"libraries + {format_size(abs(peak - engine - baseline))} {'more' if peak >= engine + baseline else 'less'}; predicted "
        f"{format_size(predicted)} ({peak / predicted - 1:+.1%})"
    )
    drift = summary["rss_drift_bytes"]
    return told + (f"; it grew by {format_size(drift)} after the second step" if drift > _DRIFT else "")


def told_verification(found: list[dict[str, Any]]) -> str:
    """Says what the witness saw at the first step."""
    points = sum(each["points"] for each in found)
    apart, inside = (max(each[name] for each in found) for name in ("largest_difference", "largest_inside"))
    return (
        f"prediction, ledger and NumPy agree at {points:,} points of the first step; the largest difference is {apart} bytes "
        f"between operations, {format_size(inside)} inside one"
    )


@contextmanager
def progress(trainer: Trainer) -> Iterator[tuple[Any, Any]]:
    """Gives callbacks for steps and validations: a bar on a terminal, else lines."""
    steps = trainer.options.steps
    limit = f"/{trainer.budget / _MIB:.1f}" if trainer.budget else ""

    def told(row: dict[str, Any]) -> str:
        if "validation_loss" in row:
            right = f" ({row['validation_accuracy']:.1%} right)" if "validation_accuracy" in row else ""
            return f"loss {row['loss']:.4f} validation {row['validation_loss']:.4f}{right}"
        memory = f"live {row['live_bytes'] / _MIB:.1f} peak {row['peak_bytes'] / _MIB:.1f}{limit} MiB"
        return f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f}/s  {memory}"

    if console.quiet or not console.is_terminal:
        yield _lines(steps, told), None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=None if console.width > 100 else 5),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as bar:
        task = bar.add_task("starting", total=steps)

        def on_step(row: dict[str, Any]) -> None:
            bar.update(task, completed=row["step"] + 1, description=told(row))

        def on_validation(done: int, total: int) -> None:
            bar.update(task, description=f"validating {done}/{total}")

        yield on_step, on_validation


def _lines(steps: int, told: Any) -> Any:
    every = max(1, steps // 20)

    def on_step(row: dict[str, Any]) -> None:
        number = row["step"] + 1
        if number % every == 0 or number in (1, steps) or "validation_loss" in row:
            console.print(f"step {number}/{steps}  {told(row)}", markup=False)

    return on_step


if __name__ == "__main__":
    _console.run(main, defaults, __doc__ or "", CODES)
