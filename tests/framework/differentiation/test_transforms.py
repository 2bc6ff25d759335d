"""Transforms: the page's example, nesting, structures, memory, and errors."""

from __future__ import annotations

import copy
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from framework import Key
from framework.differentiation import (
    DifferentiationError,
    WrongDerivative,
    check_grads,
    custom_rule,
    gauss_newton_vp,
    grad,
    hessian,
    hvp,
    jacobian,
    jacobian_operator,
    jacobian_plan,
    jvp,
    linearize,
    stop_gradient,
    trace_operations,
    value_and_grad,
    vjp,
)
from framework.differentiation.rules.indexing import take_items
from framework.differentiation.rules.matrices import log_abs_det, norm_of
from framework.differentiation.rules.shapes import array_of, cast
from framework.differentiation.table import RULES, describe
from framework.differentiation.transforms import HVP_MODES

POINT, DIRECTION = np.array([1.5, 2.0]), np.array([0.3, -0.2])


def example(x: Any) -> Any:
    """The page's example, written as there."""
    x1, x2 = x
    return np.array([x1**2 + x2, x1 * x2, np.sin(x1)])


EXACT = np.array([[2 * 1.5, 1], [2.0, 1.5], [np.cos(1.5), 0]])


def test_the_example_has_the_exact_jvp_vjp_and_jacobian() -> None:
    value, tangent = jvp(example, (POINT,), (DIRECTION,))
    np.testing.assert_array_equal(value, example(POINT))
    np.testing.assert_allclose(tangent, EXACT @ DIRECTION, rtol=1e-15)
    value, pullback = vjp(example, POINT)
    cotangent = np.array([1.0, 0.5, 0.3])
    np.testing.assert_allclose(pullback(cotangent)[0], EXACT.T @ cotangent, rtol=1e-15)
    np.testing.assert_array_equal(pullback(cotangent)[0], pullback(cotangent)[0])
    for mode in ("auto", "forward", "reverse"):
        np.testing.assert_allclose(jacobian(example, mode)(POINT), EXACT, rtol=1e-15)


def test_an_object_array_of_traced_scalars_goes_through_ufuncs() -> None:
    assert grad(lambda x: np.sum(np.sin(np.array([x[0], x[0] * x[1]]))))(POINT).tolist() == pytest.approx(
        [np.cos(1.5) + 2 * np.cos(3), 1.5 * np.cos(3)]
    )


def test_the_gradient_is_the_vjp_of_one_bit_for_bit() -> None:
    def loss(x: Any) -> Any:
        return np.sum(np.tanh(x) ** 2)

    x = Key(1).generator().standard_normal(7)
    value, pullback = vjp(loss, x)
    assert grad(loss)(x).tobytes() == pullback(np.ones(()))[0].tobytes()
    assert value_and_grad(loss)(x)[0] == value


@pytest.mark.parametrize(
    "f, third", [(np.sin, lambda x: -np.cos(x)), (np.exp, np.exp), (lambda x: x**4, lambda x: 24 * x)]
)
def test_nested_to_third_order_derivatives_equal_the_closed_forms(f: Any, third: Any) -> None:
    def forward(g: Any) -> Any:
        return lambda x: jvp(g, (x,), (np.ones(()),))[1]

    for first in (grad, forward):
        for second in (grad, forward):
            for last in (grad, forward):
                assert last(second(first(f)))(0.7) == pytest.approx(third(0.7), rel=1e-14)


def network(x: Any) -> Any:
    w = Key(2).generator().standard_normal((2, 4, 4))
    return np.sum(np.tanh(w[1] @ np.tanh(w[0] @ x)) ** 2)


