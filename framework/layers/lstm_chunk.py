"""A chunk of time of an LSTM: the leaf step that runs, and so what is kept or computed again as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Extent, Footprint, Layer, Own, Pair, Params, Spec, require_float
from framework.memory import Array
from framework.parameters import ParameterSpec, Uniform


def cell(params: Params, x: Any, hidden: Any, memory: Any) -> tuple[Any, Any]:
    """Returns h and c of one step of time by the definition (see `LSTM`), given its inputs (B, in) and those before it."""
    gates = np.matmul(x, params["weight_ih"].T) + np.matmul(hidden, params["weight_hh"].T) + params["bias"]
    width = hidden.shape[-1]
    i, f, g, o = (gates[:, k * width : (k + 1) * width] for k in range(4))
    memory = _sigmoid(f) * memory + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(memory), memory


def _sigmoid(x: Any) -> Any:
    return np.exp(-np.logaddexp(0, -x))


@dataclass(frozen=True)
class LSTMChunk(Layer):
    """Some steps of time of an LSTM, from the state that the chunk before hands on.

    Shapes: x (B, T, in), of which steps start..stop-1 are read; the chunk before, (…, B, H); the output (steps + 2, B, H): h of each
    step, and the state that is handed on, h and c of the last one. Chunk 0 starts from zero and has x alone. Parameters: see `LSTM`.

    Own residuals: the gates i, f, g and o of each step, (steps, B, 4 H), and the state at the start. All c and h follow from these again,
    without a product. The VJP needs x; its cotangents are zero but in the chunk's own steps and in the state handed on.

    Attributes:
        features: H.
        number: Which chunk it is.
        chunks: How many there are.
    """

    features: int
    number: int
    chunks: int

    def span(self, length: int) -> tuple[int, int]:
        """The steps of time, of so many. Chunks are equally long but for the last ones, which may be shorter, even empty."""
        each = -(-length // self.chunks)
        return min(length, self.number * each), min(length, (self.number + 1) * each)

    def parameters(self, x: Any) -> dict[str, ParameterSpec]:
        x, width = x[0] if isinstance(x, tuple) else x, 4 * self.features
        start = Uniform(1 / math.sqrt(self.features))
        return {
            "weight_ih": ParameterSpec((width, x.shape[-1]), x.dtype, start, ("weight_ih_l0",)),
            "weight_hh": ParameterSpec((width, self.features), x.dtype, start, ("weight_hh_l0",)),
            "bias": ParameterSpec((width,), x.dtype, start, ("bias_ih_l0", "bias_hh_l0")),
        }

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        x, before = x if isinstance(x, tuple) else (x, None)
        start, stop = self.span(x.shape[1])
        hidden = memory = np.zeros((len(x), self.features), x.dtype)
        if before is not None:
            hidden, memory = before[-2], before[-1]
        rows = []
        for t in range(start, stop):
            hidden, memory = cell(params, x[:, t], hidden, memory)
            rows.append(hidden)
        return np.stack([*rows, hidden, memory])

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        x, before = _two(x)
        steps, batch, width = self._sizes(x)
        y = context.empty((steps + 2, batch, self.features), x.dtype, "activations")
        gates = context.empty((steps, batch, 4 * self.features), x.dtype, "residuals")
        own: Own = (gates,)
        if before is not None:
            start = context.empty((2, batch, self.features), x.dtype, "residuals")
            start[...] = before[-2:]
            own = gates, start
        scratch = context.empty((self._forward_scratch(steps, batch, width),), x.dtype, "workspace")
        self._run(params, x, before, y, gates, scratch)
        return y, own

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        several, gates = isinstance(x, tuple), own[0]
        x, _ = _two(x)
        steps, batch, width = self._sizes(x)
        x_cotangent = state_cotangent = None
        if context.wanted[0]:
            x_cotangent = context.empty((batch, steps, width), x.dtype, "cotangents")
        if several and context.wanted[1]:
            state_cotangent = context.empty((2, batch, self.features), x.dtype, "cotangents")
        scratch = context.empty((self._vjp_scratch(steps, batch, width),), x.dtype, "workspace")
        moved, scratch = _cut(scratch, gates.shape)
        values, scratch = _cut(scratch, (steps + 1, batch, self.features))
        values[0] = own[1][1] if several else 0
        with kernels.small_buffers():
            state = self._back(params, gates, values, cotangent, moved, scratch, carry=several)
        if state_cotangent is not None:
            state_cotangent[...] = state
        values[0] = own[1][0] if several else 0
        rows, part = kernels.as_rows(moved), self._part(x, scratch)
        kernels.matmul(rows.T, part, out=grads["weight_ih"])
        kernels.matmul(rows.T, kernels.as_rows(values[:steps]), out=grads["weight_hh"])
        np.add.reduce(rows, axis=0, out=grads["bias"])
        if x_cotangent is not None:
            kernels.matmul(rows, params["weight_ih"], out=part)
            x_cotangent[...] = part.reshape(steps, batch, width).swapaxes(0, 1)
        return (x_cotangent, state_cotangent) if several else x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        (x, before), (x_tangent, before_tangent) = _two(x), _two(x_tangent)
        steps, batch, width = self._sizes(x)
        shape = (steps + 2, batch, self.features)
        y, tangent = (context.empty(shape, x.dtype, "activations") for _ in range(2))
        scratch = context.empty((self._jvp_scratch(steps, batch, width),), x.dtype, "workspace")
        gates, scratch = _cut(scratch, (steps, batch, 4 * self.features))
        moved, scratch = _cut(scratch, gates.shape)
        self._run(params, x, before, y, gates, scratch)
        rows, part = kernels.as_rows(moved), self._part(x, scratch)
        kernels.matmul(part, params_tangent["weight_ih"].T, out=rows)
        part = self._part(x_tangent, scratch)
        rows += kernels.matmul(part, params["weight_ih"].T, out=kernels.front(scratch[part.size :], rows.shape))
        with kernels.small_buffers():
            rows += params_tangent["bias"]
            earlier = None if before is None else (before, before_tangent)
            self._push((params, params_tangent), earlier, (y, tangent), (gates, moved), scratch)
        return y, tangent

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        x, before = _two(x)
        require_float(self, x)
        if len(x.shape) != 3 or not x.shape[1]:
            raise ValueError(
                f"an LSTM takes an array of floats of shape (batch, time, features) with at least one step of time, but got {x}"
            )
        batch, length, width = x.shape
        start, stop = self.span(length)
        steps, item, features = stop - start, x.dtype.itemsize, self.features
        own = [Spec((steps, batch, 4 * features), x.dtype)]
        extents = [Extent(1, start, stop)]
        if before is not None:
            own.append(Spec((2, batch, features), x.dtype))
            extents.append(Extent(0, before.shape[0] - 2, before.shape[0]))
        flops = steps * batch * 4 * features * (2 * (width + features) + 12)
        return Footprint(
            output=Spec((steps + 2, batch, features), x.dtype),
            own=tuple(own),
            needs_input=(True,) if before is None else (True, False),
            forward_workspace=item * self._forward_scratch(steps, batch, width),
            backward_workspace=item * self._vjp_scratch(steps, batch, width),
            jvp_workspace=item * self._jvp_scratch(steps, batch, width),
            forward_flops=flops,
            backward_flops=2 * flops,
            cotangent_aliases=tuple(False for _ in extents),
            cotangent_extents=tuple(extents) if self.chunks > 1 else (),
        )

    def _sizes(self, x: Array) -> tuple[int, int, int]:
        """Steps of time, examples, and the size of an input."""
        start, stop = self.span(x.shape[1])
        return stop - start, len(x), x.shape[2]

    # Elements of scratch: inputs step by step, or the gates and h of one step, and two numbers a gate; more in turn of what the rules below hold.
    def _forward_scratch(self, steps: int, batch: int, width: int) -> int:
        return max(batch * steps * width, 5 * batch * self.features + 8 * self.features)

    def _vjp_scratch(self, steps: int, batch: int, width: int) -> int:
        lasting = 4 * steps * self.features + (steps + 1) * self.features
        block = kernels.block_rows(steps, batch * self.features)
        return batch * (lasting + max(steps * width, (2 + block) * self.features))

    def _jvp_scratch(self, steps: int, batch: int, width: int) -> int:
        gates = 4 * batch * steps * self.features
        run = self._forward_scratch(steps, batch, width)
        return 2 * gates + max(run, batch * steps * width + gates, 6 * batch * self.features)

    def _part(self, x: Array, scratch: Array) -> Array:
        """Copies the chunk's part of the input, step after step, into scratch: rows (steps · B, in)."""
        steps, batch, width = self._sizes(x)
        part, _ = _cut(scratch, (steps, batch, width))
        part[...] = x[:, slice(*self.span(x.shape[1]))].swapaxes(0, 1)
        return kernels.as_rows(part)

    def _run(self, params: Params, x: Array, before: Array | None, y: Array, gates: Array, scratch: Array) -> None:
        """Writes the output and the gates. All inputs go through one product; only that with h has to wait for the step before.

        All four gates are one tanh, since the sigmoid of a is ½ + ½·tanh(a/2). Of a gate that is nearly shut it has fewer digits than 1/(1 + exp(-a)): its
        error is a rounding of 1, not of the gate.
        """
        kernels.matmul(self._part(x, scratch), params["weight_ih"].T, out=kernels.as_rows(gates))
        product, rest = _cut(scratch, (4 * self.features, len(x)))
        spare, _ = _cut(scratch, (len(x), self.features))  # when the product has been added
        column, rest = _cut(rest, (self.features, len(x)))
        (factor, shift), _ = _cut(rest, (2, 4 * self.features))
        factor[...], shift[...] = 0.5, 0.5
        _quarters(factor)[2][...], _quarters(shift)[2][...] = 1, 0  # g is a tanh itself
        hidden, memory = None, y[-1]
        memory[...] = 0 if before is None else before[-1]
        if before is not None:
            hidden = before[-2]
        with kernels.small_buffers():
            gates += params["bias"]
            for each, row in zip(gates, y, strict=False):
                if hidden is not None:
                    # BLAS takes half the time for few rows this way around, and for two of them a third with h in columns.
                    column[...] = hidden.T
                    each += kernels.matmul(params["weight_hh"], column, out=product).T
                each *= factor
                np.tanh(each, out=each)
                each *= factor
                each += shift
                i, f, g, o = _quarters(each)
                memory *= f
                memory += np.multiply(i, g, out=spare)
                np.tanh(memory, out=row)
                row *= o
                hidden = row
        y[-2] = hidden

    def _back(
        self, params: Params, gates: Array, values: Array, cotangent: Array, moved: Array, scratch: Array, carry: bool
    ) -> Array:
        """Goes back through time: writes the cotangents of the gates before their activations, and returns those of the state.

        Each is one number times the cotangent of c (of i, f and g) or of h (of o), as the latter is on its way to c. These numbers do not
        wait for cotangents, so they are written for many steps at once, where their products come to stand.

        Args:
            params: The parameters.
            gates: The gates.
            values: c at the start in row 0; on return rows 1.. hold h of each step.
            cotangent: Of the output.
            moved: Where the gates' cotangents go.
            scratch: Room for the state's two values, which are returned, and one of each step of a block.
            carry: Whether there is a chunk before.
        """
        state, scratch = _cut(scratch, (2, *cotangent.shape[1:]))
        hidden, memory = state
        for before, each, value in zip(values, gates, values[1:], strict=False):
            i, f, g, _ = _quarters(each)
            np.multiply(f, before, out=value)
            value += np.multiply(i, g, out=hidden)
        state[...] = cotangent[-2:]
        steps = kernels.row_blocks(len(gates), hidden.size)
        for block in reversed([*steps]):  # in which c at the end of the block before is still what it was
            past, value, to = values[:-1][block], values[1:][block], moved[block]
            slope, _ = _cut(scratch, value.shape)
            _write_slopes(gates[block], past, value, to, slope)
            for t in reversed(range(len(value))):
                hidden += cotangent[block.start + t]
                np.multiply(hidden, slope[t], out=slope[t])
                memory += slope[t]
                last = _quarters(to[t])[3]
                last *= hidden
                both = to[t].reshape(len(hidden), 4, self.features)[:, :3]
                both *= memory[:, None]
                memory *= _quarters(gates[block.start + t])[1]
                if block.start + t or carry:
                    kernels.matmul(to[t], params["weight_hh"], out=hidden)
        return state

    def _push(
        self, params: Pair[Params], before: Pair[Array] | None, outputs: Pair[Array], gates: Pair[Array], scratch: Array
    ) -> None:
        """Goes forward through time with tangents: writes that of the output; each argument is a pair of values and tangents.

        Args:
            params: The parameters.
            before: The output of the chunk before.
            outputs: The output, and where its tangent goes.
            gates: The gates, and the tangent of the inputs' share of them before their activations, which is overwritten.
            scratch: Room for six values of the state.
        """
        y, tangent = outputs
        product, scratch = _cut(scratch, (4 * self.features, y.shape[1]))
        (memory, spare), _ = _cut(scratch, (2, *y.shape[1:]))
        moving = tangent[-1]
        memory[...] = 0 if before is None else before[0][-1]
        moving[...] = 0 if before is None else before[1][-1]
        last = None if before is None else (before[0][-2], before[1][-2])
        for t, (each, moved) in enumerate(zip(*gates, strict=True)):
            if last is not None:
                for hidden, which in zip(last, reversed(params), strict=True):
                    moved += kernels.matmul(which["weight_hh"], hidden.T, out=product).T
            (i, f, g, o), (to_i, to_f, to_g, to_o) = _quarters(each), _quarters(moved)
            for to, gate in ((to_i, i), (to_f, f), (to_o, o)):
                _times_slope(to, gate, spare)
            _tanh_slope(g, spare)
            to_g *= spare
            moving *= f
            to_f *= memory
            moving += to_f
            to_i *= g
            moving += to_i
            to_g *= i
            moving += to_g
            memory *= f
            memory += np.multiply(i, g, out=spare)
            np.tanh(memory, out=spare)
            to_o *= spare
            _tanh_slope(spare, spare)
            spare *= o
            spare *= moving
            np.add(spare, to_o, out=tangent[t])
            last = y[t], tangent[t]
        tangent[-2] = 0 if last is None else last[1]


