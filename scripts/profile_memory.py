"""Reports what a training step holds in memory, when, and for whom: predicted, measured in fresh processes, and drawn.

Examples:
  python scripts/profile_memory.py
  python scripts/profile_memory.py --model byte-gpt-small --budgets engine:60% --frontier --out report.html --out report.json
  python scripts/profile_memory.py --policies store-all every-k:1 --out step.trace.json
  python scripts/profile_memory.py runs/20261126-171221-byte-gpt-tiny --out report.html
  python scripts/profile_memory.py --from report.json --out report.txt
  python scripts/profile_memory.py --compare before.json after.json --fail-above 5%
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import _console
import _profile_files as files
import _profile_measuring as measuring
import tyro

from checkpointing import parse_policy
from checkpointing.policies import Budget
from checkpointing.profiler import Subject
from checkpointing.reduction_tree import require_shards
from checkpointing.report import json_file
from checkpointing.report.compare import compare
from checkpointing.report.data import Report
from framework import build

DEFAULT_POLICIES = ("store-all", "every-k:2", "every-k:1", "sqrt-n", "recompute-all")
#: The exit code where a peak grew by more than --fail-above.
GREW = 3


@dataclass(frozen=True, kw_only=True)
class ProfileMemory(_console.Common):
    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a run: shows the report that it wrote, or else what its plan predicts, instead of measuring a model."""
    model: str = "byte-gpt-tiny"
    """mlp-small, mlp-deep, lenet, resnet-small, unet, byte-gpt-tiny, byte-gpt-small, these two with -tied, byte-gpt-medium, byte-gpt-large, byte-lstm-small, or your own as package.module:build."""
    data: tuple[str, ...] = ()
    """Data to train on, as for train.py. Default: the model's own."""
    batch: int = 8
    """Examples in a batch; divisible by the shards."""
    shards: int = 1
    """Virtual shards that run one after the other (a power of two)."""
    policies: tuple[str, ...] = ()
    """Policies to measure, as for train.py. Default: store-all, every-k:2, every-k:1, sqrt-n and recompute-all; with budgets store-all."""
    budgets: tuple[str, ...] = ()
    """Budgets to plan for and to measure, as for train.py: engine:64MiB, engine:60%, or 512MiB or auto for a whole process. The first one, else the first policy, is the plan that the report draws."""
    measure: bool = True
    """Run each plan in a fresh process. Without that the report is of what is predicted."""
    steps: int = 5
    """Timed steps of each, after one that is not timed."""
    frontier: bool = False
    """Also plan the memory-time curve: the fastest plan for each of many budgets."""
    points: int = 40
    """Budgets of the curve."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    dropout: float = 0.0
    """Rate of the model's dropout layers, in [0, 1)."""
    threads: int = 1
    """Threads of matrix products."""
    measured_costs: bool = False
    """Let plans have times of each layer that are measured on this machine, which takes some seconds once, instead of FLOPs."""
    out: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """File to write the report into; may be given several times. Its ending says how: .html (a page), .json (all data), .trace.json (for Perfetto or Chrome), .txt, .svg (the table of policies)."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """JSON file of a report to show and draw again, instead of measuring."""
    compare: tuple[str, ...] = ()
    """Two JSON files of reports, before and after: tells what grew, where, and by how much."""
    fail_above: str | None = None
    """With --compare: end with exit code 3 if a peak of the engine, predicted or counted, grew by more than such a part, as 5%."""


def main(options: ProfileMemory) -> dict[str, Any] | _console.Ended:
    _require(options)
    if options.compare:
        return _compared(options)
    report = _report(options)
    files.show(report)
    for name in options.out:
        _console.write(Path(name), files.writer(name)(report))
    return _told(report, options)


def _require(options: ProfileMemory) -> None:
    """Raises for options that are wrong or do not go together, before any work."""
    sources = {"a run's folder": options.run, "--from": options.from_, "--compare": options.compare}
    given = [name for name, value in sources.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are reports from different places; name one")
    if options.compare and len(options.compare) != 2:
        raise ValueError(f"--compare takes two reports, before and after, but got {len(options.compare)}")
    if options.compare and options.out:
        raise ValueError("--compare writes no report; leave --out away, and take its numbers from --json")
    if options.fail_above is not None and not options.compare:
        raise ValueError("--fail-above is for --compare; name two reports with that")
    _part(options.fail_above)
    files.require(options.out, options.force)
    if not given:
        _require_subject(options)


def _require_subject(options: ProfileMemory) -> None:
    build(options.model, options.dtype, options.dropout)
    require_shards(options.shards)
    for policy in options.policies:
        if isinstance(parse_policy(policy), Budget):
            raise ValueError(
                "the policy 'budget' needs a budget and is no policy of its own; name budgets with --budgets"
            )
    if options.batch < 1 or options.batch % options.shards or options.steps < 1:
        raise ValueError(
            f"batch and steps must be positive and the batch divisible by the shards, but got batch {options.batch}, "
            f"{options.shards} shards and {options.steps} steps"
        )
    if options.points < 2:
        raise ValueError(f"--points must be at least 2, but got {options.points}")


def _part(text: str | None) -> float | None:
    """Reads a percentage."""
    if text is None:
        return None
    try:
        part = float(text.removesuffix("%")) / 100
    except ValueError:
        part = -1.0
    if not text.endswith("%") or not 0 <= part < float("inf"):
        raise ValueError(f"--fail-above {text!r} is no percentage; write for example 5%")
    return part


def _report(options: ProfileMemory) -> Report:
    if options.from_ is not None:
        return json_file.load(Path(options.from_))
    if options.run is not None:
        return measuring.of_run(options.run)
    subject = Subject(
        options.model, options.batch, options.shards, options.dtype, options.dropout, options.threads, options.data
    )
    times = None
    if options.measured_costs:
        with _console.measuring() as progress:
            times = subject.times(progress)
    with _console.waiting("planning"):
        costs = subject.costs(times)
        policies = options.policies or (("store-all",) if options.budgets else DEFAULT_POLICIES)
        asked = measuring.candidates(subject, costs, policies, options.budgets)
    frontier = ()
    if options.frontier:
        with _console.bar("planning for budgets") as told:
            frontier = measuring.curve(costs, options.points, options.shards, told)
    chosen = next((each for each in asked if each.budget is not None), asked[0])
    with _console.bar("measuring") as told:
        steps = options.steps if options.measure else None
        return measuring.profiled(subject, asked, chosen, steps, told, frontier, _configuration(options))


def _configuration(options: ProfileMemory) -> dict[str, Any]:
    """What of the options the report is about."""
    names = (
        "model",
        "batch",
        "shards",
        "policies",
        "budgets",
        "steps",
        "dtype",
        "dropout",
        "threads",
        "measured_costs",
        "data",
    )
    found = {name: getattr(options, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _told(report: Report, options: ProfileMemory) -> dict[str, Any]:
    """What --json prints; the report itself is what --out writes."""
    rows = [
        {
            "policy": row.policy,
            "budget_bytes": row.budget,
            "predicted_peak_bytes": row.predicted_peak,
            "ledger_peak_bytes": row.ledger_peak,
            "rss_peak_bytes": row.rss_peak,
            "step_seconds": row.step_seconds,
            "planned_seconds": row.predicted_seconds,
            "bound_seconds": row.bound_seconds,
            "chosen": row.chosen,
            "error": row.error,
        }
        for row in report.policies
    ]
    process = report.ranks[0].process
    return {
        "model": report.model,
        "title": report.title,
        "advice": list(report.advice),
        "budget_bytes": report.budget,
        "policies": rows,
        "process": None if process is None else {**asdict(process), "by_step": list(process.by_step)},
        "failure": report.failure,
        "files": list(options.out),
    }


def _compared(options: ProfileMemory) -> _console.Ended:
    before, after = (json_file.load(Path(name)) for name in options.compare)
    found, limit = compare(before, after), _part(options.fail_above)
    files.show_comparison(found, limit)
    grown = found.above(limit) if limit is not None else ()
    return _console.Ended({**found.to_json(), "above": [asdict(each) for each in grown]}, GREW if grown else 0)


if __name__ == "__main__":
    _console.run(
        main,
        ProfileMemory(),
        __doc__ or "",
        meanings={GREW: "a peak grew by more than --fail-above allows"},
    )
