"""The layer contract: a pure forward, a VJP, and a footprint that says their bytes beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from framework.keys import Key
from framework.memory import Array, Ledger
from framework.parameters import ParameterSpec


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array that need not exist."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, shape: Sequence[int], dtype: DTypeLike) -> Spec:
        return cls(tuple(shape), np.dtype(dtype))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """The number of rows when all but the last axis are merged."""
        return math.prod(self.shape[:-1])

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Footprint:
    """The bytes and FLOPs of one leaf step, computed without running it.

    Bytes inside an operation are those alive before it + its output (forward) or its new cotangents (backward) + own
    residuals + workspace; so a workspace counts only what comes on top of these.

    Attributes:
        output: What the forward returns.
        own: Residuals that the VJP needs besides input and output.
        needs_input: For each input, whether the VJP reads it. What it does not read it gets as None.
        needs_output: Whether the VJP reads the output.
        forward_workspace: Most bytes of scratch alive at once in the forward.
        backward_workspace: The same in the VJP.
        forward_flops: Floating-point operations of the forward.
        backward_flops: The same of the VJP.
        output_aliases_input: Whether the output is a view of the (first) input.
        cotangent_aliases: For each input, whether its cotangent is the output's cotangent itself.
        forward_in_place: Whether the forward takes its output from `Context.like` of its (first) input, and so can overwrite it.
        backward_in_place: Whether the VJP takes the input's cotangent from `Context.like` of the output's.
    """

    output: Spec
    own: tuple[Spec, ...] = ()
    needs_input: tuple[bool, ...] = (False,)
    needs_output: bool = False
    forward_workspace: int = 0
    backward_workspace: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    output_aliases_input: bool = False
    cotangent_aliases: tuple[bool, ...] = (False,)
    forward_in_place: bool = False
    backward_in_place: bool = False

    @property
    def own_nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.own)


class Context:
    """What a rule is given besides arrays.

    Attributes:
        ledger: Counts every array that the rule makes.
        owner: The path of the step, for the ledger.
        key: For random numbers: names run, step, shard and layer.
        training: False in evaluation (dropout passes its input through).
        wanted: For each input, whether anybody reads its cotangent.
        in_place: Whether `like` gives the array itself: nobody reads it afterwards, and the footprint says that the rule may.
    """

    __slots__ = ("in_place", "key", "ledger", "owner", "training", "wanted")

    def __init__(
        self,
        ledger: Ledger,
        owner: str = "",
        key: Key | None = None,
        training: bool = True,
        wanted: tuple[bool, ...] = (True,),
        in_place: bool = False,
    ) -> None:
        self.ledger = ledger
        self.owner = owner
        self.key = key or Key(0)
        self.training = training
        self.wanted = wanted
        self.in_place = in_place

    def empty(self, shape: Sequence[int], dtype: DTypeLike, category: str) -> Array:
        """Returns an uninitialized array that the ledger counts (see `Ledger.empty`)."""
        return self.ledger.empty(shape, dtype, category, self.owner)

    def like(self, a: Array, category: str) -> Array:
        """Returns where to write what takes an array's place: the array itself where it may be overwritten, else a new one."""
        return a if self.in_place else self.ledger.empty(a.shape, a.dtype, category, self.owner)


#: A layer's parameters or their cotangents by local name, and its own residuals.
Params = dict[str, Array]
Own = tuple[Array, ...]


class Layer:
    """A differentiable function of an input and parameters.

    A layer is a definition and nothing else: it holds sizes, never arrays, so one forward can run twice (recomputation)
    and two graphs can live at once. Who keeps the input and the output for the backward is the executor's business:
    `own` must not contain them, or a plan could free nothing.

    A leaf layer implements every method below `kind`; a composite (`Chain`, `Residual`) flattens to leaf layers.
    Layers of several inputs (`Add`) get and return tuples where others have one array.
    """

    @property
    def kind(self) -> str:
        """The layer's kind, as tables and patterns name it."""
        return type(self).__name__

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns the parameters by local name, for an input of spec `x`."""
        return {}

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        """Returns the output by the definition, in plain NumPy: the oracle of the rules below."""
        raise NotImplementedError(f"{self.kind} has no apply")

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        """Returns the output and the own residuals."""
        raise NotImplementedError(f"{self.kind} has no forward; only leaf layers run, composites flatten to them")

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        """Writes each parameter's cotangent into its view in `grads` and returns the input's cotangent.

        It overwrites (zeroing and then adding would turn -0.0 into +0.0). It returns None where x holds integers or
        `context.wanted` says that nobody reads x's cotangent.
        """
        raise NotImplementedError(f"{self.kind} has no vjp; only leaf layers run, composites flatten to them")

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        """Returns bytes and FLOPs for an input of spec `x`.

        Args:
            x: The input's spec (a tuple of specs for several inputs).
            training: False for an evaluation pass.

        Raises:
            ValueError: The layer does not take such an input.
        """
        raise NotImplementedError(f"{self.kind} has no footprint; only leaf layers run, composites flatten to them")


def require_float(layer: Layer, x: Spec) -> None:
    """Raises a clear error unless `x` holds floats and has at least one axis."""
    if x.dtype.kind != "f" or not x.shape:
        raise ValueError(f"{layer.kind} takes an array of floats with at least one axis, but got {x}")
