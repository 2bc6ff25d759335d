"""Reports from plans and recordings: each part of a `Report` from what is known of it, and all of it together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from checkpointing.bounds import Bounds
from checkpointing.costs import StepCost
from checkpointing.curve import CurvePoint
from checkpointing.holdings import first_shard, holdings
from checkpointing.operations import Drop, Forward, Loss, Offload, Value, output, residuals
from checkpointing.plan import Plan
from checkpointing.policies import StoreAll
from checkpointing.report.advice import advice
from checkpointing.report.data import (
    Drawing,
    FrontierPoint,
    LayerRow,
    PolicyRow,
    Process,
    Rank,
    Report,
    Timeline,
)
from checkpointing.report.timelines import in_nanoseconds, measured, predicted
from checkpointing.runs import RunPlans, plan_run
from checkpointing.simulation import backward_needs
from framework.memory import Recording
from framework.parameters import Layout


def rank_of(
    plan: Plan,
    recording: Recording | None = None,
    step: int | None = None,
    process: Process | None = None,
    node: str = "",
) -> Rank:
    """Returns what a report says of one worker.

    Args:
        plan: The worker's plan of a training step.
        recording: What its ledger recorded of one step; None where nothing was.
        step: Which step that was, from 0.
        process: Its process's memory.
        node: Where it ran.

    Raises:
        ValueError: The recording is of another plan.
    """
    seen = None if recording is None else measured(plan, recording)
    return Rank(plan.rank, node, predicted(plan), seen, step, process)


def report(
    model: str,
    plans: Sequence[Plan],
    layout: Layout,
    *,
    title: str = "",
    budget: int | None = None,
    ranks: Sequence[Rank] = (),
    policies: Sequence[PolicyRow] = (),
    frontier: Sequence[FrontierPoint] = (),
    configuration: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    failure: str = "",
) -> Report:
    """Returns the report of a step.

    Args:
        model: The model's name.
        plans: The plan of a training step for each rank.
        layout: The layout of the model's parameters.
        title: Of the page; by default model and batch.
        budget: Bytes that no rank's engine may pass.
        ranks: What is known of each worker; by default what the plans predict.
        policies: Policies side by side; by default the plans' and store-all, as predicted.
        frontier: The memory-time curve.
        configuration, machine, versions: What was asked for, and on what it ran.
        failure: What ended the run before its end.
    """
    first = plans[0]
    workers = tuple(ranks) or tuple(map(rank_of, plans))
    rows = first.costs.batch.shape[0] * first.shards
    made = Report(
        title=title or f"{model}, batch {rows}",
        advice=(),
        model=model,
        policy=first.policy,
        costs=first.costs.source,
        budget=budget,
        ranks=workers,
        layers=layer_rows(first, layout, workers[0].measured),
        policies=tuple(policies) or _beside_store_all(plans, budget),
        frontier=tuple(frontier),
        drawing=drawing(first),
        configuration=dict(configuration or {}),
        machine=dict(machine or {}),
        versions=dict(versions or {}),
        failure=failure,
    )
    return replace(made, advice=advice(made))


def _beside_store_all(plans: Sequence[Plan], budget: int | None) -> tuple[PolicyRow, ...]:
    first = plans[0]
    candidates = [Candidate(first.policy, plans, budget, True)]
    if first.policy != StoreAll.name:
        everything = plan_run(
            first.costs, policy=StoreAll(), shards=first.shards, world=first.world, purpose=first.purpose
        )
        candidates.insert(0, Candidate(StoreAll.name, everything.train))
    return tuple(policy_rows(candidates))


def layer_rows(plan: Plan, layout: Layout, seen: Timeline | None = None) -> tuple[LayerRow, ...]:
    """Returns the table of layers: of each leaf step its sizes, its times, and what becomes of it in a shard.

    Args:
        plan: The plan of a training step.
        layout: The layout of the model's parameters.
        seen: A measured timeline of the plan, for the times.
    """
    costs = plan.costs
    forwards = Counter(each.step for each in first_shard(plan.operations) if isinstance(each, Forward))
    held = _held_after_loss(plan)
    learned = parameters_by_step(layout, costs.steps)
    times = {} if seen is None else _median_seconds(seen)
    rows = []
    for number, step in enumerate(costs.steps):
        footprint = step.footprint
        planned = costs.seconds(number)
        trains = plan.purpose != "evaluate" and step.trains
        workspaces = (
            footprint.forward_workspace + footprint.forward_heap,
            (footprint.backward_workspace + footprint.backward_heap) if trains else 0,
        )
        rows.append(
            LayerRow(
                path=step.path,
                kind=step.kind,
                output_shape=footprint.output.shape,
                parameters=learned[step.path],
                output=footprint.output.nbytes,
                residuals=footprint.own_nbytes,
                workspace=max(workspaces),
                flops=footprint.forward_flops + (footprint.backward_flops if trains else 0),
                forward_seconds=times.get(f"forward {step.path}", in_nanoseconds(planned.forward)),
                backward_seconds=times.get(
                    f"backward {step.path}", in_nanoseconds(planned.backward) if trains else 0.0
                ),
                kept=_kept(forwards[number], {output(number), residuals(number)} & held),
                forwards=forwards[number],
            )
        )
    return tuple(rows)


def _kept(forwards: int, held: set[Value]) -> str:
    if forwards <= 1:
        return "kept"
    return "in part" if held else "recomputed"


def _held_after_loss(plan: Plan) -> set[Value]:
    """Of the first shard: outputs and residuals that are there, in memory or on disk, when its loss has run, and are read by a backward."""
    there: set[Value] = set()
    on_disk: set[Value] = set()
    for operation in first_shard(plan.operations):
        match operation:
            case Loss():
                break
            case Forward(step, keep):
                there |= {output(step)} | ({residuals(step)} if keep is not None else set())
            case Offload(value):
                on_disk.add(value)
            case Drop(value):
                there.discard(value)
    read = {
        value
        for step in range(len(plan.costs.steps))
        if plan.costs.steps[step].trains
        for value in backward_needs(plan.costs, step)
    }
    return (there | on_disk) & read


def parameters_by_step(layout: Layout, steps: Sequence[StepCost]) -> dict[str, int]:
    """How many numbers each step learns, by its path; those of several steps count at the first."""
    order = {step.path: number for number, step in enumerate(steps)}
    owners = {name: [name] for name in layout.specs}
    for alias, name in layout.aliases.items():
        owners[name].append(alias)
    found = dict.fromkeys(order, 0)
    for name, names in owners.items():
        paths = [each.rpartition(".")[0] for each in names]
        found[min((path for path in paths if path in order), key=order.__getitem__)] += layout.specs[name].size
    return found


def _median_seconds(seen: Timeline) -> dict[str, float]:
    by_label: defaultdict[str, list[float]] = defaultdict(list)
    for label, seconds in zip(seen.labels, seen.seconds, strict=True):
        by_label[label].append(seconds)
    return {label: in_nanoseconds(median(each)) for label, each in by_label.items()}


def drawing(plan: Plan) -> Drawing:
    """Returns a plan's first shard as a drawing."""
    found = holdings(plan)
    held = tuple("".join(map(str, row.tolist())) for row in found.held)
    return Drawing(found.steps, found.labels, held, found.running)


