"""Slopes, Hessian and Gauss–Newton products of chains: exact, the same under every plan, and within twice the gradient's bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from checkpointing import InfeasibleBudget, costs_of, gauss_newton_vp, hvp, jvp, parse_policy, plan_run, value_and_grad
from checkpointing.curvature import CurvatureProduct, Product
from framework import (
    Attention,
    CausalAttention,
    Chain,
    Embedding,
    Key,
    LayerNorm,
    Ledger,
    Linear,
    MeanSquaredError,
    Parameters,
    build,
)
from framework import gauss_newton_vp as traced_gauss_newton
from framework import hvp as traced_hvp
from framework import jvp as traced_jvp
from framework.differentiation import grad, hessian
from framework.layers import Context
from tests.checkpointing.cases import SELECTIVE, Case, all_cases, digest, mlp, nested, tokens

CASES = {case.name: case for case in all_cases()}
DOUBLE = [name for name in CASES if name.endswith("float64")]
KEY = Key(4)
#: What a plan of pairs does differently from one of values, one of each kind of policy shows.
SOME_POLICIES = ("store-all", "every-k:1", "recompute-all", SELECTIVE, "offload:1")
#: Bytes of objects that are no arrays.
OBJECTS = 512 * 1024
PRODUCTS: dict[str, Callable[..., CurvatureProduct]] = {"hessian": hvp, "gauss-newton": gauss_newton_vp}

each_product = pytest.mark.parametrize("kind", PRODUCTS)
each_double = pytest.mark.parametrize("name", DOUBLE)


def parameters_of(case: Case, seed: int = 1) -> Parameters:
    return Parameters.initialize(case.chain.layout(case.specs(1)[0]), Key(seed))


def direction_of(parameters: Parameters, seed: int = 2) -> Parameters:
    flat = Key(seed).generator().standard_normal(parameters.flat.size).astype(parameters.flat.dtype)
    return Parameters(parameters.layout, flat)


def product_of(kind: str, case: Case, direction: Parameters, policy: str | None = None, shards: int = 1) -> Product:
    run = PRODUCTS[kind](case.chain, case.loss, policy, shards=shards)
    return run(parameters_of(case), case.x, case.targets, direction, KEY)


def output_of(case: Case, params: Any) -> Any:
    """The chain's output by its definition, with the dropout of the one shard."""
    return case.chain.apply(params, case.x, Context(Ledger(), key=KEY.fold(0)))


def mean_of(case: Case, y: Any) -> Any:
    return case.mean_loss(y)


def flat(tree: Any, parameters: Parameters) -> np.ndarray:
    return np.concatenate([np.ravel(tree[name]) for name in parameters])


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


@each_double
def test_hessian_products_are_those_traced_from_the_definition_dropout_included(name: str) -> None:
    case = CASES[name]
    parameters = parameters_of(case)
    direction = direction_of(parameters)
    found = product_of("hessian", case, direction)
    expected = traced_hvp(lambda p: mean_of(case, output_of(case, p)), (dict(parameters),), (dict(direction),))
    assert_near(found.product.flat, flat(expected, parameters), 1e-12)


@each_double
def test_gauss_newton_products_are_those_traced_from_the_definition_dropout_included(name: str) -> None:
    case = CASES[name]
    parameters = parameters_of(case)
    direction = direction_of(parameters)
    found = product_of("gauss-newton", case, direction)
    model, loss = (lambda p: output_of(case, p)), (lambda y: mean_of(case, y))
    expected = traced_gauss_newton(model, loss, dict(parameters), dict(direction))
    assert_near(found.product.flat, flat(expected, parameters), 1e-12)
    assert float(direction.flat @ found.product.flat) >= 0


@each_product
@pytest.mark.parametrize(
    ("name", "shards"),
    [
        (name, shards)
        if name.endswith("float32") == (shards == 4)
        else pytest.param(name, shards, marks=pytest.mark.memory)
        for name in CASES
        for shards in (1, 4)
    ],
)
def test_no_policy_changes_a_bit_and_loss_and_gradient_are_those_of_value_and_grad(
    kind: str, name: str, shards: int
) -> None:
    case = CASES[name]
    direction = direction_of(parameters_of(case))
    results = [product_of(kind, case, direction, policy, shards) for policy in SOME_POLICIES]
    assert len({(r.loss, digest(r.gradient.flat), digest(r.product.flat)) for r in results}) == 1
    loss, gradient = value_and_grad(case.chain, case.loss, shards=shards)(
        parameters_of(case), case.x, case.targets, KEY
    )
    tolerance = 1e-5 if name.endswith("float32") else 1e-12
    assert results[0].loss == pytest.approx(loss, rel=tolerance)
    assert_near(results[0].gradient.flat, gradient.flat, tolerance)
    assert results[0].product.flat.dtype == gradient.flat.dtype


