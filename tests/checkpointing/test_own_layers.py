"""Layers of one's own, with `parameters` and `apply` alone, train under every policy as those by hand do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from checkpointing import hvp, predict, value_and_grad
from framework import Chain, CrossEntropy, Dropout, Key, Layer, Linear, Parameters, Residual, Spec
from framework.layers import Context
from tests.checkpointing.cases import POLICIES, SELECTIVE, Case, digest
from tests.framework.test_own_layers import Affine


@dataclass(frozen=True)
class Swish(Layer):
    """y = x / (1 + exp(-x))."""

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return x / (1 + np.exp(-x))


@dataclass(frozen=True)
class Noise(Layer):
    """Multiplies by random numbers in training."""

    def apply(self, params: Any, x: Any, context: Context) -> Any:
        return x * context.key.generator().random(x.shape).astype(x.dtype) if context.training else x


def case(affine: Any, dtype: str = "float64") -> Case:
    chain = Chain(affine(9), Swish(), Dropout(0.2), Residual(Chain(affine(9), Noise())), affine(5))
    x = Key(5).fold("own").generator().standard_normal((8, 7)).astype(dtype)
    return Case("own", chain, CrossEntropy(), x, np.arange(8) % 5)


OWN, BY_HAND = case(Affine), case(Linear)


@pytest.fixture
def parameters() -> Parameters:
    return Parameters.initialize(OWN.chain.layout(OWN.specs(1)[0]), Key(1))


@pytest.mark.parametrize("shards", [1, 4])
def test_no_policy_changes_a_bit_and_the_peak_is_the_predicted_one(parameters: Parameters, shards: int) -> None:
    found = set()
    for policy in (*(p for p in POLICIES if p != SELECTIVE), "selective:Affine"):
        run = value_and_grad(OWN.chain, OWN.loss, policy, shards=shards)
        loss, gradient = run(parameters, OWN.x, OWN.targets, Key(3))
        assert run.ledger.peak == run.plan.peak
        found.add((loss, digest(gradient.flat)))
    assert len(found) == 1


def test_gradient_and_hessian_product_are_those_of_the_layer_by_hand(parameters: Parameters) -> None:
    direction = Parameters(parameters.layout, Key(2).generator().standard_normal(parameters.flat.size))
    own, by_hand = (
        hvp(case.chain, case.loss)(parameters, case.x, case.targets, direction, Key(3)) for case in (OWN, BY_HAND)
    )
    assert own.loss == pytest.approx(by_hand.loss, rel=1e-14)
    np.testing.assert_allclose(own.gradient.flat, by_hand.gradient.flat, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(own.product.flat, by_hand.product.flat, rtol=1e-12, atol=1e-14)


def test_training_is_reproducible_draws_anew_each_step_and_is_the_same_under_every_policy() -> None:
    first, again = (OWN.bits_after(OWN.plans("every-k:1", 2).train[0], steps=3) for _ in range(2))
    assert first == again == OWN.bits_after(OWN.plans("store-all", 2).train[0], steps=3)
    still = Parameters.initialize(OWN.chain.layout(OWN.specs(1)[0]), Key(1))
    run = value_and_grad(OWN.chain, OWN.loss)
    losses = [run(still, OWN.x, OWN.targets, Key(3).fold(step))[0] for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_an_evaluation_has_no_noise(parameters: Parameters) -> None:
    y = predict(OWN.chain, parameters, OWN.x)
    np.testing.assert_allclose(y, predict(BY_HAND.chain, parameters, OWN.x), rtol=0, atol=1e-14)
    assert y.tobytes() == predict(OWN.chain, parameters, OWN.x).tobytes()


def test_float32_stays_float32() -> None:
    single = case(Affine, "float32")
    layout = single.chain.layout(single.specs(1)[0])
    assert layout.dtype == np.float32
    _, gradient = value_and_grad(single.chain, single.loss)(
        Parameters.initialize(layout, Key(1)), single.x, single.targets
    )
    assert gradient.flat.dtype == np.float32


def test_a_layer_of_ones_own_without_apply_has_no_hessian_product_and_says_so() -> None:
    class ByHand(Linear):
        apply = Layer.apply

    class Third(ByHand):
        jvp, vjp_with_tangent = Layer.jvp, Layer.vjp_with_tangent

    x, targets = np.ones((2, 3)), np.zeros(2, int)
    for layer, works in ((ByHand(2), True), (Third(2), False)):
        chain = Chain(layer)
        parameters = Parameters.initialize(chain.layout(Spec.of(x.shape, x.dtype)), Key(0))
        if works:
            hvp(chain, CrossEntropy())(parameters, x, targets, parameters)
        else:
            with pytest.raises(NotImplementedError, match=r"Third has no apply.*write apply"):
                hvp(chain, CrossEntropy())(parameters, x, targets, parameters)
