"""BatchNorm's statistics: what a shard tells, what is kept, and what evaluation reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpointing import predict, value_and_grad
from framework import (
    BatchNorm,
    Chain,
    Conv2d,
    GlobalAveragePool,
    Key,
    Linear,
    MeanSquaredError,
    Parameters,
    ReLU,
    Spec,
    weights,
)
from framework.layers import Context, advance_state
from framework.memory import Ledger

RNG = np.random.default_rng(7)
CHAIN = Chain(Conv2d(3, 3, padding=1), BatchNorm(momentum=0.25), ReLU(), GlobalAveragePool(), Linear(2), BatchNorm())
X, TARGETS = RNG.standard_normal((8, 2, 5, 5)), RNG.standard_normal((8, 2))


def initial(x: np.ndarray = X) -> Parameters:
    return Parameters.initialize(CHAIN.layout(Spec.of(x.shape, x.dtype)), Key(0))


def conv_output(parameters: Parameters, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = Conv2d(3, 3, padding=1).apply(
        {"weight": parameters["0.weight"], "bias": parameters["0.bias"]}, x, Context(Ledger())
    )
    return y


def test_parameters_state_and_statistics_have_places_of_their_own() -> None:
    layout = CHAIN.layout(Spec.of(X.shape, X.dtype))
    assert list(layout.specs) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
        "5.weight",
        "5.bias",
    ]
    assert list(layout.state.specs) == ["1.running_mean", "1.running_var", "5.running_mean", "5.running_var"]
    assert list(layout.statistics.specs) == [f"{n}.{s}" for n in "15" for s in ("mean", "variance", "count")]
    assert layout.gradients.size == layout.size + (3 + 3 + 1) + (2 + 2 + 1)
    assert Chain(Linear(2)).layout(Spec.of((1, 3), "float32")).gradients.size == 8


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("policy", ["store-all", "every-k:1", "recompute-all"])
def test_a_step_moves_the_running_statistics_once_towards_the_mean_over_shards(shards: int, policy: str) -> None:
    parameters = initial()
    y = conv_output(parameters, X)
    each = np.split(y, shards)
    mean = np.mean([part.mean((0, 2, 3)) for part in each], axis=0)
    variance = np.mean([part.var((0, 2, 3), ddof=1) for part in each], axis=0)
    run = value_and_grad(CHAIN, MeanSquaredError(), policy, shards=shards)
    run(parameters, X, TARGETS)
    assert parameters.state is not None
    np.testing.assert_allclose(parameters.state["1.running_mean"], 0.25 * mean, rtol=1e-12)
    np.testing.assert_allclose(parameters.state["1.running_var"], 0.75 + 0.25 * variance, rtol=1e-12)
    assert run.ledger.peak == run.plan.peak


def test_policies_give_the_same_bits_of_gradient_and_state() -> None:
    found = set()
    for policy in ("store-all", "every-k:1", "every-k:2", "sqrt-n", "recompute-all"):
        parameters = initial()
        _, gradient = value_and_grad(CHAIN, MeanSquaredError(), policy, shards=2)(parameters, X, TARGETS)
        found.add((gradient.sha256(), parameters.sha256()))
    assert len(found) == 1


def test_evaluation_reads_the_running_statistics_and_not_those_of_its_batch() -> None:
    parameters = initial()
    for _ in range(3):
        value_and_grad(CHAIN, MeanSquaredError())(parameters, X, TARGETS)
    whole = predict(CHAIN, parameters, X)
    np.testing.assert_allclose(
        np.concatenate([predict(CHAIN, parameters, x) for x in np.split(X, 4)]), whole, rtol=1e-12
    )
    with pytest.raises(ValueError, match="no running statistics"):
        predict(CHAIN, Parameters(parameters.layout, parameters.flat), X)


def test_the_state_is_part_of_the_hash_and_of_the_file_of_weights(tmp_path: Path) -> None:
    parameters, other = initial(), initial()
    assert parameters.state is not None and other.state is not None
    value_and_grad(CHAIN, MeanSquaredError())(parameters, X, TARGETS)
    assert parameters.sha256() != other.sha256() and np.array_equal(parameters.flat, other.flat)
    weights.save(tmp_path / "w.safetensors", parameters)
    weights.load(tmp_path / "w.safetensors", other)
    assert parameters.sha256() == other.sha256()


def test_a_layer_without_tracking_keeps_nothing_and_measures_in_evaluation_too() -> None:
    chain = Chain(BatchNorm(tracked=False), Linear(1))
    layout = chain.layout(Spec.of((8, 2), "float64"))
    assert layout.state.size == layout.statistics.size == 0
    parameters = Parameters.initialize(layout, Key(0))
    assert parameters.state is None
    advance_state(chain, parameters, np.empty(0))
    x = RNG.standard_normal((8, 2)) + 100
    y = predict(
        Chain(BatchNorm(tracked=False, affine=False)),
        Parameters.initialize(Chain(BatchNorm(tracked=False, affine=False)).layout(Spec.of((8, 2), "float64")), Key(0)),
        x,
    )
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)


def test_large_numbers_neither_overflow_nor_cancel() -> None:
    x = (RNG.standard_normal((64, 4, 3)) + np.array([-1e4, 1e4, 3e3, 0])[:, None]).astype(np.float32)
    layer, ledger = BatchNorm(), Ledger()
    params = {"weight": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    y, _ = layer.forward(params, x, Context(ledger))
    wide = layer.apply(
        {name: a.astype(np.float64) for name, a in params.items()}, x.astype(np.float64), Context(ledger)
    )
    assert np.max(np.abs(y - wide)) < 2e-3  # an element of 1e4 has a rounding of 5e-4 itself


def test_what_it_does_not_take_is_said() -> None:
    with pytest.raises(ValueError, match="two numbers in a channel"):
        BatchNorm().footprint(Spec.of((1, 3), "float32"))
    BatchNorm().footprint(Spec.of((1, 3), "float32"), training=False)
    with pytest.raises(ValueError, match=r"takes an input \(B, C"):
        BatchNorm().footprint(Spec.of((3,), "float32"))
    with pytest.raises(ValueError, match="momentum"):
        BatchNorm(momentum=0)
    with pytest.raises(ValueError, match="floats"):
        BatchNorm().footprint(Spec.of((3, 2), "uint8"))
