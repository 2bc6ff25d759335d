"""What the executor reads of each leaf step at every operation, looked up once a plan: where layers are small, looking up is what takes long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from checkpointing.costs import Costs
from checkpointing.operations import Value, cotangent, output, residuals
from framework.layers import Context, Footprint, Layer, Step
from framework.memory import Array


class Source(NamedTuple):
    """An input of a step: who makes it, and its cotangent."""

    number: int
    cotangent: Value


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf step as a run of a plan meets it.

    Attributes:
        layer, path, footprint: Its layer, its name, and its bytes.
        params: Its parameters by local name.
        context: What its rules are given; in place or not, and its key, are set at each operation.
        inputs: The values that the forward reads.
        read: Those of them that the VJP reads, None for the others.
        sources: Its inputs.
        output, residuals, cotangent: a[s], r[s] and d[s].
    """

    layer: Layer
    path: str
    footprint: Footprint
    params: dict[str, Array]
    context: Context
    inputs: tuple[Value, ...]
    read: tuple[Value | None, ...]
    sources: tuple[Source, ...]
    output: Value
    residuals: Value
    cotangent: Value


def leaves_of(
    steps: Sequence[Step], costs: Costs, params: Mapping[str, dict[str, Array]], context: Callable[..., Context]
) -> list[Leaf]:
    """Returns the leaves of a chain, in order.

    Args:
        steps: Its steps.
        costs: Their costs.
        params: Parameters by the path of their step, then by local name.
        context: Makes a context, given ``owner``, ``wanted`` and ``output``.
    """
    found = []
    for number, (step, cost) in enumerate(zip(steps, costs.steps, strict=True)):
        footprint, inputs = cost.footprint, tuple(map(output, step.inputs))
        found.append(
            Leaf(
                layer=step.layer,
                path=step.path,
                footprint=footprint,
                params=params.get(step.path, {}),
                context=context(owner=step.path, wanted=cost.wanted, output=footprint.output),
                inputs=inputs,
                read=tuple(value if need else None for value, need in zip(inputs, footprint.needs_input, strict=True)),
                sources=tuple(Source(source, cotangent(source)) for source in step.inputs),
                output=output(number),
                residuals=residuals(number),
                cotangent=cotangent(number),
            )
        )
    return found
