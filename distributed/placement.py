"""Where on a Ray cluster the workers of a run go: a placement group, waited for, and what is missing where there is no room."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distributed.cluster import ClusterError
from distributed.nodes import Node, alive
from framework.sizes import format_size

#: How workers are put on nodes: as few as will do, or as many as there are.
PlacementKind = Literal["pack", "spread"]
#: Seconds between looks at the placement group, in which Ctrl-C is noticed.
_LOOK_SECONDS = 0.2
#: Seconds in which Ray sets aside what is free: at once, unless it is about to try another group again.
_SET_ASIDE_SECONDS = 30.0


@dataclass(frozen=True)
class Room:
    """What the workers of a run take of a cluster.

    Attributes:
        workers: How many.
        cpus: CPUs of each.
        memory: Bytes that are set aside for each; 0 for none.
        together: Whether they must be on one node.
        pin: A resource that the node for them alone has; None for any.
    """

    workers: int
    cpus: int
    memory: int = 0
    together: bool = False
    pin: str | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker takes, as Ray names it."""
        memory = {"memory": float(self.memory)} if self.memory else {}
        return {"CPU": float(self.cpus), **memory, **({self.pin: 0.001} if self.pin else {})}

    def fits(self, node: Node) -> int:
        """How many of the workers a node has room for."""
        by_memory = node.memory // self.memory if self.memory else self.workers
        return min(self.workers, by_memory, int(node.cpus // self.cpus))

    def takes_several(self, nodes: Sequence[Node]) -> bool:
        """Whether no node could ever have room for all of the workers, and several together could."""
        ever = [self.fits(node.emptied) for node in nodes]
        return max(ever, default=0) < self.workers <= sum(ever)

    def __str__(self) -> str:
        return _cpus(self.cpus) + (f" and {format_size(self.memory)} of memory" if self.memory else "")


class Placement:
    """A placement group for the workers of a run, and one for memory that is set aside later. Whoever makes one removes it, whatever happens.

    Args:
        ray: The module, connected.
        room: What the workers take.
        kind: Whether they are packed, on one node if one has room for all now, or spread over as many as there are.
    """

    def __init__(self, ray: Any, room: Room, kind: PlacementKind) -> None:
        self._ray, self._room = ray, room
        one = room.together or (kind == "pack" and any(room.fits(node) == room.workers for node in alive(ray)))
        self.strategy = "SPREAD" if kind == "spread" else "STRICT_PACK" if one else "PACK"
        self._groups: list[Any] = [ray.util.placement_group([room.bundle] * room.workers, strategy=self.strategy)]

    @property
    def options(self) -> dict[str, Any]:
        """The options of actors that go there."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._groups[0])}

    def wait(self, seconds: float) -> None:
        """Waits until there is room; an interrupt ends the waiting.

        Raises:
            ClusterError: There is none within so many seconds; the message says what is missing on which node.
        """
        if not _there(self._groups[0], seconds):
            raise ClusterError(missing(self._room, alive(self._ray), seconds))

    def workers_by_node(self) -> list[tuple[Node, int]]:
        """Returns how many workers have room on which node, once there is room."""
        places = self._ray.util.placement_group_table(self._groups[0])["bundles_to_node_id"].values()
        counts = Counter(places)
        return [(node, counts[node.id]) for node in alive(self._ray) if node.id in counts]

    def set_aside(self, memory: Mapping[Node, int]) -> None:
        """Sets memory aside on nodes besides, as where its size was not known before it was known which nodes they are.

        Args:
            memory: Bytes by node.

        Raises:
            ClusterError: Others have set it aside meanwhile.
        """
        bundles = [{"memory": float(nbytes), node.pin: 0.001} for node, nbytes in memory.items()]
        self._groups.append(self._ray.util.placement_group(bundles, strategy="SPREAD"))
        if not _there(self._groups[-1], _SET_ASIDE_SECONDS):
            told = ", ".join(f"{format_size(nbytes)} on {node.address}" for node, nbytes in memory.items())
            raise ClusterError(
                f"others have taken of the memory that was free for the workers a moment ago: {told}; start again"
            )

    def remove(self) -> None:
        """Removes the groups; what they hold is free again."""
        for group in self._groups:
            self._ray.util.remove_placement_group(group)
        self._groups = []


def _there(group: Any, seconds: float) -> bool:
    """Whether a placement group has all it wants within so many seconds; an interrupt ends the waiting."""
    deadline = time.monotonic() + seconds
    while not group.wait(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            return False
    return True


def missing(room: Room, nodes: Sequence[Node], seconds: float) -> str:
    """Says what a cluster lacks for the workers of a run, node by node.

    Args:
        room: What they take.
        nodes: What there is.
        seconds: How long it was waited for.
    """
    where = "on one node, since they share memory" if room.together else "on its nodes"
    told = [
        f"the cluster had no room for {room.workers} workers of {room} each {where} within {seconds:g} s; free now:",
        *(f"  {_told(room, node)}" for node in nodes),
    ]
    fitting = [room.fits(node) for node in nodes]
    found = max(fitting, default=0) if room.together else sum(fitting)
    ever = [room.fits(node.emptied) for node in nodes]
    most = max(ever, default=0) if room.together else sum(ever)
    lack = room.workers - found
    if lack > 0:
        told.append(f"what is missing is room for {lack} of them: {_amount(room, lack)}")
    if most < room.workers:
        hint = f"even with nobody else it has room for {most}: add nodes, or lower --workers" + (
            "" if most else ", --threads-per-worker" + (" or --memory-budget" if room.memory else "")
        )
    else:
        hint = "others use it; wait for them with a longer --placement-timeout, or lower --workers"
    return "\n".join([*told, hint])


def _told(room: Room, node: Node) -> str:
    memory = f", {format_size(node.memory)} of {format_size(node.all_memory)} of memory" if room.memory else ""
    return f"{node.address}: {node.cpus:g} of {node.all_cpus:g} CPUs{memory}: room for {room.fits(node)}"


def _amount(room: Room, workers: int) -> str:
    cpus = _cpus(workers * room.cpus)
    return cpus + (f" and {format_size(workers * room.memory)}" if room.memory else "")


def _cpus(number: int) -> str:
    return f"{number} CPU{'s' if number > 1 else ''}"
