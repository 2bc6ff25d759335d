"""How ranks are spread over nodes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Spread:
    """Which ranks are on which node.

    The lowest rank of a node is its *leader*, who alone exchanges with other nodes.

    Attributes:
        nodes: For each node its ranks in order; nodes in the order of their leaders.
    """

    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, places: Sequence[Hashable]) -> Spread:
        """Returns the spread of ranks, given the node of each, however it is named.

        >>> Spread.of(["b", "a", "b"]).nodes
        ((0, 2), (1,))
        """
        found: dict[Hashable, list[int]] = {}
        for rank, place in enumerate(places):
            found.setdefault(place, []).append(rank)
        return cls(tuple(map(tuple, found.values())))

    @classmethod
    def parse(cls, text: str, world: int) -> Spread:
        """Reads how many ranks each node has.

        Raises:
            ValueError: It is not written so, or the ranks are not as many.

        >>> Spread.parse("2+1", 3).nodes
        ((0, 1), (2,))
        """
        counts = [int(count) if count.isdecimal() else 0 for count in text.split("+")]
        if min(counts) < 1 or sum(counts) != world:
            raise ValueError(
                f"{text!r} does not spread {world} ranks over nodes; write how many each has, as 2+1 for 3"
            )
        return cls.of([node for node, count in enumerate(counts) for _ in range(count)])

    @property
    def leaders(self) -> tuple[int, ...]:
        """The leader of each node."""
        return tuple(ranks[0] for ranks in self.nodes)

    @cached_property
    def node_of(self) -> tuple[int, ...]:
        """The node of each rank."""
        found = {rank: node for node, ranks in enumerate(self.nodes) for rank in ranks}
        return tuple(found[rank] for rank in sorted(found))

    def __str__(self) -> str:
        return "+".join(str(len(ranks)) for ranks in self.nodes)
