"""Multi-head self-attention, causal or not, that never holds the attention weights between forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params, Spec, require_float
from framework.memory import Array

#: Queries that are worked on at once.
BLOCK = 64
#: The scratch of each rule: arrays of a number a query and key, arrays of a number a query, whether products are added, and how many
#: of keys and values are extended.
_FORWARD, _JVP, _VJP, _HVP = (1, 1, False, 2), (3, 1, False, 2), (2, 0, True, 2), (5, 2, True, 0)

#: exp(score - bound) is no less than exp(-2·bound): up to here a normal number in float32, with room for a sum of many.
_MOST_BOUND = 40.0

#: Queries, keys and values, each (heads, T, head).
Split = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Attention(Layer):
    """Each token reads all tokens: softmax(Q Kᵀ/√head) V, head by head.

    Shapes: x (B, T, 3·features) holds queries, keys and values one after the other, each cut into `heads` heads;
    y (B, T, features). Own residual: (B, heads, T), the log-sum-exp of each row of scores, from which the VJP computes the
    weights again, a block of queries at a time (Dao et al. 2022, arXiv 2205.14135). The VJP needs x and y: with P the weights
    and Ō = ȳ, V̄ = Pᵀ Ō, S̄ = P·(Ō Vᵀ - rowsum(Ō·y)), Q̄ = S̄ K/√head, K̄ = S̄ᵀ Q/√head.

    Attributes:
        heads: Number of heads; divides `features`.
        causal: Whether a token reads itself and the tokens before it alone.
    """

    heads: int

    causal: ClassVar[bool] = False

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        batch, length, width = x.shape
        head = width // 3 // self.heads
        split = np.transpose(np.reshape(x, (batch, length, 3, self.heads, head)), (2, 0, 3, 1, 4))
        queries, keys, values = split[0], split[1], split[2]
        scores = np.matmul(queries, np.swapaxes(keys, -1, -2)) / math.sqrt(head)
        if self.causal:
            scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        weights = weights / np.sum(weights, axis=-1, keepdims=True)
        return np.reshape(np.swapaxes(np.matmul(weights, values), 1, 2), (batch, length, width // 3))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        batch, length, width = x.shape
        y = context.empty((batch, length, width // 3), x.dtype, "activations")
        statistic = context.empty((batch, self.heads, length), x.dtype, "residuals")
        rows = min(BLOCK, length)
        scratch = _Scratch(context, x, self, *_FORWARD)
        with kernels.small_buffers():
            for sample in range(batch):
                queries, keys, values = _split(x[sample], self.heads)
                out, shift = _heads(y[sample], self.heads), statistic[sample]
                self._write_bounds(queries, keys, shift, scratch)
                # Columns of ones: a product with the keys subtracts a row's shift on the way, one with the values sums up its weights.
                keys_1, values_1 = scratch.transposed(keys, 0), scratch.extended(values, 1)
                for block in _blocks(length, rows):
                    unbounded = shift[:, block] > _MOST_BOUND
                    shift[:, block][unbounded] = 0
                    scores = self._shifted(queries, keys_1, shift, block, scratch)
                    if unbounded.any():
                        top = np.max(scores, axis=-1, out=scratch.row(scores.shape[1]))
                        top[~unbounded] = 0
                        scores -= top[..., None]
                        shift[:, block] += top
                    np.exp(scores, out=scores)
                    product = scratch.queries(scores.shape[1], 1)
                    kernels.matmul(scores, values_1[:, self._seen(block, length)], out=product)
                    np.divide(product[..., :-1], product[..., -1:], out=out[:, block])
                    total = scratch.row(scores.shape[1])
                    np.log(product[..., -1], out=total)
                    shift[:, block] += total
        return y, (statistic,)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        assert y is not None
        (batch, length, _), (statistic,) = x.shape, own
        x_cotangent = context.empty(x.shape, x.dtype, "cotangents")
        rows = min(BLOCK, length)
        scratch = _Scratch(context, x, self, *_VJP)
        with kernels.small_buffers():
            for sample in range(batch):
                queries, keys, values = _split(x[sample], self.heads)
                q_bar, k_bar, v_bar = _split(x_cotangent[sample], self.heads)
                out, out_bar = _heads(y[sample], self.heads), _heads(cotangent[sample], self.heads)
                # As in the forward: products with these subtract a number from each row on the way.
                keys_1, values_1 = scratch.transposed(keys, 0), scratch.transposed(values, 1)
                # From the last block on: it reads every key, so its products are written and the others' added.
                for block in reversed(list(_blocks(length, rows))):
                    first, seen = block.stop == length, self._seen(block, length)
                    weights = self._shifted(queries, keys_1, statistic[sample], block, scratch)
                    np.exp(weights, out=weights)
                    hidden = weights.shape[1]
                    scaled = scratch.queries(hidden, 1)
                    given = scratch.queries(hidden, 1, number=1)
                    given[..., :-1] = out_bar[:, block]
                    np.einsum("hij,hij->hi", given[..., :-1], out[:, block], out=given[..., -1])
                    given[..., -1] *= -1  # np.negative in place, over strides, gives wrong numbers in NumPy 2.4
                    scores_bar = scratch.weights(hidden, seen.stop, 1)
                    kernels.matmul(given, values_1[..., seen], out=scores_bar)
                    scores_bar *= weights
                    _product(np.swapaxes(weights, -1, -2), given[..., :-1], v_bar[:, seen], scratch, first)
                    kernels.matmul(scores_bar, keys[:, seen], out=q_bar[:, block])
                    q_bar[:, block] *= 1 / math.sqrt(queries.shape[-1])
                    _product(np.swapaxes(scores_bar, -1, -2), scaled[..., :-1], k_bar[:, seen], scratch, first)
        return x_cotangent

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """Ẏ = Ṗ V + P V̇ with Ṗ = P·(Ṡ - rowsum(P·Ṡ)) and Ṡ = (Q̇ Kᵀ + Q K̇ᵀ)/√head, a block of queries at a time."""
        batch, length, _ = x.shape
        y, (statistic,) = self.forward(params, x, context)
        tangent = context.empty(y.shape, x.dtype, "activations")
        scratch = _Scratch(context, x, self, *_JVP)
        with kernels.small_buffers():
            for sample in range(batch):
                now, moving = _split(x[sample], self.heads), _split(x_tangent[sample], self.heads)
                moved, keys_1 = _heads(tangent[sample], self.heads), scratch.transposed(now[1], 0)
                for block in _blocks(length, min(BLOCK, length)):
                    seen = self._seen(block, length)
                    weights = self._shifted(now[0], keys_1, statistic[sample], block, scratch)
                    np.exp(weights, out=weights)
                    weights_dot = self._moved(weights, now, moving, block, scratch)
                    kernels.matmul(weights_dot, now[2][:, seen], out=moved[:, block])
                    moved[:, block] += kernels.matmul(
                        weights, moving[2][:, seen], out=scratch.queries(weights.shape[1])
                    )
        return y, tangent

    def vjp_with_tangent(
        self,
        params: Pair[Params],
        x: Pair[Any],
        cotangent: Pair[Array],
        grads: Pair[Params],
        x_cotangent: Pair[Array] | None,
        context: Context,
    ) -> None:
        """The formulas of the VJP, and their derivatives by the product rule, a block of queries at a time."""
        if x_cotangent is None:
            return
        batch, length, _ = x[0].shape
        scratch = _Scratch(context, x[0], self, *_HVP)
        with kernels.small_buffers():
            for sample in range(batch):
                now, moving = (_split(a[sample], self.heads) for a in x)
                bars, bars_dot = (_split(a[sample], self.heads) for a in x_cotangent)
                given = [_heads(a[sample], self.heads) for a in cotangent]
                scale = 1 / math.sqrt(now[0].shape[-1])
                for block in reversed(list(_blocks(length, min(BLOCK, length)))):
                    first, seen = block.stop == length, self._seen(block, length)
                    weights = self._weights(now, block, scratch)
                    weights_dot = self._moved(weights, now, moving, block, scratch)
                    rows = weights.shape[1]
                    g, g_dot = (a[:, block] for a in given)
                    keys, keys_dot, values, values_dot = (a[:, seen] for a in (now[1], moving[1], now[2], moving[2]))

                    weights_t = np.swapaxes(weights, -1, -2)
                    _product(weights_t, g, bars[2][:, seen], scratch, first)
                    _product(weights_t, g_dot, bars_dot[2][:, seen], scratch, first)
                    _product(np.swapaxes(weights_dot, -1, -2), g, bars_dot[2][:, seen], scratch, False)

                    scores, scores_dot, spare = (scratch.weights(rows, seen.stop, i) for i in (2, 3, 4))
                    kernels.matmul(g, np.swapaxes(values, -1, -2), out=scores)
                    kernels.matmul(g_dot, np.swapaxes(values, -1, -2), out=scores_dot)
                    scores_dot += kernels.matmul(g, np.swapaxes(values_dot, -1, -2), out=spare)
                    inner, inner_dot = scratch.row(rows), scratch.row(rows, 1)
                    np.einsum("hij,hij->hi", weights, scores, out=inner)
                    scores -= inner[..., None]
                    np.einsum("hij,hij->hi", weights, scores_dot, out=inner)
                    np.einsum(
                        "hij,hij->hi", weights_dot, scores, out=inner_dot
                    )  # its rows sum to 0, so -= was no matter
                    inner += inner_dot
                    scores_dot -= inner[..., None]
                    scores_dot *= weights
                    np.multiply(weights_dot, scores, out=spare)
                    scores_dot += spare
                    scores *= weights

                    some = scratch.queries(rows)
                    kernels.matmul(scores, keys, out=bars[0][:, block])
                    kernels.matmul(scores_dot, keys, out=bars_dot[0][:, block])
                    bars_dot[0][:, block] += kernels.matmul(scores, keys_dot, out=some)
                    bars[0][:, block] *= scale
                    bars_dot[0][:, block] *= scale
                    scores_t = np.swapaxes(scores, -1, -2)
                    np.multiply(moving[0][:, block], scale, out=some)
                    _product(scores_t, some, bars_dot[1][:, seen], scratch, first)
                    np.multiply(now[0][:, block], scale, out=some)
                    _product(np.swapaxes(scores_dot, -1, -2), some, bars_dot[1][:, seen], scratch, False)
                    _product(scores_t, some, bars[1][:, seen], scratch, first)

    def _weights(self, now: Split, block: slice, scratch: _Scratch) -> Array:
        """Returns the weights of a block of queries over the keys that it may see."""
        scores, rows = self._scores(now[0], now[1], block, scratch)
        row = scratch.row(rows)
        np.max(scores, axis=-1, out=row)
        scores -= row[..., None]
        np.exp(scores, out=scores)
        np.add.reduce(scores, axis=-1, out=row)
        scores /= row[..., None]
        return scores

    def _moved(self, weights: Array, now: Split, moving: Split, block: slice, scratch: _Scratch) -> Array:
        """Returns the tangent of a block's weights."""
        rows, keys = weights.shape[1], slice(0, weights.shape[2])
        scale = 1 / math.sqrt(now[0].shape[-1])
        tangent, more = (scratch.weights(rows, keys.stop, i) for i in (1, 2))
        some = scratch.queries(rows)
        np.multiply(moving[0][:, block], scale, out=some)
        kernels.matmul(some, np.swapaxes(now[1][:, keys], -1, -2), out=tangent)
        np.multiply(now[0][:, block], scale, out=some)
        tangent += kernels.matmul(some, np.swapaxes(moving[1][:, keys], -1, -2), out=more)
        inner = scratch.row(rows)
        np.einsum("hij,hij->hi", weights, tangent, out=inner)
        tangent -= inner[..., None]
        tangent *= weights  # zero where the mask hides
        return tangent

    def _scores(self, queries: Array, keys: Array, block: slice, scratch: _Scratch) -> tuple[Array, int]:
        """Returns the scores of a block of queries over the keys it may see, masked, and its number of rows."""
        rows, seen = block.stop - block.start, self._seen(block, keys.shape[1])
        scaled = scratch.queries(rows)
        np.multiply(queries[:, block], 1 / math.sqrt(queries.shape[-1]), out=scaled)
        scores = scratch.weights(rows, seen.stop)
        kernels.matmul(scaled, np.swapaxes(keys[:, seen], -1, -2), out=scores)
        self._hide(scores, block, scratch)
        return scores, rows

    def _shifted(self, queries: Array, keys: Array, shift: Array, block: slice, scratch: _Scratch) -> Array:
        """Returns the masked scores of a block of queries over the keys it may see, less each row's shift.

        Args:
            queries: (heads, T, head).
            keys: (heads, head + 1, T), a one below each.
            shift: (heads, T).
            block: The queries.
            scratch: Where the scores lie; its queries then hold those of the block, scaled.
        """
        rows, seen = block.stop - block.start, self._seen(block, keys.shape[-1])
        scaled, scores = scratch.queries(rows, 1), scratch.weights(rows, seen.stop)
        np.multiply(queries[:, block], 1 / math.sqrt(queries.shape[-1]), out=scaled[..., :-1])
        np.multiply(shift[:, block], -1, out=scaled[..., -1])
        kernels.matmul(scaled, keys[..., seen], out=scores)
        self._hide(scores, block, scratch)
        return scores

    def _write_bounds(self, queries: Array, keys: Array, out: Array, scratch: _Scratch) -> None:
        """Writes for each query a number that none of its scores passes: |q|·max|k|/√head, over the keys it may see (Cauchy–Schwarz).

        Softmax takes any shift of a row, and this one is known before the scores are, unlike their maximum. Where it is so large that
        their exponentials could vanish, the maximum serves, row by row, so that no row depends on another one's numbers.
        """
        _, length, head = keys.shape
        norms = scratch.weights(1, length)[:, 0]
        for a, squares in ((keys, norms), (queries, out)):
            np.vecdot(a, a, out=squares)
            np.sqrt(squares, out=squares)
        if self.causal:
            np.maximum.accumulate(norms, axis=-1, out=norms)
        else:
            norms[...] = np.max(norms, axis=-1, keepdims=True)
        out *= norms
        out *= 1 / math.sqrt(head)

    def _hide(self, scores: Array, block: slice, scratch: _Scratch) -> None:
        """Masks the scores of a block of queries with keys that come after them."""
        if self.causal:
            rows = block.stop - block.start
            np.copyto(scores[..., block], -np.inf, where=scratch.hidden[:rows, :rows])

    def _seen(self, block: slice, length: int) -> slice:
        """The keys that some query of a block may see."""
        return slice(0, block.stop if self.causal else length)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        if len(x.shape) != 3 or not x.shape[1] or x.shape[-1] % (3 * self.heads):
            raise ValueError(
                f"{self.kind} with {self.heads} heads takes (batch, tokens, 3 x features) with at least one token and "
                f"features divisible by the heads, but got {x}"
            )
        batch, length, width = x.shape
        features = width // 3
        rows = min(BLOCK, length)
        pairs = sum((block.stop - block.start) * self._seen(block, length).stop for block in _blocks(length, rows))
        product = 2 * batch * pairs * features
        output = Spec((batch, length, features), x.dtype)
        statistic = Spec((batch, self.heads, length), x.dtype)
        return Footprint(
            output=output,
            own=(statistic,),
            needs_input=(True,),
            needs_output=True,
            forward_workspace=_Scratch.nbytes(x, self, *_FORWARD),
            backward_workspace=_Scratch.nbytes(x, self, *_VJP),
            # The statistic lives; the forward runs before there is a tangent.
            jvp_workspace=statistic.nbytes
            + max(_Scratch.nbytes(x, self, *_FORWARD) - output.nbytes, _Scratch.nbytes(x, self, *_JVP)),
            hvp_workspace=_Scratch.nbytes(x, self, *_HVP),
            forward_flops=2 * product + 8 * batch * pairs * self.heads,
            backward_flops=5 * product + 8 * batch * pairs * self.heads,
        )


