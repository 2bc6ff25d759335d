"""Measures what each recomputation policy costs in memory and time: predicted, counted, and of a fresh process.

Examples:
  python scripts/profile_memory.py
  python scripts/profile_memory.py --model byte-gpt-small --batch 8 --shards 1 --policies store-all every-k:1 --json
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _console
from _console import console
from rich import box
from rich.console import Console
from rich.table import Table

from checkpointing import parse_policy
from checkpointing.profiler import PolicyProfile, measure_policy, model_times
from checkpointing.reduction_tree import require_shards
from framework import Spec, build, format_size

_CAPTION = (
    "predicted: before the first array. counted: the engine's live bytes.\n"
    "rss: peak of a fresh process over its start (less if it had room)."
)


@dataclass(frozen=True, kw_only=True)
class ProfileMemory(_console.Common):
    model: str = "byte-gpt-tiny"
    """mlp-small, mlp-deep, lenet, resnet-small, unet, byte-gpt-tiny, byte-gpt-small, these two with -tied, byte-gpt-medium, byte-gpt-large, byte-lstm-small, or your own as package.module:build."""
    batch: int = 8
    """Examples in a batch; divisible by the shards."""
    shards: int = 1
    """Virtual shards that run one after the other (a power of two)."""
    policies: tuple[str, ...] = ("store-all", "every-k:2", "every-k:1", "sqrt-n", "recompute-all")
    """Policies to measure."""
    steps: int = 5
    """Timed steps of each, after one that is not timed."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    dropout: float = 0.0
    """Rate of the model's dropout layers, in [0, 1)."""
    threads: int = 1
    """Threads of matrix products."""
    measured_costs: bool = False
    """Also show the time that the plan has, from times of each layer measured on this machine."""
    svg: Path | None = None
    """Also draw the table as a picture in this file."""


def main(options: ProfileMemory) -> dict[str, Any]:
    built = build(options.model, options.dtype, options.dropout)
    require_shards(options.shards)
    for policy in options.policies:
        if parse_policy(policy).name == "budget":
            raise ValueError(
                "the policy 'budget' needs a budget and is no policy of its own; name the policies to compare"
            )
    if options.batch < 1 or options.batch % options.shards or options.steps < 1:
        raise ValueError(
            f"batch and steps must be positive and the batch divisible by the shards, but got batch {options.batch}, "
            f"{options.shards} shards and {options.steps} steps"
        )
    if options.svg is not None and options.svg.exists() and not options.force:
        raise FileExistsError(f"{options.svg} exists; name another file with --svg, or overwrite it with --force")
    if options.measured_costs:
        # The processes below find these times in the user's cache.
        data, rows = built.dataset(()), options.batch // options.shards
        x, targets = (Spec((rows, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets))
        with _console.measuring() as progress:
            model_times(built, x, targets, options.threads, progress)
    found = []
    with console.status("") as status:
        for number, policy in enumerate(options.policies):
            status.update(f"measuring {policy} ({number + 1}/{len(options.policies)})")
            found.append(
                measure_policy(
                    options.model,
                    policy,
                    options.batch,
                    options.shards,
                    options.steps,
                    options.dtype,
                    options.dropout,
                    options.threads,
                    options.measured_costs,
                )
            )
    console.print(table(found, options))
    if options.svg is not None:
        options.svg.write_text(picture(table(found, options)))
    rows = [
        {
            "policy": p.policy,
            "predicted_peak_bytes": p.predicted_peak_bytes,
            "ledger_peak_bytes": p.ledger_peak_bytes,
            "rss_peak_bytes": p.rss_peak_bytes,
            "step_seconds": p.step_seconds,
            "planned_seconds": p.planned_seconds,
        }
        for p in found
    ]
    return {"model": options.model, "batch": options.batch, "shards": options.shards, "policies": rows}


def table(found: list[PolicyProfile], options: ProfileMemory) -> Table:
    """Draws the measurements, memory and time relative to the first policy."""
    title = f"{options.model}, batch {options.batch}: a step's peak memory and time by policy"
    drawn = Table(title=title, caption=_CAPTION, box=box.SIMPLE_HEAD, collapse_padding=True)
    drawn.add_column("policy", no_wrap=True)
    planned = ("planned",) if options.measured_costs else ()
    for name in ("predicted", "counted", "rss", "step", *planned, "memory", "time"):
        drawn.add_column(name, justify="right", no_wrap=True)
    first = found[0]
    for p in found:
        drawn.add_row(
            p.policy,
            format_size(p.predicted_peak_bytes),
            format_size(p.ledger_peak_bytes) + ("" if p.predicted_peak_bytes == p.ledger_peak_bytes else " NOT EQUAL"),
            format_size(p.rss_peak_bytes),
            f"{p.step_seconds * 1e3:.4g} ms",
            *((f"{p.planned_seconds * 1e3:.4g} ms",) if planned else ()),
            f"{p.predicted_peak_bytes / first.predicted_peak_bytes:.0%}",
            f"{p.step_seconds / first.step_seconds:.0%}",
        )
    return drawn


def picture(drawn: Table) -> str:
    """Draws a table as an SVG that needs nothing from elsewhere."""
    recorder = Console(record=True, width=76, file=io.StringIO())
    recorder.print(drawn)
    svg = recorder.export_svg(title="python scripts/profile_memory.py")
    # rich would load its fonts from the network, and name itself.
    return re.sub(r"@font-face \{.*?\}|<!-- .*? -->", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    _console.run(main, ProfileMemory(), __doc__ or "")
