"""The layer contract: a definition, a pure forward, its derivatives, and a footprint that says their bytes beforehand."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from framework.keys import Key
from framework.layers.traced import traced_jvp, traced_vjp, traced_vjp_with_tangent
from framework.memory import Array, Ledger
from framework.parameters import Layout, Parameters, ParameterSpec

T = TypeVar("T")


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


class Extent(NamedTuple):
    """A part of an array: the elements start..stop-1 of one axis."""

    axis: int
    start: int
    stop: int

    def of(self, a: Array) -> Array:
        """Returns the part of an array, a view of it."""
        return a[(*[slice(None)] * self.axis, slice(self.start, self.stop))]

    def spec(self, x: Spec) -> Spec:
        """Returns the spec of the part of an array of spec `x`."""
        return Spec((*x.shape[: self.axis], self.stop - self.start, *x.shape[self.axis + 1 :]), x.dtype)


@dataclass(frozen=True)
class Footprint:
    """The bytes and FLOPs of one leaf step, computed without running it.

    Bytes inside an operation are those alive before it + its output (forward) or its new cotangents (backward) + own
    residuals + workspace + heap; so a workspace counts only what comes on top of these.

    Attributes:
        output: What the forward returns.
        own: Residuals that the VJP needs besides input and output.
        needs_input: For each input, whether the VJP reads it. What it does not read it gets as None.
        needs_output: Whether the VJP reads the output.
        forward_workspace: Most bytes of scratch alive at once in the forward.
        backward_workspace: The same in the VJP.
        jvp_workspace: The same in the JVP.
        hvp_workspace: The same in the VJP with its tangent.
        forward_heap: Most bytes at once that the forward takes in passing from plain NumPy and Python, not from `Context.empty`. They
            count inside the operation and lie on the heap, also where all else lies in one planned block.
        backward_heap: The same in the VJP.
        unmeasured: Whether nobody knows these two yet, as of a layer that has `apply` alone: whoever plans runs the rules to see.
        heap_spread: By how many bytes they differed between runs on different data; unless 0, no budget can be promised.
        forward_flops: Floating-point operations of the forward.
        backward_flops: The same of the VJP.
        output_aliases_input: Whether the output is a view of the (first) input.
        cotangent_aliases: For each input, whether its cotangent is the output's cotangent itself.
        cotangent_extents: For each input, outside of which part its cotangent is zero, so that the VJP returns that part alone; None for
            all of it. Empty where that is so of all inputs.
        forward_in_place: Whether the forward takes its output from `Context.like` of its (first) input, and so can overwrite it.
        backward_in_place: Whether the VJP takes the input's cotangent from `Context.like` of the output's.
    """

    output: Spec
    own: tuple[Spec, ...] = ()
    needs_input: tuple[bool, ...] = (False,)
    needs_output: bool = False
    forward_workspace: int = 0
    backward_workspace: int = 0
    jvp_workspace: int = 0
    hvp_workspace: int = 0
    forward_heap: int = 0
    backward_heap: int = 0
    unmeasured: bool = False
    heap_spread: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    output_aliases_input: bool = False
    cotangent_aliases: tuple[bool, ...] = (False,)
    cotangent_extents: tuple[Extent | None, ...] = ()
    forward_in_place: bool = False
    backward_in_place: bool = False

    @property
    def own_nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.own)

    def extent(self, number: int) -> Extent | None:
        """Of which part of an input the VJP returns the cotangent; None for all of it."""
        return self.cotangent_extents[number] if self.cotangent_extents else None

    def cotangent(self, number: int, x: Spec) -> Spec:
        """The spec of what the VJP returns for an input of spec `x`."""
        extent = self.extent(number)
        return x if extent is None else extent.spec(x)


class Context:
    """What a rule is given besides arrays.

    Attributes:
        ledger: Counts every array that the rule makes.
        owner: The path of the step, for the ledger.
        key: For random numbers: names run, step, shard and layer.
        training: False in evaluation (dropout passes its input through).
        wanted: For each input, whether anybody reads its cotangent.
        in_place: Whether `like` gives the array itself: nobody reads it afterwards, and the footprint says that the rule may.
        output: What the footprint says that the forward returns; None where nobody planned it.
        states: What layers keep from step to step, by the path of their layer, then by local name (see `Layer.state`).
        statistics: Where the forward writes what `Layer.statistics` names; None where it need not: outside of training, and when it
            runs again to recompute.
    """

    __slots__ = (
        "_key",
        "_source",
        "in_place",
        "ledger",
        "output",
        "owner",
        "states",
        "statistics",
        "training",
        "wanted",
    )

    def __init__(
        self,
        ledger: Ledger,
        owner: str = "",
        key: Key | None = None,
        training: bool = True,
        wanted: tuple[bool, ...] = (True,),
        in_place: bool = False,
        output: Spec | None = None,
        states: Mapping[str, Params] | None = None,
    ) -> None:
        self.ledger = ledger
        self.owner = owner
        self._key: Key | None = key or Key(0)
        self._source: Key | None = None
        self.training = training
        self.wanted = wanted
        self.in_place = in_place
        self.output = output
        self.states = states or {}
        self.statistics: Params | None = None

    @property
    def key(self) -> Key:
        """The key for random numbers."""
        if self._key is None:
            assert self._source is not None
            self._key = self._source.fold(self.owner)
        return self._key

    def draw_from(self, source: Key) -> None:
        """Takes the key of this owner from that of a shard, when it is asked for: few layers do."""
        self._key, self._source = None, source

    @property
    def state(self) -> Params:
        """The state of the layer at work."""
        return self.states.get(self.owner, {})

    def empty(self, shape: Sequence[int], dtype: DTypeLike, category: str) -> Array:
        """Returns an uninitialized array that the ledger counts (see `Ledger.empty`)."""
        return self.ledger.empty(shape, dtype, category, self.owner)

    def like(self, a: Array, category: str) -> Array:
        """Returns where to write what takes an array's place: the array itself where it may be overwritten, else a new one."""
        return a if self.in_place else self.ledger.empty(a.shape, a.dtype, category, self.owner)


