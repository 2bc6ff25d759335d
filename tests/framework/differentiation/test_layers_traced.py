"""The layers' hand-written VJPs equal the derivatives traced from their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpointing import value_and_grad
from framework import Key, Ledger, Parameters, build
from framework.differentiation import grad, hvp, jvp
from framework.layers import Context
from tests.checkpointing.cases import Case, all_cases

CASES = [case for case in all_cases() if case.name.endswith("float64")]


def loss_of(case: Case, params: Any) -> Any:
    """The mean loss by the definitions, in plain NumPy."""
    context = Context(Ledger(), key=Key(4).fold(0))
    return case.mean_loss(case.chain.apply(params, case.x, context))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_by_hand_equal_those_traced_from_apply_dropout_included(case: Case) -> None:
    parameters = Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(1))
    loss, by_hand = value_and_grad(case.chain, case.loss)(parameters, case.x, case.targets, Key(4))
    traced = grad(lambda params: loss_of(case, params))(dict(parameters))
    assert loss == pytest.approx(float(loss_of(case, dict(parameters))), rel=1e-13)
    for name in parameters:
        np.testing.assert_allclose(by_hand[name], traced[name], rtol=1e-11, atol=1e-13, err_msg=name)


def test_a_whole_byte_gpt_agrees_and_has_hessian_vector_products() -> None:
    built = build("byte-gpt-tiny", "float64")
    x = np.arange(16, dtype=np.uint8).reshape(2, 8)
    case = Case("gpt", built.chain, built.loss, x, np.roll(x, -1, axis=1))
    parameters = Parameters.initialize(built.chain.layout(case.specs(1)[0]), Key(1))
    _, by_hand = value_and_grad(built.chain, built.loss)(parameters, case.x, case.targets)
    params = dict(parameters)
    traced = grad(lambda p: loss_of(case, p))(params)
    for name in parameters:
        np.testing.assert_allclose(by_hand[name], traced[name], rtol=1e-10, atol=1e-12, err_msg=name)
    direction = {name: Key(2).fold(name).generator().standard_normal(view.shape) for name, view in params.items()}
    product = hvp(lambda p: loss_of(case, p), (params,), (direction,))
    size = 1e-6
    sides = [
        grad(lambda p: loss_of(case, p))({n: v + sign * size * direction[n] for n, v in params.items()})
        for sign in (1, -1)
    ]
    _, slope = jvp(lambda p: loss_of(case, p), (params,), (direction,))
    assert slope == pytest.approx(sum(float(np.sum(traced[n] * direction[n])) for n in params), rel=1e-9)
    name = "block0.mlp.up.weight"
    difference = (sides[0][name] - sides[1][name]) / (2 * size)
    np.testing.assert_allclose(product[name], difference, rtol=1e-3, atol=1e-5 * np.abs(difference).max())
