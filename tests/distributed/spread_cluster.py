"""Trains on a cluster of two nodes, both on this machine, and prints what came of it: a program for `test_spread.py`.

Its arguments are a folder and the CPUs of the nodes. Workers have one each, and no node has room for all. A small model is trained from here, and
byte-gpt-tiny as docs/cluster.md says.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from distributed import Trainer
from framework import Chain, CrossEntropy, Dropout, Linear, ReLU
from framework.data import clusters
from tests.distributed.leftovers import Leftovers

ROOT = Path(__file__).parents[2]


def train(workers: int, **options: Any) -> dict[str, Any]:
    chain = Chain(Linear(300), ReLU(), Dropout(0.1), Linear(200), ReLU(), Linear(10))
    run: dict[str, Any] = {"batch": 16, "shards": 4, "steps": 8, "clip_norm": 0.5, "validation_examples": 32, "seed": 7}
    data = clusters(256, 64, 10)
    return Trainer(chain, CrossEntropy(), data=data, workers=workers, timeout=60.0, **run, **options).fit().summary


def commanded(folder: Path, *options: str) -> dict[str, Any]:
    """Returns the summary of a run of scripts/train.py."""
    quick = ("--steps", "3", "--validation-examples", "16", "--warmup-steps", "1", "--json", "--quiet")
    words = [sys.executable, "scripts/train.py", "--model", "byte-gpt-tiny", *quick, "--run-dir", str(folder), *options]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def main(folder: Path, here: int, there: int) -> None:
    told, workers, left = [], here + there, Leftovers()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": here})
    cluster.add_node(num_cpus=there)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        for options in ({}, {"bucket_size": "64KiB", "chunk_size": "10KB"}, {"memory_budget": "engine:100%"}):
            told.append(train(workers, address=cluster.address, callbacks=[left], **options))
        found = left.found()
        ray.shutdown()
        command = commanded(folder / "spread", "--workers", str(workers), "--address", cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    alone = commanded(folder / "alone", "--workers", "0")
    told_left = {"left": found, "seen": left.most}
    print(
        json.dumps({"alone": train(0), "spread": told, "command": {"alone": alone, "spread": [command]}, **told_left})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
