"""What scripts/train.py says: what is about to run, how far it is, and what came of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _console import console, errors, fact
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from checkpointing import Bounds
from checkpointing.curve import gap
from checkpointing.offload import default_folder, lies_in_memory
from checkpointing.report.advice import is_dear
from distributed import Trainer
from distributed.run_planning import Share
from framework import MeanSquaredError, format_size

_MIB = 2**20
#: A process whose peak grows by more than this after its second step is said to drift.
_DRIFT = 2 * _MIB


def introduce(trainer: Trainer, name: str) -> None:
    """Says what is about to run."""
    plans, data, chosen = trainer.plans, trainer.data.describe(), trainer.options
    longer, above = _longer(trainer)
    spread = trainer.planning.spread
    apart = f" on {len(spread.nodes)} nodes ({spread})" if len(spread.nodes) > 1 else ""
    where = f"{chosen.workers} Ray workers{apart}" if chosen.workers else "in process"
    if "train_bytes" in data:
        source = f"{data['files']:,} files of {', '.join(data['source'])}"
        text = f"{data['train_bytes']:,} bytes in {source}; {data['validation_bytes']:,} for validation"
    else:
        text = f"{data['train_examples']:,} examples{told_examples(trainer, data)}; {data['validation_examples']:,} for validation"
    part = plans.activation_nbytes / plans.store_all_activation_nbytes
    budget = f"{format_size(trainer.budget)} of the engine's bytes in each worker" if trainer.budget else "none"
    if len(trainer.planning.shares) > 1:
        budget = "; ".join(told_share(share) for share in trainer.planning.shares)
    elif (whole := trainer.process_budget) is not None and whole.nbytes and trainer.planning.process and trainer.budget:
        budget = (
            f"{format_size(whole.nbytes)} for each worker's process{f' ({whole.reason})' if whole.reason else ''}: "
            f"{format_size(trainer.planning.process.baseline)} before the first array, {format_size(trainer.budget)} for the engine"
        )
    threads, cores = chosen.world * chosen.threads_per_worker, os.cpu_count() or 1
    if threads > cores:
        console.print(f"[yellow]{threads} threads share {cores} cores here, so steps will be slow[/yellow]")
    for title, value in (
        ("model", f"{name}, {trainer.layout.size:,} parameters of {trainer.layout.dtype.name}"),
        ("data", text),
        (
            "workers",
            f"{where}, {chosen.threads_per_worker} thread each; batch {chosen.batch} in {chosen.shards} shards{told_sharding(trainer)}",
        ),
        ("budget", budget),
        *told_policies(trainer, told_time(longer, above)),
        *([("costs", plans.train[0].costs.source)] if chosen.measured_costs else []),
        (
            "activations",
            f"{format_size(plans.activation_nbytes)}, {part:.0%} of store-all's {format_size(plans.store_all_activation_nbytes)}",
        ),
        *told_price(trainer, longer),
        *told_disk(trainer),
        *told_resumption(trainer),
    ):
        fact(title, value)


def told_policies(trainer: Trainer, time: str) -> list[tuple[str, str]]:
    """Says what is kept and what is recomputed, and what that holds: for ranks on each node, where nodes have budgets of their own.

    Args:
        trainer: The run.
        time: What less memory costs in time.
    """
    shares, plans = trainer.planning.shares, trainer.plans
    if len(shares) == 1:
        peak = f"{format_size(plans.peak)} ({plans.peak:,} bytes)"
        return [("policy", f"{plans.policy.name}{time}, predicted peak {peak}")]
    return [
        (
            "policy",
            f"{share.plans.policy.name} on {share.told_ranks}, predicted peak {format_size(share.peak)} ({share.peak:,} bytes)",
        )
        for share in shares
    ]


def told_share(share: Share) -> str:
    """Says what ranks of one budget have, and where it comes from."""
    told = share.to_json()
    reason = f" ({told['reason']})" if told["reason"] else ""
    return f"{format_size(told['budget_bytes'])}{reason} on {share.told_ranks}, {format_size(share.limit or 0)} of it for the engine"


def told_sharding(trainer: Trainer) -> str:
    """Says who holds the optimizer's state and weights, where they are shared out or were asked to be."""
    options, holding = trainer.options, trainer.planning.holding
    if not holding.sharded:
        asked = options.shard_optimizer or options.share_weights == "yes"
        return "; one rank holds all of the optimizer's state" if asked else ""
    most = max(update.state for update in trainer.planning.updates)
    weights = "one copy of the weights on each node; " if holding.weights else ""
    return f"; {weights}of the optimizer's state {format_size(most)} in each"


