"""A five-layer network: products compose by the chain rule, and backpropagation is a VJP."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from framework.differentiation.demonstration.common import Settings, Weights, difference, norm, raveled
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import grad, value_and_grad, vjp
from framework.differentiation.transforms import jacobian
from framework.measuring import median_seconds
from framework.memory import Array

WIDTHS, BATCH = (10, 32, 16, 1), 4


@dataclass(frozen=True)
class FiveLayers:
    """The arrays of Linear, ReLU, Linear, ReLU, Linear and a mean squared error.

    Attributes:
        weights: (W, b) of each Linear y = x W + b, shapes (in, out) and (out,).
        x: Shape (batch, in).
        target: Shape (batch, out).
    """

    weights: Weights
    x: Array
    target: Array


def five_layers(seed: int) -> FiveLayers:
    """Draws the network: weights are 0.01 times standard normal, biases zero."""
    generator = Settings(seed).generator("network")
    weights = [(0.01 * generator.standard_normal((i, o)), np.zeros(o)) for i, o in pairwise(WIDTHS)]
    x, target = generator.standard_normal((BATCH, WIDTHS[0])), generator.standard_normal((BATCH, WIDTHS[-1]))
    return FiveLayers(weights, x, target)


def five_layer_loss(weights: Any, x: Any, target: Any) -> Any:
    """The network's loss in plain NumPy."""
    for number, (W, b) in enumerate(weights):
        x = np.maximum(x, 0) @ W + b if number else x @ W + b
    return np.mean((x - target) ** 2)


@dataclass(frozen=True)
class LayerGradient:
    """The gradient of one parameter.

    Attributes:
        layer: Its layer.
        parameter: W or b.
        shape: Its shape.
        norm: The Euclidean norm of the gradient traced from NumPy code.
        engine_norm: That of the layer engine's; None without an engine.
        difference: The largest one between the two; None without an engine.
    """

    layer: str
    parameter: str
    shape: tuple[int, ...]
    norm: float
    engine_norm: float | None
    difference: float | None


@dataclass(frozen=True)
class Link:
    """A layer in the chain rule.

    Attributes:
        layer: Its name.
        tangent_norm: Of its output's tangent, which goes forward.
        cotangent_norm: Of its input's cotangent, which goes back.
    """

    layer: str
    tangent_norm: float
    cotangent_norm: float


@dataclass(frozen=True)
class Network:
    """Loss and gradient of the five-layer network.

    Attributes:
        batch: Examples.
        widths: Of the input and of each Linear's output.
        loss: Traced from NumPy code.
        engine_loss: The layer engine's; None without an engine.
        gradients: Of each parameter.
        largest_difference: Between both ways, the loss included; None without an engine.
        links: The layers and the loss in order, differentiated one by one.
        composed_jvp_difference: Of JVPs taken layer by layer from the JVP of the whole, relative to it.
        composed_vjp_difference: Of VJPs taken layer by layer from the VJP of the whole: the largest one, relative to the
            largest element.
    """

    batch: int
    widths: tuple[int, ...]
    loss: float
    engine_loss: float | None
    gradients: tuple[LayerGradient, ...]
    largest_difference: float | None
    links: tuple[Link, ...]
    composed_jvp_difference: float
    composed_vjp_difference: float


def network(settings: Settings) -> Network:
    """The gradient of a network: traced, by the layer engine, and composed of the layers' own products."""
    parts = five_layers(settings.seed)
    loss, gradient = value_and_grad(five_layer_loss)(parts.weights, parts.x, parts.target)
    engine_loss, engine_gradient = settings.engine(parts) if settings.engine else (None, None)
    gradients = []
    for number, traced in enumerate(gradient):
        name = f"Linear {WIDTHS[number]}→{WIDTHS[number + 1]}"
        for place, parameter in enumerate("Wb"):
            a = traced[place]
            b = None if engine_gradient is None else engine_gradient[number][place]
            gradients.append(
                LayerGradient(
                    layer=name,
                    parameter=parameter,
                    shape=a.shape,
                    norm=norm(a),
                    engine_norm=None if b is None else norm(b),
                    difference=None if b is None else difference(a, b),
                )
            )
    differences = [g.difference for g in gradients if g.difference is not None]
    return Network(
        batch=BATCH,
        widths=WIDTHS,
        loss=float(loss),
        engine_loss=engine_loss,
        gradients=tuple(gradients),
        largest_difference=None if engine_loss is None else max(abs(float(loss) - engine_loss), *differences),
        **_composed(parts, settings.generator("direction").standard_normal(parts.x.shape)),
    )


