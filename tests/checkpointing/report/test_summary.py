"""`summary`: its rows are the footprints, and its peak is what the ledger counts in a real step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checkpointing import Engine, InfeasibleBudget, parse_policy, run_plans, summary
from framework import (
    GELU,
    SGD,
    BatchNorm,
    Chain,
    Conv2d,
    CrossEntropy,
    Flatten,
    Layer,
    Ledger,
    Linear,
    MeanSquaredError,
    ReLU,
    Spec,
    build,
)
from tests.checkpointing.cases import Case, all_cases

CASES = {case.name: case for case in all_cases() if "64" in case.name}


@dataclass(frozen=True)
class Doubling(Layer):
    """A layer of one's own."""

    def apply(self, params: Any, x: Any, context: Any) -> Any:
        return x * 2 + np.sin(x)


def ledger_peak(case: Case, policy: str, shards: int) -> int:
    """What the ledger counts at most in a step of an engine with nothing else around it."""
    ledger = Ledger()
    plan = run_plans(
        case.chain, case.loss, *case.specs(shards), SGD(), policy=parse_policy(policy), shards=shards, validate=False
    ).train[0]
    engine = Engine(case.chain, case.loss, case.chain.layout(case.specs(1)[0]), SGD(), ledger=ledger, clip=1.0)
    engine.train_step(plan, case.loader(shards), 0, 1e-3)
    return ledger.peak


@pytest.mark.parametrize(("policy", "shards"), [("store-all", 1), ("every-k:1", 2), ("recompute-all", 4)])
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_what_the_ledger_counts_in_a_step(name: str, policy: str, shards: int) -> None:
    case = CASES[name]
    found = summary(
        case.chain, case.x, policy=policy, loss=case.loss, targets=case.targets, optimizer=SGD(), shards=shards
    )
    assert found.totals.peak_bytes == ledger_peak(case, policy, shards)
    assert (found.totals.policy, found.totals.optimizer) == (policy, "SGD")


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_footprints_and_parameters_count_once(name: str) -> None:
    case = CASES[name]
    found = summary(case.chain, case.x, loss=case.loss)
    layout = case.chain.layout(Spec.of(case.x.shape, case.x.dtype))
    assert sum(row.parameters for row in found.rows) == found.totals.parameters == layout.size
    assert found.totals.parameter_bytes == layout.nbytes
    assert found.totals.gradient_bytes == layout.gradients.nbytes
    costs = run_plans(case.chain, case.loss, *case.specs(1), SGD()).train[0].costs
    for row, step in zip(found.rows, costs.steps, strict=True):
        made = step.footprint
        assert (row.path, row.kind, row.output_shape) == (step.path, step.kind, made.output.shape)
        assert (row.output, row.residuals) == (made.output.nbytes, made.own_nbytes)
        assert row.workspace == max(made.forward_workspace, made.backward_workspace)
        assert (row.forward_flops, row.backward_flops) == (made.forward_flops, made.backward_flops)
    # Of a step that runs nothing twice.
    loss_flops = costs.loss.forward_flops + costs.loss.backward_flops
    assert found.totals.step_flops == found.totals.forward_flops + found.totals.backward_flops + loss_flops


def test_shared_parameters_count_at_the_first_step_that_uses_them() -> None:
    found = summary(build("byte-gpt-tiny-tied"), (2, 16), "int64")
    rows = {row.path: row.parameters for row in found.rows}
    assert rows["head"] == 0
    assert rows["embedding"] == 256 * 128 + 128 * 128


def test_an_array_a_spec_and_a_shape_say_the_same() -> None:
    chain = Chain(Linear(5), ReLU(), Linear(3))
    x = np.zeros((4, 6), "float64")
    told = [summary(chain, each).to_json() for each in (x, Spec.of(x.shape, x.dtype))]
    assert told[0] == told[1] == summary(chain, [4, 6], "float64").to_json()
    assert summary(chain, (4, 6)).totals.batch == "float32[4, 6]"


def test_a_model_brings_its_loss_and_others_get_one_that_is_told() -> None:
    assert summary(build("byte-gpt-tiny"), (2, 16), "int64").totals.loss == "CrossEntropy"
    found = summary(Chain(Linear(3)), (4, 6))
    assert found.totals.loss == "MeanSquaredError"
    assert "MeanSquaredError" in str(found)
    chosen = summary(Chain(Linear(3)), (4, 6), loss=MeanSquaredError(), targets=np.zeros((4, 3), "float32"))
    assert chosen == found


