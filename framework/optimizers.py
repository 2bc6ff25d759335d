"""Optimizers on flat buffers, block by block, and clipping by the global norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framework import kernels
from framework.memory import Array, Ledger
from framework.parameters import Layout, Part

#: Elements over which one partial sum of squares is taken, whatever owns them.
NORM_BLOCK = 4_096
#: Blocks that are squared at once.
_NORM_ROWS = 8
#: See `global_norm`.
Exchange = Callable[[Array, slice], None]


class Optimizer(ABC):
    """Updates a flat parameter buffer from a flat gradient.

    Its state is one array of shape (slots, size), each row with the layout of the parameters. It is elementwise, so any
    cut of the buffers gives the same bits.

    Attributes:
        slots: Rows of the state.
        scratch_rows: Rows of scratch of a block: one for a gradient that is clipped, and those that the update takes.
        decays: Which parameters the weight decay is for, as `Layout.select` gives them; None for all.
    """

    slots: int
    scratch_rows: int
    decays: Part | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """What the rows of the state are called in files."""
        return tuple(f"row{number}" for number in range(self.slots))

    def state_by_name(self, layout: Layout, state: Array) -> dict[str, Array]:
        """Returns views of the state by row and parameter: "mean/embedding.token"."""
        return {
            f"{row}/{name}": view
            for row, flat in zip(self.rows, state, strict=True)
            for name, view in layout.views(flat).items()
        }

    def state_nbytes(self, layout: Layout, part: slice | None = None) -> int:
        """Bytes of the state of some elements; of all, if nothing is said."""
        return self.slots * _elements(layout, part) * layout.dtype.itemsize

    def workspace_nbytes(self, layout: Layout, part: slice | None = None) -> int:
        """Bytes of scratch of an update of some elements; of all, if nothing is said."""
        return self.scratch_rows * kernels.block_rows(_elements(layout, part), 1) * layout.dtype.itemsize

    def initialize(self, layout: Layout, ledger: Ledger | None = None, part: slice | None = None) -> Array:
        """Returns the state before the first step: zeros.

        Args:
            layout: The layout of the parameters.
            ledger: Counts the state.
            part: The elements whose state it is; None for all.

        Raises:
            ValueError: `decays` was selected from another layout.
        """
        self._require_own(layout)
        shape = self.slots, _elements(layout, part)
        state = (ledger or Ledger()).empty(shape, layout.dtype, "optimizer", type(self).__name__)
        state.fill(0)
        return state

    def update(
        self,
        parameters: Array,
        gradient: Array,
        state: Array,
        *,
        step: int,
        learning_rate: float,
        factor: float = 1.0,
        ledger: Ledger | None = None,
        first: int = 0,
        out: Array | None = None,
    ) -> None:
        """Changes state in place, and parameters too, unless they go elsewhere.

        Args:
            parameters: Shape (size,).
            gradient: Shape (size,), the mean gradient; it is only read.
            state: Shape (slots, size).
            step: The number of the step, from 0.
            learning_rate: The learning rate of this step.
            factor: The gradient is multiplied by it (clipping).
            ledger: Counts the scratch.
            first: Where in the whole buffer the first of these elements lies: what decays is known by its place.
            out: Where the new parameters are written, shape (size,), if not into `parameters`, which then are only read.

        Raises:
            ValueError: `decays` was selected from a smaller buffer.
        """
        if self.decays is not None and first + parameters.size > self.decays.size:
            raise ValueError(
                f"decays was selected from {self.decays.size} parameters, but elements {first} to "
                f"{first + parameters.size} are to be updated; select it from this model's layout"
            )
        height = kernels.block_rows(parameters.size, 1)
        name, book = type(self).__name__, ledger or Ledger()
        scratch = book.empty((self.scratch_rows, height), parameters.dtype, "workspace", name)
        for block in kernels.row_blocks(parameters.size, 1):
            some, g, new = scratch[:, : block.stop - block.start], gradient[block], parameters[block]
            if factor != 1:
                g = np.multiply(g, factor, out=some[0])
            decaying = [slice(None)]
            if self.decays is not None:
                decaying = list(self.decays.inside(first + block.start, first + block.stop))
            if out is not None:
                out[block] = new
                new = out[block]  # in the cache
            self._update_block(new, g, some[1:], state[:, block], step, learning_rate, decaying)

    @abstractmethod
    def _update_block(
        self,
        parameters: Array,
        gradient: Array,
        spare: Array,
        state: Array,
        step: int,
        rate: float,
        decaying: list[slice],
    ) -> None:
        """Updates one block, of which some slices decay; the gradient is only read."""

    def _require_own(self, layout: Layout) -> None:
        if self.decays is None:
            return
        names = set(self.decays.names)
        if (
            layout.size != self.decays.size
            or layout.ranges(n for n in layout.specs if n in names) != self.decays.ranges
        ):
            raise ValueError(
                f"decays was selected from another layout, of {self.decays.size} parameters; this one has {layout.size}: use "
                "select of the layout that is trained"
            )


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum: m = momentum·m + g, p = p - rate·m (Polyak 1964).

    Nesterov's form takes the step of the momentum that comes next: p = p - rate·(g + momentum·m) (Sutskever et al. 2013).

    Attributes:
        momentum: In [0, 1).
        weight_decay: Adds weight_decay·p to the gradient.
        nesterov: Whether it is Nesterov's form; it needs a momentum.
        decays: Which parameters decay; see `Optimizer`.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    decays: Part | None = None

    def __post_init__(self) -> None:
        _require_fraction("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, but got 0")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return 1 if self.momentum else 0

    @property
    def rows(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    scratch_rows = 3

    def _update_block(
        self,
        parameters: Array,
        gradient: Array,
        spare: Array,
        state: Array,
        step: int,
        rate: float,
        decaying: list[slice],
    ) -> None:
        along, other = spare
        if self.weight_decay:
            along[...] = gradient
            for some in decaying:
                np.multiply(parameters[some], self.weight_decay, out=other[some])
                along[some] += other[some]
            gradient = along
        if self.momentum:
            state[0] *= self.momentum
            state[0] += gradient
            if self.nesterov:
                np.multiply(state[0], self.momentum, out=other)
                other += gradient
                gradient = other
            else:
                gradient = state[0]
        parameters -= np.multiply(gradient, rate, out=along)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101).

    p = p·(1 - rate·weight_decay) - rate·m̂/(√v̂ + epsilon), m̂ and v̂ corrected for their start at zero.

    The state is m/(1 - beta1) and v/(1 - beta2): then a step m = beta1·m + g has two passes over memory instead of three, v likewise,
    and the factors go into two numbers.

    Attributes:
        beta1: Decay of the mean m.
        beta2: Decay of the mean square v.
        epsilon: Added to √v̂.
        weight_decay: Decay of the parameters per unit of learning rate.
        decays: Which parameters decay; see `Optimizer`.

    Matrices alone, neither biases nor the weights of norms:

    >>> from framework import Chain, Linear, Spec
    >>> layout = Chain(Linear(2)).layout(Spec.of((1, 3), "float32"))
    >>> AdamW(decays=layout.select(least_axes=2)).decays
    Part(names=('0.weight',), size=8)
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decays: Part | None = None

    def __post_init__(self) -> None:
        _require_fraction("beta1", self.beta1)
        _require_fraction("beta2", self.beta2)

    slots = 2
    rows = ("mean", "square")
    scratch_rows = 2

    def _update_block(
        self,
        parameters: Array,
        gradient: Array,
        spare: Array,
        state: Array,
        step: int,
        rate: float,
        decaying: list[slice],
    ) -> None:
        (mean, square), along = state, spare[0]
        of_mean = (1 - self.beta1) / (1 - self.beta1 ** (step + 1))
        of_root = math.sqrt((1 - self.beta2) / (1 - self.beta2 ** (step + 1)))
        mean *= self.beta1
        mean += gradient
        square *= self.beta2
        square += np.multiply(gradient, gradient, out=along)
        np.sqrt(square, out=along)
        along += self.epsilon / of_root
        np.divide(mean, along, out=along)
        along *= rate * of_mean / of_root
        if self.weight_decay:
            for some in decaying:
                parameters[some] *= 1 - rate * self.weight_decay
        parameters -= along


def global_norm(flat: Array, ledger: Ledger, exchange: Exchange | None = None, place: int = 0, count: int = 1) -> float:
    """Returns the Euclidean norm in float64.

    The squares of each fixed block of 4,096 elements are summed, then the blocks' sums in a binary tree, so the
    bits do not depend on who computes which blocks.

    Args:
        flat: Shape (size,), on all ranks the same numbers.
        ledger: Counts the scratch.
        exchange: Where ranks sum the blocks together: given the blocks' sums (blocks,) and which of them are this rank's, writes
            the other ranks' into them.
        place: Which of these ranks this is.
        count: How many they are.
    """
    blocks = norm_blocks(flat.size)
    sums = ledger.empty((blocks,), np.float64, "workspace", "norm")
    height = min(_NORM_ROWS, blocks)
    scratch = ledger.empty((height, NORM_BLOCK), np.float64, "workspace", "norm")
    mine = norm_share(blocks, place, count)
    for first in range(mine.start, mine.stop, _NORM_ROWS):
        rows = min(height, mine.stop - first)
        some = flat[first * NORM_BLOCK : (first + rows) * NORM_BLOCK]
        whole = scratch[:rows].reshape(-1)
        whole[: some.size] = some
        whole[some.size :] = 0
        np.vecdot(scratch[:rows], scratch[:rows], out=sums[first : first + rows])
    if exchange is not None:
        exchange(sums, mine)
    return math.sqrt(tree_sum(sums.tolist()))


def norm_blocks(size: int) -> int:
    """Returns how many blocks `global_norm` cuts so many elements into."""
    return -(-size // NORM_BLOCK)


def norm_share(blocks: int, place: int, count: int) -> slice:
    """Returns the blocks that one of `count` ranks sums."""
    return slice(blocks * place // count, blocks * (place + 1) // count)


def norm_workspace_nbytes(layout: Layout) -> int:
    """Bytes of scratch of `global_norm` over a buffer of this layout."""
    blocks = norm_blocks(layout.size)
    return (blocks + min(_NORM_ROWS, blocks) * NORM_BLOCK) * np.dtype(np.float64).itemsize


def clip_factor(norm: float, most: float | None) -> float:
    """Returns the factor that brings a gradient of the given norm down to at most `most` (Pascanu et al. 2013)."""
    if most is None or not norm > most:
        return 1.0
    return most / norm


def tree_sum(values: list[float]) -> float:
    """Returns the sum in a binary tree: neighbours first, then neighbours of the sums.

    >>> tree_sum([1.0, 2.0, 3.0])
    6.0
    """
    while len(values) > 1:
        odd = values[-1:] if len(values) % 2 else []
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + odd
    return values[0] if values else 0.0


def _elements(layout: Layout, part: slice | None) -> int:
    """How many elements of the flat buffer a part has."""
    return layout.size if part is None else len(range(layout.size)[part])


def _require_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} lies in [0, 1), but got {value}")
