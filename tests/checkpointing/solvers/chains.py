"""Chains and schedules that the tests of solvers draw, and a checker of schedules that shares no code with `replay`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from checkpointing.solvers.chain import Action, Option, Stage, StageBackward, StageChain, StageForward


def uniform(length: int, nbytes: int = 1, saved: int = 3) -> StageChain:
    """Equal stages with f = b = 1, and a loss that costs nothing."""
    return StageChain(nbytes, (Stage.simple(nbytes, saved, 1.0, 1.0),) * length)


def random_chain(draw: random.Random, length: int, options: int = 1, largest: int = 5) -> StageChain:
    """Whole sizes and times, up to so many options a stage, and small temporaries."""

    def stage() -> Stage:
        nbytes = draw.randint(1, largest)
        forward = draw.randint(0, 2)
        ways = [
            Option(
                nbytes + draw.randint(0, 2 * largest), float(draw.randint(1, 9)), draw.randint(0, 2), draw.randint(0, 2)
            )
            for _ in range(draw.randint(1, options))
        ]
        return Stage(nbytes, float(draw.randint(1, 9)), tuple(ways), forward)

    return StageChain(draw.randint(1, largest), tuple(stage() for _ in range(length)))


def random_actions(draw: random.Random, chain: StageChain) -> Iterator[Action]:
    """A schedule of the persistent kind, by random splits."""

    def run(first: int, last: int) -> Iterator[Action]:
        if first == last or draw.random() < 0.5:
            yield StageForward(first, draw.randrange(len(chain.stage(first).options)))
            if first < last:
                yield from run(first + 1, last)
        else:
            middle = draw.randint(first + 1, last)
            for stage in range(first, middle):
                yield StageForward(stage, None, keeps_input=stage == first)
            yield from run(middle, last)
            yield from run(first, middle - 1)
            return
        yield StageBackward(first)

    return run(1, chain.length + 1)


def least_held(chain: StageChain, actions: Sequence[Action]) -> tuple[int, float]:
    """The peak and time of a schedule in which everything lives from where it is made to its last use before it is made again.

    So nothing is held longer than it must be, whatever the actions say: no schedule can be executed with less.
    """
    lives: list[tuple[int, int, int]] = []  # bytes, from action, to action
    made: dict[tuple[str, int], tuple[int, int]] = {("a", 0): (0, chain.input_nbytes)}
    lives.append((chain.input_nbytes, 0, len(actions) - 1))
    used: dict[tuple[str, int], int] = {}
    saved_as: dict[int, int] = {}
    peak_inside = [0] * len(actions)
    seconds = 0.0

    def finish(value: tuple[str, int]) -> None:
        if value in made:
            start, nbytes = made.pop(value)
            if value != ("a", 0):
                lives.append((nbytes, start, used.get(value, start)))
        used.pop(value, None)

    def read(stage: int, place: int) -> None:
        if ("r", stage) in made:
            used["r", stage] = place
        else:
            assert ("a", stage) in made, f"action {place} reads a[{stage}], which was not made"
            used["a", stage] = place

    following = chain.length + 1
    for place, action in enumerate(actions):
        number, stage = action.stage, chain.stage(action.stage)
        read(number - 1, place)
        if isinstance(action, StageForward):
            finish(("a", number))
            finish(("r", number))
            seconds += stage.forward_seconds
            if action.option is None:
                made["a", number] = place, stage.nbytes
                peak_inside[place] = stage.forward_temporary
            else:
                option = stage.options[action.option]
                made["r", number] = place, option.nbytes
                saved_as[number] = action.option
                peak_inside[place] = option.forward_temporary
        else:
            assert number == following, f"action {place} undoes {number}, but {following} is next"
            following -= 1
            option = stage.options[saved_as[number]]
            seconds += option.backward_seconds
            used["r", number] = place
            finish(("r", number))
            if number <= chain.length:
                used["d", number] = place
                finish(("d", number))
            made["d", number - 1] = place, chain.cotangent_nbytes(number - 1)
            peak_inside[place] = option.backward_temporary
    assert following == 0
    for value in list(made):
        finish(value)
    peak = max(
        sum(nbytes for nbytes, start, stop in lives if start <= place <= stop) + peak_inside[place]
        for place in range(len(actions))
    )
    return peak, seconds
