"""Learning rates."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import WarmupConstant, WarmupCosine, WarmupDrops, WarmupLinear

runs = st.builds(
    lambda peak, warmup, rest, final: WarmupCosine(peak, warmup + rest, warmup, final),
    st.floats(1e-6, 10),
    st.integers(0, 50),
    st.integers(1, 200),
    st.floats(0, 1),
)


@given(runs)
def test_the_rate_rises_in_equal_parts_to_the_peak(schedule: WarmupCosine) -> None:
    for step in range(schedule.warmup):
        assert schedule(step) == pytest.approx(schedule.peak * (step + 1) / schedule.warmup, rel=1e-12)
    assert schedule(schedule.warmup) == pytest.approx(schedule.peak, rel=1e-12)


@given(runs)
def test_the_rate_falls_along_a_half_cosine_and_stays_at_its_end(schedule: WarmupCosine) -> None:
    rates = [schedule(step) for step in range(schedule.warmup, schedule.steps + 3)]
    # Each rate is rounded on its own.
    assert all(later <= earlier * (1 + 1e-15) for earlier, later in pairwise(rates))
    end = schedule.final * schedule.peak
    assert rates[-3] == pytest.approx(end, rel=1e-12, abs=1e-15)
    assert rates[-1] == pytest.approx(end, rel=1e-12, abs=1e-15)
    count = schedule.steps - schedule.warmup
    for done in range(count):
        angle = math.pi * done / count
        assert rates[done] == pytest.approx(
            end + (schedule.peak - end) * math.cos(angle / 2) ** 2, rel=1e-12, abs=1e-15
        )


def test_a_run_that_is_all_warm_up_has_rates() -> None:
    schedule = WarmupCosine(peak=2.0, steps=4, warmup=4)
    assert [schedule(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


@given(st.integers(0, 20), st.integers(1, 50), st.floats(0, 1))
def test_all_schedules_rise_alike(warmup: int, rest: int, final: float) -> None:
    steps = warmup + rest
    cosine = WarmupCosine(3e-3, steps, warmup, final)
    for other in (
        WarmupLinear(3e-3, steps, warmup, final),
        WarmupConstant(3e-3, warmup),
        WarmupDrops(3e-3, (warmup + 1,), 0.5, warmup),
    ):
        for step in range(warmup + 1):
            assert other(step) == pytest.approx(cosine(step), rel=1e-12)


@given(st.integers(0, 20), st.integers(1, 50), st.floats(0, 1))
def test_a_line_falls_in_equal_parts_and_stays_at_its_end(warmup: int, rest: int, final: float) -> None:
    schedule = WarmupLinear(2.0, warmup + rest, warmup, final)
    rates = [schedule(warmup + done) for done in range(rest + 3)]
    for before, after in pairwise(rates[: rest + 1]):
        assert before - after == pytest.approx(2.0 * (1 - final) / rest, abs=1e-12)
    assert rates[rest:] == pytest.approx([2.0 * final] * 3, abs=1e-12)


def test_a_constant_rate_never_falls_and_drops_multiply_each() -> None:
    assert {WarmupConstant(0.1)(step) for step in (0, 1, 1000, 10**9)} == {0.1}
    schedule = WarmupDrops(1.0, drops=(10, 20, 20), factor=0.1)
    assert [schedule(step) for step in (0, 9, 10, 19, 20, 10**6)] == pytest.approx([1, 1, 0.1, 0.1, 1e-3, 1e-3])
