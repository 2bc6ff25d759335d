"""Flatten and Reshape are views, and Concat joins what its inner layers give to its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from checkpointing import value_and_grad
from framework import (
    Chain,
    Concat,
    Conv2d,
    Flatten,
    Key,
    Layer,
    Ledger,
    Linear,
    MaxPool2d,
    MeanSquaredError,
    Parameters,
    ReLU,
    Reshape,
    Residual,
    Spec,
    Upsample2d,
)
from framework.differentiation import jvp, vjp
from framework.layers import BATCH, Composite, Context, Join, flatten, input_specs

X = Spec.of((2, 3, 4, 4), "float64")


def test_output_and_cotangent_lie_where_input_and_cotangent_lie() -> None:
    x, ledger = np.arange(24.0).reshape(2, 3, 4), Ledger()
    for layer in (Flatten(), Reshape((4, 3)), Reshape((12, 1, 1))):
        y, own = layer.forward({}, x, Context(ledger))
        back = layer.vjp({}, x, None, own, y, {}, Context(ledger))
        assert y.shape == layer.footprint(Spec.of(x.shape, x.dtype)).output.shape
        assert back.shape == x.shape
        assert np.shares_memory(y, x)
        assert np.shares_memory(back, x)
    assert ledger.peak == 0


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Flatten(), Spec.of((2, 3), np.int64), "Flatten takes an array of floats"),
        (Reshape((2, 2)), Spec.of((2, 3), "float32"), r"shape \(2, 2\) of 4 numbers.*3 an example"),
        (Join(), (X, Spec.of((2, 3, 4, 5), "float64")), r"input is float64\[2, 3, 4, 4\].*float64\[2, 3, 4, 5\]"),
        (Join(), (X, Spec.of((2, 3, 4, 4), "float32")), "dtype"),
        (Join(), (X, Spec.of((2, 3, 4), "float64")), "equal in all other axes"),
        (Join(0), (X, X), "other than the batch's.*axis 0"),
        (Join(-4), (X, X), "other than the batch's"),
        (Join(4), (X, X), "axis 4"),
    ],
)
def test_an_input_that_a_layer_does_not_take_is_a_clear_error(layer: Layer, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.footprint(x)


def test_an_example_has_no_negative_axis() -> None:
    with pytest.raises(ValueError, match="whole numbers from 0"):
        Reshape((2, -1))


def unet() -> Chain:
    """Two levels, with a layer on each side of each."""
    bottom = Concat(Chain(MaxPool2d(2), Conv2d(4, 3, padding=1), Upsample2d(2)))
    middle = Chain(MaxPool2d(2), Conv2d(2, 3, padding=1), ReLU(), bottom, Conv2d(3, 1), Upsample2d(2))
    return Chain(Concat(middle), out=Conv2d(1, 1))


CONCATS: dict[str, tuple[Composite, list[tuple[str, tuple[int, ...], int]]]] = {
    "around a layer": (
        Chain(Concat(Linear(5), axis=-1), ReLU()),
        [("0.inner", (BATCH,), 0), ("0.join", (BATCH, 0), 0), ("1", (1,), 1)],
    ),
    "around nothing": (Chain(ReLU(), c=Concat(Chain())), [("0", (BATCH,), 0), ("c.join", (0, 0), 1)]),
    "in a residual": (
        Chain(r=Residual(Chain(a=Concat(Conv2d(2, 1)), b=Conv2d(3, 1)))),
        [
            ("r.a.inner", (BATCH,), 0),
            ("r.a.join", (BATCH, 0), 0),
            ("r.b", (1,), 0),
            ("r.add", (2, BATCH), 0),
        ],
    ),
    "U-Net": (
        unet(),
        [
            ("0.0", (BATCH,), 0),
            ("0.1", (0,), 0),
            ("0.2", (1,), 0),
            ("0.3.0", (2,), 0),
            ("0.3.1", (3,), 0),
            ("0.3.2", (4,), 0),
            ("0.3.join", (2, 5), 0),
            ("0.4", (6,), 0),
            ("0.5", (7,), 0),
            ("0.join", (BATCH, 8), 0),
            ("out", (9,), 1),
        ],
    ),
}
each_concat = pytest.mark.parametrize("name", CONCATS)


@each_concat
def test_paths_inputs_and_stages_in_topological_order(name: str) -> None:
    network, expected = CONCATS[name]
    assert [(step.path, step.inputs, step.stage) for step in flatten(network)] == expected


@each_concat
def test_steps_and_jvp_are_the_definition(name: str) -> None:
    network, _ = CONCATS[name]
    generator = np.random.default_rng(1)
    parameters = Parameters.initialize(network.layout(X), Key(1)) if network.parameters(X) else {}
    params, moves = dict(parameters), {n: generator.standard_normal(p.shape) for n, p in parameters.items()}
    x, x_tangent = generator.standard_normal((2, *X.shape))
    context = Context(Ledger())

    def definition(params: Any, x: Any) -> Any:
        return network.apply(params, x, context)

    steps = flatten(network)
    values: dict[int, Any] = {BATCH: x}
    for number, (step, spec) in enumerate(zip(steps, input_specs(steps, X), strict=True)):
        local = {n: params[f"{step.path}.{n}"] for n in step.layer.parameters(spec)}
        each = tuple(values[source] for source in step.inputs)
        values[number] = step.layer.forward(local, each if len(each) > 1 else each[0], context)[0]
    np.testing.assert_allclose(values[len(steps) - 1], definition(params, x), rtol=0, atol=1e-12)
    found = network.jvp(params, x, moves, x_tangent, context)
    expected = jvp(definition, (params, x), (moves, x_tangent))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_the_gradient_of_a_u_net_is_the_traced_one() -> None:
    network, generator = unet(), np.random.default_rng(2)
    parameters = Parameters.initialize(network.layout(X), Key(1))
    x, targets = generator.standard_normal(X.shape), generator.standard_normal((2, 1, 4, 4))
    _, by_hand = value_and_grad(network, MeanSquaredError())(parameters, x, targets)
    y, pull = vjp(lambda params: network.apply(params, x, Context(Ledger())), dict(parameters))
    (traced,) = pull(2 * (y - targets) / targets.size)
    for name in parameters:
        np.testing.assert_allclose(by_hand[name], traced[name], rtol=0, atol=1e-13)


def test_names_that_a_join_takes_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match=r"'0\.join'.*of a Concat's other than 'join'"):
        flatten(Chain(Concat(Chain(join=ReLU()))))
