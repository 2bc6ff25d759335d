"""The parameters of a node's workers: one copy for all of them, in two versions.

All workers of a node read the *published* version. When a step's gradients are all reduced (its commit point) each writes its part of the other
version: the new values of the elements whose optimizer state it holds. When all parts are there, those of other nodes too, that version is the
published one. So nobody has to be sent what a neighbour has updated, and until a step is finished the parameters before it are whole.

Version 0 lies in the memory of the node's first worker, version 1 in that of its second: with two workers each holds as much as without
sharing, and each further one holds nothing. Each of the two draws half of the initial values. A worker that is alone on its node has one version and updates it in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from checkpointing.costs import UpdateCost
from distributed.collectives.segment import PAGE, Segment, SegmentAddress
from distributed.collectives.spread import Spread
from framework.keys import Key
from framework.memory import Array, Ledger
from framework.parameters import Layout, Parameters

#: Who holds, in the ledger and in plans, a version, and what says of which step it is.
MODEL, NUMBER = "parameters/model", "parameters/version number"
#: The number of a version that is being written.
UNFINISHED = -1


class SharedWeights(Parameters):
    """A model's parameters as a worker sees those of its node. Their values are there when all of them are connected.

    Args:
        rank: This rank.
        spread: Of all ranks over nodes.
        layout: Names, shapes and places.
        key: From which initial values are drawn.
        ledger: Counts what `held_nbytes` says, and the state.

    Attributes:
        version: Which version is published.
    """

    def __init__(self, rank: int, spread: Spread, layout: Layout, key: Key, ledger: Ledger) -> None:
        self._here = spread.nodes[spread.node_of[rank]]
        self._place, self._own = self._here.index(rank), None
        held = {holder.split("/")[1]: nbytes for holder, nbytes in held_nbytes(layout, spread, rank).items() if nbytes}
        self._counted = [ledger.count(nbytes, "parameters", owner) for owner, nbytes in held.items()]
        if held:
            self._own = Segment.create("retape-weights", PAGE + max(PAGE, layout.nbytes))
        self._segments = [self._own] if self._own is not None else []
        # Nobody reads it: a worker computes when it is connected.
        unseen = np.broadcast_to(np.zeros((), layout.dtype), (layout.size,))
        super().__init__(
            layout, self._flat(layout, 0) if self._segments else unseen, self.initial_state(layout, key, ledger)
        )
        if self._segments:
            self.fill(key, self._drawn_by(self._place))

    @property
    def address(self) -> SegmentAddress | None:
        """Where the other workers of its node find the version that this one holds, if it holds one."""
        return self._own.address if self._own is not None else None

    def connect(self, addresses: Sequence[SegmentAddress | None]) -> None:
        """Maps the versions.

        Args:
            addresses: Of all ranks, in order.

        Raises:
            CollectiveError: One cannot be attached to.
        """
        self._segments = []
        for place, rank in enumerate(self._here[:2]):
            address = addresses[rank]
            assert address is not None
            mine = place == self._place and self._own is not None
            self._segments.append(self._own if mine else Segment.attach(address, f"rank {rank}"))  # type: ignore[arg-type]
        self._read(0)
        if self._place == 0 and len(self._segments) == 2:
            drawn = self.layout.views(self.coming)
            for name in self._drawn_by(1):
                self[name][...] = drawn[name]

    @property
    def published(self) -> int:
        """The steps that were done when this version was written, as all workers of the node are told; 0 for what they begin with, read from a file or not."""
        return self._number(self.version)[0]

    def begin(self, part: slice) -> Array | None:
        """Returns where this worker writes its part of the next version, a view of `coming`; None if that is the published one."""
        if len(self._segments) == 1:
            return None
        self._number(self._next)[0] = UNFINISHED
        return self.coming[part]

    @property
    def coming(self) -> Array:
        """The next version, flat."""
        return self._flat(self.layout, self._next)

    def publish(self, step: int) -> None:
        """Reads the next version from now on, all parts of which are there; the first worker of a node says so."""
        self._read(self._next)
        if self._place == 0:
            self._number(self.version)[0] = step + 1

    def close(self) -> None:
        """Lets nobody attach any more. The memory is gone when the last mapping is."""
        if self._own is not None:
            self._own.close()

    def _drawn_by(self, place: int) -> list[str]:
        """The parameters whose initial values the first or second worker of a node draws into its own version."""
        if len(self._here) == 1:
            return [*self.layout.specs]
        middle = self.layout.size / 2
        return [
            name
            for name, where in self.layout.slices.items()
            if ((where.start + where.stop) / 2 < middle) == (place == 0)
        ]

    @property
    def _next(self) -> int:
        return (self.version + 1) % len(self._segments)

    def _read(self, version: int) -> None:
        self.version = version
        self.use(self._flat(self.layout, version))

    def _number(self, version: int) -> memoryview[int]:
        return self._segments[version].words(0, 1)

    def _flat(self, layout: Layout, version: int) -> Array:
        return self._segments[version].array(PAGE, layout.size, layout.dtype)


def held_nbytes(layout: Layout, spread: Spread, rank: int) -> dict[str, int]:
    """Returns the bytes of parameters that a rank holds throughout, by "category/owner": a version, or nothing."""
    holds = rank in spread.nodes[spread.node_of[rank]][:2]
    return {MODEL: layout.nbytes, NUMBER: PAGE} if holds else {MODEL: 0, NUMBER: 0}


def with_weights(updates: Sequence[UpdateCost], layout: Layout, spread: Spread) -> tuple[UpdateCost, ...]:
    """Returns what ranks take where those of a node have one copy of the parameters."""
    return tuple(
        update._replace(held=(*update.held, *held_nbytes(layout, spread, rank).items()))
        for rank, update in enumerate(updates)
    )


def others_versions_nbytes(layout: Layout, spread: Spread, rank: int) -> int:
    """Returns the bytes of versions in other ranks' memory that a rank reads and writes, so that they are resident in its process, too."""
    here = spread.nodes[spread.node_of[rank]]
    versions = min(2, len(here)) - (rank in here[:2])
    return versions * (layout.nbytes + PAGE)
