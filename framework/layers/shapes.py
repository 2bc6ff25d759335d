"""Layers that give the same numbers another shape. They copy nothing: output and cotangent are views."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Params, Spec, require_float
from framework.layers.windows import nothing_like, shape_alone
from framework.memory import Array


class _Reshaping(Layer):
    """What both share. The VJP needs of x its shape alone, and has it from a residual of no bytes, so that x may go with y."""

    piecewise_linear = True

    @abstractmethod
    def _output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The output's shape for an input's."""

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return np.reshape(x, self._output(x.shape))

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        return kernels.as_view(x, self._output(x.shape)), (nothing_like(x),)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        if not context.wanted[0]:
            return None
        return kernels.as_view(cotangent, (len(cotangent), *own[0].shape[1:]))

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.forward(params, x, context)[0], self.forward(params, x_tangent, context)[0]

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        return Footprint(
            output=Spec(self._output(x.shape), x.dtype),
            own=(shape_alone(x),),
            output_aliases_input=True,
            cotangent_aliases=(True,),
        )


@dataclass(frozen=True)
class Flatten(_Reshaping):
    """Merges all axes but the first: (N, …) to (N, features). The VJP gives ȳ the shape of x."""

    def _output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Reshape(_Reshaping):
    """Gives each example another shape: (N, …) to (N, *shape). The VJP gives ȳ the shape of x.

    Attributes:
        shape: Of an example, without the batch's axis.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(type(length) is not int or length < 0 for length in self.shape):
            raise ValueError(
                f"Reshape takes the lengths of an example's axes, whole numbers from 0, but got {self.shape}"
            )

    def _output(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], *self.shape)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        require_float(self, x)
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise ValueError(
                f"Reshape gives an example the shape {self.shape} of {math.prod(self.shape)} numbers, but got {x} with "
                f"{math.prod(x.shape[1:])} an example"
            )
        return super().footprint(x, training)
