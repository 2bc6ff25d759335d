"""The nodes of a Ray cluster: what is free on each, and which one the workers of a run, who share memory, go to."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from checkpointing.budgets import ProcessBudget
from distributed.cluster import ClusterError
from framework.sizes import format_size

#: Seconds in which Ray is expected to know that other workers have ended.
_SETTLING_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """A node, with what Ray has for workers there.

    Attributes:
        id: As Ray names it.
        pin: A resource that this machine alone has.
        cpus: CPUs that are free.
        memory: Bytes that nobody has set aside.
        all_memory: Bytes that can be set aside by all.
        all_cpus: CPUs that it has.
        address: Its IP address.
    """

    id: str
    pin: str
    cpus: float
    memory: int
    all_memory: int
    all_cpus: float = 0.0
    address: str = ""

    @property
    def emptied(self) -> Node:
        """The node when nobody uses it."""
        return replace(self, cpus=self.all_cpus, memory=self.all_memory)


def alive(ray: Any) -> list[Node]:
    """Returns the nodes of the cluster. What is free may be some seconds old."""
    # Public for developers of Ray's libraries: ray.available_resources is the sum over all nodes.
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    found = []
    for node in ray.nodes():
        if node["Alive"] and (left := free.get(node["NodeID"])) is not None:
            everything = node["Resources"]
            pin = next(name for name in everything if name.startswith("node:") and "__internal" not in name)
            memory, all_memory = (int(resources.get("memory", 0)) for resources in (left, everything))
            cpus, all_cpus = left.get("CPU", 0.0), everything.get("CPU", 0.0)
            found.append(Node(node["NodeID"], pin, cpus, memory, all_memory, all_cpus, node["NodeManagerAddress"]))
    return found


def choose(ray: Any, workers: int, threads: int, memory: int) -> Node:
    """Returns the node for all workers of a run: the one with the most memory to set aside of those with CPUs for them.

    Args:
        ray: The module, connected.
        workers: How many.
        threads: CPUs of each.
        memory: Bytes that each sets aside; 0 if what there is shall do.

    Raises:
        ClusterError: No node has so much memory, or others have set it aside and keep it.
    """
    needed, deadline = workers * memory, time.monotonic() + _SETTLING_SECONDS
    while True:
        nodes = alive(ray)
        room = [node for node in nodes if needed <= node.memory]
        if room:
            return max(room, key=lambda node: (node.cpus >= workers * threads, node.memory))
        largest = max(node.all_memory for node in nodes)
        if needed > largest:
            told, hint = f"{format_size(largest)} for workers on its largest node", ""
            break
        if time.monotonic() > deadline:
            node = max(nodes, key=lambda node: node.memory)
            others = f"others have set aside {format_size(node.all_memory - node.memory)}"
            told = f"{format_size(node.memory)} for workers on the node with the most that is free, where {others}"
            hint = "wait for the others, "
            break
        time.sleep(0.1)
    raise ClusterError(
        f"Ray has {told}, less than {workers} x {format_size(memory)}; lower --memory-budget, {hint}or start Ray with more --memory"
    )


def resolve(ray: Any, budget: ProcessBudget, workers: int, node: Node, joined: bool) -> ProcessBudget:
    """Returns the budget in terms of the node: see `ProcessBudget.on_this_node`, which is called there.

    Args:
        ray: The module, connected.
        budget: Of each worker.
        workers: How many.
        node: Where they go.
        joined: Whether others may use the cluster, too; then `auto` leaves to them what they have set aside.

    Raises:
        ValueError: The node could never give so much.
    """
    if node.id == ray.get_runtime_context().get_node_id():
        found = budget.on_this_node(workers)
    else:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = ray.remote(num_cpus=0)(_on_this_node).options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        )
        try:
            found = ray.get(there.remote(budget, workers))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, ValueError) else error) from error
    each = node.memory // workers
    if budget.nbytes is None and joined and each < (found.nbytes or 0):
        reason = f"{found.reason}; but Ray has {format_size(node.memory)} to set aside: {format_size(each)} each"
        return replace(found, nbytes=each, reason=reason)
    return found


def _on_this_node(budget: ProcessBudget, workers: int) -> ProcessBudget:
    return budget.on_this_node(workers)
