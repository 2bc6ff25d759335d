"""What goes to disk, and when: a schedule that offloads values between their last use in the forward and their first in the backward.

A value is written from the moment when it is made, and read shortly before it is needed. How long it is held while it is on its way costs
memory, and being in time saves time. So a first schedule waits for each transfer as early as memory demands, and then transfers are given
time as long as the peak of that schedule is not passed: writing behind and reading ahead cost no byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from checkpointing.costs import Costs
from checkpointing.operations import Backward, Fetch, Forward, Load, Loss, Offload, Operation, Value, Wait
from checkpointing.schedules import Schedule, shard_operations, uses_and_makes
from checkpointing.simulation import Simulation, simulate

#: Operations of a schedule that compute.
_Compute = Forward | Loss | Backward

#: A transfer is given so many times the seconds that it takes alone, since the disk may be at another.
_PATIENCE = 1.5


@dataclass
class _Move:
    """A value that goes to disk, and the places among the computing operations before which that happens.

    Attributes:
        value, nbytes: The value and its bytes.
        made: Before which it begins to be written.
        written: Before which it must be there.
        fetched: Before which it begins to be read.
        read: Before which it must be back.
    """

    value: Value
    nbytes: int
    made: int
    written: int
    fetched: int
    read: int


def offloading(schedule: Schedule, costs: Costs, kept_from: int) -> Schedule:
    """Returns a schedule that holds on disk what it would hold in memory from the forward to the backward.

    Args:
        schedule: A schedule that does not offload.
        costs: The chain.
        kept_from: What is first needed again by this step or later ones stays in memory: they are undone at once.
    """
    compute = [op for op in shard_operations(schedule, costs) if isinstance(op, _Compute)]
    moves = _moves(compute, costs, kept_from)
    least = _merged(compute, moves)
    if not moves:
        return least
    simulation, operations = _simulated(least, costs)
    room, place = [simulation.peak] * len(compute), -1
    for operation, moment in zip(operations, simulation.timeline, strict=True):
        place += isinstance(operation, _Compute)
        # What is between two operations counts with both.
        nearest = (place,) if isinstance(operation, _Compute) else (max(place, 0), min(place + 1, len(compute) - 1))
        for near in nearest:
            room[near] = min(room[near], simulation.peak - moment.inside)
    _give_time(moves, room, compute, costs)
    patient = _merged(compute, moves)
    return patient if _simulated(patient, costs)[0].peak <= simulation.peak else least


def _moves(compute: Sequence[_Compute], costs: Costs, kept_from: int) -> list[_Move]:
    """The values that live from the forward to the backward, and the longest time of each on disk."""
    middle = next(place for place, operation in enumerate(compute) if isinstance(operation, Loss))
    made: dict[Value, int] = {}
    last: dict[Value, int] = {}
    found = []
    for place, operation in enumerate(compute):
        uses, makes = uses_and_makes(operation, costs)
        for value in uses if place > middle else ():
            if value in made and not isinstance(operation, Loss) and operation.step < kept_from:
                nbytes = _nbytes(value, costs)
                found.append(_Move(value, nbytes, made[value], last[value] + 1, place, place))
            made.pop(value, None)
        if place <= middle:
            last.update(dict.fromkeys(uses, place))
            for value in makes:
                if value.kind in "ar" and _nbytes(value, costs):
                    made[value], last[value] = place + 1, place
        else:
            for value in makes:  # it is computed again instead
                made.pop(value, None)
    return found


def _nbytes(value: Value, costs: Costs) -> int:
    return costs.output(value.at).nbytes if value.kind == "a" else costs.steps[value.at].footprint.own_nbytes


def _give_time(moves: Sequence[_Move], room: list[int], compute: Sequence[_Compute], costs: Costs) -> None:
    """Lets values stay while they are written, and read earlier, as far as there is room, as long as it takes the disk."""
    clock = [0.0, *accumulate(_seconds(operation, costs) for operation in compute)]
    middle = next(place for place, operation in enumerate(compute) if isinstance(operation, Loss))
    for move in sorted(moves, key=lambda move: move.made):
        enough = clock[move.made] + _PATIENCE * move.nbytes / costs.disk_bandwidth
        while move.written < middle and clock[move.written] < enough and room[move.written] >= move.nbytes:
            room[move.written] -= move.nbytes
            move.written += 1
    first = middle + 1
    for move in moves:  # in the order in which they are needed, which the disk keeps
        enough = clock[move.read] - _PATIENCE * move.nbytes / costs.disk_bandwidth
        while move.fetched > first and clock[move.fetched] > enough and room[move.fetched - 1] >= move.nbytes:
            move.fetched -= 1
            room[move.fetched] -= move.nbytes
        first = move.fetched


def _seconds(operation: _Compute, costs: Costs) -> float:
    match operation:
        case Forward(step):
            return costs.seconds(step).forward
        case Backward(step):
            return costs.seconds(step).backward
        case _:
            return sum(costs.loss_seconds)


def _merged(compute: Sequence[_Compute], moves: Sequence[_Move]) -> Schedule:
    """The computing operations with those of the disk before them: writes, then reads."""
    before: list[list[list[Offload | Fetch | Wait]]] = [[[], [], [], []] for _ in range(len(compute) + 1)]
    for move in moves:
        before[move.made][0].append(Offload(move.value))
        before[move.written][1].append(Wait(move.value))
        before[move.fetched][2].append(Fetch(move.value))
        before[move.read][3].append(Wait(move.value))
    schedule: list[Forward | Loss | Backward | Offload | Fetch | Wait] = []
    for groups, operation in zip(before, [*compute, None], strict=True):
        for group in groups:
            schedule += group
        if operation is not None:
            schedule.append(operation)
    return schedule


def _simulated(schedule: Schedule, costs: Costs) -> tuple[Simulation, list[Operation]]:
    """One shard's pass by a schedule."""
    operations: list[Operation] = [Load(0), *shard_operations(schedule, costs)]
    return simulate(operations, costs, "gradient", 1, 0), operations
