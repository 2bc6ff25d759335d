"""Plans: their check, their JSON form, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpointing import Plan, PlanError, StoreAll
from checkpointing.operations import (
    Accumulate,
    Backward,
    Drop,
    Fetch,
    Forward,
    Load,
    Loss,
    Offload,
    Operation,
    Reduce,
    Value,
    from_json,
    to_json,
)
from checkpointing.schedules import make_plan
from tests.checkpointing.cases import POLICIES, nested, tokens

PLAN = tokens().plans("every-k:1", shards=4, world=2).train[0]
ON_DISK = tokens().plans("offload", shards=2).train[0]


def changed(plan: Plan, operations: list[Operation]) -> Plan:
    return dataclasses.replace(plan, operations=tuple(operations))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("shards", "world"), [(1, 1), (8, 1), (8, 2), (8, 3), (8, 5), (8, 8)])
def test_plans_of_every_policy_and_rank_pass_their_check(policy: str, shards: int, world: int) -> None:
    plans = nested().plans(policy, shards, world)
    for plan in (*plans.train, *plans.evaluate):
        plan.check()
    assert [plan.rank for plan in plans.train] == list(range(world))


@pytest.mark.parametrize("plan", [PLAN, ON_DISK], ids=["memory", "disk"])
def test_leaving_out_any_operation_is_found(plan: Plan) -> None:
    for place in range(len(plan.operations)):
        operations = list(plan.operations)
        del operations[place]
        with pytest.raises(PlanError):
            changed(plan, operations).check()


@pytest.mark.parametrize("plan", [PLAN, ON_DISK], ids=["memory", "disk"])
def test_doing_any_operation_twice_is_found(plan: Plan) -> None:
    for place in range(len(plan.operations)):
        operations = list(plan.operations)
        operations.insert(place, operations[place])
        with pytest.raises(PlanError):
            changed(plan, operations).check()


def test_gradients_added_in_another_tree_are_refused() -> None:
    plan = tokens().plans("store-all", shards=8).train[0]
    assert Accumulate(0, 2) in plan.operations
    for other in (Accumulate(1, 1), Accumulate(0, 2)):
        with pytest.raises(PlanError):
            changed(plan, [other if o == Accumulate(0, 1) else o for o in plan.operations]).check()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("nbytes", [1, 300, 10**9])
def test_a_bucket_is_reduced_as_soon_as_the_last_shard_has_finished_it(world: int, nbytes: int) -> None:
    costs = tokens().plans("store-all", shards=8).train[0].costs
    for rank in range(world):
        plan = make_plan(
            StoreAll().schedule(costs), costs, "store-all", shards=8, world=world, rank=rank, bucket_nbytes=nbytes
        )
        plan.check()
        operations = list(plan.operations)
        reduces = [place for place, operation in enumerate(operations) if isinstance(operation, Reduce)]
        last_load = max(place for place, operation in enumerate(operations) if isinstance(operation, Load))
        assert reduces[0] > last_load
        finished = 0
        for place in range(last_load, reduces[-1]):
            if isinstance(operation := operations[place], Backward):
                finished += costs.steps[operation.step].gradient_nbytes
                assert finished < nbytes + max(step.gradient_nbytes for step in costs.steps)
            elif place in reduces:
                assert finished >= nbytes
                finished = 0
        assert len(reduces) == 1 or nbytes < costs.gradient_nbytes
        # It begins, and changes nothing of what is held.
        whole = make_plan(StoreAll().schedule(costs), costs, "store-all", shards=8, world=world, rank=rank)
        held = [
            m.inside for m, o in zip(plan.simulation.timeline, operations, strict=True) if not isinstance(o, Reduce)
        ]
        assert held == [
            m.inside
            for m, o in zip(whole.simulation.timeline, whole.operations, strict=True)
            if not isinstance(o, Reduce)
        ]


def test_reductions_that_begin_too_early_or_in_another_order_are_refused() -> None:
    costs = tokens().plans("store-all", shards=8).train[0].costs
    plan = make_plan(StoreAll().schedule(costs), costs, "store-all", shards=8, world=2, bucket_nbytes=1)
    operations = list(plan.operations)
    first = operations.index(Reduce(0))
    loss = max(place for place, operation in enumerate(operations) if isinstance(operation, Loss))
    early = [*operations[:loss], Reduce(0), *operations[loss:first], *operations[first + 1 :]]
    swapped = [Reduce(1) if o == Reduce(0) else Reduce(0) if o == Reduce(1) else o for o in operations]
    for wrong in (early, swapped, [o for o in operations if o != Reduce(1)]):
        with pytest.raises(PlanError, match="order of losses and of the step's end"):
            changed(plan, wrong).check()
    rest = operations.index(Accumulate(2, 1))
    with pytest.raises(PlanError):
        changed(plan, [*operations[:rest], *operations[rest + 1 : -4], operations[rest], *operations[-4:]]).check()


def test_backwards_in_another_order_are_refused() -> None:
    """Cotangents of a value are added in the order of the backwards, so another order has other bits."""
    plan = nested().plans("store-all").train[0]
    backwards = [i for i, o in enumerate(plan.operations) if isinstance(o, Backward)]
    operations = list(plan.operations)
    a, b = backwards[3], backwards[4]
    operations[a], operations[b] = operations[b], operations[a]
    with pytest.raises(PlanError):
        changed(plan, operations).check()


def test_a_cotangent_dropped_before_all_its_parts_have_come_is_refused() -> None:
    """The next part would be taken for the first: a wrong gradient, silently."""
    plan = tokens().plans("store-all").train[0]
    add = max(i for i, step in enumerate(plan.costs.steps) if step.kind == "Add")
    skip = plan.costs.steps[add].inputs[1]
    place = plan.operations.index(Backward(add))
    operations = [*plan.operations[: place + 1], Drop(Value("d", skip)), *plan.operations[place + 1 :]]
    with pytest.raises(PlanError, match=rf"drops d\[{skip}\] before Backward\({skip}\)"):
        changed(plan, operations).check()


def mutations(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object inside JSON data with every key, to be changed in place."""
    for key in data if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from mutations(data[key])


