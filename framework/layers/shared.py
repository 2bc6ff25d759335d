"""Shared: tied weights."""

from __future__ import annotations

from typing import Any

from framework.layers.chain import Composite, context_of
from framework.layers.layer import Context, Layer, Params
from framework.layers.steps import Step
from framework.memory import Array


class Shared(Composite):
    """A layer some of whose parameters are those of another layer: tied weights (Press and Wolf 2017, arXiv 1608.05859).

    ``Chain(embedding=Embedding(256, 64, 32), …, head=Shared(Linear(256, bias=False), weight="embedding.token"))``

    A shared parameter is one array under the other layer's name: it starts as that layer says, is counted, decayed and saved once, and
    its cotangent is the sum of all parts. The VJP of the last step that uses it writes its part, the others add theirs, each through
    scratch of the parameter's size.

    Args:
        layer: A leaf layer.
        **names: For each of its parameters that is another's, that one's name as it is seen from a chain that holds both layers: of
            several chains around this layer, from the innermost one that has such a layer. Shapes and dtypes must be equal.

    >>> from framework.layers import Chain, Embedding, Linear, Spec
    >>> chain = Chain(embedding=Embedding(9, 5, 4), head=Shared(Linear(9, bias=False), weight="embedding.token"))
    >>> [*chain.parameters(Spec.of((2, 5), "uint8"))]
    ['embedding.token', 'embedding.position']
    """

    def __init__(self, layer: Layer, /, **names: str) -> None:
        if isinstance(layer, Composite) or not isinstance(layer, Layer):
            raise TypeError(
                f"Shared takes a leaf layer, but got {layer!r}; share the parameters of the layers inside one by one"
            )
        if not names or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError(
                "Shared takes for each parameter that is another layer's the name of that, as weight='embedding.token', but "
                f"got {names or 'none'}"
            )
        self.layer = layer
        self.names = names

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        self._require(params)
        return self.layer.apply(params, x, context_of(self.layer, "", context))

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        self._require(params)
        return self.layer.jvp(params, x, params_tangent, x_tangent, context_of(self.layer, "", context))

    def _require(self, params: Params) -> None:
        for local, name in self.names.items():
            if local not in params:
                raise ValueError(
                    f"{self.layer.kind} shares its {local} with {name!r}, which is not among the parameters given; run a chain that "
                    "holds both layers"
                )

    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        steps.append(Step(path or self.layer.kind, self.layer, (source,), stage or 0, shared=self.names))
        return len(steps) - 1
