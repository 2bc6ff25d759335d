"""Dual numbers through plans: chains, losses and parameters whose every array is a pair of a value and its tangent.

A pair is one array with a leading axis of 2, so an ordinary plan runs on pairs by the ordinary executor. The forward pass of a dual
chain is forward mode. Its backward pass sends pairs (d, ḋ) back, d being the cotangent of ordinary reverse mode and ḋ how it moves
when the parameters do; so the parameters' cotangents are (∇L, H v). This is forward mode over reverse mode (Pearlmutter 1994, "Fast
exact multiplication by the Hessian"), and it holds at most twice what the gradient alone would. Where the derivatives' own
movement is left out, each layer taken as linear, the tangents are those of Gauss and Newton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from framework.layers import Composite, Context, Footprint, Layer, Spec, Step
from framework.layers.layer import Own, Params
from framework.losses import Loss, LossFootprint
from framework.memory import Array
from framework.parameters import Layout, Parameters, ParameterSpec

#: What the names of tangents end in.
TANGENT = ":tangent"


def pair(spec: Spec) -> Spec:
    """The spec of a value with its tangent; integers do not move and stay what they are."""
    return Spec((2, *spec.shape), spec.dtype) if spec.dtype.kind == "f" else spec


class DualChain(Composite):
    """A chain on pairs. Its parameters are those of the chain and, under names that end in `TANGENT`, their tangents.

    Args:
        layer: The chain.
        linear: Whether each layer is taken as linear at its input: Gauss–Newton.
    """

    def __init__(self, layer: Composite, linear: bool = False) -> None:
        self.layer, self.linear = layer, linear

    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        plain: list[Step] = []
        last = self.layer.flatten_onto(plain, path, source, stage)
        # What is shared, and so added to, is told of pairs.
        steps += [
            replace(
                step,
                layer=Dual(step.layer, self.linear),
                shared=_twice(step.shared),
                names=_twice(step.names),
            )
            for step in plain
        ]
        return last


class DualParameters:
    """Parameters and a direction, as the parameters of a dual chain. Nothing is copied.

    The layout has all parameters first and then all tangents, so the two halves of a flat gradient are ∇L and the product.
    """

    version = 0

    def __init__(self, parameters: Parameters, direction: Parameters) -> None:
        self._parameters, self._direction = parameters, direction
        specs = parameters.layout.specs
        tangents = {name + TANGENT: spec for name, spec in specs.items()}
        self.layout = Layout({**specs, **tangents}, aliases=_twice(parameters.layout.aliases))

    def state_by_layer(self) -> dict[str, dict[str, Array]]:
        return self._parameters.state_by_layer()

    def by_layer(self) -> dict[str, dict[str, Array]]:
        tangents = self._direction.by_layer()
        return {path: _with_tangents(views, tangents[path]) for path, views in self._parameters.by_layer().items()}


@dataclass(frozen=True)
class Dual(Layer):
    """A leaf layer on pairs.

    Shapes: where the layer has (...), this has (2, ...).

    Attributes:
        layer: The layer.
        linear: Whether it is taken as linear at its input.
    """

    layer: Layer
    linear: bool = False

    @property
    def kind(self) -> str:
        return self.layer.kind

    @property
    def _flat(self) -> bool:
        """Whether a moving input does not change the VJP, so that the layer's own VJP serves both halves."""
        return self.linear or self.layer.piecewise_linear

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        specs = self.layer.parameters(_unpaired(x))
        return {**specs, **{name + TANGENT: spec for name, spec in specs.items()}}

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        values, tangents = _halves(x)
        weights, moves = _without_tangents(params)
        plain = self.layer.footprint(_specs(values), context.training)
        if plain.output.dtype.kind != "f":
            return self.layer.forward(weights, values, context)[0], ()
        first = x[0] if isinstance(x, tuple) else x
        if plain.output_aliases_input:
            return first.reshape(2, *plain.output.shape), self.layer.forward(weights, values, context)[1]
        own: Own = ()
        halves = _Halves(context, "activations", [0, 1])
        if self._flat and plain.own:
            value, own = self.layer.forward(weights, values, halves)
            halves.places = [None, 1]  # the JVP computes the value once more
            _, tangent = self.layer.jvp(weights, values, moves, tangents, halves)
        else:
            value, tangent = self.layer.jvp(weights, values, moves, tangents, halves)
        return halves.joined(value, tangent, over=first), own

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        values, tangents = _halves(x)
        weights, moves = _without_tangents(params)
        targets = _without_tangents(grads)
        if self._flat:
            halves = _Halves(context, "cotangents", [])
            value = None if y is None else y[0]
            each = []
            for place, (half, target) in enumerate(zip(cotangent, targets, strict=True)):
                halves.places = [place] * sum(context.wanted)
                each.append(self.layer.vjp(weights, values, value, own, half, target, halves))
            if not isinstance(each[0], tuple):
                return halves.joined(each[0], each[1], over=cotangent)
            return tuple(halves.joined(a, b, over=cotangent) for a, b in zip(*each, strict=True))
        several = isinstance(x, tuple)
        footprint = self.layer.footprint(_specs(values), context.training)
        made: list[Array | None] = []
        for number, (value, wanted) in enumerate(zip(values if several else (values,), context.wanted, strict=True)):
            if wanted and not context.in_place:
                spec = pair(footprint.cotangent(number, _specs(value)))
                made.append(context.empty(spec.shape, spec.dtype, "cotangents"))
            else:
                made.append(cotangent if wanted else None)
        into = tuple(None if each is None else (each[0], each[1]) for each in made)
        self.layer.vjp_with_tangent(
            (weights, moves), (values, tangents), (cotangent[0], cotangent[1]), targets,
            into if several else into[0], context,
        )  # fmt: skip
        return tuple(made) if several else made[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        plain = self.layer.footprint(_unpaired(x), training)
        flat, moves = self._flat, plain.output.dtype.kind == "f"
        rules = [type(self.layer).jvp is Layer.jvp]
        if not flat:
            rules.append(type(self.layer).vjp_with_tangent is Layer.vjp_with_tangent)
        if moves and any(rules) and type(self.layer).apply is Layer.apply:
            raise NotImplementedError(
                f"{self.kind} has no apply, from which its further derivatives would follow: write apply(self, params, x, context)"
            )
        forward = plain.jvp_workspace if moves else plain.forward_workspace
        if flat and plain.own and not plain.output_aliases_input:
            forward = max(plain.forward_workspace, forward + plain.output.nbytes)
        return Footprint(
            output=pair(plain.output),
            own=plain.own if flat else (),
            needs_input=plain.needs_input if flat else tuple(True for _ in plain.needs_input),
            needs_output=flat and plain.needs_output,
            forward_workspace=forward,
            # What a layer takes that is traced over small blocks is little.
            unmeasured=plain.unmeasured or (moves and any(rules) and self.layer.core_axes is None),
            backward_workspace=plain.backward_workspace if flat else plain.hvp_workspace,
            forward_flops=3 * plain.forward_flops,
            backward_flops=2 * plain.backward_flops if flat else 3 * (plain.forward_flops + plain.backward_flops),
            output_aliases_input=plain.output_aliases_input,
            cotangent_aliases=plain.cotangent_aliases if flat else tuple(False for _ in plain.needs_input),
            cotangent_extents=tuple(e and e._replace(axis=e.axis + 1) for e in plain.cotangent_extents),
            # Both halves of an output may lie over those of the input where the value's own half tells all that the tangent needs.
            forward_in_place=plain.forward_in_place and self.layer.piecewise_linear,
            backward_in_place=plain.backward_in_place,
        )


@dataclass(frozen=True)
class DualLoss(Loss):
    """A loss on pairs: its sum is that of the loss, and its VJP gives (∂L/∂y, ∂²L/∂y² ẏ).

    Attributes:
        loss: The loss.
    """

    loss: Loss

    def forward(
        self, y: Array, targets: Array, weights: Array | None, context: Context
    ) -> tuple[float, float, tuple[Array, ...]]:
        return self.loss.forward(y[0], targets, weights, context)

    def vjp(self, y: Array, targets: Array, weights: Array | None, own: tuple[Array, ...], context: Context) -> Array:
        halves = _Halves(context, "cotangents", [1, 0])
        # The product first: it reads the value, over which the cotangent may be written.
        product = self.loss.hvp(y[0], y[1], targets, weights, own, halves)
        both: Array = halves.joined(self.loss.vjp(y[0], targets, weights, own, halves), product, over=y)
        return both

    def footprint(self, y: Spec, targets: Spec) -> LossFootprint:
        plain = self.loss.footprint(_unpaired(y), targets)
        return replace(
            plain,
            backward_workspace=max(plain.backward_workspace, plain.hvp_workspace),
            backward_flops=3 * plain.backward_flops,
        )


class _Halves(Context):
    """Gives a rule the halves of pairs where it asks for its results, so that none is copied.

    A half that is given once more is that of the next pair, for rules with several results.

    Attributes:
        places: Which halves are given next; None gives scratch.
        pairs: The pairs of which a half was asked for.
    """

    __slots__ = ("_category", "_given", "pairs", "places")

    def __init__(self, context: Context, category: str, places: list[int | None]) -> None:
        output = None if context.output is None else _unpaired(context.output)
        super().__init__(
            context.ledger, context.owner, context.key, context.training, context.wanted, context.in_place, output
        )
        self._category, self.places = category, places
        self._given = [0, 0]
        self.pairs: list[Array] = []

    def empty(self, shape: Sequence[int], dtype: Any, category: str) -> Array:
        if category != self._category or not self.places:
            return super().empty(shape, dtype, category)
        place = self.places.pop(0)
        if place is None:
            return super().empty(shape, dtype, "workspace")
        number = self._given[place]
        self._given[place] += 1
        if number == len(self.pairs):
            self.pairs.append(super().empty((2, *shape), dtype, category))
        half: Array = self.pairs[number][place]
        return half

    def like(self, a: Array, category: str) -> Array:
        return a if self.in_place else self.empty(a.shape, a.dtype, category)

    def joined(self, value: Any, tangent: Any, over: Array) -> Any:
        """Returns the pair of two results: the one whose halves they are, `over` if they lie in its halves, or a new one."""
        if value is None or tangent is None:
            return None
        if np.may_share_memory(value, over[0]) and np.may_share_memory(tangent, over[1]):
            return over.reshape(2, *value.shape)
        for made in self.pairs:
            if np.may_share_memory(value, made[0]) and np.may_share_memory(tangent, made[1]):
                return made
        # The rule took its results from elsewhere, or the tangent first.
        made = super().empty((2, *value.shape), value.dtype, self._category)
        made[0], made[1] = value, tangent
        return made


def _unpaired(x: Any) -> Any:
    """The specs of values, given those of pairs."""
    if isinstance(x, tuple):
        return tuple(map(_unpaired, x))
    return Spec(x.shape[1:], x.dtype) if x.dtype.kind == "f" else x


def _halves(x: Any) -> tuple[Any, Any]:
    """Values and tangents of one pair or several; what is not there or does not move has none."""
    if isinstance(x, tuple):
        values, tangents = zip(*map(_halves, x), strict=True)
        return values, tangents
    if x is None or x.dtype.kind != "f":
        return x, None
    return x[0], x[1]


def _specs(x: Any) -> Any:
    return tuple(map(_specs, x)) if isinstance(x, tuple) else Spec.of(x.shape, x.dtype)


def _twice(names: Mapping[str, str]) -> dict[str, str]:
    """Names of parameters, and the same of their tangents."""
    return {**names, **{one + TANGENT: other + TANGENT for one, other in names.items()}}


def _with_tangents(values: Mapping[str, Array], tangents: Mapping[str, Array]) -> Params:
    return {**values, **{name + TANGENT: tangent for name, tangent in tangents.items()}}


def _without_tangents(params: Params) -> tuple[Params, Params]:
    """The parameters of a layer (or their cotangents), and the tangents."""
    values = {name: array for name, array in params.items() if not name.endswith(TANGENT)}
    return values, {name: params[name + TANGENT] for name in values}
