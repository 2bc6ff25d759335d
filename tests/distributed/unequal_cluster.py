"""Trains on a cluster of two nodes with unlike memory, both on this machine, and prints what came of it: a program for
`test_unequal_nodes.py`.
"""

import json
import time
from typing import Any

import ray
from ray.cluster_utils import Cluster

from distributed import Callback, Trainer
from distributed.nodes import alive
from framework import GELU, Chain, CrossEntropy, Linear
from framework.data import clusters

MIB = 2**20


class Watch(Callback):
    """Sees what Ray has set aside on each node, which may be told some seconds late."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step(self, row: dict[str, Any]) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (len(self.seen) == 2 and all(self.seen)):
            self.seen = set_aside()
            time.sleep(0.2)


def set_aside() -> list[int]:
    return sorted(node.all_memory - node.memory for node in alive(ray))


def train(workers: int, **options: Any) -> dict[str, Any]:
    chain = Chain(Linear(2048), *(GELU() for _ in range(24)), Linear(10))  # 8 MiB each
    run: dict[str, Any] = {"batch": 2048, "shards": 2, "steps": 2, "validation_examples": 1, "seed": 7}
    data = clusters(20480, 8, 10)
    return Trainer(chain, CrossEntropy(), data=data, workers=workers, timeout=60.0, **run, **options).fit().summary


def main() -> None:
    found: dict[str, Any] = {"set aside": {}}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 1000 * MIB})
    cluster.add_node(
        num_cpus=1, memory=250 * MIB, node_ip_address="127.0.0.2"
    )  # an address of its own, as on a machine of its own
    try:
        auto: dict[str, Any] = {"memory_budget": "auto", "placement": "spread"}
        runs = {"auto": auto, "fixed": {"memory_budget": "250MiB"}, "shared": {**auto, "share_weights": "yes"}}
        for name, options in runs.items():
            watch = Watch()
            found[name] = train(2, address=cluster.address, callbacks=[watch], **options)
            found["set aside"][name] = watch.seen
        ray.init(address=cluster.address, log_to_driver=False)
        deadline = time.monotonic() + 20
        while any(set_aside()) and time.monotonic() < deadline:
            time.sleep(0.2)
        found["left"] = set_aside()
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps({**found, "alone": train(0)}))


if __name__ == "__main__":
    main()
