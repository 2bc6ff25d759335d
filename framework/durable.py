"""Files that appear whole or not at all, also when the program or the machine stops at any moment.

What is written goes to a file beside, is synced, and only then takes the name; the folder, which holds the name, is synced last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What a file or folder that is being written ends with.
ASIDE = ".part"


@contextmanager
def written_aside(path: Path) -> Iterator[int]:
    """Gives a descriptor to write to; the file takes its name when the block ends without an error.

    Raises:
        OSError: It could not be written, synced, or renamed; what was there before is still there.
    """
    aside = path.with_name(path.name + ASIDE)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)  # noqa: PTH105  (one module calls the system for all that must be durable)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, from the page cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> int:
    """Writes all of the data, of which the system may take a part at a time; returns how many bytes they are."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    return len(data)