@pytest.mark.parametrize("mode", HVP_MODES)
def test_a_hessian_vector_product_is_the_dense_hessians(mode: str) -> None:
    x, v = Key(3).generator().standard_normal((2, 4))
    dense = hessian(network)(x)
    np.testing.assert_allclose(dense, dense.T, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(hvp(network, (x,), (v,), mode), dense @ v, rtol=1e-12)


def test_the_gauss_newton_product_is_that_of_dense_matrices() -> None:
    w, x, v = Key(4).generator().standard_normal((3, 4, 4))

    def inner(x: Any) -> Any:
        return np.tanh(w @ x[0])

    def outer(y: Any) -> Any:
        return np.sum(np.exp(y))

    j = jacobian(inner)(x).reshape(4, 16)
    h = hessian(outer)(inner(x))
    np.testing.assert_allclose(np.ravel(gauss_newton_vp(inner, outer, x, v)), j.T @ h @ j @ np.ravel(v), rtol=1e-12)


def test_structures_nest_freely() -> None:
    def f(p: Any, rest: Any) -> Any:
        return {"y": [p["a"] * rest[0], (np.sum(p["b"]),)], "none": None}

    p, rest = {"a": np.array(2.0), "b": np.ones(3)}, (np.array(5.0),)
    value, pullback = vjp(f, p, rest)
    assert value["y"][0] == 10
    p_bar, rest_bar = pullback({"y": [1.0, (2.0,)], "none": None})
    assert p_bar["a"] == 5
    assert p_bar["b"].tolist() == [2, 2, 2]
    assert rest_bar[0] == 2
    assert isinstance(rest_bar, tuple)
    _, tangent = jvp(f, (p, rest), (p, rest))
    assert tangent["y"][0] == 20


def of_tree(p: Any) -> Any:
    return {"y": np.outer(p["a"], p["b"][0]), "z": (np.sum(p["a"] ** 2),)}


TREE = {"a": np.array([1.0, 2.0]), "b": [np.array([0.5, -1.0, 3.0])]}


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_jacobian_of_structures_has_a_block_for_each_pair_of_arrays(mode: str) -> None:
    found = jacobian(of_tree, mode)(TREE)
    a, b = TREE["a"], TREE["b"][0]
    np.testing.assert_array_equal(found["y"]["a"], np.eye(2)[:, None, :] * b[None, :, None])
    np.testing.assert_array_equal(found["y"]["b"][0], a[:, None, None] * np.eye(3)[None])
    np.testing.assert_array_equal(found["z"][0]["a"], 2 * a)
    np.testing.assert_array_equal(found["z"][0]["b"][0], np.zeros(3))
    plan = jacobian_plan(of_tree, TREE, mode)
    assert (plan.shape, plan.nbytes) == ((7, 5), 7 * 5 * 8)
    with pytest.raises(DifferentiationError, match="takes 280 bytes"):
        jacobian(of_tree, mode, limit=279)(TREE)
    # Nested: the derivative of the sum of a block is that of its formula.
    nested = grad(lambda p: np.sum(jacobian(of_tree, mode)(p)["z"][0]["a"] ** 2))(TREE)
    np.testing.assert_allclose(nested["a"], 8 * a)


def test_the_operator_and_the_hessian_of_structures_are_those_of_the_flat_function() -> None:
    def flat(x: Any) -> Any:
        found = of_tree({"a": x[:2], "b": [x[2:]]})
        return np.concatenate([np.ravel(found["y"]), np.reshape(found["z"][0], 1)])

    x = np.concatenate([TREE["a"], TREE["b"][0]])
    dense, operator = jacobian(flat)(x), jacobian_operator(of_tree, TREE)
    assert operator.shape == dense.shape == (7, 5)
    v, w = Key(5).generator().standard_normal(5), Key(6).generator().standard_normal(7)
    np.testing.assert_allclose(operator @ v, dense @ v, rtol=1e-14)
    np.testing.assert_allclose(operator.T @ w, dense.T @ w, rtol=1e-14)
    for product, size in ((operator.matvec, 5), (operator.rmatvec, 7)):
        with pytest.raises(ValueError, match=f"takes a vector of {size} numbers, but this one has 3"):
            product(np.ones(3))

    def loss(p: Any) -> Any:
        return np.sum(of_tree(p)["y"] ** 2)

    second = hessian(lambda x: np.sum(flat(x)[:6] ** 2))(x)
    found = hessian(loss)(TREE)
    np.testing.assert_allclose(found["a"]["b"][0], second[:2, 2:], rtol=1e-13)
    np.testing.assert_allclose(found["b"][0]["b"][0], second[2:, 2:], rtol=1e-13)


def test_what_a_function_returns_beside_its_loss_is_no_longer_traced() -> None:
    def f(x: Any) -> Any:
        return np.sum(x**2), {"twice": x * 2, "made": np.array([x[0], 1.0]), "text": "kept"}

    (value, aux), gradient = value_and_grad(f, has_aux=True)(POINT)
    assert value == 6.25
    assert aux["text"] == "kept"
    for found, expected in ((aux["twice"], [3.0, 4.0]), (aux["made"], [1.5, 1.0])):
        assert type(found) is np.ndarray
        assert found.tolist() == expected
    assert gradient.tolist() == [3, 4]
    # Of another transform it stays traced.
    _, moved = jvp(lambda x: grad(f, has_aux=True)(x)[1]["twice"], (POINT,), (POINT,))
    assert moved.tolist() == [3, 4]


def test_linearize_and_the_jacobian_as_a_black_box() -> None:
    value, push = linearize(example, POINT)
    np.testing.assert_allclose(push(DIRECTION), EXACT @ DIRECTION)
    operator = jacobian_operator(example, POINT)
    assert operator.shape == (3, 2)
    assert operator.T.shape == (2, 3)
    np.testing.assert_allclose(operator @ DIRECTION, EXACT @ DIRECTION)
    np.testing.assert_allclose(operator.rmatvec(value), EXACT.T @ value)
    np.testing.assert_allclose(operator.T @ value, EXACT.T @ value)
    np.testing.assert_allclose(operator.T.T.matvec(DIRECTION), EXACT @ DIRECTION)


def test_the_mode_of_a_jacobian_follows_the_sizes_and_its_reason_can_be_asked_for() -> None:
    wide, tall = np.ones((2, 5)), np.ones((5, 2))
    assert jacobian_plan(lambda x: wide @ x, np.ones(5)).mode == "reverse"
    plan = jacobian_plan(lambda x: tall @ x, np.ones(2))
    assert (plan.mode, plan.products, plan.shape, plan.nbytes) == ("forward", 2, (5, 2), 80)
    assert "fewer products" in plan.reason
    with pytest.raises(DifferentiationError, match="takes 80 bytes"):
        jacobian(lambda x: tall @ x, limit=79)(np.ones(2))


def test_a_custom_rule_serves_both_modes_and_any_order() -> None:
    calls = []

    @custom_rule
    def square(x: Any) -> Any:
        return x**2

    @square.vjp
    def rule(cotangent: Any, y: Any, x: Any) -> Any:
        calls.append(x)
        return (2 * x * cotangent,)

    assert grad(lambda x: np.sum(square(x)))(np.arange(3.0)).tolist() == [0, 2, 4]
    assert len(calls) == 1
    check_grads(square, (np.arange(1.0, 4.0),))
    assert square(np.float64(3.0)) == 9
    with pytest.raises(TypeError, match="has no rule yet"):
        custom_rule(lambda x: x)(1.0)


def test_a_custom_rule_with_a_jvp_alone_has_its_transpose_as_vjp() -> None:
    @custom_rule
    def scaled(x: Any, y: Any) -> Any:
        return x * y[0]

    @scaled.jvp
    def rule(tangents: Any, value: Any, x: Any, y: Any) -> Any:
        parts = [
            t * f
            for t, f in ((tangents[0], y[0]), (None if tangents[1] is None else tangents[1][0], x))
            if t is not None
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    check_grads(scaled, (POINT, np.array([3.0, 4.0])))
    assert grad(lambda x: np.sum(scaled(x, POINT)))(POINT).tolist() == [1.5, 1.5]


def test_what_was_put_aside_in_a_transform_that_has_ended_is_an_error() -> None:
    aside: list[Any] = []

    def keeps(x: Any) -> Any:
        aside.append(x * 2)
        return np.sum(x)

    for transform in (grad(keeps), lambda x: jvp(keeps, (x,), (x,)), lambda x: linearize(keeps, x)):
        transform(POINT)
        with pytest.raises(DifferentiationError, match=r"np\.multiply got an array that was traced by a transform"):
            grad(lambda x: np.sum(x) * np.sum(aside[-1] * 3.0))(POINT)
    assert stop_gradient(aside[0]).tolist() == [3, 4]


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("made", [np.asmatrix, np.ma.masked_array])
def test_matrices_and_masked_arrays_are_errors(made: Any) -> None:
    with pytest.raises(DifferentiationError, match="has no derivatives in Retape; use plain arrays"):
        grad(np.sum)(made(np.eye(2)))
    with pytest.raises(DifferentiationError, match="has no derivatives in Retape; use plain arrays"):
        grad(lambda x: np.sum(np.matmul(made(np.eye(2)), x)))(POINT)


def test_stop_gradient_cuts_both_modes() -> None:
    assert grad(lambda x: x * stop_gradient(x))(3.0) == 3
    assert jvp(lambda x: x * stop_gradient(x), (np.array(3.0),), (np.array(1.0),))[1] == 3


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_check_grads_finds_a_planted_error_of_1e_4(mode: str) -> None:
    @custom_rule
    def wrong(x: Any) -> Any:
        return np.sin(x)

    wrong.vjp(lambda g, y, x: (g * np.cos(x) * (1 + 1e-4 * (mode == "vjp")),))
    wrong.jvp(lambda t, y, x: t[0] * np.cos(x) * (1 + 1e-4 * (mode == "jvp")))
    with pytest.raises(WrongDerivative):
        check_grads(wrong, (np.linspace(0.1, 1, 5),), order=1)
    with pytest.raises(WrongDerivative):
        check_grads(wrong, (np.linspace(0.1, 1, 5),), order=1, modes=("reverse" if mode == "vjp" else "forward",))


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"modes": ("fwd",)}, ValueError, 'modes of "forward" and "reverse"'),
        ({"modes": ()}, ValueError, 'modes of "forward" and "reverse"'),
        ({"order": 0}, ValueError, "an order from 1"),
        ({"args": POINT}, DifferentiationError, "args is a tuple"),
        ({"args": (POINT.astype(np.float32),)}, DifferentiationError, "takes arrays in float64"),
        ({"args": (np.arange(3),)}, DifferentiationError, "convert it first"),
    ],
)
def test_check_grads_never_checks_nothing(given_: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        check_grads(**({"function": np.sin, "args": (POINT,)} | given_))


M = np.array([[2.0, 0.3, -0.4], [0.1, 1.5, 0.2], [-0.3, 0.5, 1.8]])
#: Rules of each family and kind: the function that has it, and a function of M that uses it.
PLANTED = {
    np.sin: np.sin, np.multiply: lambda x: x * M.T, np.power: lambda x: np.power(np.abs(x), 1.5), np.clip: lambda x: np.clip(x, -9, 9),
    np.where: lambda x: np.where(M > 0, x, 1.0), take_items: lambda x: x[[0, 2, 2]], np.concatenate: lambda x: np.concatenate([x, x]),
    array_of: lambda x: np.array([x[0, 0], x[1, 2]]), cast: lambda x: x.astype(np.longdouble), np.reshape: lambda x: np.reshape(x, 9),
    np.pad: lambda x: np.pad(x, 1, mode="edge"), np.tril: np.tril, np.matmul: lambda x: M @ x, np.einsum: lambda x: np.einsum("ij,kj->ik", x, M),
    np.convolve: lambda x: np.convolve(x[0], [1.0, 2.0]), np.sum: lambda x: np.sum(x, axis=0), np.mean: np.mean, np.std: np.std,
    np.max: lambda x: np.max(x, axis=1), np.prod: np.prod, np.cumsum: np.cumsum, np.cumprod: np.cumprod, np.linalg.inv: np.linalg.inv,
    np.linalg.det: np.linalg.det, np.linalg.solve: lambda x: np.linalg.solve(x, M[0]), norm_of: np.linalg.norm,
    np.linalg.cholesky: lambda x: np.linalg.cholesky(M @ M.T + 0.1 * (x + x.T)), log_abs_det: lambda x: np.linalg.slogdet(x).logabsdet,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("function", PLANTED, ids=describe)
def test_check_grads_finds_an_error_of_1e_4_in_any_rule(function: Any, mode: str, monkeypatch: Any) -> None:
    def wrong(*args: Any) -> Any:
        found = getattr(right, mode)(*args)
        return [part * (1 + 1e-4) for part in found] if isinstance(found, list) else found * (1 + 1e-4)

    right, planted = RULES[function], copy.copy(RULES[function])
    setattr(planted, mode, wrong)
    check_grads(PLANTED[function], (M,), order=1)
    monkeypatch.setitem(RULES, function, planted)
    with pytest.raises(WrongDerivative):
        check_grads(PLANTED[function], (M,), order=1)
    with pytest.raises(WrongDerivative, match="reverse mode" if mode == "vjp" else "forward mode"):
        check_grads(PLANTED[function], (M,), order=1, modes=("reverse" if mode == "vjp" else "forward",))


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_products_of_a_custom_rule_have_the_shapes_of_what_they_belong_to(shape: Any) -> None:
    @custom_rule
    def square(x: Any) -> Any:
        return x**2

    square.vjp(lambda g, y, x: (np.ones(shape),))
    with pytest.raises(TypeError, match=r"the VJP of square must give argument 0 an array of its shape \(2,\)"):
        grad(lambda x: np.sum(square(x)))(POINT)
    square.forward(lambda x: (x**2, ()))
    square.vjp(lambda g: (np.ones(shape),))
    with pytest.raises(TypeError, match=r"the VJP of square must give argument 0 an array of its shape \(2,\)"):
        grad(lambda x: np.sum(square(x)))(POINT)
    square.jvp(lambda t, y, x: np.ones(shape))
    with pytest.raises(TypeError, match=r"the JVP of square must give the result an array of its shape \(2,\)"):
        jvp(square, (POINT,), (POINT,))


def test_products_of_a_custom_rule_have_the_dtype_of_what_they_belong_to() -> None:
    @custom_rule
    def square(x: Any) -> Any:
        return x**2

    square.vjp(lambda g, y, x: (2 * np.float64(1.0) * x.astype(np.float64) * g,))
    square.jvp(lambda t, y, x: 2 * x.astype(np.float64) * t[0])
    x = POINT.astype(np.float32)
    assert grad(lambda x: np.sum(square(x)))(x).dtype == np.float32
    assert jvp(square, (x,), (x,))[1].dtype == np.float32


def test_python_control_flow_works_as_it_runs() -> None:
    def f(x: Any) -> Any:
        total = 0.0
        for i in range(4):
            if x[i] > 0:
                total += x[i] ** 2
        while total < 10:
            total = total * 2
        return total

    assert grad(f)(np.array([1.0, -1.0, 2.0, -3.0])).tolist() == [4, 0, 8, 0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: math.sin(x[0]), "to become float"),
        (lambda x: x[0] if x[0] else x[1], "to become bool"),
        (lambda x: [1, 2][x[0]], "to become int"),
        (lambda x: x.__setitem__(0, 1.0), "cannot be written into"),
        (lambda x: np.add(x, 1, out=np.zeros(2)), "cannot write into an array with out="),
        (lambda x: np.cumsum(x, out=np.zeros(2)), "cannot write into out="),
        (lambda x: np.linalg.eigh(np.outer(x, x))[0], r"np.linalg.eigh has no derivative rule.*custom_rule"),
        (lambda x: np.fft.fft(x), "has no derivative rule"),
        (lambda x: np.add.accumulate(x), "np.add.accumulate has no derivative rule"),
        (lambda x: np.var(x, mean=0.0), "np.var cannot be differentiated with these options"),
        (
            lambda x: np.sum(np.exp(x, where=np.array([True, False]))),
            "np.exp cannot be differentiated with these options",
        ),
        (lambda x: x, "grad takes a function with a scalar result"),
        (lambda x: None, r"but this one returned None \(does a return lack"),
        (lambda x: "text", "grad takes a function with a scalar result"),
        (lambda x: round(x[0]), "to become int"),
        (lambda x: np.zeros(2).__setitem__(0, x[0]), "to become float.*np.stack"),
        (lambda x: np.zeros(2).__setitem__(slice(None), x), "to become float.*np.stack"),
        (lambda x: np.float64(x[0]), "to become float"),
        (lambda x: np.sum(np.asarray(x, float)), r"to become float.*np.asarray\(x, float\)"),
        (lambda x: np.mean([x[0], x[1]]), "to become float.*np.stack"),
        (lambda x: np.linalg.det(np.array([[x[0], x[1]], [0.0, 1.0]])), "make such an array with np.stack"),
        (lambda x: np.sum(np.arctan2(np.array([1, x[1]]), 2.0)), "make such an array with np.stack"),
        (lambda x: np.sum(np.logaddexp(np.array([x[0], x[1]]), 0.0)), "make such an array with np.stack"),
    ],
)
def test_what_would_cut_a_derivative_is_an_error_that_names_it(function: Any, message: str) -> None:
    with pytest.raises(DifferentiationError, match=message):
        grad(function)(POINT)


