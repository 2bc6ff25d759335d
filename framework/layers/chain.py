"""Chain and Residual, and how they flatten to the leaf steps that run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec
from framework.layers.sharing import under_own_names, with_shared
from framework.layers.steps import BATCH, Step, input_specs, layout_of, next_stage
from framework.memory import Array
from framework.parameters import Layout, Parameters, ParameterSpec


class Composite(Layer, ABC):
    """A layer that is made of others and flattens to them.

    Attributes:
        has_stages: Whether it counts as several stages as an element of the outermost chain; else it is one.
    """

    has_stages: ClassVar[bool] = False

    @abstractmethod
    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        """Appends the leaf steps and returns the number of the step (or `BATCH`) that makes the output.

        Args:
            steps: The steps so far.
            path: This layer's name, "" for the outermost chain.
            source: The step that makes the input.
            stage: The stage that contains this layer; None for the outermost chain, and in it for what `has_stages`, which count
                them by `next_stage`.
        """

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns the parameters of all leaf steps by "path.name", in the order of the chain; what is shared once."""
        return self.layout(x).specs

    def statistics(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns the statistics of all leaf steps by "path.name"."""
        return self.layout(x).statistics.specs

    def state(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns the state of all leaf steps by "path.name"."""
        return self.layout(x).state.specs

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        raise self._runs_not("forward")

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        raise self._runs_not("vjp")

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        raise self._runs_not("footprint")

    def _runs_not(self, rule: str) -> NotImplementedError:
        return NotImplementedError(f"{self.kind} has no {rule}; only leaf layers run, composites flatten to them")

    def layout(self, x: Spec) -> Layout:
        """Returns the layout of the flat parameter buffer for an input of spec `x`, and of statistics and state."""
        steps = flatten(self)
        return layout_of(
            steps, input_specs(steps, x, training=False)
        )  # which takes batches that are too small to measure

    def _named(self, params: Params) -> Params:
        """The parameters, and those that layers inside share under the names of these layers."""
        steps: list[Step] = []
        self.flatten_onto(steps, "", BATCH, None)
        return under_own_names(steps, params)


class Chain(Composite):
    """Layers one after the other.

    Args:
        *layers: Layers named "0", "1", ….
        **named: Layers named by keyword, after the positional ones.

    >>> from framework.layers import Linear, ReLU
    >>> [step.path for step in flatten(Chain(Linear(8), act=ReLU()))]
    ['0', 'act']
    """

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        if taken := [name for name in named if name.isdecimal() or "." in name]:
            raise ValueError(
                f"a layer of a Chain cannot be named {taken[0]!r}: names are neither numbers nor have a dot"
            )
        self.layers: dict[str, Layer] = {str(i): layer for i, layer in enumerate(layers)} | named
        for name, layer in self.layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"a Chain takes layers, but {name!r} is {layer!r}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers.values())

    def __len__(self) -> int:
        return len(self.layers)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        params = self._named(params)
        for name, layer in self.layers.items():
            x = layer.apply(_below(name, params), x, context_of(layer, name, context))
        return x

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """Runs the layers' JVPs one after the other and keeps the current pair alone, so memory does not grow with depth."""
        params, params_tangent = self._named(params), self._named(params_tangent)
        for name, layer in self.layers.items():
            inner = _below(name, params), x, _below(name, params_tangent), x_tangent
            x, x_tangent = layer.jvp(*inner, context_of(layer, name, context))
            del inner  # holds the pair before
        return x, x_tangent

    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        for name, layer in self.layers.items():
            inner = f"{path}.{name}" if path else name
            counts = isinstance(layer, Composite) and layer.has_stages
            within = next_stage(steps) if stage is None and not counts else stage
            source = _append(layer, steps, inner, source, within)
        return source


class Branch(Composite):
    """A layer's output together with its input: the inner steps and one leaf step that takes both.

    Args:
        inner: A layer.
        shortcut: What the input goes through on its way to the leaf step; None for nothing. Its steps come after the inner ones, below
            the name "shortcut".

    Attributes:
        end: The leaf step; its path is its kind in lower case.
    """

    end: Layer

    def __init__(self, inner: Layer, shortcut: Layer | None = None) -> None:
        self.inner, self.shortcut = inner, shortcut
        if shortcut is not None and isinstance(inner, Chain) and "shortcut" in inner.layers:
            raise ValueError(
                f"the inner chain of a {self.kind} with a shortcut has a layer named 'shortcut', too: rename that"
            )

    def ordered(self, inner: Any, skip: Any) -> tuple[Any, Any]:
        """Returns the inner output and the input in the order in which the leaf step takes them."""
        return inner, skip

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        params = self._named(params)
        y = self.inner.apply(self._inside(params), x, self._inner_context(context))
        if self.shortcut is not None:
            x = self.shortcut.apply(_below("shortcut", params), x, context_of(self.shortcut, "shortcut", context))
        return self.end.apply({}, self.ordered(y, x), context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        params, params_tangent = self._named(params), self._named(params_tangent)
        y, tangent = self.inner.jvp(
            self._inside(params), x, self._inside(params_tangent), x_tangent, self._inner_context(context)
        )
        if self.shortcut is not None:
            own, moving = _below("shortcut", params), _below("shortcut", params_tangent)
            x, x_tangent = self.shortcut.jvp(own, x, moving, x_tangent, context_of(self.shortcut, "shortcut", context))
        return self.end.jvp({}, self.ordered(y, x), {}, self.ordered(tangent, x_tangent), context)

    # The names of a chain are enough: "inner" is only put before those of other layers.
    def _inside(self, params: Params) -> Params:
        return params if isinstance(self.inner, Chain) else _below("inner", params)

    def _inner_context(self, context: Context) -> Context:
        return context if isinstance(self.inner, Chain) else context_of(self.inner, "inner", context)

    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        prefix = f"{path}." if path else ""
        within = 0 if stage is None else stage
        if isinstance(self.inner, Chain):  # its names are enough
            inner = self.inner.flatten_onto(steps, path, source, within)
        else:
            inner = _append(self.inner, steps, f"{prefix}inner", source, within)
        if self.shortcut is not None:
            source = _append(self.shortcut, steps, f"{prefix}shortcut", source, within)
        steps.append(Step(f"{prefix}{self.end.kind.lower()}", self.end, self.ordered(inner, source), within))
        return len(steps) - 1


class Residual(Branch):
    """x + inner(x), or shortcut(x) + inner(x): the steps of both branches and one Add.

    Args:
        inner: A layer whose output has the shape and dtype of its input, or of the shortcut's output.
        shortcut: Brings the input to the shape of the inner output where the two differ, as a convolution of one pixel with a stride
            does (He et al. 2015, arXiv 1512.03385, the projection). None adds the input itself.
    """

    def __init__(self, inner: Layer, shortcut: Layer | None = None) -> None:
        super().__init__(inner, shortcut)
        self.end = Add()


class Add(Layer):
    """y = inner + skip, the leaf step at the end of a Residual.

    Shapes: both inputs and the output (...), equal. The VJP passes the cotangent itself to both.
    """

    piecewise_linear = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return x[0] + x[1]

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        inner, skip = x
        y = context.like(inner, "activations")
        np.add(inner, skip, out=y)
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        return tuple(cotangent if wanted else None for wanted in context.wanted)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward({}, x, context)[0], self.forward({}, x_tangent, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        inner, skip = x
        if inner != skip:
            raise ValueError(
                f"a Residual adds its input and its inner output, which must be equal in shape and dtype, but the input is "
                f"{skip} and the inner output {inner}; a shortcut gives the input another shape: Residual(inner, shortcut)"
            )
        return Footprint(
            output=inner,
            needs_input=(False, False),
            forward_flops=inner.size,
            cotangent_aliases=(True, True),
            forward_in_place=True,
        )


def flatten(layer: Layer) -> tuple[Step, ...]:
    """Returns the leaf steps of a layer in the order in which they run."""
    steps: list[Step] = []
    _append(layer, steps, "", BATCH, None)
    if not steps:
        raise ValueError("the chain is empty: it needs at least one layer")
    paths = [step.path for step in steps]
    if repeated := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(
            f"two steps are named {repeated[0]!r}; name the layers of a Residual's chain other than 'add', of a Concat's other than 'join'"
        )
    return with_shared(tuple(steps))


def advance_state(layer: Layer, parameters: Parameters, statistics: Array) -> None:
    """Ends a step for layers that keep a state: takes what they told of the batch into it.

    Args:
        layer: The model.
        parameters: Its parameters, with its state.
        statistics: The statistics' part of a mean gradient (see `Layout.parts`).
    """
    if parameters.state is None:
        return
    told, kept = parameters.layout.statistics.grouped_views(statistics), parameters.state.by_layer()
    for step in flatten(layer):
        if step.path in kept:
            step.layer.advance(kept[step.path], told.get(step.path, {}))


def _append(layer: Layer, steps: list[Step], path: str, source: int, stage: int | None) -> int:
    if isinstance(layer, Composite):
        return layer.flatten_onto(steps, path, source, stage)
    steps.append(Step(path or layer.kind, layer, (source,), stage or 0))
    return len(steps) - 1


def _below(name: str, params: Mapping[str, Array]) -> Params:
    """The parameters of the element `name` of a composite, by their names in there."""
    prefix = f"{name}."
    return {long.removeprefix(prefix): array for long, array in params.items() if long.startswith(prefix)}


def context_of(layer: Layer, name: str, context: Context) -> Context:
    """The context of the element `name` of a composite, with the key that the executor gives it."""
    path = ".".join(filter(None, (context.owner, name)))
    key = context.key if isinstance(layer, Composite) else context.key.fold(path)
    return Context(context.ledger, path, key, context.training, context.wanted, states=context.states)
