"""Leaf steps: what a chain flattens to, their inputs' specs, and the layout of their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from framework.layers.layer import Layer, Spec
from framework.layers.sharing import parameters_of
from framework.parameters import Layout

#: The number by which a step's inputs name the batch.
BATCH = -1


@dataclass(frozen=True)
class Step:
    """A leaf layer at its place in the flattened chain.

    Attributes:
        path: Its name, "block0.attention.qkv".
        layer: The leaf layer.
        inputs: For each input, the step that makes it, or `BATCH`.
        stage: The element of the outermost chain it belongs to.
        shared: Parameters that are another step's, by local name: that one's name, in full once `flatten` has found it.
        names: Full names of parameters that are no step's alone but a composite's, by local name.
    """

    path: str
    layer: Layer
    inputs: tuple[int, ...]
    stage: int
    shared: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def next_stage(steps: Sequence[Step]) -> int:
    """The stage that begins after some steps."""
    return steps[-1].stage + 1 if steps else 0


def input_specs(steps: tuple[Step, ...], x: Spec, training: bool = True) -> list[Any]:
    """Returns the input spec of each step (a tuple of specs where it has several inputs).

    Raises:
        ValueError: A step does not take its input; the message names its path.
    """
    outputs: dict[int, Spec] = {BATCH: x}
    found: list[Any] = []
    for number, step in enumerate(steps):
        specs = tuple(outputs[source] for source in step.inputs)
        found.append(specs[0] if len(specs) == 1 else specs)
        try:
            outputs[number] = step.layer.footprint(found[-1], training).output
        except ValueError as error:
            raise ValueError(f"step {step.path or step.layer.kind!r}: {error}") from error
    return found


def layout_of(steps: tuple[Step, ...], specs: Sequence[Any]) -> Layout:
    """Returns the layout of the parameters, statistics and state of leaf steps, given their inputs' specs.

    Raises:
        ValueError: A step shares a parameter that is not there, or that has another shape or dtype.
    """
    each = list(zip(steps, specs, strict=True))
    parameters, aliases = parameters_of(steps, specs)
    return Layout(
        parameters,
        {f"{step.path}.{name}": spec for step, x in each for name, spec in step.layer.statistics(x).items()},
        {f"{step.path}.{name}": spec for step, x in each for name, spec in step.layer.state(x).items()},
        aliases,
    )
