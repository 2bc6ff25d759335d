"""The optimizer's state shared out over ranks: each holds that of its slice of the parameters, updates the slice, and is given the others'.

That is stage 1 of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054). Gradients are reduced as always, each rank its share in place, where all
read it; so a rank reads its slice of the mean from there. Optimizers are elementwise, and what decays is known by its place
in the whole buffer, so the bits are those of replicated state.

Slices are `slices_of`: contiguous, in whole blocks of 4,096 elements, the first ranks one more; the last block may be shorter, and a rank may
have none. What must be seen as a whole, for a snapshot or a hash, passes block by block in the order of the whole, so nobody ever holds all
of it, and it does not depend on how it was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from checkpointing.costs import UpdateCost
from distributed.collectives.communicator import Communicator, slices_of
from distributed.collectives.shared_memory import SharedMemory, gathering_nbytes
from framework.memory import Array, Ledger
from framework.optimizers import Optimizer
from framework.parameters import Layout
from framework.tensor_files import Scattered, Tensors

#: Bytes that travel at once, of all ranks together. A rank has room for eight times its share of them: in larger pieces they go little faster,
#: and of a small model the room would be more than what is saved.
CHUNK = 256 * 1024
#: Who holds, in the ledger, the block in which others' state passes, and the shared memory that parameters and state are sent through.
_PASSING, _GATHERING = "passing state", "gathering parameters"


class ShardedState:
    """A rank's part of the optimizer's state, and what ranks do with it together; a `checkpointing.reduction.Sharing`.

    `gather`, the blocks of `tensors`, and `sha256` are called by all ranks, in the same order.

    Args:
        communicator: What carries parameters and state, used for nothing else.
        layout: Of the parameters.
        ledger: Counts what `communication_nbytes` says.

    Attributes:
        part: The elements of the flat buffer whose state this rank holds.
    """

    def __init__(self, communicator: Communicator, layout: Layout, ledger: Ledger) -> None:
        self._communicator, self._layout = communicator, layout
        self._slices = slices_of(layout.size, communicator.world)
        self.part = self._slices[communicator.rank]
        size = piece_size(self._slices, layout.dtype)
        self._passing = ledger.empty((size,), layout.dtype, "communication", _PASSING)
        nbytes = communication_nbytes(layout, communicator.world)[f"communication/{_GATHERING}"]
        self._counted = ledger.count(nbytes, "communication", _GATHERING)

    def gather(self, parameters: Array) -> None:
        """Fills the flat parameters with the slices that the other ranks have updated.

        Raises:
            CollectiveError: See `Communicator`.
        """
        found = self._communicator.all_gather(parameters)
        if found is not parameters:
            parameters[...] = found

    def tensors(self, optimizer: Optimizer, state: Array) -> dict[str, Scattered]:
        """Returns the whole state by row and parameter, as `Optimizer.state_by_name` names it.

        Args:
            optimizer: Whose state it is.
            state: This rank's: (slots, elements of its part).
        """
        found = {}
        for number, row in enumerate(optimizer.rows):
            for name, where in self._layout.slices.items():
                here = _both(where, self.part)
                found[f"{row}/{name}"] = Scattered(
                    self._layout.specs[name].shape,
                    self._layout.dtype,
                    _from(here, where.start),
                    state[number, _from(here, self.part.start)],
                    partial(self._blocks, state[number], where),
                )
        return found

    def pass_on(self, tensors: Tensors) -> None:
        """Gives a rank that writes `tensors` what this one holds of them."""
        for tensor in tensors.values():
            if isinstance(tensor, Scattered):
                for _ in tensor.blocks():
                    pass

    def sha256(self, state: Array) -> str:
        """Returns the SHA-256 of the whole state's little-endian bytes, row by row: that of replicated state."""
        found = hashlib.sha256()
        for row in state:
            for block in self._blocks(row, slice(0, self._layout.size)):
                found.update(block.astype(block.dtype.newbyteorder("<"), copy=False).data)
        return found.hexdigest()

    def _blocks(self, row: Array, where: slice) -> Iterator[Array]:
        """Yields some elements of a row of the whole state, in order, each block from the rank that holds it."""
        for rank, held in enumerate(self._slices):
            here = _both(where, held)
            for start in range(here.start, here.stop, self._passing.size):
                stop = min(start + self._passing.size, here.stop)
                mine = rank == self._communicator.rank
                block = row[start - held.start : stop - held.start] if mine else self._passing[: stop - start]
                yield self._communicator.broadcast(block, rank)


def state_communicator(rank: int, world: int, timeout: float) -> SharedMemory:
    """Returns what carries parameters and state on one node."""
    return SharedMemory(rank, world, 0, timeout, CHUNK)


def update_costs(optimizer: Optimizer, layout: Layout, world: int) -> tuple[UpdateCost, ...]:
    """Returns what the optimizer takes on each rank."""
    return tuple(UpdateCost.of(optimizer, layout, part) for part in slices_of(layout.size, world))


def communication_nbytes(layout: Layout, world: int) -> dict[str, int]:
    """Returns the bytes that a rank holds throughout to pass parameters and state on, by "category/owner"."""
    nbytes = piece_size(slices_of(layout.size, world), layout.dtype) * layout.dtype.itemsize
    return {f"communication/{_PASSING}": nbytes, f"communication/{_GATHERING}": gathering_nbytes(nbytes)}


def others_nbytes(layout: Layout, world: int) -> int:
    """Returns the bytes of the other ranks' shared memory, to the same end, that are resident in a rank's process, too."""
    return (world - 1) * communication_nbytes(layout, world)[f"communication/{_GATHERING}"]


def piece_size(slices: Sequence[slice], dtype: np.dtype[Any]) -> int:
    """Returns how many elements of a slice travel at once, at most."""
    owners = sum(part.stop > part.start for part in slices)
    size: int = min(max(part.stop - part.start for part in slices), CHUNK // max(1, owners) // dtype.itemsize)
    return size


def _both(some: slice, others: slice) -> slice:
    """The elements that are in both; an empty slice if there are none."""
    start = max(some.start, others.start)
    return slice(start, max(start, min(some.stop, others.stop)))


def _from(some: slice, first: int) -> slice:
    """Elements, counted from another one; none stay none."""
    if some.start == some.stop:
        return slice(0, 0)
    return slice(some.start - first, some.stop - first)
