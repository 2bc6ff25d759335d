"""The executor: runs plans of one model on one rank, and keeps what their runs have in common."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from checkpointing.block import Block
from checkpointing.buckets import Finished, buckets_of
from checkpointing.leaves import Leaf, leaves_of
from checkpointing.offload import OffloadFile
from checkpointing.plan import Plan, pack_together
from checkpointing.reduction import LocalReduction, Reduction
from checkpointing.running import Job, Outcome, Run
from checkpointing.witness import Witness
from framework.layers import Context, Layer, flatten
from framework.losses import Loss as LossFunction
from framework.memory import Allocator, Array, Ledger
from framework.parameters import Layout


class LayerParameters(Protocol):
    """Parameters as the executor reads them: their layout, which is that of gradients, and the arrays of each layer.

    Attributes:
        version: Arrays of one version are the same ones; another may have its own.
    """

    version: int

    @property
    def layout(self) -> Layout: ...

    def by_layer(self) -> dict[str, dict[str, Array]]:
        """Returns arrays by the path of their layer, then by local name."""
        ...

    def state_by_layer(self) -> dict[str, dict[str, Array]]:
        """The same of what layers keep from step to step."""
        ...


class Executor:
    """Runs plans of one model on one rank.

    Args:
        layer: The model.
        loss: Its loss.
        parameters: Its parameters.
        ledger: Counts every array.
        reduction: Adds across ranks; by default there is one.
        gradients: Where gradient buffers come from; by default where the others do.
        block: Whether the buffers of a plan lie in one block, as its packing says, instead of each on the heap.
        offload_dir: The folder for the file of plans that offload; by default that of temporary files.
    """

    def __init__(
        self,
        layer: Layer,
        loss: LossFunction,
        parameters: LayerParameters,
        ledger: Ledger,
        reduction: Reduction | None = None,
        gradients: Allocator | None = None,
        block: bool = False,
        offload_dir: Path | None = None,
    ) -> None:
        self.steps = flatten(layer)
        self.loss = loss
        self.layout = parameters.layout
        self._parameters = parameters
        self.states = parameters.state_by_layer()
        self.ledger = ledger
        self.reduction: Reduction = reduction or LocalReduction()
        self.gradients = gradients
        self.block = Block() if block else None
        self.offload_dir = offload_dir
        self.disk: OffloadFile | None = None
        self._leaves: dict[tuple[int, int], tuple[Plan, list[Leaf]]] = {}
        self._finished: dict[str, Finished] = {}
        self._buckets: dict[int, tuple[Plan, list[list[slice]]]] = {}

    @property
    def params(self) -> dict[str, dict[str, Array]]:
        """The parameters by the path of their layer, then by local name."""
        return self._parameters.by_layer()

    def leaves(self, plan: Plan) -> list[Leaf]:
        """What runs of a plan read of each step; made at the first with each version of the parameters."""
        key = id(plan), self._parameters.version
        known = self._leaves.get(key)
        if known is None or known[0] is not plan:
            context = partial(Context, self.ledger, training=plan.purpose != "evaluate", states=self.states)
            known = self._leaves[key] = plan, leaves_of(self.steps, plan.costs, self.params, context)
        return known[1]

    def finished(self, path: str) -> Finished:
        """The cotangents that the backward of a step finishes."""
        if path not in self._finished:
            self._finished[path] = Finished.of(self.layout, path)
        return self._finished[path]

    def buckets(self, plan: Plan) -> list[list[slice]]:
        """For each Reduce of a plan, the elements of the gradient that it is for."""
        known = self._buckets.get(id(plan))
        if known is None or known[0] is not plan:
            known = self._buckets[id(plan)] = plan, buckets_of(plan, self.finished, self.layout)
        return known[1]

    def reserve(self, plans: Sequence[Plan]) -> None:
        """Makes the block as large as the largest of some plans needs, and the file of offloaded values, if there are any.

        Raises:
            OffloadError: Nothing can be offloaded to the folder, or it has no room.
        """
        for plan in plans:
            self._open_disk(plan)
        if self.block is not None:
            self.block.use(pack_together(plans))

    def close(self) -> None:
        """Lets go of the file of offloaded values."""
        if self.disk is not None:
            self.disk.close()
            self.disk = None

    def _open_disk(self, plan: Plan) -> None:
        nbytes = plan.simulation.file_nbytes
        if self.disk is not None:
            self.disk.reserve(nbytes)
        elif nbytes:
            self.disk = OffloadFile(self.offload_dir, nbytes)

    def run(self, plan: Plan, job: Job, witness: Witness | None = None, make: MakeRun | None = None) -> Outcome:
        """Runs a plan once.

        Args:
            plan: The plan.
            job: What it is run on.
            witness: Compares memory after each operation.
            make: Makes another kind of `Run`, such as an `Inspector`, that looks at values.

        Raises:
            BudgetExceeded: The ledger's limit would have been passed, or a layer asked for what its footprint does not say.
            NotAsPlanned: In the block, something holds an array that the plan has dropped, or a layer did not take one from there.
            OffloadError: A value could not be written to disk, or is not what was written.

        After an exception nothing of the step is held.
        """
        heap = self.ledger.allocator
        self._open_disk(plan)
        if self.block is not None:
            self.block.use(plan.packing)
            self.ledger.allocator = self.block
        self.ledger.begin()
        if witness is not None:
            witness.start(plan, self.block is not None, self.gradients is not None)
        run = (make or Run)(self, plan, job, heap, witness)
        try:
            return run.execute()
        except BaseException as error:
            # The frames of the failed rules hold arrays for as long as the exception lives.
            _clear_frames(error)
            if self.disk is not None:
                self.disk.abandon()
            run.clear()
            raise
        finally:
            self.ledger.allocator = heap


def _clear_frames(error: BaseException) -> None:
    """Lets go of what the frames of an exception, and of those that led to it, hold."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]


#: Makes a run of an executor's plan on a job; arrays that outlive it come from the allocator.
MakeRun = Callable[[Executor, Plan, Job, Allocator, Witness | None], Run]
