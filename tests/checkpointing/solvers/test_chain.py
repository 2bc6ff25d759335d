"""What a schedule of an abstract chain takes, and how models become such chains."""

from __future__ import annotations

import random

import pytest

from checkpointing import costs_of
from checkpointing.schedules import make_plan
from checkpointing.solvers.chain import Option, Stage, StageBackward, StageChain, StageForward, replay
from checkpointing.solvers.stages import chain_of, fixed_nbytes, schedule_of
from framework import AdamW
from tests.checkpointing.cases import all_cases
from tests.checkpointing.solvers.chains import least_held, random_actions, random_chain, uniform

CASES = {case.name: case for case in all_cases()}


def test_a_replay_counts_every_byte() -> None:
    chain = StageChain(10, (Stage.simple(3, 8, 1.0, 2.0, (1, 5)), Stage.simple(4, 4, 3.0, 4.0)))
    actions = [
        StageForward(1, 0),  # 10 + 8 + 1
        StageForward(2, 0),  # 10 + 8 + 4
        StageForward(3, 0),
        StageBackward(3),  # 22 + δ[2] 4
        StageBackward(2),  # 26 + δ[1] 3
        StageBackward(1),  # 10 + 8 + 3 + δ[0] 10 + 5
    ]
    found = replay(chain, actions)
    assert (found.peak, found.seconds, found.forwards) == (36, 10.0, 3)
    without = StageChain(10, chain.stages, input_cotangent=False)
    assert replay(without, actions).peak == 29


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([StageForward(2, 0)], r"reads a\[1\], which is not held"),
        (
            [StageForward(1), StageForward(2), StageForward(3, 0, keeps_input=False), StageForward(3, 0)],
            r"reads a\[2\]",
        ),
        ([StageForward(1, 0), StageBackward(1)], "stage 3 is next"),
        ([StageForward(1), StageForward(2), StageBackward(3)], "its residuals are not saved"),
        (
            [StageForward(1), StageForward(2), StageForward(3, 0), StageBackward(3)],
            "ends before the backward of stage 2",
        ),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(actions: list[StageForward | StageBackward], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(uniform(2), actions)


def test_bad_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        StageChain(1, ())
    with pytest.raises(ValueError, match="stage 1 has no option"):
        StageChain(1, (Stage(1, 1.0, ()),))
    with pytest.raises(ValueError, match="keeps 2 bytes, fewer than the 3 of the output"):
        StageChain(1, (Stage.simple(3, 2, 1.0, 1.0),))
    with pytest.raises(ValueError, match="not 0 or more"):
        StageChain(1, (Stage(1, float("nan"), (Option(1, 1.0),)),))
    with pytest.raises(ValueError, match="the loss has an output of 4 bytes"):
        StageChain(1, (Stage.simple(1, 1, 1.0, 1.0),), Stage.simple(4, 4, 1.0, 1.0))


def test_a_replay_holds_what_its_schedule_needs_and_takes_its_time() -> None:
    draw = random.Random(1)
    for _ in range(300):
        chain = random_chain(draw, draw.randint(1, 12), options=3)
        actions = list(random_actions(draw, chain))
        found, (least, seconds) = replay(chain, actions), least_held(chain, actions)
        assert found.seconds == seconds
        # Schedules of this kind never hold what nobody reads again.
        assert found.peak == least


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_models_chain_never_promises_less_than_its_plans_take(name: str, shards: int) -> None:
    case, draw = CASES[name], random.Random(name)
    costs = costs_of(case.chain, case.loss, *case.specs(shards), AdamW())
    chain, fixed = chain_of(costs.of_the_pass(shards, 1)), fixed_nbytes(costs, shards)
    for _ in range(20):
        actions = list(random_actions(draw, chain))
        promised = replay(chain, actions)
        plan = make_plan(schedule_of(actions, costs), costs, "drawn", purpose="gradient", shards=shards)
        plan.check()
        assert plan.peak <= fixed + promised.peak
        assert plan.simulation.seconds <= shards * promised.seconds * (1 + 1e-12)