@lru_cache
def dense() -> tuple[Case, np.ndarray, np.ndarray]:
    """A small chain with its dense Hessian, by central differences of gradients and by tracing."""
    case = mlp("float64", dropout=0.3, batch=4)
    parameters = parameters_of(case)
    layout = parameters.layout

    def of_flat(p: Any) -> Any:
        views = {n: np.reshape(p[where], layout.specs[n].shape) for n, where in layout.slices.items()}
        return mean_of(case, output_of(case, views))

    slope, size = grad(of_flat), 1e-5
    some = list(range(0, layout.size, 17))
    columns = [
        (slope(parameters.flat + size * row) - slope(parameters.flat - size * row)) / (2 * size)
        for row in np.eye(layout.size)[some]
    ]
    matrix = hessian(of_flat)(parameters.flat)
    np.testing.assert_allclose(matrix[:, some].T, columns, rtol=0, atol=1e-8)
    return case, matrix, parameters.flat


def test_a_hessian_product_is_the_dense_hessian_times_the_vector() -> None:
    case, matrix, _ = dense()
    for seed in range(3):
        direction = direction_of(parameters_of(case), seed)
        found = product_of("hessian", case, direction, "every-k:2").product
        assert_near(found.flat, matrix @ direction.flat, 1e-10)


@each_product
@each_double
def test_products_are_symmetric_and_linear(kind: str, name: str) -> None:
    case = CASES[name]
    u, v = (direction_of(parameters_of(case), seed) for seed in (7, 8))
    of_u, of_v = (product_of(kind, case, w, "every-k:1", shards=2).product.flat for w in (u, v))
    scale = float(np.abs(u.flat * of_v).sum())
    assert abs(float(u.flat @ of_v) - float(v.flat @ of_u)) <= 1e-13 * scale
    both = Parameters(u.layout, 2 * u.flat - 3 * v.flat)
    assert_near(product_of(kind, case, both, shards=2).product.flat, 2 * of_u - 3 * of_v, 1e-12)


def test_gauss_newton_is_the_hessian_where_the_output_is_linear_in_the_parameters() -> None:
    x, targets = (Key(1).fold(n).generator().standard_normal((6, 3)) for n in "xt")
    case = Case("linear", Chain(Linear(3)), MeanSquaredError(), x, targets)
    direction = direction_of(parameters_of(case))
    hessian_, gauss = (product_of(kind, case, direction).product.flat for kind in PRODUCTS)
    np.testing.assert_allclose(hessian_, gauss, rtol=1e-13, atol=1e-14)


@each_double
@pytest.mark.parametrize("shards", [1, 4])
def test_the_slope_is_the_gradient_along_the_direction(name: str, shards: int) -> None:
    case = CASES[name]
    parameters = parameters_of(case)
    direction = direction_of(parameters)
    loss, gradient = value_and_grad(case.chain, case.loss, shards=shards)(parameters, case.x, case.targets, KEY)
    found = jvp(case.chain, case.loss, shards=shards)(parameters, case.x, case.targets, direction, KEY)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    terms = gradient.flat * direction.flat
    assert abs(found.slope - float(terms.sum())) <= 1e-12 * float(np.abs(terms).sum())
    if shards == 1:
        y, tangent = traced_jvp(lambda p: output_of(case, p), (dict(parameters),), (dict(direction),))
        assert found.output_tangent.shape == y.shape
        assert_near(found.output_tangent, tangent, 1e-12)


def test_forward_mode_holds_the_same_at_any_depth() -> None:
    def peak(depth: int) -> int:
        case = Case("deep", Chain(*[Linear(32)] * depth), MeanSquaredError(), np.ones((64, 32)), np.ones((64, 32)))
        parameters, run = parameters_of(case), jvp(case.chain, case.loss)
        run(parameters, case.x, case.targets, parameters)
        assert run.ledger.live <= 64 * 32 * 8  # the result
        return run.ledger.peak - 2 * parameters.flat.nbytes

    assert peak(3) == peak(4) == peak(30)


@each_product
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", SOME_POLICIES)
def test_the_ledgers_timeline_is_the_predicted_one(kind: str, name: str, policy: str) -> None:
    case = CASES[name]
    run = PRODUCTS[kind](case.chain, case.loss, policy, shards=2)
    run.ledger.timeline = []
    parameters = parameters_of(case)
    found = run(parameters, case.x, case.targets, direction_of(parameters), KEY)
    assert tuple(run.ledger.timeline) == run.plan.simulate().timeline
    assert run.ledger.live == 0
    assert found.product.flat.size == found.gradient.flat.size == parameters.flat.size


