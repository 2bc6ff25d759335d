"""What a memory report says, as plain data: all that its pages, traces and texts draw is here, and nothing else is.

docs/reports.md describes the same as JSON. Bytes and seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Of the JSON; the number grows when a field changes its meaning or goes.
SCHEMA, VERSION = "retape-report", 1

#: The parts of a training step, in their order.
PHASES = ("load", "forward", "loss", "backward", "all-reduce", "optimizer")


@dataclass(frozen=True)
class Timeline:
    """What is alive through one step of one rank, operation by operation: columns of equal length.

    Attributes:
        labels: The operations, as the plan names them.
        phases: The phase of each, one of `PHASES`.
        layers: The path of the layer that runs, or whose value it is; empty where there is none.
        shards: The virtual shard of each; None where it is of none or of all.
        recomputed: Whether each is a forward that has run before in its shard. Its phase is then the backward.
        seconds: How long each took, or takes by the plan, in whole nanoseconds.
        live: Bytes alive after each.
        inside: The most bytes alive during each.
        holders: All (category, owner) that hold anything at any time.
        before: Bytes that each holder has before the first operation.
        changes: For each operation, the holders that have more or fewer bytes after it than before, and by how many: (holder, bytes).
        peak: The operation with the most bytes inside, the first of equal ones.
        at_peak: What each holder has at that moment, zeros left out: (holder, bytes); they add up to ``inside[peak]``.

    What belongs to no layer has another owner: "model", "AdamW", "shard 0", "loss". A step that failed half-way ends with the operation
    that failed; one that failed before its first has no operations, and `at_peak` is `before`.
    """

    labels: tuple[str, ...]
    phases: tuple[str, ...]
    layers: tuple[str, ...]
    shards: tuple[int | None, ...]
    recomputed: tuple[bool, ...]
    seconds: tuple[float, ...]
    live: tuple[int, ...]
    inside: tuple[int, ...]
    holders: tuple[tuple[str, str], ...]
    before: tuple[int, ...]
    changes: tuple[tuple[tuple[int, int], ...], ...]
    peak: int
    at_peak: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Process:
    """The memory of a whole process at its peak: engine + interpreter + ray + unexplained = rss.

    Attributes:
        rss: Peak resident bytes.
        engine: The engine's arrays.
        interpreter: What the process has before the first array: Python and libraries, without Ray.
        ray: What Ray adds to that; 0 in process.
        unexplained: The rest; it may be negative where reserved bytes were never touched.
        by_step: Peak resident bytes after each step that was run.
        predicted: What was predicted of rss; None if nothing was.
    """

    rss: int
    engine: int
    interpreter: int
    ray: int
    unexplained: int
    by_step: tuple[int, ...]
    predicted: int | None


@dataclass(frozen=True)
class Rank:
    """One worker: what was predicted of a step of it, and what was measured.

    Attributes:
        rank: Its number.
        node: Where it ran.
        predicted: The timeline by its plan.
        measured: The ledger's timeline of one step; None where none was recorded.
        step: Which step that was, from 0.
        process: Its process's memory; None where it was not measured.
    """

    rank: int
    node: str
    predicted: Timeline
    measured: Timeline | None
    step: int | None
    process: Process | None


@dataclass(frozen=True)
class LayerRow:
    """One leaf step of the model under the chosen plan, for a shard.

    Attributes:
        path: Its path.
        kind: Its layer's class.
        output_shape: Of a shard's output.
        parameters: How many numbers it learns; those of a shared layer count at its first step.
        output, residuals, workspace: Bytes of its output, own residuals, and the larger workspace of forward and backward.
        flops: Of its forward and backward.
        forward_seconds, backward_seconds: Of one each: measured where the report has a measured timeline, else as planned.
        kept: "kept" if its forward runs once; else "in part" if something of it that a backward reads is there when the loss has run,
            and "recomputed" if nothing is.
        forwards: How many times its forward runs in a shard.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    output: int
    residuals: int
    workspace: int
    flops: int
    forward_seconds: float
    backward_seconds: float
    kept: str
    forwards: int


@dataclass(frozen=True)
class PolicyRow:
    """One policy or budget, predicted, and measured in a fresh process where it was.

    Attributes:
        policy: As it is spelled.
        budget: The bytes it was planned for; None without a budget.
        predicted_peak, predicted_seconds: By the plan, of a whole step's passes.
        ledger_peak, rss_peak, step_seconds: As measured: the engine's bytes, those of its whole process, and a step's median time; None
            where it was not.
        bound_seconds: Seconds that no plan of this peak goes below.
        chosen: Whether it is the plan of the timelines.
        error: Why measuring it failed; None if it did not.
    """

    policy: str
    budget: int | None
    predicted_peak: int
    predicted_seconds: float
    ledger_peak: int | None
    rss_peak: int | None
    step_seconds: float | None
    bound_seconds: float
    chosen: bool
    error: str | None = None


@dataclass(frozen=True)
class FrontierPoint:
    """The fastest known plan within a budget, and the seconds that no plan within it goes below."""

    budget: int
    seconds: float
    bound_seconds: float
    policy: str


@dataclass(frozen=True)
class Drawing:
    """The plan of one shard as a drawing: see `checkpointing.holdings.Holdings`, whose columns these are.

    Attributes:
        steps: The paths of the steps.
        labels: The operations.
        held: For each operation, what is held of each step after it, a digit a step: 0 nothing, 1 its cotangent, 2 a part, 3 all.
        running: For each operation its step and "F", "R" (forward again) or "B"; None for others.
    """

    steps: tuple[str, ...]
    labels: tuple[str, ...]
    held: tuple[str, ...]
    running: tuple[tuple[int, str] | None, ...]


@dataclass(frozen=True)
class Report:
    """A memory report.

    Attributes:
        title: Of the page: the model and the batch.
        advice: A sentence or two that say what the reader should do.
        model: Its name.
        policy: How the plan was made.
        costs: Where planned times come from.
        budget: Bytes that no rank's engine may pass; None without a budget.
        ranks: One, or each worker of a run.
        layers: The table of layers.
        policies: Policies and budgets side by side.
        frontier: The memory-time curve; empty if it was not asked for.
        drawing: The plan.
        configuration: What was asked for, by name.
        machine: Cores, memory, processor, by name.
        versions: By package.
        failure: What ended a run before its end; empty if nothing did.
    """

    title: str
    advice: tuple[str, ...]
    model: str
    policy: str
    costs: str
    budget: int | None
    ranks: tuple[Rank, ...]
    layers: tuple[LayerRow, ...]
    policies: tuple[PolicyRow, ...]
    frontier: tuple[FrontierPoint, ...]
    drawing: Drawing
    configuration: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    def __str__(self) -> str:
        """The report for a terminal."""
        from checkpointing.report.text import text

        return text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the words and the tables."""
        from checkpointing.report.notebook import notebook_html  # which draws; data know nothing of that

        return notebook_html(self)
