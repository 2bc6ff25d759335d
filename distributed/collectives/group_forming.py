"""How ranks that know nothing of each other but a group's name find each other: through a store of small things that all see.

Each rank writes down its place, and then what it sees of all places. When all see the same, nobody looks at what a former group of that
name, whose processes died, has left behind. Rank 0 then deletes what was written.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Protocol

from distributed.collectives.communicator import CollectiveError
from distributed.collectives.segment import SegmentAddress
from distributed.collectives.shared_memory import SharedMemory

#: Seconds between looks for ranks that have not come yet.
_PAUSE = 0.01


class Store(Protocol):
    """Words by name that all ranks see."""

    def put(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> str | None: ...

    def delete(self, key: str) -> None: ...


def form_group(store: Store, group: str, communicator: SharedMemory, node: str, timeout: float) -> None:
    """Connects a rank's communicator with those of all others.

    Args:
        store: Where ranks find each other.
        group: A name that no other group has now.
        communicator: This rank's, not yet connected.
        node: The node that this rank is on.
        timeout: Seconds to wait for the others.

    Raises:
        CollectiveError: Ranks did not come within the timeout, or they are on several nodes.
    """
    forming = _Forming(store, group, communicator.rank, communicator.world, timeout)
    nonce = uuid.uuid4().hex  # tells this rank from that of a former group
    places = forming.agree(json.dumps({"node": node, "nonce": nonce, "address": asdict(communicator.address)}))
    nodes = [place["node"] for place in places]
    if len(set(nodes)) > 1:
        where = ", ".join(f"rank {rank} on {other[:8]}" for rank, other in enumerate(nodes))
        raise CollectiveError(
            f"rank {communicator.rank}: group {group!r} is on several nodes ({where}), but shared memory is within one; put its "
            "actors into a placement group with the strategy STRICT_PACK",
            "connect",
        )
    communicator.connect([SegmentAddress(**place["address"]) for place in places])
    communicator.barrier(timeout)


class _Forming:
    """One rank's part in the forming of a group."""

    def __init__(self, store: Store, group: str, rank: int, world: int, timeout: float) -> None:
        self._store, self._group, self._rank, self._world, self._timeout = store, group, rank, world, timeout
        self._started = time.monotonic()

    def agree(self, place: str) -> list[dict[str, Any]]:
        """Returns the places of all ranks, once all have seen the same ones."""
        self._store.put(self._key(self._rank, "place"), place)
        try:
            view = self._until(self._common_view)
            self._store.put(self._key(self._rank, "done"), view)
            if self._rank == 0:  # the others may have gone on, or may not: they read no more
                self._until(lambda: self._all("done", view))
        except BaseException:
            self._delete([self._rank])
            raise
        if self._rank == 0:
            self._delete(range(self._world))
        return [json.loads(place) for place in json.loads(view)]

    def _common_view(self) -> str | list[int]:
        """Returns what all ranks see, or the ranks that keep this one waiting."""
        places = [self._store.get(self._key(rank, "place")) for rank in range(self._world)]
        if late := [rank for rank, place in enumerate(places) if place is None]:
            return late
        view = json.dumps(places)
        self._store.put(self._key(self._rank, "view"), view)
        return self._all("view", view)

    def _all(self, what: str, view: str) -> str | list[int]:
        """Returns the view if all ranks have written it, or those that have not."""
        return [rank for rank in range(self._world) if self._store.get(self._key(rank, what)) != view] or view

    def _until(self, look: Callable[[], str | list[int]]) -> str:
        """Looks until there is what to see."""
        while not isinstance(found := look(), str):
            waited = time.monotonic() - self._started
            if waited > self._timeout:
                raise CollectiveError(
                    f"rank {self._rank}: ranks {found} late, waited {waited:.1f} s to form group {self._group!r} of {self._world}",
                    "connect",
                    found,
                    seconds=waited,
                )
            time.sleep(_PAUSE)
        return found

    def _key(self, rank: int, what: str) -> str:
        return f"retape/{self._group}/{rank}/{what}"

    def _delete(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            for what in ("place", "view", "done"):
                self._store.delete(self._key(rank, what))
