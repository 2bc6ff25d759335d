"""Packing: nothing that lives together overlaps, and the block is hardly larger than the most that lives at once."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpointing import parse_policy, run_plans
from checkpointing.packing import ALIGNMENT, Buffer, Packing, pack
from framework import AdamW, Spec, build
from framework.models import MODELS
from tests.checkpointing.cases import POLICIES, all_cases


@st.composite
def some_buffers(draw: st.DrawFn) -> list[Buffer]:
    buffers = []
    for first in sorted(draw(st.lists(st.integers(0, 7), min_size=1, max_size=12))):
        pieces = tuple(draw(st.lists(st.integers(0, 500), min_size=1, max_size=3)))
        category = draw(st.sampled_from(["activations", "residuals"]))
        buffers.append(Buffer(category, "x", pieces, first, draw(st.integers(first, 7))))
    return buffers


def require_sound(buffers: tuple[Buffer, ...] | list[Buffer], packing: Packing) -> None:
    """Every piece has a slot of its size; slots of buffers that live together are disjoint and inside."""
    queues = [{category: list(slots) for category, slots in each.items()} for each in packing.slots]
    places: list[tuple[Buffer, int, int]] = []
    for buffer in buffers:
        if buffer.category == "workspace":
            ((start, size),) = queues[buffer.first].pop("workspace")
            assert size >= buffer.pieces[0]
            places.append((buffer, start, start + size))
            continue
        for nbytes in buffer.pieces:
            start, size = queues[buffer.first][buffer.category].pop(0)
            assert size == nbytes
            places.append((buffer, start, start + size))
    assert not any(slots for each in queues for slots in each.values())
    for _, start, stop in places:
        assert start % ALIGNMENT == 0 and 0 <= start <= stop <= packing.nbytes
    first, last = (np.array([getattr(b, n) for b, _, _ in places]) for n in ("first", "last"))
    starts, stops = np.array([a for _, a, _ in places]), np.array([b for _, _, b in places])
    for i, (_, start, stop) in enumerate(places):
        together = (first <= last[i]) & (last >= first[i]) & (starts < stop) & (stops > start)
        assert together.sum() == (stop > start)  # itself alone


@settings(max_examples=150, deadline=None, derandomize=True)
@given(some_buffers())
def test_any_packing_is_sound_and_no_smaller_than_its_bound(buffers: list[Buffer]) -> None:
    packing = pack(buffers, 8)
    require_sound(buffers, packing)
    live = [sum(b.packed_nbytes for b in buffers if b.first <= t <= b.last) for t in range(8)]
    assert packing.bound == max(live) <= packing.nbytes
    assert pack(buffers, 8) == packing  # no chance is left to it


def test_a_packing_of_few_buffers_is_the_best_there_is() -> None:
    """Against every order, each put at the lowest place that is free: one of them is the best packing."""
    generator = np.random.default_rng(7)
    for _ in range(12):
        first = np.sort(generator.integers(0, 6, 6))
        buffers = [
            Buffer("activations", "x", (int(n) * ALIGNMENT,), int(a), int(generator.integers(a, 6)))
            for n, a in zip(generator.integers(1, 9, 6), first, strict=True)
        ]
        best = min(_height_of(order) for order in permutations(buffers))
        assert pack(buffers, 6).nbytes <= max(best, 1.002 * pack(buffers, 6).bound)


def _height_of(order: tuple[Buffer, ...]) -> int:
    placed: list[tuple[int, int, Buffer]] = []
    for buffer in order:
        at = 0
        for start, stop, other in sorted(placed, key=lambda p: p[0]):
            if other.first <= buffer.last and other.last >= buffer.first and start < at + buffer.packed_nbytes:
                at = max(at, stop)
        placed.append((at, at + buffer.packed_nbytes, buffer))
    return max(stop for _, stop, _ in placed)


@pytest.mark.parametrize("policy", POLICIES)
def test_plans_of_all_kinds_are_packed_soundly(policy: str) -> None:
    for case in all_cases():
        plans = case.plans(policy, shards=4)
        for plan in (*plans.train, *plans.evaluate):
            require_sound(plan.simulation.buffers, plan.packing)
    for rank in (0, 1):  # shared gradients are elsewhere
        plan = case.plans(policy, shards=4, world=2).train[rank]
        assert not any("gradients" in slots for slots in plan.packing.slots)


@pytest.mark.parametrize(
    ("model", "shards"),
    [
        (model, shards)
        if "tied" not in model and "large" not in model and shards == 1
        else pytest.param(model, shards, marks=pytest.mark.memory)
        for model in MODELS
        for shards in (1, 4)
    ],
)
def test_the_block_is_at_most_3_percent_larger_than_what_lives_at_once(model: str, shards: int) -> None:
    built = build(model, dropout=0.1)
    data = built.dataset(())
    specs = [Spec((8, *spec.shape), spec.dtype) for spec in (data.inputs, data.targets)]
    for policy in POLICIES:
        plans = run_plans(built.chain, built.loss, *specs, AdamW(), policy=parse_policy(policy), shards=shards)
        for plan in (*plans.train, *plans.evaluate):
            live = plan.simulation.peak - plan.simulation.static
            assert plan.packing.nbytes <= 1.03 * live, (policy, plan.purpose, plan.packing.name)
