"""What each node must have before the first step, and a clear word for each misfit, planted where Ray on one machine cannot have it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from distributed import ClusterError, cluster
from distributed.cluster import probe
from distributed.readiness import Needs, State, look, marked, require_ready
from tests.distributed.answering import SETTINGS, answering
from tests.distributed.leftovers import NOTHING, with_own_temporary_files

GIB = 2**30
HERE = State("", "head", {"python": "3.12.1"}, {"distributed/trainer.py": "1"}, 4 * GIB)
RANKS = [
    replace(HERE, node="a", host="first"),
    replace(HERE, node="a", host="first"),
    replace(HERE, node="b", host="second"),
]


def check(ranks: list[State], planned: int = GIB, mixed: bool = False) -> None:
    require_ready(HERE, ranks, [planned] * len(ranks), Path("/runs/first"), mixed)


def test_nodes_that_have_all_are_ready() -> None:
    check(RANKS)


def test_other_code_on_a_node_is_named_by_its_files() -> None:
    other = replace(RANKS[2], sources={f"distributed/{name}.py": "2" for name in ("trainer", *"abcdef")})
    with pytest.raises(ClusterError, match=r"rank 2, on second, has other code .*distributed/a.py.* and 2 more differ"):
        check([*RANKS[:2], other])


def test_other_versions_are_named_and_may_be_allowed() -> None:
    other = [*RANKS[:2], replace(RANKS[2], versions={"python": "3.12.2"})]
    with pytest.raises(
        ClusterError, match=r"(?s)other versions.*python: '3.12.1' on this process, .*'3.12.2' on rank 2"
    ):
        check(other)
    check(other, mixed=True)


def test_memory_is_counted_by_node() -> None:
    check(RANKS, 2 * GIB)
    with pytest.raises(
        ClusterError, match=r"first has 4.0 GiB of memory free, less than the 2.1 GiB \+ 2.1 GiB .*of rank 0, 1"
    ):
        check(RANKS, int(2.1 * GIB))
    tight = [*RANKS[:2], replace(RANKS[2], free=GIB - 1)]
    with pytest.raises(ClusterError, match="second has"):
        check(tight)


def test_files_that_a_node_does_not_see_are_named() -> None:
    blind = [*RANKS[:2], replace(RANKS[2], without=(Path("/data/weights.safetensors"),))]
    with pytest.raises(ClusterError, match=r"rank 2, on second, does not see /data/weights\.safetensors"):
        check(blind)
    check([*RANKS[:2], replace(RANKS[2], marked=False)])  # it writes nothing there
    with pytest.raises(
        ClusterError, match=r"rank 0, on first, .*/runs/first, where it writes snapshots.*--run-dir, or take no"
    ):
        check([replace(RANKS[0], marked=False), *RANKS[1:]])


def test_a_folder_of_the_same_name_elsewhere_is_not_taken_for_the_run_folder(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    with marked(ours / "runs" / "first") as mark:
        assert look("n", Needs(mark=mark)).marked
        assert not look("n", Needs(mark=theirs / mark.name)).marked
        state = look("n", Needs(files=(ours, tmp_path / "none")))
        assert state.without == (tmp_path / "none",)
        assert state.free > 0 and state.sources["distributed/readiness.py"]
    assert [*ours.iterdir()] == []


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_answers_but_is_no_ray_head_is_told_at_once(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PROBE_SECONDS", 0.3)
    with (
        answering(answer) as address,
        pytest.raises(ClusterError, match=f"what answers at {address} is no Ray head.*6379"),
    ):
        probe(address)


def test_what_greets_as_a_ray_head_does_is_taken() -> None:
    with answering(SETTINGS) as address:
        probe(address)


def test_the_address_of_a_client_is_told() -> None:
    with pytest.raises(ClusterError, match=r"ray://head:10001 is for Ray's client.*--num-cpus 0"):
        probe("ray://head:10001")


@pytest.mark.parametrize("told", [True, False])
def test_a_token_that_is_missing_is_told(told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where RAY_AUTH_MODE is not set, and Ray says no more than that it cannot connect, and why in a cause."""
    # A Ray that a test before started sets some.
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def init(**options: Any) -> None:
        if told:
            raise ray.exceptions.AuthenticationError("no")
        raise ConnectionError("Failed to connect") from RuntimeError(
            "Last connection error: ...\nray.exceptions.AuthenticationError: RPC error: InvalidAuthToken"
        )

    fake = SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=ray.exceptions)
    with pytest.raises(ClusterError, match=r"cluster at auto wants a token: set RAY_AUTH_MODE=token"):
        cluster.connect(fake, "auto", 1)


@pytest.mark.memory
def test_launched_on_a_cluster(tmp_path: Path) -> None:
    """In a process of its own, which is connected to no other cluster."""
    words = [sys.executable, "-m", "tests.distributed.launched_cluster", str(tmp_path)]
    found = with_own_temporary_files(words, tmp_path / "temporary")
    alone = found["alone"]
    assert found["spread"] == {**alone, "nodes": "1+1"}
    assert found["resumed"] == {**alone, "nodes": "2"}
    assert all("runtime_resources" in place for place in found["modules"])  # shipped, not found where it was
    assert "differ. A run that joins the cluster" in found["other code"] and "launched_model.py" in found["other code"]
    assert "cannot write to the place of the run folder" in found["unseen"]
    assert "less than the" in found["memory"] and "are planned for the workers there" in found["memory"]
    assert "with nobody else it has room for" in found["cpus"]
    assert re.search(r"its node (has left|cannot be reached)|rank 1 died", found["left"])
    assert "the last snapshot is" in found["left"]
    assert found["seen"] > 0 and found["left behind"] == NOTHING
    assert not [*tmp_path.rglob(".retape*")]  # by which a folder is known
