"""Ranks that are threads of this process, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from distributed.collectives.hierarchical import Hierarchical
from distributed.collectives.shared_memory import SharedMemory
from framework import Key


@contextmanager
def opened(world: int, **options: Any) -> Iterator[list[SharedMemory]]:
    """Yields the communicators of all ranks, connected."""
    ranks = [SharedMemory(rank, world, **{"capacity": 1 << 22, "timeout": 30.0, **options}) for rank in range(world)]
    try:
        for rank in ranks:
            rank.connect([other.address for other in ranks])
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


def in_parallel(ranks: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """Returns what `work` gives for each rank, all running at once. Where one fails, the others wait for it no longer."""
    errors: list[BaseException] = []

    def told(rank: Any) -> Any:
        try:
            return work(rank)
        except BaseException as error:
            errors.append(error)
            for other in ranks:
                if isinstance(other, SharedMemory | Hierarchical):
                    other.abort()
            raise

    with ThreadPoolExecutor(len(ranks)) as pool:
        futures = [pool.submit(told, rank) for rank in ranks]
    if errors:
        raise errors[0]  # the others' are its consequences
    return [future.result() for future in futures]


def descriptors(name: str) -> int:
    """Returns how many descriptors this process has open of files with such a name."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            found += name in str(link.readlink())
    return found


def numbers(world: int, size: int, dtype: str) -> list[np.ndarray]:
    """Returns an array for each rank, of very different magnitudes, so that the order of additions shows in the bits."""
    generator = Key(5).fold(world, size).generator()
    scale = 10.0 ** generator.integers(-6, 6, (world, size)) if dtype.startswith("float") else 1000.0
    return list((generator.standard_normal((world, size)) * scale).astype(dtype))
