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
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from checkpointing.costs import UpdateCost
from distributed.collectives.communicator import Communicator, slices_of
from distributed.collectives.hierarchical import HEADER_NBYTES, Hierarchical, message_sizes
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.shared_memory import SharedMemory, gathering_nbytes
from distributed.collectives.spread import Spread
from distributed.collectives.transport import Network, Transport
from distributed.shared_weights import SharedWeights
from distributed.worker_sizes import CHUNKS
from framework.memory import Array, Ledger
from framework.optimizers import Optimizer
from framework.parameters import Layout, Parameters
from framework.tensor_files import Scattered, Tensors

#: Bytes that travel at once, of all ranks together. A rank has room for eight times its share of them: in larger pieces they go little faster,
#: and of a small model the room would be more than what is saved.
CHUNK = 256 * 1024
#: Bytes of a message between nodes, of which a leader has room for some.
MESSAGE = 64 * 1024
#: Who holds, in the ledger, the block in which others' state passes, and the shared memory that parameters and state are sent through.
_PASSING, _GATHERING = "passing state", "gathering parameters"


class ShardedState:
    """A rank's part of the optimizer's state, and what ranks do with it together; a `checkpointing.reduction.Sharing`.

    `gather`, the blocks of `tensors`, and `sha256` are called by all ranks, in the same order.

    Args:
        communicator: What carries parameters and state, used for nothing else.
        layout: Of the parameters.
        ledger: Counts what `communication_nbytes` says.
        spread: Of the ranks over nodes.

    Attributes:
        part: The elements of the flat buffer whose state this rank holds.
    """

    def __init__(self, communicator: Communicator, layout: Layout, ledger: Ledger, spread: Spread) -> None:
        self._communicator, self._layout = communicator, layout
        self._slices = slices_of(layout.size, communicator.world)
        self.part = self._slices[communicator.rank]
        size = piece_size(self._slices, layout.dtype)
        self._passing = ledger.empty((size,), layout.dtype, "communication", _PASSING)
        nbytes = communication_nbytes(layout, spread)[f"communication/{_GATHERING}"]
        self._counted = ledger.count(nbytes, "communication", _GATHERING)

    def begin(self, parameters: Parameters) -> Array | None:
        """Returns where this rank writes its part; see `checkpointing.reduction.Sharing`."""
        return parameters.begin(self.part) if isinstance(parameters, SharedWeights) else None

    def publish(self, parameters: Parameters, step: int) -> None:
        """Makes the parameters those after a step.

        Raises:
            CollectiveError: See `Communicator`.
        """
        if isinstance(parameters, SharedWeights):
            self._communicator.share(parameters.coming)
            parameters.publish(step)
        else:
            self.gather(parameters.flat)

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


class StateCarrier:
    """What carries parameters and state, within a node or across several.

    Args:
        rank: This rank.
        spread: Of all ranks over nodes.
        timeout: Seconds that an operation waits for other ranks.
        network: What is between nodes.
        ledger: Counts what `across_nbytes` says.

    Attributes:
        communicator: It.
    """

    def __init__(self, rank: int, spread: Spread, timeout: float, network: Network, ledger: Ledger) -> None:
        self.communicator: SharedMemory | Hierarchical
        if len(spread.nodes) == 1:
            self.communicator = SharedMemory(rank, len(spread.node_of), 0, timeout, CHUNK)
            return
        messages = None
        if across := across_nbytes(spread, rank):
            category, owner = CHUNKS.split("/")
            messages = ledger.empty((across - CHUNK,), np.uint8, category, owner)
            self._counted = ledger.count(CHUNK, category, owner)  # the window, which its node's ranks read and write
        network = replace(network, chunk=MESSAGE)
        self.communicator = Hierarchical(rank, spread, timeout, network, CHUNK, messages)

    def connect(self, addresses: Sequence[SegmentAddress], transport: Transport | None) -> None:
        """Attaches to the memory of the workers on its node; the transport carries messages to other nodes, if there are any."""
        if isinstance(self.communicator, Hierarchical):
            self.communicator.connect(addresses, transport)
        else:
            self.communicator.connect(addresses)


def update_costs(optimizer: Optimizer, layout: Layout, world: int) -> tuple[UpdateCost, ...]:
    """Returns what the optimizer takes on each rank."""
    return tuple(UpdateCost.of(optimizer, layout, part) for part in slices_of(layout.size, world))


def communication_nbytes(layout: Layout, spread: Spread) -> dict[str, int]:
    """Returns the bytes that each rank holds throughout to pass parameters and state on, by "category/owner"."""
    slices = slices_of(layout.size, len(spread.node_of))
    nbytes = piece_size(slices, layout.dtype) * layout.dtype.itemsize
    gathering = gathering_nbytes(nbytes) if len(spread.nodes) == 1 else HEADER_NBYTES
    return {f"communication/{_PASSING}": nbytes, f"communication/{_GATHERING}": gathering}


def across_nbytes(spread: Spread, rank: int) -> int:
    """Returns the bytes that a rank holds besides as the leader of one of several nodes: a window for its node, and room for messages."""
    if len(spread.nodes) == 1 or rank not in spread.leaders:
        return 0
    return CHUNK + message_sizes(spread, spread.node_of[rank], MESSAGE).nbytes


def others_nbytes(layout: Layout, spread: Spread) -> int:
    """Returns the most bytes of other ranks' shared memory, to the same end, that are resident in a rank's process, too.

    What goes to other nodes and comes from them is Ray's meanwhile: at most as much each way as there is room for where it arrives.
    """
    gathering = communication_nbytes(layout, spread)[f"communication/{_GATHERING}"]
    most = max(map(len, spread.nodes)) - 1
    across = max(across_nbytes(spread, leader) for leader in spread.leaders)
    return most * gathering + 2 * across


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
