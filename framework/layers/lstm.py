"""LSTM: a recurrent layer over time, cut into chunks that are kept or computed again like the layers of a chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework.layers.chain import Composite, context_of
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec
from framework.layers.lstm_chunk import LSTMChunk, cell
from framework.layers.steps import Step, next_stage
from framework.memory import Array

_NAMES = ("weight_ih", "weight_hh", "bias")


@dataclass(frozen=True)
class LSTM(Composite):
    """Long short-term memory over time (Hochreiter & Schmidhuber 1997; with the forget gate of Gers et al. 2000), from a state of zero.

    With a = W_ih x_t + W_hh h_{t-1} + b cut into four: i, f, o = σ(a_i), σ(a_f), σ(a_o); g = tanh(a_g); c_t = f c_{t-1} + i g;
    h_t = o tanh(c_t). The output is h of every step.

    Shapes: x (B, T, in), y (B, T, H); weight_ih (4 H, in), weight_hh (4 H, H), bias (4 H,), the gates in the order i, f, g, o, which is that of
    ``torch.nn.LSTM(batch_first=True)``. Its two biases are one here: their sum; `weights` reads and writes its names. All start uniform in
    ±1/√H.

    It flattens to a step for each chunk of time, which hands its state to the next, and one that puts the outputs together. The chunks
    share the parameters. Of an LSTM that is an element of the outermost chain each chunk is a stage of its own, so policies keep what
    chunks hand on and compute the gates inside of them again: `chunks` near √T holds the least. Several layers are several LSTMs.

    Attributes:
        features: H.
        chunks: How many chunks time is cut into, equally long but for the last ones, which may be shorter, even empty.
    """

    features: int
    chunks: int = 8

    has_stages: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.features < 1 or self.chunks < 1:
            raise ValueError(
                f"an LSTM has at least one feature and one chunk, but got features={self.features} and chunks={self.chunks}"
            )

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        hidden = memory = np.zeros((len(x), self.features), x.dtype)
        rows = []
        for t in range(x.shape[1]):
            hidden, memory = cell(params, x[:, t], hidden, memory)
            rows.append(hidden)
        return np.stack(rows, axis=1)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        pairs: list[tuple[Array, Array]] = []
        for number in range(self.chunks):
            chunk = LSTMChunk(self.features, number, self.chunks)
            inputs = ((x, x_tangent), *pairs[-1:])
            values, tangents = zip(*inputs, strict=True) if number else inputs[0]
            within = context_of(chunk, f"chunk{number}", context)
            pairs.append(chunk.jvp(params, values, params_tangent, tangents, within))
        output = LSTMOutput(self.chunks)
        values, tangents = zip(*pairs, strict=True) if self.chunks > 1 else pairs[0]
        return output.jvp({}, values, {}, tangents, context_of(output, "output", context))

    def flatten_onto(self, steps: list[Step], path: str, source: int, stage: int | None) -> int:
        prefix = f"{path}." if path else ""
        first = next_stage(steps) if stage is None else stage
        names = {local: f"{prefix}{local}" for local in _NAMES}
        states: list[int] = []
        for number in range(self.chunks):
            chunk = LSTMChunk(self.features, number, self.chunks)
            within = first + (number if stage is None else 0)
            steps.append(Step(f"{prefix}chunk{number}", chunk, (source, *states[-1:]), within, names=names))
            states.append(len(steps) - 1)
        steps.append(Step(f"{prefix}output", LSTMOutput(self.chunks), tuple(states), steps[-1].stage))
        return len(steps) - 1


@dataclass(frozen=True)
class LSTMOutput(Layer):
    """h of every step of time, from the outputs of an LSTM's chunks: the leaf step at its end.

    Shapes: each chunk's (steps + 2, B, H), see `LSTMChunk`; y (B, T, H). The VJP needs neither: cotangents are parts of ȳ, and zero for
    the states.

    Attributes:
        chunks: How many there are.
    """

    chunks: int

    piecewise_linear = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.concatenate([each[:-2].swapaxes(0, 1) for each in _all(x)], axis=1)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        states = _all(x)
        _, batch, features = states[0].shape
        y = context.empty((batch, sum(len(each) - 2 for each in states), features), states[0].dtype, "activations")
        for number, each in enumerate(states):
            y[:, self._span(number, y.shape[1])] = each[:-2].swapaxes(0, 1)
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        found: list[Array | None] = []
        batch, length, features = cotangent.shape
        for number, wanted in enumerate(context.wanted):
            if not wanted:
                found.append(None)
                continue
            part = cotangent[:, self._span(number, length)].swapaxes(0, 1)
            found.append(each := context.empty((len(part) + 2, batch, features), cotangent.dtype, "cotangents"))
            each[:-2] = part
            each[-2:] = 0
        return tuple(found) if self.chunks > 1 else found[0]

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward({}, x, context)[0], self.forward({}, x_tangent, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        states: tuple[Spec, ...] = _all(x)
        length = sum(spec.shape[0] - 2 for spec in states)
        return Footprint(
            output=Spec((states[0].shape[1], length, states[0].shape[2]), states[0].dtype),
            needs_input=tuple(False for _ in states),
            cotangent_aliases=tuple(False for _ in states),
        )

    def _span(self, number: int, length: int) -> slice:
        return slice(*LSTMChunk(1, number, self.chunks).span(length))


def _all(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