@dataclass(frozen=True)
class CausalAttention(Attention):
    """Each token reads itself and the tokens before it: softmax(Q Kᵀ/√head + mask) V, head by head.

    All else is as in `Attention`. Blocks of keys that the mask hides from all queries of a block are left out.

    Attributes:
        heads: Number of heads; divides `features`.
    """

    causal: ClassVar[bool] = True


class _Scratch:
    """The scratch of one call: for a block of queries, arrays of a number a query and key; and a sum of products.

    Args:
        context: Where it comes from.
        x: The input, or its spec.
        layer: Whose call it is: its number of heads, and whether there is a mask.
        weights: How many arrays of a number a query and key.
        rows: How many of a number a query.
        product: Whether there is room for a product that is added.
        extended: How many copies of keys or values with a further column there are; if any, queries have room for one, too.
    """

    def __init__(
        self, context: Context, x: Any, layer: Attention, weights: int, rows: int, product: bool, extended: int
    ) -> None:
        block, length, self.head = self._sizes(x, layer.heads)
        self.heads = heads = layer.heads
        self._weights = context.empty((weights, heads * block * length), x.dtype, "workspace")
        wide = self.head + bool(extended)
        self._queries = context.empty((max(1, extended), heads * block * wide), x.dtype, "workspace")
        self._extended = context.empty((extended, heads * length * wide), x.dtype, "workspace")
        self._rows = context.empty((rows, heads * block), x.dtype, "workspace")
        if layer.causal:
            self.hidden = context.empty((block, block), np.bool_, "workspace")
            for row in range(block):
                self.hidden[row, : row + 1] = False
                self.hidden[row, row + 1 :] = True
        if product:
            self._product = context.empty((heads * length * self.head,), x.dtype, "workspace")

    @classmethod
    def nbytes(cls, x: Any, layer: Attention, weights: int, rows: int, product: bool, extended: int) -> int:
        """Its bytes."""
        heads = layer.heads
        block, length, head = cls._sizes(x, heads)
        wide = head + bool(extended)
        elements = (
            heads * block * (weights * length + max(1, extended) * wide + rows) + extended * heads * length * wide
        )
        if product:
            elements += heads * length * head
        return elements * int(x.dtype.itemsize) + (block * block if layer.causal else 0)

    @staticmethod
    def _sizes(x: Any, heads: int) -> tuple[int, int, int]:
        _, length, width = x.shape
        return min(BLOCK, length), length, width // 3 // heads

    # Contiguous views of just the size that a block needs.
    def weights(self, rows: int, keys: int, number: int = 0) -> Array:
        return self._view(self._weights[number], rows, keys)

    def product(self, keys: int) -> Array:
        return self._view(self._product, keys, self.head)

    def queries(self, rows: int, more: int = 0, number: int = 0) -> Array:
        """With so many more columns."""
        return self._view(self._queries[number], rows, self.head + more)

    def extended(self, a: Array, number: int) -> Array:
        """Copies values (heads, T, head), a one beside each: (heads, T, head + 1)."""
        copy = self._view(self._extended[number], a.shape[1], self.head + 1)
        copy[..., :-1], copy[..., -1] = a, 1
        return copy

    def transposed(self, a: Array, number: int) -> Array:
        """Copies keys or values (heads, T, head) as (heads, head + 1, T), a one below each: BLAS is faster on these by half."""
        copy = self._view(self._extended[number], self.head + 1, a.shape[1])
        for some in _blocks(a.shape[1], BLOCK):  # which the cache holds
            copy[:, :-1, some] = np.swapaxes(a[:, some], -1, -2)
        copy[:, -1] = 1
        return copy

    def row(self, rows: int, number: int = 0) -> Array:
        return self._rows[number, : self.heads * rows].reshape(self.heads, rows)

    def _view(self, flat: Array, rows: int, columns: int) -> Array:
        return flat[: self.heads * rows * columns].reshape(self.heads, rows, columns)


def _blocks(length: int, rows: int) -> Iterator[slice]:
    for start in range(0, length, max(1, rows)):
        yield slice(start, min(start + rows, length))


def _heads(rows: Array, heads: int) -> Array:
    """Views (T, heads·head) as (heads, T, head)."""
    return rows.reshape(rows.shape[0], heads, -1).transpose(1, 0, 2)


def _split(rows: Array, heads: int) -> Split:
    """Views (T, 3·heads·head) as queries, keys and values, each (heads, T, head)."""
    parts = rows.reshape(rows.shape[0], 3, heads, -1).transpose(1, 2, 0, 3)
    return parts[0], parts[1], parts[2]


def _product(a: Array, b: Array, out: Array, scratch: _Scratch, first: bool) -> None:
    """Writes a @ b into `out`, or adds it unless it is the first product there."""
    if first:
        kernels.matmul(a, b, out=out)
    else:
        out += kernels.matmul(a, b, out=scratch.product(out.shape[1]))