def test_an_in_place_operator_on_a_traced_array_is_an_error_and_on_a_scalar_a_new_scalar() -> None:
    def in_place(x: Any) -> Any:
        y = x * 1.0
        y += x
        return np.sum(y)

    with pytest.raises(DifferentiationError, match="y = y \\+ x instead"):
        grad(in_place)(POINT)
    assert grad(in_place)(2.0) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grad(np.sin)(3), "grad takes arrays of floats, but got int64.*convert it first"),
        (
            lambda: jvp(np.sin, (POINT,), (np.ones(3),)),
            r"shape of the array it belongs to, \(2,\), but this one has \(3,\)",
        ),
        (lambda: jvp(np.sin, (POINT,), ()), "tuple of 1 items"),
        (lambda: vjp(np.sin, POINT)[1](np.ones((2, 1))), "cotangent has the shape"),
        (lambda: vjp(lambda x: {"a": x}, POINT)[1]({"b": POINT}), "keys"),
        (lambda: jvp(np.sin, POINT, POINT), r"primals is a tuple .* but is a ndarray: write \(x,\)"),
        (lambda: hvp(np.sum, (POINT,), POINT), r"tangents is a tuple .* but is a ndarray"),
        (lambda: jvp(np.sin, (POINT,), (1j * POINT,)), "a tangent holds real numbers"),
        (lambda: vjp(np.sin, POINT)[1](1j * POINT), "a cotangent holds real numbers"),
        (lambda: grad(np.sum, argnums=1)(POINT), "argnums is 1, but the function was called with 1 arguments"),
        (lambda: grad(np.sum, has_aux=True)(POINT), "with has_aux the function returns a pair"),
    ],
)
def test_wrong_primals_tangents_and_cotangents_are_clear_errors(call: Any, message: str) -> None:
    with pytest.raises(DifferentiationError, match=message):
        call()


