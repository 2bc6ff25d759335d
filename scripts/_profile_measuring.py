"""Reports for profile_memory.py: planned, and measured in fresh processes; or predicted from the folder of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpointing import (
    Costs,
    InfeasibleBudget,
    Policy,
    RunPlans,
    StoreAll,
    memory_time_curve,
    parse_budget,
    parse_policy,
    plan_run,
)
from checkpointing.budgets import ProcessBudget
from checkpointing.planned import Planned
from checkpointing.profiler import Profile, Subject, measure_plan, process_use
from checkpointing.report import build, json_file
from checkpointing.report.data import FrontierPoint, PolicyRow, Rank, Report
from checkpointing.report.machine import machine
from distributed.collectives.spread import Spread
from distributed.holding import Holding
from distributed.options import TrainingOptions
from distributed.records import versions
from distributed.resuming import stored_options
from distributed.run_folder import read_json
from framework import AdamW
from framework import build as build_model

#: Told how many of how many are done, and what is next.
Told = Callable[[int, int, str], None]

#: What runs write their reports into.
REPORT = "report.json"


@dataclass(frozen=True)
class Candidate:
    """One policy or budget with its plans.

    Attributes:
        name: As it was asked for.
        plans: Its plans.
        budget: The engine's bytes that it was planned for.
    """

    name: str
    plans: RunPlans
    budget: int | None = None


def candidates(subject: Subject, costs: Costs, policies: Sequence[str], budgets: Sequence[str]) -> list[Candidate]:
    """Plans policies and budgets, in this order.

    Raises:
        InfeasibleBudget: Nothing fits a budget.
        ValueError: A policy or budget is none.
    """
    named: list[tuple[str, Policy]] = [(text, parse_policy(text)) for text in policies]
    limits = [(text, parse_budget(text)) for text in budgets]
    found = [Candidate(text, plan_run(costs, policy=policy, shards=subject.shards)) for text, policy in named]
    everything = plan_run(costs, policy=StoreAll(), shards=subject.shards) if limits else None
    for text, budget in limits:
        assert everything is not None
        use = None
        if isinstance(budget, ProcessBudget):
            use = process_use(costs, subject.threads, subject.loaded[1].nbytes)
        here = budget.on_this_node()
        limit = here.resolve(everything, use)
        try:
            found.append(Candidate(text, plan_run(costs, budget=limit, shards=subject.shards), limit))
        except InfeasibleBudget as error:
            if use is not None and isinstance(here, ProcessBudget):
                raise here.explain(error, use) from error
            raise
    return found


def profiled(
    subject: Subject,
    asked: Sequence[Candidate],
    chosen: Candidate,
    steps: int | None,
    told: Told | None,
    frontier: Sequence[FrontierPoint] = (),
    configuration: dict[str, Any] | None = None,
) -> Report:
    """Measures candidates, each in a fresh process, and returns the report.

    Args:
        subject: What is profiled.
        asked: The candidates.
        chosen: The one whose timelines the report has.
        steps: Timed steps of each; None to predict alone.
        told: Told how far it is.
        frontier: The memory-time curve.
        configuration: What was asked for.
    """
    rows = build.policy_rows(
        [build.Candidate(each.plans.policy.name, each.plans.train, each.budget, each is chosen) for each in asked]
    )
    rank: Rank | None = None
    failure = ""
    for number, each in enumerate(asked):
        if told is not None:
            told(number, len(asked), each.name)
        row, plan = rows[number], each.plans.train[0]
        profile: Profile | None = None
        if steps is not None:
            try:
                profile = measure_plan(subject, plan, steps, each.budget)
            except RuntimeError as error:
                row = replace(row, error=str(error))
        if profile is not None:
            row = _measured_row(row, profile)
        if each is chosen:
            rank = _rank(each, profile)
            failure = row.error or ""
        rows[number] = row
    assert rank is not None
    if told is not None:
        told(len(asked), len(asked), "")
    return build.report(
        subject.model,
        chosen.plans.train,
        subject.layout,
        budget=chosen.budget,
        ranks=[rank],
        policies=rows,
        frontier=frontier,
        configuration=configuration,
        machine=machine(),
        versions=versions(),
        failure=failure,
    )


def _measured_row(row: PolicyRow, profile: Profile) -> PolicyRow:
    if profile.failure:
        return replace(row, error=profile.failure)
    return replace(
        row, ledger_peak=profile.ledger_peak, rss_peak=profile.process.rss, step_seconds=profile.step_seconds
    )


def _rank(candidate: Candidate, profile: Profile | None) -> Rank:
    plan = candidate.plans.train[0]
    told = build.rank_of(plan)
    if profile is None:
        return told
    return replace(told, measured=profile.timeline, step=profile.step, process=profile.process)


def curve(costs: Costs, points: int, shards: int, told: Told | None) -> tuple[FrontierPoint, ...]:
    """Plans the memory-time curve."""
    progress = None if told is None else lambda done, total: told(done, total, "")
    return build.frontier_points(memory_time_curve(costs, points, shards, 1, progress))


def of_run(folder: Path) -> Report:
    """Returns the report of a run: the one that it wrote, else what its plan predicts.

    Raises:
        FileNotFoundError: It is no run.
        ValueError: Its model was not built by name, so its parameters are not known here; or a file is damaged.
    """
    if (folder / REPORT).is_file():
        return json_file.load(folder / REPORT)
    config = read_json(folder / "config.json")
    if not config["build"]:
        raise ValueError(
            f"the run in {folder} wrote no {REPORT}, and its model was not built by name, so it cannot be built again here; run it again "
            "with this version"
        )
    planned = Planned.load(folder / "plan.json")
    first = planned.plan
    options = TrainingOptions(**stored_options(config))
    layout = build_model(**config["build"]).chain.layout(first.costs.batch)
    summary = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    spread = Spread.parse(summary["nodes"], first.world) if "nodes" in summary else Spread.of([0] * first.world)
    whole = isinstance(options.parsed_budget(), ProcessBudget)
    # What train.py starts has this optimizer; of another one no more than its words is known here.
    usual = config["optimizer"] == repr(AdamW())
    holding = Holding.chosen(AdamW(), layout, spread, options.shard_optimizer, options.share_weights, whole)
    others = plan_run(
        first.costs,
        policy=planned,
        shards=first.shards,
        world=first.world,
        bucket_nbytes=options.bucket_nbytes,
        updates=holding.updates if holding.sharded and usual else (),
    )
    plans = (first, *others.train[1:])
    return build.report(
        config["model"],
        plans,
        layout,
        title=f"{config['model']}, as planned for the run {folder.name}",
        budget=summary.get("engine_budget_bytes"),
        configuration=config["options"],
        versions=config["versions"],
    )
