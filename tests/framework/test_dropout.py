"""Dropout: its mask is a function of the key and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import Dropout, Key, Ledger, kernels
from framework.layers import Context


def forward(rate: float, x: np.ndarray, key: Key, training: bool = True) -> np.ndarray:
    return Dropout(rate).forward({}, x, Context(Ledger(), "", key, training))[0]


def mask(rate: float, size: int, key: Key, dtype: str = "float64") -> np.ndarray:
    return forward(rate, np.ones(size, dtype), key) != 0


@given(size=st.sampled_from([1, 17, kernels.BLOCK, 2 * kernels.BLOCK + 9]), rate=st.floats(0.01, 0.99))
def test_forward_and_vjp_draw_one_mask(size: int, rate: float) -> None:
    context = Context(Ledger(), "", Key(1).fold("step", size))
    ones = np.ones(size)
    y, own = Dropout(rate).forward({}, ones, context)
    assert Dropout(rate).vjp({}, None, None, own, ones, {}, context).tobytes() == y.tobytes()


@given(size=st.sampled_from([1, 17, 2 * kernels.BLOCK + 9]), rate=st.floats(0.01, 0.99))
def test_the_mask_is_the_same_for_each_dtype(size: int, rate: float) -> None:
    np.testing.assert_array_equal(mask(rate, size, Key(2), "float32"), mask(rate, size, Key(2), "float64"))


def test_the_mask_does_not_depend_on_the_shape() -> None:
    x = np.ones(kernels.BLOCK + 8)
    rows = forward(0.5, x.reshape(8, -1), Key(2))
    assert rows.tobytes() == forward(0.5, x, Key(2)).tobytes()


def test_different_keys_draw_different_masks() -> None:
    keys = [Key(seed).fold("step", step, path) for seed in (0, 1) for step in (0, 1) for path in ("a", "b")]
    assert len({mask(0.5, 64, key).tobytes() for key in keys}) == len(keys)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_kept_part_and_the_mean_are_right(rate: float) -> None:
    size = 100_000
    deviation = np.sqrt(rate * (1 - rate) / size)
    y = forward(rate, np.ones(size), Key(3))
    # Six standard deviations of a mean of independent draws.
    assert abs((y != 0).mean() - (1 - rate)) < 6 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-15)
    assert abs(y.mean() - 1) < 6 * deviation / (1 - rate)


def test_blocks_draw_different_masks() -> None:
    kept = mask(0.5, 2 * kernels.BLOCK, Key(4))
    assert (kept[: kernels.BLOCK] != kept[kernels.BLOCK :]).any()


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)], ids=["rate 0", "evaluation"])
def test_rate_zero_and_evaluation_pass_the_arrays_through(rate: float, training: bool) -> None:
    x, ledger = np.ones(5), Ledger()
    context = Context(ledger, "", Key(5), training)
    y, own = Dropout(rate).forward({}, x, context)
    assert y is x
    assert own == ()
    assert Dropout(rate).vjp({}, None, None, (), x, {}, context) is x
    assert ledger.peak == 0


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_a_rate_outside_zero_to_one_is_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(rate)
