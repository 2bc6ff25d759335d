"""Causal multi-head self-attention that never holds the attention weights between forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array

#: Queries that are worked on at once.
BLOCK = 64


@dataclass(frozen=True)
class CausalAttention(Layer):
    """Each token reads itself and the tokens before it: softmax(Q Kᵀ/√head + mask) V, head by head.

    Shapes: x (B, T, 3·features) holds queries, keys and values one after the other, each cut into `heads` heads;
    y (B, T, features). Own residual: (B, heads, T), the log-sum-exp of each row of scores, from which the VJP computes the
    weights again, a block of queries at a time (Dao et al. 2022, arXiv 2205.14135). Blocks of keys that the mask hides
    from all queries of a block are left out. The VJP needs x and y: with P the weights and Ō = ȳ,
    V̄ = Pᵀ Ō, S̄ = P·(Ō Vᵀ - rowsum(Ō·y)), Q̄ = S̄ K/√head, K̄ = S̄ᵀ Q/√head.

    Attributes:
        heads: Number of heads; divides `features`.
    """

    heads: int

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        batch, length, width = x.shape
        head = width // 3 // self.heads
        split = np.transpose(np.reshape(x, (batch, length, 3, self.heads, head)), (2, 0, 3, 1, 4))
        queries, keys, values = split[0], split[1], split[2]
        scores = np.matmul(queries, np.swapaxes(keys, -1, -2)) / math.sqrt(head)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        weights = weights / np.sum(weights, axis=-1, keepdims=True)
        return np.reshape(np.swapaxes(np.matmul(weights, values), 1, 2), (batch, length, width // 3))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        batch, length, width = x.shape
        y = context.empty((batch, length, width // 3), x.dtype, "activations")
        statistic = context.empty((batch, self.heads, length), x.dtype, "residuals")
        rows = min(BLOCK, length)
        scratch = _Scratch(context, x.dtype, self.heads, rows, length, width // 3 // self.heads, backward=False)
        for sample in range(batch):
            queries, keys, values = _split(x[sample], self.heads)
            out = _heads(y[sample], self.heads)
            for block in _blocks(length, rows):
                scores, hidden = self._scores(queries, keys, block, scratch)
                top = scratch.row(hidden)
                np.max(scores, axis=-1, out=top)
                scores -= top[..., None]
                np.exp(scores, out=scores)
                total = statistic[sample, :, block]
                np.add.reduce(scores, axis=-1, out=total)
                kernels.matmul(scores, values[:, : block.stop], out=out[:, block])
                out[:, block] /= total[..., None]
                np.log(total, out=total)
                total += top
        return y, (statistic,)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        assert y is not None
        (batch, length, width), (statistic,) = x.shape, own
        x_cotangent = context.empty(x.shape, x.dtype, "cotangents")
        rows = min(BLOCK, length)
        scratch = _Scratch(context, x.dtype, self.heads, rows, length, width // 3 // self.heads, backward=True)
        for sample in range(batch):
            queries, keys, values = _split(x[sample], self.heads)
            q_bar, k_bar, v_bar = _split(x_cotangent[sample], self.heads)
            out, out_bar = _heads(y[sample], self.heads), _heads(cotangent[sample], self.heads)
            # From the last block on: it reads every key, so its products are written and the others' added.
            for block in reversed(list(_blocks(length, rows))):
                first = block.stop == length
                seen = slice(0, block.stop)
                weights, hidden = self._scores(queries, keys, block, scratch)
                weights -= statistic[sample, :, block, None]
                np.exp(weights, out=weights)
                _product(np.swapaxes(weights, -1, -2), out_bar[:, block], v_bar[:, seen], scratch, first)
                inner = scratch.row(hidden)
                np.einsum("hij,hij->hi", out_bar[:, block], out[:, block], out=inner)
                scores_bar = scratch.weights_bar(hidden, block.stop)
                kernels.matmul(out_bar[:, block], np.swapaxes(values[:, seen], -1, -2), out=scores_bar)
                scores_bar -= inner[..., None]
                scores_bar *= weights
                kernels.matmul(scores_bar, keys[:, seen], out=q_bar[:, block])
                q_bar[:, block] *= 1 / math.sqrt(queries.shape[-1])
                scaled = scratch.queries(hidden)
                _product(np.swapaxes(scores_bar, -1, -2), scaled, k_bar[:, seen], scratch, first)
        return x_cotangent

    def _scores(self, queries: Array, keys: Array, block: slice, scratch: _Scratch) -> tuple[Array, int]:
        """Returns the masked scores of a block of queries over the keys it may see, and its number of rows."""
        rows = block.stop - block.start
        scaled = scratch.queries(rows)
        np.multiply(queries[:, block], 1 / math.sqrt(queries.shape[-1]), out=scaled)
        scores = scratch.weights(rows, block.stop)
        kernels.matmul(scaled, np.swapaxes(keys[:, : block.stop], -1, -2), out=scores)
        np.copyto(scores[..., block], -np.inf, where=scratch.hidden[:rows, :rows])
        return scores, rows

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        if len(x.shape) != 3 or not x.shape[1] or x.shape[-1] % (3 * self.heads):
            raise ValueError(
                f"CausalAttention with {self.heads} heads takes (batch, tokens, 3 x features) with at least one token and "
                f"features divisible by the heads, but got {x}"
            )
        batch, length, width = x.shape
        features = width // 3
        rows = min(BLOCK, length)
        pairs = sum((block.stop - block.start) * block.stop for block in _blocks(length, rows))
        product = 2 * batch * pairs * features
        sizes = (self.heads, rows, length, features // self.heads)
        return Footprint(
            output=Spec((batch, length, features), x.dtype),
            own=(Spec((batch, self.heads, length), x.dtype),),
            needs_input=(True,),
            needs_output=True,
            forward_workspace=_Scratch.nbytes(x.dtype.itemsize, *sizes, backward=False),
            backward_workspace=_Scratch.nbytes(x.dtype.itemsize, *sizes, backward=True),
            forward_flops=2 * product + 8 * batch * pairs * self.heads,
            backward_flops=5 * product + 8 * batch * pairs * self.heads,
        )


class _Scratch:
    """The scratch of one call: scores of a block of queries, and in the VJP their cotangents and a sum of products."""

    def __init__(
        self, context: Context, dtype: Any, heads: int, rows: int, length: int, head: int, backward: bool
    ) -> None:
        self.heads, self.head = heads, head
        self._weights = context.empty((heads * rows * length,), dtype, "workspace")
        self._queries = context.empty((heads * rows * head,), dtype, "workspace")
        self._row = context.empty((heads * rows,), dtype, "workspace")
        self.hidden = context.empty((rows, rows), np.bool_, "workspace")
        for row in range(rows):
            self.hidden[row, : row + 1] = False
            self.hidden[row, row + 1 :] = True
        if backward:
            self._weights_bar = context.empty((heads * rows * length,), dtype, "workspace")
            self._product = context.empty((heads * length * head,), dtype, "workspace")

    @staticmethod
    def nbytes(itemsize: int, heads: int, rows: int, length: int, head: int, backward: bool) -> int:
        elements = heads * rows * (length + head + 1)
        if backward:
            elements += heads * length * (rows + head)
        return elements * itemsize + rows * rows

    # Contiguous views of just the size that a block needs.
    def weights(self, rows: int, keys: int) -> Array:
        return self._view(self._weights, rows, keys)

    def weights_bar(self, rows: int, keys: int) -> Array:
        return self._view(self._weights_bar, rows, keys)

    def product(self, keys: int) -> Array:
        return self._view(self._product, keys, self.head)

    def queries(self, rows: int) -> Array:
        return self._view(self._queries, rows, self.head)

    def row(self, rows: int) -> Array:
        return self._row[: self.heads * rows].reshape(self.heads, rows)

    def _view(self, flat: Array, rows: int, columns: int) -> Array:
        return flat[: self.heads * rows * columns].reshape(self.heads, rows, columns)


def _blocks(length: int, rows: int) -> Iterator[slice]:
    for start in range(0, length, max(1, rows)):
        yield slice(start, min(start + rows, length))


def _heads(rows: Array, heads: int) -> Array:
    """Views (T, heads·head) as (heads, T, head)."""
    return rows.reshape(rows.shape[0], heads, -1).transpose(1, 0, 2)


def _split(rows: Array, heads: int) -> tuple[Array, Array, Array]:
    """Views (T, 3·heads·head) as queries, keys and values, each (heads, T, head)."""
    parts = rows.reshape(rows.shape[0], 3, heads, -1).transpose(1, 2, 0, 3)
    return parts[0], parts[1], parts[2]


def _product(a: Array, b: Array, out: Array, scratch: _Scratch, first: bool) -> None:
    """Writes a @ b into `out`, or adds it unless it is the first product there."""
    if first:
        kernels.matmul(a, b, out=out)
    else:
        out += kernels.matmul(a, b, out=scratch.product(out.shape[1]))
