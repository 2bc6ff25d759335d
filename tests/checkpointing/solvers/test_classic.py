"""Revolve, mixed and disk: the published figures, and schedules that take exactly as long and as much as they say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest

from checkpointing.solvers.chain import Action, StageBackward, StageForward, replay
from checkpointing.solvers.disk import DiskAction, HRevolve, Level, StateRead, StateWrite, UnlimitedDisk
from checkpointing.solvers.mixed import mixed, mixed_forwards
from checkpointing.solvers.revolve import extra_forwards, revolve
from tests.checkpointing.solvers.chains import uniform
from tests.checkpointing.solvers.figures import CLASSIC, ONE_LEVEL, TWO_LEVELS

PAIRS = [(length, s) for length in (1, 2, 3, 5, 8, 13, 30) for s in (1, 2, 3, 5, 12, 29, 40)]


@cache
def least_advances(length: int, snapshots: int) -> int:
    """Forwards that save nothing, by trying every first split."""
    if length == 1:
        return 0
    if snapshots == 1:
        return length * (length - 1) // 2
    return min(j + least_advances(length - j, snapshots - 1) + least_advances(j, snapshots) for j in range(1, length))


def stored_after(actions: Sequence[Action]) -> list[int]:
    """How much is in storage after each action: states that a later forward starts from, and residuals, but what the action itself made."""
    counts = [0] * len(actions)
    for value in range(len(actions)):
        starts = {-1} if value == 0 else set()
        starts |= {p for p, action in enumerate(actions) if isinstance(action, StageForward) and action.stage == value}
        reads = [p for p, a in enumerate(actions) if isinstance(a, StageForward) and a.stage == value + 1]
        undone = [p for p, a in enumerate(actions) if a == StageBackward(value)]
        held = set()
        for read in reads:
            held |= set(range(max(p for p in starts if p < read) + 1, read))
        for read in undone:
            held |= set(range(max(p for p in starts if p < read) + 1, read))
        for place in held:
            counts[place] += 1
    return counts


@pytest.mark.parametrize(("length", "snapshots", "extra", "total", "total_mixed"), CLASSIC)
def test_published_figures_of_revolve_and_mixed(
    length: int, snapshots: int, extra: int, total: int, total_mixed: int
) -> None:
    assert extra_forwards(length, snapshots) == extra
    assert length + extra_forwards(length, snapshots) == total
    assert mixed_forwards(length, snapshots)[snapshots, length] == total_mixed


def test_the_closed_form_is_the_optimum_over_all_splits() -> None:
    pairs = 0
    for length in range(1, 121):
        for snapshots in range(1, length + 2):
            assert extra_forwards(length, snapshots) == least_advances(length, snapshots)
            pairs += snapshots < length
    assert pairs == 7140


@pytest.mark.parametrize(("length", "snapshots"), PAIRS)
def test_revolve_keeps_so_many_states_and_runs_so_often(length: int, snapshots: int) -> None:
    actions = revolve(length, snapshots)
    found = replay(uniform(length), actions)
    assert found.forwards == length + 1 + extra_forwards(length, snapshots)
    steps = [action for action in actions if action.stage <= length]
    assert max(stored_after(steps)) <= snapshots
    for place, action in enumerate(steps):  # one tape at a time
        if isinstance(action, StageForward) and action.option is not None:
            assert steps[place + 1] == StageBackward(action.stage)


@pytest.mark.parametrize(("length", "units"), PAIRS)
def test_mixed_stores_so_many_states_and_residuals_and_runs_so_often(length: int, units: int) -> None:
    actions = mixed(length, units)
    found = replay(uniform(length), actions)
    assert found.forwards == mixed_forwards(length, units)[units, length] + 1
    steps = [action for action in actions if action.stage <= length]
    assert max(stored_after(steps)) <= units


def test_what_has_no_step_or_no_place_is_refused() -> None:
    for make in (revolve, mixed, extra_forwards, mixed_forwards):
        for length, places in ((0, 1), (3, 0)):
            with pytest.raises(ValueError, match="give at least one of each"):
                make(length, places)
    with pytest.raises(ValueError, match="give at least one of each"):
        UnlimitedDisk(3, 0, 1, 1)


@pytest.mark.parametrize(("n", "ram", "time", "with_disk", "without"), ONE_LEVEL)
def test_published_figures_of_one_level_of_disk(n: int, ram: int, time: int, with_disk: int, without: int) -> None:
    solver = UnlimitedDisk(n, ram, time, time)
    assert solver.seconds(n) == with_disk
    assert n + extra_forwards(n, ram) == without


@pytest.mark.parametrize(("n", "ram", "disk", "time", "expected"), TWO_LEVELS)
def test_published_figures_of_two_levels(n: int, ram: int, disk: int, time: int, expected: int) -> None:
    assert HRevolve(n, ram, [Level(disk, time, time)]).seconds(n) == expected


def run_with_disk(
    actions: Sequence[DiskAction], n: int, ram: int, levels: Sequence[Level], forward: float, backward: float
) -> float:
    """The time of a schedule; asserts that it is possible, and within its slots."""
    kept: set[int] = {0}  # in RAM for later
    hand, taped, following, seconds = 0, 0, n, 0.0
    stored: list[set[int]] = [set() for _ in levels]
    for place, action in enumerate(actions):
        match action:
            case StateWrite(stage, level):
                assert hand == stage
                stored[level - 1].add(stage)
                assert len(stored[level - 1]) <= levels[level - 1].slots
                seconds += levels[level - 1].write
                if not kept - {stage} and stage in kept:
                    kept.discard(stage)  # it was in hand alone
            case StateRead(stage, level, last):
                assert stage in stored[level - 1]
                seconds += levels[level - 1].read
                stored[level - 1] -= {stage} if last else set()
                hand = stage
            case StageForward(stage, option, keeps_input):
                assert stage - 1 in kept | {hand}, (place, action)
                if option is None:
                    seconds += forward
                    kept = kept | {stage - 1} if keeps_input else kept - {stage - 1}
                    hand = stage
                    assert len(kept) <= ram
                else:
                    taped = stage
            case StageBackward(stage):
                assert stage == taped == following
                following -= 1
                seconds += backward
                kept = {i for i in kept if i < stage - 1}
    assert following == 0
    assert stored == [set() for _ in levels]
    return seconds


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 61])
@pytest.mark.parametrize("ram", [1, 2, 4])
def test_schedules_with_disk_take_the_time_of_the_tables_within_their_slots(n: int, ram: int) -> None:
    for write, read, forward, backward in ((1, 1, 1, 1), (0.5, 2.5, 1, 3), (4, 1, 2, 1)):
        unlimited = UnlimitedDisk(n, ram, write, read, forward, backward)
        took = run_with_disk(unlimited.actions(n), n, ram, [Level(n, write, read)], forward, backward)
        assert took == unlimited.seconds(n)
        before = None
        for slots in range(5):
            levels = [Level(slots, write, read), Level(2, 3 * write, 3 * read)]
            for some in (levels[:1], levels):
                solver = HRevolve(n, ram, some, forward, backward)
                assert run_with_disk(solver.actions(n), n, ram, some, forward, backward) == solver.seconds(n)
                assert solver.seconds(n) <= forward * extra_forwards(n, ram) + backward * n
            one = HRevolve(n, ram, levels[:1], forward, backward).seconds(n)
            assert before is None or one <= before
            before = one
        # With a slot for each state nothing more is gained, and without a limit it is no slower than with one.
        assert unlimited.seconds(n) <= before
