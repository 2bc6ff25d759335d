"""Layers and losses as NumPy functions whose derivatives are their hand-written rules, so that adapters are plain NumPy code.

What an adapter does around them (a view with other axes, parts of a parameter joined) is differentiated by tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from framework import Key, Layer, Ledger, Loss
from framework.differentiation import custom_rule, jvp
from framework.layers import Context, Spec


class Unsupported(Exception):  # noqa: N818 - it is no error: it says why a sample is not compared
    """Ours have no such function; the message says what is missing."""


Function = Callable[..., Any]


def unless(condition: bool, reason: str) -> None:
    if not condition:
        raise Unsupported(reason)


#: The kinds of layers and losses that were run.
RUN: set[type] = set()


def spec_of(a: Any) -> Spec:
    return Spec.of(np.shape(a), a.dtype)


def run(
    layer: Layer, params: dict[str, Any], *inputs: Any, training: bool = True, state: dict[str, Any] | None = None
) -> Any:
    """Returns a leaf layer's output; its VJP and JVP are those by hand, which get only what the footprint says that they need."""
    RUN.add(type(layer))
    count = len(inputs)
    spec = joined([spec_of(x) for x in inputs])
    footprint = layer.footprint(spec, training)
    expected = layer.parameters(spec)
    assert {name: np.shape(p) for name, p in params.items()} == {name: p.shape for name, p in expected.items()}

    def context() -> Context:
        return Context(Ledger(), key=Key(0), training=training, wanted=(True,) * count, states={"": state or {}})

    def arranged(arrays: Any) -> tuple[list[Any], dict[str, Any]]:
        each = list(map(np.ascontiguousarray, arrays))
        return each[:count], dict(zip(params, each[count:], strict=True))

    @custom_rule
    def call(*arrays: Any) -> Any:
        xs, given = arranged(arrays)
        return layer.forward(given, joined(xs), context())[0]

    @call.vjp
    def back(cotangent: Any, y: Any, *arrays: Any) -> Any:
        xs, given = arranged(arrays)
        y, own = layer.forward(given, joined(xs), context())
        grads = {name: np.full_like(p, np.nan) for name, p in given.items()}
        needed = joined([x if need else None for x, need in zip(xs, footprint.needs_input, strict=True)])
        given_y = y if footprint.needs_output else None
        found = layer.vjp(given, needed, given_y, own, np.ascontiguousarray(cotangent), grads, context())
        each = found if count > 1 else (found,)
        return (*(spread(footprint.extent(i), part, xs[i]) for i, part in enumerate(each)), *grads.values())

    @call.jvp
    def forth(tangents: Any, y: Any, *arrays: Any) -> Any:
        xs, given = arranged(arrays)
        moves, moving = arranged([np.zeros_like(a) if t is None else t for a, t in zip(arrays, tangents, strict=True)])
        x_moves = joined([t if x.dtype.kind == "f" else None for x, t in zip(xs, moves, strict=True)])
        return layer.jvp(given, joined(xs), moving, x_moves, context())[1]

    return call(*inputs, *params.values())


def joined(each: list[Any]) -> Any:
    """One input as it is, several as a tuple."""
    return each[0] if len(each) == 1 else tuple(each)


def spread(extent: Any, part: Any, x: Any) -> Any:
    """The cotangent of an input of which a VJP gave the part that is not zero."""
    if extent is None:
        return part
    whole = np.zeros_like(x)
    extent.of(whole)[...] = part
    return whole


def total_of(loss: Loss, y: Any, targets: Any, weights: Any = None) -> tuple[Any, float]:
    """Returns the sum of losses and the count; the sum's VJP is the loss's own, its JVP is traced from the definition."""
    RUN.add(type(loss))
    loss.footprint(spec_of(y), spec_of(targets))

    @custom_rule
    def call(y: Any) -> Any:
        return np.float64(loss.forward(np.ascontiguousarray(y), targets, weights, Context(Ledger()))[0])

    @call.vjp
    def back(cotangent: Any, total: Any, y: Any) -> Any:
        y = np.ascontiguousarray(y)
        own = loss.forward(y, targets, weights, Context(Ledger()))[2]
        return (cotangent * loss.vjp(y, targets, weights, own, Context(Ledger())),)

    @call.jvp
    def forth(tangents: Any, total: Any, y: Any) -> Any:
        return jvp(lambda y: loss.apply(y, targets, weights), (y,), tangents)[1]

    counted = loss.forward(np.zeros(np.shape(y)), targets, weights, Context(Ledger()))[1]
    return call(y), counted


def each_of(loss: Loss, y: Any, targets: Any, weights: Any = None) -> Any:
    """Returns the loss of each example. Their VJP is that of the sum in which each example weighs as much as its cotangent is."""
    RUN.add(type(loss))
    loss.footprint(spec_of(y), spec_of(targets))
    own_weights = np.ones(len(y)) if weights is None else weights

    def forward(y: Any, weights: Any) -> Any:
        return loss.forward(np.ascontiguousarray(y), targets, weights, Context(Ledger()))[2]

    @custom_rule
    def call(y: Any) -> Any:
        one = np.ones(1)
        examples = zip(np.ascontiguousarray(y)[:, None], targets[:, None], own_weights, strict=True)
        return np.array([w * loss.forward(a, t, one, Context(Ledger()))[0] for a, t, w in examples])

    @call.vjp
    def back(cotangent: Any, losses: Any, y: Any) -> Any:
        w = np.ascontiguousarray(cotangent * own_weights)
        return (loss.vjp(np.ascontiguousarray(y), targets, w, forward(y, w), Context(Ledger())),)

    @call.jvp
    def forth(tangents: Any, losses: Any, y: Any) -> Any:
        slope = loss.vjp(np.ascontiguousarray(y), targets, own_weights, forward(y, own_weights), Context(Ledger()))
        return np.reshape(slope * tangents[0], (len(y), -1)).sum(axis=1)

    return call(y)
