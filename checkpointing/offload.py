"""Values on disk: a file without a name, and a thread that writes behind and reads ahead.

The thread takes no memory: it writes from the values' own arrays, which the plan keeps until its Wait, and reads into arrays that the
plan's Fetch took. So what is held, and when, is the plan's affair alone, and timing changes no byte and no bit.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from framework.memory import Array
from framework.sizes import format_size

#: Bytes that are moved, and added to the checksum, at once: small enough for a cache, and to stop soon.
_CHUNK = 2**20
#: A file system that has no way to set room aside, so that a full disk is seen only when it is written to.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_MEMORY = ("tmpfs", "ramfs")


class OffloadError(OSError):
    """A value could not be written to disk, or is not what was written."""


@dataclass(frozen=True)
class _Kept:
    """An array on disk.

    Attributes:
        shape, dtype: Its own.
        axes: The order of its axes in memory, from the longest stride; other strides would be other memory for the next product.
        start: Where it lies in the file.
        nbytes: Its bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[int, ...]
    start: int
    nbytes: int


@dataclass
class Transfer:
    """A value on its way to or from the file.

    Attributes:
        what: The value, in words.
        key: The value.
        reading: Whether it comes from the file.
        checksum: Of all its bytes: what was written, or has to be read.
        error: What went wrong.
        done: Set when the thread is through with it.
        cancelled: Whether the thread may leave it.
    """

    what: str
    key: Any
    reading: bool
    views: list[tuple[memoryview, int]]
    checksum: int = 0
    error: OSError | MemoryError | None = None
    done: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False

    @property
    def nbytes(self) -> int:
        return sum(view.nbytes for view, _ in self.views)

    def run(self, file: int) -> None:
        """Moves the bytes; the thread calls it."""
        try:
            checksum = self._moved(file)
            if not self.reading:
                self.checksum = checksum
            elif checksum != self.checksum and not self.cancelled:
                self.error = OffloadError(
                    f"{self.what} was altered in the file: its checksum is another than when it was written"
                )
        except (OSError, MemoryError) as error:
            self.error = error.with_traceback(None)  # its frames hold parts of arrays
        self.done.set()

    def _moved(self, file: int) -> int:
        checksum = 0
        for view, start in self.views:
            at = 0
            while at < view.nbytes and not self.cancelled:
                part = view[at : at + _CHUNK]
                if self.reading:
                    moved = os.preadv(file, [part], start + at)
                    if not moved:
                        raise OffloadError(
                            f"the file is truncated: of {self.what}, {view.nbytes:,} bytes from {start:,} on, {at:,} are there"
                        )
                else:
                    moved = os.pwrite(file, part, start + at)
                checksum = zlib.crc32(part[:moved], checksum)
                at += moved
        return checksum


class OffloadFile:
    """Where the offloaded values of a rank lie: one file in a folder, which has no name, so that it is gone with its process at the latest.

    Args:
        folder: Where; None for the folder that temporary files go to.
        nbytes: Room that is set aside.

    Raises:
        OffloadError: The folder does not exist or cannot be written to, or has no room.
    """

    def __init__(self, folder: Path | None, nbytes: int) -> None:
        self.folder = folder if folder is not None else default_folder()
        require_folder(self.folder)
        self.nbytes = 0
        self._kept: dict[Any, tuple[list[_Kept], int]] = {}
        self._moving: list[Transfer] = []
        # On Linux this is O_TMPFILE; where a file system lacks that, the name is gone before anything is written.
        self._file: IO[bytes] = _opened(self.folder)
        try:
            self.reserve(nbytes)
        except BaseException:
            self._file.close()
            raise
        self._jobs: SimpleQueue[Transfer | None] = SimpleQueue()
        thread = threading.Thread(target=_serve, args=(self._jobs, self._file.fileno()), name="offload", daemon=True)
        thread.start()
        self.close: Callable[[], None] = weakref.finalize(self, _shut, self._jobs, thread, self._file)

    def reserve(self, nbytes: int) -> None:
        """Sets room aside, before the step: a disk that is too full is refused before any work.

        Raises:
            OffloadError: There is no room.
        """
        if nbytes <= self.nbytes:
            return
        try:
            os.posix_fallocate(self._file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise OffloadError(self._told(f"no room of {nbytes:,} bytes ({format_size(nbytes)})", error)) from error
        self.nbytes = nbytes

    def write(self, key: Any, what: str, arrays: Sequence[Array], start: int) -> Transfer:
        """Begins to write arrays; they must not change before `wait`.

        Args:
            key: What `read` is told.
            what: In words, for errors.
            arrays: The arrays.
            start: Where in the file, in bytes; what was there is overwritten.
        """
        kept, views = [], []
        for a in arrays:
            axes = _axes(a, what)
            kept.append(_Kept(a.shape, a.dtype, axes, start, a.nbytes))
            views += _bytes_of(a.transpose(axes), start)
            start += a.nbytes
        self._kept[key] = kept, 0
        return self._begin(Transfer(what, key, False, views))

    def read(
        self, key: Any, what: str, empty: Callable[[tuple[int, ...], np.dtype[Any]], Array]
    ) -> tuple[Transfer, tuple[Array, ...]]:
        """Begins to read arrays that were written; they are whole after `wait`.

        Args:
            key: As it was told to `write`.
            what: In words, for errors.
            empty: Makes a C-contiguous array.
        """
        kept, checksum = self._kept[key]
        arrays, views = [], []
        for each in kept:
            memory = empty(tuple(each.shape[axis] for axis in each.axes), each.dtype)
            views += _bytes_of(memory, each.start)
            arrays.append(memory.transpose(np.argsort(each.axes)))
        return self._begin(Transfer(what, key, True, views, checksum)), tuple(arrays)

    def wait(self, transfer: Transfer) -> None:
        """Waits for a value that is written or read; the file's thread has let go of its arrays then.

        Raises:
            OffloadError: It could not be written, or is not what was written.
        """
        transfer.done.wait()
        self._moving.remove(transfer)
        nbytes, error = transfer.nbytes, transfer.error
        transfer.views.clear()
        if error is not None:
            verb = "read" if transfer.reading else "written"
            raise OffloadError(self._told(f"{transfer.what} ({nbytes:,} bytes) could not be {verb}", error)) from error
        if not transfer.reading:
            self._kept[transfer.key] = self._kept[transfer.key][0], transfer.checksum

    def sync(self) -> None:
        """Waits until the disk has what was written, instead of the system's cache."""
        os.fsync(self._file.fileno())

    def abandon(self) -> None:
        """Gives up all that is being written or read, and forgets what is there."""
        for transfer in self._moving:
            transfer.cancelled = True
        while self._moving:
            transfer = self._moving[-1]
            transfer.done.wait()
            transfer.views.clear()
            self._moving.pop()
        self._kept.clear()

    def _begin(self, transfer: Transfer) -> Transfer:
        self._moving.append(transfer)
        self._jobs.put(transfer)
        return transfer

    def _told(self, what: str, error: Exception) -> str:
        """Words for an error: what, where, why, and what to do."""
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) in _NO_ROOM:
            free = shutil.disk_usage(self.folder).free
            advice = f"{format_size(free)} are free there; free some, raise the limit, or name a folder on another disk with --offload-dir"
        else:
            advice = "check the disk, or name a folder on another one with --offload-dir"
        return f"offloading to a file in {self.folder}: {what}: {reason}; {advice}"


