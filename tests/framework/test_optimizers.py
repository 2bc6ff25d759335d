"""Optimizers on flat buffers, and clipping."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import SGD, AdamW, Ledger, Optimizer, kernels
from framework.optimizers import NORM_BLOCK, clip_factor, global_norm, norm_workspace_nbytes, tree_sum
from framework.parameters import Constant, Layout, ParameterSpec

BLOCK = kernels.BLOCK
SIZES = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 77]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(),
    "sgd with decay": SGD(weight_decay=0.1),
    "sgd with momentum": SGD(momentum=0.9),
    "sgd with momentum and decay": SGD(momentum=0.9, weight_decay=0.1),
    "sgd with nesterov's momentum": SGD(momentum=0.8, nesterov=True),
    "sgd with nesterov's momentum and decay": SGD(momentum=0.8, weight_decay=0.1, nesterov=True),
    "adamw": AdamW(),
    "adamw without decay": AdamW(weight_decay=0.0),
    "adamw with other constants": AdamW(beta1=0.5, beta2=0.999, epsilon=1e-3, weight_decay=0.3),
}
STEPS = [(0.1, 1.0), (0.05, 0.5), (0.2, 1.0), (0.01, 0.25)]  # learning rate and factor of each step

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_size = pytest.mark.parametrize("size", SIZES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def layout_of(size: int, dtype: str = "float64") -> Layout:
    return Layout({"weight": ParameterSpec((size,), np.dtype(dtype), Constant(0.0))})


def start(size: int, dtype: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Parameters, and the gradient of each step, which is read-only."""
    generator = np.random.default_rng(size)
    parameters, *gradients = (generator.standard_normal(size).astype(dtype) for _ in range(1 + len(STEPS)))
    for gradient in gradients:
        gradient.setflags(write=False)
    return parameters, gradients


