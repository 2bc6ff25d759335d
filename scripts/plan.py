"""Plans a training step before any array exists: what each policy takes in memory and time, and what the plan keeps when.

Examples:
  python scripts/plan.py --model byte-gpt-medium --batch 8 --memory-budget engine:1GiB
  python scripts/plan.py --model byte-gpt-small --frontier --html curve.html
  python scripts/plan.py --memory-budget engine:60% --out plan.json
  python scripts/train.py --workers 0 --plan plan.json
  python scripts/plan.py --costs elsewhere.json --memory-budget engine:8GB
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import _console
from _console import console, waiting
from _plan_drawing import curve_table, drawing, node_table, paragraphs, table

from checkpointing import (
    Budget,
    Costs,
    InfeasibleBudget,
    Policy,
    RunPlans,
    StoreAll,
    costs_of,
    explain,
    memory_time_curve,
    parse_budget,
    parse_policy,
    plan_run,
)
from checkpointing.budgets import ProcessBudget, ProcessUse
from checkpointing.choices import Setting, choices
from checkpointing.costs import UpdateCost
from checkpointing.curve import CurvePoint, gap
from checkpointing.explanation import Explanation
from checkpointing.holdings import holdings
from checkpointing.plan import Plan
from checkpointing.planned import Planned
from checkpointing.policies import candidates, offloading_candidates
from checkpointing.profiler import model_times
from checkpointing.profiler import process_use as process_use_here
from checkpointing.reduction_tree import require_shards
from distributed.collectives.spread import Spread
from distributed.holding import Holding, ShareWeights
from distributed.worker_sizes import shard_specs, static_nbytes
from framework import AdamW, build
from framework.data import Batches, LastBatch
from framework.parameters import Layout

#: Of the curve in a terminal; more would push the plan out of sight.
ROWS = 25
DEFAULT_MODEL, DEFAULT_BATCH, DEFAULT_SHARDS, DEFAULT_BUDGET = "byte-gpt-tiny", 8, 4, "engine:60%"

#: How workers may hold weights and optimizer state.
REPLICATED, SHARED_OUT, WEIGHTS_TOO = "each all of it", "state shared out", "weights shared too"


@dataclass(frozen=True, kw_only=True)
class PlanOptions(_console.Common):
    model: str | None = None
    """mlp-small, mlp-deep, lenet, resnet-small, unet, byte-gpt-tiny, byte-gpt-small, these two with -tied, byte-gpt-medium, byte-gpt-large, byte-lstm-small, or your own as package.module:build. Default: byte-gpt-tiny."""
    costs: Path | None = None
    """Plan a chain that was profiled elsewhere, from this JSON file (docs/costs.md has the schema), instead of a model; a file tells one shard."""
    data: tuple[str, ...] = ()
    """Data that the model takes its sizes from, as for train.py. Default: the model's own."""
    batch: int | None = None
    """Examples in a global batch; divisible by the shards. Default: 8."""
    shards: int | None = None
    """Virtual shards that a batch is cut into (a power of two). Default: 4, as train.py; with --costs 1."""
    last_batch: LastBatch = "drop"
    """What becomes of an epoch's last examples, as for train.py: padding has weights, which take a few bytes."""
    workers: int = 0
    """Ray workers that the shards are dealt to; 0 is one process. The plan with the largest peak is shown."""
    shard_optimizer: bool = False
    """Plan for workers that share the optimizer's state out, as for train.py."""
    share_weights: ShareWeights = "auto"
    """Whether to plan for workers, all on one node, that have one copy of the weights, in two versions, and share the optimizer's state out, as for train.py."""
    policy: str | None = None
    """What to keep and what to recompute, as for train.py. Default: budget."""
    plan: Path | None = None
    """Show the plan in this file instead."""
    memory_budget: str | None = None
    """Most bytes: engine:64MiB for the arrays of each worker's engine, engine:60% for that part of store-all's activations, or 512MiB or auto for a whole process without Ray, as this one is (train.py measures its own). Default: engine:60%, or the least possible; no budget if a policy is named."""
    measured_costs: bool = False
    """Use times of each layer that are measured on this machine, which takes some seconds once, instead of FLOPs."""
    frontier: bool = False
    """Also show the memory-time curve: the fastest plan for each of many budgets."""
    points: int = 100
    """Budgets of the curve."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and activations."""
    dropout: float = 0.0
    """Rate of the model's dropout layers, in [0, 1)."""
    out: Path | None = None
    """Write the plan into this JSON file, which train.py --plan runs."""
    costs_out: Path | None = None
    """Write the costs into this JSON file."""
    html: Path | None = None
    """Write the report as a page with plots, which needs no network, into this file."""


