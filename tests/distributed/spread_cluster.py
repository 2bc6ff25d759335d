"""Trains a small model on a cluster of two nodes, both on this machine, and prints what came of it: a program for `test_spread.py`.

Its arguments are the CPUs of the nodes. Workers have one each, and no node has room for all.
"""

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

from distributed import Trainer
from framework import Chain, CrossEntropy, Dropout, Linear, ReLU
from framework.data import clusters


def train(workers: int, **options: Any) -> dict[str, Any]:
    chain = Chain(Linear(300), ReLU(), Dropout(0.1), Linear(200), ReLU(), Linear(10))
    run: dict[str, Any] = {"batch": 16, "shards": 4, "steps": 8, "clip_norm": 0.5, "validation_examples": 32, "seed": 7}
    data = clusters(256, 64, 10)
    return Trainer(chain, CrossEntropy(), data=data, workers=workers, timeout=60.0, **run, **options).fit().summary


def main(here: int, there: int) -> None:
    told = []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": here})
    cluster.add_node(num_cpus=there)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        for options in ({}, {"bucket_size": "64KiB", "chunk_size": "10KB"}, {"memory_budget": "engine:100%"}):
            told.append(train(here + there, address=cluster.address, **options))
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps([train(0), *told]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