def gpt() -> tuple[Case, Parameters, Parameters]:
    built = build("byte-gpt-tiny")
    x = Key(0).generator().integers(256, size=(8, 128)).astype(np.uint8)
    case = Case("gpt", built.chain, built.loss, x, np.roll(x, -1, axis=1))
    parameters = parameters_of(case)
    return case, parameters, direction_of(parameters)


@each_product
@pytest.mark.parametrize("policy", ["store-all", "every-k:1"])
def test_a_product_holds_at_most_twice_the_plans_activations_and_three_gradients(kind: str, policy: str) -> None:
    case, parameters, direction = gpt()
    plan = plan_run(costs_of(case.chain, case.loss, *case.specs(1)), policy=parse_policy(policy), purpose="gradient")
    bound = 2 * plan.activation_nbytes + 3 * parameters.flat.nbytes
    run = PRODUCTS[kind](case.chain, case.loss, policy)
    tracemalloc.start()
    try:
        with threadpool_limits(1):  # products of small blocks, which several threads slow down on a busy machine
            run(parameters, case.x, case.targets, direction)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert run.ledger.peak == run.plan.peak
    assert run.ledger.peak - parameters.flat.nbytes <= bound
    # tracemalloc sees the plan's and the interpreter's objects, too, and what tracing holds inside a step. The direction was there
    # before.
    assert peak + direction.flat.nbytes <= bound + OBJECTS


@each_product
def test_a_budget_chooses_a_plan_that_keeps_it_and_names_the_smallest_that_would_do(kind: str) -> None:
    case = tokens("float64")
    parameters = parameters_of(case)
    given = parameters, case.x, case.targets, direction_of(parameters), KEY
    free = PRODUCTS[kind](case.chain, case.loss)
    expected = free(*given)
    with pytest.raises(InfeasibleBudget) as caught:
        PRODUCTS[kind](case.chain, case.loss, budget="engine:1KiB")(*given)
    tight = PRODUCTS[kind](case.chain, case.loss, budget=f"engine:{caught.value.smallest}")
    assert digest(tight(*given).product.flat) == digest(expected.product.flat)
    assert tight.ledger.peak == caught.value.smallest < free.ledger.peak


def test_what_does_not_belong_to_the_model_is_refused() -> None:
    case, other = tokens("float64"), tokens("float32")
    parameters, wrong = parameters_of(case), parameters_of(other)
    for run in (hvp(case.chain, case.loss, shards=4), gauss_newton_vp(case.chain, case.loss, shards=4)):
        with pytest.raises(ValueError, match=r"model's 0.token is float64\[17, 8\], but .* float32"):
            run(parameters, case.x, case.targets, wrong)
        with pytest.raises(ValueError, match="do not divide into 4 equal shards"):
            run(parameters, case.x[:6], case.targets[:6], parameters)
    with pytest.raises(ValueError, match="float32"):
        jvp(case.chain, case.loss)(parameters, case.x, case.targets, wrong)
    with pytest.raises(ValueError, match="do not divide into 4 equal shards"):
        jvp(case.chain, case.loss, shards=4)(parameters, case.x[:6], case.targets[:6], parameters)
    with pytest.raises(ValueError, match="power of two"):
        jvp(case.chain, case.loss, shards=3)


def test_arguments_are_not_changed() -> None:
    case = nested()
    parameters = parameters_of(case)
    direction = direction_of(parameters)
    before = parameters.sha256(), direction.sha256(), digest(case.x)
    for run in (hvp(case.chain, case.loss), gauss_newton_vp(case.chain, case.loss), jvp(case.chain, case.loss)):
        run(parameters, case.x, case.targets, direction)
    assert (parameters.sha256(), direction.sha256(), digest(case.x)) == before


def test_a_chain_of_attention_over_several_lengths_agrees_with_tracing() -> None:
    x = Key(3).generator().integers(5, size=(2, 70)).astype(np.uint8)
    chain = Chain(
        Embedding(5, 70, 6, "float64"), LayerNorm(), Linear(18), Attention(2), Linear(18), CausalAttention(2), Linear(5)
    )
    case = Case("attention", chain, tokens("float64").loss, x, np.roll(x, 1, axis=1))
    parameters = parameters_of(case)
    direction = direction_of(parameters)
    expected = traced_hvp(lambda p: mean_of(case, output_of(case, p)), (dict(parameters),), (dict(direction),))
    assert_near(product_of("hessian", case, direction).product.flat, flat(expected, parameters), 1e-12)