def test_any_malformed_field_is_a_plan_error_or_still_a_plan() -> None:
    whole = nested().plans("store-all").train[0].to_json()
    refused = 0
    for number in range(0, len(list(mutations(whole))), 3):
        for wrong in (None, -1, "x", []):
            data = json.loads(json.dumps(whole))
            holder, key = list(mutations(data))[number]
            holder[key] = wrong
            try:
                Plan.from_json(data)
            except PlanError:
                refused += 1
    assert refused > 500
    with pytest.raises(PlanError, match="a plan is a JSON object"):
        Plan.from_json([])  # type: ignore[arg-type]


def test_an_error_names_the_operation_and_the_value() -> None:
    operations = [operation for operation in PLAN.operations if operation != Forward(0)]
    with pytest.raises(PlanError, match=r"operation 1 \(forward 1\.attention\.0\): needs a\[0\], which is not held"):
        changed(PLAN, operations).check()


def test_a_held_value_is_not_made_again() -> None:
    operations = [*PLAN.operations[:2], PLAN.operations[1], *PLAN.operations[2:]]
    with pytest.raises(PlanError, match=r"makes a\[0\], which is still held"):
        changed(PLAN, operations).check()


@pytest.mark.parametrize(
    "plan", [PLAN, ON_DISK, *tokens().plans("sqrt-n", 8, 3).train, *nested().plans("store-all", 2).evaluate]
)
def test_json_round_trip(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.simulate() == plan.simulate()


def test_operations_are_written_as_name_and_fields() -> None:
    assert to_json(Forward(3, 0)) == ["forward", 3, 0]
    assert to_json(Drop(Value("g", 0, 2))) == ["drop", "g[0,2]"]
    assert to_json(Offload(Value("r", 2))) == ["offload", "r[2]"]
    assert from_json(["load", 2]) == Load(2)
    assert from_json(["fetch", "a[3]"]) == Fetch(Value("a", 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected 'retape.plan' version 1"),
        ({"version": 2}, "expected 'retape.plan' version 1"),
        ({"operations": [["jump", 1]]}, "unknown operation 'jump'"),
        ({"operations": [["forward"]]}, "wrong fields"),
        ({"operations": [["drop", "b[1]"]]}, "is no value of a plan"),
        ({"operations": [["forward", 99, None]]}, "operation 0"),
        ({"shards": 3}, "power of two"),
        ({"purpose": "dream"}, "unknown purpose"),
        ({"rank": 2}, "does not lie in a world"),
        ({"costs": {}}, "incomplete or malformed"),
        (
            {"costs": {**PLAN.costs.to_json(), "disk_bandwidth": 0}},
            "disk_bandwidth of the costs must be bytes a second",
        ),
    ],
)
def test_a_malformed_plan_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json({**json.loads(json.dumps(PLAN.to_json())), **change})


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="is no JSON file"):
        Plan.load(tmp_path / "plan.json")
