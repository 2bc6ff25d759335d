"""Between a model's costs and abstract chains: a chain of the model's stages, and the model's schedule for the chain's.

The chain is *conservative*: a schedule that needs M bytes there needs at most M here, on top of what `fixed_nbytes` says, and
takes at most its time. Each stage is simulated alone, with its own drops, operations in place and merges of cotangents, so its sizes are
exact for the stage alone. What makes the whole conservative is the convention: what a border has in common with the next one counts
twice while both are held (the input of an LSTM, which all its chunks read), r[i] holds a[i] also where no backward reads it, and
a part of a forward of which nothing is used is left out of the model's schedule, but not of the chain's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from checkpointing.costs import Costs
from checkpointing.operations import TARGETS, Backward, Forward, Loss, Value, cotangent, output
from checkpointing.reduction_tree import shards_of
from checkpointing.schedules import Schedule, backwards, forwards, shard_operations
from checkpointing.simulation import backward_needs, simulate_parts
from checkpointing.solvers.chain import Action, Option, Stage, StageBackward, StageChain, StageForward
from framework.layers import BATCH

_BATCH = output(BATCH)


def chain_of(costs: Costs) -> StageChain:
    """Returns the abstract chain of a model: its stages are the elements of the outermost Chain, and each has one option, to keep all.

    Args:
        costs: A training pass of one shard, with its times; of several shards, `Costs.of_the_pass`.
    """
    borders = _borders(costs)
    stages = [_stage(costs, number, *around) for number, around in enumerate(pairwise(borders))]
    return StageChain(costs.batch.nbytes, tuple(stages), _loss(costs), input_cotangent=False)


def fixed_nbytes(costs: Costs, shards: int = 1, world: int = 1) -> int:
    """Returns what a rank holds at most besides the chain while it runs its shards: what lives throughout, targets, and gradients.

    Args:
        costs: A training pass of one shard.
        shards: V, the virtual shards.
        world: W, the number of ranks; it is the one with the most.
    """
    each = (shards_of(shards, world, rank) for rank in range(world))
    most = max(costs.held_gradients(mine, shard) for mine in each for shard in mine)
    return sum(costs.static.values()) + costs.targets_nbytes + most


def schedule_of(actions: Iterable[Action], costs: Costs) -> Schedule:
    """Returns the model's schedule for a schedule of its abstract chain.

    The forward of a stage becomes those of its steps, its backward theirs, and the loss's backward the loss. What is kept follows from
    the uses (`checkpointing.schedules`), so it is valid also where several values are live at a border.
    """
    made: list[Forward | Loss | Backward] = []
    steps = [costs.steps_of(number, number) for number in range(costs.stages)]
    passing, undoing = ([make(costs, each) for each in steps] for make in (forwards, backwards))
    for action in actions:
        number = action.stage - 1
        if number == costs.stages:
            made += [Loss()] if isinstance(action, StageBackward) else []
        else:
            made += passing[number] if isinstance(action, StageForward) else undoing[number]
    return made


def _borders(costs: Costs) -> list[list[Value]]:
    """What is live before each stage and after the last, the batch left out: outputs that a later stage reads."""
    last_reader = {len(costs.steps) - 1: costs.stages}  # the loss reads the last
    for step in costs.steps:
        for source in step.inputs:
            last_reader[source] = max(last_reader.get(source, 0), step.stage)
    found: list[list[Value]] = [[]]
    for stage in range(costs.stages):
        old = [value for value in found[-1] if last_reader[value.at] > stage]
        new = [step for step in costs.steps_of(stage, stage) if last_reader.get(step, 0) > stage]
        found.append([*old, *map(output, new)])
    return found


def _nbytes(costs: Costs, values: Iterable[Value]) -> int:
    return sum(costs.output(value.at).nbytes for value in values)


def _stage(costs: Costs, number: int, before: list[Value], after: list[Value]) -> Stage:
    steps = costs.steps_of(number, number)
    undone = [step for step in steps if costs.steps[step].trains]
    forward, backward = forwards(costs, steps), backwards(costs, steps)
    entering, leaving = _nbytes(costs, before), _nbytes(costs, after)
    # Where nothing but the batch enters, what is read of it is held anyway.
    held = [*before, _BATCH, TARGETS]
    batch = costs.batch.nbytes + costs.targets_nbytes

    def run(kept: set[Value], cotangents: list[Value]) -> list[tuple[int, int]]:
        stay = {*held, *after, *kept}
        passing = shard_operations(forward, costs, read_later=stay)
        undoing = shard_operations(backward, costs, read_later={*held, *map(_cotangent, before)})
        undoing = undoing if cotangents else []
        return simulate_parts([(held, passing), (cotangents, undoing)], costs)

    (peak, _), _ = run(set(), [])
    temporary = max(0, peak - batch - entering - leaving)
    needed = {value for step in undone for value in backward_needs(costs, step)}
    arriving = [_cotangent(value) for value in after if costs.steps[value.at].trains]
    (peak, live), (most, _) = run(needed, arriving)
    # What enters and leaves, too, counts in both; an output that is a view of what enters counts as well.
    saved = max(leaving, live - batch - _nbytes(costs, set(before) - set(after)))
    option = Option(
        nbytes=saved,
        backward_seconds=sum(costs.seconds(step).backward for step in undone),
        forward_temporary=max(0, peak - batch - entering - saved),
        backward_temporary=max(0, most - batch - entering - saved - leaving - (entering if number else 0)),
        name="all",
    )
    return Stage(leaving, sum(costs.seconds(step).forward for step in steps), (option,), temporary)


def _loss(costs: Costs) -> Stage:
    last = output(len(costs.steps) - 1)
    ((peak, _),) = simulate_parts(
        [([last, TARGETS], shard_operations([Loss()], costs, read_later=[_BATCH, _cotangent(last)]))], costs
    )
    # The targets are among what is fixed; the output and its cotangent are the chain's.
    temporary = max(0, peak - costs.targets_nbytes - 2 * _nbytes(costs, [last]))
    option = Option(0, costs.loss_seconds.backward, backward_temporary=temporary, name="all")
    return Stage(0, costs.loss_seconds.forward, (option,))


def _cotangent(value: Value) -> Value:
    return cotangent(value.at)
