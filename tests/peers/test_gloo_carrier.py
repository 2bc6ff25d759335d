"""Gloo as the carrier between nodes: the same bits as one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from distributed import Trainer
from distributed.cluster import connect
from framework import Chain, CrossEntropy, Linear, ReLU
from framework.data import clusters

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


@pytest.fixture
def cluster() -> Iterator[None]:
    started = connect(ray, None, cpus=4)
    yield
    if started:
        ray.shutdown()


def train(workers: int, **options: Any) -> dict[str, Any]:
    chain = Chain(Linear(300), ReLU(), Linear(10))
    run: dict[str, Any] = {"batch": 16, "shards": 4, "steps": 5, "validation_examples": 32, "timeout": 60.0}
    data = clusters(256, 64, 10)
    return Trainer(chain, CrossEntropy(), data=data, workers=workers, **run, **options).fit().summary


def test_gradients_that_gloo_carries_have_the_bits_of_one_process(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    alone = train(0)
    for cross_node, chunk_size in (("1+1", "512KiB"), ("2+1", "5KB")):
        workers = sum(map(int, cross_node.split("+")))
        summary = train(workers, cross_node=cross_node, chunk_size=chunk_size, carrier="gloo", pretend_loss=0.05)
        for name in ("parameters_sha256", "losses_sha256", "validation_loss"):
            assert summary[name] == alone[name]
        for rank in summary["ranks"]:
            assert rank["ledger_peak_bytes"] == rank["predicted_peak_bytes"]


def test_a_budget_of_the_whole_process_is_refused() -> None:
    with pytest.raises(ValueError, match="write --memory-budget engine:512MiB"):
        train(2, carrier="gloo", memory_budget="512MiB")
