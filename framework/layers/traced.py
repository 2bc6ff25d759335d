"""Derivatives of a leaf layer, traced from its definition a block of the input at a time.

They serve layers that have no rule of their own, and second derivatives of all. What tracing holds is plain NumPy's, not the
ledger's, and lives no longer than a call; a layer that says its `core_axes` is traced over small blocks, so that it is little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from framework import kernels
from framework.differentiation.forward import jvp
from framework.differentiation.reverse import vjp
from framework.memory import Array

if TYPE_CHECKING:
    from framework.layers.layer import Context, Extent, Layer, Pair, Params


@dataclass(frozen=True)
class Cut:
    """How an input is cut into blocks that a layer's `apply` treats one by one.

    Attributes:
        loop: Shape of the axes that are looped over; None for an input that stays whole.
        width: Elements of one piece.
    """

    loop: tuple[int, ...] | None
    width: int = 1

    @classmethod
    def of(cls, layer: Layer, x: Any) -> Cut:
        core = layer.core_axes
        if core is None or isinstance(x, tuple):
            return cls(None)
        if core < 0:  # so many axes are looped over
            core += x.ndim
        if x.ndim <= core:
            return cls(None)
        loop = x.shape[: x.ndim - core]
        return cls(loop, math.prod(x.shape[len(loop) :]))

    def blocks(self) -> Iterator[slice]:
        """Yields at least one block, so that shapes are known where there are no pieces."""
        pieces = 0 if self.loop is None else math.prod(self.loop)
        yield from kernels.row_blocks(pieces, self.width) if pieces else (slice(0, 0),)

    def part(self, a: Any, block: slice) -> Any:
        """A block of an array that has the looped axes first: a view of it."""
        if self.loop is None or a is None:
            return a
        merged = math.prod(self.loop)
        return kernels.as_view(a, (merged, *a.shape[len(self.loop) :]))[block]

    def whole(self, part: Any) -> tuple[int, ...]:
        """The shape of the array of which a block is given."""
        shape: tuple[int, ...] = np.shape(part)
        return shape if self.loop is None else (*self.loop, *shape[1:])


def traced_jvp(
    layer: Layer, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
) -> tuple[Array, Array]:
    """Returns `apply` and its JVP; see `Layer.jvp`."""
    cut = Cut.of(layer, x)
    y: Any = None
    moved: Any = None
    if (told := context.output) is not None:  # first what stays, so that what is held in passing comes on top of it
        y, moved = (context.empty(told.shape, told.dtype, "activations") for _ in range(2))
    for block in cut.blocks():
        some = cut.part(x, block)
        function, primals = _of_what_moves(layer, params, some, x_tangent is not None, context)
        tangents = (params_tangent, *((cut.part(x_tangent, block),) if x_tangent is not None else ()))
        value, tangent = jvp(function, primals, tangents)
        if y is None:
            shape = cut.whole(value)
            y, moved = (context.empty(shape, value.dtype, "activations") for _ in range(2))
        _require_shape(layer, value, cut.part(y, block))
        cut.part(y, block)[...] = value
        cut.part(moved, block)[...] = tangent
    return y, moved


def traced_vjp(layer: Layer, params: Params, x: Any, cotangent: Array, grads: Params, context: Context) -> Array | None:
    """Returns the cotangent of x and writes those of the parameters; see `Layer.vjp`."""
    wanted = context.wanted[0] and x.dtype.kind == "f"
    if not params and not wanted:
        return None
    x_cotangent = context.empty(x.shape, x.dtype, "cotangents") if wanted else None
    cut = Cut.of(layer, x)
    for number, block in enumerate(cut.blocks()):
        function, primals = _of_what_moves(layer, params, cut.part(x, block), wanted, context)
        value, pull = vjp(function, *primals)
        _require_shape(layer, value, cut.part(cotangent, block))
        del value  # else it would live as long as all that is pulled back
        found = pull(cut.part(cotangent, block), last=True)
        _write(grads, found[0], add=number > 0)
        if x_cotangent is not None:
            cut.part(x_cotangent, block)[...] = found[1]
        del pull, found  # before the next block is traced
    return x_cotangent


def traced_vjp_with_tangent(
    layer: Layer,
    params: Pair[Params],
    x: Pair[Any],
    cotangent: Pair[Array],
    grads: Pair[Params],
    x_cotangent: Any,
    context: Context,
    extents: Sequence[Extent | None] = (),
) -> None:
    """Writes the VJP of `apply` and its tangent, by forward mode over reverse mode; see `Layer.vjp_with_tangent`.

    Args:
        extents: Which part of each input's cotangent is written; none for all of all.
    """
    several = isinstance(x[0], tuple)
    wanted = any(each is not None for each in x_cotangent) if several else x_cotangent is not None
    cut = Cut.of(layer, x[0])
    for number, block in enumerate(cut.blocks()):
        some, some_tangent, g, g_tangent = (cut.part(a, block) for a in (*x, *cotangent))
        function, primals = _of_what_moves(layer, params[0], some, wanted, context)
        tangents = (params[1], some_tangent) if wanted else (params[1],)

        def pull(g: Any, *primals: Any, function: Any = function) -> Any:
            return vjp(function, *primals)[1](g, last=True)

        each = jvp(pull, (g, *primals), (g_tangent, *tangents))
        for place, found in enumerate(each):
            _write(grads[place], found[0], add=number > 0)
            if wanted and (several or extents):
                into, parts = (x_cotangent, found[1]) if several else ((x_cotangent,), found[1:])
                _write_parts([to and to[place] for to in into], parts, extents)
            elif wanted:
                cut.part(x_cotangent[place], block)[...] = found[1]


def _write_parts(into: list[Any], found: tuple[Array, ...], extents: Sequence[Extent | None]) -> None:
    """Writes the cotangents of inputs, or parts of them, where they are asked for."""
    for target, whole, extent in zip(into, found, extents or [None] * len(into), strict=True):
        if target is not None:
            target[...] = whole if extent is None else extent.of(whole)


def _require_shape(layer: Layer, value: Any, told: Any) -> None:
    """Raises unless the trace gave an output of the shape and dtype that the forward had."""
    if np.shape(value) != told.shape or value.dtype != told.dtype:
        raise ValueError(
            f"{layer.kind}.apply gave shape {list(np.shape(value))} of {value.dtype} when it was traced for a derivative, but "
            f"{list(told.shape)} of {told.dtype} in its forward: it must give the same shape and dtype each time it runs on an input of "
            "one shape and dtype"
        )


def _of_what_moves(
    layer: Layer, params: Params, x: Any, x_moves: bool, context: Context
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns `apply` as a function of the parameters and, where it moves, the input; and these arguments."""
    if x_moves:
        return lambda params, x: layer.apply(params, x, context), (params, x)
    return lambda params: layer.apply(params, x, context), (params,)


def _write(grads: Params, found: Params, add: bool) -> None:
    for name, cotangent in found.items():
        if add:
            grads[name] += cotangent
        else:
            grads[name][...] = cotangent
