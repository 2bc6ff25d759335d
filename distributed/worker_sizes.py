"""What is known of a worker before it exists: the shapes of its shards, its bytes, and the examples that it validates on."""

from __future__ import annotations

from checkpointing.plan import Plan, pack_together
from checkpointing.reduction_tree import roots_of, shards_of
from distributed.collectives.gradient_memory import header_nbytes, message_sizes
from distributed.collectives.shares import read_nbytes
from distributed.collectives.spread import Spread
from framework.data import Dataset, LastBatch, order_dtype, spread
from framework.layers import Spec
from framework.parameters import Layout

#: The most that a leader's process was seen to grow by for connections, threads, and buffers that Ray and the C library keep from calls between
#: nodes: 13 to 17 MiB after a hundred steps, whatever the model and the size of messages; and a reserve.
KEPT_BY_CALLS_NBYTES = 20 << 20
#: What memory for messages from other nodes is counted as.
CHUNKS = "communication/cross-node chunks"


def shard_specs(data: Dataset, batch: int, shards: int) -> tuple[Spec, Spec]:
    """Returns the specs of one shard's inputs and targets."""
    rows = batch // shards
    return Spec((rows, *data.inputs.shape), data.inputs.dtype), Spec((rows, *data.targets.shape), data.targets.dtype)


def static_nbytes(data: Dataset, shards: int, shared: bool, layout: Layout) -> dict[str, int]:
    """Returns the bytes, besides parameters and optimizer state, that a worker holds throughout, by "category/owner".

    Args:
        data: The examples.
        shards: V.
        shared: Whether gradients lie in shared memory.
        layout: Of the parameters.
    """
    size = data.size("train")
    return {
        "data/data set": data.nbytes,
        "data/epoch order": size * order_dtype(size).itemsize,
        "communication/segment header": header_nbytes(shards, layout.gradients.size) if shared else 0,
    }


def chunk_nbytes(layout: Layout, shards: int, spread: Spread, chunk: int, rank: int) -> int:
    """Returns the bytes that a rank takes for messages from other nodes: none unless it is the leader of one of several nodes."""
    gradients = layout.gradients
    sizes = message_sizes(rank, shards, spread, gradients.size, layout.dtype.itemsize, chunk)
    return sizes.nbytes if sizes else 0


def outside_nbytes(layout: Layout, shards: int, spread: Spread, chunk: int) -> int:
    """Returns what `outside_of` says of the rank with the most."""
    return max(outside_of(rank, layout, shards, spread, chunk) for rank in range(len(spread.node_of)))


def outside_of(rank: int, layout: Layout, shards: int, spread: Spread, chunk: int) -> int:
    """Returns the bytes that a rank's process takes besides the engine's for what ranks do together.

    On its node it touches memory shared with others: it reads its share of every root of other ranks (see `shares`), and all of the mean gradient,
    which lies in the leader's memory, in its first root. What goes to and comes from other nodes is Ray's meanwhile: at most as much each way as there is room for where it
    arrives, and what Ray keeps once it has made calls.
    """
    world, nbytes, here = len(spread.node_of), layout.gradients.nbytes, spread.nodes[spread.node_of[rank]]
    roots = sum(len(roots_of(shards_of(shards, world, other))) for other in here if other != rank)
    share = read_nbytes(nbytes, len(here))
    mean = nbytes - share if rank != here[0] else 0  # what is not read as a share of the root
    chunks = chunk_nbytes(layout, shards, spread, chunk, rank)
    across = 2 * chunks + KEPT_BY_CALLS_NBYTES if chunks else 0
    return roots * share + mean + across


def reserved_nbytes(train: Plan, evaluate: Plan, block: bool) -> int:
    """Returns the bytes that a rank takes for its arrays.

    On the heap they are the peak, with a block: what lives throughout, the block, and the most that a layer takes from the heap besides.
    """
    if not block:
        return max(train.peak, evaluate.peak)
    simulation = train.simulation
    in_block = pack_together((train, evaluate)).nbytes
    shared = simulation.gradient_nbytes if train.world > 1 else 0  # there they lie in shared memory
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
