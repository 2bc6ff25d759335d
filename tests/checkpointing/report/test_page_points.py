"""What is drawn of a timeline has its numbers, and of a long one no peak is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.report import sums
from checkpointing.report.data import Timeline
from checkpointing.report.page.points import PASSING, Points, points, representatives
from checkpointing.report.timelines import predicted
from tests.checkpointing.cases import mlp
from tests.checkpointing.report.reports import made_timeline, names


@given(st.lists(st.integers(0, 50), min_size=1, max_size=200), st.integers(1, 40))
def test_of_as_many_operations_as_must_the_first_with_the_most_is_drawn(inside: list[int], most: int) -> None:
    stride, at = representatives(inside, most)
    assert len(at) <= most
    assert (stride == 1) == (len(inside) <= most)
    for number, place in enumerate(at):
        stretch = inside[number * stride : (number + 1) * stride]
        assert place - number * stride == stretch.index(max(stretch))
    assert max(inside[place] for place in at) == max(inside)


def require_numbers(drawn: Points, timeline: Timeline) -> None:
    """Every column of what is drawn is the timeline's at those operations, or follows from it by other code."""
    for name in ("labels", "layers", "phases", "recomputed", "live", "inside"):
        assert getattr(drawn, name) == tuple(getattr(timeline, name)[place] for place in drawn.at)
    assert drawn.shards == tuple(-1 if timeline.shards[place] is None else timeline.shards[place] for place in drawn.at)
    # Category by category, remainder 0.
    assert drawn.categories[-1] == PASSING
    for number in range(len(drawn.at)):
        assert sum(stack[number] for stack in drawn.stacks[:-1]) == drawn.live[number]
        assert sum(stack[number] for stack in drawn.stacks) == drawn.inside[number]
    # The holders, played from the start.
    held = dict.fromkeys(range(len(drawn.holders)), 0)
    shown = set(drawn.at)
    moments = {place: dict(now) for place, now in enumerate(sums.held(timeline)) if place in shown}
    for place, changes in zip(drawn.at, drawn.changes, strict=True):
        for holder, nbytes in changes:
            held[holder] += nbytes
        assert {drawn.holders[holder]: nbytes for holder, nbytes in held.items() if nbytes} == moments[place]
        by_category = Counter[str]()
        for (category, _), nbytes in moments[place].items():
            by_category[category] += nbytes
        stacked = {
            name: stack[drawn.at.index(place)] for name, stack in zip(drawn.categories[:-1], drawn.stacks, strict=False)
        }
        assert {name: nbytes for name, nbytes in stacked.items() if nbytes} == by_category
    # Time without gaps.
    assert drawn.starts[0] == 0
    assert drawn.ends[:-1] == drawn.starts[1:]
    assert drawn.ends[-1] == pytest.approx(sum(timeline.seconds) * 1e9, abs=1)
    assert (drawn.at[drawn.peak], drawn.inside[drawn.peak]) == (timeline.peak, max(timeline.inside))


@pytest.mark.parametrize("most", [1, 7, 50, 10_000])
@pytest.mark.parametrize("policy", ["store-all", "every-k:2"])
def test_what_is_drawn_of_a_plan_has_its_numbers(policy: str, most: int) -> None:
    timeline = predicted(mlp().plans(policy, 2).train[0])
    require_numbers(points(timeline, most), timeline)


@pytest.mark.parametrize(("layers", "shards", "most"), [(1, 1, 2_000), (1, 2, 3), (40, 4, 100)])
def test_what_is_drawn_of_other_timelines(layers: int, shards: int, most: int) -> None:
    timeline = made_timeline(names(layers, hostile=True), shards)
    require_numbers(points(timeline, most), timeline)


def test_operations_that_take_no_time() -> None:
    timeline = made_timeline(names(3))
    drawn = points(replace(timeline, seconds=(0.0,) * len(timeline.seconds)), 2_000)
    assert set(drawn.starts) | set(drawn.ends) == {0}