def main(options: PlanOptions) -> dict[str, Any]:
    _require(options)
    costs, shards, what, layout = chain(options)
    world = max(1, options.workers)
    ways = held_ways(costs, layout, world) if layout is not None and world > 1 else {REPLICATED: (costs, ())}
    way = held(options, layout, world)
    costs, updates = ways[way]
    with waiting("planning"):
        plans, budget = chosen(options, costs, shards, world, updates)
        plan = max(plans.train, key=lambda plan: plan.peak)
        told = explain(plan, budget)
        rows = policies(Setting(costs, shards, world, updates=updates), plans, budget)
        on_a_node = nodes(ways, way, plan) if world > 1 else []
    curve = frontier(options, Setting(costs, shards, world, updates=updates)) if options.frontier else None
    found = holdings(plan)
    console.print(f"[bold]{what}[/bold]; times are {costs.source}", markup=True)
    console.print(table(rows, budget))
    if on_a_node:
        console.print(node_table(on_a_node, world))
    console.print(paragraphs(told))
    console.print(f"\n[bold]{'what is held when' if shards == 1 else 'what is held when, in the first shard'}[/bold]")
    console.print(drawing(found, min(console.width, 110)))
    if curve is not None:
        console.print(curve_table(curve, ROWS if console.is_terminal else None))
    if options.out is not None:
        _console.write(options.out, plans.train[0].save)
        console.print(f"run it with train.py --plan {options.out}", markup=False)
    if options.costs_out is not None:
        _console.write(options.costs_out, plan.costs.save)
    if options.html is not None:
        from _plan_html import page  # plotly takes a second to import

        _console.write(options.html, page(what, told, found, rows, curve))
    return {
        "chain": what,
        "costs": costs.source,
        "shards": shards,
        "workers": options.workers,
        "budget_bytes": budget,
        "policies": rows,
        "node": on_a_node,
        "plan": explained(told),
        "frontier": None if curve is None else [{**asdict(point), "gap": point.gap} for point in curve],
    }


def _require(options: PlanOptions) -> None:
    """Raises for options that do not go together, before anything is planned."""
    if options.costs is not None:
        given = {
            "--model": options.model,
            "--batch": options.batch,
            "--data": options.data,
            "--measured-costs": options.measured_costs,
            "--shard-optimizer": options.shard_optimizer,
            "--share-weights": options.share_weights != "auto",
        }
        if named := [name for name, value in given.items() if value]:
            raise ValueError(
                f"--costs tells all of a chain, so {' and '.join(named)} cannot change it; leave one of them away"
            )
    if options.policy is not None and options.plan is not None:
        raise ValueError(
            f"the plan in {options.plan} was made by a policy of its own; leave --policy {options.policy} away"
        )
    if options.frontier and options.points < 2:
        raise ValueError(f"--points must be at least 2, but got {options.points}")
    if options.workers < 0:
        raise ValueError(f"--workers must be at least 0, but got {options.workers}")
    files = {"--out": options.out, "--costs-out": options.costs_out, "--html": options.html}
    _console.require_new({**files, "--save-config": options.save_config}, options.force)