def require_folder(folder: Path) -> None:
    """Raises a clear error unless a folder can be written to.

    Raises:
        OffloadError: It is no folder, or may not be written to.
    """
    reason = "is no folder" if folder.exists() else "does not exist"
    if folder.is_dir():
        if os.access(folder, os.W_OK | os.X_OK):
            return
        reason = "may not be written to"
    raise OffloadError(
        f"values cannot be offloaded to {folder}, which {reason}; name another folder with --offload-dir (offload_dir in Python)"
    )


def default_folder() -> Path:
    """Returns the folder of temporary files, or /var/tmp where that one is memory."""
    folder, other = Path(tempfile.gettempdir()), Path("/var/tmp")
    return other if lies_in_memory(folder) and os.access(other, os.W_OK) and not lies_in_memory(other) else folder


def lies_in_memory(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the files of a folder take memory, as those of a tmpfs do."""
    try:
        device, rows = folder.stat().st_dev, mounts.read_text().splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE SUPER-OPTIONS; see proc(5)
    kinds = [row.partition(" - ")[2].split()[0] for row in rows if row.split()[2] == number]
    return any(kind in _IN_MEMORY for kind in kinds)


def measure_disk(folder: Path | None = None, nbytes: int = 2**25) -> int:
    """Returns the bytes a second at which a folder's disk writes and reads, by writing about so many and reading them again.

    The writes end when the disk says that it has them; the reads may come from the system's cache, as they may in a step.

    Raises:
        OffloadError: The folder cannot be written to or has no room.
    """
    a = np.zeros(min(nbytes, 2 * _CHUNK), np.uint8)
    starts = range(0, nbytes, a.nbytes)
    file = OffloadFile(folder, len(starts) * a.nbytes)
    try:
        began = time.perf_counter()
        for start in starts:
            file.wait(file.write(start, "a trial", [a], start))
        file.sync()
        for start in starts:
            file.wait(file.read(start, "a trial", lambda shape, dtype: a)[0])
        return max(1, int(2 * file.nbytes / (time.perf_counter() - began)))
    finally:
        file.close()


def _opened(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder, prefix="retape-", buffering=0)
    except OSError as error:
        raise OffloadError(
            f"no file for offloaded values can be made in {folder}: {error.strerror}; name another folder with --offload-dir"
        ) from error


def _axes(a: Array, what: str) -> tuple[int, ...]:
    """The order of an array's axes in memory."""
    if a.flags.c_contiguous:
        return tuple(range(a.ndim))
    axes = tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))
    if not a.transpose(axes).flags.c_contiguous:
        raise OffloadError(
            f"{what} has gaps in memory (shape {a.shape}, strides {a.strides}), so it cannot be offloaded; let the layer return an "
            "array of its own, or take another policy"
        )
    return axes


def _bytes_of(a: Array, start: int) -> list[tuple[memoryview, int]]:
    """The bytes of a C-contiguous array, and where in the file they belong."""
    return [(a.reshape(-1).view(np.uint8).data, start)] if a.nbytes else []


def _serve(jobs: SimpleQueue[Transfer | None], file: int) -> None:
    """The thread: it knows the queue and not the file's object, so that this can go."""
    while (transfer := jobs.get()) is not None:
        transfer.run(file)


def _shut(jobs: SimpleQueue[Transfer | None], thread: threading.Thread, file: IO[bytes]) -> None:
    jobs.put(None)
    thread.join()
    file.close()
