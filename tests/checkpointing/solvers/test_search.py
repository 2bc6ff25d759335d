"""The search beyond persistent schedules: the optimum of short chains, and never worse than the DP on long ones."""

from __future__ import annotations

import math
import random

import pytest

from checkpointing.solvers import search as module
from checkpointing.solvers.chain import StageBackward, StageForward, replay
from checkpointing.solvers.persistent import PersistentTable
from checkpointing.solvers.search import search, tidy
from tests.checkpointing.solvers.chains import least_held, random_actions, random_chain, uniform
from tests.checkpointing.solvers.oracle import optimum
from tests.checkpointing.solvers.test_persistent import random_memory


def compare(seed: int, length: int, count: int) -> tuple[int, int, list[float]]:
    """Compares with the oracle on chains that some schedule fits; returns how many, on how many the DP is beaten, and the gaps to the optimum."""
    draw = random.Random(seed)
    beaten, gaps = 0, []
    while len(gaps) < count:
        chain = random_chain(draw, length, options=draw.randint(1, 2))
        memory = random_memory(draw, chain)
        best, dp = optimum(chain, memory), PersistentTable(chain, memory).seconds()
        if best == math.inf:
            with pytest.raises(ValueError, match="no schedule of the chain fits"):
                search(chain, memory)
            continue
        found = search(chain, memory)
        held, seconds = least_held(chain, found.actions)
        assert held <= found.peak <= memory
        assert found.seconds == seconds <= dp
        assert replay(chain, found.actions).peak == found.peak
        beaten += found.seconds < dp < math.inf
        gaps.append(found.seconds / best - 1)
    return len(gaps), beaten, gaps


def test_short_chains_are_solved_exactly() -> None:
    for length in range(1, 7):
        _, beaten, gaps = compare(length, length, 40)
        assert max(gaps) == 0
        assert beaten > 0 or length < 4


@pytest.mark.memory
@pytest.mark.parametrize(
    ("length", "count"),
    [(2, 200), (3, 400), (4, 400), (5, 500), (6, 500), (7, 150), (8, 100)],
    ids=[f"part {length}" for length in range(2, 9)],
)
def test_thousands_of_short_chains_are_solved_exactly(length: int, count: int) -> None:
    found, beaten, gaps = compare(100 + length, length, count)
    above = [gap for gap in gaps if gap > 0]
    mean = sum(above) / len(above) if above else 0.0
    print(
        f"L = {length}: {found} chains, the DP is beaten on {beaten / found:.1%}, "
        f"optimal on {1 - len(above) / found:.1%}, mean gap of the rest {mean:.2%}"
    )
    assert len(above) <= found / 100


@pytest.mark.parametrize(("length", "memory", "extra"), [(4, 12, 1), (6, 15, 2), (7, 15, 3)])
def test_uniform_chains_on_which_the_dp_is_beaten(length: int, memory: int, extra: int) -> None:
    chain = uniform(length)
    assert search(chain, memory).seconds - chain.least_seconds == extra


def test_long_chains_are_never_slower_than_the_dps_and_sometimes_faster() -> None:
    draw = random.Random(6)
    feasible = beaten = 0
    for _ in range(24):
        chain = random_chain(draw, draw.randint(9, 30), options=2)
        memory = random_memory(draw, chain)
        dp = PersistentTable(chain, memory).seconds()
        if dp == math.inf:
            with pytest.raises(ValueError, match="no persistent schedule"):
                search(chain, memory)
            continue
        found = search(chain, memory)
        held, seconds = least_held(chain, found.actions)
        assert held <= found.peak <= memory
        assert found.seconds == pytest.approx(seconds, rel=1e-12)
        assert found.seconds <= dp * (1 + 1e-12)
        feasible += 1
        beaten += found.seconds < dp * (1 - 1e-9)
    assert feasible > 12
    assert beaten > 2


@pytest.mark.parametrize(("whole", "part"), [(0, 0.05), (16, 0.9)])
def test_what_is_not_exact_closes_a_part_of_the_gap_between_the_dp_and_the_optimum(
    monkeypatch: pytest.MonkeyPatch, whole: int, part: float
) -> None:
    draw = random.Random(8)
    dps = ours = best = 0.0
    monkeypatch.setattr(module, "EXACT", 6)
    monkeypatch.setattr(module, "WHOLE", whole)
    for _ in range(60):
        chain = random_chain(draw, 7)
        memory = random_memory(draw, chain)
        dp = PersistentTable(chain, memory).seconds()
        if dp < math.inf:
            dps, ours, best = dps + dp, ours + search(chain, memory).seconds, best + optimum(chain, memory)
    assert best <= ours < dps
    assert dps - ours > (dps - best) * part


def test_tidying_takes_away_what_nobody_uses_and_adds_no_byte() -> None:
    draw = random.Random(9)
    for _ in range(100):
        chain = random_chain(draw, draw.randint(2, 8), options=2)
        actions = list(random_actions(draw, chain))
        before, after = replay(chain, actions), replay(chain, tidy(actions))
        assert after.peak <= before.peak
        assert after.seconds <= before.seconds
        assert tidy(tidy(actions)) == tidy(actions)
    again = [StageForward(1), StageForward(1, 0), StageForward(2, 0), StageBackward(2), StageBackward(1)]
    assert tidy(again) == again[1:]
