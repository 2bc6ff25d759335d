"""Published figures of large transformers, by plans of their layers as files of costs tell them: no array is made.

Korthikanti et al. 2022 (arXiv 2205.05198): what a layer keeps at 16 bit, with masks of one byte, and what recomputing attention alone saves
and costs. Rajbhandari et al. 2020 (arXiv 1910.02054, ZeRO): what parameters, gradients and Adam's state take.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import pytest

from checkpointing import Costs, Plan, costs_of, parse_policy, plan_run
from checkpointing.operations import Loss
from framework import Spec
from framework.models import byte_gpt

#: Recomputes attention's scores, their softmax and their dropout; the products keep what they make.
SELECTIVE = "selective:Norm,Product,Dropout,GELU,Add,Context"


class Size(NamedTuple):
    """s, b, h and a of the paper."""

    sequence: int
    batch: int
    features: int
    heads: int


GPT3, MT_NLG = Size(2048, 1, 12288, 96), Size(2048, 1, 20480, 128)
SMALL = Size(48, 2, 64, 4)


def transformer(size: Size, layers: int, ways: int = 1, sequence_parallel: bool = False) -> Costs:
    """The costs of one rank of t ways: attention and the MLP are shared out; with sequence parallelism all else is, too."""
    s, b, h, a = size
    whole = s * b * h // (ways if sequence_parallel else 1)
    part, scores = s * b * h // ways, a * s * s * b // ways
    steps: list[dict[str, Any]] = []

    def add_layer(layer: int, x: int) -> int:
        def step(
            name: str, kind: str, numbers: int, inputs: list[int], reads: list[bool], flops: int = 0, **more: Any
        ) -> int:
            footprint = {"output": {"shape": [numbers], "dtype": "float16"}, "needs_input": reads, **more}
            footprint |= {"forward_flops": flops, "backward_flops": 2 * flops}
            told = {"path": f"layer{layer}.{name}", "kind": kind, "inputs": inputs, "stage": layer}
            steps.append({**told, "footprint": footprint})
            return len(steps) - 1

        def dropout(name: str, kind: str, numbers: int, source: int) -> int:
            return step(name, kind, numbers, [source], [False], own=[{"shape": [numbers], "dtype": "bool"}])

        norm = step("norm", "Norm", whole, [x], [True])
        qkv = step("qkv", "Product", 3 * part, [norm], [True], 6 * h * part)
        weights = step("scores", "Scores", scores, [qkv], [True], 2 * s * part)
        weights = step("softmax", "Softmax", scores, [weights], [False], needs_output=True)
        weights = dropout("weights", "AttentionDropout", scores, weights)
        mixed = step("context", "Context", part, [weights, qkv], [True, True], 2 * s * part)
        out = dropout("drop", "Dropout", whole, step("out", "Product", whole, [mixed], [True], 2 * h * part))
        x = step("add", "Add", whole, [x, out], [False, False])
        norm = step("norm2", "Norm", whole, [x], [True])
        act = step("act", "GELU", 4 * part, [step("up", "Product", 4 * part, [norm], [True], 8 * h * part)], [True])
        out = dropout("drop2", "Dropout", whole, step("down", "Product", whole, [act], [True], 8 * h * part))
        return step("add2", "Add", whole, [x, out], [False, False])

    x = -1
    for layer in range(layers):
        x = add_layer(layer, x)
    batch = {"shape": [whole], "dtype": "float16"}
    return Costs.from_json({"format": "retape.costs", "version": 1, "batch": batch, "targets": batch, "steps": steps})


def plan_of(costs: Costs, policy: str) -> Plan:
    return plan_run(costs, policy=parse_policy(policy), purpose="gradient").train[0]


def kept_by_a_layer(size: Size, policy: str, *how: Any) -> int:
    """What one layer more keeps from the forward to the backward."""
    held = []
    for layers in (3, 4):
        plan = plan_of(transformer(size, layers, *how), policy)
        held.append(plan.simulation.timeline[plan.operations.index(Loss())].live)
    return held[1] - held[0]


@pytest.mark.parametrize("size", [SMALL, GPT3, MT_NLG], ids=["small", "GPT-3", "MT-NLG"])
def test_a_layer_keeps_what_is_published(size: Size) -> None:
    s, b, h, a = size
    attention, all_of = Fraction(5 * a * s, h), s * b * h
    for t in (1, 2, 4):
        assert kept_by_a_layer(size, "store-all", t) == all_of * (10 + Fraction(24, t) + attention / t)
        assert kept_by_a_layer(size, "store-all", t, True) == Fraction(all_of, t) * (34 + attention)
        assert kept_by_a_layer(size, SELECTIVE, t, True) == Fraction(34 * all_of, t)
    assert kept_by_a_layer(size, "store-all") == all_of * (34 + attention)
    assert kept_by_a_layer(size, "every-k:1") == 2 * all_of


@pytest.mark.parametrize(
    ("size", "attention", "saved", "again"), [(GPT3, 80, 70, 2.7), (MT_NLG, 64, 65, 1.6)], ids=["GPT-3", "MT-NLG"]
)
def test_what_recomputing_attention_saves_and_costs(size: Size, attention: int, saved: int, again: float) -> None:
    everything, selective = (kept_by_a_layer(size, policy, 8, True) for policy in ("store-all", SELECTIVE))
    assert (everything - selective) * 8 == attention * size.sequence * size.batch * size.features
    assert round(100 * (1 - selective / everything)) == saved
    costs = transformer(size, 12)
    forward = sum(step.footprint.forward_flops for step in costs.steps)
    # The paper runs both of attention's products again. What the second makes is kept, so no plan of ours does: half of the price is left.
    both = [step.footprint.forward_flops for step in costs.steps if step.kind in ("Scores", "Context")]
    assert round(100 * sum(both) / forward, 1) == again
    more = [plan_of(costs, policy).simulation.flops for policy in ("store-all", SELECTIVE)]
    # All of the last layer is kept.
    assert more[1] - more[0] == sum(both) * Fraction(11, 12) / 2


def test_a_budget_of_the_same_bytes_computes_no_more_again() -> None:
    costs = transformer(GPT3, 12)
    selective = plan_of(costs, SELECTIVE)
    best = plan_run(costs, budget=selective.peak, purpose="gradient").train[0]
    assert best.peak <= selective.peak
    assert plan_of(costs, "store-all").simulation.flops < best.simulation.flops <= selective.simulation.flops


def test_the_flops_of_an_iteration_are_those_published() -> None:
    layers, h, s, b, v = 3, 64, 48, 4, 256
    x = Spec.of((b, s), "uint8")
    model = byte_gpt("", layers, h, 4, s)
    costs = costs_of(model.chain, model.loss, x, x)
    ours = sum(
        step.footprint.forward_flops + step.footprint.backward_flops for step in costs.steps if step.kind == "Linear"
    )
    # Without s/6h, attention's part: of its products, our layer computes what a causal mask leaves, and what it does not hold again.
    assert ours == 72 * b * layers * s * h**2 * (1 + Fraction(v, 12 * h * layers))
    whole = transformer(Size(s, b, h, 4), layers)
    total = sum(step.footprint.forward_flops + step.footprint.backward_flops for step in whole.steps)
    assert total == 72 * b * layers * s * h**2 * (1 + Fraction(s, 6 * h))


@pytest.mark.parametrize(
    ("state", "gradients", "parameters", "published"),
    [(1, 1, 1, 120.0), (64, 1, 1, 31.4), (64, 64, 1, 16.6), (64, 64, 64, 1.9)],
)
def test_what_7_5_billion_parameters_take_on_64_devices(
    state: int, gradients: int, parameters: int, published: float
) -> None:
    count = 7_500_000_000
    x = {"shape": [1], "dtype": "float16"}
    data = {
        "format": "retape.costs",
        "version": 1,
        "batch": x,
        "targets": x,
        "steps": [{"path": "model", "footprint": {"output": x}}],
        "gradient_nbytes": 2 * count // gradients,
        "static": {"parameters/model": 2 * count // parameters, "optimizer/Adam": 12 * count // state},
    }
    assert round(plan_run(Costs.from_json(data)).peak / 1e9, 1) == published
