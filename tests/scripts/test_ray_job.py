"""The manifest for KubeRay, as far as it can be judged without Kubernetes."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from checkpointing.budgets import RESERVE_NBYTES
from distributed import Trainer, TrainingOptions
from distributed.nodes import Node
from distributed.placement import Room
from framework import build
from tests.scripts.helpers import ROOT
from tests.scripts.ray_job import RAY_JOB

MIB = 2**20
UNITS = {"Mi": 2**20, "Gi": 2**30}
#: More than Ray takes of a pod besides its workers: 340 MiB were seen.
RAY_NBYTES = 512 * MIB
#: More than a worker's process has before its first array: 110 MiB were seen.
BASELINE_NBYTES = 256 * MIB
#: Objects whose keys are anybody's.
OPEN = ("rayStartParams", "requests", "limits")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "scripts" / "cluster" / "rayjob.yaml").read_text())


@pytest.fixture
def options(manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> TrainingOptions:
    """What the entrypoint asks for, read by the program's own parser and checked."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    train, parser = importlib.import_module("train"), importlib.import_module("_options")
    python, program, *words = shlex.split(manifest["spec"]["entrypoint"])
    assert python == "python" and Path(program).relative_to("/home/ray/retape") == Path("scripts/train.py")
    given = parser.parse(train.defaults, "", words)
    assert given.run_dir is not None and str(given.run_dir).startswith(f"{mounted(manifest)}/")
    chosen = {name: getattr(given, name) for name in TrainingOptions.__dataclass_fields__}
    found = TrainingOptions(**{**chosen, **{n: value for n, value in train.DEFAULTS.items() if chosen[n] is None}})
    found.check()
    return found


def mounted(manifest: dict[str, Any]) -> str:
    """Where the volume that all pods share is, on all of them."""
    places = {
        mount["mountPath"]
        for pod in pods(manifest)
        for mount in pod["containers"][0]["volumeMounts"]
        for volume in pod["volumes"]
        if mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    }
    (place,) = places
    return str(place)


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the head and of the workers."""
    cluster = manifest["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]


def nbytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def places(inside: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a manifest."""
    each = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
    for name, value in each:
        yield (*above, name)
        yield from places(value, (*above, name))


def changed(manifest: dict[str, Any], place: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """A copy of a manifest, and in it what holds the value at a place."""
    broken = copy.deepcopy(manifest)
    inner: Any = broken
    for name in place[:-1]:
        inner = inner[name]
    return inner, broken


def test_every_field_is_known_and_of_its_type(manifest: dict[str, Any]) -> None:
    schema = jsonschema.Draft202012Validator(RAY_JOB)
    schema.validate(manifest)
    judged = 0
    for place in places(manifest):
        inner, broken = changed(manifest, place)
        if isinstance(place[-1], str) and place[-2:-1] not in [(name,) for name in OPEN]:
            inner[place[-1] + "s"] = inner.pop(place[-1])
            assert not schema.is_valid(broken), place
        inner, broken = changed(manifest, place)
        inner[place[-1]] = [1.5]
        assert not schema.is_valid(broken), place
        judged += 1
    assert judged > 60
    for quantity in ("2 Gi", "2GiB", "-", "two"):
        inner, broken = changed(manifest, ("spec",))
        pods(broken)[0]["containers"][0]["resources"]["limits"]["memory"] = quantity
        assert not schema.is_valid(broken), quantity


def test_the_pods_fit_each_other_and_what_is_installed(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    for pod in pods(manifest):
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    images = {pod["containers"][0]["image"] for pod in pods(manifest)}
    assert len(images) == 1  # one code on all nodes
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and images.pop().endswith(f":{version[1]}")
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    from ray.scripts.scripts import start  # takes a second

    known = {word.removeprefix("--") for option in start.params for word in option.opts}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {*group["rayStartParams"]} <= known
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] or "ttlSecondsAfterFinished" not in spec


def test_the_pods_have_room_for_what_the_command_asks_for(manifest: dict[str, Any], options: TrainingOptions) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    assert options.address == "auto" and cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]  # nobody adds pods
    pod = pods(manifest)[1]
    limits = pod["containers"][0]["resources"]["limits"]
    node = Node(
        "pod", "node:pod", int(limits["cpu"]), nbytes(limits["memory"]), nbytes(limits["memory"]), int(limits["cpu"])
    )
    room = Room(options.workers, options.threads_per_worker)
    assert group["replicas"] * room.fits(node) >= options.workers
    (memory,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume]
    # A worker that holds as much as store-all would, on a pod with as many as fit, beside Ray and a full /dev/shm, which counts.
    model = build("byte-gpt-tiny")
    kept = {"batch": options.batch, "shards": options.shards, "workers": 2, "steps": 2, "policy": "store-all"}
    engine = Trainer(model, data=model.dataset(()), **kept).plans.peak
    each = BASELINE_NBYTES + engine + RESERVE_NBYTES
    assert room.fits(node) * each + nbytes(memory) + RAY_NBYTES <= nbytes(limits["memory"])
    head = nbytes(pods(manifest)[0]["containers"][0]["resources"]["limits"]["memory"])
    assert BASELINE_NBYTES + engine + RAY_NBYTES + nbytes(memory) <= head  # the driver, who receives the parameters
