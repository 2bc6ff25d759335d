"""Trains on a cluster of two nodes that others use, too, and prints what came of it: a program for `test_nodes.py`.

The first node, which this program is on, has no CPUs for workers, so they must go to the other. Both are on this machine.
"""

import json
from typing import Any

import ray
from ray.cluster_utils import Cluster

from checkpointing.budgets import ProcessBudget
from distributed import ClusterError, Trainer
from framework import Chain, CrossEntropy, Linear
from framework.data import clusters

MIB = 2**20


def trainer(address: str, budget: str) -> Trainer:
    data = clusters(128, 8, 10)
    options: Any = {"batch": 8, "shards": 4, "steps": 2, "validation_examples": 16}
    return Trainer(
        Chain(Linear(10)), CrossEntropy(), data=data, workers=2, address=address, memory_budget=budget, **options
    )


@ray.remote(num_cpus=0, memory=400 * MIB)
class Other:
    """Somebody else's, who has set memory aside."""

    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 100 * MIB})
    there = cluster.add_node(num_cpus=4, memory=1000 * MIB)
    ray.init(address=cluster.address, log_to_driver=False)
    here, found = ProcessBudget.on_this_node, dict[str, Any]()

    def never(*arguments: Any) -> ProcessBudget:
        raise AssertionError("the budget was measured on the driver's node")

    ProcessBudget.on_this_node = never  # type: ignore[method-assign]
    try:
        other = Other.remote()
        found["other"] = ray.get(other.where.remote()) == there.node_id
        try:
            trainer(cluster.address, "350MiB").fit()
        except ClusterError as error:
            found["refused"] = str(error)
        automatic = trainer(cluster.address, "auto")
        automatic.start()
        assert automatic.process_budget is not None and automatic._group is not None
        found["auto"] = (automatic.process_budget.nbytes, automatic.process_budget.reason)
        found["workers"] = [node == there.node_id for node in automatic._group.call("where")]
        automatic.close()
        ray.kill(other)
        summary = trainer(cluster.address, "350MiB").fit().summary  # as soon as the other has gone
        found["budget"] = summary["budget_bytes"]
        try:
            trainer(cluster.address, "1TiB").fit()
        except ClusterError as error:
            found["never"] = str(error)
    finally:
        ProcessBudget.on_this_node = here  # type: ignore[method-assign]
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
