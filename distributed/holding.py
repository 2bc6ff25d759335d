"""How the ranks of a run hold parameters and optimizer state: each all of it, or shared out; which is chosen, and the bytes that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from checkpointing.costs import UpdateCost
from distributed.collectives.spread import Spread
from distributed.sharded_state import communication_nbytes, others_nbytes, update_costs
from distributed.shared_weights import others_versions_nbytes, with_weights
from framework.optimizers import Optimizer
from framework.parameters import Layout

#: Whether the workers of a node have one copy of the weights; auto: see `Holding.chosen`.
ShareWeights = Literal["auto", "yes", "no"]


@dataclass(frozen=True)
class Holding:
    """How ranks hold parameters and optimizer state.

    Attributes:
        optimizer: Whose state it is.
        layout: Of the parameters.
        spread: Of the ranks over nodes.
        sharded: Whether each rank holds the optimizer's state of its part of the parameters alone.
        weights: Whether the ranks of a node have one copy of the parameters, too.
    """

    optimizer: Optimizer
    layout: Layout
    spread: Spread
    sharded: bool = False
    weights: bool = False

    @classmethod
    def chosen(
        cls,
        optimizer: Optimizer,
        layout: Layout,
        spread: Spread,
        shard_optimizer: bool,
        share_weights: ShareWeights,
        whole_process: bool,
    ) -> Holding:
        """Returns what options ask for; with one rank there is nobody to share with.

        With auto weights are shared where all ranks are on one node and none takes more memory by it: a node holds less, each
        updates its part alone, and nobody has to be sent what others have updated. Between nodes they would have to be. In a budget of whole processes each
        counts what it sees of others' memory, and the rank that sees most stands for all: the least of such budgets would be higher.

        Args:
            optimizer: See `Holding`.
            layout: See `Holding`.
            spread: See `Holding`.
            shard_optimizer: Whether state alone is asked to be shared out.
            share_weights: Whether weights are, too.
            whole_process: Whether there is a budget, and it is one of whole processes.
        """
        alike = cls(optimizer, layout, spread)
        if len(spread.node_of) == 1:
            return alike
        shared = cls(optimizer, layout, spread, sharded=True, weights=True)
        if share_weights == "yes":
            return shared
        if shard_optimizer:
            return cls(optimizer, layout, spread, sharded=True)
        if share_weights == "no" or len(spread.nodes) > 1:
            return alike
        return shared if not whole_process and shared._most_nbytes <= alike._most_nbytes else alike

    @property
    def communication(self) -> dict[str, int]:
        """Bytes that each rank holds throughout to pass parameters and state on, by "category/owner"."""
        return communication_nbytes(self.layout, self.spread) if self.sharded else {}

    @property
    def updates(self) -> tuple[UpdateCost, ...]:
        """What the optimizer takes on each rank, and what each holds otherwise than others."""
        world = len(self.spread.node_of)
        if not self.sharded:
            return (UpdateCost.of(self.optimizer, self.layout),) * world
        updates = update_costs(self.optimizer, self.layout, world)
        return with_weights(updates, self.layout, self.spread) if self.weights else updates

    def others_nbytes(self, rank: int) -> int:
        """Bytes of other ranks' memory that are resident in a rank's process, too: what passes through it, and the versions of the parameters."""
        passing = others_nbytes(self.layout, self.spread) if self.sharded else 0
        return passing + (others_versions_nbytes(self.layout, self.spread, rank) if self.weights else 0)

    @property
    def _most_nbytes(self) -> int:
        """Bytes of parameters, state, and what passes them on, of the rank with the most."""
        return sum(self.communication.values()) + max(
            update.state + (sum(nbytes for _, nbytes in update.held) if self.weights else self.layout.nbytes)
            for update in self.updates
        )