def test_a_policy_lowers_the_peak_and_a_budget_is_met() -> None:
    chain, x = Chain(*[layer for _ in range(6) for layer in (Linear(64), GELU())], Linear(10)), (4096, 64)
    most, least = (summary(chain, x, policy=policy).totals for policy in ("store-all", "every-k:2"))
    assert most.peak_bytes is not None and least.peak_bytes is not None and least.step_flops is not None
    assert least.peak_bytes < most.peak_bytes
    assert least.step_flops > (most.step_flops or 0)
    limit = (most.peak_bytes + least.peak_bytes) // 2
    between = summary(chain, x, budget=f"engine:{limit}").totals
    assert (between.peak_bytes or limit + 1) <= limit
    with pytest.raises(InfeasibleBudget):
        summary(chain, x, budget="engine:1KiB")


def test_a_single_layer_and_one_without_parameters_have_a_table_too() -> None:
    (row,) = summary(Linear(3), (4, 6)).rows
    assert (row.kind, row.parameters, row.output_shape) == ("Linear", 21, (4, 3))
    found = summary(ReLU(), (4, 6))
    assert found.totals.peak_bytes is None
    assert "nothing to train" in str(found)
    assert found.rows[0].output == 4 * 6 * 4


@pytest.mark.memory
def test_what_a_layer_of_ones_own_takes_is_measured() -> None:
    found = summary(Chain(Doubling(), Linear(2)), (256, 256))
    assert found.rows[0].workspace >= 2 * 256 * 256 * 4  # the two operands of its sum


def test_a_name_is_no_markup() -> None:
    found = summary(Chain(**{"<b>ä": ReLU(), "last": Linear(2)}), (4, 6))
    html = found._repr_html_()
    assert "&lt;b&gt;ä" in html and "<b>" not in html
    assert "<b>ä" in str(found)


def test_state_of_batch_norm_is_counted_apart() -> None:
    chain = Chain(Conv2d(4, 3), BatchNorm(), ReLU(), Flatten(), Linear(3))
    totals = summary(chain, (2, 1, 8, 8), loss=CrossEntropy()).totals
    assert totals.parameters == 4 * 9 + 4 + 8 + 4 * 36 * 3 + 3
    assert totals.state_bytes == 2 * 4 * 4


def test_text_html_and_json_say_the_same_numbers() -> None:
    found = summary(build("lenet"), (4, 1, 28, 28))
    told, html = str(found), found._repr_html_()
    for row in found.rows:
        line = next(line for line in told.splitlines() if line.startswith(f"{row.path} "))
        assert f"{row.parameters:,}" in line.split() and f"{row.output:,}" in line.split()
        assert f">{row.parameters:,}<" in html and f">{row.path}<" in html
    assert f"{found.totals.peak_bytes:,} bytes" in told and f"{found.totals.peak_bytes:,} bytes" in html
    data = json.loads(json.dumps(found.to_json()))
    assert data["totals"]["peak_bytes"] == found.totals.peak_bytes
    assert [row["path"] for row in data["rows"]] == [row.path for row in found.rows]
    assert repr(found) == told


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"model": "lenet", "x": (1, 2)}, TypeError, "a Model, a Chain or a layer, but got str"),
        ({"model": Linear(3), "x": None}, TypeError, "an array, a Spec, or a shape"),
        ({"model": Linear(3), "x": (4, 2.5)}, TypeError, "an array, a Spec, or a shape"),
        ({"model": Linear(3), "x": ()}, ValueError, "does not divide into 1 equal shards"),
        ({"model": Linear(3), "x": (0, 4)}, ValueError, "does not divide into 1 equal shards"),
        ({"model": Linear(3), "x": (6, 4), "shards": 4}, ValueError, "does not divide into 4 equal shards"),
        ({"model": Linear(3), "x": np.zeros((2, 2)), "dtype": "float32"}, ValueError, "has one of its own"),
        ({"model": build("byte-gpt-tiny"), "x": (2, 8)}, ValueError, "takes an array of integer tokens"),
        ({"model": Linear(3), "x": (6, 4), "policy": "all"}, ValueError, "unknown policy"),
    ],
)  # fmt: skip
def test_what_is_no_model_or_no_input_is_a_clear_error(given: dict[str, Any], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        summary(**given)
