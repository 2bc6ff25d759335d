"""Concat: a layer's input beside its output, of which U-Nets are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.layers.chain import Branch
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.memory import Array

_NOTHING = np.empty(0, np.uint8)


class Concat(Branch):
    """concatenate(x, inner(x)) along an axis: the inner steps and one Join.

    A U-Net is Concats in Concats: ``Concat(Chain(MaxPool2d(2), …, Concat(…), …, Upsample2d(2)))``.

    Args:
        inner: A layer whose output has the shape of its input but along the axis.
        axis: The axis, by default that of channels; not the batch's.
    """

    def __init__(self, inner: Layer, axis: int = 1) -> None:
        super().__init__(inner)
        self.end = Join(axis)

    def ordered(self, inner: Any, skip: Any) -> tuple[Any, Any]:
        return skip, inner


@dataclass(frozen=True)
class Join(Layer):
    """y = concatenate(first, second), the leaf step at the end of a Concat.

    Shapes: both inputs and the output equal but along the axis. Own residual: the first input's length there, as the shape of an
    array of no bytes. The VJP needs no more: each input's cotangent is its part of ȳ, copied.

    Attributes:
        axis: The axis; not the batch's.
    """

    axis: int = 1

    piecewise_linear = True

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.concatenate(x, axis=self.axis)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        first, second = x
        shape = list(first.shape)
        shape[self.axis] += second.shape[self.axis]
        y = context.empty(shape, first.dtype, "activations")
        for part, some in zip(self._parts(y, first.shape[self.axis]), x, strict=True):
            part[...] = some
        return y, (_NOTHING.reshape(0, first.shape[self.axis]),)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        found: list[Array | None] = []
        for part, wanted in zip(self._parts(cotangent, own[0].shape[1]), context.wanted, strict=True):
            if not wanted:
                found.append(None)
                continue
            found.append(copy := context.empty(part.shape, part.dtype, "cotangents"))
            copy[...] = part
        return tuple(found)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward({}, x, context)[0], self.forward({}, x_tangent, context)[0]

    def _parts(self, whole: Array, length: int) -> Iterator[Array]:
        """Views the parts of an output along the axis."""
        along = np.moveaxis(whole, self.axis, 0)
        for part in (along[:length], along[length:]):
            yield np.moveaxis(part, 0, self.axis)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        first, second = x
        require_float(self, first)
        axes = len(first.shape)
        axis = self.axis % axes if -axes <= self.axis < axes else 0
        if not axis:
            raise ValueError(
                f"a Concat joins along an axis of its input other than the batch's, 0, but got axis {self.axis} for {first}"
            )
        others = [spec.shape[:axis] + spec.shape[axis + 1 :] for spec in x]
        if first.dtype != second.dtype or others[0] != others[1] or axes != len(second.shape):
            raise ValueError(
                f"a Concat joins its input and its inner output along axis {axis}, so they must be equal in all other axes and in dtype, "
                f"but the input is {first} and the inner output {second}"
            )
        shape = list(first.shape)
        shape[axis] += second.shape[axis]
        return Footprint(
            output=Spec(tuple(shape), first.dtype),
            own=(Spec((0, first.shape[axis]), np.dtype(np.uint8)),),
            needs_input=(False, False),
            cotangent_aliases=(False, False),
        )
