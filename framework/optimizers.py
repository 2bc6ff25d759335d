"""Optimizers on flat buffers, block by block, and clipping by the global norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from framework import kernels
from framework.memory import Array, Ledger
from framework.parameters import Layout

#: Elements over which one partial sum of squares is taken, whatever owns them.
NORM_BLOCK = 4_096
#: Blocks that are squared at once.
_NORM_ROWS = 8


class Optimizer(ABC):
    """Updates a flat parameter buffer from a flat gradient.

    Its state is one array of shape (slots, size), each row with the layout of the parameters. It is elementwise, so any
    cut of the buffers gives the same bits.
    """

    slots: int
    scratch_rows: int

    def state_nbytes(self, layout: Layout) -> int:
        """Bytes of the state."""
        return self.slots * layout.nbytes

    def workspace_nbytes(self, layout: Layout) -> int:
        """Bytes of scratch of an update."""
        return self.scratch_rows * kernels.block_rows(layout.size, 1) * layout.dtype.itemsize

    def initialize(self, layout: Layout, ledger: Ledger | None = None) -> Array:
        """Returns the state before the first step: zeros."""
        state = (ledger or Ledger()).empty((self.slots, layout.size), layout.dtype, "optimizer", type(self).__name__)
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
    ) -> None:
        """Changes parameters and state in place.

        Args:
            parameters: Shape (size,).
            gradient: Shape (size,), the mean gradient; it is only read.
            state: Shape (slots, size).
            step: The number of the step, from 0.
            learning_rate: The learning rate of this step.
            factor: The gradient is multiplied by it (clipping).
            ledger: Counts the scratch.
        """
        height = kernels.block_rows(parameters.size, 1)
        name, book = type(self).__name__, ledger or Ledger()
        scratch = book.empty((self.scratch_rows, height), parameters.dtype, "workspace", name)
        for block in kernels.row_blocks(parameters.size, 1):
            some = scratch[:, : block.stop - block.start]
            np.multiply(gradient[block], factor, out=some[0])
            self._update_block(parameters[block], some, state[:, block], step, learning_rate)

    @abstractmethod
    def _update_block(self, parameters: Array, scratch: Array, state: Array, step: int, rate: float) -> None:
        """Updates one block; scratch[0] holds the gradient and may be overwritten."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum: m = momentum·m + g, p = p - rate·m (Polyak 1964).

    Attributes:
        momentum: In [0, 1).
        weight_decay: Adds weight_decay·p to the gradient.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _require_fraction("momentum", self.momentum)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return 1 if self.momentum else 0

    scratch_rows = 2

    def _update_block(self, parameters: Array, scratch: Array, state: Array, step: int, rate: float) -> None:
        gradient, spare = scratch
        if self.weight_decay:
            np.multiply(parameters, self.weight_decay, out=spare)
            gradient += spare
        if self.momentum:
            state[0] *= self.momentum
            state[0] += gradient
            np.multiply(state[0], rate, out=gradient)
        else:
            gradient *= rate
        parameters -= gradient


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101).

    p = p·(1 - rate·weight_decay) - rate·m̂/(√v̂ + epsilon), m̂ and v̂ corrected for their start at zero.

    Attributes:
        beta1: Decay of the mean m.
        beta2: Decay of the mean square v.
        epsilon: Added to √v̂.
        weight_decay: Decay of the parameters per unit of learning rate.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _require_fraction("beta1", self.beta1)
        _require_fraction("beta2", self.beta2)

    slots = 2
    scratch_rows = 2

    def _update_block(self, parameters: Array, scratch: Array, state: Array, step: int, rate: float) -> None:
        (gradient, spare), (mean, square) = scratch, state
        np.multiply(gradient, gradient, out=spare)
        spare *= 1 - self.beta2
        square *= self.beta2
        square += spare
        gradient *= 1 - self.beta1
        mean *= self.beta1
        mean += gradient
        np.sqrt(square, out=spare)
        spare *= 1 / math.sqrt(1 - self.beta2 ** (step + 1))
        spare += self.epsilon
        np.divide(mean, spare, out=spare)
        spare *= rate / (1 - self.beta1 ** (step + 1))
        if self.weight_decay:
            parameters *= 1 - rate * self.weight_decay
        parameters -= spare


def global_norm(flat: Array, ledger: Ledger) -> float:
    """Returns the Euclidean norm in float64.

    The squares of each fixed block of 4,096 elements are summed, then the blocks' sums in a binary tree, so the
    bits do not depend on who computes which blocks.
    """
    blocks = -(-flat.size // NORM_BLOCK)
    sums = ledger.empty((blocks,), np.float64, "workspace", "norm")
    height = min(_NORM_ROWS, blocks)
    scratch = ledger.empty((height, NORM_BLOCK), np.float64, "workspace", "norm")
    for first in range(0, blocks, _NORM_ROWS):
        some = flat[first * NORM_BLOCK : (first + height) * NORM_BLOCK]
        whole = scratch.reshape(-1)
        whole[: some.size] = some
        whole[some.size :] = 0
        rows = min(height, blocks - first)
        np.einsum("ij,ij->i", scratch[:rows], scratch[:rows], out=sums[first : first + rows])
    return math.sqrt(tree_sum(sums.tolist()))


def norm_workspace_nbytes(layout: Layout) -> int:
    """Bytes of scratch of `global_norm` over a buffer of this layout."""
    blocks = -(-layout.size // NORM_BLOCK)
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


def _require_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} lies in [0, 1), but got {value}")
