"""Writing of snapshots: training stops while the state is hashed and copied into the page cache, and goes on while the disk takes it."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.snapshots import (
    FORMAT,
    MANIFEST,
    VERSION,
    SnapshotFailed,
    State,
    advice,
    name_of,
    remove,
    require_seen,
    sealed,
    snapshots_in,
    stamp,
)
from framework.durable import ASIDE, sync, write_all
from framework.tensor_files import write_tensors


class SnapshotWriter:
    """Writes the snapshots of a run, one at a time, and removes old ones.

    `write` returns when the state may change again. A thread then syncs the files, gives the snapshot its name, and removes those that
    are too many. What it fails at is raised by the next call.

    Args:
        folder: RUN/snapshots.
        keep: How many snapshots stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: SnapshotFailed | None = None

    def write(self, about: Mapping[str, Any], state: State) -> dict[str, Any]:
        """Writes a snapshot.

        Args:
            about: What its manifest says, ready for JSON; `step` is the number of steps done.
            state: Its files. Arrays are read where they lie, a block at a time: nothing is copied.

        Returns:
            Its name, its bytes, and the seconds for which training stopped.

        Raises:
            SnapshotFailed: This one or the one before could not be written.
        """
        started = time.perf_counter()
        self.wait()
        require_seen(self._folder)
        name = name_of(about["step"])
        aside = self._folder / (name + ASIDE)
        descriptors: list[int] = []
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            files: dict[str, dict[str, Any]] = {}
            for file, arrays in state.items():
                descriptors.append(_create(aside / file))
                written = write_tensors(descriptors[-1], arrays, {"step": str(about["step"])})
                files[file] = {"bytes": written.nbytes, "sha256": written.sha256}
            manifest = {"format": FORMAT, "version": VERSION, **about, "saved": stamp(), "files": files}
            manifest["sha256"] = sealed(manifest)
            descriptors.append(_create(aside / MANIFEST))
            write_all(descriptors[-1], json.dumps(manifest, indent=1).encode())
        except BaseException as error:
            _close(descriptors)
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError):
                raise _failed(name, error) from error
            raise
        # Not a daemon: a program that ends waits for it.
        self._thread = threading.Thread(target=self._complete, args=(name, aside, descriptors), name=f"sync {name}")
        self._thread.start()
        nbytes = sum(each["bytes"] for each in files.values())
        return {"name": name, "bytes": nbytes, "seconds": time.perf_counter() - started}

    def check(self) -> None:
        """Raises what the thread has failed at so far.

        Raises:
            SnapshotFailed: The last snapshot could not be written.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Waits until the last snapshot has its name.

        Raises:
            SnapshotFailed: It could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _complete(self, name: str, aside: Path, descriptors: list[int]) -> None:
        try:
            try:
                for descriptor in descriptors:
                    os.fsync(descriptor)
            finally:
                _close(descriptors)
            sync(aside)
            os.rename(aside, self._folder / name)  # noqa: PTH104  (beside fsync, as the order of the two is the point)
            sync(self._folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            self._error = _failed(name, error)
            return
        try:
            for path in snapshots_in(self._folder)[self._keep :]:
                remove(path)
        except OSError as error:
            self._error = SnapshotFailed(f"snapshot {name} is written, but an older one could not be removed: {error}")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()


def _failed(name: str, error: OSError) -> SnapshotFailed:
    return SnapshotFailed(
        f"snapshot {name} could not be written: {error}{advice(error)}; snapshots before it are whole"
    )
