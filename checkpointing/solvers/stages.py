"""Between a model's costs and abstract chains: a chain of the model's stages, and the model's schedule for the chain's.

The chain is *conservative*: a schedule that needs M bytes there needs at most M here, on top of what `fixed_nbytes` says, and
takes at most its time. Each stage is simulated alone, with its own drops, operations in place and merges of cotangents, so its sizes are
exact for the stage alone. What makes the whole conservative is the convention: what a border has in common with the next one counts
twice while both are held (the input of an LSTM, which all its chunks read), r[i] holds a[i] also where no backward reads it, and
a part of a forward of which nothing is used is left out of the model's schedule, but not of the chain's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise

from checkpointing.costs import Costs
from checkpointing.operations import TARGETS, Drop, Forward, Loss, Value, cotangent, output
from checkpointing.reduction_tree import shards_of
from checkpointing.schedules import Schedule, StepOperation, backwards, forwards, shard_operations, uses_and_makes
from checkpointing.simulation import simulate_parts
from checkpointing.solvers.chain import Action, Option, Stage, StageBackward, StageChain, StageForward
from framework.layers import BATCH

_BATCH = output(BATCH)


#: Of a stage by option: its backward, with the forwards that make again what the option does not keep.
Undoings = Sequence[Sequence[StepOperation]]


def chain_of(costs: Costs, undoings: Sequence[Undoings] | None = None) -> StageChain:
    """Returns the abstract chain of a model: its stages are the elements of the outermost Chain.

    Args:
        costs: A training pass of one shard, with its times; of several shards, `Costs.of_the_pass`.
        undoings: The options of each stage (`nested.py` finds some); by default each has one, to keep all.
    """
    known: dict[Hashable, Stage] = {}
    stages = []
    for number, (before, after) in enumerate(pairwise(_borders(costs))):
        steps = costs.steps_of(number, number)
        options = undoings[number] if undoings else [_undone(costs, number)]
        key = alike(costs, steps, before, after), number > 0, tuple(_moved(each, steps.start) for each in options)
        if key not in known:
            known[key] = _stage(costs, number, before, after, options)
        stages.append(known[key])
    return StageChain(costs.batch.nbytes, tuple(stages), _loss(costs), input_cotangent=False)


def alike(costs: Costs, steps: range, *borders: Sequence[Value]) -> Hashable:
    """What decides how stages are planned, but for their places: it is equal for equal blocks of a transformer.

    Args:
        costs: The model.
        steps: Of the stage.
        borders: What is live before it and after it.
    """

    def seen(source: int) -> Hashable:
        return source if source == BATCH else (source - steps.start, costs.output(source).nbytes)

    each = [(costs.steps[number], costs.seconds(number)) for number in steps]
    return (
        tuple(
            (step.footprint, tuple(map(seen, step.inputs)), step.trains, step.wanted, step.gradient_nbytes, seconds)
            for step, seconds in each
        ),
        tuple(tuple((seen(value.at), costs.steps[value.at].trains) for value in border) for border in borders),
    )


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


def schedule_of(actions: Iterable[Action], costs: Costs, undoings: Sequence[Undoings] | None = None) -> Schedule:
    """Returns the model's schedule for a schedule of its abstract chain.

    The forward of a stage becomes those of its steps, its backward theirs, and the loss's backward the loss. What is kept follows from
    the uses (`checkpointing.schedules`), so it is valid also where several values are live at a border.

    Args:
        actions: The schedule of the chain.
        costs: The model.
        undoings: As the chain's.
    """
    made: list[StepOperation | Loss] = []
    known: dict[tuple[type[Action], int, int], Sequence[StepOperation | Loss]] = {}
    for action, option in with_options(actions):
        key = type(action), action.stage, option
        if key not in known:
            known[key] = action_schedule(action, option, costs, undoings)
        made += known[key]
    return made


def with_options(actions: Iterable[Action]) -> Iterator[tuple[Action, int]]:
    """Yields each action with the option as which its stage is saved then; 0 where it is not."""
    saved: dict[int, int] = {}
    for action in actions:
        if isinstance(action, StageForward):
            saved[action.stage] = action.option or 0
        yield action, saved[action.stage]


def action_schedule(
    action: Action, option: int, costs: Costs, undoings: Sequence[Undoings] | None = None
) -> Sequence[StepOperation | Loss]:
    """What one action becomes, its stage being saved as an option; see `schedule_of`."""
    number = action.stage - 1
    if number == costs.stages:
        return [Loss()] if isinstance(action, StageBackward) else []
    if isinstance(action, StageForward):
        return forwards(costs, costs.steps_of(number, number))
    return undoings[number][option] if undoings else _undone(costs, number)


def _moved(undoing: Sequence[StepOperation], start: int) -> tuple[tuple[type, int], ...]:
    return tuple((type(operation), operation.step - start) for operation in undoing)


def _undone(costs: Costs, number: int) -> Sequence[StepOperation]:
    return backwards(costs, costs.steps_of(number, number))


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


def _stage(costs: Costs, number: int, before: list[Value], after: list[Value], undoings: Undoings) -> Stage:
    steps = costs.steps_of(number, number)
    forward = forwards(costs, steps)
    entering, leaving = _nbytes(costs, before), _nbytes(costs, after)
    # Where nothing but the batch enters, what is read of it is held anyway.
    held = [*before, _BATCH, TARGETS]
    batch = costs.batch.nbytes + costs.targets_nbytes

    def run(kept: set[Value], cotangents: list[Value], undoing: Sequence[StepOperation]) -> list[tuple[int, int]]:
        passing = shard_operations(forward, costs, read_later={*held, *after, *kept})
        back = shard_operations(undoing, costs, read_later={*held, *map(_cotangent, before)})
        # What leaves the stage and its backward does not read has had its last use by then.
        used = [value for value in after if value not in kept and value not in before]
        back = [*map(Drop, used), *back]
        return simulate_parts([(held, passing), (cotangents, back)], costs)

    def option(undoing: Sequence[StepOperation]) -> Option:
        arriving = [_cotangent(value) for value in after if costs.steps[value.at].trains]
        (peak, live), (most, _) = run(read_first(undoing, costs), arriving, undoing if arriving else [])
        # What enters and leaves, too, counts in both; an output that is a view of what enters counts as well.
        saved = max(leaving, live - batch - _nbytes(costs, set(before) - set(after)))
        return Option(
            nbytes=saved,
            backward_seconds=sum(_seconds(costs, operation) for operation in undoing),
            forward_temporary=max(0, peak - batch - entering - saved),
            backward_temporary=max(0, most - batch - entering - saved - leaving - (entering if number else 0)),
            name=_name(undoing, costs),
        )

    (peak, _), _ = run(set(), [], [])
    temporary = max(0, peak - batch - entering - leaving)
    seconds = sum(costs.seconds(step).forward for step in steps)
    return Stage(leaving, seconds, tuple(map(option, undoings)), temporary)


def read_first(undoing: Sequence[StepOperation], costs: Costs) -> set[Value]:
    """The outputs and residuals that a backward of a stage reads before it makes them: what must have been kept for it."""
    needed: set[Value] = set()
    for operation in reversed(undoing):
        uses, makes = uses_and_makes(operation, costs)
        needed.difference_update(makes)
        needed.update(value for value in uses if value.kind != "d")
    return needed


def _seconds(costs: Costs, operation: StepOperation) -> float:
    seconds = costs.seconds(operation.step)
    return seconds.forward if isinstance(operation, Forward) else seconds.backward


def _name(undoing: Sequence[StepOperation], costs: Costs) -> str:
    again = [costs.steps[operation.step].path for operation in undoing if isinstance(operation, Forward)]
    return f"all but {', '.join(again)}" if again else "all"


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