def chain(options: PlanOptions) -> tuple[Costs, int, str, Layout | None]:
    """Returns the costs of a shard, the number of shards, what is planned in words, and the layout of a model's parameters."""
    world = max(1, options.workers)
    if options.costs is not None:
        shards = options.shards or 1
        require_shards(shards, world)
        costs = Costs.load(options.costs)
        return (
            costs,
            shards,
            f"{options.costs.name}, {len(costs.steps)} steps, {_count(shards, 'shard')} of {costs.batch}",
            None,
        )
    name, batch, shards = (
        options.model or DEFAULT_MODEL,
        options.batch or DEFAULT_BATCH,
        options.shards or DEFAULT_SHARDS,
    )
    require_shards(shards, world)
    if batch < 1 or batch % shards:
        raise ValueError(
            f"a batch must be positive and divisible by the shards, but got {batch} examples in {_count(shards, 'shard')}"
        )
    model = build(name, options.dtype, options.dropout)
    data = model.dataset(list(options.data))
    model = model.fitted(data)
    x, targets = shard_specs(data, batch, shards)
    layout = model.chain.layout(x)
    static = static_nbytes(data, shards, bool(options.workers), layout)
    weighted = options.last_batch == "pad" and Batches(data.size("train"), batch, "pad").padded
    costs = costs_of(model.chain, model.loss, x, targets, AdamW(), static, weighted=weighted)
    if options.measured_costs:
        with _console.measuring() as progress:
            costs = costs.with_times(model_times(model, x, targets, 1, progress))
    return (
        costs,
        shards,
        f"{name}, {layout.size:,} parameters, {len(costs.steps)} steps, batch {batch} in {_count(shards, 'shard')}",
        layout,
    )


def held_ways(costs: Costs, layout: Layout, world: int) -> dict[str, tuple[Costs, tuple[UpdateCost, ...]]]:
    """Returns for each way in which ranks may hold weights and optimizer state the costs, and what ranks take if that differs."""
    spread = Spread.of([0] * world)
    state, weights = (Holding(AdamW(), layout, spread, sharded=True, weights=also) for also in (False, True))
    shared = replace(costs, static={**costs.static, **state.communication})
    return {REPLICATED: (costs, ()), SHARED_OUT: (shared, state.updates), WEIGHTS_TOO: (shared, weights.updates)}


def held(options: PlanOptions, layout: Layout | None, world: int) -> str:
    """Returns in which of these ways ranks hold weights and optimizer state."""
    if layout is None:
        return REPLICATED
    # Workers are planned for within no budget of whole processes.
    found = Holding.chosen(
        AdamW(), layout, Spread.of([0] * world), options.shard_optimizer, options.share_weights, whole_process=False
    )
    return WEIGHTS_TOO if found.weights else SHARED_OUT if found.sharded else REPLICATED


def nodes(ways: dict[str, tuple[Costs, tuple[UpdateCost, ...]]], chosen: str, plan: Plan) -> list[dict[str, Any]]:
    """Returns what a node takes on which all workers are, for each way to hold weights and optimizer state: ranks run as the plan does, which is
    for the chosen way."""
    found = []
    for name, (costs, updates) in ways.items():
        plans = plan_run(costs, policy=Planned(plan), shards=plan.shards, world=plan.world, updates=updates).train
        weights, state = (
            [sum(n for of, n in each.costs.static.items() if of.startswith(category)) for each in plans]
            for category in ("parameters/", "optimizer/")
        )
        peaks = [each.peak for each in plans]
        told = {"parameters_bytes": weights, "optimizer_bytes": state, "peak_bytes": peaks, "bytes": sum(peaks)}
        found.append({"held": name, "chosen": name == chosen, **told})
    return found


