"""The abstract chain that solvers plan: stages with bytes and times, and what a schedule of it holds.

Stages 1..L, then the loss, which is stage L+1. a[i] is the output of stage i (a[0] the batch), δ[i] the cotangent of a[i], r[i]
what stage i's backward needs.

The convention of the papers: r[i] *includes* a[i], so nothing is counted twice where both are held, and the cotangent δ[i] has
the bytes of a[i]. The backward of stage i reads δ[i], r[i] and a[i-1], the last alone or inside r[i-1]. The batch is held throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to save a stage in its forward (Zhao et al. 2023, Rockmate).

    Attributes:
        nbytes: ω̄, bytes of what is kept for the backward, the output included.
        backward_seconds: b, time of the backward from there, including what this option has to compute again first.
        forward_temporary: oᶠ, bytes that the forward which keeps this takes on top of it.
        backward_temporary: oᵇ, bytes that the backward takes besides r[i], δ[i] and δ[i-1].
        name: What it keeps, in words; solvers do not read it.
    """

    nbytes: int
    backward_seconds: float
    forward_temporary: int = 0
    backward_temporary: int = 0
    name: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        nbytes: ω, bytes of the output, and of its cotangent.
        forward_seconds: f, time of the forward.
        options: The ways to save it, at least one.
        forward_temporary: o, bytes that a forward which saves nothing takes besides its input and output.
    """

    nbytes: int
    forward_seconds: float
    options: tuple[Option, ...]
    forward_temporary: int = 0

    @classmethod
    def simple(
        cls,
        nbytes: int,
        saved_nbytes: int,
        forward_seconds: float,
        backward_seconds: float,
        temporaries: tuple[int, int] = (0, 0),
    ) -> Stage:
        """A stage with one option: ω, ω̄, f, b, and (oᶠ, oᵇ); oᶠ holds for both kinds of forward."""
        forward, backward = temporaries
        return cls(nbytes, forward_seconds, (Option(saved_nbytes, backward_seconds, forward, backward),), forward)


#: A loss that takes no time and no bytes but its cotangent.
FREE_LOSS = Stage(0, 0.0, (Option(0, 0.0),))


@dataclass(frozen=True)
class StageChain:
    """A chain as solvers see it.

    Attributes:
        input_nbytes: ω[0], bytes of the batch, which is held throughout.
        stages: Stages 1..L.
        loss: Stage L+1, whose output has no bytes; its backward makes δ[L].
        input_cotangent: Whether stage 1 makes δ[0], as the papers have it.

    Raises:
        ValueError: There is no stage, or one has no option, a negative size or time, or an option smaller than the output it includes.
    """

    input_nbytes: int
    stages: tuple[Stage, ...]
    loss: Stage = FREE_LOSS
    input_cotangent: bool = True

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a chain needs at least one stage")
        if self.input_nbytes < 0:
            raise ValueError(f"the batch has {self.input_nbytes} bytes; give 0 or more")
        for number, stage in enumerate(self.all, 1):
            _require_valid(number, stage)
        if self.loss.nbytes:
            raise ValueError(
                f"the loss has an output of {self.loss.nbytes} bytes; what it keeps belongs in its options"
            )

    @property
    def all(self) -> tuple[Stage, ...]:
        """Stages 1..L+1, the loss being the last."""
        return (*self.stages, self.loss)

    @property
    def length(self) -> int:
        """L, the number of stages without the loss."""
        return len(self.stages)

    def stage(self, number: int) -> Stage:
        """Stage 1..L+1."""
        return self.loss if number == len(self.stages) + 1 else self.stages[number - 1]

    def nbytes(self, number: int) -> int:
        """ω of 0..L+1."""
        return self.stage(number).nbytes if number else self.input_nbytes

    def cotangent_nbytes(self, number: int) -> int:
        """The bytes of δ of 0..L+1."""
        return self.nbytes(number) if number or self.input_cotangent else 0

    @property
    def forward_seconds(self) -> float:
        """Σf: every forward once."""
        return sum(stage.forward_seconds for stage in self.all)

    @property
    def least_seconds(self) -> float:
        """The time with unlimited memory: every forward once, and each backward by its fastest option."""
        return self.forward_seconds + sum(min(o.backward_seconds for o in stage.options) for stage in self.all)


def _require_valid(number: int, stage: Stage) -> None:
    if not stage.options:
        raise ValueError(f"stage {number} has no option; give it at least one way to be saved")
    values = [stage.nbytes, stage.forward_seconds, stage.forward_temporary]
    for option in stage.options:
        values += [option.nbytes, option.backward_seconds, option.forward_temporary, option.backward_temporary]
        if option.nbytes < stage.nbytes:
            raise ValueError(
                f"an option of stage {number} keeps {option.nbytes} bytes, fewer than the {stage.nbytes} of the output, which it includes"
            )
    if not all(value >= 0 for value in values):
        raise ValueError(f"stage {number} has a size or time that is not 0 or more: {stage}")


@dataclass(frozen=True, slots=True)
class StageForward:
    """Runs the forward of a stage.

    Attributes:
        stage: 1..L+1.
        option: As which option r[stage] is saved; None saves nothing but a[stage].
        keeps_input: Whether a[stage-1] stays where it is held alone; without it it is dropped afterwards.
    """

    stage: int
    option: int | None = None
    keeps_input: bool = True


@dataclass(frozen=True, slots=True)
class StageBackward:
    """Runs the backward of a stage, which frees r[stage], δ[stage], and a[stage-1] where that is held alone."""

    stage: int


#: What a schedule of an abstract chain consists of.
Action = StageForward | StageBackward


@dataclass(frozen=True)
class Replay:
    """What a schedule takes.

    Attributes:
        seconds: Its time.
        peak: The most bytes at once, the batch included.
        forwards: How often a forward runs, over all stages and the loss.
    """

    seconds: float
    peak: int
    forwards: int


@dataclass(frozen=True)
class Solution:
    """A schedule and what it takes.

    Attributes:
        actions: The schedule.
        seconds: Its time.
        peak: The most bytes at once, the batch included.
    """

    actions: tuple[Action, ...]
    seconds: float
    peak: int


def replay(chain: StageChain, actions: Iterable[Action]) -> Replay:
    """Runs a schedule on names and bytes.

    Args:
        chain: The chain.
        actions: Its forwards and backwards in order.

    Raises:
        ValueError: An action lacks what it reads, or the schedule does not run every backward once, last to first.
    """
    alone: set[int] = {0}  # the a[i] that are held by themselves
    saved: dict[int, int] = {}  # stage -> the option as which its r is held
    undone, seconds, peak, forwards = chain.length + 2, 0.0, 0, 0
    for place, action in enumerate(actions):
        number = action.stage
        stage = chain.stage(number)
        live = sum(map(chain.nbytes, alone)) + sum(chain.stage(i).options[o].nbytes for i, o in saved.items())
        live += chain.nbytes(undone - 1)  # the cotangent; that of the loss has no bytes
        if number - 1 not in alone and number - 1 not in saved:
            raise ValueError(f"action {place} ({action}) reads a[{number - 1}], which is not held")
        match action:
            case StageForward(_, option, keeps_input):
                # What is made again takes the place of what was held: that could have been dropped before.
                before = chain.nbytes(number) if number in alone else 0
                before += stage.options[saved[number]].nbytes if number in saved else 0
                alone.discard(number)
                saved.pop(number, None)
                if option is None:
                    alone.add(number)
                    made = stage.nbytes + stage.forward_temporary
                else:
                    saved[number] = option
                    made = stage.options[option].nbytes + stage.options[option].forward_temporary
                peak = max(peak, live - before + made)
                seconds += stage.forward_seconds
                forwards += 1
                if not keeps_input and number > 1:
                    alone.discard(number - 1)
            case StageBackward():
                if number != undone - 1 or number not in saved:
                    what = "its residuals are not saved" if number == undone - 1 else f"stage {undone - 1} is next"
                    raise ValueError(f"action {place} ({action}) cannot run: {what}")
                used = stage.options[saved.pop(number)]
                peak = max(peak, live + chain.cotangent_nbytes(number - 1) + used.backward_temporary)
                seconds += used.backward_seconds
                undone = number
                alone -= {i for i in alone if i >= max(number - 1, 1)}
                saved = {i: o for i, o in saved.items() if i < number}
    if undone != 1:
        raise ValueError(f"the schedule ends before the backward of stage {undone - 1}")
    return Replay(seconds, peak, forwards)


def solution(chain: StageChain, actions: Sequence[Action]) -> Solution:
    """Returns a schedule with what its replay takes."""
    found = replay(chain, actions)
    return Solution(tuple(actions), found.seconds, found.peak)
