"""What ranks can do together, whatever carries their bytes: the operations, their errors, and the order in which numbers are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from checkpointing.reduction_tree import additions_between, shards_of
from framework.memory import Array
from framework.optimizers import NORM_BLOCK

#: How numbers of two ranks become one. The order matters to the bits of a sum or product, and is always that of the tree (`reduction_tree.additions_between`).
Op = Literal["sum", "product", "min", "max"]
UFUNCS: dict[Op, np.ufunc] = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}
#: Bytes of each array that `combine` works on at a time.
_BLOCK_NBYTES = 128 * 1024


class Communicator(Protocol):
    """What W ranks do together. All of them call the same operations in the same order, from one thread at a time.

    Arrays are flat and contiguous, and of equal size and dtype on all ranks. **Use what is returned**: where an array lies in memory that
    ranks share, the result may lie in another rank's, and may be read until this rank's next operation. Otherwise it is the array given.

    Each operation takes the seconds to wait for other ranks; None stands for the communicator's own timeout.

    Attributes:
        rank: This rank, from 0.
        world: W.

    Raises:
        CollectiveError: Ranks are late or dead, gave up, or do not call the same. The communicator is of no use after that: the
            others' operations raise, too.
        ValueError: The array is none of those described.
    """

    rank: int
    world: int

    def all_reduce(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns what all ranks' arrays combine to."""
        ...

    def reduce_scatter(self, array: Array, op: Op = "sum", timeout: float | None = None) -> Array:
        """Returns this rank's slice (see `slices_of`) of what all ranks' arrays combine to; the rest of the array is undefined."""
        ...

    def all_gather(self, array: Array, timeout: float | None = None) -> Array:
        """Returns the whole array, of which each rank has given its slice (see `slices_of`): the reverse of `reduce_scatter`."""
        ...

    def share(self, array: Array, timeout: float | None = None) -> None:
        """Fills an array that the ranks of a node have in common, in which each has written its slice (see `slices_of`), with all slices."""
        ...

    def broadcast(self, array: Array, root: int = 0, timeout: float | None = None) -> Array:
        """Returns the numbers of rank `root`."""
        ...

    def barrier(self, timeout: float | None = None) -> None:
        """Returns when all ranks have called it."""
        ...

    def abort(self) -> None:
        """Makes all ranks' operations raise, the running ones, too. Any thread may call it."""
        ...

    def close(self) -> None:
        """Gives back what the communicator holds."""
        ...


class CollectiveError(RuntimeError):
    """A collective did not complete on this rank: others are late or dead, or somebody gave it up.

    Args:
        message: For the reader.
        operation: What was to be done.
        late: Ranks that did not come, as far as this rank knows.
        dead: Those of them whose process has ended.
        seconds: How long this rank waited.
    """

    def __init__(
        self,
        message: str,
        operation: str = "",
        late: Sequence[int] = (),
        dead: Sequence[int] = (),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(message, operation, tuple(late), tuple(dead), seconds)  # so that it can be pickled
        self.operation, self.late, self.dead, self.seconds = operation, tuple(late), tuple(dead), seconds

    def __str__(self) -> str:
        return str(self.args[0])


def kind_of(array: Array) -> str:
    """Says what must be equal on all ranks.

    >>> kind_of(np.zeros((2, 3), np.float32))
    'float32[2, 3]'
    """
    return f"{array.dtype}{list(array.shape)}"


def require_array(array: Array, op: Op | None, writes: bool) -> None:
    """Raises a `ValueError` or `TypeError` unless an array can be carried, with `op` reduced, and, where `writes`, written."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"collectives carry NumPy arrays, but got {type(array).__name__}; see numpy.asarray")
    if op is not None and op not in UFUNCS:
        raise ValueError(f"an array is reduced by one of {', '.join(UFUNCS)}, but got {op!r}")
    if (
        array.dtype.kind not in ("iuf" if op in ("min", "max") else "iufc" if op else "biufc")
        or not array.dtype.isnative
    ):
        raise ValueError(
            f"collectives {'reduce' if op else 'carry'} numbers of this machine's formats, but got {array.dtype}"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"collectives carry contiguous arrays, but got {kind_of(array)} with strides {array.strides}; "
            "see numpy.ascontiguousarray"
        )
    if writes and not array.flags.writeable:
        raise ValueError(f"the result is written to the array, but {kind_of(array)} is read-only; give a copy")


def slices_of(size: int, world: int) -> list[slice]:
    """Cuts `size` numbers into a slice for each rank: contiguous, in whole blocks of 4,096 numbers, the first ranks getting one more.

    Blocks are what the optimizer's norm is added by, and whole pages.

    >>> slices_of(10_000, 2)
    [slice(0, 8192, None), slice(8192, 10000, None)]
    """
    blocks = -(-size // NORM_BLOCK)
    shares = [shards_of(blocks, world, rank) for rank in range(world)]
    return [slice(*(min(edge * NORM_BLOCK, size) for edge in (share.start, share.stop))) for share in shares]


def combine(inputs: Sequence[Array], op: Op, out: Array, scratch: Array) -> None:
    """Combines equally long arrays in the canonical order, a block that fits the cache at a time: each is read once, `out` written once.

    Args:
        inputs: One array a rank.
        op: How.
        out: For the result; may be one of the inputs.
        scratch: What `scratch_for` gave.
    """
    if len(inputs) == 1:
        if out is not inputs[0]:
            np.copyto(out, inputs[0])
        return
    *order, (first, second) = additions_between(range(len(inputs)))
    blocks = scratch.view(out.dtype)
    width = blocks.shape[1]
    with np.errstate(all="ignore"):  # an overflow is the result, as in any other transport
        for start in range(0, out.size, width):
            here = slice(start, min(start + width, out.size))
            values = [array[here] for array in inputs]
            for i, j in order:
                values[i] = UFUNCS[op](values[i], values[j], out=blocks[i // 2, : values[i].size])
            UFUNCS[op](values[first], values[second], out=out[here])


def scratch_for(world: int) -> Array:
    """Returns what `combine` needs beside its inputs and output: a block for each two ranks, in bytes."""
    return np.empty((-(-world // 2), _BLOCK_NBYTES), np.uint8)


def reduced(arrays: Sequence[Array], op: Op = "sum") -> Array:
    """Returns what a reduction gives, computed in this process: the definition that all transports follow bit for bit.

    >>> reduced([np.array([1.0, 5.0]), np.array([3.0, 2.0]), np.array([2.0, 2.0])], "max")
    array([3., 5.])
    """
    level = list(arrays)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [UFUNCS[op](a, b) for a, b in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0].copy()
