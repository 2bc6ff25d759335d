"""Snapshots: the saved state of a run, from which it goes on bit for bit.

A snapshot is a folder RUN/snapshots/step-00000050 of safetensors files and a manifest, which has the size and the SHA-256 of each file and of
itself. It is written under another name, synced, and renamed, so a folder of that name is whole, unless the disk has damaged it since: who
reads it checks every byte first. Nothing in it is code.

Rank 0 writes it (`SnapshotWriter`), since all hold equal state; of an optimizer's state that is shared out, the others send it theirs, block by
block. All read it (`load`). The files are the same whoever held what.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.durable import ASIDE
from framework.memory import Ledger
from framework.tensor_files import Tensors, hash_file, read_tensors

#: What a manifest says it is. The version rises when older programs could not read it any more.
FORMAT, VERSION = "retape snapshot", 1
MANIFEST = "manifest.json"
#: The files of a snapshot: parameters and layers' state under the names of `weights.safetensors`; the optimizer's state by row and
#: parameter; the losses of all steps so far, so that a resumed run has the loss log of the whole.
WEIGHTS, OPTIMIZER, LOSSES = "weights.safetensors", "optimizer.safetensors", "losses.safetensors"
#: What a damaged snapshot is renamed to, so that it is there to be looked at.
DAMAGED = ".damaged"

_NAME = re.compile(r"step-(\d{8,})")


class SnapshotCorrupt(RuntimeError):  # noqa: N818  (the name that callers act on)
    """A snapshot is not what was written: a file is missing, cut or changed. Nothing was taken from it."""


class SnapshotFailed(RuntimeError):  # noqa: N818  (the name that callers act on)
    """A snapshot could not be written; those before it are whole."""


#: What the files of a snapshot hold: for each file its arrays by name.
State = Mapping[str, Tensors]


def name_of(step: int) -> str:
    """The name of the snapshot after so many steps.

    >>> name_of(50)
    'step-00000050'
    """
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """How many steps a snapshot was taken after; None where that is no name of one."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else None


def snapshots_in(folder: Path) -> list[Path]:
    """Returns the snapshots in a folder, the newest first, without looking into them."""
    if not folder.is_dir():
        return []
    named = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(named, reverse=True)]


def sealed(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its own: of its JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a snapshot's manifest, and checks that it is whole.

    Raises:
        SnapshotCorrupt: It is missing or changed.
        ValueError: It is of a version that this program does not know.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise SnapshotCorrupt(f"{path}: {MANIFEST} is missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise SnapshotCorrupt(f"{path}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != sealed(manifest):
        raise SnapshotCorrupt(f"{path}: {MANIFEST} is not what was written")
    if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
        raise ValueError(
            f"{path} is a {manifest['format']} of version {manifest['version']}, but this program reads version {VERSION} of "
            f"a {FORMAT}; take the program that wrote it"
        )
    return manifest


def verify(path: Path) -> dict[str, Any]:
    """Reads all of a snapshot and compares it with its manifest, which is returned.

    Raises:
        SnapshotCorrupt: Something is missing, cut or changed; the message says what.
        ValueError: See `read_manifest`.
    """
    manifest = read_manifest(path)
    if manifest["step"] != step_of(path):
        raise SnapshotCorrupt(f"{path}: its manifest is of step {manifest['step']}")
    for name, expected in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                raise SnapshotCorrupt(f"{path}: {name} has {size:,} bytes instead of {expected['bytes']:,}")
            found = hash_file(path / name)
        except FileNotFoundError as error:
            raise SnapshotCorrupt(f"{path}: {name} is missing") from error
        except OSError as error:
            raise SnapshotCorrupt(f"{path}: {name} cannot be read: {error}") from error
        if found.sha256 != expected["sha256"]:
            raise SnapshotCorrupt(f"{path}: {name} is not what was written: its SHA-256 is {found.sha256[:16]}…, not "
                                  f"{expected['sha256'][:16]}…")  # fmt: skip
    return manifest


@dataclass(frozen=True)
class Found:
    """The newest whole snapshot of a run.

    Attributes:
        path: Its folder.
        manifest: Its manifest.
        damaged: What is wrong with newer ones, by path.
    """

    path: Path
    manifest: dict[str, Any]
    damaged: dict[Path, str]


def newest_whole(folder: Path, config: Mapping[str, Any]) -> Found | None:
    """Looks for the newest snapshot in a folder of which every byte is as it was written.

    Args:
        folder: RUN/snapshots.
        config: The run's configuration: a snapshot of another run is no better than a damaged one.

    Returns:
        It, or None if there is no snapshot at all.

    Raises:
        SnapshotCorrupt: There are snapshots, and all are damaged.
        ValueError: See `read_manifest`.
    """
    damaged: dict[Path, str] = {}
    for path in snapshots_in(folder):
        try:
            manifest = verify(path)
            if manifest["configuration"] != config:
                raise SnapshotCorrupt(f"{path}: it is of another run")
            return Found(path, manifest, damaged)
        except SnapshotCorrupt as error:
            damaged[path] = str(error)
    if damaged:
        told = "\n  ".join(damaged.values())
        raise SnapshotCorrupt(f"no snapshot in {folder} is whole, so the run cannot go on from one:\n  {told}")
    return None


def load(path: Path, state: State, ledger: Ledger | None = None) -> None:
    """Reads a snapshot into arrays, after checking every byte of it.

    Args:
        path: The snapshot.
        state: Where its parts go: arrays by name for each of its files that is read.
        ledger: Counts the tensor that is being read.

    Raises:
        SnapshotCorrupt: Something is missing, cut or changed; no array was.
        ValueError: It is of another model or optimizer.
    """
    verify(path)
    for name, arrays in state.items():
        read_tensors(path / name, arrays, "snapshot file", ledger)


def losses_of(path: Path, step: int) -> list[float]:
    """Returns the losses of all steps before a snapshot.

    Raises:
        SnapshotCorrupt: There are not as many as steps.
    """
    losses = np.empty(step, np.float64)
    try:
        read_tensors(path / LOSSES, {"losses": losses}, "snapshot file")
    except ValueError as error:
        raise SnapshotCorrupt(f"{path}: {error}") from error
    return losses.tolist()


def set_aside(path: Path) -> Path:
    """Renames a damaged snapshot, in place of one that was damaged there before."""
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def clean(folder: Path) -> None:
    """Removes what an interrupted program has left half written or half removed."""
    if folder.is_dir():
        for path in folder.glob(f"*{ASIDE}"):
            shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a snapshot; a half-removed one does not have the name of a whole one any more."""
    aside = path.with_name(path.name + ASIDE)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def advice(error: OSError) -> str:
    """What to do about an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "; make room, or keep fewer with --keep-snapshots"
    return ""


def stamp() -> str:
    """The present moment in UTC, for records."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def require_seen(folder: Path) -> None:
    """Raises unless a folder that another process has made is seen here: on one machine, or on a file system that is shared.

    Raises:
        SnapshotFailed: It is not.
    """
    if not folder.is_dir():
        raise SnapshotFailed(
            f"the worker on {os.uname().nodename} does not see the folder {folder} for snapshots; with --address, put the run "
            "folder (--run-dir) on a file system that the cluster's nodes share"
        )