@dataclass(frozen=True)
class Candidate:
    """A policy or budget with its plans of a training step, one for each rank.

    Attributes:
        policy: As it is spelled.
        plans: The plans.
        budget: The bytes it was planned for.
        chosen: Whether it is the plan of the report's timelines.
    """

    policy: str
    plans: Sequence[Plan]
    budget: int | None = None
    chosen: bool = False


def policy_rows(candidates: Sequence[Candidate]) -> list[PolicyRow]:
    """Returns what is predicted of policies and budgets."""
    known: dict[Any, Bounds] = {}  # the same for all plans of one setting, and slow to make where there are many steps

    def bound(plan: Plan, disk: bool, peak: int) -> float:
        key = (id(plan.costs), plan.shards, plan.world, plan.rank, disk)
        if key not in known:
            known[key] = Bounds(plan.costs, plan.shards, plan.world, plan.rank, disk)
        return known[key].seconds(peak)

    rows = []
    for each in candidates:
        peak = max(plan.peak for plan in each.plans)
        seconds = max(plan.simulation.seconds for plan in each.plans)
        disk = any(plan.simulation.disk_nbytes for plan in each.plans)
        least = max(bound(plan, disk, peak) for plan in each.plans)
        rows.append(PolicyRow(each.policy, each.budget, peak, seconds, None, None, None, least, each.chosen))
    return rows


def policy_row(
    plans: RunPlans | Sequence[Plan], name: str, budget: int | None = None, chosen: bool = False
) -> PolicyRow:
    """Returns the same of one policy alone."""
    (row,) = policy_rows([Candidate(name, plans.train if isinstance(plans, RunPlans) else plans, budget, chosen)])
    return row


def frontier_points(curve: Sequence[CurvePoint]) -> tuple[FrontierPoint, ...]:
    """Returns the memory-time curve as a report has it."""
    return tuple(FrontierPoint(point.budget, point.seconds, point.bound, point.policy) for point in curve)