def test_integer_tangents_and_cotangents_take_the_primals_dtype() -> None:
    x = POINT.astype(np.float32)
    assert jvp(np.sin, (x,), (np.array([1, 0]),))[1].dtype == np.float32
    assert vjp(np.sin, x)[1](np.array([1, 0]))[0].dtype == np.float32


def test_the_operations_of_the_example_are_listed_with_their_tangents_and_cotangents() -> None:
    weights = np.array([1.0, 0.5, 0.3])
    operations = trace_operations(example, (POINT,), (DIRECTION,), weights)
    assert [(o.output, o.name, o.inputs) for o in operations] == [
        ("v1", "index", ("x", "0")),
        ("v2", "index", ("x", "1")),
        ("v3", "np.power", ("v1", "2")),
        ("v4", "np.add", ("v3", "v2")),
        ("v5", "np.multiply", ("v1", "v2")),
        ("v6", "np.sin", ("v1",)),
        ("v7", "np.array", ("v4", "v5", "v6")),
    ]
    np.testing.assert_allclose([o.cotangent for o in operations[:2]], EXACT.T @ weights, rtol=1e-15)
    np.testing.assert_allclose(operations[-1].tangent, EXACT @ DIRECTION, rtol=1e-15)
    # What goes forward and what goes back agree at each operation that all of the result passes through.
    assert float(np.sum(operations[-1].tangent * operations[-1].cotangent)) == pytest.approx(
        sum(float(o.tangent * o.cotangent) for o in operations[:2]), rel=1e-14
    )
    unused = trace_operations(lambda x: [np.sin(x), np.cos(x) * 0 + x][1], (2.0,), (1.0,), 1.0)
    assert (unused[0].name, unused[0].cotangent) == ("np.sin", 0)