def trained(optimizer: Optimizer, size: int, dtype: str, cuts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and state after all steps, each step done piece by piece between the cuts."""
    parameters, gradients = start(size, dtype)
    state = optimizer.initialize(layout_of(size, dtype), Ledger())
    for step, (gradient, (rate, factor)) in enumerate(zip(gradients, STEPS, strict=True)):
        for first, last in zip([0, *cuts], [*cuts, size], strict=True):
            optimizer.update(
                parameters[first:last],
                gradient[first:last],
                state[:, first:last],
                step=step,
                learning_rate=rate,
                factor=factor,
                ledger=Ledger(),
                first=first,
            )
    return parameters, state


def reference(optimizer: Optimizer, size: int, dtype: str, decays: Any = 1) -> np.ndarray:
    """The papers' formulas over whole arrays in float64."""
    parameters, gradients = start(size, dtype)
    p = parameters.astype(np.float64)
    m, v = np.zeros(size), np.zeros(size)
    for t, (gradient, (rate, factor)) in enumerate(zip(gradients, STEPS, strict=True), start=1):
        g = gradient.astype(np.float64) * factor
        if isinstance(optimizer, SGD):
            g = g + optimizer.weight_decay * decays * p
            m = optimizer.momentum * m + g
            p = p - rate * (g + optimizer.momentum * m if optimizer.nesterov else m)
        else:
            assert isinstance(optimizer, AdamW)
            m = optimizer.beta1 * m + (1 - optimizer.beta1) * g
            v = optimizer.beta2 * v + (1 - optimizer.beta2) * g**2
            m_hat, v_hat = m / (1 - optimizer.beta1**t), v / (1 - optimizer.beta2**t)
            p = p - rate * (m_hat / (np.sqrt(v_hat) + optimizer.epsilon) + optimizer.weight_decay * decays * p)
    return p


@each_dtype
@each_size
@each_optimizer
def test_an_update_is_the_formula(name: str, size: int, dtype: str) -> None:
    found, state = trained(OPTIMIZERS[name], size, dtype, [])
    # A few roundings a step, of numbers of size one.
    tolerance = {"float64": 1e-13, "float32": 5e-6}[dtype]
    np.testing.assert_allclose(found, reference(OPTIMIZERS[name], size, dtype), rtol=tolerance, atol=tolerance)
    assert found.dtype == state.dtype == dtype


@each_optimizer
@pytest.mark.parametrize("cuts", [[BLOCK], [BLOCK, 2 * BLOCK], [NORM_BLOCK], [1, 1000, BLOCK + 3]], ids=str)
def test_any_cut_of_the_buffers_gives_the_same_bits(name: str, cuts: list[int]) -> None:
    whole, pieces = (trained(OPTIMIZERS[name], 2 * BLOCK + 77, "float32", c) for c in ([], cuts))
    assert whole[0].tobytes() == pieces[0].tobytes()
    assert whole[1].tobytes() == pieces[1].tobytes()


@each_optimizer
def test_parameters_that_go_elsewhere_have_the_same_bits_and_what_was_there_stays(name: str) -> None:
    size = 2 * BLOCK + 77
    (parameters, gradients), optimizer = start(size, "float32"), OPTIMIZERS[name]
    in_place, before = parameters.copy(), parameters.copy()
    states = [optimizer.initialize(layout_of(size, "float32"), Ledger()) for _ in range(2)]
    optimizer.update(in_place, gradients[0], states[0], step=0, learning_rate=0.1, factor=0.5)
    parameters.setflags(write=False)
    elsewhere = np.full_like(before, np.nan)
    optimizer.update(parameters, gradients[0], states[1], step=0, learning_rate=0.1, factor=0.5, out=elsewhere)
    assert (elsewhere == in_place).all() and (parameters == before).all()
    assert (states[0] == states[1]).all()
    assert (elsewhere != before).any()


@each_dtype
@each_size
@each_optimizer
def test_state_and_workspace_are_exact_to_the_byte(name: str, size: int, dtype: str) -> None:
    optimizer, layout, ledger = OPTIMIZERS[name], layout_of(size, dtype), Ledger()
    state = optimizer.initialize(layout, ledger)
    assert state.shape == (optimizer.slots, size)
    assert not state.any()
    assert ledger.live == ledger.peak == state.nbytes == optimizer.state_nbytes(layout)
    if state.size:
        assert ledger.holders() == [("optimizer", type(optimizer).__name__, state.nbytes)]
    parameters, gradients = start(size, dtype)
    ledger.mark("start")
    optimizer.update(parameters, gradients[0], state, step=0, learning_rate=0.1, factor=1.0, ledger=ledger)
    assert ledger.peak == optimizer.state_nbytes(layout) + optimizer.workspace_nbytes(layout)
    assert ledger.live == state.nbytes


def test_the_state_holds_one_row_for_each_moment() -> None:
    assert [optimizer.slots for optimizer in OPTIMIZERS.values()] == [0, 0, 1, 1, 1, 1, 2, 2, 2]


SIZE = 2 * BLOCK + 77
#: A bias between two matrices, over the border of blocks, and a scale at the end.
GROUPED = Layout(
    {
        name: ParameterSpec(shape, np.dtype("float64"), Constant(0.0))
        for name, shape in {
            "0.weight": (BLOCK - 7, 1), "0.bias": (20,), "1.weight": (BLOCK, 1), "1.other": (1, 4), "2.weight": (60,),
        }.items()
    }
)  # fmt: skip


@pytest.mark.parametrize("cuts", [[], [BLOCK], [BLOCK - 7, BLOCK + 13], [1, 1000, BLOCK + 3]], ids=str)
@pytest.mark.parametrize("name", [name for name, some in OPTIMIZERS.items() if "weight_decay=0.0" not in repr(some)])
def test_only_the_selected_parameters_decay_wherever_the_buffers_are_cut(name: str, cuts: list[int]) -> None:
    for part in (GROUPED.select(least_axes=2), GROUPED.select("*.bias"), GROUPED.select()):
        optimizer = dataclasses.replace(OPTIMIZERS[name], decays=part)  # type: ignore[type-var]
        decays = np.zeros(SIZE)
        for selected in part.names:
            GROUPED.views(decays)[selected][...] = 1
        parameters, gradients = start(SIZE, "float64")
        state = optimizer.initialize(GROUPED)
        assert state.nbytes == optimizer.state_nbytes(GROUPED) == OPTIMIZERS[name].state_nbytes(GROUPED)
        for step, (gradient, (rate, factor)) in enumerate(zip(gradients, STEPS, strict=True)):
            for a, b in zip([0, *cuts], [*cuts, SIZE], strict=True):
                optimizer.update(
                    parameters[a:b], gradient[a:b], state[:, a:b], step=step, learning_rate=rate, factor=factor, first=a
                )
        np.testing.assert_allclose(
            parameters, reference(OPTIMIZERS[name], SIZE, "float64", decays), rtol=1e-13, atol=1e-13
        )
        if len(part.names) == len(GROUPED.specs):
            assert parameters.tobytes() == trained(OPTIMIZERS[name], SIZE, "float64", [])[0].tobytes()


def test_a_selection_says_what_it_selected_and_is_a_range_for_neighbours() -> None:
    part = GROUPED.select(least_axes=2)
    assert part.names == ("0.weight", "1.weight", "1.other")
    assert part.ranges == ((0, BLOCK - 7), (BLOCK + 13, 2 * BLOCK + 17))
    assert pickle.loads(pickle.dumps(part)) == part
    assert repr(part) == f"Part(names=('0.weight', '1.weight', '1.other'), size={SIZE})"


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no parameter matches 'head\.\*' with 0 axes.*0\.weight, 0\.bias"):
        GROUPED.select("head.*")
    with pytest.raises(ValueError, match=r"'\*\.bias' with 2 axes"):
        GROUPED.select("*.bias", least_axes=2)


def test_what_was_selected_from_another_layout_is_refused() -> None:
    optimizer = AdamW(decays=GROUPED.select("*.bias"))
    with pytest.raises(ValueError, match="selected from another layout"):
        optimizer.initialize(layout_of(SIZE))
    with pytest.raises(ValueError, match="selected from another layout"):
        optimizer.initialize(layout_of(5))
    many = np.zeros(SIZE + 1)
    with pytest.raises(ValueError, match=f"selected from {SIZE} parameters"):
        optimizer.update(many, many, np.zeros((2, SIZE + 1)), step=0, learning_rate=0.1)


def test_nesterov_without_momentum_is_an_error() -> None:
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        SGD(nesterov=True)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
@pytest.mark.parametrize("name", ["momentum", "beta1", "beta2"])
def test_a_decay_outside_zero_to_one_is_an_error(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} lies in \[0, 1\)"):
        (SGD if name == "momentum" else AdamW)(**{name: value})


@each_dtype
@pytest.mark.parametrize("size", [0, 1, NORM_BLOCK, NORM_BLOCK + 1, 8 * NORM_BLOCK, 17 * NORM_BLOCK - 5])
def test_the_global_norm_is_the_euclidean_norm_and_its_workspace_exact(size: int, dtype: str) -> None:
    flat, ledger = np.random.default_rng(size).standard_normal(size).astype(dtype), Ledger()
    flat.setflags(write=False)
    norm = global_norm(flat, ledger)
    assert type(norm) is float
    assert norm == pytest.approx(float(np.linalg.norm(flat.astype(np.float64))), rel=1e-13)
    assert ledger.peak == norm_workspace_nbytes(layout_of(size, dtype))
    assert ledger.live == 0


def test_the_global_norm_of_float32_does_not_overflow() -> None:
    assert global_norm(np.full(4, 1e30, np.float32), Ledger()) == pytest.approx(2e30, rel=1e-7)  # 1e30 in float32


def test_the_squares_of_each_fixed_block_are_summed_in_a_tree() -> None:
    # So whoever owns some whole blocks computes their part of the very same sum.
    flat = np.random.default_rng(0).standard_normal(11 * NORM_BLOCK + 5).astype(np.float32)
    parts = [global_norm(flat[i : i + NORM_BLOCK], Ledger()) for i in range(0, flat.size, NORM_BLOCK)]
    # The parts were rounded by a square root each.
    assert global_norm(flat, Ledger()) == pytest.approx(math.sqrt(tree_sum([part**2 for part in parts])), rel=1e-15)


@given(st.floats(0, 1e6), st.one_of(st.none(), st.floats(1e-6, 1e6)))
def test_clipping_brings_the_norm_down_and_never_up(norm: float, most: float | None) -> None:
    factor = clip_factor(norm, most)
    if most is None or norm <= most:
        assert factor == 1.0
    else:
        assert 0 < factor < 1
        assert factor * norm == pytest.approx(most, rel=1e-12)


@given(st.lists(st.integers(-1000, 1000)))
def test_a_tree_sum_of_whole_numbers_is_their_sum(values: list[int]) -> None:
    floats = [float(v) for v in values]
    assert tree_sum(floats) == sum(values)
    assert floats == [float(v) for v in values]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_a_tree_sum_adds_neighbours_first(values: list[float]) -> None:
    def tree(some: list[float]) -> float:
        """The left part has the largest power of two of the values that leaves some on the right."""
        if len(some) == 1:
            return some[0]
        left = 1 << (len(some) - 1).bit_length() - 1
        return tree(some[:left]) + tree(some[left:])

    assert tree_sum(values) == tree(values)