def told_resumption(trainer: Trainer) -> list[tuple[str, str]]:
    """Says where a stopped run goes on, and what differs."""
    resumed = trainer.resumed
    if resumed is None:
        return []
    where = "its beginning: it has no snapshot" if resumed.snapshot is None else f"{resumed.snapshot.name}"
    changed = [f"{name} {then} → {now}" for name, (then, now) in resumed.changed(trainer.options).items()]
    return [("resumed", f"{resumed.folder.path} from {where}{'; ' + ', '.join(changed) if changed else ''}")]


def told_time(longer: float, above: float) -> str:
    """Says what less memory costs in time; nothing where it costs none."""
    return f" (takes {longer:.1%} longer than store-all, {above:.1%} above the lower bound)" if longer > 1e-9 else ""


def told_price(trainer: Trainer, longer: float) -> list[tuple[str, str]]:
    """Advises against a plan that costs much time for little memory."""
    plans = trainer.plans
    more = plans.store_all_activation_nbytes - plans.activation_nbytes
    if len(trainer.planning.shares) > 1 or not is_dear(longer, more / (plans.peak + more)):
        return []
    whole = f"{format_size(more)} more ({more / plans.peak:.1%})"
    return [
        (
            "advice",
            f"that is dear: if {whole} fit, --policy store-all takes {1 - 1 / (1 + longer):.0%} less time a step",
        )
    ]


def _longer(trainer: Trainer) -> tuple[float, float]:
    """By which part a step is longer than store-all's, and than the lower bound, by the plan of the rank that takes longest."""
    plan = trainer.plans.train[0]
    once, bound = (
        Bounds(plan.costs, plan.shards, plan.world, plan.rank, disk).seconds(trainer.planning.limit_of(0) or plan.peak)
        for disk in (True, plan.simulation.file_nbytes > 0)
    )
    seconds = plan.simulation.seconds
    return gap(seconds, once), gap(seconds, bound)


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


def conclude(summary: dict[str, Any], data: dict[str, Any], path: Path, report: Path | None = None) -> None:
    """Says what came of it.

    Args:
        summary: What `summary.json` holds.
        data: What the data say of themselves.
        path: The run's folder.
        report: The page with its memory report, if there is one.
    """
    exact = "as predicted" if summary["predicted_peak_bytes"] == summary["ledger_peak_bytes"] else "NOT AS PREDICTED"
    for name, value in (
        ("validation", told_validation(summary, data)),
        ("peak", f"{format_size(summary['ledger_peak_bytes'])} ({summary['ledger_peak_bytes']:,} bytes), {exact}"),
        ("process", told_process(summary)),
        *([("verified", told_verification(summary["verified"]))] if summary["verified"] else []),
        (
            "speed",
            f"{summary['tokens_per_second']:,.0f} targets/s, {summary['step_seconds_median'] * 1e3:.0f} ms a step",
        ),
        ("run", str(path)),
        *([("report", str(report))] if report is not None else []),
    ):
        fact(name, value)


def told_validation(summary: dict[str, Any], data: dict[str, Any]) -> str:
    """Says the last validation's loss, in what, and beside what it can be judged."""
    told = f"{summary['validation_loss']:.4f} {summary['loss_unit']}"
    if (accuracy := summary["validation_accuracy"]) is not None:
        told += f", {accuracy:.1%} right"
    if summary["bigram_cross_entropy"] is not None:
        pairs, single = summary["bigram_cross_entropy"], summary["unigram_entropy"]
        return f"{told} (byte pairs reach {pairs:.4f}, single bytes {single:.4f})"
    if summary["loss_unit"] == MeanSquaredError.unit and data.get("task") in ("regression", "denoising"):
        # Such targets are scaled to the deviation 1 (`framework.data.examples.prepare`).
        return f"{told} of standardised targets (their mean alone reaches 1)"
    return told


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
def warnings_in_words() -> Iterator[None]:
    """Inside, Python's warnings are told without the line of code that gave them."""
    before = warnings.showwarning

    def show(message: Warning | str, *where: Any) -> None:
        errors.print(f"warning: {message}", style="yellow", markup=False)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


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