def _two(x: Any) -> tuple[Any, Any]:
    """The input, and the chunk before or None."""
    return x if isinstance(x, tuple) else (x, None)


def _cut(scratch: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Takes an array of a shape from flat scratch; returns it and what is left."""
    taken = kernels.front(scratch, shape)
    return taken, scratch[taken.size :]


def _quarters(gates: Array) -> list[Array]:
    """Views of i, f, g and o."""
    width = gates.shape[-1] // 4
    return [gates[..., k * width : (k + 1) * width] for k in range(4)]


def _write_slopes(gates: Array, past: Array, value: Array, to: Array, slope: Array) -> None:
    """Writes of some steps how c moves with the gates i, f and g before their activations, and h with o and c.

    Args:
        gates: (steps, B, 4 H).
        past: c before each step, (steps, B, H).
        value: c after each step; overwritten with h.
        to: Where the slopes of the gates go.
        slope: Where that of c goes.
    """
    (i, f, g, o), (to_i, to_f, to_g, to_o) = _quarters(gates), _quarters(to)
    for each, target in ((i, to_i), (f, to_f), (o, to_o)):
        np.subtract(1, each, out=target)
        target *= each
    to_i *= g
    to_f *= past
    _tanh_slope(g, to_g)
    to_g *= i
    np.tanh(value, out=value)
    to_o *= value
    _tanh_slope(value, slope)
    slope *= o
    value *= o


def _times_slope(out: Array, y: Array, spare: Array) -> None:
    """Multiplies by y (1 - y), the slope of a sigmoid whose value is y."""
    np.subtract(1, y, out=spare)
    spare *= y
    out *= spare


def _tanh_slope(y: Array, out: Array) -> None:
    """Writes 1 - y², the slope of a tanh whose value is y; `out` may be y."""
    np.multiply(y, y, out=out)
    np.subtract(1, out, out=out)
