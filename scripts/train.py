"""Trains a model under a memory budget, on this machine or on Ray workers.

Examples:
  python scripts/train.py
  python scripts/train.py --data my_text/ --steps 2000 --memory-budget engine:24MiB
  python scripts/train.py --model lenet --data digits
  python scripts/train.py --model mlp-small --data table.csv --target price --task regression
  python scripts/train.py --model byte-gpt-small --batch 16 --policy every-k:1 --workers 2 --json
  python scripts/train.py --plan plan.json
  python scripts/train.py --resume runs/20260101-120000-byte-gpt-tiny --workers 4
  python scripts/train.py --watch runs/20260101-120000-byte-gpt-tiny
  python scripts/train.py --config runs/20260101-120000-byte-gpt-tiny/config.toml --seed 1
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import _console
from _configuration import written
from _console import waiting
from _train_telling import conclude, introduce, progress, warnings_in_words
from _watch import watch

from checkpointing import InfeasibleBudget
from distributed import RunFolder, Stopped, Trainer, TrainingOptions, WorkerLost
from distributed.collectives.communicator import CollectiveError
from distributed.options import flag
from distributed.resuming import stored_options
from distributed.run_folder import read_json
from distributed.run_state import WatchedRun
from framework import Dataset, Model, build

#: The budget where neither a budget nor a policy is named: a part of what store-all would hold in activations.
DEFAULT_BUDGET = "engine:60%"
#: Where neither a person nor the model says otherwise. What was tried for the byte GPT: fewer steps with larger batches reach less in the
#: same time; half the steps pass the byte pairs, too, but do not write Python yet.
DEFAULTS = {"shards": 4, "batch": 8, "steps": 960, "learning_rate": 2e-3}
#: Exit codes of their own.
CODES: dict[type[Exception], int] = {
    Stopped: _console.STOPPED,
    WorkerLost: _console.LOST,
    CollectiveError: _console.LOST,
}
#: What exit codes mean here.
MEANINGS = {
    _console.FAILED: "failed: the last lines say why; with --watch: the run that was watched did not finish",
    _console.LOST: "a worker died or did not answer; go on with --resume",
    _console.STOPPED: "stopped by SIGTERM after a step, with a snapshot; go on with --resume",
    _console.INTERRUPTED: "Ctrl-C: at once; go on from the last snapshot with --resume",
    _console.TERMINATED: "SIGTERM before the first step, or a second one: at once",
}
#: What config.json keeps of this program's own options, for a resume.
REQUEST = ("model", "data", "target", "task", "dtype", "dropout")
#: The options that a run is watched with.
WATCHING = ("watch", *(each.name for each in fields(_console.Common)))


@dataclass(frozen=True, kw_only=True)
class Train(_console.Common, TrainingOptions):
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
    """Peak learning rate, which a linear warm-up reaches. Default: what suits the model."""
    memory_budget: str | None = None
    """Most bytes of each worker: 512MiB or auto (what is free) for its whole process, engine:64MiB for its arrays, or engine:60% for that part of store-all's activations. Default: engine:60%, or the least possible; no budget if a policy or a plan is named, or with none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    dropout: float = 0.0
    """Rate of the model's dropout layers, in [0, 1)."""
    snapshot_minutes: float | None = 10.0
    """Minutes between snapshots. None: none by time."""
    watch: Path | None = None
    """Train nothing, but show the run in this folder, which another process makes, until it is over; with --json its present state, once."""
    run_dir: Path | None = None
    """Folder of the run's records. Default: runs/TIME-MODEL."""


def main(options: Train) -> dict[str, Any] | _console.Ended:
    if options.watch is not None:
        return watched(options, options.watch)
    if options.resume is not None:
        require_same_request(options)
    model = build(options.model, options.dtype, options.dropout)
    folder = RunFolder(options.run_dir, options.force) if options.run_dir else RunFolder.new(model.name)
    folder.request = request_of(options)
    with waiting("reading data and planning"):
        trainer = make_trainer(options, model, folder)
    folder.configuration = configuration_of(options, trainer)
    if trainer.resumed is not None:
        folder = trainer.resumed.folder
    try:
        if trainer.process_budget is not None:
            with waiting("starting the workers and measuring what their processes take"):
                trainer.start()
        elif options.address is not None:  # plan and budget take in how the workers are spread over nodes
            with waiting("starting the workers on the cluster"):
                trainer.start()
        introduce(trainer, options.model)
        with warnings_in_words(), progress(trainer) as (tell, tell_validation), stopped_by_sigterm(trainer):

            def on_step(row: dict[str, Any]) -> None:
                _console.end_if_asked()
                tell(row)

            result = trainer.fit(on_step, tell_validation)
    except (KeyboardInterrupt, _console.Terminated):
        if folder.path.exists():
            _console.errors.print(f"metrics so far are in {folder.path}; there are no weights", markup=False)
        raise
    finally:
        trainer.close()
    conclude(result.summary, trainer.data.describe(), folder.path, result.report)
    return result.summary


def watched(options: Train, path: Path) -> _console.Ended:
    """Shows a run that another process makes; returns its last state, and the exit code for how it ended."""
    usual = Train(workers=2, **{name: getattr(options, name) for name in WATCHING})
    named = [each.name for each in fields(Train) if getattr(options, each.name) != getattr(usual, each.name)]
    if named:
        raise ValueError(f"--watch trains nothing; leave {', '.join(map(flag, named))} away")
    if options.json:
        return _console.Ended(WatchedRun(path).state().to_json(), 0)
    state = watch(path)
    return _console.Ended(state.to_json(), 0 if state.status == "finished" else _console.FAILED)


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


def configuration_of(options: Train, trainer: Trainer) -> str:
    """The file by which `--config` starts the same run again, with what was chosen where nothing was named."""
    chosen = {name: value for name, value in vars(trainer.options).items() if name != "resume"}
    return written(replace(options, **chosen), "train", leave_out=("resume", "run_dir", "watch"))


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


if __name__ == "__main__":
    _console.run(main, defaults, __doc__ or "", CODES, MEANINGS)