#: A layer's parameters or their cotangents by local name, and its own residuals.
Params = dict[str, Array]
Own = tuple[Array, ...]
#: A value and its tangent.
Pair = tuple[T, T]


class Layer:
    """A differentiable function of an input and parameters.

    A layer is a definition and nothing else: it holds sizes, never arrays, so one forward can run twice (recomputation)
    and two graphs can live at once. Who keeps the input and the output for the backward is the executor's business:
    `own` must not contain them, or a plan could free nothing.

    A leaf layer needs `parameters` and `apply`; all else follows from tracing `apply`. What that holds inside a call is
    plain NumPy's. Before a plan is made it is measured, in a process of its own and on drawn numbers, and counts as the footprint's heap;
    so it may depend on shapes, but under a budget not on the data. A layer for which that is not so writes `footprint` and says
    there the most that its calls take, as `forward_heap` and `backward_heap`. Where bytes or speed matter a layer has
    `forward`, `vjp` and `footprint` of its own, all three, and may have a `jvp`. A composite (`Chain`, `Residual`)
    flattens to leaf layers. Layers of several inputs (`Add`) get and return tuples where others have one array.

    Attributes:
        core_axes: How many of the input's last axes `apply` works over, those before them being looped over: it does the same with
            each piece, without random numbers, and puts the results in their places. So it can be traced over small blocks. None:
            not known, the input stays whole. Below 0: minus the number of first axes that are looped over. (NumPy speaks of core and
            loop dimensions.)
        piecewise_linear: Whether the output is, on pieces, a linear function of parameters and input together, so that second
            derivatives are zero wherever they exist.
    """

    core_axes: ClassVar[int | None] = None
    piecewise_linear: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """The layer's kind, as tables and patterns name it."""
        return type(self).__name__

    def parameters(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns the parameters by local name, for an input of spec `x`."""
        return {}

    def statistics(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns what the forward tells of a shard's batch, by local name: written into `context.statistics` where that is not None.

        It is added over shards and ranks as gradients are, and not differentiated.
        """
        return {}

    def state(self, x: Spec) -> dict[str, ParameterSpec]:
        """Returns what the layer keeps from step to step, by local name: read as `context.state`."""
        return {}

    def advance(self, state: Params, statistics: Params) -> None:
        """Changes the state in place at the end of a step.

        Args:
            state: By local name.
            statistics: Sums over all shards, each times one unknown factor: so they tell ratios, of a sum to a count.
        """

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        """Returns the output by the definition, in plain NumPy: the source of the rules below, or their oracle."""
        raise NotImplementedError(
            f"{self.kind} has no apply: write apply(self, params, x, context), which returns the output in plain NumPy functions; "
            "all derivatives follow from it"
        )

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        """Returns the output and the own residuals; by default what `apply` gives, and none.

        The output is copied into an array of the ledger's. That is taken first where its size is known, so that what `apply` makes
        on the way comes on top of it, on the heap as in a block.

        Raises:
            ValueError: `apply` gave an output of another shape or dtype than in the footprint's trial.
        """
        told = context.output
        y = None if told is None else context.empty(told.shape, told.dtype, "activations")
        made = np.asarray(self.apply(params, x, context))
        require_output(self, made, told)
        if y is None:
            y = context.empty(made.shape, made.dtype, "activations")
        y[...] = made
        return y, ()

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        """Writes each parameter's cotangent into its view in `grads` and returns the input's cotangent.

        It overwrites (zeroing and then adding would turn -0.0 into +0.0). It returns None where x holds integers or
        `context.wanted` says that nobody reads x's cotangent, and a part of the cotangent where the footprint names an extent.

        By default `apply` is traced at x, and so computed once more.
        """
        return traced_vjp(self, params, x, cotangent, grads, context)

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        """Returns the output and its tangent: how it moves when the parameters and the input do. By default from `apply`.

        Args:
            params: The parameters by local name.
            x: The input (a tuple for several inputs).
            params_tangent: Their tangents, of the same names and shapes.
            x_tangent: Of the form of x; None where x holds integers, which do not move.
            context: Gives both arrays, from `activations`, the output's first.
        """
        return traced_jvp(self, params, x, params_tangent, x_tangent, context)

    def vjp_with_tangent(
        self,
        params: Pair[Params],
        x: Pair[Any],
        cotangent: Pair[Array],
        grads: Pair[Params],
        x_cotangent: Any,
        context: Context,
    ) -> None:
        """Writes the VJP and its tangent: how the VJP moves when parameters, input and cotangent do. By default from `apply`.

        It is what second derivatives of a chain are made of, and never called of layers that are `piecewise_linear`.

        Args:
            params: The parameters, and their tangents.
            x: The input, and its tangent (None for integers).
            cotangent: The output's cotangent, and its tangent.
            grads: Where the parameters' cotangents go, and where their tangents; both are overwritten.
            x_cotangent: The same for the input's cotangent (of the footprint's extent), for several inputs a tuple; None where nobody
                reads it, and then the input does not move. Where the footprint says that the backward may run in place, these may be
                the arrays of `cotangent`.
            context: Gives scratch.
        """
        extents: tuple[Extent | None, ...] = ()
        if type(self).footprint is not Layer.footprint:
            extents = self.footprint(_specs(x[0]), context.training).cotangent_extents
        traced_vjp_with_tangent(self, params, x, cotangent, grads, x_cotangent, context, extents)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        """Returns bytes and FLOPs for an input of spec `x`.

        By default the output's spec is found by running `apply` on random numbers (zeros where x holds integers), once for each
        layer and spec; the VJP needs the input alone; the heap is left `unmeasured`; and FLOPs are guessed: 10 an element of input and
        output, a multiplication and an addition a row of the output and parameter, and three times that for the VJP.

        Args:
            x: The input's spec (a tuple of specs for several inputs).
            training: False for an evaluation pass.

        Raises:
            NotImplementedError: The layer has no `apply`, or a `forward` or `vjp` of its own without a footprint.
            ValueError: The layer does not take such an input.
        """
        kind = type(self)
        if kind.forward is not Layer.forward or kind.vjp is not Layer.vjp:
            raise NotImplementedError(
                f"{self.kind} has a forward or a vjp of its own and so must say its bytes: write footprint(self, x, training=True), "
                "or leave forward and vjp away and write apply alone"
            )
        try:
            hash(self)
        except TypeError:  # a field is a list, say: it is run each time
            output = _output_of(self, x, training)
        else:
            output = _cached_output_of(self, x, training)
        weights = sum(parameter.size for parameter in self.parameters(x).values())
        flops = 10 * (x.size + output.size) + 2 * output.rows * weights
        return Footprint(
            output=output, needs_input=(True,), unmeasured=True, forward_flops=flops, backward_flops=3 * flops
        )


def _output_of(layer: Layer, x: Spec, training: bool) -> Spec:
    """The spec of what `apply` gives for an input of spec `x`, found by running it.

    Raises:
        ValueError: It failed.
    """
    key = Key(0).fold("footprint")
    parameters = Parameters.initialize(Layout(layer.parameters(x)), key)
    trial = key.generator().random(x.shape) if x.dtype.kind == "f" else np.zeros(x.shape)
    kept = dict(Parameters.initialize(Layout(layer.state(x)), key))
    context = Context(Ledger(), key=key, training=training, states={"": kept})
    try:
        with np.errstate(all="ignore"):
            y = np.asarray(layer.apply(dict(parameters), trial.astype(x.dtype), context))
    except NotImplementedError:
        raise
    except Exception as error:
        raise ValueError(f"{layer.kind}.apply fails for an input {x}: {type(error).__name__}: {error}") from error
    return Spec.of(y.shape, y.dtype)


_cached_output_of = functools.lru_cache(maxsize=1024)(_output_of)


def _specs(x: Any) -> Any:
    return tuple(map(_specs, x)) if isinstance(x, tuple) else Spec.of(x.shape, x.dtype)


def require_output(layer: Layer, y: Any, told: Spec | None) -> None:
    """Raises a clear error if an output has another shape or dtype than was said before (None: nothing was)."""
    if told is not None and (y.shape != told.shape or y.dtype != told.dtype):
        raise ValueError(
            f"{layer.kind} gave {Spec.of(y.shape, y.dtype)} where its footprint says {told}: its forward must give the same shape and dtype "
            "each time it runs on an input of one shape and dtype, recomputation included; let them depend on neither data, chance nor "
            "anything that changes between calls"
        )


def require_float(layer: Layer, x: Spec) -> None:
    """Raises a clear error unless `x` holds floats and has at least one axis."""
    if x.dtype.kind != "f" or not x.shape:
        raise ValueError(f"{layer.kind} takes an array of floats with at least one axis, but got {x}")
