"""Trains on a cluster of two nodes, both on this machine, with each misfit that can be planted there, and prints what came of it: a program
for `test_readiness.py`. Its argument is a folder.
"""

import importlib
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

import distributed.trainer
from distributed import Callback, RunFolder, Trainer
from distributed.run_planning import RunPlanning
from framework import CrossEntropy
from framework.data import clusters
from tests.distributed.leftovers import Leftovers

#: A model of a person's own, in a folder that is on the path of this process alone.
MODEL = """
from dataclasses import dataclass
from framework import Chain, Layer, Linear

@dataclass(frozen=True)
class Twice(Layer):
    def apply(self, params, x, context):
        return 2 * x

def build():
    return Chain(Linear(30), Twice(), Linear(10))
"""
SAME = ("parameters_sha256", "optimizer_sha256", "losses_sha256")


RUN: dict[str, Any] = {"batch": 16, "shards": 4, "steps": 6, "seed": 7}


def trainer(**options: Any) -> Trainer:
    model, run = importlib.import_module("launched_model"), {} if "resume" in options else RUN
    data = clusters(256, 64, 10)
    return Trainer(model.build, CrossEntropy(), data=data, timeout=60.0, validation_examples=32, **run, **options)


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def places() -> list[str]:
    """Where a worker finds the code."""
    return [str(importlib.import_module(name).__file__) for name in ("distributed", "launched_model")]


def result(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in (*SAME, "nodes") if name in summary}


def refused(run: Trainer) -> str:
    """What a run that cannot be trained says."""
    try:
        run.fit()
    except Exception as error:
        return "\n".join([str(error), *getattr(error, "__notes__", [])])
    finally:
        run.close()
    return ""


class Leaves(Callback):
    """Takes a node away after the fourth step."""

    def __init__(self, whole: Cluster, node: Any) -> None:
        self._whole, self._node = whole, node

    def on_step(self, row: dict[str, Any]) -> None:
        if row["step"] == 3:
            self._whole.remove_node(self._node, allow_graceful=False)
            deadline = time.monotonic() + 60
            while sum(node["Alive"] for node in ray.nodes()) > 1:  # else the run might be over before Ray knows
                assert time.monotonic() < deadline
                time.sleep(0.2)


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    whole = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = whole.add_node(num_cpus=2)
    (folder / "code").mkdir()
    (folder / "code" / "launched_model.py").write_text(MODEL)
    sys.path.insert(0, str(folder / "code"))  # the nodes run already, and know nothing of it
    named: dict[str, Any] = {"workers": 2, "address": whole.address, "placement": "spread"}
    try:
        found["alone"] = {name: value for name, value in result(trainer().fit().summary).items() if name != "nodes"}
        run = trainer(**named)
        run.start()
        found["modules"] = [place for each in ray.get([places.remote() for _ in range(4)]) for place in each]
        found["spread"] = result(run.fit().summary)
        found["cpus"] = refused(trainer(**{**named, "workers": 4}, threads_per_worker=2, placement_timeout=1.0))
        planned, marked = RunPlanning.planned_growth_of, distributed.trainer.marked
        RunPlanning.planned_growth_of = lambda self, rank: 2**60  # type: ignore[method-assign]
        found["memory"] = refused(trainer(**named))
        RunPlanning.planned_growth_of = planned  # type: ignore[method-assign]
        distributed.trainer.marked = lambda path: nullcontext(folder / "elsewhere" / "mark")  # type: ignore[assignment]
        found["unseen"] = refused(trainer(**named, run_folder=RunFolder(folder / "unseen"), snapshot_every=2))
        assert not (folder / "unseen").exists()
        distributed.trainer.marked = marked
        ray.init(address=whole.address, log_to_driver=False, runtime_env={"env_vars": {}})
        found["other code"] = refused(trainer(**named))
        ray.shutdown()
        lost = RunFolder(folder / "lost")
        left = Leftovers()
        callbacks = [left, Leaves(whole, second)]
        found["left"] = refused(trainer(**named, run_folder=lost, snapshot_every=2, callbacks=callbacks))
        found["resumed"] = result(trainer(workers=2, address=whole.address, resume=folder / "lost").fit().summary)
        ray.init(address=whole.address, log_to_driver=False)
        found |= {"seen": left.most, "left behind": left.found()}
    finally:
        ray.shutdown()
        whole.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
