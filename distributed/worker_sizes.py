"""What is known of a worker before it exists: the shapes of its shards, its bytes, and the examples that it validates on."""

from __future__ import annotations

from checkpointing.plan import Plan
from checkpointing.reduction_tree import roots_of, shards_of
from distributed.collectives.gradients import header_nbytes
from framework.data import Dataset, LastBatch, order_dtype, spread
from framework.layers import Spec
from framework.parameters import Layout


def shard_specs(data: Dataset, batch: int, shards: int) -> tuple[Spec, Spec]:
    """Returns the specs of one shard's inputs and targets."""
    rows = batch // shards
    return Spec((rows, *data.inputs.shape), data.inputs.dtype), Spec((rows, *data.targets.shape), data.targets.dtype)


def static_nbytes(data: Dataset, shards: int, shared: bool) -> dict[str, int]:
    """Returns the bytes, besides parameters and optimizer state, that a worker holds throughout, by "category/owner"."""
    size = data.size("train")
    return {
        "data/data set": data.nbytes,
        "data/epoch order": size * order_dtype(size).itemsize,
        "communication/segment header": header_nbytes(shards) if shared else 0,
    }


def outside_nbytes(layout: Layout, shards: int, world: int) -> int:
    """Returns what `outside_of` says of the rank with the most."""
    return max(outside_of(rank, layout, shards, world) for rank in range(world))


def outside_of(rank: int, layout: Layout, shards: int, world: int) -> int:
    """Returns the bytes of other ranks' shared memory that a rank touches, so that they are resident in its process, too.

    It reads its slice of every root, and all of the mean gradient, which lies in rank 0's memory.
    """
    if world == 1:
        return 0
    roots = [len(roots_of(shards_of(shards, world, each))) for each in range(world)]
    nbytes = layout.gradients.nbytes
    a_slice = -(-nbytes // world)
    return (sum(roots) - roots[rank]) * a_slice + (nbytes if rank else 0)


def reserved_nbytes(train: Plan, evaluate: Plan, block: bool) -> int:
    """Returns the bytes that a rank takes for its arrays.

    On the heap they are the peak, with a block: what lives throughout, the block, and the most that a layer takes from the heap besides.
    """
    if not block:
        return max(train.peak, evaluate.peak)
    simulation = train.simulation
    in_block = max(plan.packing.nbytes for plan in (train, evaluate))
    shared = 0
    if train.world > 1:  # gradients lie in shared memory
        shared = max(moment.categories.get("gradients", 0) for moment in simulation.timeline)
    on_heap = max(plan.simulation.most_on_heap for plan in (train, evaluate))
    return simulation.static + in_block + shared + on_heap


def validation_windows(data: Dataset, batch: int, most: int, last_batch: LastBatch = "drop") -> list[int]:
    """Returns the validation examples of a run, spread evenly: `most`, or all, if the last batch is padded; else a multiple of the batch.

    Raises:
        ValueError: There are fewer than a batch, which is not padded.
    """
    size = data.size("validation")
    if last_batch == "pad":
        return spread(size, most)
    if size < batch:
        raise ValueError(
            f"the validation split has {size} examples, fewer than a batch of {batch}; lower --batch, give more data, or pad it with "
            "--last-batch pad"
        )
    return spread(size, max(batch, min(size, most) // batch * batch))
