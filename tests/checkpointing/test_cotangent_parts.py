"""Cotangents of which a step makes a part: an LSTM's chunks each tell of their own steps of time, of one input."""

from __future__ import annotations

from dataclasses import replace

import pytest

from checkpointing import Plan
from checkpointing.operations import Accumulate, Drop, Load, Operation, Reduce
from checkpointing.plan import Plan as AnyPlan
from checkpointing.simulation import Merge
from framework import LSTM, Chain, CrossEntropy, Ledger, Linear, Residual
from tests.checkpointing.cases import POLICIES, Case, recurrent


def skipping() -> Case:
    """An LSTM's input is also what is added to its output."""
    case = recurrent()
    chain = Chain(case.chain.layers["embedding"], Residual(LSTM(4, 3)), Linear(7))
    return Case("skipping", chain, CrossEntropy(), case.x, case.targets)


def dropping_late(plan: Plan) -> Plan:
    """The plan with every cotangent dropped at the end of its shard."""
    operations: list[Operation] = []
    late: list[Operation] = []
    for operation in plan.operations:
        if isinstance(operation, Load | Accumulate | Reduce):
            operations += late
            late = []
        if isinstance(operation, Drop) and operation.value.kind == "d":
            late.append(operation)
        else:
            operations.append(operation)
    return replace(plan, operations=tuple(operations))


def merges(plan: AnyPlan) -> set[Merge]:
    return {merge for each in plan.simulation.merges.values() for merge in each}


@pytest.mark.parametrize("block", [False, True], ids=["heap", "block"])
def test_parts_are_put_into_zeros_into_what_is_there_or_into_a_copy_to_the_byte_and_the_same_bits(block: bool) -> None:
    case = skipping()
    first = Case("first", Chain(case.chain.layers["0"], LSTM(4, 3), Linear(7)), case.loss, case.x, case.targets)
    assert {Merge.SPREAD, Merge.INTO_OLD} <= merges(first.plans().train[0])
    late = dropping_late(case.plans(shards=2).train[0])
    late.check()
    fresh = [late.labels[i] for i, each in late.simulation.merges.items() if Merge.FRESH in each]
    assert fresh == ["backward 1.inner.chunk2"] * 2  # the others add into its copy
    results = set()
    for plan in (case.plans(shards=2).train[0], late):
        ledger = Ledger(record=True)
        engine = case.engine(ledger, block=block)
        engine.train_step(plan, case.loader(2), 0, 1e-2)
        assert tuple(ledger.timeline or ()) == plan.simulate().timeline
        results.add(engine.parameters.sha256())
    assert len(results) == 1


def test_no_chunk_makes_a_cotangent_of_the_whole_input() -> None:
    case = skipping()
    plan = case.plans().train[0]
    whole = plan.costs.output(0).nbytes
    chunks = [i for i, step in enumerate(plan.costs.steps) if step.kind == "LSTMChunk"]
    # 11 steps of time in chunks of 4, 4 and 3.
    assert [plan.costs.cotangent(i, 0).nbytes * 11 // whole for i in chunks] == [4, 4, 3]
    made = [b for b in plan.simulation.buffers if b.category == "cotangents" and ".chunk" in b.owner]
    assert max(sum(b.pieces) for b in made) < whole


def test_a_plan_with_parts_is_read_from_json_and_runs_to_the_same_bits() -> None:
    case = skipping()
    plan = case.plans("every-k:2", shards=2).train[0]
    again = Plan.from_json(plan.to_json())
    assert (again.costs, again.operations) == (plan.costs, plan.operations)
    assert case.bits_after(again) == case.bits_after(plan)


def test_policies_keep_what_chunks_hand_on_and_compute_their_gates_again() -> None:
    case = recurrent()
    chain = Chain(case.chain.layers["embedding"], rnn=LSTM(64, 11), head=Linear(7))
    case = Case("wide", chain, case.loss, case.x, case.targets)
    costs = case.plans().train[0].costs
    assert costs.stages == 1 + 11 + 1
    gates = sum(step.footprint.own_nbytes for step in costs.steps)
    held = {policy: case.plans(policy).train[0].simulation.activation_nbytes for policy in POLICIES}
    for policy in ("every-k:1", "every-k:2", "every-k:3", "sqrt-n", "recompute-all"):
        plan = case.plans(policy).train[0]
        assert held[policy] < held["store-all"] - 0.3 * gates, policy
        assert plan.simulation.flops > case.plans("store-all").train[0].simulation.flops
    # Nothing is kept of the chunks but the batch: their gates, and what they hand on, are there for one chunk at a time.
    assert held["recompute-all"] == min(held.values())
