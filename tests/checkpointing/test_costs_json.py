"""Costs as JSON: what is written is read back, and what others wrote is read or told what is wrong."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpointing import Costs, Plan, costs_of, parse_policy, plan_run
from checkpointing.costs import Seconds, Times
from checkpointing.curve import least_budget
from checkpointing.patterns import PRODUCTS
from framework import AdamW
from tests.checkpointing.cases import all_cases, tokens

ROOT = Path(__file__).parents[2]
FLOATS = {"shape": [4, 100], "dtype": "float32"}


def minimal() -> dict[str, Any]:
    """Three steps as another program may write them, with nothing that can be left away."""
    x = {"shape": [4, 100], "dtype": "float32"}
    step = {"footprint": {"output": x, "needs_input": [True]}}
    steps = [{"path": f"layer{i}", **copy.deepcopy(step), "seconds": [0.25, 0.5]} for i in range(3)]
    return {
        "format": "retape.costs",
        "version": 1,
        "measured": "a machine far away",
        "batch": x,
        "targets": {"shape": [4], "dtype": "int64"},
        "steps": steps,
        "loss": {"seconds": [0.125, 0.125]},
    }


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_costs_are_read_as_they_were_written(case: Any) -> None:
    costs = costs_of(case.chain, case.loss, *case.specs(2), AdamW(), {"data/data set": 100})
    assert Costs.from_json(json.loads(json.dumps(costs.to_json()))) == costs
    times = Times("here", tuple(Seconds(0.1 * i, 1 / (i + 1)) for i in range(len(costs.steps))), Seconds(0.5, 0.25))
    timed = Costs(**{**vars(costs), "times": times})
    assert Costs.from_json(json.loads(json.dumps(timed.to_json()))) == timed


def test_a_chain_from_elsewhere_is_planned_by_its_times_and_without_layers() -> None:
    costs = Costs.from_json(minimal())
    assert costs.source == "measured: a machine far away"
    assert costs.stages == 3
    plan = plan_run(costs, policy=None).train[0]
    plan.check()
    assert plan.simulation.seconds == 3 * (0.25 + 0.5) + 0.25
    again = plan_run(costs, budget=plan.peak - 1).train[0]
    assert again.peak < plan.peak
    assert again.simulation.seconds > plan.simulation.seconds
    assert Plan.from_json(again.to_json()).simulation.seconds == again.simulation.seconds


def test_measured_times_decide_which_plan_is_the_fastest_and_no_byte() -> None:
    case = tokens(features=32, length=24)
    costs = costs_of(case.chain, case.loss, *case.specs(1))
    assert costs.source.startswith("modelled")
    # On a strange machine products are free, and what is cheap elsewhere takes long.
    given = tuple(Seconds(0.0 if step.kind in PRODUCTS else 1.0, 1.0) for step in costs.steps)
    timed = costs.with_times(Times("a strange machine", given, Seconds(0.0, 1.0)))
    most, least = plan_run(costs).peak, least_budget(costs)
    modelled, measured = (plan_run(each, budget=(most + least) // 2).train[0] for each in (costs, timed))
    assert replace(modelled, costs=timed).simulation.seconds > measured.simulation.seconds
    assert replace(measured, costs=costs).simulation.seconds > modelled.simulation.seconds
    for policy in ("store-all", "every-k:1"):
        a, b = (plan_run(each, policy=parse_policy(policy)).train[0].simulation for each in (costs, timed))
        assert a.timeline == b.timeline
        assert a.seconds == pytest.approx(a.flops / 50e9)
        assert b.seconds >= 1.0 + sum(step.trains for step in costs.steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "costs are 'retape.costs' version 1, but these are 'other' version 1"),
        ({"version": 2}, "these are 'retape.costs' version 2"),
        ({"steps": []}, "have no steps"),
        ({"steps": {}}, "steps of the costs must be a list, but is {}"),
        ({"steps": [{}]}, "step 0 lacks 'path'; it has: nothing"),
        ({"batch": {"shape": [-1], "dtype": "float32"}}, "must be a whole number from 0, but is -1"),
        ({"batch": {"shape": [1], "dtype": "bfloat16"}}, "dtype of batch of the costs must be one of NumPy's"),
        ({"batch": {"shape": [1], "dtype": "object"}}, "dtype of batch of the costs must be one of NumPy's numbers"),
        (
            {"targets": {"shape": [2**25, 2**25], "dtype": "int64"}},
            "targets of the costs must be an array of at most 1,125,899,906,842,624 bytes, but has shape [33554432, 33554432]",
        ),
        ({"static": {"parameters/model": 10**20}}, "'parameters/model' in static of the costs must be at most"),
        ({"loss": {"forward_flops": 2**63}}, "forward_flops of the loss must be operations, fewer than 2^63"),
        ({"static": {"weights": 4}}, "named 'category/owner', but one is 'weights'"),
        ({"gradient_bytes": 4}, "has no field 'gradient_bytes'; did you mean 'gradient_nbytes'?"),
        ({"gradient_nbytes": 4.5}, "gradient_nbytes of the costs must be a whole number from 0, but is 4.5"),
        ({"loss": {}}, "'loss' has no 'seconds'"),
        ({"loss": {"seconds": [1.0]}}, "must be two, [forward, backward], but is [1.0]"),
        ({"loss": {"seconds": [1.0, float("nan")]}}, "must be seconds, a finite number from 0, but is nan"),
    ],
)
def test_wrong_costs_say_where_what_was_received_and_what_to_write(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Costs.from_json({**minimal(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [1]}, "inputs of step 'layer1' must name steps before it, 0 to 0, or the batch, -1, but are [1]"),
        ({"inputs": [-2]}, "must be the number of a step, or -1 for the batch, but is -2"),
        ({"inputs": []}, "inputs of step 'layer1'"),
        ({"stage": 4}, "after 0 step 'layer1' has 4"),
        ({"path": "layer0"}, "two steps have the path 'layer0'"),
        ({"trains": 1}, "trains of step 'layer1' must be true or false, but is 1"),
        ({"wanted": [True, False]}, "for each of 1 inputs, but is [True, False]"),
        ({"kind": None}, "kind of step 'layer1' must be a string, but is None"),
        ({"seconds": None}, "seconds of step 'layer1' must be a list, but is None"),
        ({"footprint": {}}, "footprint of step 'layer1' lacks 'output'"),
        ({"footprint": {"output": {"shape": [1], "dtype": "int8"}, "needs_input": []}}, "for each of 1 inputs"),
        (
            {"footprint": {"output": {"shape": [1], "dtype": "int8"}, "cotangent_extents": [[0, 1]]}},
            "must be [axis, start, stop], but is [0, 1]",
        ),
        (
            {"footprint": {"output": FLOATS, "cotangent_extents": [[1, 3, 1]]}},
            "cotangent_extents of footprint of step 'layer1' must be a part of input 0, float32[4, 100], but has [1, 3, 1]",
        ),
        ({"footprint": {"output": FLOATS, "cotangent_extents": [[2, 0, 1]]}}, "but has [2, 0, 1]"),
        ({"footprint": {"output": FLOATS, "cotangent_extents": [[1, 0, 101]]}}, "but has [1, 0, 101]"),
        ({"footprint": {"output": FLOATS, "backward_heap": 2**51}}, "backward_heap of footprint of step 'layer1' must"),
        (
            {"footprint": {"output": {"shape": [4, 99], "dtype": "float32"}, "cotangent_aliases": [True]}},
            "says that the cotangent of input 0, float32[4, 100], is that of the output, float32[4, 99]; they differ",
        ),
        (
            {"footprint": {"output": {"shape": [4, 99], "dtype": "float32"}, "forward_in_place": True}},
            "forward_in_place of footprint of step 'layer1' says that input 0, float32[4, 100], and the output",
        ),
    ],
)
def test_a_wrong_step_is_named(change: dict[str, Any], message: str) -> None:
    data = minimal()
    data["steps"][1] |= change
    with pytest.raises(ValueError, match=re.escape(message)):
        Costs.from_json(data)


def test_a_view_may_be_a_part_of_its_input() -> None:
    peaks = []
    for aliases in (False, True):
        data, part = minimal(), {"shape": [4, 50], "dtype": "float32"}
        data["steps"][1]["footprint"] = {"output": part, "output_aliases_input": aliases}
        data["steps"][2]["footprint"] = {"output": part, "needs_input": [True]}
        plan = plan_run(Costs.from_json(data)).train[0]
        plan.check()
        peaks.append(plan.peak)
    assert peaks[1] - peaks[0] == 4 * 50 * 4  # a view holds all of its input


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"costs\.json is no JSON file"):
        Costs.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"costs\.json: the costs must be an object, but is \[\]"):
        Costs.load(path)
    Costs.from_json(minimal()).save(path)
    assert Costs.load(path) == Costs.from_json(minimal())


def test_the_example_of_the_docs_is_read_and_planned() -> None:
    text = (ROOT / "docs" / "costs.md").read_text()
    found = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert found is not None
    costs = Costs.from_json(json.loads(found[1]))
    assert plan_run(costs).train[0].simulation.seconds > 0