def chosen(
    options: PlanOptions, costs: Costs, shards: int, world: int, updates: tuple[UpdateCost, ...]
) -> tuple[RunPlans, int | None]:
    """Returns the plans that are asked for, and the budget of the engine in bytes."""
    planned = partial(plan_run, costs, shards=shards, world=world, updates=updates)
    everything = planned(policy=StoreAll())
    policy: Policy | None = parse_policy(options.policy) if options.policy else None
    if options.plan is not None:
        policy = Planned.load(options.plan)
    text = options.memory_budget
    if text is None and policy is not None and not isinstance(policy, Budget):
        return planned(policy=policy), None
    parsed = parse_budget(text or DEFAULT_BUDGET)
    process = process_use(options, costs) if isinstance(parsed, ProcessBudget) else None
    parsed = parsed.on_this_node()
    budget = parsed.resolve(everything, process)
    try:
        return planned(policy=policy, budget=budget), budget
    except InfeasibleBudget as error:
        if process is not None and isinstance(parsed, ProcessBudget):
            raise parsed.explain(error, process) from error
        if text is not None:
            raise
        return planned(budget=error.smallest), error.smallest


def process_use(options: PlanOptions, costs: Costs) -> ProcessUse:
    """Measures what a process like this one takes besides the engine, as train.py --workers 0 is one.

    Raises:
        ValueError: It would be another process that trains.
    """
    if options.costs is not None or options.workers:
        where = (
            "a Ray worker's process takes is measured when it starts"
            if options.workers
            else "another machine's process takes is not known here"
        )
        raise ValueError(
            f"a budget of a whole process cannot be planned here, since what {where}; write engine:{options.memory_budget} for a budget of the engine's arrays"
        )
    # The data are counted by the ledger.
    return process_use_here(costs, 1, costs.static.get("data/data set", 0))


def policies(setting: Setting, plans: RunPlans, budget: int | None) -> list[dict[str, Any]]:
    """Returns a row for each policy, and for the plan if it is none of them, all that is in JSON."""
    known, costs = choices(setting), setting.costs
    every = [*candidates(costs), *offloading_candidates(costs)]
    found = [(policy.name, known.of(policy)) for policy in every if _shown(policy)]
    rows = {name: (choice.peak, choice.seconds) for name, choice in found}
    if plans.policy.name not in rows:
        rows[plans.policy.name] = (
            max(plan.peak for plan in plans.train),
            max(plan.simulation.seconds for plan in plans.train),
        )
    on_disk = {policy.name for policy in offloading_candidates(costs)}
    if any(plan.simulation.disk_nbytes for plan in plans.train):
        on_disk.add(plans.policy.name)
    bounds = [setting.bounds(disk) for disk in (False, True)]
    once = rows[StoreAll.name][1]
    told = []
    for name, (peak, seconds) in rows.items():
        bound = max(bound.seconds(peak) for bound in bounds[name in on_disk])
        told.append(
            {
                "policy": name,
                "peak_bytes": peak,
                "seconds": seconds,
                "extra_time": seconds / once - 1 if once else 0.0,
                "bound_seconds": bound,
                "gap": gap(seconds, bound),
                "fits": budget is None or peak <= budget,
                "chosen": name == plans.policy.name,
            }
        )
    return told


def _shown(policy: Policy) -> bool:
    """Whether a policy is in the table: of those with a number the powers of two alone."""
    number = policy.name.rpartition(":")[2]
    return not number.isdecimal() or int(number) & (int(number) - 1) == 0


def frontier(options: PlanOptions, setting: Setting) -> list[CurvePoint]:
    """Plans the memory-time curve."""
    with waiting("planning") as say:

        def told(done: int, total: int) -> None:
            say(f"planning for {done} of {total} budgets")

        shards, world = setting.shards, setting.world
        return memory_time_curve(setting.costs, options.points, shards, world, told, updates=setting.updates)


def explained(told: Explanation) -> dict[str, Any]:
    """The explanation as JSON-ready data."""
    return {**asdict(told), "gap": told.gap, "words": dict(told.paragraphs())}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


if __name__ == "__main__":
    _console.run(main, PlanOptions(), __doc__ or "")
