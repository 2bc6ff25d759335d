"""Retape's collectives for any Ray actor: a backend of `ray.util.collective` for NumPy arrays, without PyTorch.

`register` makes it known, in each actor; then `init_collective_group(world, rank, "RETAPE", name)`. See docs/collectives.md for an example.
All actors of a group must be on one node.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import ray
from ray.experimental import internal_kv
from ray.util.collective.collective_group.base_collective_group import BaseGroup
from ray.util.collective.types import (
    AllGatherOptions,
    AllReduceOptions,
    BarrierOptions,
    BroadcastOptions,
    RecvOptions,
    ReduceOp,
    ReduceOptions,
    ReduceScatterOptions,
    SendOptions,
)

from distributed.collectives.communicator import Op
from distributed.collectives.group_forming import form_group
from distributed.collectives.shared_memory import SharedMemory
from framework.memory import Array

NAME = "RETAPE"
_OPS: dict[Any, Op] = {ReduceOp.SUM: "sum", ReduceOp.PRODUCT: "product", ReduceOp.MIN: "min", ReduceOp.MAX: "max"}


def register(timeout: float = 300.0) -> None:
    """Makes the backend known in this process; as often as one likes.

    Args:
        timeout: Seconds that an operation of this process waits for other ranks, where its options do not say.

    Raises:
        RuntimeError: This version of Ray takes no backends.
    """
    try:
        from ray.util.collective.backend_registry import _global_registry, register_collective_backend
    except ImportError as error:
        raise RuntimeError(
            f"Ray {ray.__version__} takes no collective backends of others; a newer one does: pip install --upgrade ray"
        ) from error
    SharedMemoryGroup.timeout = timeout
    if not _global_registry.is_registered(NAME):  # Ray refuses a second time
        register_collective_backend(NAME, SharedMemoryGroup)


class SharedMemoryGroup(BaseGroup):  # type: ignore[misc]
    """A rank of a group in shared memory; made by Ray.

    Attributes:
        communicator: What carries the arrays; `communicator.empty` makes those that need not be copied.
    """

    timeout = 300.0

    def __init__(self, world_size: int, rank: int, group_name: str) -> None:
        super().__init__(world_size, rank, group_name)
        self.communicator = SharedMemory(rank, world_size, timeout=self.timeout)
        node = str(ray.get_runtime_context().get_node_id())
        try:
            form_group(_RayStore(), group_name, self.communicator, node, self.timeout)
        except BaseException:
            self.communicator.close()
            raise

    def destroy_group(self) -> None:
        """Gives back memory and descriptors. A peer that waits for this rank, now or later, is told that it gave up."""
        self.communicator.abort()
        self.communicator.close()

    @classmethod
    def backend(cls) -> str:
        return NAME

    @classmethod
    def check_backend_availability(cls) -> bool:
        return hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")

    # Ray wraps each array, or each list of them, in a list: one for each device of a rank.

    def allreduce(self, tensor: list[Array], allreduce_options: Any = None) -> None:
        options = allreduce_options or AllReduceOptions()
        (array,) = tensor
        result = self.communicator.all_reduce(array, _OPS[options.reduceOp], _seconds(options))
        if result is not array:  # in place, it is rank 0's
            if self.rank:
                np.copyto(array, result)
            self.communicator.barrier(_seconds(options))

    def reduce(self, tensor: list[Array], reduce_options: Any = None) -> None:
        options = reduce_options or ReduceOptions()
        self.communicator.reduce(tensor[0], options.root_rank, _OPS[options.reduceOp], _seconds(options))

    def broadcast(self, tensor: list[Array], broadcast_options: Any = None) -> None:
        options = broadcast_options or BroadcastOptions()
        (array,) = tensor
        result = self.communicator.broadcast(array, options.root_rank, _seconds(options))
        if result is not array:
            if self.rank != options.root_rank:
                np.copyto(array, result)
            self.communicator.barrier(_seconds(options))

    def allgather(self, tensor_list: list[list[Array]], tensor: list[Array], allgather_options: Any = None) -> None:
        self.communicator.gather_parts(tensor_list[0], tensor[0], _seconds(allgather_options or AllGatherOptions()))

    def reducescatter(
        self, tensor: list[Array], tensor_list: list[list[Array]], reducescatter_options: Any = None
    ) -> None:
        options = reducescatter_options or ReduceScatterOptions()
        self.communicator.reduce_parts(tensor_list[0], tensor[0], _OPS[options.reduceOp], _seconds(options))

    def barrier(self, barrier_options: Any = None) -> None:
        self.communicator.barrier(_seconds(barrier_options or BarrierOptions()))

    def send(self, tensor: list[Array], send_options: SendOptions) -> None:
        self.communicator.send(tensor[0], send_options.dst_rank, _seconds(send_options))

    def recv(self, tensor: list[Array], recv_options: RecvOptions) -> None:
        self.communicator.receive(tensor[0], recv_options.src_rank, _seconds(recv_options))


class _RayStore:
    """Ray's own store of small things; see `group_forming.Store`."""

    def put(self, key: str, value: str) -> None:
        internal_kv._internal_kv_put(key, value, overwrite=True)

    def get(self, key: str) -> str | None:
        found = internal_kv._internal_kv_get(key)
        return None if found is None else found.decode()

    def delete(self, key: str) -> None:
        internal_kv._internal_kv_del(key)


def _seconds(options: Any) -> float | None:
    """Returns the timeout in a call's options; None where it is unset."""
    timeout = getattr(options, "timeout_ms", None)
    return timeout.total_seconds() if timeout is not None and timeout.total_seconds() > 0 else None
