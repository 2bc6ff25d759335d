"""Revolve, mixed and disk, compared with the package checkpoint-schedules, which has them from their authors."""

from __future__ import annotations

import pytest

from checkpointing.solvers.disk import HRevolve, Level, UnlimitedDisk
from checkpointing.solvers.mixed import mixed_forwards
from checkpointing.solvers.revolve import extra_forwards

pytestmark = pytest.mark.peers

multistage = pytest.importorskip("checkpoint_schedules.multistage")
theirs = pytest.importorskip("checkpoint_schedules.mixed")
hierarchy = pytest.importorskip("checkpoint_schedules.hrevolve_sequences.hrevolve")
disk = pytest.importorskip("checkpoint_schedules.hrevolve_sequences.disk_revolve")

LONGEST = 250


def test_totals_of_revolve_and_mixed_agree_for_every_length_and_number_of_states() -> None:
    table, pairs = mixed_forwards(LONGEST, LONGEST - 1), 0
    for length in range(2, LONGEST + 1):
        for states in range(1, length):
            assert multistage.optimal_extra_steps(length, states) == extra_forwards(length, states)
            assert theirs.optimal_steps_mixed(length, states) == table[states, length]
            pairs += 1
    print(f"revolve and mixed: {pairs} pairs of length and states agree")


@pytest.mark.parametrize(("ram", "time"), [(1, 1), (2, 1), (3, 5), (5, 5)])
def test_tables_of_one_level_of_disk_agree(ram: int, time: int) -> None:
    ours = UnlimitedDisk(80, ram, time, time)
    table = disk.get_opt_inf_table(79, ram, 1, 1, time, time, False)
    # Theirs never splits before the last step; the tables show that nothing is lost.
    assert [table[n - 1] for n in range(1, 81)] == [ours.seconds(n) for n in range(1, 81)]


@pytest.mark.parametrize(("ram", "slots", "time"), [(1, 2, 1), (2, 3, 2), (3, 5, 5), (3, 10, 5)])
def test_tables_of_two_levels_agree_where_forward_and_backward_cost_the_same(ram: int, slots: int, time: int) -> None:
    ours = HRevolve(60, ram, [Level(slots, time, time)])
    _, table = hierarchy.get_hopt_table(59, (ram, slots), (0, time), (0, time), 1, 1)
    assert [table[1][n - 1][slots] for n in range(1, 61)] == [ours.seconds(n) for n in range(1, 61)]