def _composed(parts: FiveLayers, direction: Array) -> dict[str, Any]:
    """Takes JVPs from the first layer to the loss and VJPs from the loss to the first layer, one layer at a time."""
    layers: list[tuple[str, Any]] = []
    for number, (W, b) in enumerate(parts.weights):
        if number:
            layers.append(("ReLU", lambda x: np.maximum(x, 0)))
        layers.append((f"Linear {W.shape[0]}→{W.shape[1]}", lambda x, W=W, b=b: x @ W + b))
    layers.append(("mean squared error", lambda x: np.mean((x - parts.target) ** 2)))
    x, tangent, tangents, pullbacks = parts.x, direction, [], []
    for _, layer in layers:
        _, tangent = jvp(layer, (x,), (tangent,))
        x, pullback = vjp(layer, x)
        tangents.append(norm(tangent))
        pullbacks.append(pullback)
    cotangent, cotangents = np.ones(()), []
    for pullback in reversed(pullbacks):
        (cotangent,) = pullback(cotangent)
        cotangents.append(norm(cotangent))

    def whole(x: Any) -> Any:
        return five_layer_loss(parts.weights, x, parts.target)

    forth, back = jvp(whole, (parts.x,), (direction,))[1], vjp(whole, parts.x)[1](np.ones(()))[0]
    names = [name for name, _ in layers]
    return {
        "links": tuple(Link(*link) for link in zip(names, tangents, reversed(cotangents), strict=True)),
        "composed_jvp_difference": difference(tangent, forth) / abs(float(forth)),
        "composed_vjp_difference": difference(cotangent, back) / float(np.max(np.abs(back))),
    }


@dataclass(frozen=True)
class Gradient:
    """The gradient of the five-layer network's loss three ways.

    Attributes:
        arguments: Parameters.
        equal_bits: Whether grad and the VJP with cotangent 1 have the same bits.
        different_elements: Elements whose bits differ.
        vjp_seconds: Of the function and the one VJP.
        jvp_seconds: Of as many JVPs as there are parameters.
        ratio: jvp_seconds / vjp_seconds.
        jvp_difference: The largest one between both.
    """

    arguments: int
    equal_bits: bool
    different_elements: int
    vjp_seconds: float
    jvp_seconds: float
    ratio: float
    jvp_difference: float


def gradient(settings: Settings) -> Gradient:
    """The gradient of a loss is the VJP with cotangent 1: one pass for all parameters."""
    parts = five_layers(settings.seed)
    flat, unravel = raveled(parts.weights)

    def loss(flat: Any) -> Any:
        return five_layer_loss(unravel(flat), parts.x, parts.target)

    found, (pulled,) = grad(loss)(flat), vjp(loss, flat)[1](1.0)
    columns: list[Array] = []

    def by_jvps() -> None:
        columns[:] = [jacobian(loss, "forward")(flat)]

    back, forth = median_seconds([lambda: vjp(loss, flat)[1](1.0), by_jvps], settings.repetitions)
    different = int(np.sum(found.view(np.uint64) != pulled.view(np.uint64)))
    return Gradient(
        arguments=flat.size,
        equal_bits=found.dtype == pulled.dtype and different == 0,
        different_elements=different,
        vjp_seconds=back,
        jvp_seconds=forth,
        ratio=forth / back,
        jvp_difference=difference(columns[0], pulled),
    )