def test_linearize_runs_the_function_once_and_pushes_any_number_of_tangents() -> None:
    calls: list[int] = []

    def f(p: Any, w: Any) -> Any:
        calls.append(1)
        h = np.tanh(p["a"] @ w)
        return {"y": np.stack([h, h * w]), "constant": np.ones(2)}

    p, w = {"a": Key(1).generator().standard_normal((3, 3))}, np.arange(3.0)
    value, push = linearize(f, p, w)
    for seed in range(3):
        tangents = {"a": Key(2).fold(seed).generator().standard_normal((3, 3))}, np.cos(w + seed)
        found, expected = push(*tangents), jvp(f, (p, w), tangents)
        np.testing.assert_array_equal(value["y"], expected[0]["y"])
        np.testing.assert_array_equal(found["y"], expected[1]["y"])
        assert found["constant"].tolist() == [0, 0]
    assert len(calls) == 4
    with pytest.raises(DifferentiationError, match="shape"):
        push({"a": np.ones(3)}, w)
    # The record may hold values that are traced themselves: the gradient of a derivative along a direction.
    second = grad(lambda x: linearize(lambda x: np.sum(x**3), x)[1](np.ones(3)))(w)
    np.testing.assert_allclose(second, 6 * w)
    # And it is the map that Newton's method wants: many Hessian–vector products of one point.
    _, hessian_times = linearize(grad(lambda x: np.sum(np.cos(x) * x)), w)
    dense = hessian(lambda x: np.sum(np.cos(x) * x))(w)
    np.testing.assert_allclose(hessian_times(w), dense @ w, rtol=1e-12)


def test_a_jacobian_is_filled_in_place_and_the_operator_keeps_nothing_until_it_is_transposed() -> None:
    x, w = np.ones(400), np.ones((300, 400))
    for mode in ("forward", "reverse"):
        tracemalloc.start()
        try:
            found = jacobian(lambda x: w @ np.sin(x), mode)(x)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        np.testing.assert_allclose(found, w * np.cos(x))
        assert peak < found.nbytes + 100_000
    operator = jacobian_operator(np.sin, x)
    assert np.array_equal(operator @ x, np.cos(x) * x)
    x += 1  # nothing of it is held
    assert np.array_equal(operator.T @ x, np.cos(x) * x)
    with pytest.raises(ValueError, match="read-only"):
        x += 1
