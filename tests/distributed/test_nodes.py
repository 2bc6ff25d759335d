"""Workers go to a node of the cluster that has room for them, and their budget is of what is free there."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from checkpointing.budgets import ProcessBudget
from distributed import ClusterError, nodes
from distributed.nodes import Node, choose, resolve

MIB = 2**20


@pytest.mark.memory
def test_on_a_shared_cluster_what_is_free_on_the_workers_node_counts() -> None:
    """In a process of its own, which is connected to no other cluster."""
    words = [sys.executable, "-m", "tests.distributed.shared_cluster"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["other"]
    refused = found["refused"]
    assert "Ray has 600.0 MiB for workers on the node with the most that is free" in refused
    assert (
        "others have set aside 400.0 MiB, less than 2 x 350.0 MiB; lower --memory-budget, wait for the others"
        in refused
    )
    nbytes, reason = found["auto"]
    assert nbytes == 300 * MIB
    assert "are free" in reason or "leaves" in reason
    assert reason.endswith("but Ray has 600.0 MiB to set aside: 300.0 MiB each")
    assert found["workers"] == [True, True]
    assert found["budget"] == 350 * MIB
    assert "Ray has 1000.0 MiB for workers on its largest node, less than 2 x 1.0 TiB" in found["never"]


def some(monkeypatch: pytest.MonkeyPatch, *answers: list[Node]) -> list[list[Node]]:
    """Lets Ray answer one after the other; the last answer stays."""
    left = list(answers)
    monkeypatch.setattr(nodes, "alive", lambda ray: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(nodes, "_SETTLING_SECONDS", 0.3)
    return left


def node(name: str, cpus: float, memory: int, all_memory: int | None = None) -> Node:
    return Node(name, f"node:{name}", cpus, memory * MIB, (memory if all_memory is None else all_memory) * MIB)


def test_a_node_with_cpus_for_all_comes_before_one_with_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch, [node("a", 1, 900), node("b", 4, 500), node("c", 4, 600)])
    assert choose(None, 2, 1, 100 * MIB).id == "c"
    assert choose(None, 2, 2, 0).id == "c"
    assert choose(None, 1, 1, 0).id == "a"


def test_what_has_just_ended_is_waited_for_and_what_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = [node("a", 4, 100, 600)], [node("a", 4, 600, 600)]
    left = some(monkeypatch, before, before, after)
    assert choose(None, 2, 1, 300 * MIB) == after[0]
    assert left == [after]
    some(monkeypatch, before)
    with pytest.raises(ClusterError, match=r"100\.0 MiB .* others have set aside 500\.0 MiB, .*wait for the others"):
        choose(None, 2, 1, 300 * MIB)
    some(monkeypatch, after)
    with pytest.raises(
        ClusterError,
        match=r"600\.0 MiB for workers on its largest node, less than 3 x 300\.0 MiB; lower --memory-budget, or",
    ) as info:
        choose(None, 3, 1, 300 * MIB)
    assert "others" not in str(info.value)


@pytest.mark.parametrize("joined", [False, True])
def test_auto_leaves_to_others_of_a_cluster_what_they_have_set_aside(joined: bool) -> None:
    here: Any = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"))
    found = resolve(here, ProcessBudget("auto", None), 2, node("here", 4, 20), joined)
    assert found.nbytes is not None
    assert (found.nbytes == 10 * MIB) == joined
    assert ("20.0 MiB to set aside" in found.reason) == joined
    fixed = ProcessBudget("16MiB", 16 * MIB)
    assert resolve(here, fixed, 2, node("here", 4, 20), joined) == fixed
    with pytest.raises(ValueError, match="is more than"):
        resolve(here, ProcessBudget("1024TiB", 2**50), 2, node("here", 4, 20), joined)
